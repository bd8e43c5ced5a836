"""The reference and an input over each other in the slice views, and the views given back.

What the views showed before stands in their own nodes: it comes back also after the scene was
saved and loaded while a preview was on.
"""

import json
from typing import Any

import numpy as np
import slicer

from medsegcore.imaging import Grid, grid_with_spacing

from .AttentionDisplay import fieldOfViewKept
from .Resampling import VOXELS_A_STEP, resampling
from .SceneConversion import imageFromVolumeNode, removeWithParts
from .Steps import Steps, imageDataInSteps, runToEnd
from .Translation import _

# In a slice view's composite node: what it showed before, and what is shown now.
BACKGROUND, FOREGROUND = "MedSeg.PreviewBackground", "MedSeg.PreviewForeground"
STATE = "MedSeg.Preview"
# Brightness is judged on about this many voxels: more tell no more.
SAMPLED = 500_000
MOST = 8_000_000


class RegistrationPreview:
    """Shows two volumes over each other in all slice views, and gives the views back as they were.

    Args:
        scene: MRML scene.
    """

    def __init__(self, scene) -> None:
        self._scene = scene
        self._boardId = ""

    def blend(self, referenceNode, volumeNode, opacity: float = 0.5) -> None:
        """The reference behind the volume; `opacity` 0 shows the reference alone, 1 the volume."""
        self._show(referenceNode.GetID(), volumeNode.GetID(), min(max(opacity, 0.0), 1.0))
        self._removeBoard()

    def checkerboard(self, referenceNode, volumeNode, squareMm: float = 25.0):
        """The reference and the volume in alternating cubes on the reference's grid.

        Of large references the grid is coarser, so that the interface does not wait.

        Returns:
            The new volume node; it goes with `restore` and is not offered to users to choose.

        Raises:
            InputError: a volume cannot be used.
        """
        return runToEnd(self.checkerboardSteps(referenceNode, volumeNode, squareMm))

    def checkerboardSteps(self, referenceNode, volumeNode, squareMm: float = 25.0) -> Steps[Any]:
        """`checkerboard` in short steps; the views change with the last one."""
        images = [imageFromVolumeNode(node, copy=False) for node in (referenceNode, volumeNode)]
        grid = _boardGrid(images[0].grid)
        fixed = yield from resampling(images[0], grid, antialias=False)
        moved = yield from resampling(images[1], grid, antialias=False)
        ranges = [_brightness(fixed), _brightness(moved)]
        yield
        steps = [max(1, round(squareMm / s)) for s in reversed(grid.spacing)]
        k, j, i = (np.arange(n) // s for n, s in zip(grid.shape, steps, strict=True))
        slices = max(1, VOXELS_A_STEP // fixed[0].size)
        for first in range(0, len(fixed), slices):
            part = slice(first, first + slices)
            odd = (k[part, None, None] + j[:, None] + i) % 2 == 1
            gray, other = (_gray(a[part], r) for a, r in zip((fixed, moved), ranges, strict=True))
            fixed[part] = np.where(odd, other, gray)
            yield
        data = yield from imageDataInSteps(fixed)
        # One step: a node that nothing shows would stay behind when the steps are given up.
        node = self._boardNode(data, grid)
        previous = self._boardId
        self._show(node.GetID(), None, 0.0)
        self._boardId = previous
        self._removeBoard()
        self._boardId = node.GetID()
        return node

    def _boardNode(self, data, grid: Grid):
        display = self._scene.CreateNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        display.UnRegister(None)
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
        display.SetAutoWindowLevel(0)
        display.SetWindowLevelMinMax(0.0, 1.0)
        node = self._scene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
        node.UnRegister(None)
        node.SetName(_("Checkerboard"))
        node.SetHideFromEditors(1)
        node.SetSaveWithScene(0)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(grid.affine))
        node.SetAndObserveImageData(data)
        # Its own display from the start: the default one looks at all voxels for a window.
        self._scene.AddNode(display)
        self._scene.AddNode(node)
        node.SetAndObserveDisplayNodeID(display.GetID())
        return node

    def restore(self) -> None:
        """Every view as it was before the first preview; harmless when none is on.

        A layer for which the user has chosen another volume meanwhile keeps it.
        """
        for view in self._views():
            state = view.GetAttribute(STATE)
            if state is None:
                continue
            told = json.loads(state)
            now = [view.GetBackgroundVolumeID(), view.GetForegroundVolumeID()]
            # What was shown and deleted has left an empty layer.
            ours = [not a or a == b for a, b in zip(now, told["shown"], strict=True)]
            for n, role in enumerate((BACKGROUND, FOREGROUND)):
                node = view.GetNodeReference(role)
                if ours[n]:
                    now[n] = node.GetID() if node is not None else None
                view.RemoveNodeReferenceIDs(role)
            if not ours[1]:
                told["opacity"] = view.GetForegroundOpacity()
                told["compositing"] = view.GetCompositing()
            self._set(view, now[0], now[1], told["opacity"], told["compositing"])
            view.RemoveAttribute(STATE)
        self._removeBoard()

    def _views(self) -> list:
        return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", self._scene))

    def _show(self, background: str, foreground: str | None, opacity: float) -> None:
        for view in self._views():
            told = json.loads(view.GetAttribute(STATE) or "{}")
            if not told:
                told["opacity"] = view.GetForegroundOpacity()
                told["compositing"] = view.GetCompositing()
                for role, name in (
                    (BACKGROUND, view.GetBackgroundVolumeID()),
                    (FOREGROUND, view.GetForegroundVolumeID()),
                ):
                    if name:
                        view.SetNodeReferenceID(role, name)
            view.SetAttribute(STATE, json.dumps({**told, "shown": [background, foreground]}))
            self._set(view, background, foreground, opacity, slicer.vtkMRMLSliceCompositeNode.Alpha)

    @staticmethod
    def _set(view, background, foreground, opacity: float, compositing: int) -> None:
        with fieldOfViewKept(view):
            view.SetBackgroundVolumeID(background)
            view.SetForegroundVolumeID(foreground)
            view.SetForegroundOpacity(opacity)
            view.SetCompositing(compositing)

    def _removeBoard(self) -> None:
        node = self._scene.GetNodeByID(self._boardId) if self._boardId else None
        if node is not None:
            removeWithParts(node)
        self._boardId = ""


def _boardGrid(grid: Grid) -> Grid:
    """The grid, or a coarser one of at most about `MOST` voxels; thick slices stay as they are."""
    finest = min(grid.spacing)
    coarser = grid
    while np.prod(coarser.shape) > MOST:
        finest *= 1.1
        i, j, k = (max(s, finest) for s in grid.spacing)
        coarser = grid_with_spacing(grid, (i, j, k))
    return coarser


def _brightness(array: np.ndarray) -> tuple[float, float]:
    """The 1st and the 99.5th percentile of the positive voxels."""
    some = np.nan_to_num(array.ravel()[:: max(1, array.size // SAMPLED)])
    positive = some[some > 0]
    if positive.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(positive, [1, 99.5])
    return float(low), float(high)


def _gray(array: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """0..1 between the limits; float32."""
    low, high = limits
    gray = (np.nan_to_num(array) - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return np.clip(gray, 0, 1)
