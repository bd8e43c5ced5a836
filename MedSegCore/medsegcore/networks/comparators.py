"""Networks that the papers measure against: U-Net, MultiResUNet, HyperDenseNet, fusion U-Nets.

They follow the descriptions of their own papers as far as these go; U-Net is MONAI's. Each
declares the sum over channels of the squared features before its last layer as attention, since
none has attention of its own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECODER_MAP: dict[str, str | None] = {
    "key": "decoder", "kind": "spatial", "title": "Decoder activation", "axis": None,
}  # fmt: skip
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def activation_map(features: Tensor) -> Tensor:
    """[B, C, ...] -> [B, 1, ...]: sum over channels of the squares, fp32."""
    return features.float().square().sum(dim=1, keepdim=True)


def check_counts(config: object, *names: str) -> None:
    """Raise ValueError when one of these fields is no whole number above 0."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r} but has to be a whole number above 0")


def check_dimensions(dimensions: object) -> None:
    """Raise ValueError unless 2 or 3."""
    if dimensions not in (2, 3):
        raise ValueError(f"dimensions is {dimensions!r} but has to be 2 or 3")


@dataclass(frozen=True)
class UNetConfig:
    """Settings of the U-Net (Ronneberger et al., MICCAI 2015; Cicek et al., MICCAI 2016).

    Attributes:
        in_channels: number of input images; one is the single-modality comparator, several
            concatenated are the multi-modality one (early fusion).
        out_channels: number of classes with the background.
        width: channels of the first of five levels; each doubles them.
        dimensions: 2 or 3.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 64
    dimensions: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "out_channels", "width")
        check_dimensions(self.dimensions)


class UNet(nn.Module):
    """MONAI's BasicUNet with batch normalisation.

    Input [B, in_channels, (D,) H, W], any size; output logits of the same size.
    """

    multiple = 16
    attention = (DECODER_MAP,)

    def __init__(self, config: UNetConfig):
        super().__init__()
        # MONAI takes seconds to import and is not needed for the other networks.
        from monai.networks.nets import BasicUNet

        self.config = config
        self.dimensions = config.dimensions
        widths = [config.width * 2**level for level in range(5)]
        self.layers = BasicUNet(
            spatial_dims=config.dimensions, in_channels=config.in_channels,
            out_channels=config.out_channels, features=(*widths, config.width), norm="batch",
        )  # fmt: skip

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        features: list[Tensor] = []
        padded = padded_to(x, self.multiple)
        last = self.layers.final_conv
        hook = last.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        try:
            logits = cropped_to(self.layers(padded), x)
        finally:
            hook.remove()
        if not with_attention:
            return logits
        return logits, {"decoder": cropped_to(activation_map(features[0]), x)}


def padded_to(x: Tensor, multiple: int) -> Tensor:
    """x with zeros after each spatial axis up to a multiple."""
    pad = [n for size in reversed(x.shape[2:]) for n in (0, -size % multiple)]
    return F.pad(x, pad) if any(pad) else x


def cropped_to(y: Tensor, x: Tensor) -> Tensor:
    """The part of y that `padded_to` did not add to x."""
    return y[(slice(None), slice(None), *(slice(0, n) for n in x.shape[2:]))]


# MultiResUNet


@dataclass(frozen=True)
class MultiResUNetConfig:
    """Settings of MultiResUNet (Ibtehaz and Rahman, Neural Networks 2020).

    Attributes:
        in_channels, out_channels: images; classes with the background.
        width: U of the first of five levels.
        alpha: of W = alpha U, the filters of a MultiRes block.
        dimensions: 2 or 3.
    """

    in_channels: int = 1
    out_channels: int = 2
    width: int = 32
    alpha: float = 1.67
    dimensions: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "out_channels", "width")
        check_dimensions(self.dimensions)
        if not isinstance(self.alpha, int | float) or self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha!r} but has to be above 0")


def _conv(dims: int, n_in: int, n_out: int, kernel: int, relu: bool = True) -> nn.Sequential:
    """Convolution, normalisation and, if wanted, ReLU."""
    layers = [CONV[dims](n_in, n_out, kernel, padding=kernel // 2), NORM[dims](n_out)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class MultiResBlock(nn.Module):
    """Three 3x3 convolutions in a row (seen as 3x3, 5x5 and 7x7), concatenated, with a shortcut.

    W/6, W/3 and W/2 filters with W = alpha U (section 3.2 of that paper).
    """

    def __init__(self, dims: int, n_in: int, u: int, alpha: float):
        super().__init__()
        w = alpha * u
        widths = [max(int(w * share), 1) for share in (0.167, 0.333, 0.5)]
        self.channels = sum(widths)
        self.steps = nn.ModuleList(
            _conv(dims, a, b, 3) for a, b in zip([n_in, *widths[:-1]], widths, strict=True)
        )
        self.norm = NORM[dims](self.channels)
        self.shortcut = _conv(dims, n_in, self.channels, 1, relu=False)
        self.after = NORM[dims](self.channels)

    def forward(self, x: Tensor) -> Tensor:
        outs, step = [], x
        for layer in self.steps:
            step = layer(step)
            outs.append(step)
        joined = self.norm(torch.cat(outs, dim=1))
        return self.after(F.relu(joined + self.shortcut(x)))


class ResPath(nn.Module):
    """The skip connection: `length` times a 3x3 convolution beside a 1x1 one (section 3.3)."""

    def __init__(self, dims: int, n_in: int, n_out: int, length: int):
        super().__init__()
        pairs = list(itertools.pairwise([n_in] + [n_out] * length))
        self.main = nn.ModuleList(_conv(dims, a, b, 3) for a, b in pairs)
        self.shortcut = nn.ModuleList(_conv(dims, a, b, 1, relu=False) for a, b in pairs)
        self.after = nn.ModuleList(NORM[dims](b) for _, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for main, shortcut, after in zip(self.main, self.shortcut, self.after, strict=True):
            x = after(F.relu(main(x) + shortcut(x)))
        return x


class MultiResUNet(nn.Module):
    """U-Net of MultiRes blocks with ResPaths of lengths 4, 3, 2, 1.

    Input [B, in_channels, (D,) H, W], any size; output logits of the same size.
    """

    multiple = 16
    attention = (DECODER_MAP,)

    def __init__(self, config: MultiResUNetConfig):
        super().__init__()
        self.config = config
        self.dimensions = dims = config.dimensions
        us = [config.width * 2**level for level in range(5)]
        self.encoder, self.paths = nn.ModuleList(), nn.ModuleList()
        channels = config.in_channels
        for level, u in enumerate(us):
            block = MultiResBlock(dims, channels, u, config.alpha)
            self.encoder.append(block)
            channels = block.channels
            if level < 4:
                self.paths.append(ResPath(dims, channels, u, 4 - level))
        self.pool = POOL[dims](2)
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for u in reversed(us[:-1]):
            self.ups.append(UP[dims](channels, u, 2, stride=2))
            block = MultiResBlock(dims, 2 * u, u, config.alpha)
            self.decoder.append(block)
            channels = block.channels
        self.head = CONV[dims](channels, config.out_channels, 1)

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        given, skips = x, []
        x = padded_to(x, self.multiple)
        for level, block in enumerate(self.encoder):
            x = block(x)
            if level < 4:
                skips.append(self.paths[level](x))
                x = self.pool(x)
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(torch.cat([up(x), skips.pop()], dim=1))
        logits = cropped_to(self.head(x), given)
        return (
            (logits, {"decoder": cropped_to(activation_map(x), given)})
            if with_attention
            else logits
        )


# HyperDenseNet


@dataclass(frozen=True)
class HyperDenseNetConfig:
    """Settings of HyperDenseNet (Dolz et al., IEEE TMI 38(5), 2018).

    Attributes:
        in_channels: number of input images, each with a path of its own.
        out_channels: number of classes with the background.
        width: channels of the first three layers of a path; the next three have twice, the last
            three have thrice as many.
        dimensions: 2 or 3.
    """

    in_channels: int = 2
    out_channels: int = 2
    width: int = 25
    dimensions: int = 3

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "out_channels", "width")
        check_dimensions(self.dimensions)


class HyperDenseNet(nn.Module):
    """One path per image; every layer takes all earlier layers of all paths, its own path first.

    Nine 3x3x3 convolutions per path, each after normalisation and PReLU, then 1x1x1 layers of
    16, 8 and 6 times `width` (400, 200, 150). The published convolutions are valid, so that a
    patch of 27 gives an answer of 9; these keep the size, so that any size goes in and comes out.
    As in the authors' release, the 1x1x1 layers take what every path's next layer would take, so
    that each feature comes once per path.

    Input [B, in_channels, (D,) H, W]; output logits of the same size.
    """

    multiple = 1
    attention = (DECODER_MAP,)

    def __init__(self, config: HyperDenseNetConfig):
        super().__init__()
        self.config = config
        self.dimensions = dims = config.dimensions
        paths = config.in_channels
        widths = [config.width * factor for factor in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
        self.paths = nn.ModuleList()
        for _ in range(paths):
            # The first layer sees its own image alone.
            layers: list[nn.Module] = [CONV[dims](1, widths[0], 3, padding=1)]
            n_in = paths * widths[0]
            for width in widths[1:]:
                layers.append(_dense_layer(dims, n_in, width, 3))
                n_in += paths * width
            self.paths.append(nn.ModuleList(layers))
        sizes = [paths * n_in, 16 * config.width, 8 * config.width, 6 * config.width]
        self.mix = nn.Sequential(
            *(_dense_layer(dims, a, b, 1) for a, b in itertools.pairwise(sizes))
        )
        self.head = CONV[dims](sizes[-1], config.out_channels, 1)

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        first, *rest = zip(*self.layers_by_path(), strict=True)
        features = [[layer(x[:, n : n + 1])] for n, layer in enumerate(first)]
        for layers in rest:
            outs = [
                layer(torch.cat(_own_first(features, n), dim=1)) for n, layer in enumerate(layers)
            ]
            for path_features, out in zip(features, outs, strict=True):
                path_features.append(out)
        ends = [f for n in range(len(self.paths)) for f in _own_first(features, n)]
        mixed = self.mix(torch.cat(ends, dim=1))
        logits = self.head(mixed)
        return (logits, {"decoder": activation_map(mixed)}) if with_attention else logits

    def layers_by_path(self) -> list[list[nn.Module]]:
        """The nine layers of each path."""
        return [list(path.children()) for path in self.paths]


def _dense_layer(dims: int, n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    """Pre-activation: normalisation, PReLU, convolution."""
    return nn.Sequential(
        NORM[dims](n_in), nn.PReLU(), CONV[dims](n_in, n_out, kernel, padding=kernel // 2)
    )


def _own_first(features: Sequence[Sequence[Tensor]], path: int) -> list[Tensor]:
    """Layer by layer, the path's own output before those of the others in turn."""
    order = [(path + n) % len(features) for n in range(len(features))]
    return [layer[n] for layer in zip(*features, strict=True) for n in order]


