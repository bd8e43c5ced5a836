"""RSANet: recurrent slice-wise attention in a 3D U-Net (Zhang et al., MICCAI 2019).

"RSANet: Recurrent Slice-wise Attention Network for Multiple Sclerosis Lesion Segmentation".
The backbone's layers are not in the paper; they follow the authors' release.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.networks.blocks import NonLocalBlock3d

# The axis of [B, C, D, H, W] that a direction's slices are counted along, on a grid in RAS
# orientation, in the paper's order (section 2.2: sagittal, then coronal, then axial).
DIRECTIONS = {"sagittal": 4, "coronal": 3, "axial": 2}

# Which of (encoder above the bottom, bottom, decoder above the bottom) hold a block (section 3.1).
PLACEMENTS = {
    "000": (),
    "010": ("bottom",),
    "101": ("encoder", "decoder"),
    "111": ("encoder", "bottom", "decoder"),
}


@dataclass(frozen=True)
class RSANetConfig:
    """Settings of RSANet; the defaults are the published network (24.55 M parameters).

    Attributes:
        in_channels: number of input images (T1, T2, FLAIR).
        out_channels: number of classes with the background.
        width: channels of the first level; each of the five levels doubles them.
        block: "rsa" or, as the paper's comparison, "nonlocal".
        placement: "000", "010", "101" or "111"; "010" is a block at the bottom alone.
        norm: "group" as in the release; "batch" for training on small patches: the statistics of
            a group normalisation hold the lesions' share of the patch or tile, those of a batch
            normalisation do not, once it is trained.
        norm_groups: groups of each group normalisation; has to divide the width.
        dropout: share of the stem's channels that training drops.
        head_bias: a bias of the last convolution, which the release has not. Without it, a lesion
            that the features (after a ReLU) say nothing about has a probability of a half at
            most, and a training may stay there.
    """

    in_channels: int = 3
    out_channels: int = 2
    width: int = 32
    block: str = "rsa"
    placement: str = "010"
    norm: str = "group"
    norm_groups: int = 8
    dropout: float = 0.2
    head_bias: bool = False

    def __post_init__(self) -> None:
        # model.json may hold anything here, and torch's own words would not name the setting.
        for name in ("in_channels", "out_channels", "width", "norm_groups"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r} but has to be a whole number above 0")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r} but has to lie from 0 to below 1")
        if type(self.head_bias) is not bool:
            raise ValueError(f"head_bias is {self.head_bias!r} but has to be true or false")
        if self.block not in ("rsa", "nonlocal"):
            raise ValueError(f"block is {self.block!r} but has to be 'rsa' or 'nonlocal'")
        if not isinstance(self.placement, str) or self.placement not in PLACEMENTS:
            raise ValueError(f"placement is {self.placement!r}, not one of {list(PLACEMENTS)}")
        if self.norm not in ("group", "batch"):
            raise ValueError(f"norm is {self.norm!r} but has to be 'group' or 'batch'")
        if self.norm == "group" and self.width % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide width {self.width}")


def slice_attention(theta: Tensor, phi: Tensor, value: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Eq. 1 and the product A M_3 of eq. 2, along one axis, in fp32.

    Args:
        theta, phi, value: M_2, M_1 and M_3 before their reshaping, each [B, C, D, H, W].
        axis: 2, 3 or 4: the axis whose L slices attend to each other.

    Returns:
        (A M_3 in the shape of `value`, A [B, L, L]); each row of A sums to 1. There is no
        1/sqrt scaling in eq. 1, and the dot products run over C and both other axes, so the
        logits are large: half precision would overflow.
    """
    with torch.autocast(theta.device.type, enabled=False):
        rows = theta.float().movedim(axis, 1).flatten(2)  # B, L, C*rest
        columns = phi.float().movedim(axis, 1).flatten(2)  # B, L, C*rest
        attention = torch.softmax(rows @ columns.transpose(1, 2), dim=-1)  # B, L, L
        moved = value.float().movedim(axis, 1)  # B, L, C, rest
        gathered = (attention @ moved.flatten(2)).reshape(moved.shape).movedim(1, axis)
    return gathered, attention


class RSABlock(nn.Module):
    """Recurrent slice-wise attention block (section 2.2): three SA blocks, one after the other.

    The three 1x1x1 kernels are shared by the directions and applied anew to what the direction
    before has made; each direction has its own alpha, which starts at 0 (eq. 2).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.theta = nn.Conv3d(channels, channels, kernel_size=1)
        self.phi = nn.Conv3d(channels, channels, kernel_size=1)
        self.g = nn.Conv3d(channels, channels, kernel_size=1)
        self.alpha = nn.ParameterDict(
            {direction: nn.Parameter(torch.zeros(())) for direction in DIRECTIONS}
        )

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, C, D, H, W] -> E of the same shape, {direction: A [B, L, L] fp32}."""
        attention = {}
        for direction, axis in DIRECTIONS.items():
            gathered, attention[direction] = slice_attention(
                self.theta(x), self.phi(x), self.g(x), axis
            )
            x = self.alpha[direction] * gathered.to(x.dtype) + x  # eq. 2
        return x, attention


