"""Lesion by lesion: what was found, what was missed, and what is none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medsegcore.evaluation.metrics import counted_lesions, detected
from medsegcore.imaging import Grid

# Decades in ml: MS lesions of 0.003 ml and tumours of 100 ml each find their place.
SIZE_EDGES_ML = (0.01, 0.1, 1.0, 10.0)
SIZE_NAMES = ("below 0.01 ml", "0.01 to 0.1 ml", "0.1 to 1 ml", "1 to 10 ml", "10 ml and more")


@dataclass(frozen=True)
class LesionRecord:
    """A reference lesion, or an answered one that is none, by the rule of `metrics.detected`.

    Attributes:
        label: its name, "" when there is one alone.
        false: whether it is an answered lesion that is none of the reference.
        found: whether the answer detects it; False for a false one.
        number: from 1, by falling volume, of its kind.
        volume_ml: in ml.
        best_dice: highest Dice with one answered lesion, 0..1; 0 when false.
        max_probability: inside it, 0..1; None where the answer has no probabilities.
        center_ras: centre of mass in mm.
    """

    label: str
    false: bool
    found: bool
    number: int
    volume_ml: float
    best_dice: float
    max_probability: float | None
    center_ras: tuple[float, float, float]


def lesion_records(
    answer: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    probability: np.ndarray | None = None,
    label: str = "",
    min_voxels: int = 1,
) -> list[LesionRecord]:
    """Reference lesions, then false ones, each by falling volume.

    Args:
        answer, reference: bool [k, j, i] on `grid`.
        probability: [k, j, i], 0..1, or None.
        min_voxels: smaller lesions are left out, as `metrics.lesion_detection` does.
    """
    from scipy import ndimage

    answered = counted_lesions(answer, min_voxels)
    lesions = counted_lesions(reference, min_voxels)
    sizes = np.bincount(answered.ravel())

    def records(components: np.ndarray, found: np.ndarray, false: bool) -> list[LesionRecord]:
        listed = []
        for n, box in enumerate(ndimage.find_objects(components), 1):
            if false and found[n]:
                continue
            mine = components[box] == n
            volume = int(mine.sum())
            shared = np.bincount(answered[box][mine], minlength=len(sizes))
            dice = 0.0 if false else float((2 * shared / (sizes + volume))[1:].max(initial=0))
            kji = np.argwhere(mine).mean(axis=0) + [s.start for s in box]
            r, a, s = grid.to_ras(kji[::-1])
            strongest = None if probability is None else float(probability[box][mine].max())
            listed.append(
                LesionRecord(
                    label, false, bool(found[n]), 0, volume * grid.voxel_volume_ml, dice,
                    strongest, (float(r), float(a), float(s)),
                )
            )  # fmt: skip
        listed.sort(key=lambda lesion: -lesion.volume_ml)
        return [replace(lesion, number=n) for n, lesion in enumerate(listed, 1)]

    return [
        *records(lesions, detected(lesions, answered), False),
        *records(answered, detected(answered, lesions), True),
    ]


@dataclass(frozen=True)
class SizeBin:
    """Lesions of one range of volumes: of the reference, how many were found, and false ones."""

    name: str
    lesions: int
    found: int
    false: int


def by_size(lesions: Sequence[LesionRecord]) -> list[SizeBin]:
    """Detection by volume, in decades of ml; ranges without any lesion are left out."""
    bins = np.digitize([lesion.volume_ml for lesion in lesions], SIZE_EDGES_ML)
    rows = []
    for n, name in enumerate(SIZE_NAMES):
        inside = [lesion for lesion, where in zip(lesions, bins, strict=True) if where == n]
        real = [lesion for lesion in inside if not lesion.false]
        if inside:
            found = sum(lesion.found for lesion in real)
            rows.append(SizeBin(name, len(real), found, len(inside) - len(real)))
    return rows
