"""What a recipe is: the settings of a training, and what the one trainer asks of them.

The trainer calls, in this order: `configured` with facts from the images' headers, `description`,
`network`, `load` for each case, `objective` with facts that now hold the shares of the labels,
`transforms`, `optimizer`, and `learning_rate_at` before each step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medsegcore.errors import SettingError
from medsegcore.models import WeightsSpec
from medsegcore.networks import create_network
from medsegcore.training.facts import DataFacts as DataFacts
from medsegcore.training.running import answer

if TYPE_CHECKING:
    from monai.transforms import Compose

    from medsegcore.models import ModelDescription, NetworkSpec, TrainingRecord
    from medsegcore.training.datasets.dataset import Case, Dataset

# What a description says of weights before they are written.
NO_WEIGHTS = WeightsSpec(
    sha256="0" * 64, dtype="float16", license="not stated", commercial_use=False
)
RESEARCH_ONLY = (
    "Research and teaching. Not a medical device; every contour has to be checked by a reader "
    "before anything is concluded from it."
)
Batch = Mapping[str, Any]
Self = TypeVar("Self", bound="Recipe")


def warm_cosine(highest: float, warmup_steps: int, share_done: float, step: int) -> float:
    """Linear warm-up, then a cosine over the budget, down to a hundredth of the highest rate.

    The warm-up ends after its steps or a tenth of the budget, whichever comes first: a short
    training would otherwise spend itself on it.
    """
    warm = min(1.0, max((step + 1) / warmup_steps, 10 * share_done))
    return highest * warm * (0.5 * (1 + math.cos(math.pi * share_done)) + 0.01)


def check_prior(prior: float) -> None:
    """Raise SettingError for what cannot be a probability to start from."""
    if not 0 < prior < 1:
        raise SettingError(f"prior is {prior}.", "Give more than 0 and less than 1.")


@torch.no_grad()
def start_rare(bias: Tensor | None, prior: float) -> None:
    """Let an untrained network give all labels together about this probability, everywhere.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3.3. From equal
    probabilities the background, which is nearly all there is, pushes every feature down in the
    first steps; those of the labels may die behind a last ReLU, and then never come back.

    Args:
        bias: of the last convolution, [classes with the background]; None is left alone.
    """
    if bias is not None:
        bias.fill_(math.log(prior / (1 - prior) / (len(bias) - 1)))
        bias[0] = 0.0


class Objective(nn.Module):
    """What is trained: a network with its loss, and whatever else that takes.

    Teachers, adapters and discriminators are submodules. All parameters that require gradients
    go to one optimizer: freeze teachers, and let each term of the loss reach only what it is to
    train. A checkpoint keeps the whole, but only `network` is exported.

    Args:
        network: as `create_network` gives it for the description.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            batch: {"image": [B, C, *space], "label": [B, 1, *space] class numbers as float}, with
                space (k, j, i), or (j, i) for slices; unpaired training gets a dict of such
                batches by modality, see `Recipe.modality`.

        Returns:
            (logits [B, classes, *space] of the network, by modality if the batch is; the terms:
            scalars by name, of which "total" is minimised and all are logged).
        """
        raise NotImplementedError


def joined(batch: Batch, modalities: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(images [B, C, *space], labels [B, 1, *space]) of a batch, modality after modality.

    Args:
        modalities: keys in the order in which networks count them; none where there is but one.

    Raises:
        SettingError: the batch lacks one.
    """
    for key in modalities:
        if key not in batch:
            raise SettingError(
                f"No case to train on has the modality '{key}'.",
                "Hold out fewer cases, or choose other modalities.",
            )
    if not modalities:
        return batch["image"], batch["label"]
    parts = [batch[key] for key in modalities]
    return torch.cat([p["image"] for p in parts]), torch.cat([p["label"] for p in parts])


def by_modality(logits: Tensor, modalities: Sequence[str]) -> Tensor | dict[str, Tensor]:
    """What a network gives for a batch that is `joined`, as `Objective.forward` has it."""
    if not modalities:
        return logits
    return dict(zip(modalities, logits.chunk(len(modalities)), strict=True))


