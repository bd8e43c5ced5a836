"""`medseg train`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegcore.cli.app import recipe_settings
from medsegcore.cli.console import Console
from medsegcore.errors import CancelledError

if TYPE_CHECKING:
    from medsegcore.models import ModelFolder
    from medsegcore.training.datasets import Dataset
    from medsegcore.training.recipes import Recipe
    from medsegcore.training.setup import Plan
    from medsegcore.training.trainer import TrainingRun

StepProgress = Callable[[int, float, float, float | None], None]


def run_train(
    console: Console,
    recipe: str,
    settings: list[str],
    data: Path,
    out: Path,
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    """Train, measure on all cases, and write the figures into the model folder."""
    console.say("Loading the training libraries ...")
    from medsegcore.training.setup import Plan
    from medsegcore.training.trainer import train

    chosen = make_recipe(recipe, settings)
    plan = Plan(**options)
    if dry_run:
        say_plan(console, chosen, data, plan)
        return
    done = measured(console, out, plan, lambda progress: train(chosen, data, out, plan, progress))
    if done is None:
        return
    _run, folder = done
    console.event("result", folder=str(folder.path))
    for metric in folder.description.metrics:
        if metric.name.endswith("Dice"):
            console.say(f"{metric.name} {metric.value:.3f}  {metric.case} ({metric.how})")
    console.say(f"The model is in {folder.path}; its card is README.md there.")


def say_plan(console: Console, recipe: "Recipe", data: "Path | Dataset", plan: "Plan") -> None:
    """Rehearse a training and say what it would be."""
    from medsegcore.training.rehearsal import rehearse

    say = plan_to(console)
    rehearsal = rehearse(recipe, data, plan, say)
    for line in [*rehearsal.lines(plan), rehearsal.measuring]:
        say(line)


def measured(
    console: Console,
    out: Path,
    plan: "Plan",
    start: Callable[[StepProgress], "TrainingRun | None"],
) -> "tuple[TrainingRun, ModelFolder] | None":
    """Train by `start`, and measure on all cases; None in processes other than the first."""
    from medsegcore.training.report import measure

    with resumable(out):
        run = start(training_progress(console))
        if run is None:
            return None
        for note in run.notes:
            console.say(note)
        folder = measure(
            run,
            device=plan.device,
            progress=lambda done, total, left: console.progress("measure", done, total, left),
        )
    return run, folder


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Tells who cancels how to go on, where a checkpoint is left to go on from."""
    from medsegcore.training.trainer import LAST

    try:
        yield
    except CancelledError as error:
        if not (out / LAST).is_file():
            raise
        raise CancelledError(error.message, "The same command with --resume goes on.") from error


def plan_to(console: Console) -> Callable[[str], None]:
    """Tells a console what a rehearsal says."""

    def say(line: str) -> None:
        console.say(line)
        console.event("plan", text=line)

    return say


def training_progress(console: Console) -> StepProgress:
    """What `train` calls after each step, said twice a second at most."""
    last = 0.0

    def progress(step: int, loss: float, done: float, left: float | None) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done >= 1:
            last = time.monotonic()
            console.progress(f"step {step}, loss {loss:.3f}" if console.machine else "train",
                             round(done, 4), 1, left)  # fmt: skip

    return progress


def make_recipe(name: str, settings: list[str]) -> "Recipe":
    """The recipe of that name with settings such as "width=12"; SettingError otherwise."""
    from medsegcore.training.recipes import recipe_of

    return recipe_of(name, recipe_settings(settings), strict=True)
