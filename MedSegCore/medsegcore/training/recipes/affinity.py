"""A small student that learns from a large teacher: adaptive affinity distillation.

Loussaief, Ayad, Puig, Rashwan (arXiv 2404.02738). Two trainings: `affinity_teacher` makes a model
folder, `affinity` distils that folder into a student (`distill.py`, with the paper's settings).
From the paper (sections 2 and 3.1): UNet++ or DeepLabV3+ teach ENet, ESPNet or ERFNet; Dice or
focal loss, and the logits, kernel and affinity terms with the weights 0.2, 0.9, 0.9 (eq. 8); Adam,
batches of 16 for 100 epochs, learning rate 0.01 by CyclicLR with a step size of 2000, "gradually
decreasing" to 1e-6: a triangle that starts at its top and whose top halves with each cycle.
Silent, and our choice: slices of 384 x 384, which make the paper's FLOPs, as a pixel size in mm by
which the median slice has that many pixels; rotation, zoom, shift and blur; half of the slices
round a structure; z-score. The kernel term is "unit" here and not as printed, where it is 1e8
times the others (PAPERS.md). The student has the teacher's inputs, grid and labels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from monai.transforms import Compose
from torch import nn

from medsegcore.losses.affinity import SegmentationLoss, SegmentationTerm
from medsegcore.models import GridSpec, ModelDescription, NetworkSpec, TrainingRecord
from medsegcore.training.recipes.base import DataFacts, Objective, Recipe, Supervised
from medsegcore.training.recipes.distill import PAPER, DistillRecipe
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

STEP_SIZE, LOWEST = 2000, 1e-6


@dataclass(frozen=True)
class AffinityTeacherRecipe(Recipe):
    """Settings of the teacher.

    Attributes:
        images: keys of its channels, the reference first; T2W where there is one, else the first.
        architecture: "unetpp", "deeplabv3plus", or any other 2D network of ours.
        config: of the network, beside its channels.
        spacing: mm of a pixel; by the median slice when None.
        segmentation: "dice", "focal" or "dice+focal".
        learning_rate: at the top of the first cycle.
        augment: see `plain_slice_transforms`.
        middle_mm: only so much of the images' middle is looked at, in plane; None for all.
        threshold: of the probability where the user sets none.
    """

    name: ClassVar[str] = "affinity_teacher"
    patch: tuple[int, int, int] | None = (1, 384, 384)
    batch_size: int | None = 16
    images: tuple[str, ...] | None = None
    architecture: str = "unetpp"
    config: dict[str, Any] = field(default_factory=dict)
    spacing: float | None = None
    segmentation: SegmentationTerm = "dice"
    learning_rate: float = 0.01
    augment: Augment = "plain"
    middle_mm: float | None = None
    threshold: float = 0.5

    def configured(self, data: "Dataset", facts: DataFacts) -> tuple["Self", list[str]]:
        assert self.patch is not None
        images = self.images or (
            ("t2w",) if "t2w" in data.channels else (next(iter(data.channels)),)
        )
        spacing = self.spacing or fitted_spacing(facts, self.patch)
        reasons = [
            f"The network sees {' and '.join(images)}.",
            f"A pixel is {spacing} mm: the median slice then has {self.patch[2]} of them.",
        ]
        return replace(self, images=images, spacing=spacing), reasons

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        assert self.images is not None
        assert self.spacing is not None
        assert self.patch is not None
        grid = GridSpec(
            axes="reference", spacing=(self.spacing, self.spacing, None), dimensionality="2D",
            tile=(8, *self.patch[1:]), multiple=16, mirror=mirrored(self.augment),
            **middle_of(self.middle_mm),
        )  # fmt: skip
        config: dict[str, Any] = {
            **self.config, "in_channels": len(self.images), "out_channels": classes_of(data)
        }  # fmt: skip
        network = NetworkSpec(name=self.architecture, config=config)
        return describe(
            data, record, known_inputs(data, self.images), grid, network,
            method=self.architecture, citation=[PAPER], threshold=self.threshold,
        )  # fmt: skip

    def objective(self, network: nn.Module, facts: DataFacts) -> Objective:
        return Supervised(network, SegmentationLoss(self.segmentation))

    def transforms(self, description: ModelDescription) -> Compose:
        assert self.patch is not None
        keys = [spec.key for spec in description.inputs]
        return plain_slice_transforms(keys, self.patch, augment=self.augment)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return cyclic(self.learning_rate, step)


@dataclass(frozen=True)
class AffinityRecipe(DistillRecipe):
    """Settings of the student: those of `DistillRecipe` as the paper has them."""

    name: ClassVar[str] = "affinity"
    patch: tuple[int, int, int] | None = (1, 384, 384)
    batch_size: int | None = 16
    affinity_weight: float = 0.9
    learning_rate: float = 0.01

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return cyclic(self.learning_rate, step)


def cyclic(highest: float, step: int) -> float:
    """A triangle that starts at its top and whose top halves with each cycle, down to 1e-6."""
    top = highest * 0.5 ** ((step + STEP_SIZE) // (2 * STEP_SIZE))
    height = abs(1 - step % (2 * STEP_SIZE) / STEP_SIZE)
    return LOWEST + (top - LOWEST) * height
