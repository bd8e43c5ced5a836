"""Prostate in T2W with edge attention (Qin, arXiv 1912.09847), and the pre-training of its encoder.

From the paper (sections 2.1 and 3): T2W at 0.625 x 0.625 x 1.5 mm; sub-volumes of 96 x 96 x 32 at
random, deformed by B-splines over 2 x 2 x 2 control points; batches of 16; Adam with betas 0.9 and
0.999, learning rate 1e-3, a tenth of it every 2000 steps; Dice (eq. 3) and the edges of three
levels with the weights 0.5, 0.8, 1.0 (eq. 4); at inference windows of 96 x 96 x 32 at strides of
24 x 24 x 8, averaged: an overlap of 0.75. Pre-training: the encoder with a simple decoder, SGD with
momentum 0.9, cross-entropy, learning rate 0.01 with "a weight decay of 1e-6 after each epoch",
taken for the decay of the rate, lr / (1 + 1e-6 step).
Silent, and our choice: the displacement of the control points (5 mm); the deformation acts on the
sub-volume and a margin of that many mm, because deforming the whole volume would take seconds;
half of the sub-volumes round the structure; z-score; batch and crop of the pre-training (the
same). The encoder is trained from `pretrained` or from nothing. ResNet-101 in batches of 16 wants a
large GPU: `depth`, `width` and `batch_size` make it smaller.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    RandCropByPosNegLabeld,
    RandFlipd,
    SpatialPadd,
    Transform,
)
from torch import Tensor, nn

from medsegcore.losses.edge_attention import EdgeAttentionLoss
from medsegcore.models import (
    GridSpec,
    ModelDescription,
    ModelFolder,
    NetworkSpec,
    TrainingRecord,
)
from medsegcore.networks import create_network
from medsegcore.training.augmentation import (
    KeepOutsideZerod,
    RandBSplineDeformd,
    Stackd,
    narrow_view,
    scanner_transforms,
)
from medsegcore.training.provenance import joined_terms, kept_settings, parent_of
from medsegcore.training.recipes.base import Batch, DataFacts, Objective, Recipe, Supervised
from medsegcore.training.recipes.known import (
    classes_of,
    describe,
    known_inputs,
    middle_of,
)
from medsegcore.training.transfer import transfer_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

    from medsegcore.training.datasets import Dataset

PAPER = (
    "Qin X. Transfer Learning with Edge Attention for Prostate MRI Segmentation. arXiv 1912.09847"
)
SPACING = (0.625, 0.625, 1.5)


class EdgeAttentionObjective(Objective):
    """Eq. 2 with its terms: Dice, and the edges of each level before their weights."""

    def __init__(self, network: nn.Module, loss: EdgeAttentionLoss):
        super().__init__(network)
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, attention = self.network(batch["image"], with_attention=True)
        return logits, self.loss.terms(logits, attention, batch["label"])


class CrossEntropy(nn.Module):
    """Eq. 1, of any number of classes."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [B, C, D, H, W], target [B, 1, D, H, W] of class numbers -> scalar."""
        return F.cross_entropy(logits.float(), target[:, 0].long())


@dataclass(frozen=True)
class EdgeAttentionPretrainingRecipe(Recipe):
    """Settings of the pre-training (section 2.1).

    Attributes:
        image: key of the channel; T2W where there is one, else the first.
        depth, width: of the encoder (`EdgeAttentionConfig`).
        stem_depth_stride: of the encoder's stem along the slices.
        norm: "batch", or "group" for few patients of several scanners.
        learning_rate: at the start.
        deform_mm: standard deviation of the control points' displacement; 0 for none.
        scanner: also flip along i, narrow the field of view, and change contrast, bias field,
            noise and resolution, for what is not to depend on the scanner.
        overlap: of the windows at inference, 0 to below 1; each is seen 64 times with the paper's.
        middle_mm: only so much of the images' middle is looked at, in plane; None for all.
        threshold: of the probability where the user sets none.
    """

    name: ClassVar[str] = "edge_attention_pretraining"
    patch: tuple[int, int, int] | None = (32, 96, 96)
    batch_size: int | None = 16
    image: str | None = None
    depth: int = 101
    width: int = 64
    stem_depth_stride: int = 1
    norm: str = "batch"
    learning_rate: float = 0.01
    deform_mm: float = 5.0
    scanner: bool = False
    overlap: float = 0.75
    middle_mm: float | None = None
    threshold: float = 0.5

    def configured(self, data: "Dataset", facts: DataFacts) -> tuple["Self", list[str]]:
        if self.image is not None:
            return self, []
        image = "t2w" if "t2w" in data.channels else next(iter(data.channels))
        return replace(self, image=image), [f"The image is {image}."]

    def network_spec(self, data: "Dataset") -> NetworkSpec:
        """The network's name and config."""
        return NetworkSpec(name=self.name, config=self._encoder_config(data))

    def _encoder_config(self, data: "Dataset") -> dict[str, Any]:
        return {
            "out_channels": classes_of(data), "depth": self.depth, "width": self.width,
            "stem_depth_stride": self.stem_depth_stride, "norm": self.norm,
        }  # fmt: skip

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        assert self.image is not None
        assert self.patch is not None
        grid = GridSpec(
            axes="reference", spacing=SPACING, tile=self.patch, overlap=self.overlap,
            blend="constant", multiple=8, mirror=("i",) if self.scanner else (),
            **middle_of(self.middle_mm),
        )  # fmt: skip
        return describe(
            data, record, known_inputs(data, [self.image]), grid, self.network_spec(data),
            method="edge attention", citation=[PAPER], threshold=self.threshold,
        )  # fmt: skip

    def objective(self, network: nn.Module, facts: DataFacts) -> Objective:
        return Supervised(network, CrossEntropy())

    def transforms(self, description: ModelDescription) -> Compose:
        assert self.patch is not None
        keys = [spec.key for spec in description.inputs]
        every = [*keys, "label"]
        i, j, k = SPACING
        mm = (k, j, i)
        larger = [
            n + 2 * math.ceil(self.deform_mm / s) for n, s in zip(self.patch, mm, strict=True)
        ]
        deform = [RandBSplineDeformd(every, self.deform_mm, mm)] if self.deform_mm else []
        return Compose(
            [
                SpatialPadd(every, larger),
                RandCropByPosNegLabeld(every, "label", spatial_size=larger, num_samples=1),
                *deform,
                CenterSpatialCropd(every, self.patch),
                *(_scanner(keys, self.patch) if self.scanner else []),
                Stackd(keys),
            ]
        )

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return self.learning_rate / (1 + 1e-6 * step)


