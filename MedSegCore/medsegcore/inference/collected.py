"""The attention of the tiles of a run, put together by kind."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from medsegcore.inference.attention import SliceAttentionSum
from medsegcore.inference.tiling import Tiling
from medsegcore.models import AttentionSpec


class CollectedAttention:
    """The attention of the tiles, put together by kind.

    Correlation belongs to a slice as a whole: it is kept only where one tile holds the slice.
    """

    def __init__(self, specs: list[AttentionSpec], tiling: Tiling):
        self.tiling = tiling
        self.slices = {
            s.key: SliceAttentionSum(s.axis, tiling) for s in specs if s.axis is not None
        }
        self.spatial = {
            s.key: np.zeros(tiling.padded, np.float32) for s in specs if s.kind == "spatial"
        }
        whole = tiling.tile[1:] == tiling.padded[1:]
        self.correlation: dict[str, dict[int, np.ndarray]] = {
            s.key: {} for s in specs if s.kind == "correlation" and whole
        }

    def add(
        self,
        start: tuple[int, int, int],
        box: tuple[slice, slice, slice],
        maps: dict[str, Tensor],
        weights: np.ndarray,
        flat: bool,
    ) -> None:
        """Add what the network gave for the tile that starts there."""
        for key, summed in self.slices.items():
            summed.add(start, maps[key][0].float().cpu().numpy())
        for key, volume in self.spatial.items():
            values = maps[key].float()
            values = values.transpose(0, 1)[None] if flat else values  # 1, 1, k', j', i'
            values = F.interpolate(
                values, size=self.tiling.tile, mode="trilinear", align_corners=False
            )
            volume[box] += values[0, 0].cpu().numpy() * weights
        for key, by_slice in self.correlation.items():
            for n, matrix in enumerate(maps[key].half().cpu().numpy()):
                by_slice[start[0] + n] = matrix

    def finish(self, weight_sum: np.ndarray, inner: tuple[slice, ...]) -> None:
        """Divide the sums, and drop what lies in the padding."""
        self.spatial = {key: (v / weight_sum)[inner] for key, v in self.spatial.items()}
