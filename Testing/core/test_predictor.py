"""The main job on a real patient: geometry, accuracy, attention, devices, memory, cancelling."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsegcore.errors import (
    CancelledError,
    DeviceError,
    ModelNotFoundError,
    OutOfMemoryError,
    SettingError,
)
from medsegcore.evaluation.evaluate import threshold_baseline
from medsegcore.evaluation.metrics import dice
from medsegcore.imaging import Grid, Image, read_image, reorient, resample
from medsegcore.inference import Predictor, SliceAttention, SpatialAttention
from medsegcore.inference.preprocess import prepare


def on_grid(result, grid: Grid) -> np.ndarray:
    """The answer's mask moved onto another grid, bool."""
    return resample(result.image(result.labelmap), grid, "nearest").array > 0


def test_the_shipped_model_beats_every_plain_threshold(ms_result, ms_images, ms_reference):
    score = dice(ms_result.labelmap > 0, ms_reference.array)
    plain, _ = threshold_baseline(ms_images["flair"], ms_reference.array)
    assert score >= 0.70
    assert score > plain.value + 0.05


def test_the_answer_lies_on_the_reference_images_own_grid(ms_result, ms_images):
    assert ms_result.grid.same_as(ms_images["flair"].grid, 1e-6)
    assert ms_result.labelmap.shape == ms_images["flair"].shape
    assert ms_result.labelmap.dtype == np.uint8
    for probability in ms_result.probabilities.values():
        assert probability.shape == ms_result.labelmap.shape
        assert 0 <= probability.min() <= probability.max() <= 1


def test_the_labelmap_is_the_probability_at_its_threshold(ms_result):
    (label,) = ms_result.labels
    cut = ms_result.probabilities[label.name] >= ms_result.settings["thresholds"][label.name]
    assert np.array_equal(ms_result.labelmap > 0, cut)


@pytest.fixture(scope="module")
def lesion_part(ms_images, ms_reference):
    """Three inputs around the middle of the lesions."""
    middle = np.argwhere(ms_reference.array).mean(axis=0).astype(int)
    halves = (36, 44, 48)
    box = tuple(slice(max(m - h, 0), m + h) for m, h in zip(middle, halves, strict=True))
    return {
        key: Image(image.array[box], image.grid.crop(box).affine)
        for key, image in ms_images.items()
    }


@pytest.fixture(scope="module")
def part_result(predictor, lesion_part):
    result = predictor.predict(lesion_part, attention=False)
    assert 500 < (result.labelmap > 0).sum() < 0.1 * result.labelmap.size
    return result


def test_permuted_axes_of_a_whole_head_give_the_same_mask_in_ras(predictor, ms_images, ms_result):
    turned = {key: reorient(image, "PIL") for key, image in ms_images.items()}
    result = predictor.predict(turned, attention=False)
    assert result.grid.same_as(turned["flair"].grid, 1e-6)
    assert np.array_equal(on_grid(result, ms_result.grid), ms_result.labelmap > 0)


@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
def test_flipped_and_permuted_axes_give_the_same_mask_in_ras(
    predictor, lesion_part, part_result, orientation
):
    turned = {key: reorient(image, orientation) for key, image in lesion_part.items()}
    result = predictor.predict(turned, attention=False)
    assert result.grid.same_as(turned["flair"].grid, 1e-6)
    assert np.array_equal(on_grid(result, part_result.grid), part_result.labelmap > 0)


def tilted(image: Image, degrees: float) -> Grid:
    """A grid over the whole image that is turned about two axes."""
    a, b = np.radians([degrees, -0.6 * degrees])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ (
        np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    )
    corners = (image.grid.corners() - image.grid.center) @ turn
    shape = tuple(int(n) for n in np.ceil(np.ptp(corners, axis=0))[::-1])
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = image.grid.center - turn @ ((np.array(shape[::-1]) - 1) / 2)
    return Grid(shape, affine)


