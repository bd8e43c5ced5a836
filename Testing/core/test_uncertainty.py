"""How sure the model is: entropy of the answer, and disagreement of the mirrored views."""

import numpy as np
import pytest
import torch

from medsegcore.imaging import Image
from medsegcore.inference import Result, SpatialAttention
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
    assert found.scale == 1.0


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
    scale = np.percentile(np.where(inside, deviation, 0)[inside], 99.9)
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert 0.005 < found.scale <= 0.5
    assert found.values.shape == small["flair"].shape
    assert 0 <= found.values.min() <= found.values.max() <= 1


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
        assert (now.title, now.scale) == (was.title, pytest.approx(was.scale))
