"""A plain U-Net for data of one's own: everything is chosen from the data set and the machine.

The comparator of all five papers (Ronneberger et al., MICCAI 2015; Cicek et al., MICCAI 2016),
trained with Dice and cross-entropy.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from monai.losses import DiceCELoss
from monai.transforms import Compose
from torch import Tensor, nn
from torch.optim import Optimizer

from medsegcore.errors import DatasetError, SettingError
from medsegcore.models import (
    AttentionSpec,
    GridSpec,
    InputMatch,
    InputSpec,
    Label,
    ModelDescription,
    NetworkSpec,
    Normalisation,
    TrainingRecord,
)
from medsegcore.models.label_names import plain_name
from medsegcore.networks import create_network
from medsegcore.training.augmentation import slice_transforms, training_transforms
from medsegcore.training.datasets import Dataset
from medsegcore.training.facts import fitting_size, is_flat, reference_key, training_bytes
from medsegcore.training.recipes.base import (
    NO_WEIGHTS,
    RESEARCH_ONLY,
    DataFacts,
    Recipe,
    Supervised,
    warm_cosine,
)
from medsegcore.training.recipes.known import SKULL_STRIPPED
from medsegcore.training.recipes.terms import COLORS, ONE_PIECE, TERMINOLOGY
from medsegcore.training.transplant import with_transplants

PAPERS = {
    2: "Ronneberger O, Fischer P, Brox T. U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation. MICCAI 2015.",
    3: "Cicek O, Abdulkadir A, Lienkamp SS, et al. 3D U-Net: Learning Dense Volumetric "
    "Segmentation from Sparse Annotation. MICCAI 2016.",
}
MULTIPLE = 16
# Of CT: from air on, without metal.
HOUNSFIELD = (-1000.0, 1000.0)
# Voxels of the smallest patch: below it the network is narrowed instead.
LEAST = 32**3
# (width, voxels of a patch, largest batch) to begin with, by dimensions and whether on a GPU. On a
# CPU the time of a step, not the memory, is what limits them.
START = {
    (3, True): (32, 128**3, 4),
    (3, False): (8, 64**3, 2),
    (2, True): (32, 512**2, 32),
    (2, False): (16, 256**2, 8),
}


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    """See `Recipe` for what is common; None lets the data and the machine decide.

    Attributes:
        dimensions: 3 for patches, 2 for slices.
        neighbours: slices on each side that a slice is seen with; 0 in 3D.
        spacing: mm along i, j, k that all is resampled to; null keeps an axis as it is (slices).
        width: of the network (`UNetConfig`).
        learning_rate: at its highest; it rises over `warmup_steps` and falls as a cosine.
        warmup_steps: a tenth of the budget where that is less.
        weight_decay: of AdamW.
        drop: probability of hiding an optional input from the network.
        ghosting: probability of ghosts in an input.
        transplant: probability of carrying a labelled part of another case into a patch's case.
    """

    name: ClassVar[str] = "unet"
    dimensions: Literal[2, 3] | None = None
    neighbours: int = 0
    spacing: tuple[float | None, float | None, float | None] | None = None
    width: int | None = None
    ema_decay: float = 0.999
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    warmup_steps: int = 100
    drop: float = 0.3
    ghosting: float = 0.0
    transplant: float = 0.0

    def configured(self, data: Dataset, facts: DataFacts) -> tuple["UNetRecipe", list[str]]:
        notes = []
        recipe = self
        if recipe.dimensions is None:
            flat = is_flat(facts)
            recipe = replace(recipe, dimensions=2 if flat else 3)
            i, j, k = facts.spacing
            notes.append(
                f"Dimensions {recipe.dimensions}: the median image has {facts.shape[0]} slices "
                f"of {k:g} mm with pixels of {i:g} x {j:g} mm."
            )
        flat = recipe.dimensions == 2
        if recipe.neighbours and not flat:
            raise SettingError(
                f"neighbours is {recipe.neighbours}, but these images are seen in 3D.",
                "Leave it out, or set dimensions to 2.",
            )
        if recipe.spacing is None:
            i, j, k = facts.spacing
            recipe = replace(recipe, spacing=(i, j, None if flat else k))
            notes.append(
                f"Spacing {i:g} x {j:g}{'' if flat else f' x {k:g}'} mm: the median of "
                f"{facts.cases} cases{', slices as they are' if flat else ''}."
            )
        return recipe._sized(data, facts, notes)

    def _sized(
        self, data: Dataset, facts: DataFacts, notes: list[str]
    ) -> tuple["UNetRecipe", list[str]]:
        """With width, patch and batch size, as large as the memory allows."""
        assert self.dimensions is not None
        assert self.spacing is not None
        width, voxels, most = START[self.dimensions, facts.on_gpu]
        scale = [own / (new or own) for own, new in zip(facts.spacing, self.spacing, strict=True)]
        size = [round(n * factor) for n, factor in zip(facts.shape, reversed(scale), strict=True)][
            3 - self.dimensions :
        ]

        while True:
            patch = fitting_size(size, MULTIPLE, voxels)
            whole = (1, *patch) if self.dimensions == 2 else patch
            chosen = replace(
                self,
                width=self.width or width,
                patch=self.patch or (whole[0], whole[1], whole[2]),
            )
            fixed, each = chosen._bytes(data, facts)
            batch = min((facts.memory - fixed) // each, most)
            # Batch normalisation needs at least two.
            if batch >= 2 or width <= 4:
                break
            voxels, width = (voxels // 2, width) if voxels > LEAST else (voxels, width // 2)
        chosen = replace(chosen, batch_size=self.batch_size or max(batch, 1))
        assert chosen.patch is not None
        assert chosen.batch_size is not None
        where = "the GPU" if facts.on_gpu else "the computer"
        sides = " x ".join(str(n) for n in chosen.patch)
        notes.append(
            f"Width {chosen.width}, patches of {sides} voxels (k, j, i), {chosen.batch_size} at a "
            f"time: about {(fixed + chosen.batch_size * each) / 1e9:.1f} GB of the "
            f"{facts.memory / 1e9:.0f} GB that {where} has for it"
            + ("." if facts.on_gpu else ", and kept small because there is no GPU.")
        )
        return chosen, notes

    def _bytes(self, data: Dataset, facts: DataFacts) -> tuple[int, int]:
        """`training_bytes` of a recipe with width and patch."""
        assert self.patch is not None
        spec = self.network_spec(data)
        shape = (self._channels(data), *self.patch[3 - (self.dimensions or 3) :])
        return training_bytes(lambda: create_network(spec.name, spec.config), shape, facts.on_gpu)

    def _channels(self, data: Dataset) -> int:
        return len(data.channels) * (2 * self.neighbours + 1)

    def network_spec(self, data: Dataset) -> NetworkSpec:
        """The network's name and config."""
        config: dict[str, Any] = {
            "in_channels": self._channels(data),
            "out_channels": max(data.labels.values()) + 1,
            "width": self.width,
            "dimensions": self.dimensions,
        }
        return NetworkSpec(name="unet", config=config)

    def description(self, data: Dataset, record: TrainingRecord) -> ModelDescription:
        assert self.patch is not None
        assert self.spacing is not None
        assert self.dimensions is not None
        first = reference_key(data)
        if not data.channels[first].required:
            raise DatasetError(
                f"The data set '{data.name}' has no channel that every case has.",
                "The answer lies on the grid of such a channel: leave the other cases out.",
            )
        inputs = [
            InputSpec(
                key=key,
                title=channel.title,
                modality=channel.modality,
                units=channel.units,
                required=channel.required,
                match=InputMatch(names=[re.escape(channel.title)]),
                normalisation=Normalisation(
                    method="zscore", window=HOUNSFIELD if channel.units == "HU" else None
                ),
            )
            for key, channel in data.channels.items()
        ]
        spec = self.network_spec(data)
        given: Any = create_network(spec.name, spec.config).attention
        names = ", ".join(data.labels)
        slug = re.sub(r"[^a-z0-9]+", "-", data.name.lower()).strip("-")
        return ModelDescription(
            id=f"{slug[:50]}-unet".lstrip("-"),
            version="1.0.0",
            title=f"{names} from {', '.join(s.title for s in inputs)} (U-Net)",
            task=f"Segments {names} as in the data set '{data.title}'.",
            anatomy="not stated",
            skull_stripped=data.skull_stripped,
            network=spec,
            weights=NO_WEIGHTS,
            inputs=inputs,
            reference=first,
            missing_input="refuse" if all(s.required for s in inputs) else "zero",
            grid=self._grid(),
            labels=[
                Label(
                    value=value, name=name, color=COLORS[n % len(COLORS)],
                    one_piece=plain_name(name) in ONE_PIECE,
                    terminology=TERMINOLOGY.get(plain_name(name)),
                )
                for n, (name, value) in enumerate(data.labels.items())
            ],
            attention=[AttentionSpec.model_validate(a) for a in given],
            training=record,
            data=[],
            metrics=[],
            intended_use=RESEARCH_ONLY,
            limits=[SKULL_STRIPPED] if data.skull_stripped else [],
            citation=[PAPERS[self.dimensions]],
            memory_mb=0,
        )  # fmt: skip

    def _grid(self) -> GridSpec:
        assert self.patch is not None
        assert self.spacing is not None
        if self.dimensions == 3:
            return GridSpec(spacing=self.spacing, tile=self.patch, overlap=0.25, multiple=MULTIPLE)
        return GridSpec(
            axes="reference", spacing=self.spacing, tile=(8, *self.patch[1:]), overlap=0.25,
            dimensionality="2.5D" if self.neighbours else "2D", neighbours=self.neighbours,
            multiple=MULTIPLE,
        )  # fmt: skip

    def objective(self, network: nn.Module, facts: DataFacts) -> Supervised:
        return Supervised(network, DiceAndCrossEntropy())

    def transforms(self, description: ModelDescription) -> Compose:
        assert self.patch is not None
        keys = [spec.key for spec in description.inputs]
        drop = {spec.key: self.drop for spec in description.inputs if not spec.required}
        if self.dimensions == 3:
            items = training_transforms(
                keys, self.patch, drop, description.reference, self.ghosting
            )
        else:
            items = slice_transforms(
                keys, self.patch[1:], self.neighbours, drop, description.reference, self.ghosting
            )
        return with_transplants(items, keys, description.reference or keys[0], self.transplant)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return warm_cosine(self.learning_rate, self.warmup_steps, share_done, step)


class DiceAndCrossEntropy(nn.Module):
    """MONAI's, with the Dice of each label pooled over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits [B, classes, *space], label [B, 1, *space] class numbers -> scalar."""
        return self.loss(logits.float(), label)
