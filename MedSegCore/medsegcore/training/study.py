"""An ablation study: the rows of a paper's table, each cross-validated on the same folds.

A folder of a study has one folder for each row (see `crossvalidation`), and `figures.csv`,
`results.csv`, `results.md`, `boxes.svg` and `curves.svg`, which are written anew after each row.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsegcore.errors import CancelledError, MedSegError
from medsegcore.files import write_file
from medsegcore.models import ModelFolder
from medsegcore.training.ablations import Row, chosen_rows, row_recipe
from medsegcore.training.comparisons import results_csv, results_markdown
from medsegcore.training.crossvalidation import (
    FIGURES,
    Fold,
    How,
    Overall,
    Progress,
    budget,
    labelled,
    make_folds,
    run_folds,
)
from medsegcore.training.curves import draw_curves
from medsegcore.training.datasets import Dataset
from medsegcore.training.heldout import HeldOut, boxes, held_out_csv
from medsegcore.training.recipes import Recipe
from medsegcore.training.rehearsal import Rehearsal, rehearse
from medsegcore.training.setup import Plan
from medsegcore.training.trainer import MODEL


def ablate(
    paper: str,
    data: Dataset,
    how: How,
    plan: Plan,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    titles: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[HeldOut]]:
    """Cross-validate every row, or those that are not done yet in `out`.

    Args:
        plan: the same for every row, without patients.
        settings, titles: see `chosen_rows`.

    Returns:
        The figures of all held-out cases by the row's title.

    Raises:
        SettingError: see `chosen_rows`, `make_folds`, `cross_validate`.
    """
    out, data, settings = Path(out), labelled(data), settings or {}
    rows = chosen_rows(paper, settings, titles)
    folds = make_folds(data, how)
    overall = Overall(len(rows) * len(folds), progress)
    found: dict[str, list[HeldOut]] = {}
    for row in rows:
        with _naming(row):
            figures = run_folds(
                row_recipe(row, settings), data, folds, plan, out / row.folder, overall,
                row.title, _taught(row, rows, out),
            )  # fmt: skip
        assert figures is not None
        found[row.title] = figures
        _write_study(out, paper, data, rows, folds, plan, found)
    return found


def _taught(row: Row, rows: Sequence[Row], out: Path) -> Callable[[Recipe, Fold], Recipe] | None:
    """Gives a row's recipe the model that the row before has made of the same fold, if one has."""
    if not row.after:
        return None
    before = {other.title: out / other.folder for other in rows}

    def of_fold(recipe: Recipe, fold: Fold) -> Recipe:
        model = before[row.after] / fold.name / MODEL
        return replace(recipe, **{row.takes: (str(model),)})  # type: ignore[arg-type]

    return of_fold


@contextmanager
def _naming(row: Row) -> Iterator[None]:
    """Says of which row an error is; rows differ in what they take."""
    try:
        yield
    except CancelledError:
        raise
    except MedSegError as error:
        raise type(error)(f"{row.title}: {error.message}", error.action) from error


def rehearse_rows(
    rows: Sequence[Row],
    data: Dataset,
    how: How,
    plan: Plan,
    settings: Mapping[str, Any],
) -> Iterator[tuple[Row, Rehearsal]]:
    """What each row would be and how fast it is, on the first fold; nothing is left behind."""
    data = labelled(data)
    fold = make_folds(data, how)[0]
    plan = replace(plan, test=fold.test)
    with tempfile.TemporaryDirectory(prefix="medseg-rehearsal-") as folder:
        for row in rows:
            recipe, taught = row_recipe(row, settings), _taught(row, rows, Path(folder))
            recipe = taught(recipe, fold) if taught else recipe
            with _naming(row):
                rehearsal = rehearse(recipe, data, plan)
            if any(other.after == row.title for other in rows):
                # Who learns from it needs it there, but not that it knows anything.
                model = Path(folder) / row.folder / fold.name / MODEL
                model.parent.mkdir(parents=True)
                setup = rehearsal.setup
                ModelFolder.write(model, setup.description, setup.objective.network)
            yield row, rehearsal


def _write_study(
    out: Path,
    paper: str,
    data: Dataset,
    rows: Sequence[Row],
    folds: Sequence[Fold],
    plan: Plan,
    found: Mapping[str, Sequence[HeldOut]],
) -> None:
    sources = {row.title: row.source for row in rows}
    write_file(out / FIGURES, held_out_csv(found))
    write_file(out / "results.csv", results_csv(found, sources))
    head = (
        f"{len(found)} of {len(rows)} rows; {len(folds)} folds of {data.title}, {budget(plan)} a "
        f"fold, seed {plan.seed}, the same for every row."
    )
    text = results_markdown(f"Ablations of {paper} on {data.name}", head, found, sources)
    write_file(out / "results.md", text)
    write_file(out / "boxes.svg", boxes(found))
    done = [row for row in rows if row.title in found]
    curves = draw_curves(
        {row.title: [out / row.folder / fold.name for fold in folds] for row in done}
    )
    if curves is not None:
        write_file(out / "curves.svg", curves)
