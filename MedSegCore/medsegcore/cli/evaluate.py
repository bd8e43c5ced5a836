"""`medseg evaluate`."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medsegcore.cli.console import Console
from medsegcore.errors import MissingInputError, OutputError, SettingError
from medsegcore.models import ModelFolder, ModelStore

if TYPE_CHECKING:
    from medsegcore.evaluation.answers import CaseFiles, LabelValues, Method
    from medsegcore.evaluation.evaluate import EvaluatedCase
    from medsegcore.evaluation.tables import Comparison
    from medsegcore.training.datasets import Dataset


@dataclass(frozen=True)
class Evaluation:
    """What `medseg evaluate` was asked for; the options say what each is."""

    data: Path
    models: list[str] = field(default_factory=list)
    predictions: list[Path] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    mask: str = "lesion"
    labels: dict[str, int] = field(default_factory=dict)
    out: Path | None = None
    lesions: Path | None = None
    report: Path | None = None
    device: str = "auto"
    mirror: bool = False
    baseline: str | None = None
    against: Path | None = None
    thresholds: dict[str, float] = field(default_factory=dict)


def run_evaluate(console: Console, wanted: Evaluation) -> None:
    """Measure models and predictions on cases with masks; print and write the figures."""
    if not wanted.models and not wanted.predictions:
        raise SettingError("There is nothing to measure.", "Give --model or --predictions.")
    for path in (wanted.out, wanted.lesions, wanted.report):
        if path is not None and not path.parent.is_dir():
            raise OutputError(f"There is no folder '{path.parent}'.", "Create it first.")
    folders = [ModelStore().find(model) for model in wanted.models]
    from medsegcore.evaluation.answers import labels_to_measure, name_apart
    from medsegcore.evaluation.evaluate import evaluate
    from medsegcore.evaluation.tables import (
        compare,
        figures_csv,
        figures_table,
        lesions_csv,
        read_figures,
    )
    from medsegcore.files import write_file
    from medsegcore.training.datasets import read_dataset
    from medsegcore.training.provenance import seen_before

    inputs = [spec.key for folder in folders for spec in folder.description.inputs]
    dataset = read_dataset(wanted.data, wanted.mask, list(dict.fromkeys(inputs)) or None)
    cases = cases_to_measure(dataset, wanted.patients, wanted.baseline)
    masks = {case.mask for case in cases}
    everything = (*dataset.cases, *dataset.test)
    patients = {(case.site, case.patient) for case in everything if case.label in masks}
    descriptions = [folder.description for folder in folders]
    labels = wanted.labels or labels_to_measure(dataset.labels, descriptions, dataset.declared)
    others = {} if wanted.against is None else {str(wanted.against): read_figures(wanted.against)}
    remarks: list[str] = []

    def warn(remark: str) -> None:
        remarks.append(remark)
        console.warn(remark)

    for description in descriptions:
        for remark in seen_before(description, patients):
            warn(f"{remark} Their figures flatter it.")
    methods = [
        *_models(folders, wanted, list(labels)),
        *_predictions(wanted.predictions, labels, [case.name for case in cases], warn),
    ]
    name_apart(methods)
    rows = evaluate(
        methods, cases, labels, wanted.baseline, wanted.report is not None,
        lambda name, done, total: console.progress("evaluate", done, total, None),
    )  # fmt: skip
    tables = {name: figures_table(of_method) for name, of_method in rows.items()}
    comparisons = compare({**tables, **others})
    show_figures(console, rows, comparisons)
    if wanted.out is not None:
        write_file(wanted.out, figures_csv(rows))
        console.say(f"The figures are in {wanted.out}")
    if wanted.lesions is not None:
        write_file(wanted.lesions, lesions_csv(rows))
        console.say(f"The lesions are in {wanted.lesions}")
    if wanted.report is not None:
        from medsegcore.evaluation.report import ReportFacts, report_html

        told = {method.name: method.facts for method in methods}
        facts = ReportFacts(console.command, dataset.name, told, remarks)
        write_file(wanted.report, report_html(rows, comparisons, facts))
        console.say(f"The report is in {wanted.report}")


def cases_to_measure(
    dataset: "Dataset", patients: Sequence[str], baseline: str | None
) -> list["CaseFiles"]:
    """Every case with a reference mask, of these patients if any are named.

    Cases of the same name are called SITE/NAME.

    Raises:
        MissingInputError: an unknown patient, no case, or no image `baseline`.
    """
    from medsegcore.evaluation.answers import CaseFiles

    found = [case for case in (*dataset.cases, *dataset.test) if case.label is not None]
    known = sorted({case.patient for case in found})
    for patient in patients:
        if patient not in known:
            raise MissingInputError(
                f"The patient '{patient}' has no case in the data set '{dataset.name}'.",
                f"Patients: {', '.join(known)}.",
            )
    if not found:
        raise MissingInputError(
            f"The data set '{dataset.name}' has no reference mask.", "Nothing can be measured."
        )
    names = Counter(case.id for case in found)
    cases = []
    for case in found:
        if baseline is not None and baseline not in case.images:
            raise MissingInputError(
                f"The case '{case.id}' has no image '{baseline}' to take thresholds of.",
                f"Its images: {', '.join(case.images)}.",
            )
        if case.label is not None and (not patients or case.patient in patients):
            name = case.id if names[case.id] == 1 else f"{case.site}/{case.id}"
            cases.append(CaseFiles(name, case.images, case.label))
    return cases


def _models(
    folders: Sequence[ModelFolder], wanted: Evaluation, labels: Sequence[str]
) -> list["Method"]:
    """The models; each takes the thresholds of its own labels."""
    from medsegcore.evaluation.answers import ModelAnswers
    from medsegcore.inference.predictor import Predictor

    named = [{label.name for label in folder.description.labels} for folder in folders]
    for label in wanted.thresholds:
        if not any(label in names for names in named):
            raise SettingError(
                f"There is no label '{label}' to set a threshold for.",
                f"Labels: {', '.join(sorted(set().union(*named)))}.",
            )
    return [
        ModelAnswers(
            Predictor(folder, wanted.device), labels, wanted.mirror,
            {label: value for label, value in wanted.thresholds.items() if label in names},
        )
        for folder, names in zip(folders, named, strict=True)
    ]  # fmt: skip


def _predictions(
    paths: Sequence[Path],
    labels: "LabelValues",
    cases: Sequence[str],
    warn: Callable[[str], None],
) -> list["Method"]:
    """The folders, once it is known that they hold a prediction of every case."""
    from medsegcore.evaluation.answers import PredictionFolder

    folders = [PredictionFolder(path, labels, warn) for path in paths]
    for folder in folders:
        folder.check(cases)
    return [*folders]


def show_figures(
    console: Console,
    rows: Mapping[str, Sequence["EvaluatedCase"]],
    comparisons: Sequence["Comparison"],
) -> None:
    """All figures, for people and for programs."""
    from medsegcore.evaluation.tables import pooled, summaries

    for method, cases in rows.items():
        for row in cases:
            figures = {figure.title: figure.value for figure in row.figures}
            console.event("case", model=method, case=row.case, figures=figures)
        # Of several labels each has a table: all measures of all do not fit beside each other.
        for label in dict.fromkeys(figure.label for figure in cases[0].figures):
            own = [n for n, figure in enumerate(cases[0].figures) if figure.label == label]
            shown = [[row.case, *(_short(row.figures[n].value) for n in own)] for row in cases]
            if len(cases) > 1:
                means = [str(mean) for mean in summaries(cases).values()]
                shown.append([f"mean ± sd, n = {len(cases)}", *(means[n] for n in own)])
            columns = [cases[0].figures[n]._replace(label="").column for n in own]
            title = f"{method}, {label}" if label else method
            console.table(title, ["case", *columns], shown)
        together = pooled(cases)
        console.event("pooled", model=method, cases=len(cases), figures=together)
        console.say("All cases: " + ", ".join(f"{k} {v:.3g}" for k, v in together.items()))
    for (first, second), tests in itertools.groupby(comparisons, lambda c: (c.first, c.second)):
        of_pair = list(tests)
        for c in of_pair:
            console.event("comparison", **asdict(c))
        console.table(
            f"{first} against {second}: difference, and p of two-sided paired tests",
            ["measure", "difference", "cases", "t-test", "Holm", "Wilcoxon", "Holm"],
            [
                [c.measure, _short(c.test.difference), str(c.test.n)]
                + [_short(p) for p in (c.test.t_p, c.t_holm, c.test.wilcoxon_p, c.wilcoxon_holm)]
                for c in of_pair
            ],
        )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
