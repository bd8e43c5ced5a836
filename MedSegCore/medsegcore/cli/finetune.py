"""`medseg fine-tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsegcore.cli.console import Console
from medsegcore.cli.options import (
    Device,
    DryRun,
    Label,
    Minutes,
    Precision,
    Resume,
    Steps,
    Validate,
    Workers,
)
from medsegcore.files import write_file
from medsegcore.models import ModelFolder, ModelStore

if TYPE_CHECKING:
    from medsegcore.training.datasets import Case


def add_fine_tune(app: typer.Typer, console: Console) -> None:
    """Add `fine-tune` to the commands."""

    @app.command("fine-tune")
    def fine_tune(
        model: Annotated[str, typer.Option(help="Id of a model, or the path of its folder.")],
        cases: Annotated[
            Path, typer.Option(help="Corrected cases: a data set, or a folder of cases.")
        ],
        out: Annotated[
            Path, typer.Option(help="Folder of the run; the new version is in its model/.")
        ],
        old_cases: Annotated[
            Path | None,
            typer.Option(help="Data set that the model knows, to mix in and to measure on."),
        ] = None,
        old_share: Annotated[
            float, typer.Option(help="Share of old cases in what is trained on.")
        ] = 0.5,
        guard: Annotated[
            float,
            typer.Option(help="Weight of the old model's answers where no old cases are mixed in."),
        ] = 10.0,
        rate: Annotated[float, typer.Option(help="Share of the recipe's learning rate.")] = 0.1,
        test: Annotated[
            list[str] | None,
            typer.Option(help="Patient of the corrected cases to measure on; may be repeated."),
        ] = None,
        validate: Validate = None,
        minutes: Minutes = None,
        steps: Steps = None,
        device: Device = "auto",
        precision: Precision = "auto",
        seed: Annotated[int, typer.Option(help="Of the patches.")] = 1,
        workers: Workers = 1,
        resume: Resume = False,
        dry_run: DryRun = False,
        label: Label = "lesion",
    ) -> None:
        """Let a model learn corrected cases without forgetting: a new version of its folder."""
        run_fine_tune(
            console, ModelStore().find(model), cases, out, dry_run,
            {
                "old_cases": str(old_cases or ""), "old_share": old_share, "guard": guard,
                "rate": rate, "label": label,
            },
            {
                "test": test or [], "validation": validate or [], "minutes": minutes,
                "steps": steps, "device": device, "precision": precision, "seed": seed,
                "workers": workers, "resume": resume, "label": label,
            },
        )  # fmt: skip


def run_fine_tune(
    console: Console,
    old: ModelFolder,
    cases: Path,
    out: Path,
    dry_run: bool,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Train on, measure, and compare the two versions on new and on old cases."""
    console.say("Loading the training libraries ...")
    from medsegcore.cli.train import measured, say_plan
    from medsegcore.evaluation.evaluate import card_metrics
    from medsegcore.training.finetune import FineTuningRecipe, fine_tune, read_cases
    from medsegcore.training.provenance import seen_before
    from medsegcore.training.setup import Plan

    recipe = FineTuningRecipe(model=str(old.path), **settings)
    plan = Plan(**options)
    if dry_run:
        say_plan(console, recipe, read_cases(recipe, cases, plan), plan)
        return
    done = measured(
        console, out, plan, lambda progress: fine_tune(recipe, cases, out, plan, progress)
    )
    if done is None:
        return
    run, new = done
    if run.test:
        rows = _compare(console, old, new, run.test, "new cases", out, options["device"])
        known = seen_before(old.description, {(case.site, case.patient) for case in run.test})
        for told in known:
            console.warn(f"{told} Their figures flatter.")
        how = f"by version {old.description.version}" + ("" if known else ", never trained on")
        before = card_metrics(rows, how)
        d = new.description
        new = new.with_description(d.model_copy(update={"metrics": [*d.metrics, *before]}))
    seen, unseen = recipe.old[1].training, recipe.old[1].test
    if seen or unseen:
        _compare(console, old, new, unseen or seen, "old cases", out, options["device"])
    console.event("result", folder=str(new.path), version=new.description.version)
    console.say(f"Version {new.description.version} is in {new.path}; its card is README.md there.")


def _compare(
    console: Console,
    old: ModelFolder,
    new: ModelFolder,
    cases: list["Case"],
    what: str,
    out: Path,
    device: str,
) -> list[Any]:
    """Show and write the figures of both versions; gives the old one's."""
    from medsegcore.cli.evaluate import show_figures
    from medsegcore.evaluation.report import ReportFacts, report_html
    from medsegcore.evaluation.tables import compare, figures_table
    from medsegcore.training.finetune import compare_versions

    rows = compare_versions(
        old, new, cases, device,
        lambda name, done, total: console.progress(what, done, total, None),
    )  # fmt: skip
    comparisons = compare({name: figures_table(of_model) for name, of_model in rows.items()})
    show_figures(console, rows, comparisons)
    told = {
        name: {"sha256 of the weights": folder.description.weights.sha256}
        for name, folder in zip(rows, (old, new), strict=True)
    }
    report = out / f"{what.replace(' ', '_')}.html"
    write_file(report, report_html(rows, comparisons, ReportFacts(console.command, what, told)))
    console.say(f"The report on {what} is in {report}")
    return rows[next(iter(rows))]
