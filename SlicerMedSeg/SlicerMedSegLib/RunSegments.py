"""The editable segments of a run: what made them, whether a user edited them, and their undo.

Each segment carries tags that say how it came about: its label, threshold, smallest lesion, the
lesions that were dropped, and a checksum of the voxels as they were last written here. The tags
are saved with the segmentation, and Slicer's undo puts them back together with the voxels.
"""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import slicer

from medsegcore.errors import EditedSegmentError, MissingInputError, SettingError
from medsegcore.imaging import Grid, Image
from medsegcore.imaging.resample import reoriented_view

from .Lattice import (
    AxisMap,
    boundingBox,
    imageAffine,
    isEmpty,
    kjiOf,
    makeRoom,
    maskOnGrid,
    placesIn,
)
from .Lattice import voxels as imageVoxels
from .NodeNames import KEY
from .Observing import Observers, onSceneClose
from .ResultToScene import findRuns
from .SceneConversion import localAffine, parentToWorld
from .SegmentRule import (
    LOWEST,
    VOXELS_A_STEP,
    LabelRule,
    maskChecksum,
    packVoxels,
    unpackVoxels,
    winners,
    winnersOfAll,
)
from .SegmentTags import CHECKSUM, DROPPED, LABEL, LEFT, MIN_ML, ONE_PIECE, THRESHOLD, readTag
from .Steps import Steps, copyInSteps, runToEnd
from .Translation import _

_BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
_SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()


