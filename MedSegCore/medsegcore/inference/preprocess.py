"""From a patient's images to the network's input: what model.json says, and nothing else."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsegcore.errors import EmptyImageError, MissingInputError, ModelError
from medsegcore.imaging import (
    Grid,
    Image,
    Region,
    check_image,
    check_overlap,
    patient_grid,
    reference_grid,
    resample,
    without_nans,
)
from medsegcore.models.schema import GridSpec, ModelDescription, Normalisation

# Exact zero marks the voxels outside of the foreground; inside it a zero becomes this.
INSIDE_ZERO = 1e-3
HISTOGRAM_BINS = 512
HISTOGRAM_SMOOTHING = 6.0  # standard deviation in bins
# Fluid and partial volume make a second, darker peak below this share of the 99.5th percentile.
DARKEST_MODE = 0.15


@dataclass(frozen=True)
class Prepared:
    """The network's input.

    Attributes:
        tensor: float32 [channel, k, j, i], normalised; 0 outside of the foreground.
        options: further arguments of the forward pass, of a network that takes them.
        grid: the model grid, cropped, that the tensor lies on.
        reference: the grid that the answer is wanted on.
        present: which inputs were given, by key.
        raw: the given inputs as they came, by key.
        region: the box outside of which the answer is to be 0, None for everywhere.
    """

    tensor: np.ndarray
    grid: Grid
    reference: Grid
    present: dict[str, bool]
    raw: dict[str, Image]
    options: dict[str, int]
    region: Region | None = None


def prepare(
    description: ModelDescription, images: Mapping[str, Image], region: Region | None = None
) -> Prepared:
    """Resample onto the model grid, crop and normalise.

    Args:
        description: the model.
        images: Image by input key; optional inputs may be absent, they become 0. Where the model
            takes one of its inputs, that one is the only channel.
        region: a box to work in, with as much around it as a tile holds. The intensities are
            normalised as without it, so that the same tissue looks the same to the network.

    Raises:
        MissingInputError: see `check_keys`.
        EmptyImageError, GeometryError: an image without content or with a bad geometry.
        OverlapError: an input has less than half of its field of view in common with the
            reference, or the region lies outside of it.
        SettingError: the region is flat.
    """
    check_keys(description, images)
    if region is not None:
        region.check()
    for key, image in images.items():
        check_image(image, description.input(key).title)
    reference_key = description.reference_of(images)
    assert reference_key is not None
    reference = images[reference_key]
    for key, image in images.items():
        if key != reference_key:
            check_overlap(reference.grid, image.grid, description.input(key).title)
    raw = {key: without_nans(image) for key, image in images.items()}
    grid = model_grid(reference.grid, description.grid)
    channels, crop = [], None
    # The reference comes first because its foreground decides what is kept of the others.
    first = description.input(reference_key)
    for spec in [first, *(s for s in description.inputs if s.key != first.key)]:
        if spec.key not in raw:
            continue
        array = resample(raw[spec.key], grid).array.astype(np.float32, copy=False)
        array = windowed(array, spec.normalisation)
        inside = foreground(array, spec.normalisation, spec.title)
        if crop is None:
            crop = _crop(inside, description.grid, grid, region)
        channels.append((spec.key, normalise(array, inside, spec.normalisation)[crop]))
    assert crop is not None
    by_key = dict(channels)
    shape = by_key[first.key].shape
    keys = [spec.key for spec in description.inputs]
    seen = [reference_key] if description.one_of else keys
    tensor = np.stack([by_key.get(key, np.zeros(shape, np.float32)) for key in seen])
    return Prepared(
        tensor=tensor,
        grid=grid.crop(crop),
        reference=reference.grid,
        present={key: key in raw for key in keys},
        raw=raw,
        options={"modality": keys.index(reference_key)} if description.one_of else {},
        region=region,
    )


def model_grid(reference: Grid, spec: GridSpec) -> Grid:
    """The grid that the network works on, over the field of view of the reference."""
    if spec.axes == "reference":
        return reference_grid(reference, spec.spacing, spec.orientation)
    i, j, k = (s or 0.0 for s in spec.spacing)  # never null with the patient's axes
    return patient_grid(reference, (i, j, k), spec.orientation)


def with_neighbours(volume: np.ndarray, neighbours: int) -> np.ndarray:
    """[C, k, j, i] -> [C (2 n + 1), k, j, i]: of each channel, slices k - n .. k + n.

    The outermost slice stands in where there are no more.
    """
    count = volume.shape[1]
    at = [np.clip(np.arange(count) + n, 0, count - 1) for n in range(-neighbours, neighbours + 1)]
    return np.stack([volume[:, k] for k in at], axis=1).reshape(-1, *volume.shape[1:])


def check_same_task(descriptions: Sequence[ModelDescription]) -> None:
    """Raise ModelError when the answers of these models cannot be averaged."""
    first = descriptions[0]
    for description in descriptions[1:]:
        if not first.same_task(description):
            raise ModelError(
                f"'{description.id}' has other inputs or labels than '{first.id}'.",
                "Take models of the same inputs and labels together.",
            )


def check_keys(description: ModelDescription, images: Collection[str]) -> None:
    """Raise MissingInputError when these input keys are not what the model takes."""
    known = [spec.key for spec in description.inputs]
    for key in images:
        if key not in known:
            raise MissingInputError(
                f"The model '{description.id}' has no input '{key}'.",
                f"Its inputs: {', '.join(known)}.",
            )
    if description.one_of and len(images) != 1:
        raise MissingInputError(
            f"The model '{description.id}' takes one of its inputs and got "
            f"{' and '.join(images) or 'none'}.",
            f"Give one of: {', '.join(f'{s.key} ({s.title})' for s in description.inputs)}.",
        )
    for spec in description.inputs:
        if description.needs(spec) and spec.key not in images:
            raise MissingInputError(
                f"The model '{description.id}' needs the input '{spec.key}' ({spec.title}).",
                "Give that volume, or choose another model.",
            )


def windowed(array: np.ndarray, how: Normalisation) -> np.ndarray:
    """The intensities from 0 on: cut to the window and without its low end."""
    if how.window is None:
        return array
    return np.clip(array, *how.window) - np.float32(how.window[0])


def foreground(array: np.ndarray, how: Normalisation, what: str) -> np.ndarray:
    """Bool [k, j, i]: where the image is more than background air or removed skull.

    Raises:
        EmptyImageError: no voxel is positive; `what` names the image.
    """
    positive = array[array > 0]
    if positive.size == 0:
        raise EmptyImageError(
            f"{what} has no positive voxel in the field of view of the reference.",
            "Check that the right volume was chosen.",
        )
    return array > how.foreground_share * np.percentile(positive, 99.5)


def normalise(array: np.ndarray, inside: np.ndarray, how: Normalisation) -> np.ndarray:
    """(x - centre) / scale inside the foreground, clipped, and exactly 0 outside; float32."""
    centre, scale = centre_and_scale(array[inside], how)
    out = np.clip((array - centre) / scale, *how.clip).astype(np.float32)
    out[out == 0] = INSIDE_ZERO
    out[~inside] = 0
    return out


def centre_and_scale(values: np.ndarray, how: Normalisation) -> tuple[float, float]:
    """Centre and scale of the foreground's intensities by the method of `how`."""
    if how.method == "zscore":
        centre, scale = float(values.mean()), float(values.std())
    elif how.method == "robust":
        low, middle, high = np.percentile(values, [25, 50, 75])
        centre, scale = float(middle), float(high - low) / 1.349
    else:
        centre, scale = _histogram_mode(values)
    return centre, max(scale, 1e-6 * max(abs(centre), 1e-6))