# U-Nets with an encoder per image


@dataclass(frozen=True)
class FusionUNetConfig:
    """Settings of the U-Nets with one encoder per image.

    Attributes:
        in_channels: number of input images, each with an encoder of its own.
        out_channels: number of classes with the background.
        width: channels of the first of five levels.
        fusion: "fuse" concatenates the encoders at every skip and at the bottom and reduces them
            by a 1x1 convolution (FuseUNet-style; Li et al., MICCAI 2019, without its distillation
            between modalities); "octopus" lets the decoder take every encoder's skip as it is
            (OctopusNet-style, Chen et al., MMMI 2019: hyper-fusion in the decoder); "late" has a
            whole U-Net per image and averages their logits.
        dimensions: 2 or 3.
    """

    in_channels: int = 2
    out_channels: int = 2
    width: int = 32
    fusion: str = "fuse"
    dimensions: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "out_channels", "width")
        check_dimensions(self.dimensions)
        if self.fusion not in ("fuse", "octopus", "late"):
            raise ValueError(f"fusion is {self.fusion!r}, not 'fuse', 'octopus' or 'late'")


class _Encoder(nn.Module):
    """Five levels of two convolutions, pooling between them."""

    def __init__(self, dims: int, n_in: int, widths: Sequence[int]):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(_conv(dims, a, b, 3), _conv(dims, b, b, 3))
            for a, b in zip([n_in, *widths[:-1]], widths, strict=True)
        )
        self.pool = POOL[dims](2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for level in self.levels:
            x = level(self.pool(x) if features else x)
            features.append(x)
        return features


class _Decoder(nn.Module):
    """Up, concatenate the skip of `skip_factor` times the level's width, two convolutions."""

    def __init__(self, dims: int, bottom: int, widths: Sequence[int], skip_factor: int):
        super().__init__()
        self.ups, self.levels = nn.ModuleList(), nn.ModuleList()
        n_in = bottom
        for width in reversed(widths[:-1]):
            self.ups.append(UP[dims](n_in, width, 2, stride=2))
            joined = (1 + skip_factor) * width
            self.levels.append(
                nn.Sequential(_conv(dims, joined, width, 3), _conv(dims, width, width, 3))
            )
            n_in = width

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, level, skip in zip(self.ups, self.levels, reversed(skips), strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
        return x


class FusionUNet(nn.Module):
    """U-Net with an encoder per image; see `FusionUNetConfig.fusion`.

    Input [B, in_channels, (D,) H, W], any size; output logits of the same size.
    """

    multiple = 16
    attention = (DECODER_MAP,)

    def __init__(self, config: FusionUNetConfig):
        super().__init__()
        self.config = config
        self.dimensions = dims = config.dimensions
        n, late = config.in_channels, config.fusion == "late"
        widths = [config.width * 2**level for level in range(5)]
        self.encoders = nn.ModuleList(_Encoder(dims, 1, widths) for _ in range(n))
        self.reduce = nn.ModuleList(
            _conv(dims, n * w, w, 1) for w in (widths if config.fusion == "fuse" else [])
        )
        octopus = config.fusion == "octopus"
        bottom = n * widths[-1] if octopus else widths[-1]
        self.decoders = nn.ModuleList(
            _Decoder(dims, bottom, widths, n if octopus else 1) for _ in range(n if late else 1)
        )
        self.heads = nn.ModuleList(
            CONV[dims](widths[0], config.out_channels, 1) for _ in self.decoders
        )

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        padded = padded_to(x, self.multiple)
        encoded = [encoder(padded[:, n : n + 1]) for n, encoder in enumerate(self.encoders)]
        if self.config.fusion == "late":
            inputs = encoded
        else:
            joined = [torch.cat(level, dim=1) for level in zip(*encoded, strict=True)]
            if self.config.fusion == "fuse":
                joined = [reduce(level) for reduce, level in zip(self.reduce, joined, strict=True)]
            inputs = [joined]
        decoded = [d(features) for d, features in zip(self.decoders, inputs, strict=True)]
        logits = torch.stack([h(f) for h, f in zip(self.heads, decoded, strict=True)]).mean(0)
        logits = cropped_to(logits, x)
        if not with_attention:
            return logits
        maps = torch.stack([activation_map(f) for f in decoded]).mean(0)
        return logits, {"decoder": cropped_to(maps, x)}
