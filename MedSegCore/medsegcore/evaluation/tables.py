"""Figures of many cases: summaries, comparisons, and the files that keep them."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegcore.errors import MissingInputError, UnreadableImageError
from medsegcore.evaluation.evaluate import EvaluatedCase
from medsegcore.evaluation.lesions import LesionRecord
from medsegcore.evaluation.metrics import froc
from medsegcore.evaluation.statistics import (
    PairedTest,
    Summary,
    holm,
    paired_tests,
    summarise,
    voxel_average,
)

# By case and column, as `figures_csv` writes them.
Table = dict[str, dict[str, float | None]]
LESION_COLUMNS = (
    "label", "kind", "number", "volume_ml", "found", "best_dice", "max_probability",
    "center_r_mm", "center_a_mm", "center_s_mm",
)  # fmt: skip


def summaries(rows: Sequence[EvaluatedCase]) -> dict[str, Summary]:
    """Mean, spread and quartiles over the cases of each measure; units stand in the names."""
    return {
        figure.column: summarise([row.figures[n].value for row in rows])
        for n, figure in enumerate(rows[0].figures)
    }


def pooled(rows: Sequence[EvaluatedCase]) -> dict[str, float]:
    """Measures of all cases together: Dice and IoU of the pooled voxels, and the FROC score."""
    out = {}
    for label in rows[0].overlaps:
        start = f"{label}: " if label else ""
        voxels = voxel_average([row.overlaps[label] for row in rows])
        out.update({f"{start}voxel average {name}": value for name, value in voxels.items()})
        if label in rows[0].by_threshold:
            curve = froc([row.by_threshold[label] for row in rows])
            if curve is not None:
                out[f"{start}FROC score"] = curve.score
    return out


@dataclass(frozen=True)
class Comparison:
    """One measure of two methods on the same cases.

    Attributes:
        t_holm, wilcoxon_holm: the p values after Holm's correction for all tests of that kind
            that were made together.
    """

    first: str
    second: str
    measure: str
    test: PairedTest
    t_holm: float | None = None
    wilcoxon_holm: float | None = None


def compare(tables: Mapping[str, Table]) -> list[Comparison]:
    """Paired tests of each pair of evaluations, measure by measure, on the cases of both.

    Args:
        tables: by the method's name.

    Raises:
        MissingInputError: two have no case in common.
    """
    tests = []
    for (first, a), (second, b) in itertools.combinations(tables.items(), 2):
        common = [case for case in a if case in b]
        if not common:
            raise MissingInputError(
                f"The evaluations of '{first}' and '{second}' have no case in common.",
                f"Cases of the first: {', '.join(a)}.",
            )
        for measure in a[common[0]]:
            test = paired_tests(
                [a[case][measure] for case in common], [b[case].get(measure) for case in common]
            )
            tests.append((first, second, measure, test))
    t = holm([test.t_p for *_, test in tests])
    wilcoxon = holm([test.wilcoxon_p for *_, test in tests])
    return [Comparison(*test, *p) for test, *p in zip(tests, t, wilcoxon, strict=True)]


def figures_table(rows: Sequence[EvaluatedCase]) -> Table:
    """Value by column by case, rounded as the .csv has them."""
    return {
        row.case: {f.column: None if f.value is None else round(f.value, 4) for f in row.figures}
        for row in rows
    }


def read_figures(path: Path) -> Table:
    """What `figures_csv` wrote of one method; empty cells are None.

    Raises:
        UnreadableImageError: no such file, or not of this form.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        if "model" in (lines[0] if lines else {}):
            raise ValueError("several models")
        return {
            line["case"]: {k: float(v) if v else None for k, v in line.items() if k != "case"}
            for line in lines
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableImageError(
            f"'{path}' holds no figures of one evaluation.",
            "Give what --out wrote before for one model.",
        ) from error


def figures_csv(rows: Mapping[str, Sequence[EvaluatedCase]]) -> str:
    """One line per case, with the method's name before it when there are several.

    Args:
        rows: by the method's name. Units stand in the column names.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    several = len(rows) > 1
    columns = [figure.column for figure in next(iter(rows.values()))[0].figures]
    writer.writerow([*(["model"] if several else []), "case", *columns])
    for method, cases in rows.items():
        for row in cases:
            cells = ["" if f.value is None else f"{f.value:.4f}" for f in row.figures]
            writer.writerow([*([method] if several else []), row.case, *cells])
    return text.getvalue()


def lesions_csv(rows: Mapping[str, Sequence[EvaluatedCase]]) -> str:
    """One line per lesion, of the reference or false; cells that do not apply are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "case", *LESION_COLUMNS])
    for method, cases in rows.items():
        for row in cases:
            writer.writerows([method, row.case, *_cells(lesion)] for lesion in row.lesions)
    return text.getvalue()


def _cells(lesion: LesionRecord) -> list[str]:
    probability = lesion.max_probability
    return [
        lesion.label,
        "false" if lesion.false else "reference",
        str(lesion.number),
        f"{lesion.volume_ml:.4f}",
        "" if lesion.false else "yes" if lesion.found else "no",
        "" if lesion.false else f"{lesion.best_dice:.4f}",
        "" if probability is None else f"{probability:.4f}",
        *[f"{c:.2f}" for c in lesion.center_ras],
    ]
