"""Slice attention beside the views: heat map, the row of the slice in view, and its weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import MissingInputError
from medsegcore.imaging import Grid, Image

from .Colors import CLEAR_BELOW, overlayColorNode, overlayTable
from .NodeNames import AXIS, TITLE
from .Observing import Observers, onSceneClose
from .SceneConversion import fillVolumeNode, movedSince
from .Translation import _

# From a chart and its parts to the table that they show.
CHART_OF = "MedSeg.ChartOf"


class SliceAttentionView:
    """What one table of slice attention shows, following a slice view.

    Args:
        scene: MRML scene.
        tableNode: as `addResultToScene` made it, or as it was loaded.

    Attributes:
        axis: "sagittal", "coronal" or "axial".
        matrix: float64 [L, L]; row l holds the weights with which slab l gathers.
        centers: [L, 3] middle of each slab, RAS mm.
        places: [L] mm along the axis.
        row: the slab that the followed view shows.
        chart: plot chart node with the row's curve, while it is on.
        weights: volume node with the row's weights (0..1 of the largest), while it is on.

    Raises:
        MissingInputError: the table is not what a run makes.
    """

    def __init__(self, scene, tableNode) -> None:
        self.scene, self.tableNode = scene, tableNode
        table: Any = tableNode.GetTable() if tableNode is not None else None
        count = table.GetNumberOfColumns() - 3 if table is not None else 0
        if count < 1 or table.GetNumberOfRows() != count:
            raise MissingInputError(
                _("The table holds no slice attention."), _("Choose another map, or run again.")
            )
        columns = [_numbers(table.GetColumn(n)) for n in range(count + 3)]
        self.title = tableNode.GetAttribute(TITLE) or tableNode.GetName()
        self.axis = tableNode.GetAttribute(AXIS)
        moved = movedSince(tableNode)
        self.centers = np.stack(columns[:3], axis=1) @ moved[:3, :3].T + moved[:3, 3]
        self.matrix = np.stack(columns[3:], axis=1)
        span = self.centers[-1] - self.centers[0]
        length = float(np.linalg.norm(span))
        along = {"sagittal": (1, 0, 0), "coronal": (0, 1, 0), "axial": (0, 0, 1)}
        self.normal = span / length if length else np.array(along[self.axis], float)
        # So that places rise with R, A or S, as the axis says.
        letter = {"sagittal": 0, "coronal": 1, "axial": 2}[self.axis]
        self.places = self.centers @ self.normal * (1 if self.normal[letter] >= 0 else -1)
        self.row = 0
        self.sliceNode: Any = None
        self.chart: Any = None
        self.weights: Any = None
        self._made: list = []
        self._observers = Observers()
        self._changed: Callable[[], None] | None = None

    @staticmethod
    def sliceNodeFor(scene, axis: str):
        """The slice view that scrolls along an axis most nearly; None when there is no view."""
        letter = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
        nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode", scene)
        return max(nodes, key=lambda n: abs(n.GetSliceToRAS().GetElement(letter, 2)), default=None)

    def on(self, sliceNode, grid: Grid, changed: Callable[[], None] | None = None) -> None:
        """Follow a slice view: its row as a curve in `chart` and as a volume in `weights`.

        Args:
            sliceNode: the view that scrolls along the axis.
            grid: what the weights are to cover, in the world, e.g. `RunSegments.worldGrid`.
            changed: called when another row comes into view.
        """
        self.off()
        self._removeCharts()
        self.sliceNode, self._changed = sliceNode, changed
        self._makeChart()
        self._makeWeights(grid)
        self._observers.add(sliceNode, vtk.vtkCommand.ModifiedEvent, lambda *_a: self._follow())
        self._observers.add(
            self.scene, slicer.vtkMRMLScene.NodeRemovedEvent, lambda *_a: self._nodeRemoved()
        )
        onSceneClose(self._observers, self.scene, self.off)
        self.row = self._rowInView()
        self._showRow()

    def off(self) -> None:
        """Follow nothing any more and take the curve and the weights out of the scene."""
        self._observers.clear()
        made, self._made = self._made, []
        for node in reversed(made):
            if node.GetScene() is not None:
                self.scene.RemoveNode(node)
        self.sliceNode = self.chart = self.weights = self._changed = None

    def heatMap(self, pixels: int = 400) -> np.ndarray:
        """uint8 [pixels, pixels, 3]: attended slices to the right, attending ones upwards, the
        row in view between white lines."""
        count = len(self.matrix)
        at = np.arange(pixels) * count // pixels
        level = self.matrix / max(float(self.matrix.max()), 1e-12)
        picture = (overlayTable()[np.rint(level * 255).astype(int)] * 255).astype(np.uint8)
        picture = picture[at][:, at]
        inRow = np.flatnonzero(at == self.row)
        thick = max(pixels // 200, 1)
        edges = [inRow[:1] - n for n in range(1, thick + 1)]
        edges += [inRow[-1:] + n for n in range(1, thick + 1)]
        lines = np.clip(np.concatenate(edges), 0, pixels - 1)
        picture[lines] = 255
        return np.ascontiguousarray(picture[::-1])

    def cellAt(self, x: float, y: float, pixels: int = 400) -> tuple[int, int]:
        """(row, column) of the matrix under a pixel of the heat map, counted from its top left."""
        count = len(self.matrix)
        column = int(np.clip(x * count // pixels, 0, count - 1))
        row = int(np.clip((pixels - 1 - y) * count // pixels, 0, count - 1))
        return row, column

    def jumpTo(self, slab: int) -> None:
        """Scroll the followed view to a slab, e.g. the column that was clicked."""
        if self.sliceNode is not None:
            self.sliceNode.JumpSliceByOffsetting(*self.centers[slab])

    def _rowInView(self) -> int:
        matrix = self.sliceNode.GetSliceToRAS()
        point = np.array([matrix.GetElement(n, 3) for n in range(3)])
        return int(np.abs((self.centers - point) @ self.normal).argmin())

    def _follow(self) -> None:
        row = self._rowInView()
        if row != self.row:
            self.row = row
            self._showRow()
            if self._changed is not None:
                self._changed()

    def _nodeRemoved(self) -> None:
        gone = self.sliceNode is None or self.sliceNode.GetScene() is None
        if gone or self.tableNode.GetScene() is None:
            self.off()

    def _removeCharts(self) -> None:
        """Those that a loaded scene brought: they follow no view any more."""
        for className in ("Table", "PlotChart", "PlotSeries"):
            for node in list(slicer.util.getNodesByClass(f"vtkMRML{className}Node", self.scene)):
                if node.GetNodeReference(CHART_OF) is self.tableNode:
                    self.scene.RemoveNode(node)

    def _add(self, className: str, name: str):
        node = self.scene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(name)
        node.SetHideFromEditors(1)
        self.scene.AddNode(node)
        self._made.append(node)
        return node

    def _addToChart(self, className: str, name: str):
        node = self._add(className, name)
        node.SetNodeReferenceID(CHART_OF, self.tableNode.GetID())
        return node

    def _makeChart(self) -> None:
        self._curve = self._addToChart("vtkMRMLTableNode", f"{self.title}: row")
        self._mark = self._addToChart("vtkMRMLTableNode", f"{self.title}: place")
        self.chart = self._addToChart("vtkMRMLPlotChartNode", self.title)
        self.chart.SetHideFromEditors(0)
        self.chart.SetTitle(self.title)
        letter = {"sagittal": "R", "coronal": "A", "axial": "S"}[self.axis]
        self.chart.SetXAxisTitle(_("Slices attended to, {axis} [mm]").format(axis=letter))
        self.chart.SetYAxisTitle(_("Weight (sum 1)"))
        self.chart.SetLegendVisibility(0)
        for table, name, color in (
            (self._curve, _("weight"), (0.0, 0.45, 0.70)),
            (self._mark, _("slice in view"), (0.84, 0.37, 0.0)),
        ):
            series = self._addToChart("vtkMRMLPlotSeriesNode", name)
            series.SetAndObserveTableNodeID(table.GetID())
            series.SetXColumnName("place_mm")
            series.SetYColumnName("weight")
            series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
            series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
            series.SetColor(*color)
            self.chart.AddAndObservePlotSeriesNodeID(series.GetID())

    def _makeWeights(self, grid: Grid) -> None:
        """A volume of 2 x 2 x L voxels that covers the grid: cheap to fill at each scroll."""
        half = np.diff(self.places[:2]).item() / 2 if len(self.places) > 1 else 0.5
        step = 2 * abs(half)
        across = np.linalg.svd(self.normal[None])[2][1:]
        corners = grid.corners()
        affine = np.eye(4)
        origin = self.centers[0].copy()
        for n, direction in enumerate(across):
            reach = (corners - self.centers[0]) @ direction
            affine[:3, n] = direction * max(float(np.ptp(reach)), 1e-3) / 2
            origin += direction * (reach.min() + np.ptp(reach) / 4)
        affine[:3, 2] = self.normal * step
        affine[:3, 3] = origin
        self.weights = self._add(
            "vtkMRMLScalarVolumeNode", _("{title}: weights").format(title=self.title)
        )
        self.weights.SetAttribute(TITLE, self.title)
        # Made again when the map is chosen again.
        self.weights.SetSaveWithScene(0)
        zeros = np.zeros((len(self.matrix), 2, 2), np.float32)
        fillVolumeNode(self.weights, Image(zeros, affine))
        self.weights.CreateDefaultDisplayNodes()
        display = self.weights.GetDisplayNode()
        display.SetSaveWithScene(0)
        self._made.append(display)
        display.SetAndObserveColorNodeID(overlayColorNode(self.scene).GetID())
        display.SetAutoWindowLevel(0)
        display.SetWindowLevelMinMax(0.0, 1.0)
        display.SetAutoThreshold(0)
        display.SetThreshold(CLEAR_BELOW, 1.0)
        display.SetApplyThreshold(1)

    def _showRow(self) -> None:
        weights = self.matrix[self.row]
        highest = max(float(weights.max()), 1e-12)
        order = np.argsort(self.places)
        _fill(self._curve, self.places[order], weights[order])
        _fill(self._mark, np.repeat(self.places[self.row], 2), np.array([0.0, highest]))
        array = slicer.util.arrayFromVolume(self.weights)
        array[:] = (weights / highest)[:, None, None]
        slicer.util.arrayFromVolumeModified(self.weights)


def _numbers(column) -> np.ndarray:
    """A table's column as float64; text when the table was read from a file."""
    if column.IsA("vtkStringArray"):
        return np.array([float(column.GetValue(n)) for n in range(column.GetNumberOfValues())])
    return vtk_to_numpy(column).astype(float)


def _fill(node, places: np.ndarray, weights: np.ndarray) -> None:
    table = vtk.vtkTable()
    for name, values in (("place_mm", places), ("weight", weights)):
        array = vtk.vtkDoubleArray()
        array.SetName(name)
        for value in values:
            array.InsertNextValue(float(value))
        table.AddColumn(array)
    node.SetAndObserveTable(table)
