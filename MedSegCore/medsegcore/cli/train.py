"""`medseg train`."""

import dataclasses
import time
from typing import Any

from medsegcore.cli.app import recipe_settings
from medsegcore.cli.console import Console
from medsegcore.errors import SettingError


def run_train(console: Console, recipe: str, settings: list[str], options: dict[str, Any]) -> None:
    """Train, measure on all cases, and write the figures into the model folder."""
    console.say("Loading the training libraries ...")
    from medsegcore.training.recipes import RECIPES
    from medsegcore.training.report import measure
    from medsegcore.training.trainer import train

    if recipe not in RECIPES:
        raise SettingError(
            f"There is no recipe '{recipe}'.", f"Recipes: {', '.join(sorted(RECIPES))}."
        )
    chosen = recipe_settings(settings)
    known = [field.name for field in dataclasses.fields(RECIPES[recipe])]
    for name in chosen:
        if name not in known:
            raise SettingError(
                f"The recipe '{recipe}' has no setting '{name}'.", f"Settings: {', '.join(known)}."
            )
    last = 0.0

    def progress(step: int, loss: float, done: float, left: float | None) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done >= 1:
            last = time.monotonic()
            console.progress(f"step {step}, loss {loss:.3f}" if console.machine else "train",
                             round(done, 4), 1, left)  # fmt: skip

    run = train(RECIPES[recipe](**chosen), progress=progress, **options)
    folder = measure(
        run,
        device=options["device"],
        progress=lambda name, done, total: console.progress("measure", done, total, None),
    )
    console.event("result", folder=str(folder.path))
    for metric in folder.description.metrics:
        if metric.name == "Dice":
            console.say(f"Dice {metric.value:.3f}  {metric.case} ({metric.how})")
    console.say(f"The model is in {folder.path}; its card is README.md there.")
