"""A model against reference masks: the figures of one case, of a data set, and for the card."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsegcore.errors import MissingInputError, UnreadableImageError
from medsegcore.evaluation.metrics import (
    LesionCandidates,
    best_threshold_dice,
    dice,
    froc,
    hausdorff95_mm,
    iou,
    lesion_candidates,
    lesion_detection,
    mean_surface_distance_mm,
    precision,
    sensitivity,
    volume_difference_percent,
)
from medsegcore.evaluation.statistics import (
    Overlap,
    PairedTest,
    Summary,
    overlap,
    paired_tests,
    summarise,
    voxel_average,
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
    """The figures of one case, and what the averages over cases are made of."""

    case: str
    figures: list[Figure]
    overlap: Overlap
    candidates: LesionCandidates


def evaluate_model(
    predictor: Predictor,
    cases: list[tuple[str, dict[str, Path], Path]],
    baseline: str | None = None,
    mirror: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> list[EvaluatedCase]:
    """Segment every case and measure it against its mask.

    Args:
        cases: (name, {input key: file}, mask file).
        baseline: input key whose best threshold is reported beside, or None.
        progress: called with (case, done, total).
        thresholds: by label name, 0..1; the model's own where none is given.
    """
    rows = []
    for n, (name, files, mask) in enumerate(cases):
        if progress is not None:
            progress(name, n, len(cases))
        images = {key: read_image(path) for key, path in files.items()}
        result = predictor.predict(images, attention=False, mirror=mirror, thresholds=thresholds)
        reference = resample(read_image(mask), result.grid, "nearest").array > 0
        figures = compare_masks(result.labelmap > 0, reference, result.grid)
        if baseline is not None:
            figures += threshold_baseline(resample(images[baseline], result.grid), reference)
        rows.append(
            EvaluatedCase(
                name,
                figures,
                overlap(result.labelmap > 0, reference),
                lesion_candidates(
                    np.maximum.reduce(list(result.probabilities.values())),
                    reference,
                    min_voxels=counted_voxels(result.grid),
                ),
            )
        )
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


def summaries(rows: list[EvaluatedCase]) -> dict[str, Summary]:
    """Mean and standard deviation over the cases of each measure; units stand in the names."""
    return {
        column_name(figure): summarise([row.figures[n].value for row in rows])
        for n, figure in enumerate(rows[0].figures)
    }


def pooled(rows: list[EvaluatedCase]) -> dict[str, float]:
    """Measures of all cases together: Dice and IoU of the pooled voxels, and the FROC score."""
    voxels = voxel_average([row.overlap for row in rows])
    out = {f"voxel average {name}": value for name, value in voxels.items()}
    curve = froc([row.candidates for row in rows])
    return out if curve is None else {**out, "FROC score": curve.score}


def column_name(figure: Figure) -> str:
    """The measure's name with its unit, e.g. "HD95 [mm]"."""
    return f"{figure.name} [{figure.unit}]" if figure.unit else figure.name


def compare_figures(
    rows: list[EvaluatedCase], other: dict[str, dict[str, float | None]]
) -> dict[str, PairedTest]:
    """Paired tests of each measure against another evaluation of the same cases.

    Args:
        other: by case and column, as `read_figures` gives them.

    Raises:
        MissingInputError: no case in common.
    """
    common = [row for row in rows if row.case in other]
    if not common:
        raise MissingInputError(
            "The two evaluations have no case in common.",
            f"Cases here: {', '.join(row.case for row in rows)}.",
        )
    tests = {}
    for n, figure in enumerate(common[0].figures):
        name = column_name(figure)
        tests[name] = paired_tests(
            [row.figures[n].value for row in common],
            [other[row.case].get(name) for row in common],
        )
    return tests


def read_figures(path: Path) -> dict[str, dict[str, float | None]]:
    """What `figures_csv` wrote: value by column by case; empty cells are None.

    Raises:
        UnreadableImageError: no such file, or not of this form.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return {
            line["case"]: {k: float(v) if v else None for k, v in line.items() if k != "case"}
            for line in lines
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableImageError(
            f"'{path}' holds no figures of an evaluation.", "Give what --out wrote before."
        ) from error


def figures_csv(rows: list[EvaluatedCase]) -> str:
    """One line per case; units stand in the column names."""
    head = ["case", *(column_name(figure) for figure in rows[0].figures)]
    lines = [",".join(head)]
    for row in rows:
        cells = ["" if f.value is None else f"{f.value:.4f}" for f in row.figures]
        lines.append(",".join([row.case, *cells]))
    return "\n".join(lines) + "\n"
