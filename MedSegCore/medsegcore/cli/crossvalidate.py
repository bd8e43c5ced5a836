"""`medseg cross-validate`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsegcore.cli.console import Console
from medsegcore.cli.options import (
    Data,
    Device,
    DryRun,
    Label,
    Minutes,
    Precision,
    Seed,
    Setting,
    Steps,
    Workers,
)
from medsegcore.errors import SettingError

if TYPE_CHECKING:
    from medsegcore.training.crossvalidation import Fold, How
    from medsegcore.training.datasets import Dataset
    from medsegcore.training.rehearsal import Rehearsal
    from medsegcore.training.setup import Plan

Out = Annotated[Path, typer.Option(help="Folder to write; one that was stopped goes on.")]
Folds = Annotated[int | None, typer.Option(help="Number of folds; 5 if absent.")]
LeaveOneOut = Annotated[
    str | None, typer.Option(help="Instead of --folds: patient or site, each is a fold.")
]
OneFold = Annotated[
    list[str] | None,
    typer.Option(
        help="Train this fold alone, e.g. fold_0; may be repeated. Other processes, on the same "
        "--out, train the others; the last to end writes the summary."
    ),
]


def add_cross_validate(app: typer.Typer, console: Console) -> None:
    """Add the command."""

    @app.command("cross-validate")
    def cross_validate(
        recipe: Annotated[str, typer.Option(help="Name of a recipe.")],
        data: Data,
        out: Out,
        folds: Folds = None,
        leave_one_out: LeaveOneOut = None,
        fold: OneFold = None,
        minutes: Minutes = None,
        steps: Steps = None,
        setting: Setting = None,
        device: Device = "auto",
        precision: Precision = "auto",
        seed: Seed = 1,
        workers: Workers = 1,
        label: Label = "lesion",
        dry_run: DryRun = False,
    ) -> None:
        """Train and measure a recipe fold by fold; every patient is held out once."""
        options = {
            "minutes": minutes, "steps": steps, "device": device, "precision": precision,
            "seed": seed, "workers": workers, "label": label,
        }  # fmt: skip
        how = how_to_split(folds, leave_one_out)
        run_cross_validate(
            console, recipe, setting or [], data, how, fold or [], out, dry_run, options
        )


def run_cross_validate(
    console: Console,
    recipe: str,
    settings: list[str],
    data: Path,
    how: "How",
    only: list[str],
    out: Path,
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    """Cross-validate, or say what that would be."""
    from medsegcore.cli.train import make_recipe

    console.say("Loading the training libraries ...")
    from dataclasses import replace

    from medsegcore.training.crossvalidation import cross_validate, labelled, make_folds
    from medsegcore.training.datasets import read_dataset
    from medsegcore.training.datasets.visits import visits_as_patients
    from medsegcore.training.rehearsal import rehearse
    from medsegcore.training.setup import Plan

    chosen = make_recipe(recipe, settings)
    plan = Plan(**options)
    plan.check()
    dataset = labelled(read_dataset(data, plan.label, chosen.keys))
    if visits := visits_as_patients(dataset):
        console.warn(visits)
    folds = make_folds(dataset, how)
    if dry_run:
        say_folds(console, dataset, folds)
        first = replace(plan, test=folds[0].test)
        rehearsal = rehearse(chosen, dataset, first, console.say)
        for line in rehearsal.lines(first):
            console.say(line)
        say_hours(console, {recipe: rehearsal}, len(folds), plan)
        return
    if cross_validate(chosen, dataset, how, plan, out, progress_to(console), only) is None:
        console.say(f"{', '.join(only)} done; the summary needs all {len(folds)} folds in {out}.")
        return
    finish(console, out, ["summary.md", "figures.csv", "boxes.svg", "curves.svg"])


def how_to_split(folds: int | None, leave_one_out: str | None) -> "How":
    """What the two options mean; SettingError where they contradict each other."""
    if leave_one_out is None:
        return 5 if folds is None else folds
    if folds is not None:
        raise SettingError(
            f"Both --folds {folds} and --leave-one-out {leave_one_out} are given.", "Give one."
        )
    if leave_one_out == "patient":
        return "patient"
    if leave_one_out == "site":
        return "site"
    raise SettingError(f"--leave-one-out is '{leave_one_out}'.", "Use patient or site.")


def say_folds(console: Console, data: "Dataset", folds: list["Fold"]) -> None:
    """A line for each fold."""
    for fold in folds:
        cases = sum(case.patient in fold.test for case in data.cases)
        console.say(f"{fold.name}: {cases} cases of the patients {', '.join(fold.test)}.")
        console.event("fold", fold=fold.name, patients=fold.test, cases=cases)


def say_hours(
    console: Console, rehearsals: dict[str, "Rehearsal"], folds: int, plan: "Plan"
) -> None:
    """How long all will take, by how fast each was."""
    total = 0.0
    for title, rehearsal in rehearsals.items():
        by_steps = [] if plan.steps is None else [plan.steps * rehearsal.seconds_per_step]
        by_time = [] if plan.minutes is None else [60 * plan.minutes]
        seconds = folds * min(by_steps + by_time)
        total += seconds
        console.say(f"{title}: {folds} trainings, about {seconds / 3600:.2f} h.")
        console.event("estimate", title=title, trainings=folds, seconds=round(seconds))
    console.say(f"Together about {total / 3600:.2f} h, without the measuring.")


def progress_to(console: Console) -> Callable[[str, float, float | None], None]:
    """Tells a console how far a cross-validation is."""

    def progress(what: str, done: float, left: float | None) -> None:
        console.progress(what, round(done, 4), 1, left)

    return progress


def finish(console: Console, out: Path, files: list[str]) -> None:
    """Say what was written."""
    written = [name for name in files if (out / name).is_file()]
    console.event("result", folder=str(out), files=written)
    console.say(f"{', '.join(written)} are in {out}.")
