"""Networks that take slices: the same answer as slice by slice, neighbours, correlation."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medsegcore.errors import ModelSchemaError
from medsegcore.imaging import Grid, Image, Region, reference_grid, reorient
from medsegcore.inference import CorrelationAttention, Predictor, Result
from medsegcore.inference.preprocess import prepare, with_neighbours
from medsegcore.models import ModelFolder
from medsegcore.networks import create_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def thick(ms_images):
    """T1 and FLAIR of the sample as tilted 4 mm slices of 60 x 64 pixels, seven of them."""
    turn = np.eye(4)
    c, s = np.cos(0.2), np.sin(0.2)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    images = {}
    for key in ("t1", "flair"):
        image = reorient(ms_images[key])
        array = image.array[40:68:4, 20:148:2, 10:130:2]
        affine = turn @ image.affine @ np.diag([2.0, 2.0, 4.0, 1.0])
        images[key] = Image(np.ascontiguousarray(array), affine)
    return images


def flat_model(shipped_model, folder, network, **grid):
    """A model folder with a 2D network of random weights for T1 and FLAIR."""
    d = shipped_model.description
    inputs = [d.input(key) for key in ("t1", "flair")]
    built = create_network(*network)
    torch.manual_seed(3)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    spec = {
        "orientation": "RAS", "axes": "reference", "spacing": [2.0, 2.0, None], "tile": [3, 64, 64],
        "dimensionality": "2D", "overlap": 0.5, "multiple": 16, "crop": "none", **grid,
    }  # fmt: skip
    description = type(d).model_validate(
        {
            **d.model_dump(mode="json"),
            "id": "flat",
            "inputs": [i.model_dump(mode="json") for i in inputs],
            "network": {"name": network[0], "config": network[1]},
            "grid": spec,
            "attention": list(built.attention),
            "weights": {**d.weights.model_dump(mode="json"), "dtype": "float32"},
        }
    )
    return ModelFolder.write(folder / "flat", description, built), built.eval()


def test_a_model_of_the_middle_sees_no_more_and_a_region_takes_its_place(
    shipped_model, thick, tmp_path
):
    network = ("unet", {"in_channels": 2, "width": 4})
    folder, _ = flat_model(
        shipped_model, tmp_path, network, crop="middle", middle_mm=50.0, tile=[3, 32, 32]
    )
    whole, _ = flat_model(shipped_model, tmp_path / "whole", network)
    seen, all_ = prepare(folder.description, thick), prepare(whole.description, thick)
    # 25 pixels of 2 mm in the middle of 64 x 60; all slices; normalised as the whole image is.
    assert seen.tensor.shape == (2, 7, 25, 25)
    np.testing.assert_array_equal(seen.tensor, all_.tensor[:, :, 19:44, 17:42])
    result = Predictor(folder, device="cpu").predict(thick, attention=False)
    grid = thick["flair"].grid
    assert result.grid.same_as(grid)
    kji = np.argwhere(result.probabilities["MS lesion"] > 0)
    offset = (kji - (np.array(grid.shape) - 1) / 2) * grid.spacing[::-1]
    assert np.abs(offset[:, 1:]).max() <= 25 + 2
    corner = np.eye(4)
    corner[:3, :3] = grid.affine[:3, :3] / grid.spacing
    corner[:3, 3] = grid.to_ras((6, 6, 3))
    moved = Predictor(folder, device="cpu").predict(
        thick, attention=False, region=Region(corner, (20.0, 20.0, 20.0))
    )
    kji = np.argwhere(moved.probabilities["MS lesion"] > 0)
    assert kji.size
    assert kji[:, 1:].max() <= 6 + 10
    content = folder.description.model_dump(mode="json")
    for grid_of in ({"crop": "none"}, {"middle_mm": None}):
        with pytest.raises(ValidationError, match="middle_mm"):
            type(folder.description).model_validate(
                {**content, "grid": {**content["grid"], **grid_of}}
            )


def test_slices_are_answered_as_the_network_answers_each_alone(shipped_model, thick, tmp_path):
    network = ("unet", {"in_channels": 2, "width": 4})
    folder, built = flat_model(shipped_model, tmp_path, network)
    result = Predictor(folder, device="cpu").predict(thick)
    prepared = prepare(folder.description, thick)
    # The tilted slices are kept: no voxel of them is mixed with another slice's.
    assert prepared.tensor.shape[1:] == (7, 64, 60)
    assert prepared.grid.same_as(thick["flair"].grid)
    for k in range(7):
        x = torch.from_numpy(np.pad(prepared.tensor[:, k], ((0, 0), (0, 0), (0, 4))))[None]
        with torch.no_grad():
            expected = torch.softmax(built(x), 1)[0, 1, :, :60].numpy()
        np.testing.assert_allclose(result.probabilities["MS lesion"][k], expected, atol=1e-4)
    (decoder,) = result.attention
    assert decoder.kind == "spatial"
    assert decoder.values.shape == (7, 64, 60)


@pytest.mark.parametrize(
    ("mirror", "flips"),
    [
        (("k", "j", "i"), ([], [2], [3], [2, 3])),
        (("i",), ([], [3])),
        (("j", "k"), ([], [2])),
        ((), ([],)),
    ],
)
def test_overlapping_windows_and_mirrors_of_slices_are_averaged(
    shipped_model, thick, tmp_path, mirror, flips
):
    network = ("unet", {"in_channels": 2, "width": 4})
    folder, built = flat_model(
        shipped_model, tmp_path, network, tile=[7, 64, 48], mirror=list(mirror)
    )
    result = Predictor(folder, device="cpu").predict(thick, mirror=True, attention=False)
    prepared = prepare(folder.description, thick)
    x = torch.from_numpy(np.pad(prepared.tensor[:, 2], ((0, 0), (0, 0), (0, 4))))[None]
    # The far left column lies in the first window alone.
    window = x[..., :48]
    with torch.no_grad():
        answers = [
            torch.softmax(built(window.flip(axes) if axes else window), 1).flip(axes or ())
            for axes in flips
        ]
    expected = torch.stack(answers).mean(0)[0, 1, :, 0].numpy()
    np.testing.assert_allclose(result.probabilities["MS lesion"][2][:, 0], expected, atol=1e-4)


def test_the_spread_over_the_mirrors_of_slices_is_their_deviation(shipped_model, thick, tmp_path):
    network = ("unet", {"in_channels": 2, "width": 4})
    folder, built = flat_model(shipped_model, tmp_path, network)
    result = Predictor(folder, device="cpu").predict(
        thick, mirror=True, attention=False, uncertainty=True
    )
    spread, _entropy = result.attention
    prepared = prepare(folder.description, thick)
    x = torch.from_numpy(np.pad(prepared.tensor[:, 2], ((0, 0), (0, 0), (0, 4))))[None]
    with torch.no_grad():
        answers = [
            torch.softmax(built(x.flip(axes) if axes else x), 1).flip(axes or ())[0, 1]
            for axes in ([], [2], [3], [2, 3])
        ]
    expected = torch.stack(answers).std(dim=0, correction=0)[:, :60].numpy()
    inside = (prepared.tensor[:, 2] != 0).any(axis=0) & (spread.values[2] < 1)
    assert inside.sum() > 100
    np.testing.assert_allclose(
        (spread.values[2] * spread.scale)[inside], expected[inside], atol=2e-4
    )


def test_a_model_that_knows_no_mirrors_has_no_spread_over_them(shipped_model, thick, tmp_path):
    network = ("unet", {"in_channels": 2, "width": 4})
    folder, _ = flat_model(shipped_model, tmp_path, network, mirror=[])
    result = Predictor(folder, device="cpu").predict(thick, mirror=True, uncertainty=True)
    keys = [a.key for a in result.attention if a.key.startswith("uncertainty")]
    assert keys == ["uncertainty_entropy"]


def test_neighbours_are_the_slices_beside_with_the_outermost_repeated():
    volume = np.arange(2 * 4).reshape(2, 4, 1, 1).astype(np.float32)
    stacked = with_neighbours(volume, 1)[:, :, 0, 0]
    # Two channels of four slices, 0..3 and 4..7: before, own, after of each.
    expected = [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3], [4, 4, 5, 6], [4, 5, 6, 7], [5, 6, 7, 7]]
    np.testing.assert_array_equal(stacked, expected)


def test_a_network_of_neighbouring_slices_gets_them(shipped_model, thick, tmp_path):
    network = ("unet", {"in_channels": 6, "width": 4})
    folder, built = flat_model(
        shipped_model, tmp_path, network, dimensionality="2.5D", neighbours=1
    )
    result = Predictor(folder, device="cpu").predict(thick, attention=False)
    tensor = prepare(folder.description, thick).tensor
    x = np.stack([tensor[c, k] for c in (0, 1) for k in (4, 5, 6)])
    with torch.no_grad():
        logits = built(torch.from_numpy(np.pad(x, ((0, 0), (0, 0), (0, 4))))[None])
    expected = torch.softmax(logits, 1)[0, 1, :, :60].numpy()
    np.testing.assert_allclose(result.probabilities["MS lesion"][5], expected, atol=1e-4)


def test_correlation_is_kept_by_slice_and_read_at_a_point(shipped_model, thick, tmp_path):
    network = ("csad", {"width": 4})
    folder, built = flat_model(shipped_model, tmp_path, network)
    result = Predictor(folder, device="cpu").predict(thick)
    by_key = {a.key: a for a in result.attention}
    correlation = by_key["correlation_stream1"]
    assert isinstance(correlation, CorrelationAttention)
    assert correlation.maps.shape == (7, 4, 4, 4, 4)
    prepared = prepare(folder.description, thick)
    x = torch.from_numpy(np.pad(prepared.tensor[:, 3], ((0, 0), (0, 0), (0, 4))))[None]
    with torch.no_grad():
        _, maps = built(x, with_attention=True)
    expected = maps["correlation_stream1"][0].numpy()
    # 64 x 64 pixels at 16 pixels a position: pixel (row 40, column 9) is position (2, 0).
    point = prepared.grid.to_ras(np.array([9, 40, 3]))
    seen = correlation.map_at(point)
    np.testing.assert_allclose(seen.array[0], expected[2, 0], atol=1e-3)
    # Position (0, 0) covers the first 16 pixels, so its middle is at pixel 7.5.
    np.testing.assert_allclose(
        seen.grid.to_ras(np.zeros(3)), prepared.grid.to_ras(np.array([7.5, 7.5, 3])), atol=1e-6
    )
    again = Result.load(result.save(tmp_path / "saved"))
    loaded = next(a for a in again.attention if a.key == "correlation_stream1")
    np.testing.assert_array_equal(loaded.maps, correlation.maps)
    np.testing.assert_allclose(loaded.affine, correlation.affine)


def test_a_slice_of_several_windows_has_no_correlation(shipped_model, thick, tmp_path):
    folder, _ = flat_model(shipped_model, tmp_path, ("csad", {"width": 4}), tile=[7, 32, 32])
    kinds = {a.kind for a in Predictor(folder, device="cpu").predict(thick).attention}
    assert kinds == {"spatial"}


def test_a_3d_network_on_a_2d_grid_is_refused(shipped_model, tmp_path):
    folder, _ = flat_model(
        shipped_model, tmp_path, ("unet", {"in_channels": 2, "width": 4, "dimensions": 3})
    )
    with pytest.raises(ModelSchemaError, match="works in 3D but the grid of the model says 2D"):
        Predictor(folder, device="cpu")


def test_the_reference_grid_keeps_tilted_axes_in_the_wanted_order(thick):
    flair = thick["flair"].grid
    # The same field of view stored from front to back, upside down and with swapped axes.
    affine = np.eye(4)
    affine[:3, 0] = -flair.affine[:3, 2]
    affine[:3, 1] = flair.affine[:3, 1]
    affine[:3, 2] = flair.affine[:3, 0]
    affine[:3, 3] = flair.affine[:3, 3] + 6 * flair.affine[:3, 2]
    stored = Grid((60, 64, 7), affine)
    again = reference_grid(stored, (None, None, None), "RAS")
    assert again.same_as(flair)
    coarse = reference_grid(stored, (4.0, None, None), "RAS")
    assert coarse.shape == (7, 64, 30)
    assert coarse.spacing == pytest.approx((4, 2, 4))
    np.testing.assert_allclose(coarse.center, flair.center)
    assert dataclasses.is_dataclass(coarse)