def test_an_oblique_input_gives_the_same_mask_in_ras(predictor, ms_images, ms_result):
    grid = tilted(ms_images["flair"], 17)
    oblique = {key: resample(image, grid, "bspline") for key, image in ms_images.items()}
    # Spline interpolation rings around the brain's edge; the source has removed it there.
    flair = ms_images["flair"]
    head = resample(flair.with_array(flair.array > 0), grid).array > 0.5
    oblique = {key: image.with_array(image.array * head) for key, image in oblique.items()}
    result = predictor.predict(oblique, attention=False)
    assert result.grid.same_as(grid, 1e-6)
    # At the model's threshold of 0.8 the answer follows the sharpness of the image, which
    # interpolation takes away: where the lesions lie is to be seen at a lower one.
    name = result.labels[0].name
    lower, straight = (r.relabel({name: 0.4}) for r in (result, ms_result))
    assert dice(on_grid(lower, ms_result.grid), straight.labelmap > 0) > 0.8
    assert dice(on_grid(result, ms_result.grid), ms_result.labelmap > 0) > 0.7


def test_inputs_on_different_grids_are_brought_together(predictor, lesion_part, part_result):
    t1 = lesion_part["t1"]
    mixed = {
        "flair": lesion_part["flair"],
        "t1": resample(t1, tilted(t1, 9), "bspline"),
        "t2": reorient(lesion_part["t2"], "PIL"),
    }
    result = predictor.predict(mixed, attention=False)
    assert dice(result.labelmap > 0, part_result.labelmap > 0) > 0.9


def test_without_the_optional_input_the_answer_stays_useful(predictor, ms_images, ms_reference):
    result = predictor.predict({k: ms_images[k] for k in ("t1", "flair")}, attention=False)
    assert result.provenance["missing_inputs"] == ["t2"]
    assert dice(result.labelmap > 0, ms_reference.array) > 0.55


def test_of_an_input_that_ends_in_a_lesion_the_mean_is_that_of_what_is_there(
    predictor, lesion_part, part_result
):
    r, a, s = part_result.lesions[0].center_ras
    t2 = lesion_part["t2"]
    # The plane through the middle of the largest lesion, all above of it is gone.
    top = int(np.linalg.solve(t2.affine, (r, a, s, 1))[2])
    t2 = Image(t2.array[:top], t2.affine)
    result = predictor.predict({**lesion_part, "t2": t2}, attention=False)
    components, count = ndimage.label(result.labelmap, np.ones((3, 3, 3)))
    expected = []
    for n in range(1, count + 1):
        inside = t2.array[components[:top] == n]
        expected.append((int((components == n).sum()), inside.mean() if inside.size else -1))
    means = [x.inputs["t2"] for x in result.lesions]
    assert None in means
    voxels = [round(x.volume_ml / result.grid.voxel_volume_ml) for x in result.lesions]
    found = [(n, -1 if m is None else m) for n, m in zip(voxels, means, strict=True)]
    assert sorted(found) == [(n, pytest.approx(m)) for n, m in sorted(expected)]
    name = result.labels[0].name
    again = result.relabel({name: result.settings["thresholds"][name]}, inputs={"t2": t2})
    assert [x.inputs["t2"] for x in again.lesions] == means


