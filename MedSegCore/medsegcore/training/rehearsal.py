"""A training in a few steps that leaves nothing behind: what it would be, and how long it takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import psutil
import torch
from lightning.pytorch.callbacks import Callback

from medsegcore.training.budget import Budget
from medsegcore.training.datasets import Dataset
from medsegcore.training.module import SegmentationModule
from medsegcore.training.recipes.base import Recipe
from medsegcore.training.setup import Plan, Setup, set_up
from medsegcore.training.trainer import device_name, fit, make_trainer

# The first step also allocates memory and chooses algorithms.
STEPS = 3
CASES = 4


@dataclass(frozen=True)
class Rehearsal:
    """What a training would be.

    Attributes:
        seconds_per_step: mean of three steps, without validation.
        memory: bytes at most, of the GPU or else of the process.
    """

    setup: Setup
    seconds_per_step: float
    memory: int

    def lines(self, plan: Plan) -> list[str]:
        """What was measured, one sentence each."""
        split = self.setup.split
        rate = 60 / self.seconds_per_step
        steps = [] if plan.steps is None else [plan.steps]
        steps += [] if plan.minutes is None else [int(plan.minutes * rate)]
        return [
            f"Speed: {rate:.0f} steps per minute; memory: {self.memory / 1e9:.1f} GB.",
            f"The budget is about {min(steps)} step{'' if min(steps) == 1 else 's'} or "
            f"{_minutes(min(steps) / rate)}"
            f"{', and what the validation takes' if split.validation else ''}.",
        ]

    @property
    def measuring(self) -> str:
        """What a training of its own does after its budget, in one sentence."""
        count = sum(case.label is not None for cases in self.setup.split for case in cases)
        return f"Measuring the model on {count} case{'' if count == 1 else 's'} comes on top."


def _minutes(count: float) -> str:
    if count < 0.95:
        return "less than a minute"
    return "1 minute" if round(count) == 1 else f"{count:.0f} minutes"


def setup_lines(setup: Setup, plan: Plan) -> list[str]:
    """What is known before the first step, one sentence each."""
    recipe, data, network = setup.recipe, setup.data, setup.description.network
    counts = ", ".join(
        f"{len(cases)} of {len({case.patient for case in cases})} patients {use}"
        for cases, use in zip(setup.split, ("to train on", "to validate on", "to test on"),
                              strict=True)
    )  # fmt: skip
    trained = sum(p.numel() for p in setup.objective.parameters() if p.requires_grad)
    return [
        f"Data: '{data.title}', channels {', '.join(data.channels)}, labels "
        f"{', '.join(data.labels)}; licence: {data.license}.",
        f"Cases: {counts}.",
        *setup.notes,
        f"Network: {network.name}, {trained / 1e6:.2f} million parameters to train, "
        f"{network.config}.",
        f"Batch: {recipe.batch_size} of {' x '.join(str(n) for n in recipe.patch or ())} "
        f"voxels (k, j, i), on {plan.devices * plan.nodes} x {device_name(str(setup.device))}, "
        f"{setup.precision}.",
    ]


def rehearse(
    recipe: Recipe,
    data: str | Path | Dataset,
    plan: Plan,
    say: Callable[[str], None] | None = None,
) -> Rehearsal:
    """Set up with a few cases, train for a few steps in memory, and measure.

    Args:
        say: gets the `setup_lines` before the first step, which may be the process's last.

    Raises:
        OutOfMemoryError: a step takes more memory than there is, see `check_memory`.
    """
    short = replace(plan, devices=1, nodes=1, minutes=None, steps=STEPS + 1)
    setup = set_up(recipe, data, plan, most=CASES)
    if say is not None:
        for line in setup_lines(setup, plan):
            say(line)
    shown = replace(setup, split=setup.split._replace(validation=[]))
    module = SegmentationModule(
        setup.objective, setup.recipe.optimizer, plan.seed, setup.patches.changes
    )
    clock = _Clock()
    trainer = make_trainer(shown, short, Budget(None, STEPS + 1), [clock], None)
    fit(trainer, module, shown, short)
    device = trainer.strategy.root_device
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = psutil.Process().memory_info().rss
    seconds = (clock.times[-1] - clock.times[0]) / STEPS
    return Rehearsal(setup, seconds, memory)


class _Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.monotonic())
