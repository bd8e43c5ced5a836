"""CSAD: two image streams that teach each other where to look (Zhang, Shen et al., 2020).

"Cross-Modal Self-Attention Distillation for Prostate Cancer Segmentation", G. Zhang, X. Shen,
Y. Luo, J. Luo, Z. Wang, W. Wang, B. Zhao, J. Lu; arXiv 2011.03908, IEEE JBHI 26(11) 2022.

From the paper: two encoder streams of five stages, an attention map (AMGB) at every stage
(eq. 1-2), the fusion by spatial correlation (SCFF, eq. 5-7), and which parts the networks of
tables I-III have. The paper is silent about the layers of encoder and decoder, about skips, and
about C~: they are a U-Net's here (two 3x3 convolutions a stage, max pooling, 2x2 up-convolution),
and C~ is half of C. The distillation itself (eq. 3-4) is a loss: `medsegcore.losses.csad`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

STAGES = 5  # m = 1..5 (section III-A1)
FUSIONS = ("scff", "concat", "early", "late")

# The networks of tables I, II and III: their fusion, and the connection scheme of their loss.
VARIANTS = {
    "baseline": ("concat", "nlc"),
    "baseline+scff": ("scff", "nlc"),
    "baseline+csad": ("concat", "ilc"),
    "proposed": ("scff", "ilc"),
    "nlc": ("scff", "nlc"),
    "plc": ("scff", "plc"),
    "ilc": ("scff", "ilc"),
    "early": ("early", "ilc"),
    "late": ("late", "ilc"),
}

# Most entries of the correlation matrix that are held at one time: 64 MiB of fp32.
CHUNK_ENTRIES = 2**24


@dataclass(frozen=True)
class CSADConfig:
    """Settings of CSAD.

    Attributes:
        stream_channels: channels of each of the two images; a slice has 1, a slab more.
        out_channels: number of classes with the background.
        width: channels of the first stage; each of the five stages doubles them. Silent; 64 is
            that of the U-Net that the paper measures against.
        fusion: "scff"; "concat" of the two last stages (the paper's Baseline); "early", one
            stream over all images; "late", SCFF after a decoder of each stream.
        skips: "both" gives each decoder the skips of all streams that it decodes; "none" gives
            it none. Silent.
        reduction: C / C~ of the SCFF. Silent.
        correlation_softmax: which sum of Z_G is 1. Eq. 7 uses one Z_G and its transpose, so only
            one of them can have it: "shared" is that, with a softmax over the positions of
            stream 1. "direction" takes two softmaxes, each over the positions that its product
            in eq. 7 sums over.
        max_positions: the correlation is shown at most for so many positions of each image; with
            more, the features are averaged over blocks before (for the shown map alone).
        norm: "batch" or "group". Silent.
        norm_groups: groups of each group normalisation; has to divide the width.
    """

    stream_channels: int = 1
    out_channels: int = 2
    width: int = 64
    fusion: str = "scff"
    skips: str = "both"
    reduction: int = 2
    correlation_softmax: str = "shared"
    max_positions: int = 1024
    norm: str = "batch"
    norm_groups: int = 8

    def __post_init__(self) -> None:
        # model.json may hold anything here, and torch's own words would not name the setting.
        for name in (
            "stream_channels", "out_channels", "width", "reduction", "max_positions", "norm_groups"
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r} but has to be a whole number above 0")
        for name, allowed in (
            ("fusion", FUSIONS),
            ("skips", ("both", "none")),
            ("correlation_softmax", ("shared", "direction")),
            ("norm", ("batch", "group")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {list(allowed)}")
        if self.fusion in ("scff", "late") and self.fused_channels % self.reduction:
            raise ValueError(
                f"reduction {self.reduction} does not divide {self.fused_channels} channels"
            )
        if self.norm == "group" and self.width % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide width {self.width}")

    @property
    def in_channels(self) -> int:
        """Channels of the input: both images."""
        return 2 * self.stream_channels

    @property
    def fused_channels(self) -> int:
        """C, the channels of each stream where the streams are fused."""
        return self.width if self.fusion == "late" else self.width * 2 ** (STAGES - 1)

    @property
    def streams(self) -> int:
        """Number of encoder streams."""
        return 1 if self.fusion == "early" else 2


# AMGB: eq. 1 and 2.


def upsampled_energy(features: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """R(P(F)) of eq. 1-2: upsample by bilinear interpolation, square, sum over the channels.

    Each upsampled value is a weighted sum of four neighbours f_n, so that the squared length of
    the channel vector is sum_n sum_n' w_n w_n' <f_n, f_n'>. The inner products of neighbours are
    taken before the upsampling: the result is that of the printed order, yet no C x H x W
    features are ever held. (P is silent; bilinear is what the paper's reference [17] takes.)

    Args:
        features: F [B, C, h, w].
        factor: that P enlarges by.
        size: (H, W) of the result, at most factor * (h, w); the far end is cut.

    Returns:
        S [B, H, W] in fp32.
    """
    f = features.float()
    if factor == 1:
        return f.square().sum(dim=1)[:, : size[0], : size[1]]
    # One more row and column at the far end: every position has a neighbour there.
    f = F.pad(f, (0, 1, 0, 1), mode="replicate")  # B, C, h+1, w+1
    left, right, upper, lower = f[..., :-1], f[..., 1:], f[..., :-1, :], f[..., 1:, :]
    same = f.square().sum(dim=1)  # B, h+1, w+1
    beside = (left * right).sum(dim=1)  # B, h+1, w
    below = (upper * lower).sum(dim=1)  # B, h, w+1
    cross = (upper[..., :-1] * lower[..., 1:]).sum(dim=1)
    cross = cross + (upper[..., 1:] * lower[..., :-1]).sum(dim=1)  # B, h, w

    column, v = _interpolation(size[1], factor, f.device)
    row_with_itself = (
        (1 - v) ** 2 * same.index_select(2, column)
        + 2 * v * (1 - v) * beside.index_select(2, column)
        + v**2 * same.index_select(2, column + 1)
    )  # B, h+1, W
    row_with_next = (
        (1 - v) ** 2 * below.index_select(2, column)
        + v * (1 - v) * cross.index_select(2, column)
        + v**2 * below.index_select(2, column + 1)
    )  # B, h, W
    row, u = _interpolation(size[0], factor, f.device)
    u = u[:, None]
    return (
        (1 - u) ** 2 * row_with_itself.index_select(1, row)
        + 2 * u * (1 - u) * row_with_next.index_select(1, row)
        + u**2 * row_with_itself.index_select(1, row + 1)
    )  # B, H, W


def _interpolation(length: int, factor: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each new position, the old one before it and the weight 0..1 of the one after that."""
    place = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / factor - 0.5
    place = place.clamp(min=0)
    low = place.floor()
    return low.long(), place - low


def log_attention_map(features: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """The logarithm of chi(F) = G(R(P(F))), eq. 2; G is the softmax over all positions.

    Args:
        features, factor, size: as for `upsampled_energy`.

    Returns:
        [B, 1, H, W] in fp32. S is a sum over up to a thousand channels, so chi itself is often
        below the smallest fp32 number where its logarithm is not.
    """
    with torch.autocast(features.device.type, enabled=False):
        energy = upsampled_energy(features, factor, size)
        return torch.log_softmax(energy.flatten(1), dim=1).reshape(-1, 1, *size)


# SCFF: eq. 5 to 7.


def correlation_columns(x: Tensor, y: Tensor) -> Tensor:
    """Columns of Z_G: eq. 5 and 6 with T = C~, then the softmax over the positions of x.

    Args:
        x: [B, C~, N] in fp32.
        y: [B, C~, n]: some or all of the positions of the other image.

    Returns:
        [B, N, n]; each column sums to 1.
    """
    z = x.transpose(1, 2) @ y / x.shape[1]
    return torch.softmax(z, dim=1)


def _products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    weights = correlation_columns(x, y)  # B, N, n
    return x @ weights, y @ weights.transpose(1, 2)


def correlated_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both products of eq. 7 with one Z_G, of which only some columns are held at a time.

    Args:
        x, y: reshaped general features [B, C~, N] of the two streams, in fp32.

    Returns:
        (x Z_G, y Z_G^T), each [B, C~, N]. With N = H*W the memory grows with N, not N^2, in the
        backward pass too, which makes the columns anew.
    """
    step = max(CHUNK_ENTRIES // (x.shape[0] * x.shape[2]), 1)
    if step >= y.shape[2]:
        return _products(x, y)
    first, second = [], torch.zeros_like(x)
    for part in y.split(step, dim=2):
        if torch.is_grad_enabled():
            gathered, carried = checkpoint(
                _products, x, part, use_reentrant=False, preserve_rng_state=False
            )
        else:
            gathered, carried = _products(x, part)
        first.append(gathered)
        second = second + carried
    return torch.cat(first, dim=2), second


class SCFF(nn.Module):
    """Spatial correlated feature fusion (section III-B, eq. 5-7).

    The same 1x1 convolution makes the general features F~ of both streams. Eq. 7 multiplies
    F^, which the text calls F reshaped but which has the C~ channels of F~: it is F~ here.

    Args:
        channels: C of each stream.
        reduction: C / C~.
        softmax: "shared" or "direction", see `CSADConfig.correlation_softmax`.
    """

    def __init__(self, channels: int, reduction: int = 2, softmax: str = "shared"):
        super().__init__()
        self.general = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.softmax = softmax

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Features [B, C, H, W] of the two streams -> F_corr [B, 2 C~, H, W]."""
        x, y = self.general(first), self.general(second)
        with torch.autocast(x.device.type, enabled=False):
            flat = [a.float().flatten(2) for a in (x, y)]  # B, C~, N
            ones, others = correlated_products(*flat)
            if self.softmax == "direction":
                others, _ = correlated_products(*reversed(flat))
        return torch.cat([a.reshape(x.shape).to(x.dtype) for a in (ones, others)], dim=1)

    def correlation(
        self, first: Tensor, second: Tensor, max_positions: int
    ) -> tuple[Tensor, Tensor]:
        """What eq. 7 weighs with, to be looked at.

        Returns:
            Z_G as [B, h, w, h, w], for each position of stream 1 a map over stream 2, and Z_G^T
            likewise for each position of stream 2, in fp32. Where H*W is above `max_positions`,
            the general features are averaged over the smallest blocks that bring it below.
        """
        x, y = self.general(first).float(), self.general(second).float()
        h, w = grid = (x.shape[2], x.shape[3])
        block = 1
        while grid[0] * grid[1] > max_positions:
            block += 1
            grid = (-(-h // block), -(-w // block))
        if block > 1:
            x, y = F.adaptive_avg_pool2d(x, grid), F.adaptive_avg_pool2d(y, grid)
        with torch.autocast(x.device.type, enabled=False):
            x, y = x.flatten(2), y.flatten(2)
            from_second = correlation_columns(x, y).transpose(1, 2)  # B, N of 2, N of 1
            from_first = from_second.transpose(1, 2)
            if self.softmax == "direction":
                from_first = correlation_columns(y, x).transpose(1, 2)
        shape = (-1, *grid, *grid)
        return from_first.reshape(shape), from_second.reshape(shape)


# Encoder and decoder: silent, a U-Net's.


def _norm(channels: int, config: CSADConfig) -> nn.Module:
    if config.norm == "group":
        return nn.GroupNorm(config.norm_groups, channels)
    return nn.BatchNorm2d(channels)


class Stage(nn.Module):
    """Two times conv 3x3, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, config: CSADConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            _norm(out_channels, config),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            _norm(out_channels, config),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """One stream: five stages with 2x2 max pooling between them."""

    def __init__(self, in_channels: int, config: CSADConfig):
        super().__init__()
        widths = [config.width * 2**m for m in range(STAGES)]
        self.stages = nn.ModuleList(
            Stage(n_in, n_out, config)
            for n_in, n_out in zip([in_channels, *widths[:-1]], widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, C, H, W] -> F_1..F_5, each half as large as the one before, rounded up."""
        features: list[Tensor] = []
        for stage in self.stages:
            if features:
                # Rounding up keeps the border of odd sizes; the decoder cuts what is too much.
                x = F.max_pool2d(x, kernel_size=2, ceil_mode=True)
            x = stage(x)
            features.append(x)
        return features


class Up(nn.Module):
    """Double the size, cut the far end to the skips' size, concatenate the skips, a `Stage`."""

    def __init__(self, in_channels: int, out_channels: int, skips: int, config: CSADConfig):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size=2, stride=2, bias=False
        )
        self.stage = Stage((1 + skips) * out_channels, out_channels, config)

    def forward(self, x: Tensor, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        x = self.enlarge(x)[:, :, : size[0], : size[1]]
        return self.stage(torch.cat([*skips, x], dim=1))


class Decoder(nn.Module):
    """From the fused features back to the size of the first stage."""

    def __init__(self, in_channels: int, streams: int, config: CSADConfig):
        super().__init__()
        self.use_skips = config.skips == "both"
        skips = streams if self.use_skips else 0
        widths = [config.width * 2**m for m in reversed(range(STAGES - 1))]
        self.ups = nn.ModuleList(
            Up(n_in, n_out, skips, config)
            for n_in, n_out in zip([in_channels, *widths[:-1]], widths, strict=True)
        )

    def forward(self, x: Tensor, streams: list[list[Tensor]]) -> Tensor:
        """Fused features, F_1..F_5 of the streams -> [B, width, H, W]."""
        for depth, up in enumerate(self.ups):
            skips = [features[STAGES - 2 - depth] for features in streams]
            size = (skips[0].shape[2], skips[0].shape[3])
            x = up(x, skips if self.use_skips else [], size)
        return x


class CSAD(nn.Module):
    """Two-stream 2D network with an attention map at each stage (section III, fig. 1).

    Input [B, 2 * stream_channels, H, W], the first image's channels first; any size, best a
    multiple of 16. Output: logits [B, out_channels, H, W].
    Attention: "stage<m>_stream<k>", chi(F_m^k) [B, 1, H, W] whose sum is 1; with SCFF also
    "correlation_stream1" and "correlation_stream2" [B, h, w, h, w]: for each position of that
    stream's image the map over the other one. Where H and W are multiples of 16, position (r, c)
    stands for H/h x W/w pixels round ((r + 0.5) * H/h - 0.5, (c + 0.5) * W/w - 0.5).
    """

    dimensions = 2
    multiple = 2 ** (STAGES - 1)

    def __init__(self, config: CSADConfig):
        super().__init__()
        self.config = config
        per_stream = 2 * config.stream_channels // config.streams
        self.encoders = nn.ModuleList(Encoder(per_stream, config) for _ in range(config.streams))
        deepest = config.width * 2 ** (STAGES - 1)
        self.scff: SCFF | None = None
        fused = config.fused_channels * config.streams
        if config.fusion in ("scff", "late"):
            self.scff = SCFF(config.fused_channels, config.reduction, config.correlation_softmax)
            fused = 2 * (config.fused_channels // config.reduction)
        if config.fusion == "late":
            # Silent: a decoder of its own for each stream, with its own stream's skips.
            self.decoders = nn.ModuleList(Decoder(deepest, 1, config) for _ in range(2))
            self.head = nn.Conv2d(fused, config.out_channels, kernel_size=1)
        else:
            self.decoders = nn.ModuleList([Decoder(fused, config.streams, config)])
            self.head = nn.Conv2d(config.width, config.out_channels, kernel_size=1)

    @property
    def attention(self) -> list[dict[str, str | None]]:
        """What `forward(x, with_attention=True)` gives: key, kind, title, axis."""
        images = ["both images"] if self.config.streams == 1 else ["first image", "second image"]
        maps: list[dict[str, str | None]] = [
            {
                "key": f"stage{m}_stream{k}",
                "kind": "spatial",
                "title": f"Attention of stage {m}, {image}",
                "axis": None,
            }
            for k, image in enumerate(images, start=1)
            for m in range(1, STAGES + 1)
        ]
        if self.scff is not None:
            for k, (image, other) in enumerate([images, images[::-1]], start=1):
                title = f"Where the {other} answers to the {image}"
                maps.append(
                    {"key": f"correlation_stream{k}", "kind": "correlation",
                     "title": title, "axis": None}
                )  # fmt: skip
        return maps

    def forward(
        self, x: Tensor, with_attention: bool = False, log_maps: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits, or logits and maps.

        Args:
            x: [B, 2 * stream_channels, H, W].
            with_attention: give what `attention` declares.
            log_maps: give the logarithms of the "stage<m>_stream<k>" maps, for the loss (eq. 3-4).
        """
        s = self.config.stream_channels
        images = [x] if self.config.streams == 1 else [x[:, :s], x[:, s:]]
        streams = [encoder(image) for encoder, image in zip(self.encoders, images, strict=True)]
        to_fuse = [features[-1] for features in streams]
        if self.config.fusion == "late":
            to_fuse = [
                decoder(bottom, [features])
                for decoder, bottom, features in zip(self.decoders, to_fuse, streams, strict=True)
            ]
        fused = torch.cat(to_fuse, dim=1) if self.scff is None else self.scff(*to_fuse)
        if self.config.fusion != "late":
            fused = self.decoders[0](fused, streams)
        logits = self.head(fused)
        if not with_attention and not log_maps:
            return logits
        # Silent: the target size of eq. 2. It is that of stage 1, so that no map is made smaller.
        size = (x.shape[2], x.shape[3])
        attention = {
            f"stage{m + 1}_stream{k}": log_attention_map(features[m], 2**m, size)
            for k, features in enumerate(streams, start=1)
            for m in range(STAGES)
        }
        if log_maps:
            return logits, attention
        attention = {key: a.exp() for key, a in attention.items()}
        if self.scff is not None:
            both = self.scff.correlation(to_fuse[0], to_fuse[1], self.config.max_positions)
            attention.update({f"correlation_stream{k}": a for k, a in enumerate(both, start=1)})
        return logits, attention