@pytest.mark.slow
def test_three_oblique_grids_with_skull_go_through(predictor, shared_data):
    folder = shared_data / "ms" / "open_ms_native" / "patient12"
    images = {}
    for key in ("t1", "t2", "flair"):
        image = read_image(folder / f"{key}.nii.gz")
        # The middle half of each, which has skull and three grids as the whole has.
        box = tuple(slice(n // 4, n - n // 4) for n in image.shape)
        images[key] = Image(image.array[box], image.grid.crop(box).affine)
    result = predictor.predict(images)
    assert result.grid.same_as(images["flair"].grid, 1e-6)
    assert result.labelmap.shape == images["flair"].shape


def test_every_declared_attention_map_is_there_and_of_its_kind(ms_result, shipped_model):
    maps = {attention.key: attention for attention in ms_result.attention}
    assert list(maps) == [spec.key for spec in shipped_model.description.attention]
    for spec in shipped_model.description.attention:
        attention = maps[spec.key]
        assert attention.kind == spec.kind
        if isinstance(attention, SliceAttention):
            np.testing.assert_allclose(attention.matrix.sum(axis=1), 1, atol=1e-5)
            assert attention.matrix.min() >= 0
            assert len(attention.centers_ras) == len(attention.matrix)
        else:
            assert isinstance(attention, SpatialAttention)
            assert attention.values.shape == ms_result.labelmap.shape
            assert 0 <= attention.values.min() <= attention.values.max() <= 1
            assert attention.scale > 0


def test_slice_attention_of_one_tile_is_the_networks_own(predictor, ms_images):
    flair = ms_images["flair"]
    middle = [n // 2 for n in flair.shape]
    box = tuple(slice(m - 30, m + 30) for m in middle)
    grid = flair.grid.crop(box)
    images = {key: Image(image.array[box], grid.affine) for key, image in ms_images.items()}
    result = predictor.predict(images)
    tensor = torch.from_numpy(prepare(predictor.description, images).tensor)
    tensor = torch.nn.functional.pad(tensor, (0, 4, 0, 4, 0, 4))[None]
    with torch.inference_mode():
        _, own = predictor.network(tensor, with_attention=True)
    for attention in result.attention:
        if isinstance(attention, SliceAttention):
            np.testing.assert_allclose(attention.matrix, own[attention.key][0], atol=1e-4)


def test_slabs_lie_where_the_patient_does(ms_result, ms_images):
    axial = next(a for a in ms_result.attention if a.kind == "slice" and a.axis == "axial")
    steps = np.diff(axial.centers_ras, axis=0)
    np.testing.assert_allclose(steps, np.tile([0, 0, 16], (len(steps), 1)), atol=1e-6)
    low, high = (f(ms_images["flair"].grid.corners()[:, 2]) for f in (min, max))
    assert low - 8 < axial.centers_ras[0, 2] < axial.centers_ras[-1, 2] < high + 8


def test_mirroring_averages_eight_views_and_progress_counts_them(predictor, ms_images):
    flair = ms_images["flair"]
    box = tuple(slice(n // 2 - 24, n // 2 + 24) for n in flair.shape)
    grid = flair.grid.crop(box)
    images = {key: Image(image.array[box], grid.affine) for key, image in ms_images.items()}
    seen = []
    mirrored = predictor.predict(images, mirror=True, progress=lambda *p: seen.append(p))
    total = {stage: n for stage, _, n, _ in seen}
    assert total["segment"] == 8
    assert [p[1] for p in seen if p[0] == "segment"] == list(range(9))
    flipped = {key: image.with_array(image.array[:, :, ::-1]) for key, image in images.items()}
    again = predictor.predict(flipped, mirror=True)
    name = mirrored.labels[0].name
    # The mean over all mirrorings of a mirrored image is the mirrored mean.
    np.testing.assert_allclose(
        again.probabilities[name][:, :, ::-1], mirrored.probabilities[name], atol=1e-4
    )


def test_it_stops_between_tiles_when_cancelled(predictor, ms_images):
    done = []
    with pytest.raises(CancelledError):
        predictor.predict(
            ms_images,
            progress=lambda stage, n, total, eta: done.append((stage, n)),
            cancelled=lambda: ("segment", 2) in done,
        )
    assert done[-1] == ("segment", 2)


def test_out_of_memory_is_retried_with_smaller_tiles(predictor, ms_images, ms_result, monkeypatch):
    sizes = []
    whole = type(predictor.network).forward

    def forward(self, x, with_attention=False):
        sizes.append(tuple(x.shape[2:]))
        if max(x.shape[2:]) > 64:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, x, with_attention)

    monkeypatch.setattr(type(predictor.network), "forward", forward)
    result = predictor.predict(ms_images)
    assert sizes[0] == (128, 128, 128)
    assert sizes[-1] == (64, 64, 64)
    # Group normalisation sees less of the brain in a small tile: similar, not equal.
    assert dice(result.labelmap > 0, ms_result.labelmap > 0) > 0.6
    monkeypatch.setattr(
        type(predictor.network), "forward",
        lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")),
    )  # fmt: skip
    with pytest.raises(OutOfMemoryError, match="even a small tile"):
        predictor.predict(ms_images)


@pytest.fixture(scope="module")
def small_tiles(shipped_model):
    """The shipped network with tiles of which several go through it at once."""
    description = shipped_model.description
    grid = description.grid.model_copy(update={"tile": (16, 64, 64), "overlap": 0.0})
    network = shipped_model.load_network().eval()
    return Predictor.of(description.model_copy(update={"grid": grid}), network, device="cpu")


@pytest.fixture(scope="module")
def ms_part(ms_images):
    """The middle of the sample."""
    box = (slice(60, 76), slice(20, 116), slice(36, 100))
    return {
        key: Image(image.array[box], image.grid.crop(box).affine)
        for key, image in ms_images.items()
    }


@pytest.fixture
def batches(small_tiles, monkeypatch):
    """How many tiles were in each batch."""
    counts = []
    whole = type(small_tiles.network).forward

    def forward(self, x, with_attention=False):
        counts.append(len(x))
        return whole(self, x, with_attention)

    monkeypatch.setattr(type(small_tiles.network), "forward", forward)
    return counts


def test_small_tiles_together_answer_as_one_by_one(small_tiles, ms_part, batches, monkeypatch):
    steps = []

    def answer():
        batches.clear()
        steps.clear()
        result = small_tiles.predict(
            ms_part, mirror=True, uncertainty=True, dropout=2,
            progress=lambda stage, done, total, left: steps.append((stage, done, total)),
        )  # fmt: skip
        counts, ends = list(batches), [(d, t) for stage, d, t in steps if stage == "segment"]
        assert ends[-1][0] == ends[-1][1] == sum(counts)
        return result, counts

    together, counts = answer()
    assert max(counts) == 2
    monkeypatch.setattr("medsegcore.inference.tiling.VOXELS_AT_ONCE", 1)
    single, counts = answer()
    assert set(counts) == {1}
    for name, array in single.probabilities.items():
        np.testing.assert_allclose(together.probabilities[name], array, atol=1e-4)
    assert [a.key for a in together.attention] == [a.key for a in single.attention]
    for one, other in zip(together.attention, single.attention, strict=True):
        # Dropout draws one mask for a batch, and another one for each tile of its own.
        if one.key == "uncertainty_dropout":
            continue
        mine, others = (a.matrix if a.kind == "slice" else a.values for a in (one, other))
        np.testing.assert_allclose(mine, others, atol=2e-3)


def test_out_of_memory_is_first_retried_one_by_one(small_tiles, ms_part, monkeypatch):
    shapes = []
    whole = type(small_tiles.network).forward

    def forward(self, x, with_attention=False):
        shapes.append(tuple(x.shape))
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, x, with_attention)

    monkeypatch.setattr(type(small_tiles.network), "forward", forward)
    small_tiles.predict(ms_part, attention=False)
    assert shapes[0][0] > 1
    assert {shape[0] for shape in shapes[1:]} == {1}
    assert len({shape[2:] for shape in shapes}) == 1


def test_settings_out_of_range_are_named(predictor, ms_images, shipped_model):
    name = shipped_model.description.labels[0].name
    for thresholds, words in (
        ({name: 1.5}, "is 1.5"),
        ({name: float("nan")}, "is nan"),
        ({"cyst": 0.5}, "no label 'cyst'"),
    ):
        with pytest.raises(SettingError, match=words):
            predictor.predict(ms_images, thresholds=thresholds)
    with pytest.raises(SettingError, match="-1 ml"):
        predictor.predict(ms_images, min_lesion_ml=-1)


def test_devices_that_are_not_there_are_named(shipped_model, tmp_path):
    with pytest.raises(DeviceError, match="no device 'tpu'"):
        Predictor(shipped_model, device="tpu")
    with pytest.raises(DeviceError, match="no precision 'fp8'"):
        Predictor(shipped_model, device="cpu", precision="fp8")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="No CUDA device"):
            Predictor(shipped_model, device="cuda")
        assert Predictor(shipped_model).device.type in ("cpu", "mps")
    with pytest.raises(ModelNotFoundError):
        Predictor(tmp_path)


def test_bf16_agrees_with_fp32(shipped_model, ms_images, ms_result):
    result = Predictor(shipped_model, device="cpu", precision="bf16").predict(
        ms_images, attention=False
    )
    assert dice(result.labelmap > 0, ms_result.labelmap > 0) > 0.95
