"""UNet++ (NestedUNet): the lighter of the two teachers.

Layers: Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation",
DLMIA 2018, fig. 1a and eq. 1, which says how the nodes are joined. Deep supervision is off. The
published 36.6 M parameters need 64 channels at the first level, two convolutions with bias in
each node, and an upsampling without parameters.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.networks.affinity.tapped import TappedNetwork, require_whole_numbers
from medsegcore.networks.blocks import require_norm, use_norm

LEVELS = 5


@dataclass(frozen=True)
class UNetPlusPlusConfig:
    """Settings of UNet++; the defaults are the published network (36.63 M parameters).

    Attributes:
        in_channels: number of input images.
        out_channels: number of classes with the background.
        width: channels of the first level; each of the five levels doubles them.
        norm: "batch", the paper's, or "group", see `blocks.use_norm`.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 64
    norm: str = "batch"

    def __post_init__(self) -> None:
        require_norm(self.norm)
        require_whole_numbers(self, "in_channels", "out_channels", "width")


class Node(nn.Sequential):
    """H of eq. 1: two times conv 3x3, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNetPlusPlus(TappedNetwork):
    """Nested U-Net: node X^(i,j) of level i and column j joins all nodes before it in its level.

    Input [B, in_channels, H, W], output logits [B, out_channels, H, W].
    Taps: "low" X^(1,0) and "high" X^(3,0).
    """

    multiple = 16

    def __init__(self, config: UNetPlusPlusConfig):
        super().__init__()
        self.config = config
        widths = [config.width * 2**level for level in range(LEVELS)]
        self.nodes = nn.ModuleDict()
        for i in range(LEVELS):
            n_in = widths[i - 1] if i else config.in_channels
            self.nodes[f"{i}_0"] = Node(n_in, widths[i])
        for j in range(1, LEVELS):
            for i in range(LEVELS - j):
                self.nodes[f"{i}_{j}"] = Node(j * widths[i] + widths[i + 1], widths[i])
        self.head = nn.Conv2d(widths[0], config.out_channels, kernel_size=1)
        use_norm(self, config.norm)

    @property
    def taps(self) -> dict[str, tuple[int, int]]:
        """(channels, stride) of each tap by name."""
        return {"low": (2 * self.config.width, 2), "high": (8 * self.config.width, 8)}

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        made: dict[tuple[int, int], Tensor] = {}  # X^(i,j): B, width * 2^i, H / 2^i, W / 2^i
        for i in range(LEVELS):
            below = F.max_pool2d(made[i - 1, 0], kernel_size=2) if i else x
            made[i, 0] = self.nodes[f"{i}_0"](below)
        for j in range(1, LEVELS):
            for i in range(LEVELS - j):
                # Eq. 1: [X^(i,0) .. X^(i,j-1), U(X^(i+1,j-1))]; how U interpolates is silent.
                up = F.interpolate(
                    made[i + 1, j - 1], scale_factor=2, mode="bilinear", align_corners=True
                )
                row = [made[i, k] for k in range(j)]
                made[i, j] = self.nodes[f"{i}_{j}"](torch.cat([*row, up], dim=1))
        logits = self.head(made[0, LEVELS - 1])
        return logits, {"low": made[1, 0], "high": made[3, 0]}
