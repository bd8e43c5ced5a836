"""From a prepared case to one slice, changed as the papers on slices say."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from monai.transforms import (
    Compose,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianSmoothd,
    SpatialPadd,
    Transform,
)

from medsegcore.training.augmentation import (
    KeepOutsideZerod,
    RandSliced,
    Stackd,
    narrow_view,
    scanner_transforms,
)
from medsegcore.training.facts import DataFacts

Augment = Literal["none", "plain", "scanner"]

# Silent in the papers that rotate, zoom, shift and blur.
ROTATION = float(np.deg2rad(15))
ZOOM, SHIFT_SHARE, BLUR = 0.15, 0.08, (0.3, 1.2)


def plain_slice_transforms(
    keys: Sequence[str],
    patch: tuple[int, int, int],
    neighbours: int = 0,
    augment: Augment = "plain",
) -> Compose:
    """From a whole prepared case to one slice, see `RandSliced`, or a part of one.

    Rotation, zoom and shift are one resampling, so that a slice is interpolated once.

    Args:
        keys: input keys in the order of the network's channels; each [1, k, j, i], normalised.
        patch: (1, j, i) in voxels; smaller slices are filled with zeros.
        neighbours: slices on each side of each input, as channels.
        augment: "plain" rotates, zooms, shifts and blurs at random; "scanner" also flips the slice
            along i, narrows its field of view, and changes contrast, bias field, noise and
            resolution of each input, for what is not to depend on the scanner; "none" does nothing.

    Returns:
        A transform of {key: tensor, "label": tensor} to a list of one {"image": [C, j, i],
        "label": [1, j, i]}.
    """
    every = [*keys, "label"]
    modes = ["bilinear"] * len(keys) + ["nearest"]
    shift = [SHIFT_SHARE * n for n in patch[1:]]
    changes: list[Transform] = [
        RandAffined(
            every, prob=0.8, rotate_range=ROTATION, scale_range=(ZOOM, ZOOM),
            translate_range=shift, mode=modes, padding_mode="zeros",
        ),
    ]  # fmt: skip
    if augment == "plain":
        changes.append(RandGaussianSmoothd(keys, sigma_x=BLUR, sigma_y=BLUR, prob=0.2))
    elif augment == "scanner":
        # Along i alone: front and back of a prostate or a brain are no mirror images.
        changes.append(RandFlipd(every, prob=0.5, spatial_axis=1))
        changes.append(narrow_view(every, patch[1:]))
        changes += [KeepOutsideZerod([k], scanner_transforms(k, patch[1:])) for k in keys]
    return Compose(
        [
            RandSliced(keys, neighbours),
            SpatialPadd(every, patch[1:]),
            RandCropByPosNegLabeld(every, "label", spatial_size=patch[1:], num_samples=1),
            *([] if augment == "none" else changes),
            Stackd(keys),
        ]
    )


def mirrored(augment: Augment) -> tuple[Literal["i"], ...]:
    """The axes along which `plain_slice_transforms` flips, for `GridSpec.mirror`."""
    return ("i",) if augment == "scanner" else ()


def fitted_spacing(facts: DataFacts, patch: tuple[int, int, int]) -> float:
    """Pixel size in mm, in steps of 0.01, at which a patch just holds the median slice."""
    (i, j, _), (_, rows, columns) = facts.spacing, facts.shape
    size = max(rows * j / patch[1], columns * i / patch[2])
    return round(size, 2)
