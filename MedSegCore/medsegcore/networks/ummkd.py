"""UMMKD: unpaired multi-modal segmentation with shared kernels (Dou et al., IEEE TMI 2020).

Q. Dou, Q. Liu, P. A. Heng, B. Glocker, "Unpaired Multi-modal Segmentation via Knowledge
Distillation". Two networks, a 2D dilated one and a 3D U-Net, and one table that says what of
each of their parts the modalities share; its presets are the seven settings of section IV-B.

After the paper: the order convolution, normalisation, ReLU (section IV-A), the normalisation
layers (eq. 1), the settings, the parameter counts of tables I and II. The paper draws its layers
in figures 2 and 3 without a list: groups, widths, shortcuts and the head of the 2D network are
those of the authors' release. Their 3D release has 2.20 M parameters, not the 1916 K of table II;
`layout` "paper" is the U-Net whose counts are those of table II in every setting, "released"
that of the release. Where X and Y are cut follows from the counts, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What each modality has for itself in a part: (kernels, normalisation layers).
PER_MODALITY = {
    "none": (False, False),
    "norms": (False, True),
    "kernels": (True, False),
    "both": (True, True),
}
GROUPS = tuple(f"group{n}" for n in range(1, 11))
LEVELS = (
    *(f"encoder{n}" for n in (1, 2, 3, 4)),
    *(f"decoder{n}" for n in (3, 2, 1)),
)
NORMS = ("batch", "instance", "layer", "group")
LAYOUTS = ("paper", "released")


class Setting(NamedTuple):
    """One of the seven settings of section IV-B.

    Attributes:
        per_modality: what the modalities have for themselves in the parts named next; they
            share everything in all others.
        groups: parts of the 2D network.
        levels: parts of the 3D network.
        distilled: whether it is trained with the distillation loss (eq. 4).
    """

    per_modality: str
    groups: tuple[str, ...]
    levels: tuple[str, ...]
    distilled: bool


SETTINGS = {
    "individual": Setting("both", GROUPS, LEVELS, distilled=False),
    "joint": Setting("none", GROUPS, LEVELS, distilled=False),
    "joint+kd": Setting("none", GROUPS, LEVELS, distilled=True),
    "y": Setting("both", GROUPS[:4], LEVELS[:3], distilled=False),
    "x": Setting("both", GROUPS[:4] + GROUPS[7:], LEVELS[:3] + LEVELS[4:], distilled=False),
    "chilopod": Setting("norms", GROUPS, LEVELS, distilled=False),
    "ours": Setting("norms", GROUPS, LEVELS, distilled=True),
}


@dataclass(frozen=True)
class UMMKD2dConfig:
    """Settings of the 2D dilated network; the defaults are the paper's (39.34 M parameters).

    Attributes:
        in_channels: channels of one image: the slice and its two neighbours.
        out_channels: number of classes with the background.
        width: channels of the first part, even.
        modalities: number of modalities, which `forward` counts from 0.
        sharing: one of the seven SETTINGS, or a table from part to "none", "norms", "kernels" or
            "both": what each modality has for itself there. A part that is not named shares all.
        norm: "batch", "instance", "layer" or "group" (eq. 1 with its sets S of activations).
        norm_groups: groups of "group", has to divide the width. Silent; the release has 16.
        dropout: share of the activations that training drops. Silent; the release keeps 0.75.
        layout: "paper" (convolution, normalisation, ReLU) or "released" (normalisation,
            leaky ReLU, convolution).
        head_bias: a bias of the last convolution. Without it, what the features (after a ReLU)
            say nothing about has equal probabilities of all classes.
    """

    in_channels: int = 3
    out_channels: int = 5
    width: int = 16
    modalities: int = 2
    sharing: str | Mapping[str, str] = "ours"
    norm: str = "batch"
    norm_groups: int = 16
    dropout: float = 0.25
    layout: str = "paper"
    head_bias: bool = False

    dimensions: ClassVar[int] = 2
    parts: ClassVar[tuple[str, ...]] = GROUPS

    def __post_init__(self) -> None:
        # model.json may hold anything here, and torch's own words would not name the setting.
        for name in ("in_channels", "out_channels", "width", "modalities", "norm_groups"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r} but has to be a whole number above 0")
        if self.width % 2:
            raise ValueError(f"width is {self.width} but has to be even")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r} but has to lie from 0 to below 1")
        if type(self.head_bias) is not bool:
            raise ValueError(f"head_bias is {self.head_bias!r} but has to be true or false")
        for name, allowed in (("norm", NORMS), ("layout", LAYOUTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {list(allowed)}")
        if self.norm == "group" and self.width % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide width {self.width}")
        self._check_sharing()

    def _check_sharing(self) -> None:
        if not isinstance(self.sharing, Mapping):
            if not isinstance(self.sharing, str) or self.sharing not in SETTINGS:
                raise ValueError(f"sharing is {self.sharing!r}, not one of {list(SETTINGS)}")
            return
        for part, word in self.sharing.items():
            if part not in self.parts:
                raise ValueError(f"sharing has no part {part!r}, only {list(self.parts)}")
            if not isinstance(word, str) or word not in PER_MODALITY:
                raise ValueError(
                    f"sharing of {part!r} is {word!r}, not one of {list(PER_MODALITY)}"
                )

    def table(self) -> dict[str, str]:
        """What each modality has for itself, for every part, in the parts' order."""
        if isinstance(self.sharing, Mapping):
            given: Mapping[str, str] = self.sharing
        else:
            setting = SETTINGS[self.sharing]
            named = setting.groups if self.dimensions == 2 else setting.levels
            given = dict.fromkeys(named, setting.per_modality)
        return {part: given.get(part, "none") for part in self.parts}


