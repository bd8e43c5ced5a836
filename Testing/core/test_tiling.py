"""Tiles cover everything, on the grid that slice attention needs; their sums are exact."""

import numpy as np
import pytest

from medsegcore.imaging import Grid
from medsegcore.inference.attention import SliceAttentionSum
from medsegcore.inference.tiling import (
    gaussian_line,
    gaussian_weights,
    plan_tiles,
    smaller_tile,
    tile_weights,
)
from medsegcore.models import GridSpec

SPEC = GridSpec(spacing=(1, 1, 1), tile=(96, 96, 96), overlap=0.25, multiple=16)


@pytest.mark.parametrize("shape", [(133, 163, 137), (96, 96, 96), (5, 200, 97), (300, 17, 96)])
def test_tiles_cover_the_volume_overlap_enough_and_start_on_multiples(shape):
    tiling = plan_tiles(shape, SPEC, SPEC.tile)
    covered = np.zeros(tiling.padded, int)
    for box in tiling.boxes():
        covered[box] += 1
        assert all(s.start % 16 == 0 and s.stop <= n
                   for s, n in zip(box, tiling.padded, strict=True))  # fmt: skip
    assert covered.min() >= 1
    for axis in range(3):
        assert 0 <= tiling.padded[axis] - shape[axis] < 16
        starts = sorted({start[axis] for start in tiling.starts})
        assert all(b - a <= 0.75 * tiling.tile[axis] for a, b in zip(starts, starts[1:]))  # noqa: B905, RUF007


def test_gaussian_weights_are_the_formula_and_never_zero():
    line = gaussian_line(96)
    x = np.arange(96) - 47.5
    expected = np.exp(-0.5 * (x / 12) ** 2)
    np.testing.assert_allclose(line, np.maximum(expected / expected.max(), 1e-3), rtol=1e-5)
    weights = gaussian_weights((4, 8, 6))
    assert weights.shape == (4, 8, 6)
    assert weights.min() >= 1e-3
    assert weights.max() == 1 or weights.max() == pytest.approx(1)


def test_tiles_of_96_96_32_go_by_24_24_8_and_are_averaged_as_edge_attention_does():
    # Arrays are (slices, rows, columns): the paper's sub-volume of 96 x 96 x 32 at 24 x 24 x 8.
    grid = GridSpec(
        spacing=(0.625, 0.625, 1.5), tile=(32, 96, 96), overlap=0.75, multiple=8, blend="constant"
    )
    starts = plan_tiles((48, 144, 192), grid, grid.tile).starts
    steps = [sorted({start[axis] for start in starts}) for axis in range(3)]
    assert steps == [[0, 8, 16], [0, 24, 48], [0, 24, 48, 72, 96]]
    assert np.all(tile_weights(grid.tile, grid) == 1)
    np.testing.assert_array_equal(
        tile_weights((4, 8, 6), grid.model_copy(update={"blend": "gaussian"})),
        gaussian_weights((4, 8, 6)),
    )


def test_a_smaller_tile_halves_the_longest_side_until_it_is_small():
    tile, seen = (96, 128, 96), []
    while tile is not None:
        seen.append(tile)
        tile = smaller_tile(tile, SPEC)
    assert seen[1] == (96, 64, 96)
    assert min(seen[-1]) >= 32
    assert len(seen) == len(set(seen))


def test_slice_attention_of_overlapping_tiles_is_their_weighted_mean_by_hand():
    spec = GridSpec(spacing=(1, 1, 1), tile=(32, 16, 16), overlap=0.5, multiple=16)
    tiling = plan_tiles((48, 16, 16), spec, spec.tile)
    assert [s[0] for s in tiling.starts] == [0, 16]
    total = SliceAttentionSum("axial", tiling)
    total.add(tiling.starts[0], np.array([[0.2, 0.8], [0.6, 0.4]]))
    total.add(tiling.starts[1], np.array([[0.5, 0.5], [0.1, 0.9]]))
    result = total.result("a", "A", Grid((48, 16, 16), np.diag([1.0, 1, 1, 1])))
    # Slab 1 was in both tiles: its own weight is the mean of 0.4 and 0.5 (equal distance to both
    # middles), beside 0.6 and 0.5 for its neighbours; together 1.55.
    expected = [[0.2, 0.8, 0], [0.6 / 1.55, 0.45 / 1.55, 0.5 / 1.55], [0, 0.1, 0.9]]
    np.testing.assert_allclose(result.matrix, expected, atol=1e-6)
    np.testing.assert_allclose(result.centers_ras[:, 2], [7.5, 23.5, 39.5])
    np.testing.assert_allclose(result.normal_ras, [0, 0, 1])
    assert result.row_at(np.array([3, 3, 25])) == 1
