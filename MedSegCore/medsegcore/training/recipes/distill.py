"""Trained models of ours distilled into one small student, by the losses of adaptive affinity.

Loussaief, Ayad, Puig, Rashwan (arXiv 2404.02738, eq. 1-8) let a 2D network teach another. Here any
model folder teaches, in 2D or 3D, with any number of labels, and so do several with the same
inputs, grid and labels, such as those of folds: their mean probability is what the logits and the
affinity term compare with. The kernel term compares features, and those of several networks have
no common meaning: it is left out with several teachers, and where no one stage is a network's
deepest. The student sees the cases as the first teacher did when it was trained: the same
preparation, patches and augmentation. Silent, and our choice: Adam, with a cosine over the budget.
The affinity term is off unless it is asked for: at the paper's weight it outweighs the others at
first, and within 300 steps a student of the prostate's zones came to a Dice of 0.90 on its one
patient without it, of 0.21 with it. The recipe `affinity` has the paper's weights.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
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
    AttentionSpec,
    ModelDescription,
    ModelFolder,
    NetworkSpec,
    Parent,
    TrainingRecord,
)
from medsegcore.networks import create_network
from medsegcore.training.distillation import Distillation, TapPair
from medsegcore.training.provenance import joined_terms, kept_settings
from medsegcore.training.recipes.base import (
    NO_WEIGHTS,
    Batch,
    DataFacts,
    Objective,
    Recipe,
    Supervised,
    warm_cosine,
)
from medsegcore.training.recipes.known import check_labels

if TYPE_CHECKING:
    from typing_extensions import Self

    from medsegcore.training.datasets import Case, Dataset

PAPER = (
    "Loussaief EB, Ayad M, Puig D, Rashwan HA. Adaptive Affinity-Based Generalization For MRI "
    "Imaging Segmentation Across Resource-Limited Settings. arXiv 2404.02738"
)
# The deepest features of each network that has them in one stage, by name of tap or submodule.
DEEPEST = {
    "unet": "layers.down_4", "rsanet": "encoder.4", "unetpp": "high", "deeplabv3plus": "high",
    "enet": "high", "espnet": "high", "erfnet": "high",
}  # fmt: skip
# What the grid says of tiles is about the machine, not about what the network sees.
TILING = {"tile", "overlap", "blend", "multiple", "mirror"}


class DistillationObjective(Objective):
    """Eq. 8 with its terms; the adapters are trained with the student, the teacher is frozen."""

    def __init__(self, distillation: Distillation):
        super().__init__(distillation.student)
        self.distillation = distillation

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.distillation(batch["image"], batch["label"])


class Ensemble(nn.Module):
    """Networks of the same classes as one, whose softmax is the mean of theirs."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, *space] -> logits [B, classes, *space], fp32."""
        answers = torch.stack([F.log_softmax(n(x).float(), dim=1) for n in self.networks])
        return torch.logsumexp(answers, dim=0) - math.log(len(self.networks))


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """Settings of the student. Inputs, grid and labels are the teachers'.

    Without teachers, as a finished student is trained on, the segmentation term alone is left.

    Attributes:
        teachers: their model folders.
        architecture: "enet", "espnet", "erfnet", "unet", or any other network of ours that works
            in as many dimensions as the teachers.
        config: of the network, beside its channels; a U-Net has half its teacher's width if none
            is given.
        patch, batch_size: the first teacher's own if None.
        segmentation: "dice", "focal" or "dice+focal".
        logits_weight, kernel_weight, affinity_weight: lambda_1 to lambda_3 of eq. 8; a term of
            weight 0 is left out (table 4).
        kernel_form: of `AffinityLossConfig`.
        learning_rate: at its highest.
        teacher_recipe: name and settings of the recipe by which the first teacher saw the cases;
            read from its folder.
    """

    name: ClassVar[str] = "distill"
    teachers: tuple[str, ...] = ()
    architecture: str = "enet"
    config: dict[str, Any] = field(default_factory=dict)
    segmentation: SegmentationTerm = "dice"
    logits_weight: float = 0.2
    kernel_weight: float = 0.9
    affinity_weight: float = 0.0
    kernel_form: KernelForm = "unit"
    learning_rate: float = 1e-3
    teacher_recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return [spec.key for spec in self._folders()[0].description.inputs]

    def _folders(self) -> list[ModelFolder]:
        """The teachers; SettingError when there are none, or they do not fit together."""
        if not self.teachers:
            raise SettingError("There is no teacher.", "Set teachers to model folders.")
        folders = [ModelFolder.read(path) for path in self.teachers]
        first = folders[0].description
        if first.one_of:
            raise SettingError(
                f"The teacher '{first.id}' takes one of {', '.join(s.key for s in first.inputs)}.",
                "A student has no place for that: choose a teacher that takes all its inputs.",
            )
        for folder in folders[1:]:
            for what, seen in _what_is_seen(folder.description).items():
                if seen != _what_is_seen(first)[what]:
                    raise SettingError(
                        f"The teachers '{folders[0].path}' and '{folder.path}' differ in their "
                        f"{what}.",
                        "Teachers of one student see and answer the same.",
                    )
        return folders

    def _base(self) -> Recipe:
        from medsegcore.training.recipes import recipe_of

        base = recipe_of(self.teacher_recipe["recipe"], self.teacher_recipe["settings"])
        return replace(base, patch=self.patch, batch_size=self.batch_size)

    def configured(self, data: "Dataset", facts: DataFacts) -> tuple["Self", list[str]]:
        from medsegcore.training.recipes import recipe_of

        folders = self._folders()
        taught = folders[0].description
        for spec in taught.inputs:
            if taught.needs(spec) and spec.key not in data.channels:
                raise MissingInputError(
                    f"The teacher sees '{spec.key}', which the data set '{data.name}' lacks.",
                    f"Its channels: {', '.join(data.channels)}.",
                )
        ids = " and ".join(f"'{folder.description.id}'" for folder in folders)
        reasons = [f"Inputs, grid and labels are those of {ids}."]
        weight = self.kernel_weight
        if weight and (why := self._why_no_kernel(folders)):
            weight = 0.0
            reasons.append(f"The kernel term is left out: {why}.")
        record = taught.training
        base = recipe_of(record.recipe, record.settings)
        filled = replace(
            self, kernel_weight=weight, patch=self.patch or base.patch,
            batch_size=self.batch_size or base.batch_size,
            teacher_recipe={"recipe": record.recipe, "settings": kept_settings(record)},
        )  # fmt: skip
        return filled, reasons

    def _why_no_kernel(self, folders: Sequence[ModelFolder]) -> str:
        """Why KMM has nothing to compare; "" where it has."""
        if len(folders) > 1:
            return f"{len(folders)} teachers have no common features"
        names = (folders[0].description.network.name, self.architecture)
        return next((f"'{n}' has no one deepest stage" for n in names if n not in DEEPEST), "")

    def network_spec(self, taught: ModelDescription) -> NetworkSpec:
        """The student's name and config; SettingError if it does not work in those dimensions."""
        dimensions = 2 if taught.grid.flat else 3
        config: dict[str, Any] = {
            **self.config,
            "in_channels": channels_of(taught),
            "out_channels": max(label.value for label in taught.labels) + 1,
        }
        if self.architecture == "unet":
            width: Any = taught.network.config.get("width", 16)
            config = {"width": max(width // 2, 2), **config, "dimensions": dimensions}
        with torch.device("meta"):
            own = getattr(create_network(self.architecture, config), "dimensions", 3)
        if own != dimensions:
            raise SettingError(
                f"The student '{self.architecture}' works in {own}D, the teacher in {dimensions}D.",
                "Choose 'unet', or another student of as many dimensions.",
            )
        return NetworkSpec(name=self.architecture, config=config)

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        folders = self._folders()
        taught = folders[0].description
        check_labels(taught, data)
        spec = self.network_spec(taught)
        with torch.device("meta"):
            attention: Any = create_network(spec.name, spec.config).attention
        structures = ", ".join(label.name for label in taught.labels)
        images = ", ".join(s.title for s in taught.inputs)
        limits = [
            f"Of the teacher '{folder.description.id}': {limit}"
            for folder in folders
            for limit in folder.description.limits
        ]
        update = {
            "id": f"{taught.id[:50]}-{self.architecture.replace('_', '-')}",
            "version": "1.0.0",
            "title": f"{structures} from {images} ({self.architecture} taught by {taught.id})",
            "network": spec,
            "weights": NO_WEIGHTS,
            "attention": [AttentionSpec.model_validate(a) for a in attention],
            "training": record,
            "data": [],
            "metrics": [],
            "timings": [],
            "memory_mb": 0,
            "limits": list(dict.fromkeys(limits)),
            "citation": list(dict.fromkeys([PAPER, *taught.citation])),
        }
        return taught.model_copy(update=update)

    def objective(self, network: nn.Module, facts: DataFacts) -> Objective:
        if not self.teachers:
            return Supervised(network, SegmentationLoss(self.segmentation))
        folders = self._folders()
        taught = folders[0].description
        networks = [folder.load_network() for folder in folders]
        teacher = networks[0] if len(networks) == 1 else Ensemble(networks)
        config = AffinityLossConfig(
            logits_weight=self.logits_weight, kernel_weight=self.kernel_weight,
            affinity_weight=self.affinity_weight, kernel_form=self.kernel_form,
            segmentation=self.segmentation,
        )  # fmt: skip
        pair = TapPair(DEEPEST.get(taught.network.name, ""), DEEPEST.get(self.architecture, ""))
        space = (64, 64) if taught.grid.flat else (32, 32, 32)
        example = torch.zeros(1, channels_of(taught), *space)
        return DistillationObjective(Distillation(teacher, network, example, [pair], config))

    @property
    def beside(self) -> list[NetworkSpec]:
        return [f.description.network for f in self._folders()] if self.teachers else []

    @property
    def ancestors(self) -> list[ModelDescription]:
        return [folder.description for folder in self._folders()] if self.teachers else []

    def transforms(self, description: ModelDescription) -> Compose:
        return self._base().transforms(description)

    def load(self, case: "Case", description: ModelDescription) -> dict[str, Tensor]:
        return self._base().load(case, description)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return warm_cosine(self.learning_rate, 1, share_done, step)

    def finished(self, description: ModelDescription) -> ModelDescription:
        """With the teachers as parents, and no more rights than they give."""
        taught = self.ancestors
        parents = [
            Parent(id=d.id, version=d.version, sha256=d.weights.sha256, role="teacher")
            for d in taught
        ]
        record = description.training
        settings = {**kept_settings(record), "chosen": record.settings["chosen"]}
        terms = joined_terms([*(d.weights for d in taught), description.weights])
        update = {
            "training": record.model_copy(update={"parents": parents, "settings": settings}),
            "weights": description.weights.model_copy(update=terms),
        }
        return description.model_copy(update=update)


def channels_of(description: ModelDescription) -> int:
    """Channels that the network of a model sees."""
    return len(description.inputs) * (2 * description.grid.neighbours + 1)


def _what_is_seen(description: ModelDescription) -> dict[str, Any]:
    d = description
    return {
        "inputs": (d.inputs, d.reference, d.missing_input, d.skull_stripped),
        "grid": d.grid.model_dump(exclude=TILING),
        "labels": [(label.value, label.name) for label in d.labels],
    }
