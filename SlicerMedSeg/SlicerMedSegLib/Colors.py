"""Color tables of the overlays and labels; they travel with the scene."""

import itertools
from collections.abc import Sequence

import slicer

# Values below this are clear: probability and attention are never exactly 0.
CLEAR_BELOW = 0.05
OVERLAY_NAME = "MedSeg overlay"
# Dark violet over red and orange to pale yellow: rising lightness, so that it reads the same to
# people who do not tell red from green.
OVERLAY_ANCHORS = (
    (0.00, (0.10, 0.04, 0.28)),
    (0.25, (0.42, 0.08, 0.43)),
    (0.50, (0.78, 0.23, 0.30)),
    (0.75, (0.97, 0.52, 0.10)),
    (1.00, (0.99, 0.97, 0.65)),
)


def overlayColor(value: float) -> tuple[float, float, float]:
    """RGB (0..1) of a value 0..1."""
    for (low, first), (high, second) in itertools.pairwise(OVERLAY_ANCHORS):
        if value <= high:
            part = (value - low) / (high - low)
            r, g, b = (a + part * (c - a) for a, c in zip(first, second, strict=True))
            return r, g, b
    return OVERLAY_ANCHORS[-1][1]


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
    node.SetName(f"{title}: labels")
    node.SetNumberOfColors(max(label.value for label in labels) + 1)
    node.SetColor(0, "background", 0, 0, 0, 0)
    for label in labels:
        node.SetColor(label.value, label.name, *(c / 255 for c in label.color), 1.0)
    node.GetLookupTable().SetTableRange(0, node.GetNumberOfColors() - 1)
    return scene.AddNode(node)
