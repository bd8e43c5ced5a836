"""`medseg evaluate`."""

from dataclasses import asdict
from pathlib import Path

from medsegcore.cli.console import Console
from medsegcore.errors import MissingInputError, SettingError
from medsegcore.models import ModelStore


def run_evaluate(
    console: Console,
    model: str,
    data: Path,
    patients: list[str],
    label: str,
    out: Path | None,
    device: str,
    mirror: bool,
    baseline: str | None,
    against: Path | None,
    thresholds: dict[str, float],
) -> None:
    """Measure a model on cases with masks; print and optionally write the figures."""
    folder = ModelStore().find(model)
    from medsegcore.evaluation.evaluate import (
        column_name,
        compare_figures,
        evaluate_model,
        figures_csv,
        pooled,
        read_figures,
        summaries,
    )
    from medsegcore.files import write_file
    from medsegcore.inference.predictor import Predictor
    from medsegcore.training.datasets import read_dataset

    keys = [spec.key for spec in folder.description.inputs]
    if baseline is not None and baseline not in keys:
        raise SettingError(
            f"The model has no input '{baseline}' to take thresholds of.",
            f"Its inputs: {', '.join(keys)}.",
        )
    cases = [c for c in read_dataset(data, label, keys).cases if c.label is not None]
    unknown = set(patients) - {case.patient for case in cases}
    if unknown:
        raise MissingInputError(
            f"The patient '{sorted(unknown)[0]}' has no case under '{data}'.",
            f"Patients: {', '.join(sorted({case.patient for case in cases}))}.",
        )
    cases = [case for case in cases if not patients or case.patient in patients]
    other = None if against is None else read_figures(against)
    rows = evaluate_model(
        Predictor(folder, device),
        [(case.id, case.images, case.label) for case in cases if case.label is not None],
        baseline=baseline,
        mirror=mirror,
        thresholds=thresholds,
        progress=lambda name, done, total: console.progress("evaluate", done, total, None),
    )
    for row in rows:
        console.event("case", case=row.case, figures={f.name: f.value for f in row.figures})
    columns = [column_name(figure) for figure in rows[0].figures]
    shown = [
        [r.case, *("-" if f.value is None else f"{f.value:.3g}" for f in r.figures)] for r in rows
    ]
    if len(rows) > 1:
        shown.append([f"mean ± sd, n = {len(rows)}", *map(str, summaries(rows).values())])
    description = folder.description
    console.table(f"{description.id} {description.version}", ["case", *columns], shown)
    together = pooled(rows)
    console.event("pooled", cases=len(rows), figures=together)
    console.say("All cases: " + ", ".join(f"{k} {v:.3g}" for k, v in together.items()))
    if other is not None:
        tests = compare_figures(rows, other)
        console.event("comparison", tests={name: asdict(test) for name, test in tests.items()})
        console.table(
            f"Against {against}: difference, and p of two-sided paired tests",
            ["measure", "difference", "t-test", "Wilcoxon", "cases"],
            [
                [name, *("-" if v is None else f"{v:.3g}" for v in asdict(test).values())]
                for name, test in tests.items()
            ],
        )
    if out is not None:
        write_file(out, figures_csv(rows))
        console.say(f"The figures are in {out}")
