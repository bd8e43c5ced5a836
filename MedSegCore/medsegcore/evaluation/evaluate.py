"""A model against reference masks: the figures of one case, of a data set, and for the card."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsegcore.evaluation.metrics import (
    best_threshold_dice,
    dice,
    hausdorff95_mm,
    lesion_detection,
    precision,
    sensitivity,
    volume_difference_percent,
)
from medsegcore.imaging import Grid, Image, read_image, resample, without_nans
from medsegcore.inference.predictor import Predictor
from medsegcore.inference.preprocess import foreground, normalise
from medsegcore.models import Metric, Normalisation

# Lesions below this volume are not counted: at 1 mm^3 they are noise of the outline.
COUNTED_LESION_ML = 0.003


class Figure(NamedTuple):
    """One measure of one case; `value` is None where it is not defined."""

    name: str
    value: float | None
    unit: str


def compare_masks(answer: np.ndarray, reference: np.ndarray, grid: Grid) -> list[Figure]:
    """All measures of an answer, both bool [k, j, i] on `grid`."""
    least = max(round(COUNTED_LESION_ML / grid.voxel_volume_ml), 1)
    lesions = lesion_detection(answer, reference, least)
    return [
        Figure("Dice", dice(answer, reference), ""),
        Figure("sensitivity", sensitivity(answer, reference), ""),
        Figure("precision", precision(answer, reference), ""),
        Figure("lesion recall", lesions.recall, ""),
        Figure("lesion precision", lesions.precision, ""),
        Figure("lesion F1", lesions.f1, ""),
        Figure("volume", float(answer.sum()) * grid.voxel_volume_ml, "ml"),
        Figure("reference volume", float(reference.sum()) * grid.voxel_volume_ml, "ml"),
        Figure("volume difference", volume_difference_percent(answer, reference), "%"),
        Figure("HD95", hausdorff95_mm(answer, reference, grid.spacing), "mm"),
    ]


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
    """The figures of one case."""

    case: str
    figures: list[Figure]


def evaluate_model(
    predictor: Predictor,
    cases: list[tuple[str, dict[str, Path], Path]],
    baseline: str | None = None,
    mirror: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[EvaluatedCase]:
    """Segment every case and measure it against its mask.

    Args:
        cases: (name, {input key: file}, mask file).
        baseline: input key whose best threshold is reported beside, or None.
        progress: called with (case, done, total).
    """
    rows = []
    for n, (name, files, mask) in enumerate(cases):
        if progress is not None:
            progress(name, n, len(cases))
        images = {key: read_image(path) for key, path in files.items()}
        result = predictor.predict(images, attention=False, mirror=mirror)
        reference = resample(read_image(mask), result.grid, "nearest").array > 0
        figures = compare_masks(result.labelmap > 0, reference, result.grid)
        if baseline is not None:
            figures += threshold_baseline(resample(images[baseline], result.grid), reference)
        rows.append(EvaluatedCase(name, figures))
    if progress is not None:
        progress("", len(cases), len(cases))
    return rows


def card_metrics(rows: list[EvaluatedCase], how: str) -> list[Metric]:
    """The figures in the form that model.json keeps."""
    return [
        Metric(
            name=figure.name,
            value=None if figure.value is None else round(figure.value, 4),
            unit=figure.unit,
            case=row.case,
            n=1,
            how=how,
        )
        for row in rows
        for figure in row.figures
    ]


def mean_row(rows: list[EvaluatedCase]) -> EvaluatedCase:
    """The mean over the cases where a measure is defined."""
    figures = []
    for n, figure in enumerate(rows[0].figures):
        values = [v for row in rows if (v := row.figures[n].value) is not None]
        figures.append(figure._replace(value=float(np.mean(values)) if values else None))
    return EvaluatedCase(f"mean of {len(rows)} cases", figures)


def figures_csv(rows: list[EvaluatedCase]) -> str:
    """One line per case; units stand in the column names."""
    head = ["case", *(f"{f.name} [{f.unit}]" if f.unit else f.name for f in rows[0].figures)]
    lines = [",".join(head)]
    for row in rows:
        cells = ["" if f.value is None else f"{f.value:.4f}" for f in row.figures]
        lines.append(",".join([row.case, *cells]))
    return "\n".join(lines) + "\n"
