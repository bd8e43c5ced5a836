"""Where an answer is most wrong: three slices with the outlines of answer and reference."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medsegcore.imaging import Grid, Image, reorient

# Half of the window that is shown, and how far apart wrong voxels count as one error.
HALF_WINDOW_MM = 45.0
NEAR_MM = 4.0
# Bright lesions stay gray, so that the outlines stand out from them.
WHITE = 300
# Okabe and Ito's palette: told apart by those who are colour-blind, and by the line in print.
ANSWER_COLOR = "#D55E00"
REFERENCE_COLOR = "#56B4E9"
# Of an array in LAS: the axis that is cut, the letters at left and right, below and above.
PLANES = (("axial", 0, "RL", "PA"), ("coronal", 1, "RL", "IS"), ("sagittal", 2, "AP", "IS"))


@dataclass(frozen=True)
class Plane:
    """A slice as it is drawn: rows from below, the patient's right or front at the left.

    Attributes:
        gray: uint8 [row, column].
        answer, reference: uint8 [row, column], the number of the label from 1.
        spacing: mm of (row, column).
        sides: letters at left, right, below and above.
    """

    title: str
    gray: np.ndarray
    answer: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, float]
    sides: str


@dataclass(frozen=True)
class ErrorView:
    """The planes through the place round which most voxels are wrong.

    Attributes:
        center_ras: that place in mm.
        wrong_ml: volume of all wrong voxels.
    """

    planes: list[Plane]
    center_ras: tuple[float, float, float]
    wrong_ml: float


def error_view(
    image: Image, answer: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> ErrorView:
    """Cut an image where the answer is most wrong, or in its middle where nothing is.

    Args:
        answer, reference: bool [k, j, i] on the image's grid by label name.
    """
    answered, wanted = _numbered(answer), _numbered(reference)
    wrong = answered != wanted
    center = _worst_place(wrong, wanted, image.grid)
    low, high = np.percentile(image.array[np.isfinite(image.array)], (1, 99.8))
    gray = np.nan_to_num((image.array - low) / max(high - low, 1e-6) * 255, nan=0.0)
    volumes = [
        reorient(Image(array, image.affine), "LAS")
        for array in (np.clip(gray, 0, 255).astype(np.uint8), answered, wanted)
    ]
    grid = volumes[0].grid
    ras = image.grid.to_ras(np.array(center[::-1]))
    kji = np.rint(grid.to_ijk(ras)).astype(int)[::-1]
    planes = [_plane([volume.array for volume in volumes], grid, kji, *plane) for plane in PLANES]
    r, a, s = (float(x) for x in ras)
    return ErrorView(planes, (r, a, s), float(wrong.sum()) * grid.voxel_volume_ml)


def _numbered(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """One array of the numbers of the labels, from 1."""
    numbers = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for n, mask in enumerate(masks.values(), 1):
        numbers[mask] = n
    return numbers


def _worst_place(wrong: np.ndarray, reference: np.ndarray, grid: Grid) -> tuple[int, ...]:
    """k, j, i of the voxel round which most voxels are wrong."""
    from scipy import ndimage

    marked = wrong if wrong.any() else reference > 0
    if not marked.any():
        return tuple(n // 2 for n in marked.shape)
    (box,) = ndimage.find_objects(marked.astype(np.uint8))
    sigma = [NEAR_MM / s for s in reversed(grid.spacing)]
    density = ndimage.gaussian_filter(marked[box].astype(np.float32), sigma, mode="constant")
    place = np.unravel_index(np.where(marked[box], density, 0).argmax(), density.shape)
    return tuple(int(p) + s.start for p, s in zip(place, box, strict=True))


def _plane(
    arrays: list[np.ndarray], grid: Grid, kji: np.ndarray, name: str, axis: int, across: str,
    upward: str,
) -> Plane:  # fmt: skip
    rows, columns = (n for n in range(3) if n != axis)
    spacing = grid.spacing[::-1]
    window: list[slice | int] = [slice(None)] * 3
    window[axis] = int(kji[axis])
    for other in (rows, columns):
        half = int(np.ceil(HALF_WINDOW_MM / spacing[other]))
        window[other] = slice(max(int(kji[other]) - half, 0), int(kji[other]) + half + 1)
    cuts = [array[tuple(window)] for array in arrays]
    if name == "sagittal":
        cuts = [cut[:, ::-1] for cut in cuts]
    gray, answer, reference = (np.ascontiguousarray(cut) for cut in cuts)
    size = (spacing[rows], spacing[columns])
    return Plane(name, gray, answer, reference, size, across + upward)


def draw(view: ErrorView) -> bytes:
    """The three planes side by side as a JPEG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.5), facecolor="black")
    places = [
        f"{letters[x < 0]} {abs(x):.0f} mm"
        for letters, x in zip(("RL", "AP", "SI"), view.center_ras, strict=True)
    ]
    for n, plane in enumerate(view.planes):
        axes = figure.add_subplot(1, 3, n + 1)
        _draw_plane(axes, plane, f"{plane.title}, {places[2 - n]}")
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.02, top=0.92, wspace=0.02)
    data = io.BytesIO()
    figure.savefig(data, format="jpeg", dpi=130, pil_kwargs={"quality": 88})
    return data.getvalue()


def _draw_plane(axes, plane: Plane, title: str) -> None:
    from matplotlib.patheffects import withStroke

    height, width = (n * s for n, s in zip(plane.gray.shape, plane.spacing, strict=True))
    extent = (0, width, 0, height)
    axes.imshow(plane.gray, cmap="gray", vmin=0, vmax=WHITE, origin="lower", extent=extent,
                interpolation="bilinear")  # fmt: skip
    for numbers, color, style in (
        (plane.reference, REFERENCE_COLOR, "solid"),
        (plane.answer, ANSWER_COLOR, (0, (4, 1.5))),
    ):
        for label in np.unique(numbers[numbers > 0]):
            axes.contour((numbers == label).astype(float), [0.5], colors=color, linestyles=[style],
                         linewidths=1.3, origin="lower", extent=extent)  # fmt: skip
    white = {"color": "white", "fontsize": 9, "ha": "center", "va": "center", "weight": "bold",
             "path_effects": [withStroke(linewidth=2, foreground="black")]}  # fmt: skip
    corners = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.03), (0.5, 0.97))
    for letter, place in zip(plane.sides, corners, strict=True):
        axes.text(*place, letter, transform=axes.transAxes, **white)
    # 20 mm from the lower left corner.
    axes.plot([4, 24], [4, 4], color="white", linewidth=2, solid_capstyle="butt")
    axes.text(14, 6, "20 mm", color="white", fontsize=8, ha="center", va="bottom")
    axes.set_title(title, color="white", fontsize=10, pad=4)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