class Supervised(Objective):
    """A network and a loss of its logits alone.

    Args:
        loss: (logits [B, classes, *space], label [B, 1, *space]) -> scalar.
        modalities: see `joined`; the loss is the mean of theirs.
    """

    def __init__(self, network: nn.Module, loss: nn.Module, modalities: Sequence[str] = ()):
        super().__init__(network)
        self.loss = loss
        self.modalities = modalities

    def forward(self, batch: Batch) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor]]:
        images, labels = joined(batch, self.modalities)
        count = len(self.modalities) or 1
        logits = answer(self.network, images, count)
        parts = zip(logits.chunk(count), labels.chunk(count), strict=True)
        total = torch.stack([self.loss(*part) for part in parts]).mean()
        return by_modality(logits, self.modalities), {"total": total}


@dataclass(frozen=True)
class Recipe(ABC):
    """Settings of a training; all of them are recorded in the model folder.

    A recipe gives each setting a default. None leaves the choice to `configured`.

    Attributes:
        patch: voxels (k, j, i) of a training patch; (1, j, i) for slices.
        batch_size: patches or slices of one step, on each device.
        gradient_clip: largest norm of the gradient; None for no limit.
        ema_decay: of the running mean of the weights, which is what gets validated and exported;
            0 for none.
    """

    name: ClassVar[str]
    # Whether who trains can choose patch and batch.
    resizable: ClassVar[bool] = True
    patch: tuple[int, int, int] | None = None
    batch_size: int | None = None
    gradient_clip: float | None = 12.0
    ema_decay: float = 0.0

    @property
    def keys(self) -> list[str] | None:
        """The channels that are read of a folder of cases; None for all that are there."""
        return None

    def configured(self: Self, data: "Dataset", facts: DataFacts) -> tuple[Self, list[str]]:
        """The recipe with every setting filled in, and a sentence for each choice and its reason.

        `label_share` of the facts is still empty.
        """
        return self, []

    @abstractmethod
    def description(self, data: "Dataset", record: "TrainingRecord") -> "ModelDescription":
        """The model folder's description: inputs, grid, labels, network, attention, citation.

        The run fills in licence, data, figures and `record`; what it is called with is enough to
        make the description valid.
        """

    def network(self, description: "ModelDescription") -> nn.Module:
        """A new network, or one with weights to start from."""
        return create_network(description.network.name, description.network.config)

    def outline(self, description: "ModelDescription") -> nn.Module:
        """The network as it is trained, without weights to start from, for what it would take."""
        return create_network(description.network.name, description.network.config)

    @property
    def beside(self) -> "list[NetworkSpec]":
        """Networks that run beside the one that is trained, and do not learn."""
        return []

    @abstractmethod
    def objective(self, network: nn.Module, facts: DataFacts) -> Objective:
        """What is trained."""

    @abstractmethod
    def transforms(self, description: "ModelDescription") -> "Compose":
        """From a case as `load` gives it to a list of one augmented item of a batch.

        The item is {"image": [C, *space], "label": [1, *space]}. Random transforms are MONAI's
        `Randomizable`: all draw from one generator that is seeded anew for each item.
        `training.augmentation` has whole pipelines for patches and for slices.
        """

    @abstractmethod
    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Of the objective's parameters that require gradients."""

    @abstractmethod
    def learning_rate_at(self, share_done: float, step: int) -> float:
        """The learning rate of that step (from 0), with that share 0..1 of the budget spent.

        The share is not step / steps where the budget is in minutes.
        """

    def load(self, case: "Case", description: "ModelDescription") -> dict[str, Tensor]:
        """A case as the network is to see it, by the same `prepare` as at inference.

        Returns:
            {input key: [1, k, j, i] normalised, 0 where missing; "label": [1, k, j, i] class
            numbers as float}.
        """
        from medsegcore.training.cases import load_case

        return load_case(case, description)

    def finished(self, description: "ModelDescription") -> "ModelDescription":
        """The description as it is written, from one with licence, data and record filled in."""
        return description

    def modality(self, case: "Case") -> str:
        """Which of several unpaired modalities the case is of; "" where there is but one.

        Where a recipe names modalities, each step has a batch of each: {"ct": {"image": ...,
        "label": ...}, "mr": {...}}.
        """
        return ""
