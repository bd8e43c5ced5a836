"""Paired two-stream segmentation of slices with CSAD (Zhang, Shen et al., arXiv 2011.03908).

From the paper (section IV-A): T2W and ADC, 2D slices of 256 x 256, SGD with batches of 2 for 100
epochs, alpha 1, beta 0.1, sigma 1, lambda 0.95; random rotation, zoom, horizontal and vertical
shift, Gaussian blur; the networks and connection schemes of tables I to III are `variant`.
Silent, and our choice: learning rate 0.01 that falls as (1 - share done)^0.9, momentum 0.9, no
weight decay; the ranges of the augmentation; half of the slices are taken round a lesion; z-score
of each image over its foreground. "Resized to 256 x 256" becomes a pixel size in mm, by which the
median slice of the training cases has that many pixels, so that a pixel means the same in every
patient. The paper registers ADC to T2W without a grid ("non-grid"); here the scanner's frame holds,
and the panel offers registration. With several labels eq. 10 and 11 are taken of each.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from monai.transforms import Compose
from torch import Tensor, nn

from medsegcore.errors import SettingError
from medsegcore.losses.csad import CSADLoss, Scheme, distillation_loss
from medsegcore.models import GridSpec, ModelDescription, NetworkSpec, TrainingRecord
from medsegcore.networks.csad import VARIANTS
from medsegcore.training.recipes.base import Batch, DataFacts, Objective, Recipe
from medsegcore.training.recipes.known import (
    classes_of,
    describe,
    known_inputs,
    middle_of,
)
from medsegcore.training.slices import Augment, fitted_spacing, mirrored, plain_slice_transforms

if TYPE_CHECKING:
    from typing_extensions import Self

    from medsegcore.training.datasets import Dataset

PAPER = (
    "Zhang G, Shen X, Luo Y, et al. Cross-Modal Self-Attention Distillation for Prostate Cancer "
    "Segmentation. IEEE JBHI 26(11), 2022. arXiv 2011.03908"
)
# Which two channels make the streams, in this order of preference.
PAIRS = (("t2w", "adc"), ("flair", "t1"))


class CSADObjective(Objective):
    """Eq. 8 with its two terms.

    Args:
        network: `CSAD`.
        loss: its scheme decides whether the network's attention maps are compared.
    """

    def __init__(self, network: nn.Module, loss: CSADLoss):
        super().__init__(network)
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.loss.scheme == "nlc":
            logits = self.network(batch["image"])
            total = self.loss.segmentation(logits, batch["label"])
            return logits, {"total": total}
        logits, maps = self.network(batch["image"], log_maps=True)
        segmentation = self.loss.segmentation(logits, batch["label"])
        distillation = distillation_loss(maps, self.loss.scheme)
        total = segmentation + self.loss.alpha * distillation
        return logits, {"total": total, "segmentation": segmentation, "distillation": distillation}


@dataclass(frozen=True)
class CSADRecipe(Recipe):
    """Settings of CSAD.

    Attributes:
        streams: keys of the two channels; T2W and ADC, else FLAIR and T1, else the first two.
        variant: a network and its connection scheme, of `networks.csad.VARIANTS`.
        width, norm, norm_groups: of the network (`CSADConfig`). Of few patients, group
            normalisation carries over to another scanner where batch normalisation does not.
        spacing: mm of a pixel; by the median slice when None.
        learning_rate: at the start.
        momentum: of SGD.
        optimizer_name: "sgd", or "adam", which needs a tenth of the rate and learns sooner where
            little of a slice is labelled.
        alpha, beta, sigma, foreground_weight, batch_dice: of `CSADLoss`. Where most slices hold
            nothing of a label, one Dice over the batch learns sooner than the paper's of each.
        augment: see `plain_slice_transforms`.
        middle_mm: only so much of the images' middle is looked at, in plane; None for all.
        threshold: of the probability where the user sets none.
    """

    name: ClassVar[str] = "csad"
    patch: tuple[int, int, int] | None = (1, 256, 256)
    batch_size: int | None = 2
    streams: tuple[str, str] | None = None
    variant: str = "proposed"
    width: int = 64
    norm: str = "batch"
    norm_groups: int = 8
    spacing: float | None = None
    learning_rate: float = 0.01
    momentum: float = 0.9
    optimizer_name: Literal["sgd", "adam"] = "sgd"
    alpha: float = 1.0
    beta: float = 0.1
    sigma: float = 1.0
    foreground_weight: float = 0.95
    batch_dice: bool = False
    augment: Augment = "plain"
    middle_mm: float | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise SettingError(
                f"There is no variant '{self.variant}' of CSAD.", f"Use one of {list(VARIANTS)}."
            )

    def configured(self, data: "Dataset", facts: DataFacts) -> tuple["Self", list[str]]:
        reasons = []
        streams = self.streams or _streams_of(data)
        if self.streams is None:
            reasons.append(f"The streams are {streams[0]} and {streams[1]}.")
        spacing = self.spacing
        if spacing is None:
            assert self.patch is not None
            spacing = fitted_spacing(facts, self.patch)
            reasons.append(
                f"A pixel is {spacing} mm: the median slice then has {self.patch[2]} of them."
            )
        return replace(self, streams=streams, spacing=spacing), reasons

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        assert self.streams is not None
        assert self.spacing is not None
        assert self.patch is not None
        grid = GridSpec(
            axes="reference", spacing=(self.spacing, self.spacing, None), dimensionality="2D",
            tile=(8, *self.patch[1:]), multiple=16, mirror=mirrored(self.augment),
            **middle_of(self.middle_mm),
        )  # fmt: skip
        config: dict[str, Any] = {
            "out_channels": classes_of(data), "width": self.width, "norm": self.norm,
            "norm_groups": self.norm_groups, "fusion": VARIANTS[self.variant][0],
        }  # fmt: skip
        return describe(
            data, record, known_inputs(data, self.streams), grid,
            NetworkSpec(name="csad", config=config), method="CSAD", citation=[PAPER],
            limits=["Both images are needed, of one visit and without motion between them."],
            threshold=self.threshold,
        )  # fmt: skip

    def objective(self, network: nn.Module, facts: DataFacts) -> CSADObjective:
        loss = CSADLoss(
            cast(Scheme, VARIANTS[self.variant][1]), alpha=self.alpha, beta=self.beta,
            sigma=self.sigma, foreground_weight=self.foreground_weight,
            batch_dice=self.batch_dice,
        )  # fmt: skip
        return CSADObjective(network, loss)

    def transforms(self, description: ModelDescription) -> Compose:
        assert self.patch is not None
        keys = [spec.key for spec in description.inputs]
        return plain_slice_transforms(keys, self.patch, augment=self.augment)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer_name == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate)
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return self.learning_rate * (1 - share_done) ** 0.9


def _streams_of(data: "Dataset") -> tuple[str, str]:
    keys = list(data.channels)
    if len(keys) < 2:
        raise SettingError(
            f"The data set '{data.name}' has the channel {keys[0]} alone, CSAD takes two.",
            "Choose another recipe, or a data set with two images of each patient.",
        )
    return next((pair for pair in PAIRS if {*pair} <= {*keys}), (keys[0], keys[1]))
