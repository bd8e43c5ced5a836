"""A point in one image, and the map of where the other image answers to it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk

from medsegcore.imaging import Image

from .Colors import CLEAR_BELOW, overlayColorNode
from .CorrelationStore import loadCorrelation
from .NodeNames import TITLE
from .Observing import Observers, onSceneClose
from .SceneConversion import fillVolumeNode
from .Translation import _


class CorrelationProbe:
    """The map over the other image follows a point that the user moves in one image.

    Args:
        scene: MRML scene.
        storeNode: node of role "correlation" of a run.

    Attributes:
        map: volume node (0..1 of the map's highest value), while it is on.
        point: markups node with the point, while it is on.
    """

    def __init__(self, scene, storeNode) -> None:
        self.scene = scene
        self.attention = loadCorrelation(storeNode)
        self.map: Any = None
        self.point: Any = None
        self._made: list = []
        self._shown: tuple[int, int, int] | None = None
        self._observers = Observers()
        self._changed: Callable[[], None] | None = None

    def on(self, ras=None, pointNode=None, changed: Callable[[], None] | None = None) -> None:
        """Show the map for a point, and follow it.

        Args:
            ras: [3] mm, where a new point is put; the middle of the maps when None.
            pointNode: the user's own markups node, whose first point counts; None makes one that
                `off` removes.
            changed: called after the map has changed.
        """
        self.off()
        self._changed = changed
        self.point = pointNode
        if pointNode is None:
            self.point = self._add("vtkMRMLMarkupsFiducialNode", _("MedSeg point"))
            self.point.CreateDefaultDisplayNodes()
            self.point.SetMaximumNumberOfControlPoints(1)
            self._made.append(self.point.GetDisplayNode())
            self.point.AddControlPointWorld(vtk.vtkVector3d(*self._start(ras)))
        self.map = self._add("vtkMRMLScalarVolumeNode", self.attention.title)
        self.map.SetAttribute(TITLE, self.attention.title)
        self.map.CreateDefaultDisplayNodes()
        display = self.map.GetDisplayNode()
        self._made.append(display)
        display.SetAndObserveColorNodeID(overlayColorNode(self.scene).GetID())
        display.SetAutoWindowLevel(0)
        display.SetWindowLevelMinMax(0.0, 1.0)
        display.SetAutoThreshold(0)
        display.SetThreshold(CLEAR_BELOW, 1.0)
        display.SetApplyThreshold(1)
        for node in self._made:
            node.SetSaveWithScene(0)
        for event in (
            slicer.vtkMRMLMarkupsNode.PointModifiedEvent,
            slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent,
            slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
        ):
            self._observers.add(self.point, event, lambda *_a: self._follow())
        self._observers.add(
            self.scene, slicer.vtkMRMLScene.NodeRemovedEvent, lambda *_a: self._nodeRemoved()
        )
        onSceneClose(self._observers, self.scene, self.off)
        self._follow()

    @property
    def place(self) -> np.ndarray | None:
        """Where the point is, [3] mm RAS; None while there is none."""
        if self.point is None or self.point.GetNumberOfDefinedControlPoints() < 1:
            return None
        ras = [0.0] * 3
        self.point.GetNthControlPointPositionWorld(0, ras)
        return np.array(ras)

    def off(self) -> None:
        """Follow nothing any more; map and point of ours leave the scene."""
        self._observers.clear()
        made, self._made = self._made, []
        for node in reversed(made):
            if node.GetScene() is not None:
                self.scene.RemoveNode(node)
        self.map = self.point = self._shown = self._changed = None

    def _add(self, className: str, name: str):
        node = self.scene.AddNewNodeByClass(className, name)
        self._made.append(node)
        return node

    def _start(self, ras) -> np.ndarray:
        if ras is not None:
            return np.asarray(ras, float)
        k, h, w = self.attention.maps.shape[:3]
        return (self.attention.affine @ [(w - 1) / 2, (h - 1) / 2, (k - 1) / 2, 1.0])[:3]

    def _follow(self) -> None:
        """Another map only when another position is nearest: mouse moves come much faster."""
        place = self.place
        if place is None:
            return
        at = self.attention.index_at(place)
        if at == self._shown:
            return
        self._shown = at
        image = self.attention.map_at(place)
        level = image.array / max(float(image.array.max()), 1e-12)
        fillVolumeNode(self.map, Image(level.astype(np.float32), image.affine))
        if self._changed is not None:
            self._changed()

    def _nodeRemoved(self) -> None:
        if any(node is None or node.GetScene() is None for node in (self.point, self.map)):
            self.off()