@dataclass(frozen=True)
class UMMKD3dConfig(UMMKD2dConfig):
    """Settings of the 3D U-Net; the defaults have the parameters of table II (1919 K).

    Attributes:
        layout: "paper" (table II's counts, ReLU) or "released" (2.20 M, leaky ReLU).
        dropout: silent; the release drops nothing in 3D.
        head_bias: table II's counts have one.
    """

    in_channels: int = 1
    dropout: float = 0.0
    head_bias: bool = True

    dimensions: ClassVar[int] = 3
    parts: ClassVar[tuple[str, ...]] = LEVELS


class OneOrEach(nn.Module):
    """One module that the modalities share, or a copy for each (section III-A)."""

    def __init__(self, make: Callable[[], nn.Module], copies: int):
        super().__init__()
        self.copies = nn.ModuleList(make() for _ in range(copies))

    def forward(self, x: Tensor, modality: int) -> Tensor:
        return self.copies[modality if len(self.copies) > 1 else 0](x)


def normalisation(config: UMMKD2dConfig, channels: int) -> nn.Module:
    """Eq. 1: gamma and beta per channel; `config.norm` says over which set the moments go.

    With x [B, C, ...]: "batch" over B and space, "instance" over space, "group" over space and
    the channels of a group, "layer" over space and all channels.
    """
    flat = config.dimensions == 2
    if config.norm == "batch":
        # Silent about epsilon and the running moments; those of the release.
        batch = nn.BatchNorm2d if flat else nn.BatchNorm3d
        return batch(channels, eps=1e-3, momentum=0.1)
    if config.norm == "instance":
        instance = nn.InstanceNorm2d if flat else nn.InstanceNorm3d
        return instance(channels, affine=True)
    return nn.GroupNorm(1 if config.norm == "layer" else config.norm_groups, channels)


class Part:
    """Builds the layers of one named part: how many copies its kernels and norms have."""

    def __init__(self, config: UMMKD2dConfig, name: str):
        kernels, norms = PER_MODALITY[config.table()[name]]
        self.config = config
        self.kernel_copies = config.modalities if kernels else 1
        self.norm_copies = config.modalities if norms else 1

    def kernel(self, make: Callable[..., nn.Module], *args: Any, **settings: Any) -> OneOrEach:
        """The convolution make(*args, **settings), shared or one for each modality."""
        return OneOrEach(lambda: make(*args, **settings), self.kernel_copies)

    def norm(self, channels: int) -> OneOrEach:
        """The normalisation of that many channels, shared or one for each modality."""
        return OneOrEach(lambda: normalisation(self.config, channels), self.norm_copies)


# The steps of a layer. "sum" ends the branch of a residual block, whose ReLU follows the sum.
POST = {
    "first": ("conv", "norm", "relu"),
    "inner": ("conv", "norm", "relu", "dropout"),
    "sum": ("conv", "norm", "dropout"),
}
PRE = {
    "first": ("conv",),
    "inner": ("norm", "relu", "conv", "dropout"),
    "sum": ("norm", "relu", "conv", "dropout"),
}
ORDERS = {"paper": POST, "released": PRE}


