"""How sure the model is: entropy, and disagreement of mirrored views, dropout and models."""

import numpy as np
import pytest
import torch

from medsegcore.errors import ModelError, SettingError
from medsegcore.imaging import Image
from medsegcore.inference import EnsemblePredictor, Predictor, Result, SpatialAttention
from medsegcore.inference.attention import BIT, DEVIATION, SHARE
from medsegcore.inference.preprocess import prepare
from medsegcore.inference.uncertainty import binary_entropy, entropy_map

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(ms_images):
    """A part of the sample that one tile holds, with lesions."""
    box = (slice(50, 82), slice(40, 88), slice(40, 88))
    return {
        key: Image(np.ascontiguousarray(image.array[box]), image.grid.crop(box).affine)
        for key, image in ms_images.items()
    }


@pytest.fixture(scope="module")
def unsure(predictor, small):
    return predictor.predict(small, mirror=True, uncertainty=True)


def uncertainty(result, key) -> SpatialAttention:
    (found,) = [a for a in result.attention if a.key == key]
    return found


def test_entropy_is_one_bit_where_the_answer_is_a_coin_toss():
    p = np.array([0.0, 0.11, 0.5, 0.89, 1.0])
    expected = [0, 0.49992, 1, 0.49992, 0]
    np.testing.assert_allclose(binary_entropy(p), expected, atol=1e-5)
    both = entropy_map({"a": np.full((1, 1, 1), 0.25), "b": np.full((1, 1, 1), 0.25)})
    assert both.values.item() == pytest.approx(1.0)


def test_the_entropy_is_that_of_the_probabilities(unsure):
    (probability,) = unsure.probabilities.values()
    found = uncertainty(unsure, "uncertainty_entropy")
    inside = (probability > 0.01) & (probability < 0.99)
    p = probability[inside].astype(float)
    expected = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    np.testing.assert_allclose(found.values[inside], expected, atol=1e-5)
    assert (found.scale, found.unit) == (1.0, BIT)


def test_the_spread_is_the_standard_deviation_of_the_eight_views(predictor, small, unsure):
    prepared = prepare(predictor.description, small)
    multiple = predictor.description.grid.multiple
    pad = [(0, 0)] + [(0, -n % multiple) for n in prepared.tensor.shape[1:]]
    x = torch.from_numpy(np.pad(prepared.tensor, pad))[None]
    if any(n > t for n, t in zip(x.shape[2:], predictor.description.grid.tile, strict=True)):
        pytest.fail("the part of the sample has to fit into one tile")
    views = []
    with torch.inference_mode():
        for n in range(8):
            axes = [axis for axis in (2, 3, 4) if n >> (axis - 2) & 1]
            logits = predictor.network(x.flip(axes)).float()
            views.append(torch.softmax(logits, dim=1).flip(axes)[0, 1].numpy())
    deviation = np.std(views, axis=0)[tuple(slice(0, n) for n in prepared.tensor.shape[1:])]
    inside = (prepared.tensor != 0).any(axis=0)
    found = uncertainty(unsure, "uncertainty_mirroring")
    highest = np.percentile(np.where(inside, deviation, 0)[inside], 99.9)
    assert np.percentile(found.values[small["flair"].array != 0], 99.9) == pytest.approx(
        highest, rel=0.05
    )
    assert (found.scale, found.unit) == (1.0, DEVIATION)
    assert found.values.shape == small["flair"].shape
    assert 0 <= found.values.min() <= found.values.max() <= 0.5


def test_passes_that_agree_are_not_shown_as_uncertain_ones(shipped_model, small):
    """A network whose passes hardly differ, beside one whose passes differ a lot."""
    highest = []
    for p in (1e-4, 0.5):
        predictor = Predictor(shipped_model, device="cpu")
        for layer in predictor.network.modules():
            if isinstance(layer, torch.nn.Dropout3d):
                layer.p = p
        result = predictor.predict(small, attention=False, dropout=2)
        highest.append(uncertainty(result, "uncertainty_dropout").values.max())
    assert highest[0] < 0.01
    assert 0.05 < highest[1] <= 0.5


def test_attention_stays_a_share_of_its_highest_value(predictor, small):
    maps = predictor.predict(small).attention
    spatial = [shown for shown in maps if isinstance(shown, SpatialAttention)]
    assert spatial
    for shown in spatial:
        assert shown.unit == SHARE
        assert 0.9 < shown.values.max() <= 1


def test_without_mirroring_there_is_no_spread_and_by_default_no_uncertainty(predictor, small):
    plain = predictor.predict(small, attention=False)
    assert plain.attention == []
    alone = predictor.predict(small, attention=False, uncertainty=True)
    assert [a.key for a in alone.attention] == ["uncertainty_entropy"]


def test_asking_for_it_changes_neither_answer_nor_attention(predictor, small, unsure):
    plain = predictor.predict(small, mirror=True)
    assert np.array_equal(plain.labelmap, unsure.labelmap)
    for a, b in zip(plain.attention, unsure.attention, strict=False):
        assert a.key == b.key
        if isinstance(a, SpatialAttention):
            assert np.array_equal(a.values, b.values)


