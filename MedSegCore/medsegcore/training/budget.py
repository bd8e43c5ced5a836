"""How long a training may go on, and what depends on how much of that is spent."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, Timer


class Budget(Timer):
    """Ends the training after that many minutes or steps, whichever comes first.

    The minutes of a training that is resumed count on from where it stopped.

    Attributes:
        done: share of the budget that is spent, 0..1; the same in all processes.
    """

    def __init__(self, minutes: float | None, steps: int | None):
        super().__init__(
            duration=None if minutes is None else timedelta(minutes=minutes), verbose=False
        )
        self.minutes = minutes
        self.steps = steps
        self.done = 0.0

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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._agree(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, *args, **kwargs)
        self._agree(trainer)

    def _agree(self, trainer: L.Trainer) -> None:
        # Each process has its own clock, but the learning rate has to be the same in all.
        done = self.share_done(trainer.global_step)
        self.done = done if self.minutes is None else trainer.strategy.broadcast(done)


class BudgetedLearningRate(Callback):
    """Sets the learning rate before each step.

    A scheduler of torch counts steps, but a budget in minutes does not know their number.

    Args:
        rate_at: of (share of the budget done, step), as `Recipe.learning_rate_at`.
    """

    def __init__(self, budget: Budget, rate_at: Callable[[float, int], float]):
        self.budget = budget
        self.rate_at = rate_at

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate_at(self.budget.done, trainer.global_step)
