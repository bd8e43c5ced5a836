"""The table of an ablation study: means over the same cases, and tests against the last row."""

import csv
import io
from collections.abc import Mapping, Sequence

from medsegcore.evaluation.statistics import holm, paired_tests, summarise
from medsegcore.evaluation.tables import Comparison
from medsegcore.training.heldout import (
    HeldOut,
    all_groups,
    markdown_table,
    overall_label,
    shown,
    values,
    voxel_average_dice,
)

Rows = Mapping[str, Sequence[HeldOut]]
COLUMNS = (
    "row", "source", "measure", "n", "mean", "sd", "against", "difference", "t_p", "t_holm",
    "wilcoxon_p", "wilcoxon_holm",
)  # fmt: skip


def against_last(rows: Rows, column: str) -> list[Comparison]:
    """A measure of each row against the last one's on the same cases, with Holm's correction.

    The correction is for all rows of this measure.
    """
    *others, last = rows
    by_case = {(row.fold, row.case): v for row, v in zip(rows[last], values(rows[last], column),
                                                         strict=True)}  # fmt: skip
    tests = []
    for title in others:
        pairs = [(row.fold, row.case) for row in rows[title]]
        tests.append(paired_tests(values(rows[title], column), [by_case[pair] for pair in pairs]))
    t, wilcoxon = holm([x.t_p for x in tests]), holm([x.wilcoxon_p for x in tests])
    return [
        Comparison(title, last, column, test, t_holm, wilcoxon_holm)
        for title, test, t_holm, wilcoxon_holm in zip(others, tests, t, wilcoxon, strict=True)
    ]


def _columns(rows: Rows) -> list[str]:
    return [figure.column for figure in next(iter(rows.values()))[0].figures]


def results_csv(rows: Rows, sources: Mapping[str, str]) -> str:
    """One line for each row and measure; empty cells where nothing is defined.

    Args:
        sources: where each row stands in the paper, by its title.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for column in _columns(rows):
        tests = {test.first: test for test in against_last(rows, column)}
        for title, cases in rows.items():
            summary = summarise(values(cases, column))
            cells: list[float | None] = [summary.mean, summary.sd]
            against = ""
            if title in tests:
                test = tests[title]
                against = test.second
                p = [test.test.t_p, test.t_holm, test.test.wilcoxon_p, test.wilcoxon_holm]
                compared = [test.test.difference, *p]
            else:
                compared = [None] * 5
            writer.writerow(
                [title, sources[title], column, summary.n, *map(_cell, cells), against,
                 *map(_cell, compared)]
            )  # fmt: skip
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def results_markdown(title: str, head: str, rows: Rows, sources: Mapping[str, str]) -> str:
    """All measures of the only label, or of the mean over labels; Dice by site and by image."""
    first = next(iter(rows.values()))
    label = overall_label(first)
    columns = [f.column for f in first[0].figures if f.label == label and f.name != "volume"]
    columns = [column for column in columns if not column.startswith("reference volume")]
    pooled = [] if label else ["Dice of all voxels"]
    table = []
    for name, cases in rows.items():
        line = [name, sources[name]]
        line += [shown(summarise(values(cases, column))) for column in columns]
        line += [f"{voxel_average_dice(cases, label):.3g}"] if pooled else []
        table.append(line)
    lines = [f"# {title}", "", head, ""]
    lines += ["Mean ± standard deviation over the n held-out cases for which it is defined.", ""]
    lines += markdown_table(["row", "source", *columns, *pooled], table)
    dice = next(column for column in columns if column.endswith("Dice"))
    lines += _group_lines(rows, dice) + _test_lines(rows, dice)
    return "\n".join(lines) + "\n"


def _group_lines(rows: Rows, column: str) -> list[str]:
    parts = {name: all_groups(cases) for name, cases in rows.items()}
    groups = list(next(iter(parts.values())))
    if not groups:
        return []
    table = [
        [name, *(shown(summarise(values(part[group], column))) for group in groups)]
        for name, part in parts.items()
    ]
    return ["", f"## {column} by group", "", *markdown_table(["row", *groups], table)]


def _test_lines(rows: Rows, column: str) -> list[str]:
    tests = against_last(rows, column)
    if not tests:
        return []
    table = [
        [
            test.first, _shown(test.test.difference), str(test.test.n), _shown(test.test.t_p),
            _shown(test.t_holm), _shown(test.test.wilcoxon_p), _shown(test.wilcoxon_holm),
        ]
        for test in tests
    ]  # fmt: skip
    head = ["row", "difference", "n", "t-test p", "with Holm", "Wilcoxon p", "with Holm"]
    return [
        "",
        f"## {column} against {tests[0].second}",
        "",
        "Paired tests, two-sided, case by case; Holm's correction is for all rows. Visits of one "
        "patient count as cases of their own. The other measures are in results.csv.",
        "",
        *markdown_table(head, table),
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
