"""`medseg ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsegcore.cli.console import Console
from medsegcore.cli.crossvalidate import (
    Folds,
    LeaveOneOut,
    Out,
    finish,
    how_to_split,
    progress_to,
    say_folds,
    say_hours,
)
from medsegcore.cli.options import (
    Data,
    Device,
    DryRun,
    Label,
    Minutes,
    Precision,
    Seed,
    Steps,
    Workers,
)

if TYPE_CHECKING:
    from medsegcore.training.crossvalidation import How
    from medsegcore.training.rehearsal import Rehearsal


def add_ablate(app: typer.Typer, console: Console) -> None:
    """Add the command."""

    @app.command()
    def ablate(
        paper: Annotated[str, typer.Argument(help="csad, ummkd, rsanet, affinity or edge.")],
        data: Data,
        out: Out,
        folds: Folds = None,
        leave_one_out: LeaveOneOut = None,
        rows: Annotated[
            str | None, typer.Option(help="Titles of rows, with commas between; all if absent.")
        ] = None,
        minutes: Minutes = None,
        steps: Steps = None,
        setting: Annotated[
            list[str] | None,
            typer.Option(
                "--set", help="For all rows, e.g. width=12 or affinity.config={}; may be repeated."
            ),
        ] = None,
        device: Device = "auto",
        precision: Precision = "auto",
        seed: Seed = 1,
        workers: Workers = 1,
        label: Label = "lesion",
        dry_run: DryRun = False,
    ) -> None:
        """Train every row of a paper's ablation table on the same folds, and compare them."""
        options = {
            "minutes": minutes, "steps": steps, "device": device, "precision": precision,
            "seed": seed, "workers": workers, "label": label,
        }  # fmt: skip
        how = how_to_split(folds, leave_one_out)
        titles = None if rows is None else rows.split(",")
        run_ablate(console, paper, data, how, out, titles, setting or [], dry_run, options)


def run_ablate(
    console: Console,
    paper: str,
    data: Path,
    how: "How",
    out: Path,
    titles: list[str] | None,
    texts: list[str],
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    """Run the rows, or say which they are and how long they would take."""
    from medsegcore.cli.app import recipe_settings

    console.say("Loading the training libraries ...")
    from medsegcore.training.ablations import chosen_rows, row_recipe
    from medsegcore.training.crossvalidation import labelled, make_folds
    from medsegcore.training.datasets import read_dataset
    from medsegcore.training.datasets.visits import visits_as_patients
    from medsegcore.training.setup import Plan
    from medsegcore.training.study import ablate, rehearse_rows

    settings = recipe_settings(texts)
    rows = chosen_rows(paper, settings, titles)
    plan = Plan(**options)
    plan.check()
    # A student has the channels of its teacher, which is not trained yet and comes first.
    dataset = labelled(read_dataset(data, plan.label, row_recipe(rows[0], settings).keys))
    if visits := visits_as_patients(dataset):
        console.warn(visits)
    if not dry_run:
        ablate(paper, dataset, how, plan, out, settings, titles, progress_to(console))
        names = ["results.md", "results.csv", "figures.csv", "boxes.svg", "curves.svg"]
        finish(console, out, names)
        return
    folds = make_folds(dataset, how)
    for row in rows:
        console.say(f"{row.title} ({row.source}): {row.recipe} {dict(row.settings)}")
        console.event("row", title=row.title, source=row.source, recipe=row.recipe,
                      settings=dict(row.settings))  # fmt: skip
    say_folds(console, dataset, folds)
    found: dict[str, Rehearsal] = {}
    console.progress("rehearse", 0, len(rows), None)
    for row, rehearsal in rehearse_rows(rows, dataset, how, plan, settings):
        for note in rehearsal.setup.notes:
            console.say(f"{row.title}: {note}")
            console.event("plan", row=row.title, text=note)
        found[row.title] = rehearsal
        console.progress("rehearse", len(found), len(rows), None)
    say_hours(console, found, len(folds), plan)
