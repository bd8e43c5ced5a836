"""A run and its corrected segments as a case to train on, in a data set of its own form."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer

import medsegcore
from medsegcore.corrections import CorrectedCase, SavedCase, saving_case
from medsegcore.errors import (
    GeometryError,
    MissingInputError,
    OtherModelError,
    SegmentsError,
    SettingError,
)
from medsegcore.imaging import Grid, Image
from medsegcore.imaging.resample import reoriented_view
from medsegcore.models import ModelDescription, ModelStore
from medsegcore.rawdata import CaseOrigin, ModelUsed

from .InputFrames import framesOf, imageOfFrame
from .Lattice import AxisMap, isEmpty
from .Lattice import voxels as imageVoxels
from .NodeNames import INPUTS, RUN, TRAINING_RUN, TRAINING_SUBJECT
from .ResultToScene import ResultNodes, findRuns, inputFrames, inputNodes, inputPlaces
from .RunSegments import RunSegments
from .SceneConversion import localAffine
from .Steps import Steps, copyInSteps, runToEnd
from .Translation import _

_BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
# More than the rounding of a scene's file.
MOVED_VOXELS = 0.1


@dataclass(frozen=True)
class SavedTrainingCase:
    """What was saved.

    Attributes:
        case: its id in the data set, e.g. "case_003".
        folder: of the data set.
        replaced: whether it took the place of what was saved of the same run before.
        message: a sentence for the user.
    """

    case: str
    folder: Path
    replaced: bool
    message: str


class TrainingCase:
    """A run as it is at this moment; later changes of its segments do not reach it.

    Args:
        segments: of the run.
        model: id or folder of the model that answered; as the run's provenance has it when None.

    Raises:
        MissingInputError: an input, the segment of a label, the segmentation or the provenance is
            gone.
        SegmentsError: a segment is none of the model's, or two overlap, or the scene has two
            results of that name.
        EditedSegmentError: a segment has another geometry.
        GeometryError: the reference was moved away from the segmentation, or an input from it.
        ModelError: the model is not there, or not the one that answered.
    """

    def __init__(self, segments: RunSegments, model: str | None = None) -> None:
        self.segmentation = segments.segmentation
        nodes = findRuns(segments.scene).get(segments.run, {})
        _checkOne(nodes, segments)
        told = _provenanceOf(nodes.get("provenance", []), segments.run)
        first = told["model"]
        self.description = ModelStore().find(first["id"] if model is None else model).description
        _checkModel(self.description, segments, first)
        given = _inputsOf(self.segmentation, told, self.description)
        frames = inputFrames(self.segmentation)
        self.images = {k: imageOfFrame(n, frames.get(k), copy=False) for k, n in given.items()}
        key = self.description.reference_of(given)
        assert key is not None
        self._subjectNode = _subjectNode(given[key])
        self.labels, counts = _labelsOf(segments, self.description)
        self._axes = _axesBetween(segments.worldGrid, self.images[key].grid)
        self._grid = self.images[key].grid
        _checkPlaces(self.images, inputPlaces(self.segmentation), self._grid, self.description)
        self.volumes = {n: c * self._grid.voxel_volume_ml for n, c in counts.items()}
        self._answer = next(iter(nodes.get("answer", [])), None)
        self.origin = CaseOrigin(
            run=_randomId(self.segmentation, TRAINING_RUN),
            subject=_randomId(self._subjectNode, TRAINING_SUBJECT),
            models=[ModelUsed(**m) for m in told.get("models") or [first]],
            medseg=medsegcore.__version__, changed=None,
            edited=[name for name in counts if segments.edited(name)],
            thresholds={name: segments.threshold(name) for name in counts},
            region=told.get("settings", {}).get("region") is not None,
        )  # fmt: skip

    def saving(self, folder: str | Path) -> Steps[SavedTrainingCase]:
        """Write it in short steps; nothing is left of steps that fail or are given up.

        Raises:
            DatasetError: the folder holds something else; nothing is written.
            OutputError: it cannot be written.
        """
        folder = Path(folder).expanduser()
        images = {}
        for key, image in self.images.items():
            # Writing takes seconds, in which the user may go on to another frame.
            copy = np.empty_like(image.array)
            yield from copyInSteps(copy, image.array)
            images[key] = image.with_array(copy)
        changed = yield from self._changed()
        onGrid, _start = self._axes.toGrid(self.labels, _extent(self.labels))
        origin = self.origin.model_copy(update={"changed": changed})
        case = CorrectedCase(images, Image(onGrid, self._grid.affine), origin)
        saved = yield from saving_case(case, self.description, folder)
        self.segmentation.SetAttribute(TRAINING_RUN, origin.run)
        if not self._subjectNode.GetAttribute(TRAINING_SUBJECT):
            self._subjectNode.SetAttribute(TRAINING_SUBJECT, saved.subject)
        return SavedTrainingCase(saved.id, folder, saved.replaced, self._message(saved, folder))

    def _changed(self) -> Steps[bool | None]:
        """Whether the mask is another than the model's answer; None when that is gone."""
        if self._answer is None or self._answer.GetImageData() is None:
            return None
        image = Image(slicer.util.arrayFromVolume(self._answer), localAffine(self._answer))
        answer = reoriented_view(image).array
        if answer.shape != self.labels.shape:
            return None
        for own, models in zip(self.labels, answer, strict=True):
            if not np.array_equal(own, models):
                return True
            yield
        return False

    def _message(self, saved: SavedCase, folder: Path) -> str:
        parts = [
            _("{label} {volume:.2f} ml").format(label=label, volume=volume)
            if volume else _("no {label}").format(label=label)
            for label, volume in self.volumes.items()
        ]  # fmt: skip
        text = _("Saved as {case} in {folder} ({count} images, mask: {mask}).")
        if saved.replaced:
            text = _(
                "Saved again as {case} in {folder}, in place of what was there of this result "
                "({count} images, mask: {mask})."
            )
        told = text.format(
            case=saved.id, folder=folder.name, count=len(self.images), mask=", ".join(parts)
        )
        if self.origin.region:
            told += " " + _("The model saw a box alone: check the mask outside of it.")
        return told


