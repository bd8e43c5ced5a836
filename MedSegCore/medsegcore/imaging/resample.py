"""Reorientation and resampling in physical space."""

from typing import Literal

import numpy as np

from medsegcore.imaging.geometry import LETTERS, Grid
from medsegcore.imaging.image import Image, from_sitk, to_sitk

Interpolation = Literal["linear", "nearest", "bspline"]


def reorient(image: Image, orientation: str = "RAS") -> Image:
    """Flip and permute the axes so that i, j, k point nearest to these letters; no resampling."""
    turned = reoriented_view(image, orientation)
    return turned.with_array(np.ascontiguousarray(turned.array))


def reoriented_view(image: Image, orientation: str = "RAS") -> Image:
    """`reorient` without a copy: the array is a view of the image's own."""
    axes = image.grid.axes()
    array, affine = image.array, image.affine.copy()
    letters = [letter for pair in LETTERS for letter in pair]
    order = []
    for letter in orientation:
        wanted, negative = divmod(letters.index(letter), 2)
        column = [axis for axis, _ in axes].index(wanted)
        order.append(column)
        if (axes[column][1] < 0) != bool(negative):
            array = np.flip(array, axis=2 - column)
            affine[:3, 3] += affine[:3, column] * (array.shape[2 - column] - 1)
            affine[:3, column] *= -1
    # Array axes run k, j, i, the affine's columns i, j, k.
    array = array.transpose([2 - column for column in reversed(order)])
    affine[:3, :3] = affine[:3, order]
    return Image(array, affine, image.name)


def resample(
    image: Image,
    grid: Grid,
    interpolation: Interpolation = "linear",
    outside: float = 0.0,
    antialias: bool = True,
) -> Image:
    """The image on another grid.

    Args:
        image: float images for "linear" and "bspline" (others become float32), any for "nearest".
        grid: where the values are wanted.
        interpolation: "nearest" for labels.
        outside: value beyond the image's field of view.
        antialias: smooth before "linear" and "bspline" along axes that get coarser by more than
            a fifth, with the Gaussian whose width fills the gap between both voxel sizes
            (Cardoso et al., MICCAI 2015).

    Returns:
        Image on exactly `grid`; the dtype of the input for "nearest", else float32.
    """
    import SimpleITK as sitk

    if image.grid.same_as(grid):
        array = image.array if interpolation == "nearest" else image.array.astype(np.float32)
        return Image(array, grid.affine, image.name)
    if interpolation != "nearest":
        image = image.astype(np.float32)
    aligned = _aligned_part(image, grid)
    if aligned is not None:
        return Image(aligned(outside), grid.affine, image.name)
    source = to_sitk(image)
    if antialias and interpolation != "nearest":
        source = _smooth_for(source, image.grid, grid)
    target = to_sitk(Image(np.broadcast_to(np.uint8(0), grid.shape), grid.affine))
    method = {
        "linear": sitk.sitkLinear,
        "nearest": sitk.sitkNearestNeighbor,
        "bspline": sitk.sitkBSpline,
    }[interpolation]
    moved = sitk.Resample(source, target, sitk.Transform(), method, outside)
    # ITK has no bool and no float16.
    return Image(from_sitk(moved).array.astype(image.array.dtype), grid.affine, image.name)


def _aligned_part(image: Image, grid: Grid):
    """How to copy voxels without interpolation when both lattices coincide, else None."""
    to_source = np.linalg.inv(image.affine) @ grid.affine
    rounded = np.rint(to_source)
    extent = np.array([*grid.shape[::-1], 1.0])
    if (np.abs(to_source - rounded)[:3] @ extent).max() > 1e-3:
        return None
    if not (np.abs(rounded[:3, :3]).sum(axis=0) == 1).all():
        return None

    def copy(outside: float) -> np.ndarray:
        out = np.full(grid.shape, outside, image.array.dtype)
        # Index vectors per source axis, each running along one target axis.
        lines: dict[int, np.ndarray] = {}
        target_of: dict[int, int] = {}
        target_slices = [slice(None)] * 3
        for source in range(3):
            target = int(np.abs(rounded[source, :3]).argmax())
            n = grid.shape[2 - target]
            line = (rounded[source, target] * np.arange(n) + rounded[source, 3]).astype(int)
            inside = np.flatnonzero((line >= 0) & (line < image.shape[2 - source]))
            if inside.size == 0:
                return out
            target_slices[2 - target] = slice(int(inside[0]), int(inside[-1]) + 1)
            lines[2 - source], target_of[2 - source] = line[inside], 2 - target
        picked = image.array[np.ix_(*(lines[axis] for axis in range(3)))]
        order = np.argsort([target_of[axis] for axis in range(3)])
        out[tuple(target_slices)] = picked.transpose(order)
        return out

    return copy


def _smooth_for(source, old: Grid, new: Grid):
    import SimpleITK as sitk

    # The new voxel's extent along each of the old axes.
    turned = np.abs(old.direction.T @ new.direction)
    wanted = (turned * np.array(new.spacing)).max(axis=1)
    ratio = wanted / np.array(old.spacing)
    fwhm = np.sqrt(np.maximum(wanted**2 - np.array(old.spacing) ** 2, 0))
    sigma = np.where(ratio > 1.2, fwhm / np.sqrt(8 * np.log(2)), 0.0)
    for axis in np.flatnonzero(sigma):
        # Recursive filters of ITK need four voxels along their axis.
        if source.GetSize()[int(axis)] >= 4:
            source = sitk.RecursiveGaussian(source, sigma=float(sigma[axis]), direction=int(axis))
    return source