def test_it_is_saved_and_loaded_with_the_result(unsure, tmp_path):
    back = Result.load(unsure.save(tmp_path / "result"))
    for key in ("uncertainty_entropy", "uncertainty_mirroring"):
        was, now = uncertainty(unsure, key), uncertainty(back, key)
        np.testing.assert_allclose(now.values, was.values, atol=1e-6)
        assert (now.title, now.scale, now.unit) == (was.title, was.scale, was.unit)


def test_dropout_is_the_deviation_of_its_passes_and_the_same_in_each_run(shipped_model, small):
    predictor = Predictor(shipped_model, device="cpu")
    plain = predictor.predict(small, attention=False)
    layers = [m for m in predictor.network.modules() if isinstance(m, torch.nn.Dropout3d)]
    assert layers
    for layer in layers:
        layer.p = 0.3
    # Whoever draws random numbers of their own goes on as if nothing had been.
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = predictor.predict(small, attention=False, dropout=4)
    assert torch.rand(1) == expected
    found = uncertainty(first, "uncertainty_dropout")
    assert np.array_equal(first.labelmap, plain.labelmap)
    again = uncertainty(predictor.predict(small, attention=False, dropout=4), "uncertainty_dropout")
    assert np.array_equal(found.values, again.values)
    prepared = prepare(predictor.description, small)
    multiple = predictor.description.grid.multiple
    x = torch.from_numpy(
        np.pad(prepared.tensor, [(0, 0)] + [(0, -n % multiple) for n in small["flair"].shape])
    )[None].contiguous(memory_format=predictor.layout)
    torch.manual_seed(0)
    for layer in layers:
        layer.train()
    with torch.inference_mode():
        views = [torch.softmax(predictor.network(x), dim=1)[0, 1].numpy() for _ in range(4)]
    deviation = np.std(views, axis=0)[tuple(slice(0, n) for n in prepared.tensor.shape[1:])]
    inside = (prepared.tensor != 0).any(axis=0)
    highest = np.percentile(np.where(inside, deviation, 0)[inside], 99.9)
    assert np.percentile(found.values[small["flair"].array != 0], 99.9) == pytest.approx(
        highest, rel=0.05
    )
    assert highest > 0.001


def test_a_model_without_dropout_says_so(shipped_model, small):
    predictor = Predictor(shipped_model, device="cpu")
    for layer in predictor.network.modules():
        if isinstance(layer, torch.nn.Dropout3d):
            layer.p = 0.0
    with pytest.raises(SettingError, match="has no dropout"):
        predictor.predict(small, dropout=4)
    with pytest.raises(SettingError, match="passes is 1"):
        predictor.predict(small, dropout=1)


def test_an_ensemble_is_the_mean_and_its_models_disagree(shipped_model, small):
    both = EnsemblePredictor([shipped_model, shipped_model], device="cpu")
    with torch.no_grad():
        for weights in both.members[1].network.parameters():
            weights *= 1.02
    answers = [m.predict(small, attention=False).probabilities["MS lesion"] for m in both.members]
    assert not np.array_equal(*answers)
    told = []
    result = both.predict(
        small, attention=False, uncertainty=True, thresholds={"MS lesion": 0.4},
        progress=lambda *event: told.append(event),
    )  # fmt: skip
    done = [d / t for stage, d, t, _left in told if stage == "segment"]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0.0, 1.0)
    mean = np.mean(answers, axis=0)
    np.testing.assert_allclose(result.probabilities["MS lesion"], mean, atol=1e-6)
    assert np.array_equal(result.labelmap > 0, mean >= np.float32(0.4))
    found = uncertainty(result, "uncertainty_ensemble")
    deviation = np.std(answers, axis=0)
    np.testing.assert_allclose(found.values, deviation, atol=1e-6)
    assert (found.scale, found.unit) == (1.0, DEVIATION)
    assert uncertainty(result, "uncertainty_entropy").values.max() > 0
    assert len(result.provenance["models"]) == 2
    assert result.lesions


def test_what_one_model_of_an_ensemble_can_tell_alone_is_the_firsts(shipped_model, small):
    both = EnsemblePredictor([shipped_model, shipped_model], device="cpu")
    for layer in both.members[1].network.modules():
        if isinstance(layer, torch.nn.Dropout3d):
            layer.p = 0.0
    part = {key: image.with_array(image.array[:16, :32, :32]) for key, image in small.items()}
    result = both.predict(part, mirror=True, uncertainty=True, dropout=2)
    keys = [shown.key for shown in result.attention]
    assert keys[:-4] == [spec.key for spec in shipped_model.description.attention]
    assert keys[-4:] == [
        "uncertainty_mirroring", "uncertainty_dropout", "uncertainty_ensemble",
        "uncertainty_entropy",
    ]  # fmt: skip


def test_an_ensemble_of_other_labels_is_refused(shipped_model, model_copy):
    label = model_copy.description.labels[0].model_copy(update={"name": "infarct"})
    other = model_copy.with_description(
        model_copy.description.model_copy(update={"labels": [label]})
    )
    with pytest.raises(ModelError, match="other inputs or labels"):
        EnsemblePredictor([shipped_model, other], device="cpu")
    with pytest.raises(ModelError, match="1 models is none"):
        EnsemblePredictor([shipped_model], device="cpu")
