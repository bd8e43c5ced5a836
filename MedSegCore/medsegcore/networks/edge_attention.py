"""Edge attention: a dilated 3D ResNet encoder with pyramid and multi-level edge attention.

"Transfer Learning with Edge Attention for Prostate MRI Segmentation" (Qin, arXiv 1912.09847).
The text gives the parts (sections 2.1 to 2.4); the figures with their widths are not in it. The
encoder's layers are those of Med3D, which the paper builds on, with the same names of weights.
Arrays are [.., D, H, W]: the paper's 3x3x1 kernel within slices is 1x3x3 here, its 1x1x3 is 3x1x1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.networks.blocks import haar_details, require_norm, use_norm

# Residual blocks of layer1..layer4, and whether they are bottlenecks.
DEPTHS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
EDGE_LEVELS = 3  # section 2.3: "the last three levels of the designed decoder"


@dataclass(frozen=True)
class EdgeAttentionConfig:
    """Settings of the edge attention network.

    Attributes:
        in_channels: number of input images.
        out_channels: number of classes with the background.
        depth: layers of the ResNet: 10, 18, 34, 50 or 101 (the paper's).
        width: channels of the encoder's stem; the weights of Med3D have 64.
        decoder_width: channels of every decoder level. Silent in the paper.
        pyramid: in-plane kernel sizes of the pyramid attention module. Silent but for "large".
        edges: "wavelet" takes edge features from the detail sub-bands of one Haar level,
            "convolution" from plain convolutions (section 2.3), "none" leaves them out.
        stem_depth_stride: 2 halves the depth twice in the stem as Med3D does; 1 keeps it, since
            at 0.625 x 0.625 x 1.5 mm slices are 2.4 times as thick as wide already.
        norm: "batch", the paper's, or "group", see `blocks.use_norm`.
    """

    in_channels: int = 1
    out_channels: int = 2
    depth: int = 101
    width: int = 64
    decoder_width: int = 64
    pyramid: tuple[int, ...] = (3, 5, 7)
    edges: str = "wavelet"
    stem_depth_stride: int = 1
    norm: str = "batch"

    def __post_init__(self) -> None:
        # JSON has lists only.
        object.__setattr__(self, "pyramid", tuple(self.pyramid))
        require_norm(self.norm)
        for name in ("in_channels", "out_channels", "width", "decoder_width"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r} but has to be a whole number above 0")
        if self.depth not in DEPTHS:
            raise ValueError(f"depth is {self.depth!r}, not one of {list(DEPTHS)}")
        if self.edges not in ("wavelet", "convolution", "none"):
            raise ValueError(
                f"edges is {self.edges!r} but has to be 'wavelet', 'convolution' or 'none'"
            )
        if self.stem_depth_stride not in (1, 2):
            raise ValueError(f"stem_depth_stride is {self.stem_depth_stride!r}, not 1 or 2")
        if not self.pyramid or any(type(k) is not int or k < 1 or k % 2 == 0 for k in self.pyramid):
            raise ValueError(f"pyramid is {self.pyramid!r} but has to be odd kernel sizes")


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut (He et al., CVPR 2016), dilated."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv3d(
            in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(
            channels, channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm3d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1x1, dilated 3x3x3 and 1x1x1 convolutions and a shortcut (He et al., CVPR 2016)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(
            channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * channels)
        self.downsample = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Shortcut B: a 1x1x1 convolution where the shape changes, else the identity."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
    )


class Encoder(nn.Module):
    """3D ResNet (section 2.1) with dilation 2 in its third block, output stride 8.

    The stride of layer3 and layer4 becomes dilation 2 and 4. The paper names the third block
    alone; layer4 follows Med3D, so that all three deep levels lie on one grid.

    Input [B, C, D, H, W]; output five features, in-plane strides 2, 4, 8, 8, 8.
    """

    def __init__(self, config: EdgeAttentionConfig):
        super().__init__()
        width, depth_stride = config.width, config.stem_depth_stride
        self.conv1 = nn.Conv3d(
            config.in_channels, width, 7, stride=(depth_stride, 2, 2), padding=3, bias=False
        )
        self.bn1 = nn.BatchNorm3d(width)
        self.maxpool = nn.MaxPool3d(3, stride=(depth_stride, 2, 2), padding=1)
        counts, bottleneck = DEPTHS[config.depth]
        make = Bottleneck if bottleneck else BasicBlock
        channels, self.channels = width, [width]
        layers = []
        plan = zip((1, 2, 4, 8), counts, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for factor, count, stride, dilation in plan:
            blocks = []
            for n in range(count):
                blocks.append(make(channels, factor * width, stride if n == 0 else 1, dilation))
                channels = factor * width * make.expansion
            layers.append(nn.Sequential(*blocks))
            self.channels.append(channels)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.frozen = False

    def transfer(self, weights: Mapping[str, Tensor], freeze: bool) -> None:
        """Take over the weights of a pre-trained encoder (section 2.1).

        Args:
            weights: names and shapes of this encoder's `state_dict`, which are those of Med3D.
            freeze: keep them, and their batch statistics, as they are in later training.

        Raises:
            ValueError: they are of another encoder; nothing is changed then.
        """
        own = self.state_dict()
        missing, unknown = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
        if missing or unknown:
            raise ValueError(
                f"the weights are of another encoder: {len(missing)} are missing, {len(unknown)} "
                f"unknown, the first being '{(missing + unknown)[0]}'"
            )
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise ValueError(
                    f"'{name}' is {list(weights[name].shape)} but has to be {list(tensor.shape)}"
                )
        self.load_state_dict(dict(weights))
        self.frozen = freeze
        self.requires_grad_(not freeze)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen encoder stays in evaluation mode: its batch statistics are frozen too."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(x)))  # B, width, D, H/2, W/2
        features = [stem, self.layer1(self.maxpool(stem))]  # .., H/4, W/4
        for layer in (self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))  # .., H/8, W/8
        return features


class PretrainingNetwork(nn.Module):
    """The encoder with "a simple decoder" (section 2.1), that of Med3D: stride 4, then upsampled.

    Input [B, C, D, H, W] -> logits [B, out_channels, D, H, W].
    """

    dimensions = 3
    multiple = 8
    attention: list[dict[str, str | None]] = [
        {"key": "head", "kind": "spatial", "title": "Decoder activation", "axis": None}
    ]

    def __init__(self, config: EdgeAttentionConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = nn.Sequential(
            nn.ConvTranspose3d(self.encoder.channels[-1], 32, 2, stride=2),
            nn.BatchNorm3d(32),
            nn.ReLU(inplace=True),
            nn.Conv3d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm3d(32),
            nn.ReLU(inplace=True),
        )
        self.classify = nn.Conv3d(32, config.out_channels, 1, bias=False)
        use_norm(self, config.norm)

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        features = self.head(self.encoder(x)[-1])
        logits = _resized(self.classify(features), x.shape[2:])
        if not with_attention:
            return logits
        activation = features.float().square().sum(dim=1, keepdim=True)
        return logits, {"head": _resized(activation, x.shape[2:])}


class RRB(nn.Module):
    """Residual refinement block (section 2.2, fig. 3a).

    A 1x1x1 convolution to the common width (as in the block's origin, DFN), then twice a
    convolution within slices and one between slices, with normalisation and ReLU between, and
    the sum with what came in. Placing of the normalisation: silent.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.project = nn.Conv3d(in_channels, channels, 1, bias=False)
        self.refine = nn.Sequential(
            *_in_and_between_slices(channels),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            *_in_and_between_slices(channels),
            nn.BatchNorm3d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return F.relu(x + self.refine(x))


def _in_and_between_slices(channels: int) -> tuple[nn.Conv3d, nn.Conv3d]:
    """The paper's 3x3x1 and 1x1x3 convolutions."""
    return (
        nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False),
        nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False),
    )


class PAM(nn.Module):
    """Pyramid attention module (section 2.4, fig. 3b).

    The encoder's feature goes through convolutions of several sizes; their fusion is weighted by
    the decoder's upsampled feature; the encoder's feature is added. The fusion by a 1x1x1
    convolution and the sigmoid are our choice.
    """

    def __init__(self, encoder_channels: int, channels: int, kernels: tuple[int, ...]):
        super().__init__()
        self.project = nn.Conv3d(encoder_channels, channels, 1, bias=False)
        self.pyramid = nn.ModuleList(
            nn.Conv3d(channels, channels, (1, k, k), padding=(0, k // 2, k // 2), bias=False)
            for k in kernels
        )
        self.fuse = nn.Sequential(
            nn.Conv3d(len(kernels) * channels, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        self.weigh = nn.Conv3d(channels, channels, 1)

    def forward(self, encoded: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """encoded [B, C_e, D, H, W], decoded [B, C, D, H, W] -> [B, C, D, H, W], weights 0..1."""
        encoded = self.project(encoded)
        multi_scale = self.fuse(torch.cat([layer(encoded) for layer in self.pyramid], dim=1))
        weights = torch.sigmoid(self.weigh(decoded))
        return weights * multi_scale + encoded, weights


class EdgeModule(nn.Module):
    """One level of the multi-level edge attention module (section 2.3).

    Edge features, from the detail sub-bands of one Haar level or from the feature itself, give an
    edge map, which is supervised (eq. 4) and in turn guides the feature: x + x * edge map.

    Args:
        channels: C of the feature.
        wavelet: whether the sub-bands are taken.
        in_plane: leave the slice axis out of the wavelet: 3 sub-bands instead of 7.
    """

    def __init__(self, channels: int, wavelet: bool, in_plane: bool):
        super().__init__()
        self.wavelet, self.in_plane = wavelet, in_plane
        bands = (3 if in_plane else 7) if wavelet else 1
        self.extract = nn.Sequential(
            nn.Conv3d(bands * channels, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            *_in_and_between_slices(channels),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        self.map = nn.Conv3d(channels, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, C, D, H, W] -> guided x, edge features, edge map 0..1 [B, 1, D, H, W]."""
        bands = haar_details(x, self.in_plane).flatten(1, 2) if self.wavelet else x
        features = _resized(self.extract(bands), x.shape[2:])
        edge = torch.sigmoid(self.map(features).float())
        return x + x * edge.to(x.dtype), features, edge


class EdgeAttentionNetwork(nn.Module):
    """The whole network (fig. 2).

    Five decoder levels beside the five encoder levels; every level but the deepest takes its
    encoder feature through a PAM, and the last three have an edge module. The edge features of
    these three are fused again for the prediction.

    Input [B, in_channels, D, H, W], any size; output logits [B, out_channels, D, H, W].
    Attention, all `spatial`: "edge1".."edge3", edge maps 0..1 from the coarsest level to the
    finest; "pam1".."pam4", mean over channels of the PAM's weights 0..1, likewise.
    """

    dimensions = 3
    multiple = 8

    def __init__(self, config: EdgeAttentionConfig):
        super().__init__()
        self.config = config
        width = config.decoder_width
        self.encoder = Encoder(config)
        *shallow, deepest = self.encoder.channels
        self.bottom = RRB(deepest, width)
        # From the deepest to the stem.
        self.pam = nn.ModuleList(PAM(c, width, config.pyramid) for c in reversed(shallow))
        self.rrb = nn.ModuleList(RRB(2 * width, width) for _ in shallow)
        levels = EDGE_LEVELS if config.edges != "none" else 0
        self.edge = nn.ModuleList(
            EdgeModule(width, config.edges == "wavelet", config.stem_depth_stride == 1)
            for _ in range(levels)
        )
        self.fuse = RRB((1 + levels) * width, width)
        self.classify = nn.Conv3d(width, config.out_channels, 1)
        use_norm(self, config.norm)

    @property
    def attention(self) -> list[dict[str, str | None]]:
        """What `forward(x, with_attention=True)` gives: key, kind, title, axis."""
        maps = [(f"edge{n}", f"Edge map, level {n}") for n in range(1, len(self.edge) + 1)]
        maps += [(f"pam{n}", f"Pyramid attention, level {n}") for n in range(1, len(self.pam) + 1)]
        return [
            {"key": key, "kind": "spatial", "title": title, "axis": None} for key, title in maps
        ]

    def forward(
        self, x: Tensor, with_attention: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        *shallow, deepest = self.encoder(x)
        decoded = self.bottom(deepest)
        pams: dict[str, Tensor] = {}
        edges: dict[str, Tensor] = {}
        edge_features = []
        first_edge = len(self.rrb) - len(self.edge)
        for n, (pam, rrb) in enumerate(zip(self.pam, self.rrb, strict=True)):
            encoded = shallow.pop()
            decoded = _resized(decoded, encoded.shape[2:])
            attended, weights = pam(encoded, decoded)
            pams[f"pam{n + 1}"] = weights.float().mean(dim=1, keepdim=True)
            decoded = rrb(torch.cat([attended, decoded], dim=1))
            if n >= first_edge:
                level = n - first_edge
                decoded, features, edge = self.edge[level](decoded)
                edges[f"edge{level + 1}"] = edge
                edge_features.append(features)
        size = decoded.shape[2:]
        fused = self.fuse(torch.cat([decoded, *(_resized(f, size) for f in edge_features)], dim=1))
        logits = _resized(self.classify(fused), x.shape[2:])
        return (logits, {**edges, **pams}) if with_attention else logits


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    """Trilinear, to exactly the skip's or the input's size: odd sizes need no padding."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)
