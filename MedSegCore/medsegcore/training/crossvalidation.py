"""Cross-validation: each patient is held out once and measured by a model that never saw them.

A folder of a cross-validation has `experiment.json` (what it is), `fold_N/` (a training each, with
its model, `figures.csv` and `thresholds.csv`), and, when all are done, both of all folds,
`summary.md`, `curves.svg` and `boxes.svg`. Started again, it goes on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medsegcore.errors import SettingError
from medsegcore.evaluation.evaluate import card_metrics, evaluate_model
from medsegcore.files import write_file
from medsegcore.inference import Predictor
from medsegcore.inference.devices import choose_device
from medsegcore.models import ModelFolder
from medsegcore.training.cases import split_cases
from medsegcore.training.curves import draw_curves
from medsegcore.training.datasets import Dataset
from medsegcore.training.datasets.folds import (
    leave_one_patient_out,
    leave_one_site_out,
    split_folds,
)
from medsegcore.training.facts import data_facts
from medsegcore.training.heldout import (
    HeldOut,
    boxes,
    held_out,
    held_out_csv,
    read_held_out,
    summary_lines,
)
from medsegcore.training.knowledge import FOLDER, KnowledgeRecorder, draw_knowledge
from medsegcore.training.provenance import how_unseen, inherited
from medsegcore.training.recipes import Recipe, UMMKDRecipe
from medsegcore.training.report import case_files, cost
from medsegcore.training.runfile import filled
from medsegcore.training.setup import Plan, with_images
from medsegcore.training.thresholds import (
    by_threshold,
    read_thresholds,
    threshold_lines,
    thresholds_csv,
)
from medsegcore.training.trainer import CACHE, LAST, MODEL, train

FIGURES, EXPERIMENT, BY_THRESHOLD = "figures.csv", "experiment.json", "thresholds.csv"
HELD_OUT = "held out in a cross-validation: "
SISTER = "by a model of the same settings: "
# Of a fold's time; the rest is for measuring.
TRAINING_SHARE = 0.9
How = int | Literal["patient", "site"]
# (what is done, share of all that is done 0..1, seconds left or None)
Progress = Callable[[str, float, float | None], None]


@dataclass(frozen=True)
class Fold:
    """Patients that are held out together; `name` is the folder's."""

    name: str
    test: list[str]


def labelled(data: Dataset) -> Dataset:
    """The data set without cases that cannot be measured, and without test cases of its own."""
    return replace(data, cases=[case for case in data.cases if case.label is not None], test=[])


def make_folds(data: Dataset, how: How) -> list[Fold]:
    """The same folds whenever they are made.

    Args:
        how: number of folds, or what to leave out one by one.

    Raises:
        SettingError: see `training.datasets.folds`.
    """
    if how == "patient":
        parts = leave_one_patient_out(data)
    elif how == "site":
        parts = list(leave_one_site_out(data).values())
    else:
        parts = split_folds(data, how)
    return [Fold(f"fold_{n}", part) for n, part in enumerate(parts)]


def budget(plan: Plan) -> str:
    """E.g. "500 steps or 10 minutes"."""
    steps = [f"{plan.steps} steps"] if plan.steps is not None else []
    minutes = [f"{plan.minutes:g} minutes"] if plan.minutes is not None else []
    return " or ".join(steps + minutes)


class Overall:
    """How far many trainings are, and the time left by how long those of this process took.

    Args:
        total: number of trainings.
    """

    def __init__(self, total: int, progress: Progress | None):
        self.total, self.progress = total, progress
        self.finished = 0
        self.worked = 0.0
        self.last: float | None = None
        self.started = time.monotonic()

    def update(self, what: str, share: float) -> None:
        """`share` 0..1 of the training that runs is done."""
        # What an earlier process did took none of the time of this one.
        self.worked += share - (share if self.last is None else self.last)
        self.last = share
        if self.progress is None:
            return
        left = self.total - self.finished - share
        passed = time.monotonic() - self.started
        self.progress(
            what, (self.finished + share) / self.total,
            passed / self.worked * left if self.worked > 0 else None,
        )  # fmt: skip

    def next(self) -> None:
        """A training is finished, by this process or an earlier one."""
        self.finished += 1
        self.last = None


