"""From a prepared case to one augmented slice, for the networks that take slices."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms import (
    Compose,
    MapTransform,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianSmoothd,
    SpatialPadd,
    SqueezeDimd,
)
from torch import Tensor

from medsegcore.inference.preprocess import with_neighbours
from medsegcore.training.augmentation import Stackd

# Silent in the papers that rotate, zoom, shift and blur.
ROTATION = float(np.deg2rad(15))
ZOOM, SHIFT_SHARE, BLUR = 0.15, 0.08, (0.3, 1.2)


class Neighboursd(MapTransform):
    """[1, k, j, i] to [2 n + 1, k, j, i]: of each slice also the n before and behind it."""

    def __init__(self, keys: Sequence[str], neighbours: int):
        super().__init__(keys)
        self.neighbours = neighbours

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = torch.from_numpy(with_neighbours(out[key].numpy(), self.neighbours))
        return out


def slice_transforms(
    keys: Sequence[str],
    patch: tuple[int, int, int],
    neighbours: int = 0,
    augment: bool = True,
) -> Compose:
    """From a whole prepared case to one slice, or a part of one.

    Half of the slices are taken round a labelled voxel. Rotation, zoom and shift are one
    resampling, so that a slice is interpolated once.

    Args:
        keys: input keys in the order of the network's channels; each [1, k, j, i], normalised.
        patch: (1, j, i) in voxels; smaller slices are filled with zeros.
        neighbours: slices on each side of each input, as channels.
        augment: rotate, zoom, shift and blur at random.

    Returns:
        A transform of {key: tensor, "label": tensor} to a list of one {"image": [C, j, i],
        "label": [1, j, i]}.
    """
    every = [*keys, "label"]
    modes = ["bilinear"] * len(keys) + ["nearest"]
    shift = [SHIFT_SHARE * n for n in patch[1:]]
    changes = [
        RandAffined(
            every, prob=0.8, rotate_range=ROTATION, scale_range=(ZOOM, ZOOM),
            translate_range=shift, mode=modes, padding_mode="zeros",
        ),
        RandGaussianSmoothd(keys, sigma_x=BLUR, sigma_y=BLUR, prob=0.2),
    ]  # fmt: skip
    return Compose(
        [
            *([Neighboursd(keys, neighbours)] if neighbours else []),
            SpatialPadd(every, patch),
            RandCropByPosNegLabeld(every, "label", spatial_size=patch, num_samples=1),
            SqueezeDimd(every, dim=1),
            *(changes if augment else []),
            Stackd(keys),
        ]
    )
