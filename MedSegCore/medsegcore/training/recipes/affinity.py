"""A small student that learns from a large teacher: adaptive affinity distillation.

Loussaief, Ayad, Puig, Rashwan (arXiv 2404.02738). Two trainings: `affinity_teacher` makes a model
folder, `affinity` distils that folder into a student.
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
from torch import Tensor, nn

from medsegcore.errors import MissingInputError, SettingError
from medsegcore.losses.affinity import (
    AffinityLossConfig,
    KernelForm,
    SegmentationLoss,
    SegmentationTerm,
)
from medsegcore.models import (
    GridSpec,
    ModelDescription,
    ModelFolder,
    NetworkSpec,
    TrainingRecord,
)
from medsegcore.training.distillation import Distillation
from medsegcore.training.recipes.base import Batch, DataFacts, Objective, Recipe, Supervised
from medsegcore.training.recipes.known import classes_of, describe, known_inputs
from medsegcore.training.slices import fitted_spacing, plain_slice_transforms

if TYPE_CHECKING:
    from typing_extensions import Self

    from medsegcore.training.datasets import Dataset

PAPER = (
    "Loussaief EB, Ayad M, Puig D, Rashwan HA. Adaptive Affinity-Based Generalization For MRI "
    "Imaging Segmentation Across Resource-Limited Settings. arXiv 2404.02738"
)
STEP_SIZE, LOWEST = 2000, 1e-6


class DistillationObjective(Objective):
    """Eq. 8 with its terms; the adapters are trained with the student, the teacher is frozen."""

    def __init__(self, distillation: Distillation):
        super().__init__(distillation.student)
        self.distillation = distillation

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.distillation(batch["image"], batch["label"])


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
            tile=(8, *self.patch[1:]), multiple=16, crop="none",
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
        return plain_slice_transforms([spec.key for spec in description.inputs], self.patch)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        top = self.learning_rate * 0.5 ** ((step + STEP_SIZE) // (2 * STEP_SIZE))
        height = abs(1 - step % (2 * STEP_SIZE) / STEP_SIZE)
        return LOWEST + (top - LOWEST) * height


@dataclass(frozen=True)
class AffinityRecipe(AffinityTeacherRecipe):
    """Settings of the student. Images, spacing and labels are the teacher's.

    Attributes:
        teacher: the teacher's model folder.
        architecture: "enet", "espnet", "erfnet", or any other 2D network of ours with taps.
        logits_weight, kernel_weight, affinity_weight: lambda_1 to lambda_3 of eq. 8; a term of
            weight 0 is left out (table 4).
        kernel_form: of `AffinityLossConfig`.
    """

    name: ClassVar[str] = "affinity"
    teacher: str = ""
    architecture: str = "enet"
    logits_weight: float = 0.2
    kernel_weight: float = 0.9
    affinity_weight: float = 0.9
    kernel_form: KernelForm = "unit"

    def configured(self, data: "Dataset", facts: DataFacts) -> tuple["Self", list[str]]:
        taught = self._teacher().description
        images = tuple(spec.key for spec in taught.inputs)
        missing = [key for key in images if key not in data.channels]
        if missing:
            raise MissingInputError(
                f"The teacher sees '{missing[0]}', which the data set '{data.name}' lacks.",
                f"Its channels: {', '.join(data.channels)}.",
            )
        filled = replace(self, images=images, spacing=taught.grid.spacing[0])
        return filled, [f"Images, grid and labels are those of the teacher '{taught.id}'."]

    def _teacher(self) -> ModelFolder:
        if not self.teacher:
            raise SettingError(
                "There is no teacher.", "Set teacher to the model folder of affinity_teacher."
            )
        return ModelFolder.read(self.teacher)

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        taught = self._teacher().description
        own = super().description(data, record)
        if {(x.value, x.name) for x in own.labels} != {(x.value, x.name) for x in taught.labels}:
            raise SettingError(
                f"The teacher's labels are {_names(taught)}, the data set's {_names(own)}.",
                "Teacher and student answer the same structures.",
            )
        kept = {"inputs": taught.inputs, "reference": taught.reference, "grid": taught.grid}
        return own.model_copy(update=kept)

    def objective(self, network: nn.Module, facts: DataFacts) -> DistillationObjective:
        config = AffinityLossConfig(
            logits_weight=self.logits_weight, kernel_weight=self.kernel_weight,
            affinity_weight=self.affinity_weight, kernel_form=self.kernel_form,
            segmentation=self.segmentation,
        )  # fmt: skip
        assert self.images is not None
        example = torch.zeros(1, len(self.images), 64, 64)
        teacher = self._teacher().load_network()
        return DistillationObjective(Distillation(teacher, network, example, config=config))


def _names(description: ModelDescription) -> str:
    return ", ".join(f"{label.value} {label.name}" for label in description.labels)
