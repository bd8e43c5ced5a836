"""A Result into a scene: one subject-hierarchy folder per run, with all that belongs to it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import vtk

from medsegcore.imaging import Image, reorient
from medsegcore.inference import CorrelationAttention, Result, SpatialAttention
from medsegcore.inference.attention import SHARE
from medsegcore.inference.result import lesion_columns, lesion_row, terminology_entry
from medsegcore.models import Label

from .Colors import CLEAR_BELOW, labelColorNode, labelColors, overlayColorNode
from .CorrelationStore import correlationSteps
from .Lattice import boundingBox
from .MapUnits import PROBABILITY, highestOf, setUnit
from .NodeNames import (
    AXIS,
    CHECKSUM,
    INPUT_FRAMES,
    INPUT_PLACES,
    INPUTS,
    KEY,
    KIND,
    ROLE,
    RUN,
    TITLE,
)
from .Resampling import resampling
from .SceneConversion import localAffine, orientedImage, parentToWorld, rememberPlace
from .SegmentRule import maskChecksum
from .SegmentTags import CHECKSUM as SEGMENT_CHECKSUM
from .SegmentTags import LABEL, MIN_ML, ONE_PIECE, THRESHOLD
from .Steps import Steps, imageDataInSteps, runToEnd
from .Translation import _


@dataclass
class ResultNodes:
    """The nodes of one run.

    Attributes:
        folder: item of the subject hierarchy.
        segmentation: what the user edits.
        answer: labelmap volume with the model's own answer; editors leave it alone.
        probabilities: volume node by label name.
        attention: volume node (spatial) or table node (slice) by key.
        lesions: table node.
        provenance: text node with JSON.
    """

    folder: int
    segmentation: Any = None
    answer: Any = None
    probabilities: dict = field(default_factory=dict)
    attention: dict = field(default_factory=dict)
    lesions: Any = None
    provenance: Any = None

    def all(self) -> list:
        """Every node."""
        single = [self.segmentation, self.answer, self.lesions, self.provenance]
        return [*single, *self.probabilities.values(), *self.attention.values()]


def addResultToScene(result: Result, scene, referenceNode, title: str) -> ResultNodes:
    """Put a result beside the volume that it belongs to. Nothing that is there is changed.

    Args:
        result: on the grid of `referenceNode` in the world.
        scene: MRML scene.
        referenceNode: volume node that defines the geometry; its (linear) parent transform
            becomes that of the new nodes, so that both move together.
        title: e.g. the model's title; a number is added when the scene has one of that name.
    """
    return runToEnd(resultSteps(result, scene, referenceNode, title))


def resultSteps(
    result: Result, scene, referenceNode, title: str, worldAffine: np.ndarray | None = None
) -> Steps[ResultNodes]:
    """`addResultToScene` in short steps.

    Args:
        worldAffine: 4x4, where the reference stood when it was read, IJK to RAS in mm; where it
            stands now when None. The result follows when it was moved since.

    The arrays are copied before anything is added; each node appears with all that it holds, and
    `findRuns` knows the run after the last step. Steps that fail or are given up take out of the
    scene what they added.
    """
    builder = _Builder(result, scene, referenceNode, title, worldAffine)
    # Not as a batch: the segmentations' displayable managers miss nodes that are added in one.
    steps = builder.steps()
    try:
        while True:
            before = builder.nodeIds()
            try:
                next(steps)
            finally:
                # Between the steps the user may add nodes as well.
                builder.made |= builder.nodeIds() - before
            yield
    except StopIteration as end:
        return end.value
    except BaseException:
        builder.undo()
        raise


class _Builder:
    def __init__(
        self, result: Result, scene, referenceNode, title: str, worldAffine: np.ndarray | None
    ) -> None:
        self.result, self.scene, self.reference = result, scene, referenceNode
        self.hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        self.title = self._freeTitle(title)
        self.made: set[str] = set()
        self.adopted: list = []
        self.folder = 0
        self.segmentation: Any = None
        # Nodes under a transform hold local coordinates; the result is in the world's.
        transform = referenceNode.GetParentTransformNode()
        linear = transform is None or transform.IsTransformToWorldLinear()
        self.transformId = transform.GetID() if transform is not None and linear else None
        own = localAffine(referenceNode)
        self.toLocal = np.eye(4)
        if linear:
            stood = parentToWorld(referenceNode) @ own if worldAffine is None else worldAffine
            self.toLocal = own @ np.linalg.inv(stood)
        self.affine = self.toLocal @ result.grid.affine
        # Up to rounding it is the reference's own: take that, to the last bit.
        if np.allclose(self.affine, own, atol=1e-4):
            self.affine = own

    def steps(self) -> Steps[ResultNodes]:
        """Each node appears with all that it holds; the run is known as one after the last."""
        nodes = ResultNodes(self._makeFolder())
        nodes.segmentation = self.segmentation = yield from self._segmentation()
        nodes.answer = yield from self._answer()
        colors = overlayColorNode(self.scene)
        for label in self.result.labels:
            array = self.result.probabilities[label.name]
            nodes.probabilities[label.name] = yield from self._overlay(
                array, _("Probability of {label}").format(label=label.name), colors,
                "probability", label.name, PROBABILITY,
            )  # fmt: skip
        for attention in self.result.attention:
            node = yield from self._attention(attention, colors)
            node.SetAttribute(TITLE, attention.title)
            node.SetAttribute(KIND, attention.kind)
            nodes.attention[attention.key] = node
            yield
        nodes.lesions = self._lesionTable()
        nodes.provenance = self._provenance()
        yield
        self.hierarchy.SetItemAttribute(self.folder, RUN, self.title)
        for node in self.adopted:
            node.SetAttribute(RUN, self.title)
        return nodes

    def _attention(self, attention, colors) -> Steps[Any]:
        unit = SHARE
        if isinstance(attention, SpatialAttention):
            array, unit = attention.values, attention.unit
        elif isinstance(attention, CorrelationAttention):
            array = yield from self._correlation(attention)
            name = _("{run}: {title} (all maps)").format(run=self.title, title=attention.title)
            store = yield from correlationSteps(self.scene, attention, name)
            self._adopt(store, "correlation", attention.key)
            # Kept in the world, as the maps' own geometry is.
            store.SetAndObserveTransformNodeID(None)
            rememberPlace(store, self.segmentation, self.toLocal)
            yield
        else:
            return self._sliceTable(attention)
        return (
            yield from self._overlay(
                array, attention.title, colors, "attention", attention.key, unit
            )
        )

    def _correlation(self, attention: CorrelationAttention) -> Steps[np.ndarray]:
        """The map for the largest lesion's centre, or the middle: 0..1 on the result's grid."""
        grid, lesions = self.result.grid, self.result.lesions
        point = lesions[0].center_ras if lesions else grid.center
        image = attention.map_at(np.asarray(point))
        array = yield from resampling(image, grid)
        array /= max(float(array.max()), 1e-12)
        yield
        return array

    def undo(self) -> None:
        """Take out what was added, displays and color tables included."""
        for nodeId in self.made:
            node = self.scene.GetNodeByID(nodeId)
            if node is not None:
                self.scene.RemoveNode(node)
        if self.folder:
            self.hierarchy.RemoveItem(self.folder)

    def nodeIds(self) -> set[str]:
        return {self.scene.GetNthNode(n).GetID() for n in range(self.scene.GetNumberOfNodes())}

    def _freeTitle(self, title: str) -> str:
        names, number = set(), 2
        items = vtk.vtkIdList()
        self.hierarchy.GetItemChildren(self.hierarchy.GetSceneItemID(), items, True)
        for n in range(items.GetNumberOfIds()):
            names.add(self.hierarchy.GetItemName(items.GetId(n)))
        free = title
        while free in names:
            free, number = f"{title} ({number})", number + 1
        return free

    def _makeFolder(self) -> int:
        # Beside the reference, so that a patient's study keeps together.
        item = self.hierarchy.GetItemByDataNode(self.reference)
        parent = self.hierarchy.GetItemParent(item) if item else self.hierarchy.GetSceneItemID()
        self.folder = self.hierarchy.CreateFolderItem(parent, self.title)
        return self.folder

    def _adopt(self, node, role: str, key: str = "") -> None:
        """Into the folder, under the reference's transform, with its role in this run."""
        self.adopted.append(node)
        node.SetAttribute(ROLE, role)
        node.SetAttribute(KEY, key)
        if node.IsA("vtkMRMLTransformableNode") and self.transformId:
            node.SetAndObserveTransformNodeID(self.transformId)
        item = self.hierarchy.GetItemByDataNode(node)
        if not item:
            item = self.hierarchy.CreateItem(self.folder, node)
        self.hierarchy.SetItemParent(item, self.folder)

    def _image(self, array: np.ndarray) -> Image:
        return Image(array, self.affine)

    def _segmentation(self) -> Steps[Any]:
        masks = []
        for label in self.result.labels:
            mask = self.result.labelmap == label.value
            yield
            turned = reorient(self._image(mask), "RAS").array
            yield
            # A label without a voxel still gets its segment.
            box = boundingBox(mask) or (slice(0, 1),) * 3
            masks.append((mask, box, maskChecksum(turned)))
            yield
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", self.title)
        self._adopt(node, "segmentation")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(self.reference)
        segmentation = node.GetSegmentation()
        binary = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
        segmentation.SetSourceRepresentationName(binary)
        colors = labelColors([label.color for label in self.result.labels])
        for label, color, made in zip(self.result.labels, colors, masks, strict=True):
            mask, box, signature = made
            segmentId = f"Segment_{label.value}"
            node.AddSegmentFromBinaryLabelmapRepresentation(
                orientedImage(self._image(mask), box), label.name,
                [channel / 255 for channel in color], segmentId,
            )  # fmt: skip
            segment = segmentation.GetSegment(segmentId)
            entry = terminology_entry(label)
            if entry:
                segment.SetTag(segment.GetTerminologyEntryTagName(), entry)
            self._tellOrigin(segment, label, signature)
        display = node.GetDisplayNode()
        display.SetOpacity2DFill(0.25)
        display.SetOpacity2DOutline(1.0)
        display.SetSliceIntersectionThickness(2)
        yield
        return node

    def _tellOrigin(self, segment, label: Label, signature: str) -> None:
        """How the segment was made, so that its threshold can move as long as nobody edits it."""
        settings = self.result.settings
        segment.SetTag(LABEL, label.name)
        segment.SetTag(THRESHOLD, repr(float(settings["thresholds"][label.name])))
        segment.SetTag(MIN_ML, repr(float(settings.get("min_lesion_ml", 0.0))))
        if label.one_piece:
            segment.SetTag(ONE_PIECE, "yes")
        segment.SetTag(SEGMENT_CHECKSUM, signature)

    def _answer(self) -> Steps[Any]:
        written = checksum(self.result.labelmap)
        yield
        name = _("{run}: model's answer (read only)").format(run=self.title)
        node = yield from self._volume("vtkMRMLLabelMapVolumeNode", name, self.result.labelmap)
        self._adopt(node, "answer")
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAndObserveColorNodeID(
            labelColorNode(self.scene, self.result.labels, self.title).GetID()
        )
        node.SetAttribute(CHECKSUM, written)
        # Modules that write into volumes offer selectable ones only.
        node.SetSelectable(0)
        yield
        return node

    def _overlay(
        self, array: np.ndarray, name: str, colors, role: str, key: str, unit: str
    ) -> Steps[Any]:
        """A volume that is clear where it is nearly 0; equal values look equal in every case."""
        array = array if array.dtype == np.float32 else array.astype(np.float32)
        node = yield from self._volume("vtkMRMLScalarVolumeNode", f"{self.title}: {name}", array)
        self._adopt(node, role, key)
        setUnit(node, unit)
        highest = highestOf(node)
        # Its own display from the start: the default one looks at all voxels for a window.
        display = self.scene.CreateNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        display.UnRegister(None)
        display.SetAndObserveColorNodeID(colors.GetID())
        display.SetAutoWindowLevel(0)
        display.SetWindowLevelMinMax(0.0, highest)
        display.SetAutoThreshold(0)
        display.SetThreshold(CLEAR_BELOW * highest, highest)
        display.SetApplyThreshold(1)
        self.scene.AddNode(display)
        node.SetAndObserveDisplayNodeID(display.GetID())
        yield
        return node

    def _volume(self, className: str, name: str, array: np.ndarray) -> Steps[Any]:
        """A volume node in the scene, added when its voxels are there."""
        data = yield from imageDataInSteps(array)
        node = self.scene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(name)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(self.affine))
        node.SetAndObserveImageData(data)
        self.scene.AddNode(node)
        return node

    def _sliceTable(self, attention):
        """Row l of the table: where slab l lies (mm along the axis) and its weights."""
        node = self.scene.AddNewNodeByClass("vtkMRMLTableNode", f"{self.title}: {attention.title}")
        self._adopt(node, "attention", attention.key)
        node.SetAttribute(AXIS, attention.axis)
        rememberPlace(node, self.segmentation, self.toLocal)
        for name, values in (
            ("center_r_mm", attention.centers_ras[:, 0]),
            ("center_a_mm", attention.centers_ras[:, 1]),
            ("center_s_mm", attention.centers_ras[:, 2]),
            *((f"weight_{n}", column) for n, column in enumerate(attention.matrix.T)),
        ):
            _addColumn(node, vtk.vtkDoubleArray(), name, [float(v) for v in values])
        return node

    def _lesionTable(self):
        name = _("{run}: lesions").format(run=self.title)
        node = self.scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        self._adopt(node, "lesions")
        lesions = self.result.lesions
        keys = list(lesions[0].inputs) if lesions else []
        rows = [lesion_row(lesion, keys) for lesion in lesions]
        for n, name in enumerate(lesion_columns(keys)):
            values = [row[n] for row in rows]
            if name == "label":
                _addColumn(node, vtk.vtkStringArray(), name, values)
            elif name == "number":
                _addColumn(node, vtk.vtkIntArray(), name, [int(v) for v in values])
            else:
                # What has no mean is not a number.
                numbers = [float(v or "nan") for v in values]
                _addColumn(node, vtk.vtkDoubleArray(), name, numbers)
        return node

    def _provenance(self):
        name = _("{run}: provenance").format(run=self.title)
        node = self.scene.AddNewNodeByClass("vtkMRMLTextNode", name)
        self._adopt(node, "provenance")
        node.SetEncoding(vtk.VTK_ENCODING_UTF_8)
        node.SetText(
            json.dumps(
                {
                    **self.result.provenance,
                    "settings": self.result.settings,
                    "timings_s": self.result.timings,
                },
                indent=2,
            )
        )
        return node