class Layer(nn.Module):
    """Convolution, normalisation (eq. 1), ReLU and dropout in the order that `steps` names.

    Args:
        part: the part that the layer belongs to.
        kernel: the convolution.
        channels: number of channels (in, out) of the convolution.
        steps: of "conv", "norm", "relu" and "dropout".
        slope: of the ReLU below 0.
    """

    def __init__(
        self,
        part: Part,
        kernel: OneOrEach,
        channels: tuple[int, int],
        steps: tuple[str, ...],
        slope: float,
    ):
        super().__init__()
        self.steps = steps
        self.slope = slope
        self.kernel = kernel
        if "norm" in steps:
            before = steps.index("norm") < steps.index("conv")
            self.norm = part.norm(channels[0] if before else channels[1])
        self.dropout = nn.Dropout(part.config.dropout)

    def forward(self, x: Tensor, modality: int) -> Tensor:
        for step in self.steps:
            if step == "conv":
                x = self.kernel(x, modality)
            elif step == "norm":
                x = self.norm(x, modality)
            elif step == "relu":
                x = F.leaky_relu(x, self.slope)
            else:
                x = self.dropout(x)
        return x


class Chain(nn.ModuleList):
    """Layers and blocks one after the other."""

    def forward(self, x: Tensor, modality: int) -> Tensor:
        for layer in self:
            x = layer(x, modality)
        return x


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """x [B, C, ...] without what lies behind `size`."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


class Network(nn.Module):
    """What both networks do around their layers: padding, cropping, attention.

    A size that is no multiple of 8 is filled with zeros behind its end, as the convolutions fill
    beyond the edge, and the output is cropped to the size of the input.
    """

    multiple = 8
    # Stages whose sum of squared features over the channels is shown, the last at full size.
    stages: ClassVar[dict[str, str]]

    def __init__(self, config: UMMKD2dConfig):
        super().__init__()
        self.config = config
        self.dimensions = config.dimensions

    @property
    def attention(self) -> list[dict[str, str | None]]:
        """What `forward(x, with_attention=True)` gives: key, kind, title, axis."""
        return [
            {"key": key, "kind": "spatial", "title": title, "axis": None}
            for key, title in self.stages.items()
        ]

    def forward(
        self, x: Tensor, modality: int = 0, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """x [B, C, ...] of one modality -> logits [B, classes, ...] of the same size."""
        if not 0 <= modality < self.config.modalities:
            raise ValueError(
                f"modality is {modality} but the network has {self.config.modalities}, from 0"
            )
        size = x.shape[2:]
        missing = [-n % self.multiple for n in size]
        if any(missing):
            x = F.pad(x, [n for high in reversed(missing) for n in (0, high)])
        logits, features = self._run(x, modality)
        logits = cropped(logits, size)
        if not with_attention:
            return logits
        maps = {key: features[key].float().square().sum(dim=1, keepdim=True) for key in self.stages}
        last = list(self.stages)[-1]
        maps[last] = cropped(maps[last], size)
        return logits, maps

    def _run(self, x: Tensor, modality: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x, each side a multiple of 8 -> logits, {stage: features}."""
        raise NotImplementedError


# The 2D dilated network of figure 2.


class Group(NamedTuple):
    """Residual blocks of one group: their number, channels (times the width), dilation, pooling."""

    blocks: int
    channels: int
    dilation: int = 1
    pooled: bool = False


RESIDUAL_GROUPS = {
    "group1": Group(1, 1, pooled=True),  # after a first convolution
    "group2": Group(1, 2, pooled=True),
    "group3": Group(2, 4, pooled=True),
    "group4": Group(2, 8),
    "group5": Group(2, 16),
    "group6": Group(2, 16),
    "group7": Group(2, 32),
    "group8": Group(2, 32, dilation=2),
}
SHUFFLE = 8  # what three poolings take away, group10's pixel shuffle gives back


def symmetric_pad(x: Tensor, margin: int) -> Tensor:
    """Mirror the last two axes of x beyond their ends, the end itself included."""
    for axis in (-2, -1):
        low, high = x.narrow(axis, 0, margin), x.narrow(axis, x.shape[axis] - margin, margin)
        x = torch.cat([low.flip(axis), x, high.flip(axis)], dim=axis)
    return x


