"""`medseg evaluate`."""

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
) -> None:
    """Measure a model on cases with masks; print and optionally write the figures."""
    folder = ModelStore().find(model)
    from medsegcore.evaluation.evaluate import evaluate_model, figures_csv, mean_row
    from medsegcore.files import write_file
    from medsegcore.inference.predictor import Predictor
    from medsegcore.training.cases import find_cases

    keys = [spec.key for spec in folder.description.inputs]
    if baseline is not None and baseline not in keys:
        raise SettingError(
            f"The model has no input '{baseline}' to take thresholds of.",
            f"Its inputs: {', '.join(keys)}.",
        )
    cases = find_cases(data, keys, label)
    unknown = set(patients) - {case.patient for case in cases}
    if unknown:
        raise MissingInputError(
            f"The patient '{sorted(unknown)[0]}' has no case under '{data}'.",
            f"Patients: {', '.join(sorted({case.patient for case in cases}))}.",
        )
    cases = [case for case in cases if not patients or case.patient in patients]
    rows = evaluate_model(
        Predictor(folder, device),
        [(case.id, case.images, case.label) for case in cases],
        baseline=baseline,
        mirror=mirror,
        progress=lambda name, done, total: console.progress("evaluate", done, total, None),
    )
    for row in rows:
        console.event("case", case=row.case, figures={f.name: f.value for f in row.figures})
    shown = [*rows, mean_row(rows)] if len(rows) > 1 else rows
    columns = ["case", *(f"{f.name} [{f.unit}]" if f.unit else f.name for f in rows[0].figures)]
    console.table(
        f"{folder.description.id} {folder.description.version}",
        columns,
        [
            [r.case, *("-" if f.value is None else f"{f.value:.3g}" for f in r.figures)]
            for r in shown
        ],
    )
    if out is not None:
        write_file(out, figures_csv(rows))
        console.say(f"The figures are in {out}")
