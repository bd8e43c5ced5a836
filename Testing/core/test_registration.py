"""Registration finds a known movement of a real image again."""

import numpy as np
import pytest
import SimpleITK as sitk

from medsegcore.errors import CancelledError, InputError, OverlapError
from medsegcore.imaging import Image, from_sitk, grid_with_spacing, register, resample, to_sitk


@pytest.fixture(scope="module")
def pair(ms_images):
    """T1 and T2 of one patient at 2 mm."""
    grid = grid_with_spacing(ms_images["t1"].grid, (2, 2, 2))
    return resample(ms_images["t1"], grid), resample(ms_images["t2"], grid)


def moved_by(image: Image, transform: sitk.Transform) -> Image:
    moved = sitk.Resample(to_sitk(image), transform, sitk.sitkLinear, 0.0)
    return from_sitk(moved)


def known_movement(image: Image) -> sitk.Euler3DTransform:
    center = np.diag([-1, -1, 1]) @ image.grid.center
    return sitk.Euler3DTransform(center.tolist(), 0.05, -0.04, 0.07, (4.0, -3.0, 5.0))


def error_mm(found: sitk.Transform, true: sitk.Transform, image: Image) -> float:
    """Mean distance in mm, inside the head, from where each point belongs."""
    kji = np.argwhere(image.array > image.array.mean())[::500]
    points = image.grid.to_ras(kji[:, ::-1]) @ np.diag([-1, -1, 1])
    # The moving image was made by `true`; its inverse brings points back.
    inverse = true.GetInverse()
    return float(
        np.mean(
            [
                np.linalg.norm(
                    np.subtract(
                        found.TransformPoint(p.tolist()), inverse.TransformPoint(p.tolist())
                    )
                )
                for p in points
            ]
        )
    )


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_known_movement_between_contrasts_is_found_to_half_a_voxel(pair, kind):
    t1, t2 = pair
    true = known_movement(t1)
    moving = moved_by(t2, true)
    shares = []
    found = register(t1, moving, kind, progress=shares.append)
    assert error_mm(found.transform, true, t1) < 1.0
    assert found.quality_after > found.quality_before
    assert found.moved.grid.same_as(t1.grid)
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] == 1


def test_a_shift_and_turn_of_one_contrast_is_found_to_a_twentieth_of_a_voxel(pair):
    t1, _ = pair
    true = known_movement(t1)
    found = register(t1, moved_by(t1, true))
    assert error_mm(found.transform, true, t1) < 0.1


@pytest.mark.slow
def test_bspline_brings_a_bent_image_closer_than_affine(pair):
    grid = grid_with_spacing(pair[0].grid, (3, 3, 3))
    t1, t2 = (resample(image, grid) for image in pair)
    bend = sitk.BSplineTransformInitializer(to_sitk(t2), [3, 3, 3])
    random = np.random.default_rng(4)
    bend.SetParameters(random.normal(0, 3, len(bend.GetParameters())).tolist())
    moving = moved_by(t2, bend)
    affine = register(t1, moving, "affine")
    bspline = register(t1, moving, "bspline")
    assert bspline.quality_after > affine.quality_after > affine.quality_before


@pytest.mark.parametrize("seed", [0, 3])
def test_the_same_seed_gives_the_same_answer(pair, seed):
    t1, t2 = pair
    moving = moved_by(t2, known_movement(t1))
    first, *others = (register(t1, moving, seed=seed).moved.array for _ in range(3))
    assert all(np.array_equal(first, other) for other in others)


def test_it_stops_when_cancelled(pair, capfd):
    with pytest.raises(CancelledError):
        register(*pair, cancelled=lambda: True)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_it_stops_at_once_while_it_bends(pair):
    shares, asked_after = [], []

    def cancelled():
        bending = bool(shares) and shares[-1] > 2 / 3
        asked_after.append(bending)
        return bending

    with pytest.raises(CancelledError):
        register(*pair, kind="bspline", progress=shares.append, cancelled=cancelled)
    assert sum(asked_after) == 1


def test_an_error_of_the_callback_comes_out_as_it_is(pair):
    def progress(share):
        raise KeyError(share)

    with pytest.raises(KeyError):
        register(*pair, progress=progress)


def test_too_few_slices_are_refused(pair):
    t1, _ = pair
    with pytest.raises(InputError, match="only 2 voxels"):
        register(Image(t1.array[30:32], t1.affine), t1)


def test_images_far_apart_are_refused(pair):
    t1, _ = pair
    far = t1.affine.copy()
    far[0, 3] += 500
    with pytest.raises(OverlapError, match="only 0%"):
        register(t1, Image(t1.array, far))
