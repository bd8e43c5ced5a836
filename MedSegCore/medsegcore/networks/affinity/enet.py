"""ENet: a student of 0.34 M parameters.

Layers: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic
Segmentation", arXiv 1606.02147, table 1 and fig. 2.

The published 0.353 M parameters (353,761) fix what differs from that paper: a single grey image
is repeated to three channels, each PReLU has one slope for all channels, and the shortcut of a
downsampling is a 1x1 convolution instead of zero channels. They also hold bottleneck 3.5, which
never runs in the release that has this count; by default it is left out here (335,966).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.networks.affinity.tapped import (
    TappedNetwork,
    as_colour,
    colour_channels,
    require_shares,
    require_whole_numbers,
)
from medsegcore.networks.blocks import require_norm, use_norm


@dataclass(frozen=True)
class ENetConfig:
    """Settings of ENet; the defaults are the published network, its parameters that run.

    Attributes:
        in_channels: number of input images; a single one is repeated to three.
        out_channels: number of classes with the background.
        width: channels of the initial block, a multiple of 4; stages 1 to 3 have 4, 8 and 8
            times as many.
        bottleneck_3_5: run stage 3 whole, as in ENet's own paper (353,761 parameters that run).
        dropout: share of channels that training drops in the residuals from stage 2 on; stage 1
            drops a tenth of it. 0.1 as in ENet's own paper.
        norm: "batch", the paper's, or "group", see `blocks.use_norm`.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 16
    bottleneck_3_5: bool = False
    dropout: float = 0.1
    norm: str = "batch"

    def __post_init__(self) -> None:
        require_norm(self.norm)
        require_whole_numbers(self, "in_channels", "out_channels", "width")
        require_shares(self, "dropout")
        if type(self.bottleneck_3_5) is not bool:
            raise ValueError(
                f"bottleneck_3_5 is {self.bottleneck_3_5!r} but has to be true or false"
            )
        if self.width % 4:
            raise ValueError(f"width is {self.width} but has to be a multiple of 4")
        if self.width <= colour_channels(self.in_channels):
            raise ValueError(
                f"width is {self.width} but has to exceed the stem's "
                f"{colour_channels(self.in_channels)} input channels"
            )


class Projection(nn.Sequential):
    """A convolution without bias, batch normalisation and a PReLU of one slope."""

    def __init__(self, *convolutions: nn.Module, channels: int):
        super().__init__(*convolutions, nn.BatchNorm2d(channels), nn.PReLU())


class Initial(nn.Module):
    """Fig. 2a: conv 3x3 of stride 2 beside a max-pooling of the input, concatenated."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, 2, 1, bias=False)
        self.activate = nn.Sequential(nn.BatchNorm2d(out_channels), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H/2, W/2]."""
        return self.activate(torch.cat([self.conv(x), F.max_pool2d(x, kernel_size=2)], dim=1))


class Bottleneck(nn.Module):
    """Fig. 2b: 1x1 to `inner` channels, a convolution, 1x1 back, spatial dropout, plus x.

    Args:
        channels, inner: of x and of the convolution in the middle.
        middle: that convolution.
        dropout: share of channels that training drops.
    """

    def __init__(self, channels: int, inner: int, middle: nn.Module, dropout: float):
        super().__init__()
        self.residual = nn.Sequential(
            Projection(nn.Conv2d(channels, inner, 1, bias=False), channels=inner),
            Projection(middle, channels=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout2d(dropout),
        )
        self.activate = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.residual(x) + x)


class Down(nn.Module):
    """Fig. 2b with stride: a 2x2 convolution, beside max-pooling whose indices are kept."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, dropout: float):
        super().__init__()
        self.residual = nn.Sequential(
            Projection(nn.Conv2d(in_channels, inner, 1, bias=False), channels=inner),
            Projection(nn.Conv2d(inner, inner, 2, stride=2, bias=False), channels=inner),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.Dropout2d(dropout),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.activate = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, in, H, W] -> [B, out, H/2, W/2], indices [B, in, H/2, W/2] of the maxima."""
        pooled, indices = F.max_pool2d(x, kernel_size=2, return_indices=True)
        return self.activate(self.residual(x) + self.shortcut(pooled)), indices


class Up(nn.Module):
    """A transposed 2x2 convolution, beside unpooling to where the maxima had been."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, dropout: float):
        super().__init__()
        self.residual = nn.Sequential(
            Projection(nn.Conv2d(in_channels, inner, 1, bias=False), channels=inner),
            Projection(nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False), channels=inner),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.Dropout2d(dropout),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.activate = nn.PReLU()

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """x [B, in, h, w], indices [B, out, h, w] -> [B, out, 2h, 2w]."""
        unpooled = F.max_unpool2d(self.shortcut(x), indices, kernel_size=[2, 2])
        return self.activate(self.residual(x) + unpooled)


class ENet(TappedNetwork):
    """Encoder of three stages and a small decoder of two.

    Input [B, in_channels, H, W], output logits [B, out_channels, H, W].
    Taps: "low" after the initial block, "high" the end of stage 3.
    """

    def __init__(self, config: ENetConfig):
        super().__init__()
        self.config = config
        w, p = config.width, config.dropout
        self.initial = Initial(colour_channels(config.in_channels), w)
        self.down1 = Down(w, w, 4 * w, p / 10)
        self.stage1 = nn.Sequential(*(self._plain(4 * w, w, p / 10) for _ in range(4)))
        self.down2 = Down(4 * w, 2 * w, 8 * w, p)
        self.stage2 = nn.Sequential(*self._stage(whole=True))
        self.stage3 = nn.Sequential(*self._stage(whole=config.bottleneck_3_5))
        self.up4 = Up(8 * w, w, 4 * w, p)
        self.stage4 = nn.Sequential(*(self._plain(4 * w, w, p) for _ in range(2)))
        self.up5 = Up(4 * w, w // 4, w, p)
        self.stage5 = self._plain(w, w // 4, p)
        self.head = nn.ConvTranspose2d(w, config.out_channels, 2, stride=2, bias=False)
        use_norm(self, config.norm)

    @staticmethod
    def _plain(channels: int, inner: int, dropout: float, rate: int = 1) -> Bottleneck:
        middle = nn.Conv2d(inner, inner, 3, padding=rate, dilation=rate, bias=False)
        return Bottleneck(channels, inner, middle, dropout)

    def _stage(self, whole: bool) -> Iterator[Bottleneck]:
        """Table 1: plain, dilated 2, asymmetric, dilated 4, plain, 8, asymmetric, 16."""
        channels, inner = 8 * self.config.width, 2 * self.config.width
        for rate in (1, 2, None, 4, 1, 8, None, 16) if whole else (1, 2, None, 4, 8, None, 16):
            if rate is not None:
                yield self._plain(channels, inner, self.config.dropout, rate)
                continue
            asymmetric = nn.Sequential(
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False),
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
            )
            yield Bottleneck(channels, inner, asymmetric, self.config.dropout)

    @property
    def taps(self) -> dict[str, tuple[int, int]]:
        """(channels, stride) of each tap by name."""
        return {"low": (self.config.width, 2), "high": (8 * self.config.width, 8)}

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        low = self.initial(as_colour(x))  # B, 16, H/2, W/2
        x, indices1 = self.down1(low)
        x, indices2 = self.down2(self.stage1(x))  # B, 128, H/8, W/8
        high = self.stage3(self.stage2(x))
        x = self.stage4(self.up4(high, indices2))  # B, 64, H/4, W/4
        x = self.stage5(self.up5(x, indices1))  # B, 16, H/2, W/2
        return self.head(x), {"low": low, "high": high}
