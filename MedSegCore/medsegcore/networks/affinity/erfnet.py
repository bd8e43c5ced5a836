"""ERFNet: the widest student, 2.06 M parameters.

Layers: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic
Segmentation", IEEE T-ITS 19(1), 2018, table I and fig. 2c (non-bottleneck-1D).

The published 2.06 M parameters (2,063,130) hold a 1x1 classifier of 258 parameters, which serves
only a pre-training of the encoder by itself; it is left out here (2,062,872).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.networks.affinity.tapped import (
    TappedNetwork,
    require_shares,
    require_whole_numbers,
)
from medsegcore.networks.blocks import require_norm, use_norm

EPS = 1e-3  # of each batch normalisation; silent


@dataclass(frozen=True)
class ERFNetConfig:
    """Settings of ERFNet; the defaults are the published network, its parameters that run.

    Attributes:
        in_channels: number of input images.
        out_channels: number of classes with the background.
        width: channels after the first downsampling; the next two make 4 and 8 times as many.
        dropout: share of channels that training drops in the encoder's dilated blocks; the blocks
            before them drop a tenth of it. 0.3 as in ERFNet's own paper.
        norm: "batch", the paper's, or "group", see `blocks.use_norm`.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 16
    dropout: float = 0.3
    norm: str = "batch"

    def __post_init__(self) -> None:
        require_norm(self.norm)
        require_whole_numbers(self, "in_channels", "out_channels", "width")
        require_shares(self, "dropout")
        if self.width <= self.in_channels:
            raise ValueError(
                f"width is {self.width} but has to exceed the {self.in_channels} input channels"
            )


class Down(nn.Module):
    """Conv 3x3 of stride 2 beside a max-pooling of the input, concatenated."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H/2, W/2]."""
        return F.relu(self.norm(torch.cat([self.conv(x), F.max_pool2d(x, kernel_size=2)], dim=1)))


class NonBottleneck1d(nn.Module):
    """Fig. 2c: two 3x3 convolutions, each as 3x1 and 1x3, the second pair dilated, plus x."""

    def __init__(self, channels: int, rate: int = 1, dropout: float = 0.0):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)),
            nn.BatchNorm2d(channels, eps=EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (3, 1), padding=(rate, 0), dilation=(rate, 1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, rate), dilation=(1, rate)),
            nn.BatchNorm2d(channels, eps=EPS),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + x)


class Up(nn.Sequential):
    """A transposed 3x3 convolution that doubles the size, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(out_channels, eps=EPS),
            nn.ReLU(inplace=True),
        )


class ERFNet(TappedNetwork):
    """Encoder and decoder of factorised residual blocks.

    Input [B, in_channels, H, W], output logits [B, out_channels, H, W].
    Taps: "low" after the first downsampling, "high" the end of the encoder.
    """

    def __init__(self, config: ERFNetConfig):
        super().__init__()
        self.config = config
        w, p = config.width, config.dropout
        self.initial = Down(config.in_channels, w)
        self.encoder = nn.Sequential(
            Down(w, 4 * w),
            *(NonBottleneck1d(4 * w, dropout=p / 10) for _ in range(5)),
            Down(4 * w, 8 * w),
            *(NonBottleneck1d(8 * w, rate, p) for rate in (2, 4, 8, 16) * 2),
        )
        self.decoder = nn.Sequential(
            Up(8 * w, 4 * w),
            *(NonBottleneck1d(4 * w) for _ in range(2)),
            Up(4 * w, w),
            *(NonBottleneck1d(w) for _ in range(2)),
        )
        self.head = nn.ConvTranspose2d(w, config.out_channels, kernel_size=2, stride=2)
        use_norm(self, config.norm)

    @property
    def taps(self) -> dict[str, tuple[int, int]]:
        """(channels, stride) of each tap by name."""
        return {"low": (self.config.width, 2), "high": (8 * self.config.width, 8)}

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        low = self.initial(x)  # B, 16, H/2, W/2
        high = self.encoder(low)  # B, 128, H/8, W/8
        return self.head(self.decoder(high)), {"low": low, "high": high}
