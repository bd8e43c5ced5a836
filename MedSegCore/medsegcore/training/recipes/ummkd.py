"""One network for two unpaired modalities: UMMKD (Dou et al., IEEE TMI 2020).

From the paper (sections III-C and IV-A): each step sees a batch of CT and one of MR, as many of one
as of the other; Dice and weighted cross-entropy of each, the distillation of the confusion matrices
with alpha 0.5 and T 2, squared parameters with eta 1e-4 (eq. 5); Adam. 2D: the slice and its two
neighbours, 256 x 256 at 1 mm, 8 of each modality, learning rate 1e-4, 5 % less every 1000 steps.
3D: 256 x 256 x 8 at 1.5 x 1.5 x 8 mm, 4 together, 1e-4, 5 % less every 500 steps. Zero mean, unit
variance for each modality.
Silent, and our choice: no augmentation is named, and there is none unless `augment` is set; CT in
HU is cut to the window of known.py first; half of the patches lie round a structure; overlap of
the windows at inference. The paper's 2D slices are coronal, ours axial.
At inference exactly one of the two is given.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from monai.transforms import Compose, RandCropByPosNegLabeld, SpatialPadd
from torch import Tensor, nn

from medsegcore.errors import SettingError
from medsegcore.imaging import read_image
from medsegcore.inference.preprocess import prepare
from medsegcore.losses.ummkd import UMMKDLoss, weight_of
from medsegcore.models import GridSpec, InputSpec, ModelDescription, NetworkSpec, TrainingRecord
from medsegcore.networks.ummkd import SETTINGS, UMMKD2d, UMMKD3d
from medsegcore.training.augmentation import Stackd
from medsegcore.training.cases import class_numbers, labels_on
from medsegcore.training.recipes.base import (
    Batch,
    DataFacts,
    Objective,
    Recipe,
    by_modality,
    check_prior,
    joined,
    start_rare,
)
from medsegcore.training.recipes.known import classes_of, describe, known_inputs
from medsegcore.training.running import answer
from medsegcore.training.slices import Augment, mirrored, plain_slice_transforms

if TYPE_CHECKING:
    from typing_extensions import Self

    from medsegcore.training.datasets import Case, Dataset

PAPER = (
    "Dou Q, Liu Q, Heng PA, Glocker B. Unpaired Multi-modal Segmentation via Knowledge "
    "Distillation. IEEE TMI 39(7), 2020."
)


class UMMKDObjective(Objective):
    """Eq. 5 with its terms.

    Args:
        network: of two modalities.
        loss: eq. 5.
        modalities: their keys in the order in which the network counts them.

    Attributes:
        knowledge: q of the last batch by modality, [C, C], without gradient (figure 8).
    """

    def __init__(self, network: nn.Module, loss: UMMKDLoss, modalities: tuple[str, str]):
        super().__init__(network)
        self.loss = loss
        self.modalities = modalities
        self.knowledge: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor]]:
        images, labels = joined(batch, self.modalities)
        logits = answer(self.network, images, 2)
        (of_a, of_b), (true_a, true_b) = logits.chunk(2), labels.chunk(2)
        terms = self.loss(of_a, true_a, of_b, true_b, self.network)
        a, b = self.modalities
        self.knowledge = {a: terms.knowledge_a.q, b: terms.knowledge_b.q}
        return by_modality(logits, self.modalities), {
            "total": terms.total,
            f"segmentation_{a}": terms.segmentation_a,
            f"segmentation_{b}": terms.segmentation_b,
            "distillation": terms.distillation,
            "squares": terms.squares,
        }


@dataclass(frozen=True)
class UMMKDRecipe(Recipe):
    """Settings of UMMKD.

    Attributes:
        modalities: keys of the two channels; the data set's only two when None.
        dimensions: 2 or 3.
        patch: (1, 256, 256) in 2D and (8, 256, 256) in 3D when None.
        batch_size: of each modality; 8 in 2D and 2 in 3D when None.
        spacing: mm along i, j, k; 1 in 2D and (1.5, 1.5, 8) in 3D when None.
        sharing, norm, norm_groups, layout, head_bias: of the network (`UMMKD2dConfig`); "ours" and
            "joint+kd" distil, the other five settings do not.
        prior: of all labels together before training, where there is a bias: `start_rare`.
        width: channels of its first part.
        windows: intensities that an image is cut to, by its key, for another window than that of
            known.py, which shows all of a CT's soft tissue and bone. What is below counts as
            background.
        alpha, temperature, eta: of `UMMKDLoss`.
        learning_rate: at the start.
        augment: of the slices (2D alone), see `plain_slice_transforms`.
        threshold: of the probability where the user sets none.
    """

    name: ClassVar[str] = "ummkd"
    gradient_clip: float | None = None
    modalities: tuple[str, str] | None = None
    dimensions: int = 2
    spacing: tuple[float, float, float] | None = None
    sharing: str = "ours"
    norm: str = "batch"
    norm_groups: int = 16
    layout: str = "paper"
    head_bias: bool = True
    prior: float = 0.01
    width: int = 16
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)
    alpha: float = 0.5
    temperature: float = 2.0
    eta: float = 1e-4
    learning_rate: float = 1e-4
    augment: Augment = "none"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3):
            raise SettingError(f"dimensions is {self.dimensions}.", "Use 2 or 3.")
        if self.sharing not in SETTINGS:
            raise SettingError(
                f"There is no sharing '{self.sharing}'.", f"Use one of {', '.join(SETTINGS)}."
            )
        check_prior(self.prior)
        if self.augment != "none" and self.dimensions == 3:
            raise SettingError("augment is for slices.", "Leave it out, or set dimensions to 2.")
        for key, window in self.windows.items():
            if len(window) != 2 or not window[0] < window[1]:
                raise SettingError(
                    f"The window of '{key}' is {list(window)}.", "Give it as [low, high]."
                )

    def configured(self, data: "Dataset", facts: DataFacts) -> tuple["Self", list[str]]:
        keys = self.modalities or tuple(data.channels)
        if len(keys) != 2:
            raise SettingError(
                f"The data set '{data.name}' has the channels {', '.join(keys)}, UMMKD takes two.",
                "Name two of them as modalities.",
            )
        flat = self.dimensions == 2
        filled = replace(
            self,
            modalities=(keys[0], keys[1]),
            patch=self.patch or ((1, 256, 256) if flat else (8, 256, 256)),
            batch_size=self.batch_size or (8 if flat else 2),
            spacing=self.spacing or ((1.0, 1.0, 1.0) if flat else (1.5, 1.5, 8.0)),
        )
        return filled, [f"The unpaired modalities are {keys[0]} and {keys[1]}."]

    def description(self, data: "Dataset", record: TrainingRecord) -> ModelDescription:
        assert self.modalities is not None
        assert self.spacing is not None
        assert self.patch is not None
        flat = self.dimensions == 2
        grid = GridSpec(
            spacing=self.spacing, dimensionality="2.5D" if flat else "3D",
            neighbours=1 if flat else 0, tile=(8, *self.patch[1:]) if flat else self.patch,
            multiple=8, crop="none", mirror=mirrored(self.augment),
        )  # fmt: skip
        config: dict[str, Any] = {
            "out_channels": classes_of(data), "width": self.width, "sharing": self.sharing,
            "norm": self.norm, "norm_groups": self.norm_groups, "layout": self.layout,
            "head_bias": self.head_bias,
        }  # fmt: skip
        return describe(
            data, record, self._inputs(data), grid,
            NetworkSpec(name=f"ummkd_{self.dimensions}d", config=config), method="UMMKD",
            citation=[PAPER], threshold=self.threshold, one_of=True,
        )  # fmt: skip

    def _inputs(self, data: "Dataset") -> list[InputSpec]:
        assert self.modalities is not None
        for key in self.windows:
            if key not in self.modalities:
                raise SettingError(
                    f"A window is given for '{key}', which is none of the modalities.",
                    f"They are {' and '.join(self.modalities)}.",
                )
        inputs = []
        for spec in known_inputs(data, self.modalities):
            window = self.windows.get(spec.key, spec.normalisation.window)
            how = spec.normalisation.model_copy(update={"window": window and tuple(window)})
            inputs.append(spec.model_copy(update={"normalisation": how}))
        return inputs

    def network(self, description: ModelDescription) -> nn.Module:
        network = super().network(description)
        assert isinstance(network, (UMMKD2d, UMMKD3d))
        for convolution in network.out.copies:
            start_rare(convolution.bias, self.prior)  # type: ignore[arg-type]
        return network

    def objective(self, network: nn.Module, facts: DataFacts) -> UMMKDObjective:
        assert self.modalities is not None
        alpha = weight_of(self.sharing, self.alpha)
        loss = UMMKDLoss(alpha, self.temperature, self.eta, self.layout == "released")
        return UMMKDObjective(network, loss, self.modalities)

    def transforms(self, description: ModelDescription) -> Compose:
        assert self.patch is not None
        if self.dimensions == 2:
            return plain_slice_transforms(["image"], self.patch, 1, self.augment)
        every = ["image", "label"]
        return Compose(
            [
                SpatialPadd(every, self.patch),
                RandCropByPosNegLabeld(every, "label", spatial_size=self.patch, num_samples=1),
                Stackd(["image"]),
            ]
        )

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return self.learning_rate * 0.95 ** (step // (1000 if self.dimensions == 2 else 500))

    def modality(self, case: "Case") -> str:
        assert self.modalities is not None
        found = [key for key in self.modalities if key in case.images]
        if len(found) != 1:
            raise SettingError(
                f"The case '{case.id}' has {' and '.join(found) or 'none'} of the modalities "
                f"{' and '.join(self.modalities)}.",
                "Each case of an unpaired training has exactly one.",
            )
        return found[0]

    def load(self, case: "Case", description: ModelDescription) -> dict[str, Tensor]:
        """{"image": [1, k, j, i] of whichever modality, "label": [1, k, j, i]}."""
        key = self.modality(case)
        prepared = prepare(description, {key: read_image(case.images[key])})
        numbers = class_numbers(labels_on(prepared.grid, case), description.labels)
        return {
            "image": torch.from_numpy(prepared.tensor),
            "label": torch.from_numpy(numbers)[None],
        }
