"""Parts of an image that are resampled one by one are what the whole is."""

import numpy as np
import pytest

from medsegcore.imaging import Grid, grid_with_spacing, resample
from SlicerMedSegLib import Resampling
from SlicerMedSegLib.Resampling import resamplePart, resampling
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
def test_slab_by_slab_is_the_same_as_at_once(ms_images, monkeypatch, degrees, spacing, antialias):
    image = ms_images["flair"]
    grid = turned(image.grid, degrees, spacing)
    expected = resample(image, grid, outside=-5, antialias=antialias).array
    # Several slabs of several slices each.
    monkeypatch.setattr(Resampling, "VOXELS_A_STEP", 4 * expected[0].size)
    steps = resampling(image, grid, outside=-5, antialias=antialias)
    assert sum(1 for _ in steps) == -(-len(expected) // 4)
    found = runToEnd(resampling(image, grid, outside=-5, antialias=antialias))
    assert found.dtype == np.float32
    # The smoothing's recursion starts at another place, which is felt far out.
    np.testing.assert_allclose(found, expected, atol=2e-3 * image.array.max())
    assert np.abs(found - expected).mean() < 1e-5 * image.array.max()


def test_a_part_beside_the_image_is_outside(ms_images):
    grid = ms_images["flair"].grid
    affine = grid.affine.copy()
    affine[:3, 3] += 1000
    assert (resamplePart(ms_images["flair"], Grid((3, 4, 5), affine), outside=7) == 7).all()