def _scanner(keys: list[str], patch: tuple[int, int, int]) -> list[Transform]:
    every = [*keys, "label"]
    return [
        RandFlipd(every, prob=0.5, spatial_axis=2),
        narrow_view(every, patch),
        *(KeepOutsideZerod([key], scanner_transforms(key, patch)) for key in keys),
    ]


@dataclass(frozen=True)
class EdgeAttentionRecipe(EdgeAttentionPretrainingRecipe):
    """Settings of the segmentation network (sections 2.2 to 3).

    Attributes:
        decoder_width, edges: of the network (`EdgeAttentionConfig`).
        edge_weights: w_1 to w_3 of eq. 2, coarsest level first.
        pretrained: file of the encoder's weights, of our pre-training or of Med3D; "" starts
            from nothing.
        freeze: keep the pre-trained encoder as it is.
    """

    name: ClassVar[str] = "edge_attention"
    learning_rate: float = 0.001
    decoder_width: int = 64
    edges: str = "wavelet"
    edge_weights: tuple[float, ...] = (0.5, 0.8, 1.0)
    pretrained: str = ""
    freeze: bool = False

    def network_spec(self, data: "Dataset") -> NetworkSpec:
        decoder: dict[str, Any] = {"decoder_width": self.decoder_width, "edges": self.edges}
        return NetworkSpec(name=self.name, config={**self._encoder_config(data), **decoder})

    def network(self, description: ModelDescription) -> nn.Module:
        """A new network, whose encoder has the pre-trained weights if there are any.

        Raises:
            ModelWeightsError: see `transfer_encoder`.
        """
        network = create_network(description.network.name, description.network.config)
        if self.pretrained:
            transfer_encoder(network, self.pretrained, self.freeze)
        return network

    def outline(self, description: ModelDescription) -> nn.Module:
        network: Any = super().outline(description)
        network.encoder.requires_grad_(not (self.pretrained and self.freeze))
        return network

    def finished(self, description: ModelDescription) -> ModelDescription:
        """With the pre-trained encoder as parent, and no more rights than its weights give."""
        if not self.pretrained:
            return description
        record, weights = description.training, description.weights
        chosen = {k: v for k, v in record.settings.items() if k == "chosen"}
        update: dict[str, Any] = {"settings": {**kept_settings(record), **chosen}}
        limits = []
        folder = Path(self.pretrained).parent
        if (folder / "model.json").is_file():
            encoder = ModelFolder.read(folder).description
            update["parents"] = [parent_of(encoder, "start")]
            terms = joined_terms([encoder.weights, weights])
        else:
            terms = {"license": "not stated", "commercial_use": False}
            name = Path(self.pretrained).name
            limits = [f"Its encoder started from '{name}', trained on nobody knows what."]
        return description.model_copy(
            update={
                "training": record.model_copy(update=update),
                "weights": weights.model_copy(update=terms),
                "limits": [*description.limits, *limits],
            }
        )

    def objective(self, network: nn.Module, facts: DataFacts) -> EdgeAttentionObjective:
        weights = self.edge_weights if self.edges != "none" else ()
        in_plane, wavelet = self.stem_depth_stride == 1, self.edges == "wavelet"
        return EdgeAttentionObjective(network, EdgeAttentionLoss(weights, in_plane, wavelet))

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate, betas=(0.9, 0.999))

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return self.learning_rate * 0.1 ** (step // 2000)
