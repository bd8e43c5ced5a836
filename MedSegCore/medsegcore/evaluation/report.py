"""The report of an evaluation: one HTML file that needs nothing else."""

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

import medsegcore
from medsegcore.evaluation.evaluate import EvaluatedCase
from medsegcore.evaluation.lesions import by_size
from medsegcore.evaluation.pictures import ANSWER_COLOR, REFERENCE_COLOR, draw
from medsegcore.evaluation.plots import plots
from medsegcore.evaluation.tables import Comparison, pooled, summaries

WORST = 3
SOFTWARE = ("torch", "monai", "numpy", "scipy", "SimpleITK", "matplotlib")


@dataclass(frozen=True)
class ReportFacts:
    """What made the figures.

    Attributes:
        command: as it was typed.
        data: the data set's name.
        methods: what tells each apart from all others, by its name.
        remarks: sentences about files that were not as expected.
    """

    command: str
    data: str
    methods: Mapping[str, Mapping[str, str]]
    remarks: Sequence[str] = ()


def report_html(
    rows: Mapping[str, Sequence[EvaluatedCase]],
    comparisons: Sequence[Comparison],
    facts: ReportFacts,
) -> str:
    """The whole report. Cases are called by the names of their folders or files.

    Args:
        rows: by the method's name; with views (`evaluate(..., pictures=True)`) the worst cases
            are shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(cell=_cell, shown=_shown)
    first = next(iter(rows.values()))
    labels = list(first[0].overlaps)
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        software={
            "medsegcore": medsegcore.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in SOFTWARE},
        },
        time=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        rows=rows,
        columns=[figure.column for figure in first[0].figures],
        summaries={name: summaries(cases) for name, cases in rows.items()},
        pooled={name: pooled(cases) for name, cases in rows.items()},
        sizes=_sizes(rows, labels),
        plots=[
            (f"{label}: {title}" if label else title, _data_uri("svg+xml", svg.encode()))
            for label in labels
            for title, svg in plots(rows, label).items()
        ],
        comparisons=[c for c in comparisons if c.test.difference],
        worst=_worst(rows),
        answer_color=ANSWER_COLOR,
        reference_color=REFERENCE_COLOR,
    )


def _sizes(
    rows: Mapping[str, Sequence[EvaluatedCase]], labels: Sequence[str]
) -> list[tuple[str, str, Any]]:
    """(method, label, `SizeBin`)."""
    return [
        (method, label, size)
        for method, cases in rows.items()
        for label in labels
        for size in by_size([x for case in cases for x in case.lesions if x.label == label])
    ]


def _worst(rows: Mapping[str, Sequence[EvaluatedCase]]) -> list[tuple[str, EvaluatedCase, str]]:
    """(method, case, picture) of the lowest Dice of each method."""
    return [
        (method, case, _data_uri("jpeg", draw(case.view)))
        for method, cases in rows.items()
        for case in sorted(cases, key=lambda case: case.dice)[:WORST]
        if case.view is not None
    ]


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _cell(value: float | None) -> str:
    """As the .csv has it."""
    return "" if value is None else f"{value:.4f}"


def _shown(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "-"
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
        if abs(value) >= 0.001
        else (f"{value:.4f}" if value else "0")
    )
