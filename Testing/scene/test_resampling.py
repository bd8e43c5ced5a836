"""Parts of an image that are resampled one by one are what the whole is."""

import numpy as np
import pytest

from medsegcore.imaging import Grid, Image, grid_with_spacing, resample
from SlicerMedSegLib import Resampling
from SlicerMedSegLib.Resampling import _boxAround, partsOf, resamplePart, resampling
from SlicerMedSegLib.Steps import runToEnd


def turned(grid, degrees, spacing):
    """A grid of that spacing, turned about its middle."""
    grid = grid_with_spacing(grid, spacing)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about = np.eye(4)
    about[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    about[:3, 3] = grid.center - about[:3, :3] @ grid.center
    return Grid(grid.shape, about @ grid.affine)


@pytest.mark.parametrize(
    ("degrees", "spacing", "antialias"),
    [
        (0, (1, 1, 1), True),
        (20, (1.5, 2, 4), True),
        (20, (1.5, 2, 4), False),
        (-9, (2, 2, 2), True),
    ],
)
def test_part_by_part_is_the_same_as_at_once(ms_images, monkeypatch, degrees, spacing, antialias):
    image = ms_images["flair"]
    grid = turned(image.grid, degrees, spacing)
    expected = resample(image, grid, outside=-5, antialias=antialias).array
    monkeypatch.setattr(Resampling, "VOXELS_A_STEP", expected.size // 10)
    monkeypatch.setattr(Resampling, "SOURCE_A_STEP", image.array.size // 6)
    covered = np.zeros(grid.shape, int)
    for box in partsOf(image, grid):
        covered[box] += 1
        assert covered[box].size <= expected.size // 10
    assert (covered == 1).all()
    found = runToEnd(resampling(image, grid, outside=-5, antialias=antialias))
    assert found.dtype == np.float32
    # The smoothing's recursion starts at another place, which is felt far out.
    np.testing.assert_allclose(found, expected, atol=2e-3 * image.array.max())
    assert np.abs(found - expected).mean() < 1e-5 * image.array.max()


def test_of_a_fine_image_no_part_looks_at_much_more_than_a_step_may(ms_images):
    # 0.5 mm voxels on thick slices: one slice alone would take seconds.
    fine = Image(np.broadcast_to(np.float32(1), (320, 512, 512)), np.diag([0.5, 0.5, 0.5, 1]))
    grid = Grid((40, 102, 102), np.diag([2.5, 2.5, 4.0, 1]))
    covered = np.zeros(grid.shape, int)
    for box in partsOf(fine, grid):
        covered[box] += 1
        around = _boxAround(fine, grid.crop(box))
        assert np.prod([s.stop - s.start for s in around]) <= 2 * Resampling.SOURCE_A_STEP
    assert (covered == 1).all()


def test_a_part_beside_the_image_is_outside(ms_images):
    grid = ms_images["flair"].grid
    affine = grid.affine.copy()
    affine[:3, 3] += 1000
    assert (resamplePart(ms_images["flair"], Grid((3, 4, 5), affine), outside=7) == 7).all()
