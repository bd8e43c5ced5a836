"""Overlapping tiles over a volume, and the weights with which their answers are averaged."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from medsegcore.models.schema import GridSpec

# Standard deviation of the weights as a share of the tile: what lies near a tile's border was
# seen with half of its surroundings only.
SIGMA_SHARE = 0.125
LEAST_WEIGHT = 1e-3
# Small tiles go through the network together until they are so many voxels: one by one, a GPU
# would wait for its orders, and a CPU take a convolution's slow way.
VOXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Tiling:
    """How a volume is cut.

    Attributes:
        padded: (k, j, i) the volume's size after zeros were added at its far ends.
        tile: (k, j, i) of each tile.
        starts: of each tile, (k, j, i), all multiples of the grid's `multiple`.
    """

    padded: tuple[int, int, int]
    tile: tuple[int, int, int]
    starts: list[tuple[int, int, int]]

    def boxes(self) -> list[tuple[slice, slice, slice]]:
        """The tiles as slices of the padded volume."""
        return [
            (slice(k, k + self.tile[0]), slice(j, j + self.tile[1]), slice(i, i + self.tile[2]))
            for k, j, i in self.starts
        ]


def plan_tiles(shape: tuple[int, ...], grid: GridSpec, tile: tuple[int, int, int]) -> Tiling:
    """Cut a volume of that shape into tiles that overlap by at least `grid.overlap`.

    An axis shorter than the tile gets a tile of its own length, rounded up to `grid.multiples`.
    Slices of a 2D network do not overlap along k.
    """
    padded, sizes, starts = [], [], []
    overlaps = (0.0 if grid.flat else grid.overlap, grid.overlap, grid.overlap)
    for n, wanted, multiple, overlap in zip(shape, tile, grid.multiples, overlaps, strict=True):
        length = math.ceil(n / multiple) * multiple
        size = min(wanted, length)
        step = max(int(size * (1 - overlap)) // multiple * multiple, multiple)
        count = math.ceil((length - size) / step) + 1
        # Spread evenly, on multiples, instead of a last tile that repeats most of the one before.
        places = [round(p / multiple) * multiple for p in np.linspace(0, length - size, count)]
        padded.append(length)
        sizes.append(size)
        starts.append(places)
    return Tiling(
        padded=(padded[0], padded[1], padded[2]),
        tile=(sizes[0], sizes[1], sizes[2]),
        starts=[(k, j, i) for k, j, i in itertools.product(*starts)],
    )


def gaussian_line(n: int) -> np.ndarray:
    """[n] float32 weights with the maximum 1 in the middle."""
    x = np.arange(n) - (n - 1) / 2
    line = np.exp(-0.5 * (x / max(SIGMA_SHARE * n, 1e-6)) ** 2)
    return np.maximum(line / line.max(), LEAST_WEIGHT).astype(np.float32)


def gaussian_weights(tile: tuple[int, int, int]) -> np.ndarray:
    """[k, j, i] float32 product of three `gaussian_line`, at least 0.001."""
    k, j, i = (gaussian_line(n) for n in tile)
    weights = k[:, None, None] * j[None, :, None] * i[None, None, :]
    return np.maximum(weights, LEAST_WEIGHT)


def tile_weights(tile: tuple[int, int, int], grid: GridSpec) -> np.ndarray:
    """[k, j, i] float32 weights of a tile's answer: Gaussian, or all 1 for a plain average.

    Every slice of a 2D network counts the same.
    """
    if grid.blend == "constant":
        return np.ones(tile, np.float32)
    if grid.flat:
        return np.tile(gaussian_weights((1, *tile[1:])), (tile[0], 1, 1))
    return gaussian_weights(tile)


def tiles_at_once(tile: tuple[int, int, int], grid: GridSpec) -> int:
    """How many tiles make one batch; the slices of a 2D network are one as it is."""
    return 1 if grid.flat else max(1, VOXELS_AT_ONCE // math.prod(tile))


def smaller_tile(tile: tuple[int, int, int], grid: GridSpec) -> tuple[int, int, int] | None:
    """The tile with its longest side halved (to a multiple); None when it is small already.

    The slices of a 2D network are taken fewer at a time first, which changes no answer.
    """
    if grid.flat and tile[0] > 1:
        return tile[0] // 2, tile[1], tile[2]
    longest = int(np.argmax(tile))
    half = tile[longest] // 2 // grid.multiple * grid.multiple
    if half < max(2 * grid.multiple, 16):
        return None
    sizes = list(tile)
    sizes[longest] = half
    return sizes[0], sizes[1], sizes[2]
