"""Answers against reference masks: the figures of one case, of a data set, and for the card."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from medsegcore.evaluation.answers import (
    Answer,
    CaseFiles,
    LabelValues,
    Method,
    ModelAnswers,
    chosen,
    model_labels,
)
from medsegcore.evaluation.lesions import LesionRecord, lesion_records
from medsegcore.evaluation.metrics import (
    LesionCounts,
    best_threshold_dice,
    dice,
    dice_by_threshold,
    hausdorff95_mm,
    iou,
    lesion_detection,
    lesions_by_threshold,
    mean_surface_distance_mm,
    precision,
    sensitivity,
    volume_difference_percent,
)
from medsegcore.evaluation.pictures import ErrorView, error_view
from medsegcore.evaluation.statistics import (
    Overlap,
    overlap,
    summarise,
)
from medsegcore.imaging import Grid, Image, read_image, read_labels, resample, without_nans
from medsegcore.inference.predictor import Predictor
from medsegcore.inference.preprocess import foreground, normalise
from medsegcore.models import Metric, Normalisation

# Lesions below this volume are not counted: at 1 mm^3 they are noise of the outline.
COUNTED_LESION_ML = 0.003
# A mean of volumes over labels says nothing.
NOT_AVERAGED = ("volume", "reference volume", "volume difference")
MEAN = "mean"


class Figure(NamedTuple):
    """One measure of one case; `value` is None where it is not defined.

    `label` is "" when one label alone is measured, and "mean" for the mean over all.
    """

    name: str
    value: float | None
    unit: str
    label: str = ""

    @property
    def title(self) -> str:
        """E.g. "HD95", or "oedema: HD95" among several labels."""
        return f"{self.label}: {self.name}" if self.label else self.name

    @property
    def column(self) -> str:
        """The title with the unit, e.g. "HD95 [mm]"."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title


def compare_masks(answer: np.ndarray, reference: np.ndarray, grid: Grid) -> list[Figure]:
    """All measures of an answer, both bool [k, j, i] on `grid`."""
    lesions = lesion_detection(answer, reference, counted_voxels(grid))
    return [
        Figure("Dice", dice(answer, reference), ""),
        Figure("IoU", iou(answer, reference), ""),
        Figure("sensitivity", sensitivity(answer, reference), ""),
        Figure("precision", precision(answer, reference), ""),
        Figure("lesion recall", lesions.recall, ""),
        Figure("lesion precision", lesions.precision, ""),
        Figure("lesion F1", lesions.f1, ""),
        Figure("volume", float(answer.sum()) * grid.voxel_volume_ml, "ml"),
        Figure("reference volume", float(reference.sum()) * grid.voxel_volume_ml, "ml"),
        Figure("volume difference", volume_difference_percent(answer, reference), "%"),
        Figure("HD95", hausdorff95_mm(answer, reference, grid.spacing), "mm"),
        Figure(
            "mean surface distance", mean_surface_distance_mm(answer, reference, grid.spacing), "mm"
        ),
    ]


def counted_voxels(grid: Grid) -> int:
    """Voxels of the smallest lesion that is counted."""
    return max(round(COUNTED_LESION_ML / grid.voxel_volume_ml), 1)


def threshold_baseline(image: Image, reference: np.ndarray) -> tuple[Figure, Figure]:
    """Best Dice of a threshold on an image, as it is and after a Gaussian of 0.7 voxels.

    The image is z-scored inside its foreground; the threshold is the best of all for this very
    reference mask, so no real threshold does better.
    """
    from scipy import ndimage

    array = without_nans(image).array
    how = Normalisation(method="zscore", clip=(-np.inf, np.inf))
    inside = foreground(array, how, image.name or "The image")
    scored = normalise(array, inside, how)
    smooth = ndimage.gaussian_filter(scored, 0.7)
    plain, _ = best_threshold_dice(scored, inside, reference)
    smoothed, _ = best_threshold_dice(smooth, inside, reference)
    return (
        Figure("best threshold Dice", plain, ""),
        Figure("best smoothed threshold Dice", smoothed, ""),
    )


class EvaluatedCase(NamedTuple):
    """The figures of one case, and what the averages over cases are made of.

    Attributes:
        figures: of each label, and of several their mean.
        overlaps, by_threshold, dice_by_threshold: by label; the last two only where there are
            probabilities.
        lesions: of all labels.
        view: where the answer is most wrong; None when no pictures are wanted.
    """

    case: str
    figures: list[Figure]
    overlaps: dict[str, Overlap]
    by_threshold: dict[str, LesionCounts]
    lesions: list[LesionRecord]
    view: ErrorView | None = None
    dice_by_threshold: Mapping[str, list[float]] = MappingProxyType({})

    @property
    def dice(self) -> float:
        """Of the only label, or the mean over the labels."""
        found = {(f.label, f.name): f.value for f in self.figures}
        return found.get((MEAN, "Dice"), found.get(("", "Dice"))) or 0.0


