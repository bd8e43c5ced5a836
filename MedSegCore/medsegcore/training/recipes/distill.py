"""Trained models of ours distilled into one small student, by the losses of adaptive affinity.

Loussaief, Ayad, Puig, Rashwan (arXiv 2404.02738, eq. 1-8) let a 2D network teach another. Here any
model folder teaches, in 2D or 3D, with any number of labels, and so do several with the same
inputs, grid and labels, such as those of folds: their mean probability is what the logits and the
affinity term compare with. The kernel term compares features, and those of several networks have
no common meaning: it is left out with several teachers, and where no one stage is a network's
deepest. The student sees the cases as the first teacher did when it was trained: the same
preparation, patches and augmentation. A 2D student of 3D teachers sees the slices of their patches,
and its folder is that of a 2D model. Of teachers that take one of several inputs, the student does
so too: each step has a batch of each, which they answer as that modality, and the terms are
averaged. It is one network for all of them, as the row "Joint" of UMMKD, but for a student that
tells them apart itself. Silent, and our choice: Adam, with a cosine over the budget.
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
    GridSpec,
    ModelDescription,
    ModelFolder,
    NetworkSpec,
    TrainingRecord,
)
from medsegcore.networks import create_network, takes_modality
from medsegcore.training.distillation import Distillation, TapPair
from medsegcore.training.provenance import joined_terms, kept_settings, parent_of
from medsegcore.training.recipes.base import (
    NO_WEIGHTS,
    Batch,
    DataFacts,
    Objective,
    Recipe,
    Supervised,
    by_modality,
    joined,
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
# Of a tile of a 2D student; they do not overlap.
SLICES_AT_ONCE = 8
# Whose batches are the slices of a patch or two: the means over such a batch are not those of
# whole slices. With batch normalisation an ENet of ms-lesion-rsanet had a Dice of 0.04 on a new
# patient after 150 steps (threshold 0.5, one run), with this one of 0.60, and 0.31 after 300.
OF_SLICES = {name: {"norm": "group"} for name in ("enet", "espnet", "erfnet")}


class DistillationObjective(Objective):
    """Eq. 8 with its terms; the adapters are trained with the student, the teacher is frozen."""

    def __init__(self, distillation: Distillation, modalities: Sequence[str] = ()):
        super().__init__(distillation.student)
        self.distillation = distillation
        self.modalities = modalities

    def forward(self, batch: Batch) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor]]:
        logits, terms = self.distillation(*joined(batch, self.modalities))
        return by_modality(logits, self.modalities), terms


class Ensemble(nn.Module):
    """Networks of the same classes as one, whose softmax is the mean of theirs."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.dimensions = networks[0].dimensions

    def forward(self, x: Tensor, modality: int = 0) -> Tensor:
        """x [B, C, *space] of one modality -> logits [B, classes, *space], fp32."""
        options = [{"modality": modality} if takes_modality(n) else {} for n in self.networks]
        logits = [n(x, **own) for n, own in zip(self.networks, options, strict=True)]
        answers = torch.stack([F.log_softmax(own.float(), dim=1) for own in logits])
        return torch.logsumexp(answers, dim=0) - math.log(len(self.networks))


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """Settings of the student. Inputs, grid and labels are the teachers'.

    Without teachers, as a finished student is trained on, the segmentation term alone is left.

    Attributes:
        teachers: their model folders.
        architecture: "enet", "espnet", "erfnet", "unet", or any other network of ours that works
            in as many dimensions as the teachers, or in 2D.
        config: of the network, beside its channels; a U-Net has half its teacher's width and as
            many dimensions as the teacher if none are given, and what learns from the slices of 3D
            patches is normalised by groups.
        patch, batch_size: the first teacher's own if None.
        segmentation: "dice", "focal" or "dice+focal".
        logits_weight, kernel_weight, affinity_weight: lambda_1 to lambda_3 of eq. 8; a term of
            weight 0 is left out (table 4).
        kernel_form: of `AffinityLossConfig`.
        learning_rate: at its highest.
        modalities: keys of the inputs of which the teachers take one, in their order; read from
            the first one's folder.
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
    modalities: tuple[str, ...] = ()
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
            if (taught.needs(spec) or taught.one_of) and spec.key not in data.channels:
                raise MissingInputError(
                    f"The teacher sees '{spec.key}', which the data set '{data.name}' lacks.",
                    f"Its channels: {', '.join(data.channels)}.",
                )
        ids = " and ".join(f"'{folder.description.id}'" for folder in folders)
        reasons = [f"Inputs, grid and labels are those of {ids}."]
        student = _outline(self.network_spec(taught))
        weight = self.kernel_weight
        if weight and (why := self._why_no_kernel(folders)):
            weight = 0.0
            reasons.append(f"The kernel term is left out: {why}.")
        record = taught.training
        base = recipe_of(record.recipe, record.settings)
        keys = tuple(spec.key for spec in taught.inputs) if taught.one_of else ()
        filled = replace(
            self, kernel_weight=weight, patch=self.patch or base.patch,
            batch_size=self.batch_size or base.batch_size, modalities=keys,
            teacher_recipe={"recipe": record.recipe, "settings": kept_settings(record)},
        )  # fmt: skip
        if student.dimensions == 2 and self._sees_patches(taught):
            assert filled.patch is not None
            reasons.append(
                f"The patches are in 3D, '{self.architecture}' works in 2D: it sees the "
                f"{filled.patch[0]} slices of each one by one."
            )
        if keys and not takes_modality(student):
            reasons.append(
                f"One network learns {' and '.join(keys)} alike, a batch of each in every step."
            )
        return filled, reasons

    def _why_no_kernel(self, folders: Sequence[ModelFolder]) -> str:
        """Why KMM has nothing to compare; "" where it has."""
        if len(folders) > 1:
            return f"{len(folders)} teachers have no common features"
        names = (folders[0].description.network.name, self.architecture)
        return next((f"'{n}' has no one deepest stage" for n in names if n not in DEEPEST), "")

    def _sees_patches(self, taught: ModelDescription) -> bool:
        """Whether a step has slices of 3D patches, as 2D students of 3D teachers pass them on."""
        from medsegcore.training.recipes import recipe_of

        record = taught.training
        patch = self.patch or recipe_of(record.recipe, record.settings).patch
        return not taught.grid.flat or (patch is not None and patch[0] > 1)

    def network_spec(self, taught: ModelDescription) -> NetworkSpec:
        """The student's name and config.

        Raises:
            SettingError: it works in 3D where the teacher sees slices, or takes one of several
                inputs where the teacher does not.
        """
        dimensions = 2 if taught.grid.flat else 3
        config: dict[str, Any] = {
            **self.config,
            "in_channels": taught.channels,
            "out_channels": max(label.value for label in taught.labels) + 1,
        }
        if self._sees_patches(taught):
            config = {**OF_SLICES.get(self.architecture, {}), **config}
        if self.architecture == "unet":
            width: Any = taught.network.config.get("width", 16)
            config = {"width": max(width // 2, 2), "dimensions": dimensions, **config}
        spec = NetworkSpec(name=self.architecture, config=config)
        student = _outline(spec)
        if student.dimensions > dimensions:
            raise SettingError(
                f"The student '{self.architecture}' works in 3D, the teacher in 2D.",
                "Choose a student in 2D, such as enet, espnet, erfnet or unet.",
            )
        if takes_modality(student) and not taught.one_of:
            raise SettingError(
                f"The student '{self.architecture}' takes one of several inputs, the teacher all "
                "of its own.",
                "Choose another student, such as enet, espnet, erfnet or unet.",
            )
        return spec

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        folders = self._folders()
        taught = folders[0].description
        check_labels(taught, data)
        spec = self.network_spec(taught)
        network = _outline(spec)
        structures = ", ".join(label.name for label in taught.labels)
        images = (" or " if taught.one_of else ", ").join(s.title for s in taught.inputs)
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
            "grid": _fitted(taught.grid, network),
            "attention": [AttentionSpec.model_validate(a) for a in network.attention],
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
            return Supervised(network, SegmentationLoss(self.segmentation), self.modalities)
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
        assert self.patch is not None
        # A 2D teacher that was itself taught by a 3D one has learnt from patches.
        flat = taught.grid.flat and self.patch[0] == 1
        example = torch.zeros(1, taught.channels, *((64, 64) if flat else (32, 32, 32)))
        both = Distillation(
            teacher, network, example, [pair], config, modalities=len(self.modalities) or 1
        )
        return DistillationObjective(both, self.modalities)

    @property
    def beside(self) -> list[NetworkSpec]:
        return [f.description.network for f in self._folders()] if self.teachers else []

    def transforms(self, description: ModelDescription) -> Compose:
        return self._base().transforms(description)

    def load(self, case: "Case", description: ModelDescription) -> dict[str, Tensor]:
        return self._base().load(case, description)

    def modality(self, case: "Case") -> str:
        return self._base().modality(case)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return warm_cosine(self.learning_rate, 1, share_done, step)

    def finished(self, description: ModelDescription) -> ModelDescription:
        """With the teachers as parents, and no more rights than they give."""
        taught = [folder.description for folder in self._folders()]
        parents = [parent_of(description, "teacher") for description in taught]
        record = description.training
        settings = {**kept_settings(record), "chosen": record.settings["chosen"]}
        terms = joined_terms([*(d.weights for d in taught), description.weights])
        update = {
            "training": record.model_copy(update={"parents": parents, "settings": settings}),
            "weights": description.weights.model_copy(update=terms),
        }
        return description.model_copy(update=update)


def _outline(spec: NetworkSpec) -> Any:
    """The network without weights, for what it says of itself."""
    with torch.device("meta"):
        return create_network(spec.name, spec.config)


def _fitted(grid: GridSpec, student: Any) -> GridSpec:
    """The teachers' grid with tiles that suit the student; of slices where it works in 2D."""
    update: dict[str, Any] = {"multiple": math.lcm(grid.multiple, student.multiple)}
    tile = grid.tile
    if student.dimensions == 2 and not grid.flat:
        mirror = tuple(axis for axis in grid.mirror if axis != "k")
        update |= {"dimensionality": "2D", "mirror": mirror}
        tile = (SLICES_AT_ONCE, *tile[1:])
    grid = grid.model_copy(update=update)
    sizes = [math.ceil(n / m) * m for n, m in zip(tile, grid.multiples, strict=True)]
    return GridSpec.model_validate({**grid.model_dump(), "tile": sizes})


def _what_is_seen(description: ModelDescription) -> dict[str, Any]:
    d = description
    return {
        "inputs": (d.inputs, d.reference, d.missing_input, d.skull_stripped),
        "grid": d.grid.model_dump(exclude=TILING),
        "labels": [(label.value, label.name) for label in d.labels],
    }
