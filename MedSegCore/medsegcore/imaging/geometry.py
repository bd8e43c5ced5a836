"""Where voxels lie: grids, orientation, fields of view, all in RAS and millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsegcore.errors import GeometryError, OverlapError

# How far the cosine between two axes may be from 0. Resampling to another grid treats a sheared
# one exactly, but ITK does not hold it: its files round directions to about 1e-6.
ORTHOGONAL_TOLERANCE = 1e-3
LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel lattice of an image.

    Attributes:
        shape: (k, j, i) voxels.
        affine: 4x4, IJK to RAS in mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def direction(self) -> np.ndarray:
        """3x3; column n is the unit vector in RAS along which axis n of i, j, k runs."""
        return self.affine[:3, :3] / np.array(self.spacing)

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Edge lengths in mm along i, j, k, whole voxels counted."""
        i, j, k = (n * s for n, s in zip(reversed(self.shape), self.spacing, strict=True))
        return i, j, k

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def center(self) -> np.ndarray:
        """Middle of the field of view in RAS, mm."""
        return self.to_ras((np.array(self.shape[::-1]) - 1) / 2)

    @property
    def orientation(self) -> str:
        """Three letters: where i, j and k point to, e.g. "RAS" or "LPS"."""
        return "".join(
            LETTERS[axis][0] if sign > 0 else LETTERS[axis][1] for axis, sign in self.axes()
        )

    def axes(self) -> list[tuple[int, int]]:
        """For i, j, k the nearest axis of R, A, S (0..2) and the sign; each is used once."""
        direction = self.direction
        free_columns, free_rows, found = [0, 1, 2], [0, 1, 2], {}
        for _ in range(3):
            part = np.abs(direction[np.ix_(free_rows, free_columns)])
            r, c = np.unravel_index(part.argmax(), part.shape)
            row, column = free_rows.pop(int(r)), free_columns.pop(int(c))
            found[column] = (row, 1 if direction[row, column] > 0 else -1)
        return [found[n] for n in range(3)]

    def to_ras(self, ijk: np.ndarray) -> np.ndarray:
        """[..., 3] voxel indices (i, j, k) to RAS in mm."""
        return np.asarray(ijk) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_ijk(self, ras: np.ndarray) -> np.ndarray:
        """[..., 3] RAS in mm to continuous voxel indices (i, j, k)."""
        return (np.asarray(ras) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def corners(self) -> np.ndarray:
        """[8, 3] RAS of the outer corners, half a voxel beyond the outermost centres."""
        i, j, k = self.shape[::-1]
        ends = [(-0.5, n - 0.5) for n in (i, j, k)]
        return self.to_ras(np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T)

    def crop(self, box: tuple[slice, slice, slice]) -> Grid:
        """The grid of array[box]; slices of k, j, i with plain starts and stops."""
        start = [s.start for s in box]
        affine = self.affine.copy()
        affine[:3, 3] = self.to_ras(np.array(start[::-1]))
        shape = (box[0].stop - start[0], box[1].stop - start[1], box[2].stop - start[2])
        return Grid(shape, affine)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether every voxel centre lies where the other grid's does, within a tolerance."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance_mm)

    def check(self, what: str = "The image") -> None:
        """Raise GeometryError for a non-finite, flat or sheared affine."""
        hint = "Its header is damaged or it was acquired with a gantry tilt: resample it first."
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise GeometryError(f"{what} has an affine that is not finite.", hint)
        determinant = float(np.linalg.det(self.affine[:3, :3]))
        if abs(determinant) < 1e-9:
            raise GeometryError(
                f"{what} has a geometry with determinant {determinant:g}: its axes are flat.", hint
            )
        direction = self.direction
        worst = float(np.abs(direction.T @ direction - np.eye(3)).max())
        if worst > ORTHOGONAL_TOLERANCE:
            angle = np.degrees(np.arccos(min(worst, 1.0)))
            raise GeometryError(
                f"{what} has axes that are not orthogonal: two of them meet at {angle:.1f} "
                "degrees.",
                hint,
            )


def grid_with_spacing(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """A grid along the same axes and over the same field of view with another voxel size.

    Args:
        spacing: mm along i, j, k.
    """
    count = [max(round(n / s), 1) for n, s in zip(grid.size_mm, spacing, strict=True)]
    return _grid_over(grid.direction, grid.center, count, spacing)


def patient_grid(grid: Grid, spacing: tuple[float, float, float], orientation: str) -> Grid:
    """A grid along the patient's own axes that covers the field of view of `grid`.

    A tilted image gets the same model grid as an upright one of the same patient, up to a shift
    of less than a voxel, so that the answer does not depend on how the slices were planned. An
    upright image of that spacing keeps its voxels.

    Args:
        spacing: mm along the new i, j, k.
        orientation: where they point to, e.g. "RAS".
    """
    corners = grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    letters = [letter for pair in LETTERS for letter in pair]
    direction = np.zeros((3, 3))
    axes = []
    for n, letter in enumerate(orientation):
        axis, negative = divmod(letters.index(letter), 2)
        direction[axis, n] = -1 if negative else 1
        axes.append(axis)
    # A thousandth of a voxel of rounding in a header is no reason for a voxel more.
    count = [
        max(int(np.ceil((high[axis] - low[axis]) / s - 1e-3)), 1)
        for axis, s in zip(axes, spacing, strict=True)
    ]
    return _grid_over(direction, (low + high) / 2, count, spacing)


def reference_grid(
    grid: Grid, spacing: tuple[float | None, float | None, float | None], orientation: str
) -> Grid:
    """The field of view of `grid` along its own axes, in the order nearest to `orientation`.

    For networks that look at slices as they were acquired: thick tilted slices are not mixed.

    Args:
        spacing: mm along the new i, j, k; None keeps the grid's own.
        orientation: letters that the new i, j, k are to point nearest to, e.g. "RAS".
    """
    axes = grid.axes()
    letters = [letter for pair in LETTERS for letter in pair]
    columns, signs = [], []
    for letter in orientation:
        wanted, negative = divmod(letters.index(letter), 2)
        column = [axis for axis, _ in axes].index(wanted)
        columns.append(column)
        signs.append(1 if (axes[column][1] < 0) == bool(negative) else -1)
    direction = grid.direction[:, columns] * np.array(signs)
    sizes = [grid.shape[2 - column] for column in columns]
    own = [grid.spacing[column] for column in columns]
    steps = [new or old for new, old in zip(spacing, own, strict=True)]
    count = [
        max(int(np.ceil(n * old / new - 1e-3)), 1)
        for n, old, new in zip(sizes, own, steps, strict=True)
    ]
    return _grid_over(direction, grid.center, count, (steps[0], steps[1], steps[2]))


def _grid_over(
    direction: np.ndarray,
    center: np.ndarray,
    count: list[int],
    spacing: tuple[float, float, float],
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(spacing)
    affine[:3, 3] = center - affine[:3, :3] @ ((np.array(count) - 1) / 2)
    return Grid((count[2], count[1], count[0]), affine)


def fov_overlap(a: Grid, b: Grid) -> float:
    """Share (0..1) of the smaller field of view that lies in the other; any tilt.

    Sampled at 24^3 points spread evenly through the smaller one.
    """
    volumes = [grid.voxel_volume_ml * np.prod(grid.shape) for grid in (a, b)]
    small, large = (a, b) if volumes[0] <= volumes[1] else (b, a)
    steps = (np.arange(24) + 0.5) / 24
    share = np.array(np.meshgrid(steps, steps, steps)).reshape(3, -1).T
    ijk = large.to_ijk(small.to_ras(share * np.array(small.shape[::-1]) - 0.5))
    inside = (ijk >= -0.5) & (ijk <= np.array(large.shape[::-1]) - 0.5)
    return float(inside.all(axis=1).mean())


def check_overlap(
    reference: Grid, other: Grid, what: str = "An input", minimum: float = 0.5
) -> None:
    """Raise OverlapError when less than `minimum` of the smaller field of view is shared."""
    overlap = fov_overlap(reference, other)
    if overlap < minimum:
        raise OverlapError(
            f"{what} has only {overlap:.0%} of its field of view in common with the reference; "
            f"{minimum:.0%} is needed.",
            "Check that both belong to the same patient and visit, or register them first.",
        )