def cross_validate(
    recipe: Recipe,
    data: Dataset,
    how: How,
    plan: Plan,
    out: str | Path,
    progress: Progress | None = None,
    only: Sequence[str] = (),
) -> list[HeldOut] | None:
    """Train and measure every fold, or those that are not done yet in `out`.

    Args:
        plan: without patients: the folds say which.
        only: names of the folds to run here; the others are another process's, in the same `out`.

    Returns:
        The figures of all held-out cases; None while folds are missing.

    Raises:
        SettingError: `out` holds another experiment, or there is no such fold; see also
            `make_folds`, `train`.
    """
    data = labelled(data)
    folds = make_folds(data, how)
    names = [fold.name for fold in folds]
    for name in only:
        if name not in names:
            raise SettingError(f"There is no fold '{name}'.", f"Folds: {', '.join(names)}.")
    own = [fold for fold in folds if not only or fold.name in only]
    overall = Overall(len(own), progress)
    return run_folds(recipe, data, folds, plan, Path(out), overall, own=own)


def run_folds(
    recipe: Recipe,
    data: Dataset,
    folds: Sequence[Fold],
    plan: Plan,
    out: Path,
    overall: Overall,
    title: str = "",
    of_fold: Callable[[Recipe, Fold], Recipe] | None = None,
    own: Sequence[Fold] | None = None,
) -> list[HeldOut] | None:
    """`cross_validate` with folds that are made already.

    What the recipe leaves to the data and the machine is chosen once, for all folds: figures of
    different models are no cross-validation, and different grids make no ensemble. Only headers
    and memory decide, no voxel.

    Args:
        title: what the progress is told as.
        of_fold: gives the recipe what it takes from another training of the same fold, which
            then decides.
        own: the folds to run here; all when None.
    """
    asked, notes = recipe, list[str]()
    before = _claimed(out)
    if of_fold is None and before:
        recipe, notes = filled(recipe, before.get("chosen", {})), before.get("notes", [])
    elif of_fold is None:
        facts = data_facts(data, data.cases, choose_device(plan.device), plan.devices)
        recipe, notes = recipe.configured(data, facts)
    _claim(out, asked, recipe, notes, data, folds, plan)
    for n, fold in enumerate(folds):
        if own is not None and fold not in own:
            continue
        what = f"{title}{', ' if title else ''}fold {n + 1} of {len(folds)}"
        if not _is_done(out / fold.name):
            chosen = of_fold(recipe, fold) if of_fold else recipe
            _run_fold(chosen, data, fold, plan, out / fold.name, overall, what)
        overall.next()
    if not all(_is_done(out / fold.name) for fold in folds):
        return None
    rows = [row for fold in folds for row in read_held_out(out / fold.name / FIGURES)]
    _share_figures([out / fold.name / MODEL for fold in folds])
    _write_results(out, recipe, notes, data, folds, plan, rows)
    return rows


def _is_done(fold: Path) -> bool:
    return all((fold / file).is_file() for file in (FIGURES, BY_THRESHOLD))


def _run_fold(
    recipe: Recipe,
    data: Dataset,
    fold: Fold,
    plan: Plan,
    out: Path,
    overall: Overall,
    what: str,
) -> None:
    """Train, measure, and write the figures last: they say that the fold is done."""
    plan = replace(plan, test=fold.test, resume=(out / LAST).is_file())

    def trained(step: int, loss: float, done: float, left: float | None) -> None:
        overall.update(what, TRAINING_SHARE * done)

    def measured(case: str, done: int, total: int) -> None:
        overall.update(what, TRAINING_SHARE + (1 - TRAINING_SHARE) * done / total)

    if not (out / MODEL).exists():
        distils = isinstance(recipe, UMMKDRecipe)
        recorders = [KnowledgeRecorder(out / FOLDER, plan.steps)] if distils else []
        train(recipe, data, out, plan, trained, recorders)
    model = ModelFolder.read(out / MODEL)
    cases = with_images(split_cases(data, fold.test), model.description)[0].test
    if not cases:
        raise SettingError(
            f"No held-out case of {fold.name} has an image that the model takes.",
            "Choose fewer folds.",
        )
    files = case_files(model, cases)
    predictor = Predictor(model, plan.device)
    rows = evaluate_model(predictor, files, progress=measured)
    needs = cost(model, cases[0], str(predictor.device))
    metrics = [
        metric
        for case, row in zip(cases, rows, strict=True)
        for metric in card_metrics(
            [row], HELD_OUT + how_unseen(model.description.training.parents, case)
        )
    ]
    update = {"metrics": metrics, **needs}
    description = model.description.model_copy(update=update)
    model.with_description(description)
    if (out / FOLDER).is_dir():
        classes = ["background", *(label.name for label in description.labels)]
        write_file(out / "knowledge.svg", draw_knowledge(out / FOLDER, classes))
    inputs = [spec.key for spec in description.inputs]
    write_file(out / BY_THRESHOLD, thresholds_csv(by_threshold(cases, rows)))
    write_file(out / FIGURES, held_out_csv({"": held_out(fold.name, inputs, cases, rows)}))
    # Several times the model's size, and of no more use.
    (out / LAST).unlink(missing_ok=True)
    shutil.rmtree(out / CACHE, ignore_errors=True)


