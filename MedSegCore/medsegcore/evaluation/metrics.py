"""Measures of how well a mask agrees with a reference mask.

All take bool arrays [k, j, i] of one shape; distances take the spacing in mm. What they are when
a mask is empty is stated with each.
"""

from dataclasses import dataclass

import numpy as np

TOUCHING = np.ones((3, 3, 3))  # 26-neighbourhood


def dice(answer: np.ndarray, reference: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|), 0..1; 1 when both are empty."""
    total = int(answer.sum()) + int(reference.sum())
    return 2 * int((answer & reference).sum()) / total if total else 1.0


def sensitivity(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """Share of the reference's voxels that were found, 0..1; None when the reference is empty."""
    n = int(reference.sum())
    return int((answer & reference).sum()) / n if n else None


def precision(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """Share of the answer's voxels that are right, 0..1; None when the answer is empty."""
    n = int(answer.sum())
    return int((answer & reference).sum()) / n if n else None


def volume_difference_percent(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """100 (|A| - |B|) / |B|, signed: above 0 the answer is too large; None when B is empty."""
    n = int(reference.sum())
    return 100 * (int(answer.sum()) - n) / n if n else None


def hausdorff95_mm(
    answer: np.ndarray, reference: np.ndarray, spacing_ijk: tuple[float, float, float]
) -> float | None:
    """The larger of both directed 95th percentiles of surface distances, mm (MONAI).

    None when exactly one mask is empty, 0 when both are.
    """
    if not answer.any() or not reference.any():
        return None if answer.any() != reference.any() else 0.0
    import torch
    from monai.metrics import compute_hausdorff_distance

    box = _common_box(answer | reference)

    def tensor(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None]

    distance = compute_hausdorff_distance(
        tensor(answer),
        tensor(reference),
        include_background=True,
        percentile=95,
        spacing=list(reversed(spacing_ijk)),
    )
    return float(distance.item())


@dataclass(frozen=True)
class LesionDetection:
    """How many lesions (26-connected components) were found.

    A reference lesion is found when the answer shares at least one voxel with it; an answered
    lesion is right when it shares at least one voxel with the reference.

    Attributes:
        found, missed: numbers of reference lesions.
        right, wrong: numbers of answered lesions.
    """

    found: int
    missed: int
    right: int
    wrong: int

    @property
    def recall(self) -> float | None:
        """found / (found + missed); None without reference lesions."""
        n = self.found + self.missed
        return self.found / n if n else None

    @property
    def precision(self) -> float | None:
        """right / (right + wrong); None without answered lesions."""
        n = self.right + self.wrong
        return self.right / n if n else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 when either is None or 0, None if both are."""
        if self.recall is None and self.precision is None:
            return None
        if not self.recall or not self.precision:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def lesion_detection(
    answer: np.ndarray, reference: np.ndarray, min_voxels: int = 1
) -> LesionDetection:
    """Count lesions; components smaller than `min_voxels` are left out on both sides."""
    from scipy import ndimage

    def touched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
        components, n = ndimage.label(mask, structure=TOUCHING)
        sizes = np.bincount(components.ravel(), minlength=n + 1)[1:]
        hits = np.bincount(components[other], minlength=n + 1)[1:]
        counted = sizes >= min_voxels
        return int((counted & (hits > 0)).sum()), int((counted & (hits == 0)).sum())

    found, missed = touched(reference, answer)
    right, wrong = touched(answer, reference)
    return LesionDetection(found, missed, right, wrong)


def best_threshold_dice(
    values: np.ndarray, inside: np.ndarray, reference: np.ndarray, steps: int = 400
) -> tuple[float, float]:
    """The highest Dice that `values > t` reaches inside a mask over all t, and that t.

    The threshold is chosen with the reference at hand, so it flatters what it measures.

    Args:
        values: float [k, j, i], e.g. a z-scored FLAIR.
        inside: bool, where to look.
        steps: thresholds that are tried, evenly from the minimum to the maximum inside.
    """
    v, r = values[inside], reference[inside]
    outside = int(reference.sum()) - int(r.sum())
    best = (0.0, float("nan"))
    for t in np.linspace(v.min(), v.max(), steps, endpoint=False):
        chosen = v > t
        total = int(chosen.sum()) + int(r.sum()) + outside
        score = 2 * int((chosen & r).sum()) / total if total else 1.0
        best = max(best, (score, float(t)))
    return best


def _common_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box with a margin of one voxel, which surfaces need."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2))
    return tuple(box)
