"""Maps laid over the slice views, and the views given back as they were.

What the views showed before stands in their own nodes: it comes back also after the scene was
saved and loaded while a map was shown.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import slicer
import vtk

from medsegcore.errors import MissingInputError, SettingError

from .Colors import CLEAR_BELOW
from .MapUnits import highestOf, unitText
from .NodeNames import KEY, KIND, TITLE
from .Observing import Observers, onSceneClose
from .ResultToScene import findRuns
from .Translation import _

# In a slice view's composite node: what is shown over it, and what was there before.
SHOWN = "MedSeg.Overlay"
BEFORE = "MedSeg.Before"
OPACITY = "MedSeg.BeforeOpacity"
COMPOSITING = "MedSeg.BeforeCompositing"
# In a legend's node: whether it was made here, or its visibility before.
LEGEND = "MedSeg.LegendBefore"
MADE = "made"


@dataclass(frozen=True)
class AttentionMap:
    """One map of a run that can be chosen.

    Attributes:
        key: as the model declares it.
        title: for the user.
        kind: "spatial", "slice" or "correlation".
        node: volume node, or table node of a "slice" map.
    """

    key: str
    title: str
    kind: str
    node: Any


def attentionMaps(scene, run: str) -> list[AttentionMap]:
    """The maps of a run, uncertainty among them, in the order in which they were added."""
    return [
        AttentionMap(
            node.GetAttribute(KEY),
            node.GetAttribute(TITLE) or node.GetName(),
            node.GetAttribute(KIND) or "spatial",
            node,
        )
        for node in findRuns(scene).get(run, {}).get("attention", [])
    ]


class AttentionDisplay:
    """One map over all slice views, with a color legend; `off` gives the views back.

    Args:
        scene: MRML scene.
    """

    def __init__(self, scene) -> None:
        self.scene = scene
        self._observers = Observers()
        if self.shown is not None:
            self._observe()

    @property
    def shown(self):
        """The volume node that is laid over the views; None when none is."""
        for composite in self._composites():
            node = composite.GetNodeReference(SHOWN)
            if node is not None:
                return node
        return None

    def show(self, volumeNode, opacity: float = 0.6) -> None:
        """Lay a volume over every slice view, views that come later included.

        Args:
            volumeNode: a map, e.g. `AttentionMap.node`, or a probability.
            opacity: 0..1.

        Raises:
            MissingInputError: it is no volume with voxels in the scene.
            SettingError: an opacity out of range.
        """
        _checkOpacity(opacity)
        if (
            volumeNode is None
            or volumeNode.GetScene() is not self.scene
            or not volumeNode.IsA("vtkMRMLScalarVolumeNode")
            or volumeNode.GetDisplayNode() is None
        ):
            raise MissingInputError(
                _("The map is not in the scene any more."), _("Choose another one, or run again.")
            )
        if self.shown is not None and self.shown is not volumeNode:
            self._legendOff(self.shown)
        for composite in self._composites():
            self._layOver(composite, volumeNode, opacity)
        self._legendOn(volumeNode)
        self._observe()

    def setOpacity(self, opacity: float) -> None:
        """0..1 in every view that shows the map."""
        _checkOpacity(opacity)
        for composite in self._ours():
            composite.SetForegroundOpacity(opacity)

    def setWindow(self, low: float, high: float) -> None:
        """Values (in the map's unit) of the first and the last color; below `low` the map is clear.

        Raises:
            SettingError: `low` is not below `high`.
        """
        if not low < high:
            raise SettingError(
                _("The window from {low:g} to {high:g} is empty.").format(low=low, high=high),
                _("Give a higher upper end."),
            )
        if self.shown is not None:
            display = self.shown.GetDisplayNode()
            display.SetAutoWindowLevel(0)
            display.SetWindowLevelMinMax(low, high)
            display.SetAutoThreshold(0)
            highest = highestOf(self.shown)
            display.SetThreshold(max(CLEAR_BELOW * highest, low), max(highest, high))

    def off(self) -> None:
        """Every view as it was, and no legend of ours; harmless when nothing is shown.

        A view in which the user has chosen another foreground meanwhile keeps it.
        """
        self._observers.clear()
        shown = self.shown
        for composite in self._composites():
            if composite.GetAttribute(OPACITY) is None:
                continue
            # Of a map that was deleted, or not saved with the scene, nothing is left but what was
            # there before: the scene has emptied the foreground.
            ours = composite.GetNodeReferenceID(SHOWN)
            if composite.GetForegroundVolumeID() == ours or not composite.GetForegroundVolumeID():
                before = composite.GetNodeReference(BEFORE)
                with fieldOfViewKept(composite):
                    composite.SetForegroundVolumeID(before.GetID() if before else None)
                    composite.SetForegroundOpacity(float(composite.GetAttribute(OPACITY) or 0))
                    composite.SetCompositing(int(composite.GetAttribute(COMPOSITING) or 0))
            for role in (SHOWN, BEFORE):
                composite.RemoveNodeReferenceIDs(role)
            for name in (OPACITY, COMPOSITING):
                composite.RemoveAttribute(name)
        if shown is not None:
            self._legendOff(shown)

    def close(self) -> None:
        """Observe nothing any more; a map that is shown stays, for the next one to take over."""
        self._observers.clear()

    def _composites(self) -> list:
        return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", self.scene))

    def _ours(self) -> list:
        """The views that still show what was laid over them."""
        return [
            node
            for node in self._composites()
            if node.GetNodeReferenceID(SHOWN) is not None
            and node.GetForegroundVolumeID() == node.GetNodeReferenceID(SHOWN)
        ]

    def _layOver(self, composite, volumeNode, opacity: float) -> None:
        if composite.GetNodeReferenceID(SHOWN) is None:
            if composite.GetForegroundVolumeID():
                composite.SetNodeReferenceID(BEFORE, composite.GetForegroundVolumeID())
            composite.SetAttribute(OPACITY, repr(composite.GetForegroundOpacity()))
            composite.SetAttribute(COMPOSITING, str(composite.GetCompositing()))
        composite.SetNodeReferenceID(SHOWN, volumeNode.GetID())
        with fieldOfViewKept(composite):
            composite.SetForegroundVolumeID(volumeNode.GetID())
            composite.SetForegroundOpacity(opacity)
            composite.SetCompositing(slicer.vtkMRMLSliceCompositeNode.Alpha)

    def _showLegend(self) -> None:
        """In the slice views that show the map, and in no other view."""
        shown = self.shown
        logic = slicer.vtkSlicerColorLogic
        legend = logic.GetColorLegendDisplayNode(shown) if shown is not None else None
        if legend is None or legend.GetAttribute(LEGEND) != MADE:
            return
        seen = [c for c in self._ours() if c.GetForegroundOpacity() > 0]
        nodes = [node for node in map(_sliceNode, seen) if node is not None]
        views = [node.GetID() for node in nodes]
        before = [legend.GetNthViewNodeID(n) for n in range(legend.GetNumberOfViewNodeIDs())]
        if views == before and views:
            return
        legend.RemoveAllViewNodeIDs()
        for view in views:
            legend.AddViewNodeID(view)
        # Without a view of its own it would be shown in all.
        if not views or not before:
            legend.SetVisibility(bool(views))

    def _legendOn(self, volumeNode) -> None:
        logic = slicer.vtkSlicerColorLogic
        legend = logic.GetColorLegendDisplayNode(volumeNode)
        if legend is None:
            legend = logic.AddDefaultColorLegendDisplayNode(volumeNode)
            legend.SetAttribute(LEGEND, MADE)
            title = volumeNode.GetAttribute(TITLE) or volumeNode.GetName()
            told = _("{title}\n({unit})").format(title=title, unit=unitText(volumeNode))
            legend.SetTitleText(told)
            legend.SetLabelFormat("%.2f")
            legend.SetNumberOfLabels(5)
            legend.SetSize(0.1, 0.4)
            legend.GetTitleTextProperty().SetFontSize(12)
            legend.GetLabelTextProperty().SetFontSize(10)
        elif legend.GetAttribute(LEGEND) is None:
            legend.SetAttribute(LEGEND, str(legend.GetVisibility()))
        legend.SetVisibility(1)
        self._showLegend()

    def _legendOff(self, volumeNode) -> None:
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volumeNode)
        before = legend.GetAttribute(LEGEND) if legend is not None else None
        if before == MADE:
            self.scene.RemoveNode(legend)
        elif before is not None:
            legend.SetVisibility(int(before))
            legend.RemoveAttribute(LEGEND)

    def _observe(self) -> None:
        self._observers.clear()
        onSceneClose(self._observers, self.scene, self.off)
        # A layout with further views adds their nodes.
        self._observers.add(self.scene, slicer.vtkMRMLScene.NodeAddedEvent, self._nodeAdded)
        self._observers.add(self.scene, slicer.vtkMRMLScene.NodeRemovedEvent, self._nodeRemoved)
        for composite in self._composites():
            self._observers.add(
                composite, vtk.vtkCommand.ModifiedEvent, lambda *_args: self._showLegend()
            )

    def _nodeAdded(self, *_args) -> None:
        shown, ours = self.shown, self._ours()
        fresh = [n for n in self._composites() if n.GetNodeReferenceID(SHOWN) is None]
        if shown is None or not ours or not fresh:
            return
        # A view may have been made clear, so the others tell.
        opacity = max(node.GetForegroundOpacity() for node in ours)
        for composite in fresh:
            self._layOver(composite, shown, opacity)
        self._legendOn(shown)
        self._observe()

    def _nodeRemoved(self, *_args) -> None:
        """The map itself was deleted: the views get back what they had."""
        if self.shown is None:
            self.off()


def _checkOpacity(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise SettingError(
            _("The opacity is {opacity:g}.").format(opacity=opacity), _("Give a value from 0 to 1.")
        )


def _sliceNode(composite):
    """The slice node of the same view, None before it is there."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode", composite.GetScene())
    return next((n for n in nodes if n.GetLayoutName() == composite.GetLayoutName()), None)


@contextlib.contextmanager
def fieldOfViewKept(composite) -> Iterator[None]:
    """Views may fit themselves to a new foreground; the user's zoom and place stay."""
    node = _sliceNode(composite)
    if node is None:
        yield
        return
    fieldOfView, origin = node.GetFieldOfView(), node.GetXYZOrigin()
    place = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
    yield
    if node.GetFieldOfView() != fieldOfView or node.GetXYZOrigin() != origin:
        node.SetFieldOfView(*fieldOfView)
        node.SetXYZOrigin(*origin)
    if (slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()) != place).any():
        node.GetSliceToRAS().DeepCopy(place.ravel())
        node.UpdateMatrices()
