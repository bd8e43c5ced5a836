"""The lesions of a run as they are now: measured, sorted, kept or dropped, exported."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from medsegcore.errors import MedSegError, SettingError
from medsegcore.files import write_file
from medsegcore.imaging import Grid, Image, without_nans
from medsegcore.inference.lesions import Lesion, longest_diameter_mm
from medsegcore.inference.result import lesion_columns, lesion_row

from .InputFrames import imageOfFrame, nodeOfFrame
from .Lattice import kjiOf, placesIn
from .Observing import Observers, onSceneClose
from .Resampling import partsOf, resamplePart
from .ResultToScene import findRuns, inputFrames, inputNodes
from .RunSegments import RunSegments
from .SceneConversion import localAffine
from .Steps import Steps, runToEnd
from .Translation import _

# Nearer than this to the middle plane (mm), a lesion is on no side.
MIDLINE_MM = 5.0
# Nearer than this part of the tissue's half extent, it is neither in front nor behind.
MIDDLE_PART = 0.15
# So many voxels are enough to find the middle.
MIDDLE_VOXELS = 1e6


@dataclass(frozen=True)
class LesionRow:
    """One lesion of the table.

    Attributes:
        lesion: its measures.
        place: side in words, seen from the middle of the imaged tissue, e.g. "left, anterior".
        kept: whether it is in the segment.
        voxels: flat indices, ascending, on the grid of the `RunSegments`.
    """

    lesion: Lesion
    place: str
    kept: bool
    voxels: np.ndarray


class LesionTable:
    """The lesions of a run's segments, also of those that the user edited.

    Args:
        segments: of the run.
        inputs: {input key: volume node} whose means are wanted, of 4-D ones of the frame that is
            shown; those that the run remembers, and their frames, when None.

    Attributes:
        tableNode: the run's table in the scene, kept in step; None when the user removed it.
        problems: {label: sentence} of those whose segment cannot be measured.
    """

    def __init__(self, segments: RunSegments, inputs: Mapping[str, Any] | None = None) -> None:
        runToEnd(self._open(segments, inputs))

    @classmethod
    def opening(
        cls, segments: RunSegments, inputs: Mapping[str, Any] | None = None
    ) -> Steps["LesionTable"]:
        """The constructor in short steps."""
        table = cls.__new__(cls)
        yield from table._open(segments, inputs)
        return table

    def _open(self, segments: RunSegments, inputs: Mapping[str, Any] | None) -> Steps[None]:
        self.segments = segments
        node = segments.segmentation
        self.inputs = dict(inputNodes(node) if inputs is None else inputs)
        self._frames = inputFrames(node) if inputs is None else {}
        self.tableNode = next(
            iter(findRuns(segments.scene).get(segments.run, {}).get("lesions", [])), None
        )
        self._measured: dict[tuple, Lesion] = {}
        self._stamps: dict[str, tuple] | None = None
        self._measuredAt = b""
        self._images: dict[str, Image] = {}
        self._rows: list[LesionRow] = []
        self.problems: dict[str, str] = {}
        self._middle: tuple[np.ndarray, np.ndarray] | None = None
        self._observers = Observers()
        yield from self.updateSteps()

    # What is there

    def update(self) -> list[LesionRow]:
        """Measure what changed, and bring the scene's table up to date; by falling volume."""
        return runToEnd(self.updateSteps())

    def updateSteps(self) -> Steps[list[LesionRow]]:
        """`update` in short steps; the rows and the scene's table change with the last one.

        Steps that are given up leave the old rows; what was measured is not measured again.
        """
        images = self._inputImages()
        yield
        self._findMiddle(images)
        rows, used = [], set()
        problems: dict[str, str] = {}
        for label in self.segments.labels:
            try:
                found = yield from self._components(label)
                dropped = self.segments.dropped(label)
            except MedSegError as error:
                # The user removed its segment, or gave it another geometry: the others are there.
                problems[label] = str(error)
                continue
            kept = [(voxels, True) for voxels in found]
            for voxels, there in kept + [(v, False) for v in dropped]:
                key = (label, voxels.size, voxels.tobytes())
                used.add(key)
                if key not in self._measured:
                    self._measured[key] = yield from self._measure(label, voxels, images)
                lesion = self._measured[key]
                rows.append(LesionRow(lesion, self._place(lesion), there, voxels))
        self._measured = {key: lesion for key, lesion in self._measured.items() if key in used}
        rows.sort(key=lambda row: -row.lesion.volume_ml)
        self._rows = [
            replace(row, lesion=replace(row.lesion, number=n)) for n, row in enumerate(rows, 1)
        ]
        self.problems = problems
        yield
        self._fillNode()
        return list(self._rows)

    def rows(
        self, sortBy: str = "volume_ml", descending: bool = True,
        minVolumeMl: float = 0.0, minProbability: float = 0.0,
    ) -> list[LesionRow]:  # fmt: skip
        """The lesions as last measured.

        Args:
            sortBy: "kept", "place", "label", or a column of `lesion_columns`.
            descending: the highest first.
            minVolumeMl: only those at or above it, ml.
            minProbability: only those whose mean probability is at or above it, 0..1.

        Raises:
            SettingError: there is no such column.
        """
        if self._rows and sortBy not in self.columns():
            raise SettingError(
                f"There is no column '{sortBy}' to sort by.", f"Columns: {self.columns()}."
            )
        shown = [
            row
            for row in self._rows
            if row.lesion.volume_ml >= minVolumeMl and row.lesion.mean_probability >= minProbability
        ]
        column = self.columns().index(sortBy) if shown else 0
        return sorted(
            shown, key=lambda row: _sortable(self._cells(row)[column]), reverse=descending
        )

    def totals(self) -> tuple[int, float]:
        """How many lesions are kept, and their volume together in ml."""
        kept = [row.lesion.volume_ml for row in self._rows if row.kept]
        return len(kept), float(sum(kept))

    def volumes(self) -> dict[str, float]:
        """ml that are kept of each label that has a segment."""
        found = {label: 0.0 for label in self.segments.labels if label not in self.problems}
        for row in self._rows:
            if row.kept:
                found[row.lesion.label] += row.lesion.volume_ml
        return found

    def columns(self) -> list[str]:
        """Names of the columns; units stand in them."""
        return [*lesion_columns(list(self.inputs)), "place", "kept"]

    def imageOf(self, node) -> Image:
        """A volume, without a copy; of a 4-D input, the frame that was segmented.

        Raises:
            MedSegError: it cannot be read.
        """
        key = next((key for key, given in self.inputs.items() if given is node), "")
        return imageOfFrame(node, self._frames.get(key), copy=False)

    # What the user does

    def setKept(self, rows: Sequence[LesionRow], kept: bool) -> None:
        """Put lesions back into the segment, or take them out: one step of undo for all."""
        self.keep(rows, kept)
        self.update()

    def keep(self, rows: Sequence[LesionRow], kept: bool) -> None:
        """`setKept` without an `update`, which is due then."""
        wanted = [row for row in rows if row.kept != kept]
        if not wanted:
            return
        self.segments.begin()
        try:
            for label in dict.fromkeys(row.lesion.label for row in wanted):
                self._keepOf(label, [r.voxels for r in wanted if r.lesion.label == label], kept)
        finally:
            self.segments.finish()

    def _keepOf(self, label: str, lesions: list[np.ndarray], kept: bool) -> None:
        records = self.segments.dropped(label)
        if kept:
            known = {voxels.tobytes() for voxels in lesions}
            records = [r for r in records if r.tobytes() not in known]
        else:
            records += lesions
        nothing = np.zeros(0, np.int64)
        if not self.segments.edited(label):
            self.segments.recut(label, dropped=records)
            if kept:
                return
            # What an edited neighbour cut off is no component of the probabilities.
            flat = self.segments.mask(label).reshape(-1)
            lesions = [voxels for voxels in lesions if flat[voxels].any()]
        if lesions:
            voxels = np.sort(np.concatenate(lesions))
            gained, lost = (voxels, nothing) if kept else (nothing, voxels)
            self.segments.change(label, gained, lost, records)

    def jumpTo(self, row: LesionRow) -> None:
        """Centre all slice views and turn the 3D views' cameras to a lesion."""
        jumpViews(self.segments.scene, row.lesion.center_ras)

    def text(self, rows: Sequence[LesionRow] | None = None) -> str:
        """Rows (all when None) as tab-separated text for the clipboard, then the totals."""
        lines = [f"{label}\t{volume:.3f} ml\n" for label, volume in self.volumes().items()]
        count = _("{count} kept").format(count=self.totals()[0])
        return self._written(rows, "\t") + f"\n{count}\n" + "".join(lines)

    def saveCsv(self, path: str | Path, rows: Sequence[LesionRow] | None = None) -> None:
        """Write rows (all when None) as CSV; the file appears as a whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(Path(path), self._written(rows, ","))

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a segment changes, until `close`; then `update` is due."""
        seen = [self.segments.fingerprint()]

        def modified(*_args) -> None:
            # Undo tells of the segment alone; so do colors, names and our own tags.
            now = self.segments.fingerprint()
            if now != seen[0]:
                seen[0] = now
                changed()

        for event in (
            slicer.vtkSegmentation.SourceRepresentationModified,
            slicer.vtkSegmentation.SegmentModified,
            slicer.vtkSegmentation.SegmentRemoved,
        ):
            self._observers.add(self.segments.segmentation, event, modified)
        self._observers.add(
            self.segments.segmentation, slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            lambda *_a: changed(),
        )  # fmt: skip
        onSceneClose(self._observers, self.segments.scene, self.close)

    def close(self) -> None:
        """Observe nothing any more; harmless when repeated."""
        self._observers.clear()

    # How it is measured

    def _components(self, label: str) -> Steps[list[np.ndarray]]:
        mask = self.segments.mask(label)
        voxels = np.flatnonzero(mask.reshape(-1))
        yield
        if voxels.size == 0:
            return []
        numbers = self.segments.components(label, voxels)
        yield
        # Sorted by number, each component's voxels in a row and ascending.
        order = np.argsort(numbers, kind="stable")
        return np.split(voxels[order], np.cumsum(np.bincount(numbers))[:-1])

    def _measure(
        self, label: str, voxels: np.ndarray, images: Mapping[str, Image]
    ) -> Steps[Lesion]:
        grid = self.segments.worldGrid
        kji = kjiOf(voxels, grid.shape)
        k, j, i = (slice(int(x.min()), int(x.max()) + 1) for x in kji)
        yield
        part = grid.crop((k, j, i))
        mask = np.zeros(part.shape, bool)
        inPart = kji[0] - k.start, kji[1] - j.start, kji[2] - i.start
        mask.reshape(-1)[placesIn(mask, inPart)] = True
        yield
        probability = self.segments.probabilities[label].reshape(-1)[voxels]
        r, a, s = (float(x) for x in grid.to_ras(np.array([x.mean() for x in kji[::-1]])))
        yield
        longest = longest_diameter_mm(kji, grid)
        yield
        means = {}
        for key, image in images.items():
            means[key] = yield from meanInside(image, part, mask)
        return Lesion(
            number=0,
            label=label,
            volume_ml=voxels.size * grid.voxel_volume_ml,
            longest_diameter_mm=longest,
            mean_probability=float(probability.mean()),
            max_probability=float(probability.max()),
            center_ras=(r, a, s),
            inputs=means,
        )

    def _inputImages(self) -> dict[str, Image]:
        """The inputs where they stand; what was measured in others does not count any more."""
        for key, node in list(self.inputs.items()):
            if node is None or node.GetScene() is None:
                del self.inputs[key]
        stamps = {key: _stampOf(n, self._frames.get(key)) for key, n in self.inputs.items()}
        # Moved together, results and inputs are the same and stand somewhere else.
        place = self.segments.worldGrid.affine.tobytes()
        if (stamps, place) != (self._stamps, self._measuredAt):
            self._measuredAt = place
            self._images = {}
            for key, node in list(self.inputs.items()):
                try:
                    self._images[key] = self.imageOf(node)
                except MedSegError:
                    # The lesions and the other inputs are there all the same.
                    del self.inputs[key]
            self._stamps = {key: stamps[key] for key in self.inputs}
            self._middle = None
            self._measured.clear()
        return self._images

    def _findMiddle(self, images: Mapping[str, Image]) -> None:
        if self._middle is None:
            grid, array = self.segments.worldGrid, None
            for image in images.values():
                # A voxel of many tells where the tissue is.
                step = max(1, round((image.array.size / MIDDLE_VOXELS) ** (1 / 3)))
                coarse = image.affine @ np.diag([step, step, step, 1])
                some = without_nans(Image(image.array[::step, ::step, ::step], coarse))
                grid, array = some.grid, some.array
                break
            self._middle = tissueMiddle(grid, array)

    def _place(self, lesion: Lesion) -> str:
        assert self._middle is not None
        return placeInWords(np.array(lesion.center_ras), *self._middle)

    # How it is written

    def _cells(self, row: LesionRow) -> list[str]:
        kept = _("yes") if row.kept else _("no")
        return [*lesion_row(row.lesion, list(self.inputs)), row.place, kept]

    def _written(self, rows: Sequence[LesionRow] | None, delimiter: str) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        writer.writerow(self.columns())
        writer.writerows(self._cells(row) for row in (self._rows if rows is None else rows))
        return text.getvalue()

    def _fillNode(self) -> None:
        node = self.tableNode
        if node is None or node.GetScene() is None:
            return
        cells = [self._cells(row) for row in self._rows]
        table = vtk.vtkTable()
        for n, name in enumerate(self.columns()):
            array: Any = vtk.vtkDoubleArray()
            if name in ("label", "place", "kept"):
                array = vtk.vtkStringArray()
            elif name == "number":
                array = vtk.vtkIntArray()
            array.SetName(name)
            for row in cells:
                text = array.IsA("vtkStringArray")
                array.InsertNextValue(
                    row[n] if text else int(row[n]) if name == "number" else float(row[n] or "nan")
                )
            table.AddColumn(array)
        node.SetAndObserveTable(table)


