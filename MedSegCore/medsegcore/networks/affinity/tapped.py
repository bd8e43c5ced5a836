"""What the five networks share: named feature taps, attention maps from them, any input size."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

TITLES = {"low": "Low-level features", "high": "High-level features"}


def require_whole_numbers(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError for a field that is not a whole number of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r} but has to be a whole number above {least - 1}")


def require_shares(config: Any, *names: str) -> None:
    """Raise ValueError for a field that is not a number from 0 to below 1."""
    for name in names:
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f"{name} is {value!r} but has to lie from 0 to below 1")


def colour_channels(in_channels: int) -> int:
    """Channels that a stem made for colour images sees: a single grey one is repeated to 3."""
    return 3 if in_channels == 1 else in_channels


def as_colour(x: Tensor) -> Tensor:
    """x [B, 1, H, W] -> [B, 3, H, W]; any other number of channels stays as it is."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


class TappedNetwork(nn.Module):
    """A 2D network whose low (stride 2) and high (stride 8) features have names.

    A subclass gives `taps` and `run`. Sizes that are no multiple of `multiple` are padded on the
    right and at the bottom by repeating the border; what comes out is cut back. Padding with
    zeros would draw an edge that is not in the image.

    Attention: "low" and "high", the sum over channels of the squared features of each tap
    [B, 1, ceil(H / stride), ceil(W / stride)].
    """

    dimensions = 2
    multiple = 8

    @property
    def taps(self) -> dict[str, tuple[int, int]]:
        """(channels, stride) of each tap by name."""
        raise NotImplementedError

    @property
    def attention(self) -> list[dict[str, str | None]]:
        """What `forward(x, with_attention=True)` gives: key, kind, title, axis."""
        return [
            {"key": name, "kind": "spatial", "title": TITLES[name], "axis": None}
            for name in self.taps
        ]

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, in, H, W], H and W multiples of `multiple` -> (logits [B, out, H, W], taps)."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, in, H, W] -> (logits [B, out, H, W], {tap: [B, C, ceil(H/s), ceil(W/s)]})."""
        height, width = x.shape[2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        logits, features = self.run(x)
        cut = {}
        for name, feature in features.items():
            stride = self.taps[name][1]
            cut[name] = feature[:, :, : -(-height // stride), : -(-width // stride)]
        return logits[:, :, :height, :width], cut

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        logits, features = self.forward_features(x)
        if not with_attention:
            return logits
        return logits, {
            name: feature.float().square().sum(dim=1, keepdim=True)
            for name, feature in features.items()
        }
