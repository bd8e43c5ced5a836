"""Lesions of a labelmap: connected components and what a reader wants to know of each."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsegcore.imaging import Grid
from medsegcore.models.schema import Label


@dataclass(frozen=True)
class Lesion:
    """One connected component (26-neighbourhood) of one label.

    Attributes:
        number: from 1, by falling volume.
        label: name of the label.
        volume_ml: in ml.
        longest_diameter_mm: largest distance between two points of its voxels, corners counted.
        mean_probability, max_probability: of its voxels, 0..1.
        center_ras: centre of mass of its voxels in mm.
        inputs: mean of each input image over its voxels inside, in the image's own units; None
            where the image does not reach.
    """

    number: int
    label: str
    volume_ml: float
    longest_diameter_mm: float
    mean_probability: float
    max_probability: float
    center_ras: tuple[float, float, float]
    inputs: dict[str, float | None]


def label_voxels(
    labels: Sequence[Label],
    probabilities: Mapping[str, np.ndarray],
    thresholds: Mapping[str, float],
) -> np.ndarray:
    """uint8 [k, j, i]: the label of the highest probability among those at their threshold."""
    shape = next(iter(probabilities.values())).shape
    best = np.zeros(shape, np.float32)
    labelmap = np.zeros(shape, np.uint8)
    for label in labels:
        probability = probabilities[label.name]
        wins = (probability >= thresholds[label.name]) & (probability > best)
        labelmap[wins] = label.value
        best[wins] = probability[wins]
    return labelmap


def find_lesions(
    labelmap: np.ndarray,
    grid: Grid,
    labels: Sequence[Label],
    probabilities: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    min_lesion_ml: float = 0.0,
) -> tuple[np.ndarray, list[Lesion]]:
    """The labelmap with the components that stay, and what there is to know of them.

    Those smaller than `min_lesion_ml` go; of a label in one piece, all but the largest (the first
    of equals).

    Args:
        labelmap: uint8 [k, j, i] on `grid`.
        probabilities: float32 [k, j, i] by label name, 0..1.
        inputs: float32 [k, j, i] on the same grid by input key, NaN where an image does not
            reach.
        min_lesion_ml: in ml.
    """
    from scipy import ndimage

    kept = labelmap.copy()
    found: list[Lesion] = []
    for label in labels:
        components, _ = ndimage.label(labelmap == label.value, structure=np.ones((3, 3, 3)))
        largest = np.bincount(components[components > 0], minlength=1).argmax()
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            mask = components[box] == number
            volume = float(mask.sum()) * grid.voxel_volume_ml
            if volume < min_lesion_ml or (label.one_piece and number != largest):
                kept[box][mask] = 0
                continue
            inside = probabilities[label.name][box][mask]
            kji = [x + part.start for x, part in zip(np.nonzero(mask), box, strict=True)]
            center = grid.to_ras(np.array([x.mean() for x in kji[::-1]]))
            found.append(
                Lesion(
                    number=0,
                    label=label.name,
                    volume_ml=volume,
                    longest_diameter_mm=longest_diameter_mm(kji, grid),
                    mean_probability=float(inside.mean()),
                    max_probability=float(inside.max()),
                    center_ras=(float(center[0]), float(center[1]), float(center[2])),
                    inputs={key: _mean(array[box][mask]) for key, array in inputs.items()},
                )
            )
    found.sort(key=lambda lesion: -lesion.volume_ml)
    numbered = [
        Lesion(**{**vars(lesion), "number": number}) for number, lesion in enumerate(found, 1)
    ]
    return kept, numbered


def _mean(values: np.ndarray) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else None


def longest_diameter_mm(kji: Sequence[np.ndarray], grid: Grid) -> float:
    """Largest distance in mm between two points of these voxels, their corners counted.

    Args:
        kji: indices k, j and i of the voxels, at least one, in an array on `grid`, as `np.nonzero`
            gives them. A single voxel has its space diagonal.
    """
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    # Farthest out can only be a corner of a voxel that ends its row along all three axes.
    first, last = _row_ends(kji[0], kji[1])
    ends = first | last
    voxels = np.column_stack([x[ends] for x in kji])
    signs = np.zeros((len(voxels), 3, 2), bool)
    signs[:, 2] = np.column_stack([first[ends], last[ends]])
    for axis, across in ((1, 0), (0, 1)):
        order = np.lexsort((voxels[:, axis], voxels[:, 2], voxels[:, across]))
        voxels, signs = voxels[order], signs[order]
        signs[:, axis] = np.column_stack(_row_ends(voxels[:, across], voxels[:, 2]))
        ends = signs[:, axis].any(axis=1)
        voxels, signs = voxels[ends], signs[ends]
    to_mm = grid.affine[:3, :3].T
    voxels, signs = voxels[:, ::-1], signs[:, ::-1]
    far = _far_out(voxels @ to_mm, np.abs(to_mm).sum(axis=0) / 2)
    voxels, signs = voxels[far], signs[far]
    corners = [
        voxels[signs[:, 0, i] & signs[:, 1, j] & signs[:, 2, k]] + (np.array([i, j, k]) - 0.5)
        for i, j, k in itertools.product((0, 1), repeat=3)
    ]
    points = np.concatenate(corners) @ to_mm
    if len(points) > 64:
        points = points[ConvexHull(points).vertices]
    return float(pdist(points).max())


def _row_ends(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the voxels are the first, and the last, of those in a row with the same a and b."""
    new = (np.diff(a) != 0) | (np.diff(b) != 0)
    return np.r_[True, new], np.r_[new, True]


def _far_out(points: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Which of the points (mm) can be an end of the longest diameter.

    Args:
        reach: how far a corner lies from its point at most along each axis, mm.
    """
    radius = np.linalg.norm(points - (points.min(axis=0) + points.max(axis=0)) / 2, axis=1)
    one = points[radius.argmax()]
    other = points[np.linalg.norm(points - one, axis=1).argmax()]
    found = np.linalg.norm(points - other, axis=1).max()
    # By the triangle's inequality over the middle.
    return radius + radius.max() + 2 * np.linalg.norm(reach) >= found
