"""A case at a glance: every channel in three planes, with the outlines of its labels."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medsegcore.files import write_file
from medsegcore.imaging import Image, reorient, resample

# Okabe and Ito's colours, which colour-blind readers tell apart as well.
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
INCHES = 2.6
PLANES = ("axial", "coronal", "sagittal")


def draw_case(
    path: Path, images: Mapping[str, Image], label: Image | None, labels: Mapping[str, int]
) -> None:
    """Write a PNG: a column for each channel, a row for each plane through the label's middle.

    The patient's right is on the left, as radiologists look at it. Channels on other grids are
    resampled onto that of the label, or of the first channel.

    Raises:
        OutputError: it cannot be written.
    """
    # Not pyplot, which keeps figures and wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = label if label is not None else next(iter(images.values()))
    base = reorient(base, "LPS")
    mask = base.array if label is not None else np.zeros(base.shape, np.uint8)
    middle = _middle(mask)
    # Rows as high as the widest plane asks for, as all columns have one width.
    _, depth, height = base.grid.size_mm
    width = max(base.grid.size_mm[:2])
    heights = [max(mm / width, 0.15) for mm in (depth, height, height)]
    size = (INCHES * len(images), INCHES * sum(heights) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(PLANES), len(images), squeeze=False, height_ratios=heights)
    for column, (key, image) in enumerate(images.items()):
        array = resample(image, base.grid).array
        finite = array[np.isfinite(array)]
        low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
        for row, plane in enumerate(PLANES):
            ax = axes[row, column]
            picture, aspect = _slice(array, row, middle, base.spacing)
            outlines, _ = _slice(mask, row, middle, base.spacing)
            ax.imshow(picture, "gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
            for value in labels.values():
                if (outlines == value).any() and not (outlines == value).all():
                    color = COLORS[(value - 1) % len(COLORS)]
                    ax.contour(outlines == value, [0.5], colors=[color], linewidths=0.8)
            ax.set_axis_off()
            if row == 0:
                ax.set_title(key, fontsize=9)
            if row == 0 and column == 0:
                for n, (name, value) in enumerate(labels.items()):
                    ax.text(
                        0.02, 0.94 - 0.06 * n, name, fontsize=6, transform=ax.transAxes,
                        color=COLORS[(value - 1) % len(COLORS)],
                        bbox={"facecolor": "black", "alpha": 0.7, "linewidth": 0, "pad": 1},
                    )  # fmt: skip
            if column == 0:
                ax.text(0.02, 0.02, plane, color="white", fontsize=7, transform=ax.transAxes)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_file(path, content.getvalue())


def _middle(mask: np.ndarray) -> tuple[int, int, int]:
    """The slice of each axis (k, j, i) that holds most of the label; else the image's middle."""
    inside = mask > 0
    if not inside.any():
        return mask.shape[0] // 2, mask.shape[1] // 2, mask.shape[2] // 2
    k, j, i = (
        int(inside.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)
    )
    return k, j, i


def _slice(
    array: np.ndarray,
    plane: int,
    middle: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> tuple[np.ndarray, float]:
    """A plane of an LPS array with the head or the front up, and its voxels' height by width."""
    k, j, i = middle
    if plane == 0:
        return array[k], spacing[1] / spacing[0]
    if plane == 1:
        return array[::-1, j], spacing[2] / spacing[0]
    return array[::-1, :, i], spacing[2] / spacing[1]