def meanText(mean: float | None) -> str:
    """The mean of an input as it is shown."""
    return "\N{EN DASH}" if mean is None else f"{mean:.4g}"


def _sortable(cell: str) -> tuple[float, str]:
    if not cell:
        return -np.inf, ""
    try:
        return float(cell), ""
    except ValueError:
        return 0.0, cell


def jumpViews(scene, ras: Sequence[float]) -> None:
    """Centre all slice views at a point (RAS, mm), and move the 3D cameras so that it is in the
    middle, seen from where they look now."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode", scene):
        node.JumpSliceByCentering(*ras)
    for node in slicer.util.getNodesByClass("vtkMRMLCameraNode", scene):
        shift = np.array(ras) - node.GetFocalPoint()
        node.SetPosition(*(np.array(node.GetPosition()) + shift))
        node.SetFocalPoint(*ras)


def _stampOf(node, frame: int | None) -> tuple:
    """Differs when the voxels do, or where they stand."""
    source = nodeOfFrame(node, frame)
    volume = source is not None and source.IsA("vtkMRMLVolumeNode")
    if not volume or source.GetImageData() is None:
        return (node.GetID(),)
    # The voxels may lie in a sequence, which stands nowhere.
    transform = node.GetParentTransformNode() if node.IsA("vtkMRMLVolumeNode") else None
    moved = transform.GetTransformToWorldMTime() if transform is not None else 0
    return node.GetID(), source.GetImageData().GetMTime(), localAffine(source).tobytes(), moved


def meanInside(image: Image, grid: Grid, mask: np.ndarray) -> Steps[float | None]:
    """Mean of an image where `mask` [k, j, i] on `grid` is True, as far as the image reaches.

    None where it reaches none of it.
    """
    total, count = 0.0, 0
    for box in partsOf(image, grid):
        if mask[box].any():
            values = resamplePart(image, grid.crop(box), outside=np.nan)[mask[box]]
            values = values[~np.isnan(values)]
            total, count = total + float(values.sum(dtype=np.float64)), count + values.size
        yield
    return total / count if count else None


def tissueMiddle(grid: Grid, array: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Middle (RAS, mm) and half extent along R, A, S (mm) of what is brighter than the mean."""
    middle, half = (np.array(grid.shape[::-1]) - 1) / 2, np.array(grid.shape[::-1]) / 2
    if array is not None:
        inside = array > array.mean()
        for axis in range(3):
            line = inside.sum(axis=tuple(n for n in range(3) if n != axis)).cumsum()
            if line[-1]:
                low, high = np.searchsorted(line, [0.02 * line[-1], 0.98 * line[-1]])
                middle[2 - axis], half[2 - axis] = (low + high) / 2, max((high - low) / 2, 1)
    return grid.to_ras(middle), np.abs(grid.affine[:3, :3]) @ half


def placeInWords(ras: np.ndarray, middle: np.ndarray, half: np.ndarray) -> str:
    """The side of a point as seen from the middle, in words."""
    r, a, s = ras - middle
    side = _("midline") if abs(r) < MIDLINE_MM else _("right") if r > 0 else _("left")
    words = [side]
    if abs(a) >= MIDDLE_PART * half[1]:
        words.append(_("anterior") if a > 0 else _("posterior"))
    if abs(s) >= MIDDLE_PART * half[2]:
        words.append(_("superior") if s > 0 else _("inferior"))
    return ", ".join(words)
