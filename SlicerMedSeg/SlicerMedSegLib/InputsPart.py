"""The part of the panel where each input of the model gets its volume."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import qt
import slicer
import vtk

from medsegcore.errors import MedSegError
from medsegcore.imaging import Region
from medsegcore.models import InputSpec, ModelDescription

from .InputChecks import ERROR, OK, WARNING, Finding, InputChecks
from .InputFrames import ALL_FRAMES, frameCount, framesOf
from .InputMatcher import InputMatcher, Proposal
from .InputRegion import regionFromRoiNode, roiNodeForGrid
from .NodeNames import ROLE
from .Observing import Observers, onSceneClose
from .Translation import _

# What loads or moves a volume modifies it many times in a row.
QUIET_MS = 120
VOLUMES = [
    "vtkMRMLScalarVolumeNode",
    "vtkMRMLVectorVolumeNode",
    "vtkMRMLDiffusionWeightedVolumeNode",
]


@dataclass
class _Row:
    """The widgets of one input, and whether the user has chosen in them.

    `wanted` is the frame to choose as soon as the node's frames are known.
    """

    spec: InputSpec
    title: Any
    selector: Any
    frameBox: Any
    why: Any
    byUser: bool = False
    node: Any = None
    proposal: Proposal | None = None
    wanted: int | None = None

    @property
    def frame(self) -> int | None:
        """The chosen frame of a 4-D node, `ALL_FRAMES`, or None for the shown one."""
        return self.frameBox.currentData if self.frameBox.count else self.wanted


class InputsPart:
    """A row for each input, automatic matching, the region, and what is to be said about them.

    Args:
        ui: the widgets of InputsPart.ui.
        scene: MRML scene.
        changed: called when a choice or what is found about it has changed.
        matcher, checks: those of the scene when None.

    Attributes:
        findings: what was found last; None while the images are being looked at.
    """

    def __init__(
        self,
        ui,
        scene,
        changed: Callable[[], None],
        matcher: InputMatcher | None = None,
        checks: InputChecks | None = None,
    ) -> None:
        self._ui, self._scene, self._changed = ui, scene, changed
        self._matcher = matcher if matcher is not None else InputMatcher(scene)
        self._checks = checks if checks is not None else InputChecks()
        self.findings: list[Finding] | None = None
        self._description: ModelDescription | None = None
        self._rows: dict[str, _Row] = {}
        self._steps: deque[Callable[[], None]] = deque()
        self._closed = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._step)
        self._observers, self._nodeObservers = Observers(), Observers()
        onSceneClose(self._observers, scene, self._sceneCloses)
        Scene = slicer.vtkMRMLScene
        for event in (
            Scene.NodeAddedEvent, Scene.NodeRemovedEvent, Scene.EndBatchProcessEvent,
            Scene.EndCloseEvent, Scene.EndImportEvent,
        ):  # fmt: skip
            self._observers.add(scene, event, self._later)
        self._connections = [
            (ui.autoMatchButton, "clicked()", self._matchClicked),
            (ui.regionSelector, "currentNodeChanged(vtkMRMLNode*)", self._chosen),
            (ui.drawRegionButton, "clicked()", self._drawRegion),
        ]
        for widget, signal, slot in self._connections:
            widget.connect(signal, slot)

    # What others ask and say.

    def setModel(self, description: ModelDescription | None) -> None:
        """Make the rows of a model; what the user chose for inputs of the same key stays."""
        before, frames = self.chosenByUser(), self.frames()
        self._removeRows()
        self._description = description
        if description is not None:
            for spec in description.inputs:
                self._rows[spec.key] = self._makeRow(len(self._rows), spec)
        self._ui.emptyLabel.visible = description is None
        self.setNodes(before, frames)

    def setNodes(self, nodes: Mapping[str, Any], frames: Mapping[str, int] | None = None) -> None:
        """Choose volumes for inputs, and frames of 4-D ones, by key, as the user would."""
        for key, node in nodes.items():
            if key in self._rows and node is not None:
                self._put(self._rows[key], node)
                self._rows[key].byUser = True
        for key, frame in (frames or {}).items():
            if key in self._rows and nodes.get(key) is not None:
                self._want(self._rows[key], frame)
        self._chosen()

    def inputKeys(self) -> list[str]:
        """Of the model's inputs."""
        return list(self._rows)

    def chosenByUser(self) -> dict[str, Any]:
        """{input key: volume node} of what the user chose."""
        return {key: row.node for key, row in self._given().items() if row.byUser}

    def inputNodes(self) -> dict[str, Any]:
        """{input key: volume node} of the inputs that are given."""
        return {key: row.node for key, row in self._given().items()}

    def frames(self) -> dict[str, int]:
        """{input key: frame, or `ALL_FRAMES`} where the user chose one."""
        found = {key: row.frame for key, row in self._given().items()}
        return {key: frame for key, frame in found.items() if frame is not None}

    def movable(self) -> tuple[Any, dict[str, tuple[str, Any]]]:
        """The reference, and {input key: (title, volume node)} of what can be registered to it."""
        given = {
            key: row for key, row in self._given().items()
            if row.node.IsA("vtkMRMLVolumeNode") and framesOf(row.node) is None
        }  # fmt: skip
        # Where one of the inputs is given, there is nothing to register it to.
        reference = self._description.reference if self._description is not None else None
        row = given.pop(reference, None) if reference is not None else None
        others = {key: (row.spec.title, row.node) for key, row in given.items()}
        return (row.node if row is not None else None), others

    def region(self) -> Region | None:
        """The box to work in.

        Raises:
            MedSegError: the region that is chosen cannot be used.
        """
        return regionFromRoiNode(self._ui.regionSelector.currentNode())

    def reason(self) -> str:
        """Why the model cannot run on what is chosen, "" when it can."""
        if self._description is None:
            return _("Choose a model first.")
        if self.findings is None:
            return _("The images are being looked at.")
        return next((f.text for f in self.findings if f.level == ERROR), "")

    def close(self) -> None:
        """Let go of scene, nodes, timer and widgets."""
        if self._closed:
            return
        self._closed = True
        self._timer.stop()
        self._timer.disconnect("timeout()", self._step)
        self._steps.clear()
        self._observers.clear()
        self._nodeObservers.clear()
        for widget, signal, slot in self._connections:
            if widget:
                widget.disconnect(signal, slot)
        self._connections = []
        self._removeRows()

    # The rows.

    def _makeRow(self, number: int, spec: InputSpec) -> _Row:
        assert self._description is not None
        grid = self._ui.rowsWidget.layout()
        needed, oneOf = self._description.needs(spec), self._description.one_of
        isReference = self._description.reference in (spec.key, None)
        text = _("{title} (optional)")
        text = "{title}" if needed else _("{title} (one of these)") if oneOf else text
        text = text.format(title=spec.title)
        title = qt.QLabel(text + ":")
        selector = slicer.qMRMLNodeComboBox()
        selector.objectName = f"{spec.key}Selector"
        # The answer lies on the grid of the reference, which a sequence node does not have.
        selector.nodeTypes = VOLUMES if isReference else [*VOLUMES, "vtkMRMLSequenceNode"]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.addEnabled = False
        selector.removeEnabled = False
        selector.noneDisplay = _("Choose a volume") if needed else _("None")
        selector.toolTip = (
            _("The answer lies on the grid of this volume") if isReference else spec.title
        )
        selector.setMRMLScene(self._scene)
        frameBox = qt.QComboBox()
        frameBox.objectName = f"{spec.key}FrameBox"
        frameBox.visible = False
        why = qt.QLabel("")
        why.objectName = f"{spec.key}WhyLabel"
        why.wordWrap = True
        grid.addWidget(title, 3 * number, 0)
        grid.addWidget(selector, 3 * number, 1)
        grid.addWidget(frameBox, 3 * number + 1, 1)
        grid.addWidget(why, 3 * number + 2, 0, 1, 2)
        grid.setColumnStretch(1, 1)
        row = _Row(spec, title, selector, frameBox, why)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self._selected(row, node))
        selector.connect("nodeActivated(vtkMRMLNode*)", lambda node: self._confirmed(row))
        frameBox.connect("currentIndexChanged(int)", lambda index: self._frameChosen(row))
        return row

    def _removeRows(self) -> None:
        rows, self._rows = self._rows, {}
        for row in rows.values():
            for widget in (row.selector, row.frameBox, row.title, row.why):
                if widget:
                    widget.blockSignals(True)
                    widget.hide()
                    widget.deleteLater()
            if row.selector:
                row.selector.setMRMLScene(None)

    def _hideResults(self) -> None:
        """What runs have made is offered for no input; selectors cannot ask for no attribute."""
        made = [
            node.GetID()
            for node in slicer.util.getNodesByClass("vtkMRMLVolumeNode", self._scene)
            if node.GetAttribute(ROLE)
        ]
        for row in self._rows.values():
            offered = row.selector.sortFilterProxyModel()
            if list(offered.hiddenNodeIDs) != made:
                offered.hiddenNodeIDs = made

    def _given(self) -> dict[str, _Row]:
        return {key: row for key, row in self._rows.items() if row.node is not None}

    def _put(self, row: _Row, node) -> None:
        """Choose a node for a row without the user."""
        blocked = row.selector.blockSignals(True)
        row.selector.setCurrentNode(node)
        row.selector.blockSignals(blocked)
        self._take(row, row.selector.currentNode())

    def _take(self, row: _Row, node) -> None:
        """The row's volume from now on; the frame of another one is none of its."""
        if node is not row.node:
            self._want(row, None)
        row.node = node

    def _selected(self, row: _Row, node) -> None:
        if self._closed or row.selector.currentNode() is row.node:
            return
        # A selector empties itself when its node goes: that is nobody's choice.
        gone = node is None and not self._scene.IsNodePresent(row.node)
        self._take(row, node)
        row.proposal, row.byUser = None, not gone
        if node is not None and self._description is not None and self._description.one_of:
            for other in self._rows.values():
                if other is not row:
                    self._put(other, None)
                    other.proposal, other.byUser = None, False
        self._chosen()

    def _confirmed(self, row: _Row) -> None:
        """The user chose what was there already: from now on it is the user's choice."""
        if not self._closed and row.node is not None and not row.byUser:
            row.byUser, row.proposal = True, None
            self._chosen()

    def _frameChosen(self, row: _Row) -> None:
        # Who chooses a frame has chosen what it is a frame of.
        row.byUser, row.proposal = True, None
        self._chosen()

    def _chosen(self, *_arguments) -> None:
        """Until the new choice has been looked at, nothing is known about it."""
        self.findings = None
        self._schedule(0)
        self._changed()

    # Matching.

    def _matchClicked(self) -> None:
        for row in self._rows.values():
            # What was emptied by hand may be filled by hand.
            row.byUser = row.byUser and row.node is not None
            if not row.byUser:
                self._put(row, None)
        self._chosen()

    def _match(self) -> None:
        """Fill the rows that are empty, but those that the user has emptied.

        Volumes come one after the other: what is filled stays, what is said of it is said anew.
        """
        free = [row for row in self._rows.values() if not row.byUser]
        if self._description is None or not free:
            return
        if self._description.one_of and self.inputNodes():
            return
        proposals = self._matcher.match(self._description, self.inputNodes())
        for row in free:
            row.proposal = proposals[row.spec.key]
            if row.node is None:
                self._put(row, row.proposal.node)

    def _explain(self, row: _Row) -> None:
        """Why this volume, and how sure."""
        assert self._description is not None
        text = row.proposal.why if row.proposal is not None else ""
        score = row.proposal.score if row.proposal is not None else 0.0
        if row.byUser and row.node is not None and row.node.IsA("vtkMRMLVolumeNode"):
            found = self._matcher.explain(self._description, row.spec.key, row.node)
            text, score = _("Chosen by you.") + " " + found.why, found.score
        if text and row.node is not None and score > 0:
            text = _("{why} ({score} sure)").format(why=text, score=f"{score:.0%}")
        row.why.text = text
        row.why.visible = bool(text)

    @staticmethod
    def _want(row: _Row, frame: int | None) -> None:
        blocked = row.frameBox.blockSignals(True)
        row.frameBox.clear()
        row.frameBox.blockSignals(blocked)
        row.wanted = frame

    def _fillFrames(self, row: _Row) -> None:
        frames = framesOf(row.node)
        box, before = row.frameBox, row.frame
        row.wanted = None
        labels = [] if frames is None else list(frames.labels)
        blocked = box.blockSignals(True)
        box.clear()
        if frames is not None:
            shown = labels[frames.selected] if labels else ""
            box.addItem(_("Shown frame, {label}").format(label=shown), None)
            if len(labels) > 1:
                box.addItem(_("All {count} frames").format(count=len(labels)), ALL_FRAMES)
            for number, label in enumerate(labels):
                box.addItem(label, number)
            box.setCurrentIndex(max(box.findData(before), 0) if before is not None else 0)
        box.blockSignals(blocked)
        box.visible = len(labels) > 1

    # Looking, in small steps that leave the interface alive.

    def _later(self, *_arguments) -> None:
        self._schedule(QUIET_MS)

    def _schedule(self, milliseconds: int) -> None:
        if self._closed:
            return
        self._steps = deque([self._begin])
        self._timer.start(milliseconds)

    def _step(self) -> None:
        # While a scene is read its nodes are half there; its end is heard.
        if self._closed or not self._steps or self._scene.IsBatchProcessing():
            return
        self._steps.popleft()()
        if self._steps:
            self._timer.start(0)

    def _begin(self) -> None:
        for row in self._rows.values():
            if row.node is not None and not self._scene.IsNodePresent(row.node):
                row.node, row.byUser = None, False
        self._hideResults()
        self._match()
        self._observe()
        for row in self._given().values():
            frames = range(frameCount(row.node)) if row.frame == ALL_FRAMES else [row.frame]
            self._steps += [partial(self._look, row, frame) for frame in frames]
        self._steps.append(self._conclude)

    def _look(self, row: _Row, frame: int | None) -> None:
        """Measure one volume; what is measured is kept until its voxels change."""
        if self._description is not None:
            frames = {row.spec.key: frame} if frame is not None else {}
            self._checks.check(self._description, {row.spec.key: row.node}, frames)

    def _conclude(self) -> None:
        findings: list[Finding] = []
        if self._description is not None:
            for row in self._rows.values():
                self._fillFrames(row)
                self._explain(row)
            region, wrong = None, []
            try:
                region = self.region()
            except MedSegError as error:
                wrong = [Finding(ERROR, "", "region", str(error))]
            findings = self._checks.checkSeries(
                self._description, self.inputNodes(), self.frames(), region
            )
            findings += wrong
        self._showFindings(findings)
        ui = self._ui
        ui.autoMatchButton.enabled = bool(self._rows)
        ui.drawRegionButton.enabled = self._referenceGrid() is not None
        self.findings = findings
        # Also when the words are the same: a box that was moved covers as much as before.
        self._changed()

    def _observe(self) -> None:
        self._nodeObservers.clear()
        nodes = list(self.inputNodes().values())
        region = self._ui.regionSelector.currentNode()
        for node in nodes if region is None else [*nodes, region]:
            self._nodeObservers.add(node, vtk.vtkCommand.ModifiedEvent, self._later)
            if hasattr(node, "TransformModifiedEvent"):
                self._nodeObservers.add(node, node.TransformModifiedEvent, self._later)
            if hasattr(node, "ImageDataModifiedEvent"):
                self._nodeObservers.add(node, node.ImageDataModifiedEvent, self._later)
        if region is not None:
            self._nodeObservers.add(region, region.PointModifiedEvent, self._later)

    def _showFindings(self, findings: list[Finding]) -> None:
        style = slicer.app.style()
        icons = {
            ERROR: style.standardIcon(qt.QStyle.SP_MessageBoxCritical),
            WARNING: style.standardIcon(qt.QStyle.SP_MessageBoxWarning),
            OK: style.standardIcon(qt.QStyle.SP_DialogApplyButton),
        }
        box = self._ui.findingsList
        box.clear()
        for level in (ERROR, WARNING, OK):
            for finding in findings:
                if finding.level == level:
                    item = qt.QListWidgetItem(icons[level], finding.text)
                    item.setToolTip(finding.text)
                    box.addItem(item)

    def _sceneCloses(self) -> None:
        self._nodeObservers.clear()
        for row in self._rows.values():
            row.node, row.proposal, row.byUser = None, None, False
        self._chosen()

    # The region.

    def _referenceGrid(self):
        if self._description is None:
            return None
        nodes = self.inputNodes()
        key = self._description.reference_of(nodes)
        return self._matcher.facts(nodes[key]).grid if key in nodes else None

    def _drawRegion(self) -> None:
        grid = self._referenceGrid()
        if grid is None:
            return
        node = roiNodeForGrid(self._scene, grid, self._scene.GenerateUniqueName(_("Region")))
        node.CreateDefaultDisplayNodes()
        self._ui.regionSelector.setCurrentNode(node)
