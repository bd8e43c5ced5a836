"""Lesions of one patient carried into another: more lesions, at more places, than were scanned.

The region that is carved follows CarveMix (Zhang X. et al., MICCAI 2021; NeuroImage 2023): all
voxels whose signed distance to the lesion is below a random limit, so that the lesion comes with
some of its margin or without its rim. CarveMix keeps the place, because its images are registered;
here the lesion goes to a random place inside the recipient's foreground, and its intensities are
shifted by how much the recipient's surroundings are brighter than the donor's.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from monai.transforms import Compose, Randomizable, Transform
from scipy import ndimage
from torch import Tensor

RING = 3  # voxels around the carved region that count as its surroundings
TRIES = 100  # for a place

Box = tuple[slice, slice, slice]


class Lesion(NamedTuple):
    """One lesion of a donor: its case, and the box of its voxels."""

    case: int
    box: Box


class Carved(NamedTuple):
    """What is cut out of a donor.

    Attributes:
        region: [k, j, i] bool, what is carried over.
        ring: [k, j, i] bool, the surroundings of the region, without lesions.
        images: by key, [k, j, i].
        label: [k, j, i].
    """

    region: np.ndarray
    ring: np.ndarray
    images: dict[str, np.ndarray]
    label: np.ndarray


class RandTransplantLesiond(Randomizable, Transform):
    """Carry a random lesion of a random case into the case at hand.

    Where no place is found at which the region lies wholly inside the foreground and beside the
    recipient's own lesions, the case stays as it is.

    Args:
        keys: inputs, each [1, k, j, i], normalised, 0 outside of the foreground. The "label" is
            [1, k, j, i], 0 where there is no lesion.
        reference: the input whose foreground counts.
        prob: of a transplantation.

    Attributes:
        cases: the donors, as `Recipe.load` gives them; who makes the patches sets them.
    """

    def __init__(self, keys: Sequence[str], reference: str, prob: float):
        self.keys, self.reference, self.prob = list(keys), reference, prob
        self.cases: Sequence[Mapping[str, Tensor]] = []
        self._lesions: list[Lesion] = []

    def see(self, cases: Sequence[Mapping[str, Tensor]]) -> None:
        """Take lesions from these cases from now on."""
        self.cases = cases
        self._lesions = []
        for n, case in enumerate(cases):
            parts, _ = ndimage.label(case["label"][0].numpy() > 0)
            self._lesions += [Lesion(n, box) for box in ndimage.find_objects(parts)]

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        if not self._lesions or self.R.random() >= self.prob:
            return out
        lesion = self._lesions[self.R.randint(len(self._lesions))]
        carved = self._carve(lesion)
        given = [key for key in self.keys if out[key].any()]
        if any(not carved.images[key].any() for key in given) or not carved.region.any():
            return out
        start = self._place(out, carved)
        if start is None:
            return out
        box = tuple(slice(s, s + n) for s, n in zip(start, carved.region.shape, strict=True))
        for key in given:
            image = out[key].clone()
            view = image[0][box].numpy()
            shift = _mean(view, carved.ring) - _mean(carved.images[key], carved.ring)
            view[carved.region] = carved.images[key][carved.region] + shift
            out[key] = image
        label = out["label"].clone()
        label[0][box].numpy()[carved.region] = carved.label[carved.region]
        out["label"] = label
        return out

    def _carve(self, lesion: Lesion) -> Carved:
        case = self.cases[lesion.case]
        shape = case["label"].shape[1:]
        depth = max(part.stop - part.start for part in lesion.box) // 2 + 1 + RING
        box = tuple(
            slice(max(part.start - depth, 0), min(part.stop + depth, n))
            for part, n in zip(lesion.box, shape, strict=True)
        )
        label = case["label"][0][box].numpy()
        # The lesion itself, without others that reach into its box.
        parts, _ = ndimage.label(label > 0)
        inner = tuple(
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(lesion.box, box, strict=True)
        )
        found = parts[inner]
        numbers, counts = np.unique(found[found > 0], return_counts=True)
        mask = parts == numbers[counts.argmax()]
        inside = ndimage.distance_transform_edt(mask)
        signed = ndimage.distance_transform_edt(~mask) - inside
        deepest = float(inside.max())
        # Half of the time a part of the lesion, else the lesion with a margin (CarveMix, eq. 4).
        low, high = (-0.5, 0.0) if self.R.random() < 0.5 else (0.0, 1.0)
        region = signed <= deepest * self.R.uniform(low, high)
        region &= case[self.reference][0][box].numpy() != 0
        ring = ndimage.binary_dilation(region | mask, iterations=RING) & ~region & (label == 0)
        images = {key: case[key][0][box].numpy() for key in self.keys}
        return Carved(region, ring, images, np.where(mask, label, 0))

    def _place(self, data: Mapping[Hashable, Tensor], carved: Carved) -> tuple[int, ...] | None:
        """Where the carved box may start, None where no place was found."""
        inside = data[self.reference][0] != 0
        free = (inside & (data["label"][0] == 0)).numpy()
        size = np.array(carved.region.shape)
        room = np.array(free.shape) - size
        if (room < 0).any():
            return None
        for _ in range(TRIES):
            start = self.R.randint(0, room + 1)
            box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
            ring = carved.ring & free[box]
            if free[box][carved.region].all() and ring.sum() * 2 > carved.ring.sum():
                return tuple(int(s) for s in start)
        return None


def with_transplants(
    transforms: Compose, keys: Sequence[str], reference: str, prob: float
) -> Compose:
    """The transforms of whole cases, with `RandTransplantLesiond` before them if prob is not 0."""
    if not prob:
        return transforms
    return Compose([RandTransplantLesiond(keys, reference, prob), *transforms.transforms])


def _mean(image: np.ndarray, ring: np.ndarray) -> float:
    """Of the foreground in the surroundings."""
    values = image[ring & (image != 0)]
    return float(values.mean()) if values.size else 0.0