class RunSegments:
    """The segments of one run on the grid of its probabilities, whose axes run as RAS.

    Args:
        scene: MRML scene.
        run: as `findRuns` names it.
        saveState: called before a change that is to be undone in one step, e.g. the segment
            editor widget's `saveStateForUndo`; a history of its own when None.

    Attributes:
        segmentation: the node that the user edits.
        grid: of every array here, in the segmentation's local RAS.
        labels: names of the labels that have a segment, in its order.
        probabilities: float32 [k, j, i] by label.
        history: vtkSegmentationHistory, None when `saveState` was given.

    Raises:
        MissingInputError: the run, its segmentation or its probabilities are not in the scene.
    """

    def __init__(self, scene, run: str, saveState: Callable[[], object] | None = None) -> None:
        runToEnd(self._open(scene, run, saveState))

    @classmethod
    def opening(
        cls, scene, run: str, saveState: Callable[[], object] | None = None
    ) -> Steps["RunSegments"]:
        """The constructor in short steps."""
        segments = cls.__new__(cls)
        try:
            yield from segments._open(scene, run, saveState)
        except BaseException:
            # Steps that are given up leave nothing that observes the scene.
            segments.close()
            raise
        return segments

    def _open(self, scene, run: str, saveState: Callable[[], object] | None) -> Steps[None]:
        self._observers, self.history = Observers(), None
        nodes = findRuns(scene).get(run, {})
        if not nodes.get("segmentation") or not nodes.get("probability"):
            raise MissingInputError(
                _("The scene has no segmentation with probabilities of '{run}'.").format(run=run),
                _("Run the model again."),
            )
        self.scene, self.run = scene, run
        self.segmentation = nodes["segmentation"][0]
        yield from self._readProbabilities(nodes["probability"])
        self.labels = [name for name in self._segmentIds() if name in self.probabilities]
        if saveState is None:
            self.history = slicer.vtkSegmentationHistory()
            self.history.SetMaximumNumberOfStates(20)
            self.history.SetSegmentation(self.segmentation.GetSegmentation())
        self._saveState = saveState
        self._rules = {}
        for name in self.labels:
            threshold = self._tag(name, THRESHOLD, 0.5)
            self._rules[name] = yield from LabelRule.making(self.probabilities[name], threshold)
        self._owner: np.ndarray | None = None
        self._stamps: dict[str, tuple] = {}
        self._masks: dict[str, np.ndarray | None] = {}
        self._edited: dict[str, bool] = {}
        self._checksums: dict[str, str] = {}
        self._others: dict[str, tuple] = {}
        self._inStep = False
        self._hadSurface = False
        onSceneClose(self._observers, scene, self.close)
        yield
        self._sync()
        yield
        # So that the first move of a slider need not.
        yield from self._rebuilding()

    def close(self) -> None:
        """Let go of the scene; harmless when repeated."""
        self._observers.clear()
        if self.history is not None:
            self.history.SetSegmentation(None)
        self._stamps, self._masks = {}, {}

    def _readProbabilities(self, nodes: list) -> Steps[None]:
        self.probabilities: dict[str, np.ndarray] = {}
        for node in nodes:
            turned = reoriented_view(Image(slicer.util.arrayFromVolume(node), localAffine(node)))
            copy = np.empty(turned.shape, np.float32)
            yield from copyInSteps(copy, turned.array)
            self.probabilities[node.GetAttribute(KEY)] = copy
            self.grid = turned.grid

    @property
    def worldGrid(self) -> Grid:
        """`grid` where it stands in the world now.

        Raises:
            GeometryError: the segmentation is under a transform that is not linear.
        """
        return Grid(self.grid.shape, parentToWorld(self.segmentation) @ self.grid.affine)

    # What the tags say

    def _segmentIds(self) -> dict[str, str]:
        """{label: segment ID} of the segments that a run made and that are still there."""
        segmentation = self.segmentation.GetSegmentation()
        found: dict[str, str] = {}
        for n in range(segmentation.GetNumberOfSegments()):
            label = readTag(segmentation.GetNthSegment(n), LABEL)
            if label:
                found.setdefault(label, segmentation.GetNthSegmentID(n))
        return found

    def segmentId(self, label: str) -> str:
        """ID of a label's segment.

        Raises:
            MissingInputError: the user removed it.
        """
        found = self._segmentIds().get(label)
        if found is None or self.segmentation.GetScene() is None:
            raise MissingInputError(
                _("There is no segment of '{label}' any more.").format(label=label),
                _("Take that back with Undo in Segment Editor, or run the model again."),
            )
        return found

    def _segment(self, label: str):
        return self.segmentation.GetSegmentation().GetSegment(self.segmentId(label))

    def _tag(self, label: str, name: str, default: float) -> float:
        text = readTag(self._segment(label), name)
        return float(text) if text else default

    def threshold(self, label: str) -> float:
        """The threshold at which a label's segment was cut last."""
        return self._tag(label, THRESHOLD, 0.5)

    def minLesionMl(self, label: str) -> float:
        """Components below this volume (ml) are left out of a label's segment."""
        return self._tag(label, MIN_ML, 0.0)

    def dropped(self, label: str) -> list[np.ndarray]:
        """The voxels (flat indices on the grid, ascending) of each lesion that was dropped."""
        return unpackVoxels(readTag(self._segment(label), DROPPED))

    def color(self, label: str) -> tuple[float, float, float]:
        """RGB of a label's segment, 0..1."""
        return self._segment(label).GetColor()

    def edited(self, label: str) -> bool:
        """Whether somebody else changed the voxels of a label's segment since it was cut."""
        self._sync()
        self.segmentId(label)
        return self._edited[label]

    def mask(self, label: str) -> np.ndarray:
        """bool [k, j, i] on the grid: the label's segment as it is now; not to be written to.

        Raises:
            EditedSegmentError: it has another geometry than the run's volumes.
        """
        self._sync()
        self.segmentId(label)
        mask = self._masks[label]
        if mask is None:
            raise EditedSegmentError(
                _("The segment of '{label}' has another geometry than the probabilities.").format(
                    label=label
                ),
                _("Take that back with Undo in Segment Editor, or run the model again."),
            )
        return mask

    def components(self, label: str, voxels: np.ndarray) -> np.ndarray:
        """Number, from 0, of the connected component of each of these voxels (flat, ascending)."""
        return self._rules[label].components(voxels)

    def fingerprint(self) -> tuple:
        """Differs whenever the voxels of a label's segment, or what was dropped, do."""
        found = []
        for label, segmentId in self._segmentIds().items():
            segment = self.segmentation.GetSegmentation().GetSegment(segmentId)
            image = segment.GetRepresentation(_BINARY)
            # A scene that closes takes the voxels away before the segment.
            stamp = (image.GetAddressAsString(""), image.GetMTime()) if image else None
            found.append((label, stamp, readTag(segment, DROPPED)))
        return tuple(found)

    def _sync(self) -> None:
        """Read the segments that changed since; undo, edits and other panels do that."""
        changed = False
        for label, segmentId in self._segmentIds().items():
            if label not in self._rules:
                continue
            segment = self.segmentation.GetSegmentation().GetSegment(segmentId)
            image = segment.GetRepresentation(_BINARY)
            written = readTag(segment, CHECKSUM)
            if image is None:
                # Turned into surfaces alone: nothing that a threshold could move.
                self._masks[label], self._edited[label] = None, True
                self._checksums[label] = ""
                self._stamps.pop(label, None)
                changed = True
                continue
            stamp = (image.GetAddressAsString(""), image.GetMTime(), written)
            if self._stamps.get(label) == stamp:
                continue
            mask = maskOnGrid(image, segment.GetLabelValue(), self.grid)
            self._checksums[label] = maskChecksum(mask) if mask is not None else ""
            edited = self._checksums[label] != written
            # A neighbour on the same layer changes the image, not the segment.
            known = self._stamps.get(label, (None, None, None))[2] == written
            changed |= edited or not known or self._edited[label]
            self._masks[label], self._edited[label] = mask, edited
            self._stamps[label] = stamp
        if changed:
            self._owner = None

    def _rebuild(self) -> np.ndarray:
        """Which label each voxel goes to, and the components that stay, from the tags alone."""
        if self._owner is None:
            runToEnd(self._rebuilding())
        assert self._owner is not None
        return self._owner

    def _rebuilding(self) -> Steps[None]:
        # Without a segment of the run there is nothing that a threshold could move.
        if self._owner is None and self.labels:
            present = [name for name in self.labels if name in self._segmentIds()]
            for name in present:
                self._rules[name].threshold = self.threshold(name)
                self._setKept(name, self.dropped(name))
            owner = yield from winnersOfAll([self._rules[name] for name in self.labels])
            for n, name in enumerate(self.labels):
                self._rules[name].leftOut = self._rules[name].filter(owner, n + 1)
                yield
            self._owner = owner

    def _setKept(self, label: str, dropped: list[np.ndarray]) -> None:
        onePiece = bool(readTag(self._segment(label), ONE_PIECE))
        volume = self.grid.voxel_volume_ml
        self._rules[label].setKept(self.minLesionMl(label), volume, onePiece, dropped)

    # Changes

    def begin(self) -> None:
        """The changes until `finish` are undone as one step."""
        if self._inStep:
            return
        if self._saveState is not None:
            self._saveState()
        elif self.history is not None:
            if not self.history.IsRestorePreviousStateAvailable():
                # What is there before the first step is what undo comes back to.
                self._leave()
            self.history.SaveState()
        self._inStep = True
        # Each change would make the surface anew, which takes longer than a frame may.
        segmentation = self.segmentation.GetSegmentation()
        self._hadSurface = segmentation.ContainsRepresentation(_SURFACE)
        if self._hadSurface:
            segmentation.RemoveRepresentation(_SURFACE)

    def finish(self) -> None:
        """End of the step that `begin` started; the surface in 3D follows now."""
        if self._inStep and self._hadSurface:
            self.segmentation.GetSegmentation().CreateRepresentation(_SURFACE)
        if self._inStep and self.history is not None:
            self._leave()
        self._inStep = self._hadSurface = False

    def undo(self) -> None:
        """Take back the last step of `history`; harmless when there is none.

        Raises:
            EditedSegmentError: segments were edited by hand since, which would be lost.
        """
        if self.history is None or not self.history.IsRestorePreviousStateAvailable():
            return
        if self.editedSinceStep():
            raise EditedSegmentError(
                _("A segment was edited by hand since, and undo would lose that."),
                _("Take the edits back with Undo in Segment Editor first."),
            )
        step = self._left()
        with self._looksKept():
            self.history.RestorePreviousState()
            # Segment Editor's own undo leaves the state behind in which the step was edited by
            # hand.
            while self._left() == step and self.history.IsRestorePreviousStateAvailable():
                self.history.RestorePreviousState()

    def redo(self) -> None:
        """Do again what was undone; an edit by hand has made the history forget it."""
        if self.history is not None and self.history.IsRestoreNextStateAvailable():
            with self._looksKept():
                self.history.RestoreNextState()

    @contextlib.contextmanager
    def _looksKept(self) -> Iterator[None]:
        """Names, colors and terminology are no part of our steps, but of the history's states:
        they stay as the user has them. Where that changes one, the history forgets its redo."""
        segmentation = self.segmentation.GetSegmentation()
        before = {n: _looks(segmentation.GetSegment(n)) for n in segmentation.GetSegmentIDs()}
        yield
        for segmentId, looks in before.items():
            segment = segmentation.GetSegment(segmentId)
            if segment is None or _looks(segment) == looks:
                continue
            name, color, terminology = looks
            segment.SetName(name)
            segment.SetColor(*color)
            if terminology:
                segment.SetTag(segment.GetTerminologyEntryTagName(), terminology)

    def editedSinceStep(self) -> bool:
        """Whether somebody else changed the voxels of any segment since the last step here.

        That is told by the segments' own tags, so that it holds also for the states of `history`:
        going back further may lose edits, too.
        """
        return self._left().partition(" ")[2] != self._signature()

    def _left(self) -> str:
        ids = list(self._segmentIds().values())
        return readTag(self.segmentation.GetSegmentation().GetSegment(ids[0]), LEFT) if ids else ""

    def _leave(self) -> None:
        ids = list(self._segmentIds().values())
        if ids:
            segment = self.segmentation.GetSegmentation().GetSegment(ids[0])
            segment.SetTag(LEFT, f"{uuid.uuid4().hex} {self._signature()}")

    def _signature(self) -> str:
        """Of the voxels of all segments, the user's own included."""
        self._sync()
        labels = {segmentId: label for label, segmentId in self._segmentIds().items()}
        found = []
        for segmentId in sorted(self.segmentation.GetSegmentation().GetSegmentIDs()):
            known = self._checksums.get(labels.get(segmentId, ""))
            found.append((segmentId, self._otherChecksum(segmentId) if known is None else known))
        return hashlib.sha256(repr(found).encode()).hexdigest()

    def _otherChecksum(self, segmentId: str) -> str:
        """Of a segment that no label has, on whatever grid it is."""
        segment = self.segmentation.GetSegmentation().GetSegment(segmentId)
        image = segment.GetRepresentation(_BINARY)
        if image is None or isEmpty(image):
            return ""
        stamp = (image.GetAddressAsString(""), image.GetMTime())
        if self._others.get(segmentId, (None, ""))[0] != stamp:
            mask = imageVoxels(image) == segment.GetLabelValue()
            box = boundingBox(mask)
            place = imageAffine(image).round(4).tolist(), image.GetExtent()[::2]
            told = ""
            if box is not None:
                first = [s.start + n for s, n in zip(box, place[1][::-1], strict=True)]
                told = f"{place[0]} {first} {maskChecksum(mask[box])}"
            self._others[segmentId] = (stamp, told)
        return self._others[segmentId][1]

    def checkCut(self, label: str, threshold: float | None = None) -> None:
        """Raise what `recut` would."""
        if threshold is not None and not LOWEST <= threshold <= 1:
            raise SettingError(
                _("The threshold of '{label}' is {threshold:g}.").format(
                    label=label, threshold=threshold
                ),
                _("Give a value from {lowest} to 1.").format(lowest=LOWEST),
            )
        if self.edited(label):
            raise EditedSegmentError(
                _("The segment of '{label}' was edited by hand and stays as it is.").format(
                    label=label
                ),
                _("Take the edits back with Undo in Segment Editor, or run the model again."),
            )

    def recut(self, label: str, threshold: float | None = None, dropped: list | None = None) -> int:
        """Cut a label at another threshold, or with other lesions dropped.

        Neighbours give and take only what lies between both cuts, and never when they were
        edited.

        Returns:
            How many voxels of the label's segment changed.

        Raises:
            EditedSegmentError: the user edited the segment since; it stays as it is.
            SettingError: the threshold is below what can be cut, or above 1.
        """
        self.checkCut(label, threshold)
        owner = self._rebuild()
        rule = self._rules[label]
        voxels = rule.move(rule.threshold if threshold is None else threshold)
        before = owner.reshape(-1)[voxels]
        after = winners([self._rules[name] for name in self.labels], voxels)
        owner.reshape(-1)[voxels] = after
        if dropped is not None:
            self._setKept(label, dropped)
        changes = {}
        for n, name in enumerate(self.labels):
            lost = voxels[(before == n + 1) & (after != n + 1)]
            gained = voxels[(after == n + 1) & (before != n + 1)]
            if name == label or lost.size or gained.size:
                changes[name] = self._rules[name].refilter(owner, n + 1, lost, gained)
        changes = {name: both for name, both in changes.items() if not self._edited.get(name, True)}
        none = np.zeros(0, np.int64)
        # Losses first: segments that share a layer would be parted when they met.
        count = sum(
            self._write(name, none, lost) * (name == label) for name, (lost, _g) in changes.items()
        )
        count += sum(
            self._write(name, gained, none) * (name == label)
            for name, (_l, gained) in changes.items()
        )
        segment = self._segment(label)
        segment.SetTag(THRESHOLD, repr(float(rule.threshold)))
        if dropped is not None:
            segment.SetTag(DROPPED, packVoxels(dropped))
        return count

    def change(self, label: str, gained: np.ndarray, lost: np.ndarray, dropped: list) -> None:
        """Add and remove voxels of a segment that the user edited; it stays an edited one."""
        self.mask(label)
        self._write(label, gained, lost, sign=False)
        self._segment(label).SetTag(DROPPED, packVoxels(dropped))

    def _write(self, label: str, gained: np.ndarray, lost: np.ndarray, sign: bool = True) -> int:
        """Change these voxels (flat indices) in the scene's segment."""
        mask = self._masks[label]
        assert mask is not None
        flat = mask.reshape(-1)
        others = [m for name, m in self._masks.items() if name != label and self._edited[name]]
        for other in others:
            if other is not None:
                gained = gained[~other.reshape(-1)[gained]]
        gained, lost = gained[~flat[gained]], lost[flat[lost]]
        if not gained.size and not lost.size:
            return 0
        segmentId = self.segmentId(label)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        if gained.size and not self._paint(label, gained, True):
            self._modify(segmentId, gained, logic.MODE_MERGE_MASK, 1)
        if lost.size and not self._paint(label, lost, False):
            self._modify(segmentId, lost, logic.MODE_MERGE_MIN, 0)
        flat[gained], flat[lost] = True, False
        segment = self._segment(label)
        self._checksums[label] = maskChecksum(mask)
        if sign:
            segment.SetTag(CHECKSUM, self._checksums[label])
        image = segment.GetRepresentation(_BINARY)
        self._stamps[label] = (
            image.GetAddressAsString(""), image.GetMTime(), readTag(segment, CHECKSUM)
        )  # fmt: skip
        return gained.size + lost.size

    def _paint(self, label: str, voxels: np.ndarray, value: bool) -> bool:
        """Set the voxels where they lie; False when that would touch another segment's."""
        segment = self._segment(label)
        image = segment.GetRepresentation(_BINARY)
        axes = None if isEmpty(image) else AxisMap.between(imageAffine(image), self.grid)
        if axes is None:
            return False
        # In parts: new memory costs more than what is reckoned in it.
        parts = [
            kjiOf(voxels[first : first + VOXELS_A_STEP], self.grid.shape)
            for first in range(0, voxels.size, VOXELS_A_STEP)
        ]
        low = np.min([[x.min() for x in kji] for kji in parts], axis=0)
        high = np.max([[x.max() for x in kji] for kji in parts], axis=0) + 1
        onGrid, start = axes.toGrid(imageVoxels(image), image.GetExtent())
        if (low < start[::-1]).any() or (high > start[::-1] + onGrid.shape).any():
            makeRoom(image, axes, self.grid, low, high)
            onGrid, start = axes.toGrid(imageVoxels(image), image.GetExtent())
        flat = imageVoxels(image).reshape(-1)
        places = [placesIn(onGrid, (k - start[2], j - start[1], i - start[0])) for k, j, i in parts]
        old, new = (0, segment.GetLabelValue()) if value else (segment.GetLabelValue(), 0)
        if any((flat[at] != old).any() for at in places):
            return False
        for at in places:
            flat[at] = new
        image.GetPointData().GetScalars().Modified()
        image.Modified()
        return True

    def _modify(self, segmentId: str, voxels: np.ndarray, mode: int, value: int) -> None:
        """Set the voxels in the region around them, as the segment editor's effects do."""
        k, j, i = kjiOf(voxels, self.grid.shape)
        low = np.array([x.min() for x in (k, j, i)])
        shape = [x.max() + 1 for x in (k, j, i)] - low
        image = self.segmentation.GetSegmentation().GetSegment(segmentId).GetRepresentation(_BINARY)
        axes = None if isEmpty(image) else AxisMap.between(imageAffine(image), self.grid)
        if axes is None:
            axes = AxisMap.between(self.grid.affine, self.grid)
        assert axes is not None
        modifier, region = axes.newImage(low[::-1], shape, np.dtype(np.uint8))
        region[:] = 1 - value
        at = placesIn(region, (k - low[0], j - low[1], i - low[2]))
        imageVoxels(modifier).reshape(-1)[at] = value
        # Taking away needs no layer of its own: the others' voxels stay as they are.
        others = () if value else tuple(self.segmentation.GetSegmentation().GetSegmentIDs())
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(
            modifier, self.segmentation, segmentId, mode, modifier.GetExtent(), False, others
        )


def _looks(segment) -> tuple[str, tuple[float, ...], str]:
    """Name, color and terminology of a segment."""
    tag = segment.GetTerminologyEntryTagName()
    return segment.GetName(), tuple(segment.GetColor()), readTag(segment, tag)
