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
        inputs: mean of each input image inside, in the image's own units.
    """

    number: int
    label: str
    volume_ml: float
    longest_diameter_mm: float
    mean_probability: float
    max_probability: float
    center_ras: tuple[float, float, float]
    inputs: dict[str, float]


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
        inputs: float32 [k, j, i] on the same grid by input key.
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
            kji = np.argwhere(mask) + [s.start for s in box]
            center = grid.to_ras(kji[:, ::-1].mean(axis=0))
            found.append(
                Lesion(
                    number=0,
                    label=label.name,
                    volume_ml=volume,
                    longest_diameter_mm=longest_diameter_mm(mask, grid),
                    mean_probability=float(inside.mean()),
                    max_probability=float(inside.max()),
                    center_ras=(float(center[0]), float(center[1]), float(center[2])),
                    inputs={key: float(array[box][mask].mean()) for key, array in inputs.items()},
                )
            )
    found.sort(key=lambda lesion: -lesion.volume_ml)
    numbered = [
        Lesion(**{**vars(lesion), "number": number}) for number, lesion in enumerate(found, 1)
    ]
    return kept, numbered


def longest_diameter_mm(mask: np.ndarray, grid: Grid) -> float:
    """Largest distance in mm between two points of the voxels of `mask`, their corners counted.

    A single voxel has its space diagonal.
    """
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    # Farthest out can only be a corner of a voxel that ends its row along all three axes.
    ends = {(axis, sign): _end_of_rows(mask, axis, sign) for axis in range(3) for sign in (-1, 1)}
    corners = []
    for signs in itertools.product((-1, 1), repeat=3):
        along_k, along_j, along_i = (ends[axis, sign] for axis, sign in enumerate(signs))
        j, i = np.nonzero(along_k >= 0)
        k = along_k[j, i]
        outer = (along_j[k, i] == j) & (along_i[k, j] == i)
        corners.append(np.column_stack([i, j, k])[outer] + np.array(signs[::-1]) / 2)
    points = np.concatenate(corners) @ grid.affine[:3, :3].T
    if len(points) > 64:
        points = points[ConvexHull(points).vertices]
    return float(pdist(points).max())


def _end_of_rows(mask: np.ndarray, axis: int, sign: int) -> np.ndarray:
    """Index along `axis` of the first (sign -1) or last voxel of each row, -1 for empty rows."""
    turned = mask if sign < 0 else np.flip(mask, axis)
    first = turned.argmax(axis=axis)
    end = first if sign < 0 else mask.shape[axis] - 1 - first
    return np.where(mask.any(axis=axis), end, -1)
