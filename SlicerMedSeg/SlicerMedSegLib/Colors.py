"""Color tables of the overlays and labels; they travel with the scene."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import slicer

from .Translation import _

# Values below this are clear: probability and attention are never exactly 0.
CLEAR_BELOW = 0.05
OVERLAY_NAME = "MedSeg overlay"
# Dark violet over red and orange to pale yellow: rising lightness, so that it reads the same to
# people who do not tell red from green.
OVERLAY_ANCHORS = ((26, 10, 71), (107, 20, 110), (199, 59, 77), (247, 133, 26), (252, 247, 166))
# Okabe and Ito's colors, the ones that stand out from gray tissue first.
OKABE_ITO = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
# Nearer than this (CIE 1976 distance), two labels look alike on a screen.
ALIKE = 15.0
# Linear RGB as people without long-wave (protan) or middle-wave (deutan) cones see it:
# Machado, Oliveira and Fernandes 2009, severity 1.
COLOR_BLINDNESS = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}
# sRGB (IEC 61966-2-1) to CIE XYZ under D65.
_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def lab(rgb, blindness: str | None = None) -> np.ndarray:
    """CIE L*a*b* [..., 3] of sRGB colors [..., 3] in 0..1, as seen with a color blindness."""
    rgb = np.asarray(rgb, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if blindness is not None:
        linear = np.clip(linear @ np.array(COLOR_BLINDNESS[blindness]).T, 0, 1)
    white = np.array(_TO_XYZ).sum(axis=1)
    xyz = linear @ np.array(_TO_XYZ).T / white
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def labelColors(wanted: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The labels' own colors (RGB, 0..255), or Okabe and Ito's where two of them look alike.

    Alike means to people with full color vision, protanopia or deuteranopia.
    """
    if not _alike(wanted) or len(wanted) > len(OKABE_ITO):
        return list(wanted)
    return list(OKABE_ITO[: len(wanted)])


def _alike(colors: Sequence[tuple[int, int, int]]) -> bool:
    for blindness in (None, *COLOR_BLINDNESS):
        seen = lab(np.array(colors, float).reshape(-1, 3) / 255, blindness)
        if any(np.linalg.norm(a - b) < ALIKE for a, b in itertools.combinations(seen, 2)):
            return True
    return False


@functools.cache
def overlayTable() -> np.ndarray:
    """[256, 3] RGB 0..1: through the anchors, in steps that look equally large."""
    anchors = np.array(OVERLAY_ANCHORS) / 255
    at = np.linspace(0, len(anchors) - 1, 2001)
    fine = np.stack([np.interp(at, range(len(anchors)), c) for c in anchors.T], axis=1)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(lab(fine), axis=0), axis=1))]
    even = np.linspace(0, length[-1], 256)
    return np.stack([np.interp(even, length, c) for c in fine.T], axis=1)


def overlayColor(value: float) -> tuple[float, float, float]:
    """RGB (0..1) of a value 0..1."""
    r, g, b = overlayTable()[round(float(np.clip(value, 0, 1)) * 255)]
    return float(r), float(g), float(b)


def overlayColorNode(scene):
    """The scene's color table for probabilities and attention; 0 is clear."""
    node = scene.GetFirstNodeByName(OVERLAY_NAME)
    if node is not None and node.IsA("vtkMRMLColorTableNode"):
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetName(OVERLAY_NAME)
    node.SetNumberOfColors(256)
    for n in range(256):
        opacity = 0.0 if n / 255 < CLEAR_BELOW else 1.0
        node.SetColor(n, f"{n / 255:.2f}", *overlayColor(n / 255), opacity)
    node.GetLookupTable().SetTableRange(0, 255)
    return scene.AddNode(node)


def labelColorNode(scene, labels: Sequence, title: str):
    """A new color table with the labels' names and colors; 0 is the clear background."""
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetName(_("{title}: labels").format(title=title))
    node.SetNumberOfColors(max(label.value for label in labels) + 1)
    node.SetColor(0, "background", 0, 0, 0, 0)
    colors = labelColors([label.color for label in labels])
    for label, color in zip(labels, colors, strict=True):
        node.SetColor(label.value, label.name, *(c / 255 for c in color), 1.0)
    node.GetLookupTable().SetTableRange(0, node.GetNumberOfColors() - 1)
    return scene.AddNode(node)
