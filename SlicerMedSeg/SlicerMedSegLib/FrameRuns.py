"""The runs of a series of frames: one folder, and segmentations that play with the images."""

from collections.abc import Callable

import slicer
import vtk

from .InputFrames import framesOf, showFrame
from .NodeNames import FRAME, FRAMES_OF, RUN, SERIES
from .Observing import Observers, onSceneClose
from .ResultToScene import ResultNodes, findRuns


class FrameRuns:
    """Gathers the results of one series as they come.

    Args:
        scene: MRML scene.
        source: volume or sequence node that has the frames.
        title: of the folder; a number is added when the scene has one of that name.
    """

    def __init__(self, scene, source, title: str) -> None:
        self._scene, self._source, self._title = scene, source, title
        self._folder = 0

    def add(self, frame: int, nodes: ResultNodes) -> None:
        """Put the result of a frame (from 0) into the folder; of the series it alone is shown."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        if not self._folder:
            self._title = hierarchy.GenerateUniqueItemName(self._title)
            parent = hierarchy.GetItemParent(nodes.folder)
            self._folder = hierarchy.CreateFolderItem(parent, self._title)
        hierarchy.SetItemParent(nodes.folder, self._folder)
        segmentation = nodes.segmentation
        segmentation.SetAttribute(FRAME, str(frame))
        segmentation.SetAttribute(SERIES, self._title)
        segmentation.SetNodeReferenceID(FRAMES_OF, self._source.GetID())
        _showOnly(self._scene, self._title, frame)


class FramePlayer:
    """Shows of every series the segmentation of the frame that the images show.

    Nothing happens while the images stay at their frame: what the user shows and hides, stays.

    Args:
        scene: MRML scene.
        shown: called when the images go to another frame of the series that `go` went to last, with
            the run of that frame, None where it has none.
    """

    def __init__(self, scene, shown: Callable[[str | None], None] = lambda run: None) -> None:
        self._scene, self._shown = scene, shown
        self._frames: dict[str, int] = {}
        self._series: str | None = None
        self._observers, self._browsers = Observers(), Observers()
        onSceneClose(self._observers, scene, self._browsers.clear)
        self._observers.add(scene, scene.EndImportEvent, lambda *_a: self.refresh())
        self.refresh()

    def refresh(self) -> None:
        """Follow the browsers of the series that the scene has now."""
        self._browsers.clear()
        self._frames = {}
        for series, source in _sources(self._scene).items():
            frames = framesOf(source)
            if frames is not None and frames.browser is not None:
                self._frames[series] = frames.selected
                self._browsers.add(
                    frames.browser, vtk.vtkCommand.ModifiedEvent, lambda *_a: self._follow()
                )

    def go(self, run: str | None) -> None:
        """Let images and segmentation show the frame of a run; other runs stay as they are."""
        found = findRuns(self._scene).get(run or "", {}).get("segmentation", [])
        self._series = found[0].GetAttribute(SERIES) if found else None
        if not found or found[0].GetAttribute(FRAME) is None:
            return
        frame, series = int(found[0].GetAttribute(FRAME)), found[0].GetAttribute(SERIES)
        _showOnly(self._scene, series, frame)
        source = found[0].GetNodeReference(FRAMES_OF)
        if source is not None:
            showFrame(source, frame)

    def close(self) -> None:
        """Let go of the scene; harmless when repeated."""
        self._observers.clear()
        self._browsers.clear()

    def _follow(self) -> None:
        for series, source in _sources(self._scene).items():
            frames = framesOf(source)
            if frames is not None and frames.selected != self._frames.get(series, frames.selected):
                self._frames[series] = frames.selected
                _showOnly(self._scene, series, frames.selected)
                if series == self._series:
                    self._shown(_runOf(self._scene, series, frames.selected))


def _segmentations(scene) -> list:
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene)
    return [node for node in nodes if node.GetAttribute(SERIES)]


def _sources(scene) -> dict:
    """{series: the node that has its frames}."""
    found = {n.GetAttribute(SERIES): n.GetNodeReference(FRAMES_OF) for n in _segmentations(scene)}
    return {series: node for series, node in found.items() if node is not None}


def _runOf(scene, series: str, frame: int) -> str | None:
    for node in _segmentations(scene):
        if node.GetAttribute(SERIES) == series and node.GetAttribute(FRAME) == str(frame):
            return node.GetAttribute(RUN)
    return None


def _showOnly(scene, series: str, frame: int) -> None:
    for node in _segmentations(scene):
        if node.GetAttribute(SERIES) == series and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(node.GetAttribute(FRAME) == str(frame))