def saveTrainingCase(
    scene, run: str | ResultNodes, folder: str | Path, model: str | None = None
) -> SavedTrainingCase:
    """Save a run of the scene at once, for scripts.

    Args:
        run: its nodes, one of the list when each frame was segmented, or as `findRuns` names it.
        model: as for `TrainingCase`.

    Raises:
        MedSegError: see `TrainingCase` and its `saving`; the folder is untouched.
    """
    if isinstance(run, list):
        raise SettingError(
            _("{count} results were given, one for each frame.").format(count=len(run)),
            _("Save them one by one."),
        )
    name = run if isinstance(run, str) else run.segmentation.GetAttribute(RUN)
    segments = RunSegments(scene, name)
    try:
        if not isinstance(run, str):
            # Never that of another result which took the name of one that is gone.
            segments.segmentation = run.segmentation
        case = TrainingCase(segments, model)
    finally:
        segments.close()
    return runToEnd(case.saving(folder))


def _checkOne(nodes: Mapping[str, list], segments: RunSegments) -> None:
    """The run's nodes are of one run: which of two masks belongs to which answer is not known."""
    if any(len(nodes.get(role, [])) > 1 for role in ("segmentation", "answer", "provenance")):
        raise SegmentsError(
            _("The scene has two results called '{run}', or a copy of a part of one.").format(
                run=segments.run
            ),
            _("Delete the one that is not to be saved with its folder, or the copied node."),
        )
    if segments.segmentation not in nodes.get("segmentation", []):
        raise MissingInputError(
            _("The segmentation of '{run}' is not in the scene any more.").format(run=segments.run),
            _("Choose a result that is there, or run the model again."),
        )


def _provenanceOf(nodes: list, run: str) -> dict[str, Any]:
    """What the run's text says of its model."""
    try:
        told = json.loads(nodes[0].GetText())
        ModelUsed(**told["model"])
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise MissingInputError(
            _("The scene does not say any more which model answered in '{run}'.").format(run=run),
            _("Run the model again."),
        ) from error
    return told


def _checkModel(
    description: ModelDescription, segments: RunSegments, wanted: Mapping[str, str]
) -> None:
    labels = {label.name for label in description.labels}
    keys = {spec.key for spec in description.inputs}
    given = (segments.segmentation.GetAttribute(INPUTS) or "").split()
    if {*segments.probabilities} <= labels and {*given} <= keys:
        return
    raise OtherModelError(
        _("The result is of '{model}' {version}, but the model that is here has other inputs or "
          "labels.").format(model=wanted["id"], version=wanted["version"]),
        _("Add that version of the model, or run the one that is here."),
    )  # fmt: skip


