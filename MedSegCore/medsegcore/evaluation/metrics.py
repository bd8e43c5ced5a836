"""Measures of how well a mask agrees with a reference mask.

All take bool arrays [k, j, i] of one shape; distances take the spacing in mm. What they are when
a mask is empty is stated with each.

CSAD (Zhang et al., arXiv 2011.03908) prints some of them with slips: Dice as its complement
(eq. 12), accuracy under the name of precision (eq. 15), and the volume difference over the answer
instead of the reference (eq. 14). These here are the standard definitions.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

TOUCHING = np.ones((3, 3, 3))  # 26-neighbourhood

# Of probabilities.
THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(1, 20))
# Where the score of a FROC curve looks, as in LUNA16 from 1/4 on.
FALSE_LESIONS_PER_CASE = (0.25, 0.5, 1, 2, 4, 8)

# alpha, beta and gamma of the MSSEG challenge, see `detected`.
LEAST_COVERED, MOST_OUTSIDE, LARGEST_PARTNERS = 0.1, 0.7, 0.65


def dice(answer: np.ndarray, reference: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|), 0..1; 1 when both are empty."""
    total = int(answer.sum()) + int(reference.sum())
    return 2 * int((answer & reference).sum()) / total if total else 1.0


def dice_by_threshold(probability: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice at each of THRESHOLDS; probability 0..1 and reference bool, both [k, j, i]."""
    return [dice(probability > threshold, reference) for threshold in THRESHOLDS]


def iou(answer: np.ndarray, reference: np.ndarray) -> float:
    """|A and B| / |A or B|, 0..1; 1 when both are empty."""
    union = int((answer | reference).sum())
    return int((answer & reference).sum()) / union if union else 1.0


def volumetric_overlap_error_percent(answer: np.ndarray, reference: np.ndarray) -> float:
    """VOE: 100 (1 - IoU), 0..100 (eq. 13 of CSAD); 0 when both are empty."""
    return 100 * (1 - iou(answer, reference))


def sensitivity(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """Share of the reference's voxels that were found, 0..1; None when the reference is empty."""
    n = int(reference.sum())
    return int((answer & reference).sum()) / n if n else None


def precision(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """Share of the answer's voxels that are right, 0..1; None when the answer is empty."""
    n = int(answer.sum())
    return int((answer & reference).sum()) / n if n else None


def volume_difference_percent(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """RVD: 100 (|A| - |B|) / |B|, signed: above 0 the answer is too large; None when B is empty.

    Tables of papers give its absolute value.
    """
    n = int(reference.sum())
    return 100 * (int(answer.sum()) - n) / n if n else None


def hausdorff_mm(
    answer: np.ndarray,
    reference: np.ndarray,
    spacing_ijk: tuple[float, float, float],
    percentile: float | None = None,
) -> float | None:
    """The larger of both directed surface distances, mm (MONAI); largest or at a percentile.

    None when exactly one mask is empty, 0 when both are.
    """
    from monai.metrics import compute_hausdorff_distance

    def measure(a: "torch.Tensor", b: "torch.Tensor", spacing: list[float]) -> "torch.Tensor":
        return compute_hausdorff_distance(
            a, b, include_background=True, percentile=percentile, spacing=spacing
        )

    return _surface_measure(measure, answer, reference, spacing_ijk)


def hausdorff95_mm(
    answer: np.ndarray, reference: np.ndarray, spacing_ijk: tuple[float, float, float]
) -> float | None:
    """HD95: `hausdorff_mm` at the 95th percentile."""
    return hausdorff_mm(answer, reference, spacing_ijk, percentile=95)


def mean_surface_distance_mm(
    answer: np.ndarray, reference: np.ndarray, spacing_ijk: tuple[float, float, float]
) -> float | None:
    """Mean distance of the surface voxels of both masks to the other's surface, mm (MONAI).

    None when exactly one mask is empty, 0 when both are.
    """
    from monai.metrics import compute_average_surface_distance

    def measure(a: "torch.Tensor", b: "torch.Tensor", spacing: list[float]) -> "torch.Tensor":
        return compute_average_surface_distance(
            a, b, include_background=True, symmetric=True, spacing=spacing
        )

    return _surface_measure(measure, answer, reference, spacing_ijk)


def _surface_measure(
    measure: "Callable[..., torch.Tensor]",
    answer: np.ndarray,
    reference: np.ndarray,
    spacing_ijk: tuple[float, float, float],
) -> float | None:
    """A distance of MONAI inside the common bounding box; stated values for empty masks."""
    if not answer.any() or not reference.any():
        return None if answer.any() != reference.any() else 0.0
    import torch

    box = _common_box(answer | reference)

    def tensor(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None]

    spacing = [float(s) for s in reversed(spacing_ijk)]
    with warnings.catch_warnings():
        # MONAI warns of an argument that it gives itself.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*get_mask_edges.*")
        return float(measure(tensor(answer), tensor(reference), spacing=spacing).item())


@dataclass(frozen=True)
class LesionDetection:
    """How many lesions (26-connected components) were found, see `detected`.

    An answered lesion is right when the reference detects it by the same rule.

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


def counted_lesions(mask: np.ndarray, min_voxels: int) -> np.ndarray:
    """Numbers, from 1, of the 26-connected components [k, j, i] of at least so many voxels."""
    from scipy import ndimage

    components, n = ndimage.label(mask, structure=TOUCHING)
    large = np.bincount(components.ravel(), minlength=n + 1) >= min_voxels
    large[0] = False
    return (np.cumsum(large) * large)[components]


def detected(components: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which components of one mask are detected by another mask, as in the MSSEG challenge.

    At least a tenth of the component is covered; and of the other mask's components that cover it,
    those with the largest overlaps, up to 65 % of all the overlap, have each at most 70 % of their
    voxels outside of the first mask. So a mask of the whole brain detects nothing.

    Args:
        components, others: numbers of the components [k, j, i], 0 for the background.

    Returns:
        bool, by number; the background is False.

    Source:
        Commowick et al., Scientific Reports 8:13650 (2018): alpha, beta and gamma.
    """
    count = int(components.max(initial=0))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes_of_others = np.bincount(others.ravel())
    outside = np.bincount(others[components == 0], minlength=len(sizes_of_others))
    astray = outside > MOST_OUTSIDE * sizes_of_others
    both = (components > 0) & (others > 0)
    pairs = components[both].astype(np.int64) * len(sizes_of_others) + others[both]
    pairs, overlaps = np.unique(pairs, return_counts=True)
    mine, theirs = np.divmod(pairs, len(sizes_of_others))
    found = np.zeros(count + 1, bool)
    for n in np.unique(mine):
        partners, shared = theirs[mine == n], overlaps[mine == n]
        if shared.sum() < LEAST_COVERED * sizes[n]:
            continue
        order = np.argsort(-shared, kind="stable")
        before = np.cumsum(shared[order]) - shared[order]
        counted = order[before < LARGEST_PARTNERS * shared.sum()]
        found[n] = not astray[partners[counted]].any()
    return found


def lesion_detection(
    answer: np.ndarray, reference: np.ndarray, min_voxels: int = 1
) -> LesionDetection:
    """Count lesions; components smaller than `min_voxels` are left out on both sides."""
    answered, lesions = counted_lesions(answer, min_voxels), counted_lesions(reference, min_voxels)
    found, right = detected(lesions, answered)[1:], detected(answered, lesions)[1:]
    return LesionDetection(
        int(found.sum()), int((~found).sum()), int(right.sum()), int((~right).sum())
    )


@dataclass(frozen=True)
class LesionCounts:
    """What the probabilities of one case find at each of THRESHOLDS.

    Attributes:
        found: reference lesions that the answer at that threshold detects.
        false: lesions of that answer that are none, both by the rule of `detected`.
        lesions: number of reference lesions.
    """

    found: list[int]
    false: list[int]
    lesions: int


def lesions_by_threshold(
    probability: np.ndarray, reference: np.ndarray, min_voxels: int = 1
) -> LesionCounts:
    """Lesions found, and false ones, at each of THRESHOLDS.

    Args:
        probability: [k, j, i], 0..1.
        reference: bool [k, j, i].
        min_voxels: smaller components are left out on both sides.
    """
    box = _common_box(reference | (probability > THRESHOLDS[0]))
    probability, lesions = probability[box], counted_lesions(reference[box], min_voxels)
    found, false = [], []
    for threshold in THRESHOLDS:
        answered = counted_lesions(probability > threshold, min_voxels)
        found.append(int(detected(lesions, answered).sum()))
        false.append(int((~detected(answered, lesions)[1:]).sum()))
    return LesionCounts(found, false, int(lesions.max(initial=0)))


@dataclass(frozen=True)
class Froc:
    """Lesion recall against false lesions per case, at each of THRESHOLDS.

    Neither need rise as the threshold falls: lesions that flow together are one, and one that
    covers far more than a reference lesion detects nothing.

    Attributes:
        false_per_case, recall: from the lowest threshold to the highest; the latter 0..1.
        score: mean over 1/4, 1/2, 1, 2, 4 and 8 false lesions per case of the highest recall that
            a threshold reaches with no more of them; 0..1.
    """

    false_per_case: np.ndarray
    recall: np.ndarray
    score: float


def froc(cases: Sequence[LesionCounts]) -> Froc | None:
    """Free-response operating characteristic of several cases.

    Returns:
        None without any reference lesion.
    """
    lesions = sum(case.lesions for case in cases)
    if not lesions:
        return None
    false_per_case = np.mean([case.false for case in cases], axis=0)
    recall = np.sum([case.found for case in cases], axis=0) / lesions
    at = [recall[false_per_case <= most].max(initial=0.0) for most in FALSE_LESIONS_PER_CASE]
    return Froc(false_per_case, recall, float(np.mean(at)))


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
    """The bounding box with a margin of one voxel, which surfaces need; empty of an empty mask."""
    if not mask.any():
        return tuple(slice(0, 0) for _ in mask.shape)
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2))
    return tuple(box)