def _histogram_mode(values: np.ndarray) -> tuple[float, float]:
    """Position and FWHM / 2.355 of the highest peak of the smoothed histogram.

    In FLAIR that peak is normal-appearing brain tissue, whatever else the mask holds (skull,
    fluid, many lesions), which mean and deviation are not robust against.
    """
    from scipy.ndimage import gaussian_filter1d

    top = float(np.percentile(values, 99.5))
    counts, edges = np.histogram(values, bins=HISTOGRAM_BINS, range=(0, top))
    smooth = gaussian_filter1d(counts.astype(float), HISTOGRAM_SMOOTHING)
    darkest = int(DARKEST_MODE * HISTOGRAM_BINS)
    peak = darkest + int(smooth[darkest:].argmax())
    above = smooth > smooth[peak] / 2
    left = right = peak
    while left > 0 and above[left - 1]:
        left -= 1
    while right < HISTOGRAM_BINS - 1 and above[right + 1]:
        right += 1
    centre = float(edges[peak] + edges[peak + 1]) / 2
    return centre, float(edges[right + 1] - edges[left]) / 2.355


def _crop(
    inside: np.ndarray, spec: GridSpec, grid: Grid, region: Region | None
) -> tuple[slice, slice, slice]:
    if region is None:
        return crop_box(inside, spec, grid.spacing)
    if spec.crop == "middle":
        spec = spec.model_copy(update={"crop": "none", "middle_mm": None})
    crop = crop_box(inside, spec, grid.spacing)
    return _within(crop, region.box_in(grid, spec.margin_mm), spec)


def crop_box(
    inside: np.ndarray, spec: GridSpec, spacing_ijk: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    """The part of the model grid to work on: foreground with its margin, middle, or everything."""
    if spec.crop != "foreground":
        sizes = list(inside.shape)
        if spec.middle_mm is not None:
            for axis, spacing in ((1, spacing_ijk[1]), (2, spacing_ijk[0])):
                sizes[axis] = min(int(np.ceil(spec.middle_mm / spacing)), sizes[axis])
        starts = [(whole - size) // 2 for whole, size in zip(inside.shape, sizes, strict=True)]
        k, j, i = (slice(s, s + size) for s, size in zip(starts, sizes, strict=True))
        return k, j, i
    box = []
    for axis, spacing in enumerate(reversed(spacing_ijk)):
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(inside.any(axis=others))
        margin = int(np.ceil(spec.margin_mm / spacing))
        box.append(
            slice(
                max(int(filled[0]) - margin, 0),
                min(int(filled[-1]) + margin + 1, inside.shape[axis]),
            )
        )
    return box[0], box[1], box[2]


def _within(
    crop: tuple[slice, slice, slice], box: tuple[slice, slice, slice], spec: GridSpec
) -> tuple[slice, slice, slice]:
    """The part of a crop around a region's box that the network is to see.

    It is no smaller than a tile, as far as the crop goes: attention and normalisation over a
    narrow view answer differently from what the network was trained for. A box beside the
    foreground stays as it is.
    """
    if any(b.stop <= c.start or b.start >= c.stop for b, c in zip(box, crop, strict=True)):
        return box
    least = (2 * spec.neighbours + 1, *spec.tile[1:]) if spec.flat else spec.tile
    parts = []
    for wanted, whole, size in zip(box, crop, least, strict=True):
        start, stop = max(wanted.start, whole.start), min(wanted.stop, whole.stop)
        size = min(max(size, stop - start), whole.stop - whole.start)
        start = (start + stop - size) // 2
        start = min(max(start, whole.start), whole.stop - size)
        parts.append(slice(start, start + size))
    return parts[0], parts[1], parts[2]
