"""Preparation does what model.json says and nothing else."""

import numpy as np
import pytest
from scipy import stats

from medsegcore.errors import EmptyImageError, MissingInputError, OverlapError
from medsegcore.imaging import Image
from medsegcore.inference.preprocess import centre_and_scale, normalise, prepare
from medsegcore.models import Normalisation


@pytest.fixture(scope="module")
def description(shipped_model):
    return shipped_model.description


def test_zscore_and_robust_are_their_textbook_formulas():
    values = np.random.default_rng(1).gamma(3.0, 40.0, 10_000).astype(np.float32)
    centre, scale = centre_and_scale(values, Normalisation(method="zscore"))
    assert (centre, scale) == pytest.approx((values.mean(), values.std()), rel=1e-5)
    centre, scale = centre_and_scale(values, Normalisation(method="robust"))
    assert centre == pytest.approx(np.median(values), rel=1e-5)
    assert scale == pytest.approx(stats.iqr(values) / 1.349, rel=1e-5)


def test_mode_finds_the_main_peak_and_its_width_whatever_the_rest():
    random = np.random.default_rng(2)
    tissue = random.normal(600, 50, 80_000)
    centre, scale = centre_and_scale(tissue, Normalisation(method="mode"))
    assert centre == pytest.approx(600, rel=0.02)
    assert scale == pytest.approx(50, rel=0.15)
    # A tenth of lesions and a tenth of dark fluid: mean and deviation move, the mode does not.
    mixed = np.concatenate([tissue, random.normal(950, 60, 9_000), random.normal(60, 20, 9_000)])
    again, width = centre_and_scale(mixed, Normalisation(method="mode"))
    assert again == pytest.approx(centre, rel=0.02)
    assert width == pytest.approx(scale, rel=0.15)
    assert abs(mixed.std() - tissue.std()) > 2 * tissue.std()


def test_outside_of_the_foreground_is_exactly_zero_and_inside_never():
    array = np.array([[[0.0, 5.0, 10.0, 15.0, 1000.0]]], np.float32)
    inside = array > 1
    out = normalise(array, inside, Normalisation(method="zscore", clip=(-1, 1)))
    assert ((out == 0) == ~inside).all()
    assert out.min() >= -1
    assert out.max() <= 1


def test_channels_stand_in_the_order_of_the_description(description, ms_images):
    shuffled = {key: ms_images[key] for key in ("flair", "t1", "t2")}
    a, b = prepare(description, ms_images), prepare(description, shuffled)
    assert np.array_equal(a.tensor, b.tensor)
    assert a.tensor.shape[0] == 3
    assert a.grid.orientation == "RAS"
    assert a.grid.spacing == pytest.approx((1, 1, 1))
    assert a.reference is not a.grid


def test_an_absent_optional_input_is_zero_after_normalisation(description, ms_images):
    without = prepare(description, {key: ms_images[key] for key in ("t1", "flair")})
    channel = [spec.key for spec in description.inputs].index("t2")
    assert without.present == {"t1": True, "t2": False, "flair": True}
    assert not without.tensor[channel].any()
    assert without.tensor[1 - channel].any()


def test_intensity_units_do_not_matter(description, ms_images):
    scaled = {key: image.with_array(3.7 * image.array) for key, image in ms_images.items()}
    np.testing.assert_allclose(
        prepare(description, scaled).tensor, prepare(description, ms_images).tensor, atol=2e-3
    )


def test_missing_and_unknown_inputs_are_named(description, ms_images):
    with pytest.raises(MissingInputError, match="needs the input 't1'"):
        prepare(description, {"flair": ms_images["flair"]})
    with pytest.raises(MissingInputError, match=r"no input 'adc'\. Its inputs: t1, t2, flair"):
        prepare(description, {**ms_images, "adc": ms_images["t1"]})


def test_another_patients_position_is_refused(description, ms_images):
    affine = ms_images["t1"].affine.copy()
    affine[2, 3] += 120
    with pytest.raises(OverlapError, match="T1-weighted MR has only"):
        prepare(description, {**ms_images, "t1": Image(ms_images["t1"].array, affine)})


def test_empty_and_nan_images_are_refused_and_single_nans_are_holes(description, ms_images):
    flair = ms_images["flair"]
    for array, words in (
        (np.zeros(flair.shape), "FLAIR MR is constant"),
        (np.full(flair.shape, np.nan), "FLAIR MR holds no finite value"),
        (-1 - np.abs(flair.array.astype(float)), "no positive voxel"),
    ):
        with pytest.raises(EmptyImageError, match=words):
            prepare(description, {**ms_images, "flair": flair.with_array(array)})
    holed = flair.array.astype(np.float32)
    holed[60, 70, 60:64] = np.nan
    assert np.isfinite(
        prepare(description, {**ms_images, "flair": flair.with_array(holed)}).tensor
    ).all()
