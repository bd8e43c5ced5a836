"""Images on another grid, a part at a time, so that the interface stays live."""

from collections.abc import Iterator

import numpy as np

from medsegcore.imaging import Grid, Image, resample, without_nans

from .Steps import Steps

# So many voxels are made in one step, and so many are looked at.
VOXELS_A_STEP = 1 << 18
SOURCE_A_STEP = 1 << 19
# A part of fewer voxels along j or i is not cut any further: its margins would be most of it.
SHORTEST = 8

Box = tuple[slice, slice, slice]


def partsOf(image: Image, grid: Grid) -> Iterator[Box]:
    """Parts [k, j, i] of a grid, each of which `resamplePart` makes in a short step."""
    todo: list[Box] = [(slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))]
    while todo:
        box = todo.pop()
        sizes = [s.stop - s.start for s in box]
        around = _boxAround(image, grid.crop(box))
        source = np.prod([s.stop - s.start for s in around]) if around else 0
        large = np.prod(sizes) > VOXELS_A_STEP or source > SOURCE_A_STEP
        # The axis along which the part is longest in mm; thick slices are cut down to one.
        lengths = [
            n * mm if n >= 2 * SHORTEST or (axis == 0 and n > 1) else 0.0
            for axis, (n, mm) in enumerate(zip(sizes, grid.spacing[::-1], strict=True))
        ]
        if not large or not any(lengths):
            yield box
            continue
        axis = int(np.argmax(lengths))
        middle = box[axis].start + sizes[axis] // 2
        for ends in ((middle, box[axis].stop), (box[axis].start, middle)):
            part = list(box)
            part[axis] = slice(*ends)
            todo.append((part[0], part[1], part[2]))


def _boxAround(image: Image, grid: Grid) -> Box | None:
    """The part of an image that a grid lies in, and what smoothing for coarser voxels reaches;
    None when they do not meet."""
    turned = np.abs(image.grid.direction.T @ grid.direction)
    wanted = (turned * np.array(grid.spacing)).max(axis=1)
    reach = np.ceil(2 * wanted / np.array(image.spacing)) + 2
    corners = np.column_stack([grid.corners(), np.ones(8)]) @ np.linalg.inv(image.affine).T
    low = np.maximum(np.floor(corners.min(axis=0)[:3] - reach), 0).astype(int)
    high = np.ceil(corners.max(axis=0)[:3] + reach).astype(int) + 1
    high = np.minimum(high, image.shape[::-1])
    if (low >= high).any():
        return None
    k, j, i = (slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))
    return k, j, i


def resamplePart(
    image: Image, grid: Grid, outside: float = 0.0, antialias: bool = True
) -> np.ndarray:
    """`resample` onto a grid that covers a part of the image: only that part is looked at.

    As in a run, what is no number counts as background.

    Returns:
        float32 [k, j, i] on `grid`.
    """
    box = _boxAround(image, grid)
    if box is None:
        return np.full(grid.shape, outside, np.float32)
    around = without_nans(Image(image.array[box], image.grid.crop(box).affine))
    return resample(around, grid, outside=outside, antialias=antialias).array


def resampling(
    image: Image, grid: Grid, outside: float = 0.0, antialias: bool = True
) -> Steps[np.ndarray]:
    """`resample` in short steps; float32 [k, j, i] on `grid`."""
    array = np.empty(grid.shape, np.float32)
    for box in partsOf(image, grid):
        array[box] = resamplePart(image, grid.crop(box), outside, antialias)
        yield
    return array