class SymmetricConv2d(nn.Conv2d):
    """Convolution of an odd size that sees the image mirrored beyond its edge."""

    def __init__(self, n_in: int, n_out: int, size: int, bias: bool = False):
        super().__init__(n_in, n_out, kernel_size=size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(symmetric_pad(x, self.kernel_size[0] // 2))


def layer_2d(part: Part, n_in: int, n_out: int, place: str = "inner", dilation: int = 1) -> Layer:
    """A 3x3 layer without bias; `place` is "first", "inner" or "sum"."""
    released = part.config.layout == "released"
    kernel = part.kernel(
        nn.Conv2d, n_in, n_out, kernel_size=3, padding=dilation, dilation=dilation, bias=False
    )
    steps = ORDERS[part.config.layout][place]
    return Layer(part, kernel, (n_in, n_out), steps, slope=0.2 if released else 0.0)


class ResidualBlock(nn.Module):
    """Two layers and a shortcut, which new channels enter as zeros, half in front, half behind."""

    def __init__(self, part: Part, n_in: int, n_out: int, dilation: int):
        super().__init__()
        self.grow = (n_out - n_in) // 2
        self.branch = Chain(
            [
                layer_2d(part, n_in, n_out, "inner", dilation),
                layer_2d(part, n_out, n_out, "sum", dilation),
            ]
        )
        self.ends_with_relu = part.config.layout == "paper"

    def forward(self, x: Tensor, modality: int) -> Tensor:
        shortcut = F.pad(x, (0, 0, 0, 0, self.grow, self.grow))
        x = shortcut + self.branch(x, modality)
        return F.relu(x) if self.ends_with_relu else x


class UMMKD2d(Network):
    """2D dilated network of figure 2: eight residual groups, two layers, a pixel-shuffle head.

    Input [B, in_channels, H, W]: a slice and its neighbours; any size, best a multiple of 8.
    Output: logits [B, out_channels, H, W] of the middle slice.
    Attention: sum over channels of the squared features of "group9" [B, 1, H/8, W/8], rounded
    up, and of "group10" [B, 1, H, W].
    """

    stages = {
        "group9": "Activation before the upsampling",
        "group10": "Activation before the classifier",
    }

    def __init__(self, config: UMMKD2dConfig):
        super().__init__(config)
        self.groups = nn.ModuleDict()
        width = n_in = config.width
        for name, group in RESIDUAL_GROUPS.items():
            part, n_out = Part(config, name), group.channels * width
            chain = Chain()
            if name == "group1":
                chain.append(layer_2d(part, config.in_channels, n_in, "first"))
            for _ in range(group.blocks):
                chain.append(ResidualBlock(part, n_in, n_out, group.dilation))
                n_in = n_out
            self.groups[name] = chain
        part = Part(config, "group9")
        self.groups["group9"] = Chain(layer_2d(part, n_in, n_in) for _ in range(2))
        part = Part(config, "group10")
        # Silent; the release keeps eight channels a class at its width of 16.
        kept = config.out_channels * (width // 2)
        spread = SHUFFLE**2 * kept
        kernel = part.kernel(SymmetricConv2d, n_in, spread, size=3)
        self.groups["group10"] = Chain([Layer(part, kernel, (n_in, spread), POST["first"], 0.0)])
        self.out = part.kernel(
            SymmetricConv2d, kept, config.out_channels, size=5, bias=config.head_bias
        )

    def _run(self, x: Tensor, modality: int) -> tuple[Tensor, dict[str, Tensor]]:
        for name, group in RESIDUAL_GROUPS.items():
            x = self.groups[name](x, modality)  # B, channels, H, W
            if group.pooled:
                x = F.max_pool2d(x, 2)
        deep = self.groups["group9"](x, modality)  # B, 32w, H/8, W/8
        x = self.groups["group10"](deep, modality)  # B, 64 * C * w/2, H/8, W/8
        x = F.pixel_shuffle(x, SHUFFLE)  # B, C * w/2, H, W
        return self.out(x, modality), {"group9": deep, "group10": x}


# The 3D U-Net of figure 3. Kernels are (depth, height, width); the paper's 3x3x1 is (1, 3, 3).


class Convs(NamedTuple):
    """Convolutions one after the other: the channels of each (times the width) and their kernel."""

    channels: tuple[int, ...]
    kernel: tuple[int, int, int]


CUBE, FLAT = (3, 3, 3), (1, 3, 3)
ENCODER = {
    "encoder1": Convs((1, 2), CUBE),
    "encoder2": Convs((2, 4), CUBE),
    "encoder3": Convs((4, 8), FLAT),
    "encoder4": Convs((8, 16), FLAT),
}
DECODER = {
    "decoder3": Convs((8, 8), FLAT),
    "decoder2": Convs((4, 4), CUBE),
    "decoder1": Convs((2, 2), CUBE),
}
# What leads up to a level of the decoder.
UPS = {
    "paper": {
        "decoder3": Convs((16,), (1, 1, 1)),
        "decoder2": Convs((8,), (1, 2, 2)),
        "decoder1": Convs((2,), (2, 2, 2)),
    },
    "released": {
        "decoder3": Convs((8,), FLAT),
        "decoder2": Convs((8,), FLAT),
        "decoder1": Convs((4,), CUBE),
    },
}


class UpConv3d(nn.Module):
    """Doubles every axis: a transposed convolution with stride 2 (3D U-Net), without bias.

    Silent in the paper. An axis on which the kernel is 1 is doubled by repetition, because a
    transposed convolution would leave every second voxel empty; `holes` leaves them so, as the
    release does. A kernel of 3 makes one voxel too many, which is cut at the high end.
    """

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int, int], holes: bool):
        super().__init__()
        s = [2 if k > 1 or holes else 1 for k in kernel]
        extra = [int(k == 1 and holes) for k in kernel]
        self.repeats = [2 // n for n in s]
        self.conv = nn.ConvTranspose3d(
            n_in,
            n_out,
            kernel,
            stride=(s[0], s[1], s[2]),
            output_padding=(extra[0], extra[1], extra[2]),
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        size = [2 * n for n in x.shape[2:]]
        x = self.conv(x)
        for axis, repeats in enumerate(self.repeats, start=2):
            x = x.repeat_interleave(repeats, dim=axis) if repeats > 1 else x
        return cropped(x, size)


def level_3d(part: Part, n_in: int, plan: Convs, slope: float) -> Chain:
    """The two layers of a level, without bias."""
    chain = Chain()
    padding = tuple(k // 2 for k in plan.kernel)
    for factor in plan.channels:
        n_out = factor * part.config.width
        kernel = part.kernel(nn.Conv3d, n_in, n_out, plan.kernel, padding=padding, bias=False)
        chain.append(Layer(part, kernel, (n_in, n_out), POST["inner"], slope))
        n_in = n_out
    return chain


class UMMKD3d(Network):
    """3D U-Net of figure 3: four levels, flat kernels at the lower two.

    Input [B, in_channels, D, H, W], in the paper 8 x 256 x 256; any size, best a multiple of 8.
    Output: logits [B, out_channels, D, H, W].
    Attention: sum over channels of the squared features of "encoder4" [B, 1, D/8, H/8, W/8],
    rounded up, and of "decoder1" [B, 1, D, H, W].
    """

    stages = {
        "encoder4": "Activation of the lowest level",
        "decoder1": "Activation before the classifier",
    }

    def __init__(self, config: UMMKD3dConfig):
        super().__init__(config)
        released = config.layout == "released"
        slope, width = 0.2 if released else 0.0, config.width
        self.levels = nn.ModuleDict()
        self.ups = nn.ModuleDict()
        n_in, skips = config.in_channels, []
        for name, plan in ENCODER.items():
            self.levels[name] = level_3d(Part(config, name), n_in, plan, slope)
            n_in = plan.channels[1] * width
            skips.append(n_in)
        skips.pop()
        for name, plan in DECODER.items():
            up, part = UPS[config.layout][name], Part(config, name)
            n_up = up.channels[0] * width
            kernel = part.kernel(UpConv3d, n_in, n_up, up.kernel, holes=released)
            self.ups[name] = Layer(part, kernel, (n_in, n_up), POST["first"], slope)
            self.levels[name] = level_3d(part, n_up + skips.pop(), plan, slope)
            n_in = plan.channels[1] * width
        self.out = Part(config, "decoder1").kernel(
            nn.Conv3d, n_in, config.out_channels, kernel_size=1, bias=config.head_bias
        )

    def _run(self, x: Tensor, modality: int) -> tuple[Tensor, dict[str, Tensor]]:
        skips: list[Tensor] = []
        for name in ENCODER:
            x = F.max_pool3d(x, 2) if skips else x
            x = self.levels[name](x, modality)
            skips.append(x)
        deep = skips.pop()  # B, 16w, D/8, H/8, W/8
        for name in DECODER:
            x = torch.cat([self.ups[name](x, modality), skips.pop()], dim=1)
            x = self.levels[name](x, modality)
        return self.out(x, modality), {"encoder4": deep, "decoder1": x}  # B, 2w, D, H, W
