"""Which threshold suits cases that a model never saw.

`thresholds.csv` of a cross-validation has the Dice of every held-out case at each threshold. The
best of them is chosen knowing these cases; what it is worth for a new patient is told by choosing
it for each patient from all the others.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsegcore.evaluation.evaluate import EvaluatedCase
from medsegcore.evaluation.metrics import THRESHOLDS
from medsegcore.training.datasets import Case

FACTS = ("patient", "case", "label")


class DiceByThreshold(NamedTuple):
    """One label of one held-out case; `dice` 0..1 at each of THRESHOLDS."""

    patient: str
    case: str
    label: str
    dice: list[float]


class Choice(NamedTuple):
    """What to set as a label's threshold.

    Attributes:
        threshold: the one with the best mean Dice over the held-out patients.
        dice: that mean, 0..1.
        elsewhere: mean Dice with, for each patient, the threshold that is best for the others.
    """

    threshold: float
    dice: float
    elsewhere: float | None


def by_threshold(cases: Sequence[Case], rows: Sequence[EvaluatedCase]) -> list[DiceByThreshold]:
    """Each label of each case, both in the same order."""
    return [
        DiceByThreshold(case.patient, case.id, label, dice)
        for case, row in zip(cases, rows, strict=True)
        for label, dice in row.dice_by_threshold.items()
    ]


def choose(cases: Sequence[DiceByThreshold]) -> Choice:
    """The best threshold of one label; every patient counts alike."""
    patients = sorted({case.patient for case in cases})
    means = np.array([
        np.mean([case.dice for case in cases if case.patient == patient], axis=0)
        for patient in patients
    ])  # fmt: skip
    best = _best(means)
    others = [
        means[n, _best(np.delete(means, n, axis=0))] for n in range(len(patients))
    ] if len(patients) > 1 else []  # fmt: skip
    return Choice(
        THRESHOLDS[best], float(means[:, best].mean()), float(np.mean(others)) if others else None
    )


def _best(means: np.ndarray) -> int:
    """Column of the highest mean; of equal ones the middle, which is the safest."""
    mean = means.mean(axis=0)
    ties = np.flatnonzero(np.isclose(mean, mean.max()))
    return int(ties[len(ties) // 2])


def thresholds_csv(cases: Sequence[DiceByThreshold]) -> str:
    """A line for each label of each case."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FACTS, *THRESHOLDS])
    for case in cases:
        writer.writerow([*case[:3], *(f"{value:.4f}" for value in case.dice)])
    return text.getvalue()


def read_thresholds(path: Path) -> list[DiceByThreshold]:
    """What `thresholds_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            DiceByThreshold(
                line["patient"], line["case"], line["label"],
                [float(line[str(threshold)]) for threshold in THRESHOLDS],
            )
            for line in csv.DictReader(file)
        ]  # fmt: skip


def threshold_lines(cases: Sequence[DiceByThreshold], used: Mapping[str, float]) -> list[str]:
    """Sentences for a summary.

    Args:
        used: the threshold of each label in these models.
    """
    lines = []
    for label in dict.fromkeys(case.label for case in cases):
        choice = choose([case for case in cases if case.label == label])
        name = f"{label}: " if len(used) > 1 else ""
        sentence = (
            f"- {name}the models have the threshold {used[label]:g}; the best for the held-out "
            f"patients is {choice.threshold:g}, with a mean Dice of {choice.dice:.2f}"
        )
        if choice.elsewhere is not None:
            sentence += f" ({choice.elsewhere:.2f} when it is chosen without the patient)"
        lines.append(sentence + ".")
    return lines
