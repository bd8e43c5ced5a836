"""DeepLabV3+ on Aligned Xception-65: the heavier of the two teachers.

Layers: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018: Aligned Xception of fig. 4 (16 middle blocks, batch normalisation after
each depthwise convolution), output stride 8, atrous spatial pyramid pooling, decoder of fig. 2.

The published 56.8 M parameters fix what differs from that paper: pyramid branches that are plain
3x3 convolutions, and a 3x3 (not 1x1) convolution of the low-level features, which come from the
first entry block (128 channels). They also hold an ImageNet classifier of 2,049,000 parameters
that never runs; it is left out here, which makes 54.75 M.
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

RATES = (12, 24, 36)  # of the pyramid's branches at output stride 8


@dataclass(frozen=True)
class DeepLabV3PlusConfig:
    """Settings of DeepLabV3+; the defaults are the published network (54.75 M that run).

    Attributes:
        in_channels: number of input images.
        out_channels: number of classes with the background.
        width: channels of the first convolution; all others keep their proportion to it.
        middle_blocks: blocks of the middle flow.
        dropout: share that training drops after the pyramid and after the decoder's first
            convolution. Silent; 0.5 is what the release with the published count has.
        norm: "batch", the paper's, or "group", see `blocks.use_norm`.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 32
    middle_blocks: int = 16
    dropout: float = 0.5
    norm: str = "batch"

    def __post_init__(self) -> None:
        require_norm(self.norm)
        require_whole_numbers(self, "in_channels", "out_channels", "width", "middle_blocks")
        require_shares(self, "dropout")


class ConvNormReLU(nn.Sequential):
    """Conv without bias that keeps the size (or halves it with stride 2), batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int, size: int = 3, stride: int = 1, rate: int = 1):
        padding = rate * (size // 2)
        super().__init__(
            nn.Conv2d(n_in, n_out, size, stride, padding, dilation=rate, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        )


class SeparableConv(nn.Sequential):
    """Atrous depthwise 3x3, batch norm, pointwise 1x1, batch norm."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1, rate: int = 1):
        super().__init__(
            nn.Conv2d(n_in, n_in, 3, stride, rate, dilation=rate, groups=n_in, bias=False),
            nn.BatchNorm2d(n_in),
            nn.Conv2d(n_in, n_out, kernel_size=1, bias=False),
            nn.BatchNorm2d(n_out),
        )


class XceptionBlock(nn.Module):
    """Three times ReLU and separable convolution, the last one with the stride, plus a shortcut.

    The shortcut is the identity, or a 1x1 convolution where the shape changes.
    """

    def __init__(self, channels: tuple[int, int, int, int], stride: int = 1, rate: int = 1):
        super().__init__()
        first, second, third, last = channels
        self.residual = nn.Sequential(
            nn.ReLU(),
            SeparableConv(first, second, rate=rate),
            nn.ReLU(inplace=True),
            SeparableConv(second, third, rate=rate),
            nn.ReLU(inplace=True),
            SeparableConv(third, last, stride=stride, rate=rate),
        )
        self.shortcut: nn.Module = nn.Identity()
        if first != last or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(first, last, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(last),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three rates of 3x3, and the mean of the image."""

    def __init__(self, n_in: int, n_out: int, dropout: float):
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvNormReLU(n_in, n_out, size=1)]
            + [ConvNormReLU(n_in, n_out, rate=rate) for rate in RATES]
        )
        self.pool = ConvNormReLU(n_in, n_out, size=1)
        self.project = nn.Sequential(ConvNormReLU(5 * n_out, n_out, size=1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, n_in, h, w] -> [B, n_out, h, w]."""
        mean = self.pool(x.mean(dim=(2, 3), keepdim=True))  # B, n_out, 1, 1
        maps = [branch(x) for branch in self.branches]
        return self.project(torch.cat([*maps, mean.expand_as(maps[0])], dim=1))


class DeepLabV3Plus(TappedNetwork):
    """Encoder of output stride 8 with atrous convolutions, and a decoder at stride 4.

    Input [B, in_channels, H, W], output logits [B, out_channels, H, W]. Training needs at least
    two images, because the pyramid normalises one value per image and channel.
    Taps: "low" after the first convolution, "high" the last features of the encoder.
    """

    def __init__(self, config: DeepLabV3PlusConfig):
        super().__init__()
        self.config = config
        c = self._channels
        self.stem = ConvNormReLU(config.in_channels, c(32), stride=2)
        self.stem2 = ConvNormReLU(c(32), c(64))
        self.entry1 = XceptionBlock((c(64), c(128), c(128), c(128)), stride=2)
        self.entry2 = XceptionBlock((c(128), c(256), c(256), c(256)), stride=2)
        # From here on, output stride 8 puts a rate of 2, then 4, in the place of strides.
        self.entry3 = XceptionBlock((c(256), c(728), c(728), c(728)))
        self.middle = nn.Sequential(
            *(XceptionBlock((c(728),) * 4, rate=2) for _ in range(config.middle_blocks))
        )
        self.exit1 = XceptionBlock((c(728), c(728), c(1024), c(1024)), rate=2)
        exits = [(c(1024), c(1536)), (c(1536), c(1536)), (c(1536), c(2048))]
        self.exit2 = nn.Sequential(
            *(
                nn.Sequential(SeparableConv(n_in, n_out, rate=4), nn.ReLU(inplace=True))
                for n_in, n_out in exits
            )
        )
        self.pyramid = AtrousPyramid(c(2048), c(256), config.dropout)
        self.low_level = ConvNormReLU(c(128), c(48))
        self.decoder = nn.Sequential(
            ConvNormReLU(c(256) + c(48), c(256)),
            nn.Dropout(config.dropout),
            ConvNormReLU(c(256), c(256)),
            nn.Dropout(min(config.dropout, 0.1)),  # silent, as in that release
        )
        self.head = nn.Conv2d(c(256), config.out_channels, kernel_size=1)
        use_norm(self, config.norm)

    def _channels(self, published: int) -> int:
        """Channels at this width of a layer that has `published` ones at width 32."""
        return max(1, round(published * self.config.width / 32))

    @property
    def taps(self) -> dict[str, tuple[int, int]]:
        """(channels, stride) of each tap by name."""
        return {"low": (self._channels(32), 2), "high": (self._channels(2048), 8)}

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        size = x.shape[2:]
        low = self.stem(x)  # B, 32, H/2, W/2
        quarter = self.entry1(self.stem2(low))  # B, 128, H/4, W/4
        eighth = self.entry3(self.entry2(quarter))  # B, 728, H/8, W/8
        high = self.exit2(F.relu(self.exit1(self.middle(eighth))))  # B, 2048, H/8, W/8
        detail = self.low_level(F.relu(quarter))  # B, 48, H/4, W/4
        context = self._resize(self.pyramid(high), detail.shape[2:])  # B, 256, H/4, W/4
        logits = self.head(self.decoder(torch.cat([context, detail], dim=1)))
        return self._resize(logits, size), {"low": low, "high": high}

    @staticmethod
    def _resize(x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, list(size), mode="bilinear", align_corners=True)
