"""Segments and volumes on one lattice, however their axes run."""

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from medsegcore.imaging import Grid

# Further apart than this part of a voxel, two lattices are different ones.
TOLERANCE_VOXELS = 0.02
# How far beyond what is asked for an image is enlarged.
ROOM_VOXELS = 16


@dataclass(frozen=True)
class AxisMap:
    """How the indices of an oriented image become those of a grid that shares its lattice.

    Attributes:
        order: for each axis i, j, k of the grid, the axis of the image that runs along it.
        signs: +1 or -1 for each axis of the grid.
        offset: [3] index on the grid (i, j, k) of the image's index (0, 0, 0).
        affine: 4x4, index of the image to local RAS in mm.
    """

    order: tuple[int, int, int]
    signs: np.ndarray
    offset: np.ndarray
    affine: np.ndarray

    @classmethod
    def between(cls, affine: np.ndarray, grid: Grid) -> "AxisMap | None":
        """From an image's affine to `grid`; None when the lattices differ."""
        matrix = np.linalg.inv(grid.affine) @ affine
        turn, offset = np.rint(matrix[:3, :3]).astype(int), np.rint(matrix[:3, 3]).astype(int)
        reach = max(grid.shape)
        off = np.abs(matrix[:3, :3] - turn).max() * reach + np.abs(matrix[:3, 3] - offset).max()
        if off > TOLERANCE_VOXELS or (np.abs(turn).sum(0) != 1).any():
            return None
        order = tuple(int(n) for n in np.abs(turn).argmax(axis=1))
        signs = np.array([turn[n, order[n]] for n in range(3)])
        return cls((order[0], order[1], order[2]), signs, offset, affine)

    def toGrid(self, array: np.ndarray, extent) -> tuple[np.ndarray, np.ndarray]:
        """An array [k, j, i] of the image with its extent, as [k, j, i] of the grid, and where
        its first voxel lies there (i, j, k)."""
        # Array axes count backwards: axis i is the last.
        turned = array.transpose([2 - self.order[n] for n in (2, 1, 0)])
        turned = turned[tuple(slice(None, None, int(self.signs[n])) for n in (2, 1, 0))]
        low, high = (
            np.array(extent[0::2])[list(self.order)],
            np.array(extent[1::2])[list(self.order)],
        )
        return turned, self.offset + np.where(self.signs > 0, low, -high)

    def newImage(self, start: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> tuple:
        """A vtkOrientedImageData over the part of the grid that starts there (i, j, k) and has
        that shape, and a view [k, j, i] of its voxels, which are not set yet."""
        size = np.array(shape[::-1])
        first = np.asarray(start) - self.offset
        low = np.where(self.signs > 0, first, -(first + size - 1))
        extent = np.zeros(6, int)
        for n in range(3):
            extent[2 * self.order[n] : 2 * self.order[n] + 2] = low[n], low[n] + size[n] - 1
        data = slicer.vtkOrientedImageData()
        data.SetExtent(*(int(n) for n in extent))
        data.AllocateScalars(get_vtk_array_type(dtype), 1)
        data.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(self.affine))
        return data, self.toGrid(voxels(data), data.GetExtent())[0]


def imageAffine(image) -> np.ndarray:
    """4x4 index to local RAS in mm of a vtkOrientedImageData."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def isEmpty(image) -> bool:
    """Whether it has no voxels, as segments that lost their last one."""
    return image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1


def voxels(image) -> np.ndarray:
    """[k, j, i], a view of the image's own voxels."""
    scalars = vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(image.GetDimensions()[::-1])


def makeRoom(image, axes: AxisMap, grid: Grid, low: np.ndarray, high: np.ndarray) -> None:
    """Enlarge an image in place to reach over the grid's voxels from `low` to below `high` (k, j,
    i), and `ROOM_VOXELS` beyond, so that the next ones do not ask for more."""
    part, start = axes.toGrid(voxels(image), image.GetExtent())
    first, last = start[::-1], start[::-1] + part.shape
    newFirst = np.minimum(first, np.maximum(low - ROOM_VOXELS, 0))
    newLast = np.maximum(last, np.minimum(high + ROOM_VOXELS, grid.shape))
    larger, view = axes.newImage(newFirst[::-1], newLast - newFirst, part.dtype)
    view[:] = 0
    old = [slice(a, b) for a, b in zip(first - newFirst, last - newFirst, strict=True)]
    view[tuple(old)] = part
    image.ShallowCopy(larger)


def maskOnGrid(image, labelValue: int, grid: Grid) -> np.ndarray | None:
    """bool [k, j, i]: where a segment's labelmap has its value; None when it is off the lattice."""
    mask = np.zeros(grid.shape, bool)
    if isEmpty(image):
        return mask
    axes = AxisMap.between(imageAffine(image), grid)
    if axes is None:
        return None
    part, start = axes.toGrid(voxels(image) == labelValue, image.GetExtent())
    low, size = start[::-1], np.array(part.shape)
    first, last = np.maximum(low, 0), np.minimum(low + size, grid.shape)
    inside = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    from_part = tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))
    if (last <= first).any():
        return None if part.any() else mask
    mask[inside] = part[from_part]
    # Painted beyond the grid: nothing that a threshold could have made.
    return mask if np.count_nonzero(part) == np.count_nonzero(mask[inside]) else None


def kjiOf(flat: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What np.unravel_index gives for a shape [k, j, i], in a third of its time."""
    row = flat // shape[2]
    k = row // shape[1]
    return k, row - k * shape[1], flat - row * shape[2]


def placesIn(view: np.ndarray, kji: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Where voxels [k, j, i] of a view of an image's voxels lie among these, counted from their
    first: numpy takes ten times as long with three indices as with one."""
    strides = [stride // view.itemsize for stride in view.strides]
    first = sum(-(n - 1) * step for n, step in zip(view.shape, strides, strict=True) if step < 0)
    return first + kji[0] * strides[0] + kji[1] * strides[1] + kji[2] * strides[2]


def boundingBox(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box around what is True; None when nothing is."""
    box = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(n for n in range(3) if n != axis)))
        if line.size == 0:
            return None
        box.append(slice(int(line[0]), int(line[-1]) + 1))
        mask = mask[(slice(None),) * axis + (box[-1],)]
    return box[0], box[1], box[2]