def _addColumn(node, array, name: str, values: list) -> None:
    array.SetName(name)
    for value in values:
        array.InsertNextValue(value)
    node.AddColumn(array)


def checksum(labelmap: np.ndarray) -> str:
    """SHA-256 of the voxels, by which a change of the model's answer would be seen."""
    return hashlib.sha256(np.ascontiguousarray(labelmap, dtype=np.uint8).tobytes()).hexdigest()


def rememberInputs(
    segmentation,
    inputs: Mapping[str, Any],
    frames: Mapping[str, int] | None = None,
    places: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Note which volumes a segmentation was made from; the scene's file keeps it.

    Args:
        inputs: {input key: node}.
        frames: {input key: frame that was segmented, from 0} of the 4-D ones.
        places: {input key: 4x4 from its voxels to the reference's, as the model saw them}.
    """
    segmentation.SetAttribute(INPUTS, " ".join(inputs))
    segmentation.SetAttribute(INPUT_FRAMES, json.dumps(dict(frames or {})))
    told = {key: place.tolist() for key, place in (places or {}).items()}
    segmentation.SetAttribute(INPUT_PLACES, json.dumps(told))
    for key, node in inputs.items():
        segmentation.SetNodeReferenceID(f"{INPUTS}.{key}", node.GetID())


def inputNodes(segmentation) -> dict:
    """{input key: volume node} that `rememberInputs` noted and that are still there."""
    keys = (segmentation.GetAttribute(INPUTS) or "").split()
    found = {key: segmentation.GetNodeReference(f"{INPUTS}.{key}") for key in keys}
    return {key: node for key, node in found.items() if node is not None}


def inputFrames(segmentation) -> dict[str, int]:
    """{input key: frame from 0} that `rememberInputs` noted."""
    return json.loads(segmentation.GetAttribute(INPUT_FRAMES) or "{}")


def inputPlaces(segmentation) -> dict[str, np.ndarray]:
    """{input key: 4x4 from its voxels to the reference's} that `rememberInputs` noted."""
    told = json.loads(segmentation.GetAttribute(INPUT_PLACES) or "{}")
    return {key: np.array(place) for key, place in told.items()}


def findRuns(scene) -> dict[str, dict[str, list]]:
    """The nodes of each run in the scene: {run: {role: [nodes]}}."""
    runs: dict[str, dict[str, list]] = {}
    for n in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(n)
        run, role = node.GetAttribute(RUN), node.GetAttribute(ROLE)
        if run and role:
            runs.setdefault(run, {}).setdefault(role, []).append(node)
    return runs
