"""The figures of held-out cases, fold by fold: a .csv, averages by site and by image, box plots."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsegcore.evaluation.evaluate import MEAN, EvaluatedCase, Figure
from medsegcore.evaluation.plots import box_plots
from medsegcore.evaluation.statistics import Summary, summarise
from medsegcore.training.datasets import Case

FACTS = ("fold", "case", "patient", "site", "images")


class HeldOut(NamedTuple):
    """One case, measured by a model that was trained without its patient.

    Attributes:
        images: what the model saw, e.g. "ct" or "t2w+adc".
        figures: as `evaluate_model` gives them.
    """

    fold: str
    case: str
    patient: str
    site: str
    images: str
    figures: list[Figure]


def held_out(
    fold: str, inputs: Sequence[str], cases: Sequence[Case], rows: Sequence[EvaluatedCase]
) -> list[HeldOut]:
    """Each case with its figures, both in the same order; `inputs` are the model's keys."""

    def seen(case: Case) -> str:
        return "+".join(key for key in inputs if key in case.images)

    return [
        HeldOut(fold, case.id, case.patient, case.site, seen(case), row.figures)
        for case, row in zip(cases, rows, strict=True)
    ]


def held_out_csv(rows: Mapping[str, Sequence[HeldOut]]) -> str:
    """One line per case, with the method's name before it when there are several."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    several = len(rows) > 1
    columns = [figure.column for figure in next(iter(rows.values()))[0].figures]
    writer.writerow([*(["row"] if several else []), *FACTS, *columns])
    for title, cases in rows.items():
        for case in cases:
            cells = ["" if f.value is None else f"{f.value:.4f}" for f in case.figures]
            writer.writerow([*([title] if several else []), *case[:-1], *cells])
    return text.getvalue()


def read_held_out(path: Path) -> list[HeldOut]:
    """What `held_out_csv` wrote of one method."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            HeldOut(
                **{name: line[name] for name in FACTS},
                figures=[_figure(name, text) for name, text in line.items() if name not in FACTS],
            )
            for line in csv.DictReader(file)
        ]


def _figure(column: str, text: str) -> Figure:
    label, _, rest = column.rpartition(": ")
    name, _, unit = rest.partition(" [")
    return Figure(name, float(text) if text else None, unit.removesuffix("]"), label)


def overall_label(rows: Sequence[HeldOut]) -> str:
    """What stands for all labels: "" of one, "mean" of several."""
    return MEAN if any(figure.label == MEAN for figure in rows[0].figures) else ""


def values(rows: Sequence[HeldOut], column: str) -> list[float | None]:
    """A measure of every case."""
    return [next(f.value for f in row.figures if f.column == column) for row in rows]


def voxel_average_dice(rows: Sequence[HeldOut], label: str) -> float:
    """Dice of all cases' voxels together (RSANet, section 3.2), by volume; 1 when all are empty."""
    found = [{f.name: f.value or 0.0 for f in row.figures if f.label == label} for row in rows]
    sizes = np.array([case["volume"] + case["reference volume"] for case in found])
    dice = np.array([case["Dice"] for case in found])
    return float((dice * sizes).sum() / sizes.sum()) if sizes.any() else 1.0


def groups(rows: Sequence[HeldOut], of: Callable[[HeldOut], str]) -> dict[str, list[HeldOut]]:
    """Sorted by name; {} where all are of one."""
    found: dict[str, list[HeldOut]] = {}
    for row in rows:
        found.setdefault(of(row), []).append(row)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def all_groups(rows: Sequence[HeldOut]) -> dict[str, list[HeldOut]]:
    """Cases by site and by what was seen of them."""
    return {
        **{f"site {name}": part for name, part in groups(rows, lambda row: row.site).items()},
        **{f"images {name}": part for name, part in groups(rows, lambda row: row.images).items()},
    }


def shown(summary: Summary) -> str:
    """E.g. "0.71 ± 0.1 (n 5)"."""
    return f"{summary} (n {summary.n})"


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column is text, the others are numbers."""
    head = ["---", *["---:"] * (len(columns) - 1)]
    return [f"| {' | '.join(line)} |" for line in (columns, head, *lines)]


def summary_lines(rows: Sequence[HeldOut]) -> list[str]:
    """Mean and standard deviation of every measure, of all cases and of each group."""
    parts = {"all": list(rows), **all_groups(rows)}
    lines = [
        [f.column, *(shown(summarise(values(part, f.column))) for part in parts.values())]
        for f in rows[0].figures
    ]
    for label in dict.fromkeys(f.label for f in rows[0].figures if f.label != MEAN):
        start = f"{label}: " if label else ""
        pooled = [f"{voxel_average_dice(part, label):.3g}" for part in parts.values()]
        lines.append([f"{start}Dice of all voxels", *pooled])
    return markdown_table(["measure", *parts], lines)


def boxes(rows: Mapping[str, Sequence[HeldOut]]) -> str:
    """SVG with a box per method for each measure, of the only label or the mean over labels."""
    label = overall_label(next(iter(rows.values())))
    as_cases = {
        title: [EvaluatedCase(row.case, row.figures, {}, {}, []) for row in cases]
        for title, cases in rows.items()
    }
    return box_plots(as_cases, label)
