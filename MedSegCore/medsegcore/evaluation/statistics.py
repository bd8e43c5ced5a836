"""Figures of many cases: averages, spread, and paired tests between two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) over the n cases where a measure is defined.

    `sd` is None for a single case; all but `n` are None for none.
    """

    mean: float | None
    sd: float | None
    n: int
    median: float | None
    quartiles: tuple[float, float] | None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.3g}" if self.sd is None else f"{self.mean:.3g} ± {self.sd:.2g}"


def summarise(values: Sequence[float | None]) -> Summary:
    """Summary of a measure over cases; None where it was not defined."""
    defined = [v for v in values if v is not None]
    if not defined:
        return Summary(None, None, 0, None, None)
    sd = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
    low, median, high = (float(q) for q in np.percentile(defined, (25, 50, 75)))
    return Summary(float(np.mean(defined)), sd, len(defined), median, (low, high))


class Overlap(NamedTuple):
    """Numbers of voxels of one case: in both masks, in the answer, in the reference."""

    both: int
    answer: int
    reference: int


def overlap(answer: np.ndarray, reference: np.ndarray) -> Overlap:
    """Count the voxels of two bool masks."""
    return Overlap(int((answer & reference).sum()), int(answer.sum()), int(reference.sum()))


def sample_average(cases: Sequence[Overlap]) -> dict[str, float]:
    """Dice and IoU of each case, averaged: every patient counts the same."""
    each = [voxel_average([case]) for case in cases]
    return {name: float(np.mean([values[name] for values in each])) for name in ("Dice", "IoU")}


def voxel_average(cases: Sequence[Overlap]) -> dict[str, float]:
    """Dice and IoU of the voxels of all cases pooled (RSANet, section 3.2).

    Patients with few lesions count less than in `sample_average`. 1 when all masks are empty.
    """
    both = sum(case.both for case in cases)
    total = sum(case.answer + case.reference for case in cases)
    if not total:
        return {"Dice": 1.0, "IoU": 1.0}
    return {"Dice": 2 * both / total, "IoU": both / (total - both)}


@dataclass(frozen=True)
class PairedTest:
    """Whether two models differ on the same cases.

    Attributes:
        difference: mean of first minus second.
        t_p, wilcoxon_p: two-sided p values of the paired t-test and of Wilcoxon's signed-rank
            test, 0..1; None with fewer than two pairs, or when all differences are equal (t) or
            zero (Wilcoxon).
        n: pairs in which both values are defined.
    """

    difference: float | None
    t_p: float | None
    wilcoxon_p: float | None
    n: int


def paired_tests(first: Sequence[float | None], second: Sequence[float | None]) -> PairedTest:
    """Compare one measure of two models, case by case (SciPy).

    Raises:
        ValueError: different numbers of cases.
    """
    from scipy import stats

    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    differences = np.array([a - b for a, b in pairs])
    n = len(pairs)
    if not n:
        return PairedTest(None, None, None, 0)
    difference = float(differences.mean())
    t_p = wilcoxon_p = None
    if n > 1 and np.ptp(differences) > 0:
        t_p = float(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue)
    if n > 1 and np.any(differences):
        wilcoxon_p = float(stats.wilcoxon(differences).pvalue)
    return PairedTest(difference, t_p, wilcoxon_p, n)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values that hold for all tests together, 0..1; None stays None and is not counted.

    Holm S. A simple sequentially rejective multiple test procedure. Scand J Stat 1979;6:65-70.
    """
    ordered = sorted((p, n) for n, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, n) in enumerate(ordered):
        largest = max(largest, min(p * (len(ordered) - rank), 1.0))
        adjusted[n] = largest
    return adjusted