class Level(nn.Module):
    """Two times conv 3x3x3, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, config: RSANetConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            _norm(out_channels, config),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            _norm(out_channels, config),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _norm(channels: int, config: RSANetConfig) -> nn.Module:
    if config.norm == "batch":
        return nn.BatchNorm3d(channels)
    return nn.GroupNorm(config.norm_groups, channels)


class Up(nn.Module):
    """Halve the channels, double the size, concatenate the skip, then a `Level`."""

    def __init__(self, in_channels: int, config: RSANetConfig):
        super().__init__()
        half = in_channels // 2
        self.reduce = nn.Conv3d(in_channels, half, kernel_size=1, bias=False)
        self.level = Level(2 * half, half, config)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.reduce(x), scale_factor=2, mode="nearest")
        missing = [s - n for s, n in zip(skip.shape[2:], x.shape[2:], strict=True)]
        # An odd size makes the doubled one larger by a voxel: the low side is padded or cut.
        x = F.pad(x, [n for low in reversed(missing) for n in (low, 0)])
        return self.level(torch.cat([skip, x], dim=1))


class RSANet(nn.Module):
    """3D U-Net of five levels with RSA (or non-local) blocks at or next to the bottom.

    Input [B, in_channels, D, H, W] on a grid in RAS orientation, so that D, H and W are the
    axial, coronal and sagittal slices; any size, best a multiple of 16.
    Output: logits [B, out_channels, D, H, W].
    Attention: "<place>_<direction>" slice matrices [B, L, L] of each RSA block, or
    "<place>_nonlocal" [B, 1, D', H', W'], how much the whole image takes from a voxel; and
    "decoder", the sum over channels of the squared features of the last level [B, 1, D, H, W].
    """

    dimensions = 3
    multiple = 16

    def __init__(self, config: RSANetConfig):
        super().__init__()
        self.config = config
        widths = [config.width * 2**level for level in range(5)]
        self.stem = nn.Conv3d(config.in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout3d(config.dropout)
        self.encoder = nn.ModuleList(
            Level(n_in, n_out, config)
            for n_in, n_out in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Conv3d(n, n, kernel_size=3, stride=2, padding=1, bias=False) for n in widths[:-1]
        )
        self.decoder = nn.ModuleList(Up(n, config) for n in reversed(widths[1:]))
        self.head = nn.Sequential(
            nn.Conv3d(widths[0], widths[0], kernel_size=3, padding=1, bias=False),
            nn.Conv3d(widths[0], config.out_channels, kernel_size=1, bias=config.head_bias),
        )
        make = RSABlock if config.block == "rsa" else NonLocalBlock3d
        channels = {"encoder": widths[-2], "bottom": widths[-1], "decoder": widths[-2]}
        self.blocks = nn.ModuleDict(
            {place: make(channels[place]) for place in PLACEMENTS[config.placement]}
        )

    @property
    def attention(self) -> list[dict[str, str | None]]:
        """What `forward(x, with_attention=True)` gives: key, kind, title, axis."""
        maps: list[dict[str, str | None]] = []
        for place in self.blocks:
            if self.config.block == "rsa":
                maps += [
                    {
                        "key": f"{place}_{direction}",
                        "kind": "slice",
                        "title": f"Slice attention, {direction} ({place})",
                        "axis": direction,
                    }
                    for direction in DIRECTIONS
                ]
            else:
                title = f"Non-local attention received ({place})"
                maps.append(
                    {"key": f"{place}_nonlocal", "kind": "spatial", "title": title, "axis": None}
                )
        maps.append(
            {"key": "decoder", "kind": "spatial", "title": "Decoder activation", "axis": None}
        )
        return maps

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        attention: dict[str, Tensor] = {}
        x = self.dropout(self.stem(x))
        skips = []
        for depth, level in enumerate(self.encoder):
            x = level(x)
            if depth == 3:
                x = self._attend("encoder", x, attention)
            if depth < 4:
                skips.append(x)
                x = self.down[depth](x)
        x = self._attend("bottom", x, attention)
        for depth, up in enumerate(self.decoder):
            x = up(x, skips.pop())
            if depth == 0:
                x = self._attend("decoder", x, attention)
        logits = self.head(x)
        if not with_attention:
            return logits
        attention["decoder"] = x.float().square().sum(dim=1, keepdim=True)
        return logits, attention

    def _attend(self, place: str, x: Tensor, attention: dict[str, Tensor]) -> Tensor:
        if place not in self.blocks:
            return x
        x, weights = self.blocks[place](x)
        if isinstance(weights, dict):
            attention.update({f"{place}_{direction}": a for direction, a in weights.items()})
        else:
            received = weights.mean(dim=1).reshape(x.shape[0], 1, *x.shape[2:])
            attention[f"{place}_nonlocal"] = received
        return x
