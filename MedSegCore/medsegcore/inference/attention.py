"""Attention of a whole volume, put together from its tiles. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medsegcore.imaging import Grid, Image
from medsegcore.inference.tiling import Tiling, gaussian_line

# What the values of a spatial map are: a share of the map's own highest value, or absolute.
SHARE = "share"
DEVIATION = "standard deviation"
BIT = "bit"
# What a value of each can be at most; a probability deviates by 0.5 where half of all say 1.
HIGHEST = {SHARE: 1.0, DEVIATION: 0.5, BIT: 1.0}

# Array axis [k, j, i] of a grid in RAS orientation along which a direction's slices are counted.
AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True)
class SpatialAttention:
    """A map per position.

    Attributes:
        key, title: as the model declares them.
        values: float32 [k, j, i] on the reference grid, from 0 to `HIGHEST` of the unit.
        scale: what the network's own value was where `values` is 1: of a share the 99.9th
            percentile, otherwise 1.
        unit: `SHARE`, `DEVIATION` (of the probability) or `BIT`.
    """

    key: str
    title: str
    values: np.ndarray
    scale: float
    unit: str = SHARE

    kind = "spatial"


@dataclass(frozen=True)
class SliceAttention:
    """How much each slab of slices gathers from each other one along one axis.

    Attributes:
        key, title: as the model declares them.
        axis: "sagittal", "coronal" or "axial".
        matrix: float32 [L, L]; row l holds the weights with which slab l gathers, its sum is 1.
            Slabs that never shared a tile have 0.
        centers_ras: [L, 3] middle of each slab in mm.
        normal_ras: [3] unit vector along the axis.
    """

    key: str
    title: str
    axis: str
    matrix: np.ndarray
    centers_ras: np.ndarray
    normal_ras: np.ndarray

    kind = "slice"

    def row_at(self, ras: np.ndarray) -> int:
        """Index of the slab nearest to a point in RAS mm."""
        offsets = (self.centers_ras - np.asarray(ras)) @ self.normal_ras
        return int(np.abs(offsets).argmin())


@dataclass(frozen=True)
class CorrelationAttention:
    """For each position of one image of a slice, where the other image answers to it.

    Attributes:
        key, title: as the model declares them.
        maps: float16 [K, h, w, h', w']; maps[k, r, c] is the map over the other image for
            position (r, c) of slice k of the model grid.
        affine: 4x4, from (c, r, k) to RAS mm; the positions are coarser than the voxels.
    """

    key: str
    title: str
    maps: np.ndarray
    affine: np.ndarray

    kind = "correlation"

    def index_at(self, ras: np.ndarray) -> tuple[int, int, int]:
        """(k, r, c) of the position nearest to a point in RAS mm."""
        c, r, k = (np.linalg.inv(self.affine) @ [*ras, 1.0])[:3]
        k, r, c = (
            int(np.clip(np.rint(x), 0, n - 1))
            for x, n in zip((k, r, c), self.maps.shape, strict=False)
        )
        return k, r, c

    def map_at(self, ras: np.ndarray) -> Image:
        """The map for the position nearest to a point in RAS mm, as an image of one slice."""
        at = self.index_at(ras)
        affine = self.affine.copy()
        affine[:3, 3] += at[0] * affine[:3, 2]
        scale = np.array(self.maps.shape[1:3]) / np.array(self.maps.shape[3:])
        if not np.all(scale == 1):
            # The other image may have another number of positions over the same field of view.
            affine[:3, 3] += affine[:3, :2] @ ((scale[::-1] - 1) / 2)
            affine[:3, :2] *= scale[::-1]
        return Image(self.maps[at][None].astype(np.float32), affine, self.title)


Attention = SpatialAttention | SliceAttention | CorrelationAttention


def correlation_attention(
    key: str, title: str, by_slice: Mapping[int, np.ndarray], grid: Grid, tiling: Tiling
) -> CorrelationAttention:
    """The correlations [h, w, h', w'] of all slices of the model grid, with their place."""
    maps = np.stack([by_slice[k] for k in range(grid.shape[0])])
    # A position covers `step` voxels of the padded slice; its middle lies between them.
    step = np.array([n / m for n, m in zip(tiling.padded[:0:-1], maps.shape[2:0:-1], strict=True)])
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :2] @ ((step - 1) / 2)
    affine[:3, :2] *= step
    return CorrelationAttention(key, title, maps, affine)


class SliceAttentionSum:
    """Adds up the matrices of the tiles of one slice attention.

    A pair of slabs is the mean over the tiles that saw both, weighted by how near to the tile's
    middle they lay; then each row is scaled to the sum 1.
    """

    def __init__(self, axis: str, tiling: Tiling):
        self.axis = axis
        self.array_axis = AXES[axis]
        self.tiling = tiling
        self.total: np.ndarray | None = None
        self.weight: np.ndarray | None = None
        self.slab = 1

    def add(self, start: tuple[int, int, int], matrix: np.ndarray) -> None:
        """Add the matrix [L, L] of the tile that starts there."""
        length = matrix.shape[0]
        self.slab = max(self.tiling.tile[self.array_axis] // length, 1)
        if self.total is None or self.weight is None:
            slabs = -(-self.tiling.padded[self.array_axis] // self.slab)
            self.total = np.zeros((slabs, slabs))
            self.weight = np.zeros((slabs, slabs))
        line = gaussian_line(length).astype(np.float64)
        weight = line[:, None] * line[None, :]
        first = start[self.array_axis] // self.slab
        part = (slice(first, first + length),) * 2
        self.total[part] += weight * matrix
        self.weight[part] += weight

    def result(self, key: str, title: str, grid: Grid) -> SliceAttention:
        """The matrix of the whole volume on the model grid `grid` (before padding)."""
        if self.total is None or self.weight is None:
            raise RuntimeError("no tile was added")
        # Slabs that lie wholly in the padding show nothing of the patient.
        count = -(-grid.shape[self.array_axis] // self.slab)
        matrix = np.divide(
            self.total, self.weight, out=np.zeros_like(self.total), where=self.weight > 0
        )[:count, :count]
        matrix /= np.maximum(matrix.sum(axis=1, keepdims=True), 1e-12)
        ijk = np.tile((np.array(grid.shape[::-1]) - 1) / 2, (count, 1))
        column = 2 - self.array_axis
        ijk[:, column] = (np.arange(count) + 0.5) * self.slab - 0.5
        return SliceAttention(
            key=key,
            title=title,
            axis=self.axis,
            matrix=matrix.astype(np.float32),
            centers_ras=grid.to_ras(ijk),
            normal_ras=grid.direction[:, column],
        )
