"""The Lightning module of every recipe, and the running mean of the weights."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from medsegcore.training.recipes.base import Batch, Objective


def ramped_average(decay: float) -> Callable[[Tensor, Tensor, int | Tensor], Tensor]:
    """Exponential running mean whose memory grows with the number of steps up to `decay`."""

    def average(mean: Tensor, current: Tensor, steps: int | Tensor) -> Tensor:
        rate = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return mean + (current - mean) * (1 - rate)

    return average


class RunningMean(WeightAveraging):
    """Lightning's weight averaging with `ramped_average`."""

    def __init__(self, decay: float):
        super().__init__(avg_fn=ramped_average(decay))


def in_layout(x: Tensor) -> Tensor:
    """Channels last: 3D convolutions run twice as fast so on CPUs, and no slower on GPUs."""
    layout = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    return x.contiguous(memory_format=layout)


class SegmentationModule(L.LightningModule):
    """An objective and its optimizer.

    Args:
        make_optimizer: of the parameters to train, as `Recipe.optimizer`.
        seed: of the dropout.
        changes: from a batch as it comes to the device to one to train on; None where it is one.
    """

    def __init__(
        self,
        objective: Objective,
        make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        seed: int,
        changes: Callable[[Batch], Batch] | None = None,
    ):
        super().__init__()
        self.seed = seed
        self.changes = changes
        flat = getattr(objective.network, "dimensions", 3) == 2
        layout = torch.channels_last if flat else torch.channels_last_3d
        objective.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.objective = objective
        self.make_optimizer = make_optimizer
        # Of a step that is to be shown: the first image, label and answer, by modality or "".
        self.keep_shown = False
        self.shown: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(p for p in self.objective.parameters() if p.requires_grad)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # A batch of the validation is the number of a case.
        return self.changes(batch) if self.changes and isinstance(batch, dict) else batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from torch's generator, whose state a checkpoint does not keep.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step + (self.global_rank << 32))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, terms = self.objective(_laid_out(batch))
        for name, term in terms.items():
            self.log("loss" if name == "total" else f"loss_{name}", term.detach())
        for name, answer, part in _parts(logits, batch):
            score = _overlap(answer, part["label"])
            self.log("_".join(filter(None, ("batch_dice", name))), score)
        if self.keep_shown:
            self.shown = {
                name: (part["image"][0], part["label"][0], answer[0].detach().argmax(dim=0))
                for name, answer, part in _parts(logits, batch)
            }
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return terms["total"]

    def validation_step(self, number: int, batch_idx: int) -> None:
        """Nothing: `Validation` segments the case of that number."""


def _laid_out(batch: Batch) -> dict[str, Any]:
    if "image" not in batch:
        return {name: _laid_out(part) for name, part in batch.items()}
    return {**batch, "image": in_layout(batch["image"])}


def _parts(logits: Any, batch: Batch) -> Iterator[tuple[str, Tensor, Batch]]:
    """(modality or "", logits, what they answer) of each part of the batch."""
    if isinstance(logits, dict):
        for name, part in logits.items():
            yield name, part, batch[name]
    else:
        yield "", logits, batch


@torch.no_grad()
def _overlap(logits: Tensor, label: Tensor) -> Tensor:
    """Dice of all labels as one over the batch."""
    answer = logits.argmax(dim=1, keepdim=True) > 0
    both = (answer & (label > 0)).sum()
    return 2 * both / (answer.sum() + (label > 0).sum()).clamp_min(1)