def _share_figures(folders: Sequence[Path]) -> None:
    """Into the card of each fold's model the held-out figures of the other folds as well: one held
    out case says little of how the model does elsewhere."""
    models = [ModelFolder.read(folder) for folder in folders]
    own = [[m for m in x.description.metrics if m.how.startswith(HELD_OUT)] for x in models]
    for n, model in enumerate(models):
        others = [m for part in (*own[:n], *own[n + 1 :]) for m in part]
        sisters = [m.model_copy(update={"how": m.how.replace(HELD_OUT, SISTER)}) for m in others]
        update = {"metrics": [*own[n], *sisters]}
        model.with_description(model.description.model_copy(update=update))


def _flattered(folders: Sequence[Path], data: Dataset) -> list[str]:
    """A line on held-out cases that a model knew which the folds' models come from."""
    parents = [p for f in folders for p in ModelFolder.read(f).description.training.parents]
    known = [case.id for case in data.cases if inherited(parents, case)]
    if not known:
        return []
    models = ", ".join(dict.fromkeys(f"'{parent.id}'" for parent in parents))
    return [
        "",
        f"The figures flatter: {models}, from which the folds' models come, was trained on "
        f"{', '.join(known)}.",
    ]


def _claimed(out: Path) -> dict[str, Any]:
    """What `out` says that it is; {} where it is nothing yet."""
    file = out / EXPERIMENT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _claim(
    out: Path,
    asked: Recipe,
    recipe: Recipe,
    notes: Sequence[str],
    data: Dataset,
    folds: Sequence[Fold],
    plan: Plan,
) -> None:
    """Say in `out` what it is; raise SettingError if it is something else already."""
    facts: dict[str, Any] = {
        "recipe": asked.name,
        "settings": asdict(asked),
        "data": data.name,
        "cases": sorted(case.id for case in data.cases),
        "folds": {fold.name: fold.test for fold in folds},
        **{name: getattr(plan, name) for name in ("steps", "minutes", "seed", "precision")},
    }
    facts = json.loads(json.dumps(facts))
    file = out / EXPERIMENT
    before = _claimed(out)
    if not before:
        out.mkdir(parents=True, exist_ok=True)
        facts |= {"chosen": asdict(recipe), "notes": list(notes)}
        write_file(file, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return
    for name, value in facts.items():
        if before.get(name) != value:
            raise SettingError(
                f"'{out}' holds a cross-validation with other {name}.",
                f"Choose another folder, or repeat what '{file}' says.",
            )


def _write_results(
    out: Path,
    recipe: Recipe,
    notes: Sequence[str],
    data: Dataset,
    folds: Sequence[Fold],
    plan: Plan,
    rows: Sequence[HeldOut],
) -> None:
    write_file(out / FIGURES, held_out_csv({"": rows}))
    at_thresholds = [
        line for fold in folds for line in read_thresholds(out / fold.name / BY_THRESHOLD)
    ]
    write_file(out / BY_THRESHOLD, thresholds_csv(at_thresholds))
    labels = ModelFolder.read(out / folds[0].name / MODEL).description.labels
    used = {label.name if len(labels) > 1 else "": label.threshold for label in labels}
    patients = {row.patient for row in rows}
    lines = [
        f"# {recipe.name} on {data.title}: cross-validation",
        "",
        f"{len(folds)} folds of {data.name}, {len(rows)} held-out cases of {len(patients)} "
        f"patients; {budget(plan)} a fold, seed {plan.seed}. Mean ± standard deviation over "
        "the n cases for which a measure is defined.",
        *(["", "Chosen once, for all folds: " + " ".join(notes)] if notes else []),
        *_flattered([out / fold.name / MODEL for fold in folds], data),
        "",
        *summary_lines(rows),
        "",
        *threshold_lines(at_thresholds, used),
    ]
    write_file(out / "summary.md", "\n".join(lines) + "\n")
    write_file(out / "boxes.svg", boxes({recipe.name: rows}))
    curves = draw_curves({fold.name: [out / fold.name] for fold in folds})
    if curves is not None:
        write_file(out / "curves.svg", curves)
