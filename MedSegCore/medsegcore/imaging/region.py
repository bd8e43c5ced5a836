"""`Region`: a box in the patient to work in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsegcore.errors import GeometryError, OverlapError, SettingError
from medsegcore.imaging.geometry import Grid


@dataclass(frozen=True, eq=False)
class Region:
    """A box, which may be turned.

    Attributes:
        affine: 4x4; the columns are the box's axes (unit vectors in RAS), the last one its
            middle in RAS, mm.
        size_mm: edge lengths in mm along these axes.
    """

    affine: np.ndarray
    size_mm: tuple[float, float, float]

    def check(self) -> None:
        """Raise SettingError for a flat or unbounded box."""
        if not np.isfinite(self.affine).all() or not all(
            np.isfinite(size) and size > 0 for size in self.size_mm
        ):
            sizes = " x ".join(f"{size:g}" for size in self.size_mm)
            raise SettingError(
                f"The region has a size of {sizes} mm.", "Draw a box with three edges."
            )
        axes = self.affine[:3, :3]
        if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
            raise GeometryError(
                "The region's axes are sheared or scaled.", "Take it out of its transform."
            )

    def corners(self) -> np.ndarray:
        """[8, 3] RAS of the corners, mm."""
        half = [(-size / 2, size / 2) for size in self.size_mm]
        points = np.array(np.meshgrid(*half, indexing="ij")).reshape(3, -1).T
        return points @ self.affine[:3, :3].T + self.affine[:3, 3]

    def mask(self, grid: Grid) -> np.ndarray:
        """Bool [k, j, i]: the voxels of a grid whose centres lie in the box."""
        to_box = np.linalg.inv(self.affine) @ grid.affine
        k, j, i = (np.arange(n, dtype=np.float32) for n in grid.shape)
        inside = np.ones(grid.shape, bool)
        for axis, size in enumerate(self.size_mm):
            a, b, c, offset = to_box[axis].astype(np.float32)
            place = (c * k + offset)[:, None, None] + (b * j)[:, None] + a * i
            inside &= np.abs(place) <= size / 2 + 1e-4
        return inside

    def box_in(self, grid: Grid, margin_mm: float = 0.0) -> tuple[slice, slice, slice]:
        """The smallest part (slices of k, j, i) of a grid that holds the box and a margin.

        Raises:
            OverlapError: the box lies beside the grid.
        """
        ijk = grid.to_ijk(self.corners())
        margin = margin_mm / np.array(grid.spacing)
        low = np.floor(ijk.min(axis=0) - margin + 0.5).astype(int)
        high = np.ceil(ijk.max(axis=0) + margin - 0.5).astype(int) + 1
        low, high = np.maximum(low, 0), np.minimum(high, grid.shape[::-1])
        if (high <= low).any():
            raise OverlapError(
                "The region lies outside of the reference volume.",
                "Move the box onto the volume, or work without a region.",
            )
        i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return k, j, i

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers, e.g. for JSON."""
        return {"affine": self.affine.tolist(), "size_mm": list(self.size_mm)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Region:
        """Back from `as_dict`.

        Raises:
            SettingError: it is no such dict, or the box is flat.
        """
        try:
            affine = np.array(values["affine"], dtype=float).reshape(4, 4)
            a, b, c = (float(size) for size in values["size_mm"])
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(
                f"'{values}' is no region.", "It has an affine of 4 x 4 and a size_mm of 3 numbers."
            ) from error
        region = cls(affine, (a, b, c))
        region.check()
        return region