def evaluate(
    methods: Sequence[Method],
    cases: Sequence[CaseFiles],
    labels: LabelValues,
    baseline: str | None = None,
    pictures: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[EvaluatedCase]]:
    """Measure every method on every case, on the grid of the case's reference mask.

    Args:
        labels: what the values of the reference masks mean.
        baseline: input key whose best threshold is reported beside, or None.
        pictures: whether the cases keep the slices through their largest error.
        progress: called with (case, done, total).

    Returns:
        By the method's name, in the order of `cases`.
    """
    rows: dict[str, list[EvaluatedCase]] = {method.name: [] for method in methods}
    total = len(cases) * len(methods)
    wanted = [key for method in methods for key in method.keys]
    for n, case in enumerate(cases):
        mask = read_labels(case.mask)
        images = {
            key: read_image(path)
            for key, path in case.images.items()
            if pictures or key in (*wanted, baseline)
        }
        references = {name: chosen(mask.array, value) for name, value in labels.items()}
        beside: list[Figure] = []
        if baseline is not None:
            of_any = np.logical_or.reduce(list(references.values()))
            beside += threshold_baseline(resample(images[baseline], mask.grid), of_any)
        below = _background(images, wanted, mask.grid) if pictures else None
        for m, method in enumerate(methods):
            if progress is not None:
                progress(case.name, n * len(methods) + m, total)
            answer = method.answer(case.name, images, mask.grid)
            row = evaluate_case(case.name, answer, references, mask.grid)
            if below is not None:
                row = row._replace(view=error_view(below, answer.masks, references))
            rows[method.name].append(row._replace(figures=row.figures + beside))
    if progress is not None:
        progress("", total, total)
    return rows


def evaluate_case(
    name: str, answer: Answer, references: Mapping[str, np.ndarray], grid: Grid
) -> EvaluatedCase:
    """All figures of one case; `references` are bool [k, j, i] on `grid` by label name."""
    at_thresholds: dict[str, list[float]] = {}
    row = EvaluatedCase(name, [], {}, {}, [], dice_by_threshold=at_thresholds)
    smallest = counted_voxels(grid)
    for label, reference in references.items():
        mask, probability = answer.masks[label], answer.probabilities.get(label)
        shown = label if len(references) > 1 else ""
        row.figures.extend(
            figure._replace(label=shown) for figure in compare_masks(mask, reference, grid)
        )
        row.overlaps[shown] = overlap(mask, reference)
        row.lesions.extend(lesion_records(mask, reference, grid, probability, shown, smallest))
        if probability is not None:
            row.by_threshold[shown] = lesions_by_threshold(probability, reference, smallest)
            at_thresholds[shown] = dice_by_threshold(probability, reference)
    if len(references) > 1:
        row.figures.extend(_means(row.figures))
    return row


def _means(figures: Sequence[Figure]) -> list[Figure]:
    """Each measure's mean over the labels for which it is defined."""
    units = {f.name: f.unit for f in figures if f.name not in NOT_AVERAGED}
    return [
        Figure(name, summarise([f.value for f in figures if f.name == name]).mean, unit, MEAN)
        for name, unit in units.items()
    ]


def _background(images: Mapping[str, Image], first: Sequence[str], grid: Grid) -> Image:
    """What pictures are drawn over: an image on the mask's own grid before all others."""

    def rank(key: str) -> tuple[bool, int]:
        return not images[key].grid.same_as(grid), [*first, key].index(key)

    return resample(images[min(images, key=rank)], grid)


def evaluate_model(
    predictor: Predictor,
    cases: Sequence[tuple[str, dict[str, Path], Path]],
    baseline: str | None = None,
    mirror: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> list[EvaluatedCase]:
    """Segment every case and measure it against its mask, label by label.

    Args:
        cases: (name, {input key: file}, mask file).
        baseline, progress: as for `evaluate`.
        thresholds: by label name, 0..1; the model's own where none is given.
    """
    labels = model_labels(predictor.description)
    method = ModelAnswers(predictor, list(labels), mirror, thresholds)
    files = [CaseFiles(*case) for case in cases]
    return evaluate([method], files, labels, baseline, progress=progress)[method.name]


def card_metrics(rows: list[EvaluatedCase], how: str) -> list[Metric]:
    """The figures in the form that model.json keeps."""
    return [
        Metric(
            name=figure.title,
            value=None if figure.value is None else round(figure.value, 4),
            unit=figure.unit,
            case=row.case,
            n=1,
            how=how,
        )
        for row in rows
        for figure in row.figures
    ]
