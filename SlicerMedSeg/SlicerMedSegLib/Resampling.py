"""Images on another grid, a part at a time, so that the interface stays live."""

import numpy as np

from medsegcore.imaging import Grid, Image, resample

from .Steps import Steps

# So many voxels are resampled in one step.
VOXELS_A_STEP = 1 << 18


def resamplePart(
    image: Image, grid: Grid, outside: float = 0.0, antialias: bool = True
) -> np.ndarray:
    """`resample` onto a grid that covers a part of the image: only that part is looked at.

    Returns:
        float32 [k, j, i] on `grid`.
    """
    # The part around the grid, and what smoothing for coarser voxels reaches.
    reach = np.ceil(2 * max(grid.spacing) / np.array(image.spacing)) + 2
    corners = np.column_stack([grid.corners(), np.ones(8)]) @ np.linalg.inv(image.affine).T
    low = np.maximum(np.floor(corners.min(axis=0)[:3] - reach), 0).astype(int)
    high = np.ceil(corners.max(axis=0)[:3] + reach).astype(int) + 1
    high = np.minimum(high, image.shape[::-1])
    if (low >= high).any():
        return np.full(grid.shape, outside, np.float32)
    k, j, i = (slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))
    around = Image(image.array[k, j, i], image.grid.crop((k, j, i)).affine)
    return resample(around, grid, outside=outside, antialias=antialias).array


def resampling(
    image: Image, grid: Grid, outside: float = 0.0, antialias: bool = True
) -> Steps[np.ndarray]:
    """`resample` in short steps; float32 [k, j, i] on `grid`."""
    array = np.empty(grid.shape, np.float32)
    slices = max(1, VOXELS_A_STEP // max(array[0].size, 1))
    for first in range(0, grid.shape[0], slices):
        k = slice(first, min(first + slices, grid.shape[0]))
        part = grid.crop((k, slice(0, grid.shape[1]), slice(0, grid.shape[2])))
        array[k] = resamplePart(image, part, outside, antialias)
        yield
    return array