def _inputsOf(segmentation, told: Mapping[str, Any], description: ModelDescription) -> dict:
    """{input key: node} of all that the run looked at."""
    there = inputNodes(segmentation)
    noted = (segmentation.GetAttribute(INPUTS) or "").split()
    used = [s.key for s in description.inputs if s.key in noted or s.key in told.get("inputs", {})]
    lost = [description.input(key).title for key in used if key not in there]
    if lost or not used:
        raise MissingInputError(
            _("The volume of the input '{title}' is not in the scene any more.").format(
                title=lost[0] if lost else description.inputs[0].title
            ),
            _("Run the model again on the volumes that are there."),
        )
    return {key: there[key] for key in used}


def _labelsOf(
    segments: RunSegments, description: ModelDescription
) -> tuple[np.ndarray, dict[str, int]]:
    """uint8 [k, j, i] on the grid of the segments, and how many voxels each label has."""
    _checkOwn(segments, description)
    found = np.zeros(segments.grid.shape, np.uint8)
    counts = {}
    for label in description.labels:
        if label.name not in segments.labels:
            raise MissingInputError(
                _("The scene has no probabilities of '{label}' any more.").format(label=label.name),
                _("Run the model again."),
            )
        mask = segments.mask(label.name)
        counts[label.name] = int(np.count_nonzero(mask))
        np.maximum(found, mask.view(np.uint8) * np.uint8(label.value), out=found)
    doubled = sum(counts.values()) - int(np.count_nonzero(found))
    if doubled:
        volume = doubled * segments.grid.voxel_volume_ml
        raise SegmentsError(
            _("Segments overlap in {volume:.2f} ml: a voxel can have one label alone.").format(
                volume=volume
            ),
            _("Take one away there in Segment Editor, e.g. with Logical operators > Subtract."),
        )
    return found, counts


def _checkOwn(segments: RunSegments, description: ModelDescription) -> None:
    """Every label has its segment, and no other segment has voxels, which would be lost."""
    own = {segments.segmentId(label.name) for label in description.labels}
    segmentation = segments.segmentation.GetSegmentation()
    others = [
        segmentation.GetSegment(segmentId).GetName()
        for segmentId in segmentation.GetSegmentIDs()
        if segmentId not in own and _hasVoxels(segmentation.GetSegment(segmentId))
    ]
    if others:
        labels = ", ".join(label.name for label in description.labels)
        raise SegmentsError(
            _("The segment '{name}' is none of the model's labels ({labels}).").format(
                name="', '".join(others), labels=labels
            ),
            _("Add it to a segment of the model with Logical operators > Add, or delete it."),
        )


def _hasVoxels(segment) -> bool:
    image = segment.GetRepresentation(_BINARY)
    if image is None:
        # A surface alone.
        return True
    return not isEmpty(image) and bool((imageVoxels(image) == segment.GetLabelValue()).any())


def _axesBetween(grid: Grid, reference: Grid) -> AxisMap:
    """How the segments' voxels become the reference's own, one for one."""
    axes = AxisMap.between(grid.affine, reference)
    if axes is not None:
        empty = np.broadcast_to(np.uint8(0), grid.shape)
        turned, start = axes.toGrid(empty, _extent(empty))
        if turned.shape == reference.shape and not start.any():
            return axes
    raise GeometryError(
        _("The reference volume does not lie on the segmentation's grid any more."),
        _("Put both under the same transform, or run the model again."),
    )


def _checkPlaces(
    images: Mapping[str, Image],
    places: Mapping[str, np.ndarray],
    reference: Grid,
    description: ModelDescription,
) -> None:
    """Every image stands to the reference as it did when the model saw them together."""
    for key, image in images.items():
        if key not in places:
            # Of a scene that was saved before this was noted.
            continue
        k, j, i = (n - 1 for n in image.shape)
        corners = np.array([(x, y, z, 1) for x in (0, i) for y in (0, j) for z in (0, k)])
        moved = (image.affine - reference.affine @ places[key]) @ corners.T
        if np.linalg.norm(moved[:3], axis=0).max() > MOVED_VOXELS * min(image.grid.spacing):
            raise GeometryError(
                _("'{title}' has moved against the reference since the run.").format(
                    title=description.input(key).title
                ),
                _("Move it back, or run the model again."),
            )


def _extent(array: np.ndarray) -> tuple[int, ...]:
    k, j, i = array.shape
    return 0, i - 1, 0, j - 1, 0, k - 1


def _subjectNode(node):
    """What stands for the patient: the frames of a sequence are of one."""
    frames = framesOf(node)
    return node if frames is None or frames.sequence is None else frames.sequence


def _randomId(node, name: str) -> str:
    return node.GetAttribute(name) or uuid.uuid4().hex
