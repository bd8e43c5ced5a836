"""The Lightning module, its budget, and the running mean of the weights."""

import math
from datetime import timedelta

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, Timer, WeightAveraging
from torch import Tensor, nn


class Budget(Timer):
    """Ends the training after that many minutes or steps, whichever comes first.

    The minutes of a training that is resumed count on from where it stopped.
    """

    def __init__(self, minutes: float | None, steps: int | None):
        super().__init__(
            duration=None if minutes is None else timedelta(minutes=minutes), verbose=False
        )
        self.minutes = minutes
        self.steps = steps

    def share_done(self, step: int) -> float:
        """0..1 of the budget that is spent after `step` steps."""
        shares = [0.0]
        if self.minutes is not None:
            shares.append(self.time_elapsed() / (60 * self.minutes))
        if self.steps is not None:
            shares.append(step / self.steps)
        return min(max(shares), 1.0)

    def seconds_left(self, step: int) -> float | None:
        """Estimate from the share that is done; None before the first steps are."""
        done = self.share_done(step)
        return self.time_elapsed() * (1 - done) / done if done > 0 and step >= 5 else None


class BudgetedLearningRate(Callback):
    """Linear warm-up, then a cosine over the budget, down to a hundredth of the highest rate.

    A scheduler of torch counts steps, but a budget in minutes does not know their number.
    """

    def __init__(self, budget: Budget, highest: float, warmup_steps: int):
        self.budget = budget
        self.highest = highest
        self.warmup_steps = warmup_steps

    def at(self, step: int) -> float:
        """The learning rate of that step."""
        done = self.budget.share_done(step)
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.highest * warm * (0.5 * (1 + math.cos(math.pi * done)) + 0.01)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.at(trainer.global_step)


def ramped_average(decay: float):
    """Exponential running mean whose memory grows with the number of steps up to `decay`."""

    def average(mean: Tensor, current: Tensor, steps: int | Tensor) -> Tensor:
        rate = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return mean + (current - mean) * (1 - rate)

    return average


class RunningMean(WeightAveraging):
    """Lightning's weight averaging with `ramped_average`."""

    def __init__(self, decay: float):
        super().__init__(avg_fn=ramped_average(decay))


class SegmentationModule(L.LightningModule):
    """A network, its loss and AdamW; `BudgetedLearningRate` moves the learning rate.

    Args:
        network: [B, C, k, j, i] -> logits.
        loss: (logits, target [B, 1, k, j, i]) -> scalar.
        learning_rate: of the start.
        weight_decay: of AdamW.
        seed: of the dropout.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        learning_rate: float,
        weight_decay: float,
        seed: int,
    ):
        super().__init__()
        self.seed = seed
        # 3D convolutions run twice as fast so on CPUs, and no slower on GPUs.
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.loss = loss
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout draws from torch's generator, whose state a checkpoint does not keep.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        image = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        target = batch["label"]
        logits = self.network(image)
        loss = self.loss(logits, target)
        with torch.no_grad():
            answer = logits.argmax(dim=1, keepdim=True) > 0
            both = (answer & (target > 0)).sum()
            total = answer.sum() + (target > 0).sum()
        self.log("loss", loss)
        self.log("batch_dice", 2 * both / total.clamp_min(1))
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss
