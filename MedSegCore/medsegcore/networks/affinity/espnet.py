"""ESPNet: the smallest student, 0.183 M parameters.

Layers: Mehta et al., "ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic
Segmentation", ECCV 2018: ESP module of fig. 1 (K = 5 branches, hierarchical feature fusion),
network of fig. 4d with alpha_2 = 2 and alpha_3 = 3.

The published 0.183 M parameters (183,725) fix what that paper leaves open: a single grey image is
repeated to three channels, and the ESP module that joins levels 2 and 3 in the decoder has as many
outputs as classes, but at least the 5 that its branches need.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.networks.affinity.tapped import (
    TappedNetwork,
    as_colour,
    colour_channels,
    require_whole_numbers,
)
from medsegcore.networks.blocks import require_norm, use_norm

RATES = (1, 2, 4, 8, 16)  # of the K = 5 branches: 2^(k-1)
EPS = 1e-3  # of each batch normalisation; silent, as in the authors' release


@dataclass(frozen=True)
class ESPNetConfig:
    """Settings of ESPNet; the defaults are the published network (183,725 parameters).

    Attributes:
        in_channels: number of input images; a single one is repeated to three.
        out_channels: number of classes with the background.
        width: channels of level 1; levels 2 and 3 have 4 and 8 times as many.
        alpha_2, alpha_3: ESP modules of level 2 and of level 3.
        norm: "batch", the paper's, or "group", see `blocks.use_norm`.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 16
    alpha_2: int = 2
    alpha_3: int = 3
    norm: str = "batch"

    def __post_init__(self) -> None:
        require_norm(self.norm)
        require_whole_numbers(self, "in_channels", "out_channels", "alpha_2", "alpha_3")
        require_whole_numbers(self, "width", least=2)


class Activation(nn.Sequential):
    """Batch normalisation and a PReLU with a slope per channel."""

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels, eps=EPS), nn.PReLU(channels))


class ESP(nn.Module):
    """Fig. 1: reduce to d channels, convolve at five rates, fuse them one by one, join.

    Args:
        in_channels, out_channels: of x and of what comes out; d = out_channels // 5, and the
            branch of rate 1 has what is left of out_channels.
        stride: 2 reduces with conv 3x3 of stride 2 instead of 1x1.
        residual: add x.
        activate: normalise and activate what comes out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = True):
        super().__init__()
        d = out_channels // len(RATES)
        rest = out_channels - (len(RATES) - 1) * d
        size = 3 if stride == 2 else 1
        self.residual = residual
        self.reduce = nn.Conv2d(in_channels, d, size, stride, padding=size // 2, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv2d(d, rest if rate == 1 else d, 3, padding=rate, dilation=rate, bias=False)
            for rate in RATES
        )
        self.activate = Activation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H/stride, W/stride]."""
        reduced = self.reduce(x)
        narrow, fused, *wider = (branch(reduced) for branch in self.branches)
        joined = [narrow, fused]
        for branch in wider:  # hierarchical feature fusion, against gridding
            fused = fused + branch
            joined.append(fused)
        out = torch.cat(joined, dim=1)
        return self.activate(out + x if self.residual else out)


class ESPNet(TappedNetwork):
    """Encoder of three levels that see the image again, and a decoder as wide as the classes.

    Input [B, in_channels, H, W], output logits [B, out_channels, H, W].
    Taps: "low" after level 1, "high" after level 3 (what enters its ESP modules and what leaves
    them, concatenated).
    """

    def __init__(self, config: ESPNetConfig):
        super().__init__()
        self.config = config
        image, w, classes = colour_channels(config.in_channels), config.width, config.out_channels
        fusion = max(classes, len(RATES))
        self.level1 = nn.Sequential(
            nn.Conv2d(image, w, 3, stride=2, padding=1, bias=False), Activation(w)
        )
        self.join1 = Activation(w + image)
        self.down2 = ESP(w + image, 4 * w, stride=2, residual=False)
        self.level2 = nn.Sequential(*(ESP(4 * w, 4 * w) for _ in range(config.alpha_2)))
        self.join2 = Activation(8 * w + image)
        self.down3 = ESP(8 * w + image, 8 * w, stride=2, residual=False)
        self.level3 = nn.Sequential(*(ESP(8 * w, 8 * w) for _ in range(config.alpha_3)))
        self.join3 = Activation(16 * w)

        self.project3 = nn.Sequential(
            nn.Conv2d(16 * w, classes, 1, bias=False),
            nn.BatchNorm2d(classes, eps=EPS),
            self._double(classes, classes),
        )
        self.project2 = nn.Conv2d(8 * w + image, classes, 1, bias=False)
        self.fuse2 = nn.Sequential(
            Activation(2 * classes),
            ESP(2 * classes, fusion, residual=False),
            self._double(fusion, classes),
            Activation(classes),
        )
        self.fuse1 = nn.Sequential(
            nn.Conv2d(w + image + classes, classes, 3, padding=1, bias=False), Activation(classes)
        )
        self.head = self._double(classes, classes)
        use_norm(self, config.norm)

    @staticmethod
    def _double(n_in: int, n_out: int) -> nn.Module:
        return nn.ConvTranspose2d(n_in, n_out, 2, stride=2, bias=False)

    @property
    def taps(self) -> dict[str, tuple[int, int]]:
        """(channels, stride) of each tap by name."""
        return {"low": (self.config.width, 2), "high": (16 * self.config.width, 8)}

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = as_colour(x)
        half = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)  # the image at H/2, W/2
        quarter = F.avg_pool2d(half, kernel_size=3, stride=2, padding=1)
        low = self.level1(x)  # B, 16, H/2, W/2
        joined1 = self.join1(torch.cat([low, half], dim=1))
        start2 = self.down2(joined1)  # B, 64, H/4, W/4
        joined2 = self.join2(torch.cat([self.level2(start2), start2, quarter], dim=1))
        start3 = self.down3(joined2)  # B, 128, H/8, W/8
        high = self.join3(torch.cat([start3, self.level3(start3)], dim=1))  # B, 256, H/8, W/8
        up = self.project3(high)  # B, classes, H/4, W/4
        up = self.fuse2(torch.cat([self.project2(joined2), up], dim=1))  # B, classes, H/2, W/2
        up = self.fuse1(torch.cat([up, joined1], dim=1))
        return self.head(up), {"low": low, "high": high}
