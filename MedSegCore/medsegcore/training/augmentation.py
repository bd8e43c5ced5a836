"""Augmentation of patches and slices: shape, scanner and contrast, and missing inputs."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandCoarseDropoutd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    Randomizable,
    RandSimulateLowResolutiond,
    RandSmoothFieldAdjustIntensityd,
    SpatialPadd,
    Transform,
)
from scipy.interpolate import BSpline
from torch import Tensor

from medsegcore.training.artefacts import RandGhostingd

# A normalised image has about zero mean and unit deviation inside the foreground. Bias fields,
# gamma and histogram shifts are defined on positive intensities: a deviation of a fifth of the
# mean is what T1, T2 and FLAIR of the brain show.
RELATIVE_DEVIATION = 0.2

# The main peak of a FLAIR histogram is white matter in one patient and grey matter in another,
# more than one deviation apart: the network has to see lesions against what surrounds them.
SHIFT = 1.5


def share_random_state(transforms: Compose, state: np.random.RandomState) -> None:
    """Let all transforms draw from one generator, one after the other.

    `Compose.set_random_state(seed)` gives a dictionary transform and the array transform inside
    it the same seed. Seeded anew for each patch, the number that decides whether, say, the gamma
    changes would then also be the gamma's value: with a probability of a half only the lower half
    of its range would ever be used.
    """
    for transform in transforms.transforms:
        if isinstance(transform, Randomizable):
            transform.set_random_state(state=state)


class ToPositived(MapTransform):
    """Normalised intensities (mean 0, deviation 1) to positive ones with mean 1."""

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = (1 + RELATIVE_DEVIATION * out[key]).clamp_min(0)
        return out


class RandRestandardised(MapTransform, Randomizable):
    """Back from positive intensities, with a random error of the mean and the deviation.

    The error stands for what differs between patients and scanners in the estimate: other
    tissue inside the mask, more or fewer lesions, another field strength.
    """

    def __init__(self, keys: Sequence[str], shift: float, scale: tuple[float, float]):
        super().__init__(keys)
        self.shift = shift
        self.log_scale = (np.log(scale[0]), np.log(scale[1]))

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            shift = self.R.uniform(-self.shift, self.shift)
            scale = np.exp(self.R.uniform(*self.log_scale))
            out[key] = (out[key] - 1) / RELATIVE_DEVIATION * scale + shift
        return out


class KeepOutsideZerod(Randomizable, Transform):
    """Run a transform, then put the voxels outside of the foreground (exact zeros) back to 0."""

    def __init__(self, keys: Sequence[str], transform: Compose):
        self.keys = list(keys)
        self.transform = transform

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "KeepOutsideZerod":
        share_random_state(self.transform, state or np.random.RandomState(seed))
        return self

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        inside = {key: data[key] != 0 for key in self.keys}
        if not any(mask.any() for mask in inside.values()):
            return dict(data)
        out = dict(self.transform(dict(data)))
        for key in self.keys:
            out[key] = torch.where(inside[key], out[key], torch.zeros_like(out[key]))
        return out


class RandDropInputsd(MapTransform, Randomizable):
    """Set whole inputs to zero, as a patient without that sequence has them.

    Args:
        probabilities: key to the probability of dropping it, 0..1.
    """

    def __init__(self, probabilities: Mapping[str, float]):
        super().__init__(list(probabilities))
        self.probabilities = dict(probabilities)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        for key, probability in self.probabilities.items():
            if self.R.random() < probability:
                out[key] = torch.zeros_like(out[key])
        return out


class Stackd(Transform):
    """The inputs, each [n, *space], stacked to "image" [C n, *space]; "label" is kept."""

    def __init__(self, keys: Sequence[str]):
        self.keys = list(keys)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[str, Tensor]:
        return {
            "image": torch.cat([data[key] for key in self.keys]).float(),
            "label": data["label"].float(),
        }


class RandSliced(Randomizable, Transform):
    """One slice of a case: inputs [2 n + 1, j, i] with its neighbours, the label [1, j, i].

    Half of the slices are drawn from those with a label. Beyond the outermost slice it is
    repeated, as at inference.

    Args:
        keys: inputs, each [1, k, j, i].
        neighbours: slices n on each side, as in `GridSpec`.
        image_key: only slices in which this input is above 0 somewhere are drawn; any when None.
    """

    def __init__(self, keys: Sequence[str], neighbours: int, image_key: str | None = None):
        self.keys, self.neighbours, self.image_key = list(keys), neighbours, image_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        label = data["label"][0]
        labelled = label.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        wanted = self.R.random() < 0.5
        k = int(self.R.choice(labelled if wanted and labelled else self._shown(data)))
        around = torch.arange(k - self.neighbours, k + self.neighbours + 1)
        around = around.clamp(0, len(label) - 1)
        return {**{key: data[key][0][around] for key in self.keys}, "label": label[k][None]}

    def _shown(self, data: Mapping[Hashable, Tensor]) -> list[int] | int:
        """Numbers of the slices to draw from, or how many there are if that is all of them."""
        if self.image_key is None:
            return len(data["label"][0])
        return (data[self.image_key][0] > 0).flatten(1).any(dim=1).nonzero()[:, 0].tolist()


def scanner_transforms(key: str, patch: tuple[int, ...], ghosting: float = 0.0) -> Compose:
    """Bias field, contrast, noise, resolution and blur of one input, each at random.

    Args:
        ghosting: probability of ghosts, 0..1.
    """
    return Compose(
        [
            ToPositived(key),
            RandSmoothFieldAdjustIntensityd(
                key,
                spatial_size=patch,
                rand_size=(4,) * len(patch),
                pad=1,
                gamma=(0.7, 1.4),
                prob=0.5,
            ),
            RandAdjustContrastd(key, prob=0.5, gamma=(0.6, 1.6), retain_stats=True),
            RandHistogramShiftd(key, num_control_points=(6, 12), prob=0.3),
            RandGaussianSmoothd(
                key, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2), sigma_z=(0.3, 1.2), prob=0.25
            ),
            RandGaussianSharpend(key, prob=0.15),
            RandSimulateLowResolutiond(
                key,
                prob=0.25,
                zoom_range=(0.35, 1.0),
                upsample_mode="trilinear" if len(patch) == 3 else "bilinear",
            ),
            *([RandGhostingd([key], ghosting)] if ghosting else []),
            RandGaussianNoised(key, prob=0.4, std=0.08),
            RandRestandardised([key], shift=SHIFT, scale=(0.6, 1.5)),
        ]
    )


def narrow_view(keys: Sequence[str], patch: tuple[int, ...]) -> RandCoarseDropoutd:
    """Zero outside of a random box in three of ten patches, for images cropped round an organ.

    The box has a quarter to the whole of the patch along each axis.
    """
    smallest = tuple(max(1, n // 4) for n in patch)
    return RandCoarseDropoutd(
        keys, holes=1, spatial_size=smallest, max_spatial_size=patch, dropout_holes=False,
        fill_value=0, prob=0.3,
    )  # fmt: skip


def training_transforms(
    keys: Sequence[str],
    patch: tuple[int, ...],
    drop: Mapping[str, float],
    image_key: str | None = None,
    ghosting: float = 0.0,
) -> Compose:
    """From a whole prepared case (or slice) to one augmented patch.

    Args:
        keys: input keys in the order of the network's channels; each [n, *space], normalised.
        patch: its size in voxels, (k, j, i), or (j, i) of a slice. Smaller cases are padded.
        drop: probability of dropping an input, by key.
        image_key: patches are cut where this input has something; the last one when None.
        ghosting: probability of ghosts in an input.

    Returns:
        A transform of {key: tensor, "label": tensor} to a list of one {"image": [C n, *space],
        "label": [1, *space]}. One of two patches is centred on a labelled voxel.
    """
    every = [*keys, "label"]
    modes = ["bilinear"] * len(keys) + ["nearest"]
    axes = len(patch)
    return Compose(
        [
            SpatialPadd(every, patch),
            RandCropByPosNegLabeld(
                every,
                label_key="label",
                spatial_size=patch,
                pos=1,
                neg=1,
                num_samples=1,
                image_key=image_key or keys[-1],
                image_threshold=0,
                allow_smaller=False,
            ),
            *(RandFlipd(every, prob=0.5, spatial_axis=axis) for axis in range(axes)),
            RandAffined(
                every,
                prob=0.5,
                rotate_range=(0.3,) * (3 if axes == 3 else 1),
                scale_range=(0.2,) * axes,
                shear_range=(0.08,) * (axes * (axes - 1)),
                mode=modes,
                padding_mode="zeros",
            ),
            *(KeepOutsideZerod([key], scanner_transforms(key, patch, ghosting)) for key in keys),
            *([RandDropInputsd(drop)] if drop else []),
            Stackd(keys),
        ]
    )


def slice_transforms(
    keys: Sequence[str],
    patch: tuple[int, int],
    neighbours: int,
    drop: Mapping[str, float],
    image_key: str | None = None,
    ghosting: float = 0.0,
) -> Compose:
    """From a whole prepared case to one augmented slice, see `RandSliced`, `training_transforms`.

    Args:
        patch: size (j, i) in voxels.
        neighbours: slices on each side that become channels.
    """
    sliced = RandSliced(keys, neighbours, image_key or keys[-1])
    rest = training_transforms(keys, patch, drop, image_key, ghosting)
    return Compose([sliced, *rest.transforms])


class RandBSplineDeformd(MapTransform, Randomizable):
    """A smooth random deformation from a coarse grid of control points (Qin, section 3).

    The grid has `cells` cells along each axis; cubic B-splines with random coefficients make the
    dense field. All keys are deformed alike.

    Args:
        keys: each [1, k, j, i].
        mm: standard deviation of a control point's displacement along each axis, in mm.
        spacing: of the patch along (k, j, i), in mm.
        label_keys: these are taken from the nearest voxel, the others linearly.
        cells: the paper's grid is 2x2x2. The displacement is silent.
        prob: of deforming a patch.
    """

    def __init__(
        self,
        keys: Sequence[str],
        mm: float,
        spacing: tuple[float, float, float],
        label_keys: Sequence[str] = ("label",),
        cells: tuple[int, int, int] = (2, 2, 2),
        prob: float = 1.0,
    ):
        super().__init__(keys)
        self.mm, self.spacing, self.cells, self.prob = mm, spacing, cells, prob
        self.label_keys = set(label_keys)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        if self.R.random() >= self.prob:
            return out
        where = None
        for key in self.key_iterator(out):
            if where is None:
                coefficients = self.R.normal(0, self.mm, (3, *(n + 3 for n in self.cells)))
                where = self._where(torch.from_numpy(coefficients).float(), out[key].shape[1:])
            how = "nearest" if key in self.label_keys else "bilinear"
            image = out[key][None].float()
            moved = F.grid_sample(image, where.to(image.device), mode=how, align_corners=True)
            out[key] = moved[0].to(out[key])
        return out

    def _where(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """What lies at each voxel after the deformation, as `grid_sample` wants it.

        Args:
            coefficients: [3 (k, j, i), *control points], in mm.
        """
        bases = [_cubic_basis(n, cells) for n, cells in zip(shape, self.cells, strict=True)]
        field = torch.einsum("dabc,ka,jb,ic->dkji", coefficients, *bases)
        axes = [torch.arange(n, dtype=torch.float32) for n in shape]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        for axis, n in enumerate(shape):
            places[axis] += field[axis] / self.spacing[axis]
            places[axis] *= 2 / max(1, n - 1)
        return (places - 1).permute(1, 2, 3, 0).flip(-1)[None]


def _cubic_basis(voxels: int, cells: int) -> Tensor:
    """[voxels, cells + 3]: weights of the control points of a uniform cubic B-spline.

    The cells span the voxels with their outer edges, as SimpleITK's do.
    """
    knots = np.arange(-3, cells + 4, dtype=float)
    centres = (np.arange(voxels) + 0.5) * cells / voxels
    return torch.from_numpy(BSpline.design_matrix(centres, knots, 3).toarray()).float()
