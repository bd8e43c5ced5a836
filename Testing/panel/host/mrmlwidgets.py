"""Stand-ins for Slicer's other widgets that show nodes: a scene holder, segments, tables."""

import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal, Slot

from .nodewidgets import (
    Observers,
    checkedNode,
    qMRMLCheckableNodeComboBox,
    qMRMLColorTableComboBox,
    qMRMLNodeComboBox,
)
from .pythonqt import classFor
from .qtmodule import customWidgets


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that has a scene and hands it on by its signal."""

    mrmlSceneChanged = Signal(object)
    vtkSignals = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._scene = None

    @Slot(object)
    def setMRMLScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)

    @Slot(result=object)
    def mrmlScene(self):
        return self._scene


class qMRMLSegmentSelectorWidget(QtWidgets.QWidget):
    """Chooses a segmentation and one of its segments."""

    currentNodeChanged = Signal(object)
    currentSegmentChanged = Signal(str)
    vtkSignals = ("currentNodeChanged(vtkMRMLNode*)",)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._nodes = qMRMLNodeComboBox()
        self._nodes._types, self._nodes._none = ["vtkMRMLSegmentationNode"], True
        self._nodes._add = self._nodes._remove = False
        self._segments = QtWidgets.QComboBox()
        row.addWidget(self._nodes)
        row.addWidget(self._segments)
        self._none, self._segment, self._observers = False, "", Observers()
        self._nodes.currentNodeChanged[object].connect(self._nodeChanged)
        self._segments.currentIndexChanged.connect(self._chosen)

    def _nodeChanged(self, node) -> None:
        self._observers.clear()
        if node is not None:
            segmentation = node.GetSegmentation()
            kinds = ("SegmentAdded", "SegmentRemoved", "SegmentModified")
            events = [getattr(segmentation, kind) for kind in kinds]
            self._observers.add(segmentation, events, self._refresh)
        self._refresh()
        self.currentNodeChanged.emit(node)

    def _refresh(self, *_) -> None:
        node = self._nodes.currentNode()
        segmentation = None if node is None else node.GetSegmentation()
        ids = [] if segmentation is None else list(segmentation.GetSegmentIDs())
        with QtCore.QSignalBlocker(self._segments):
            self._segments.clear()
            if self._none:
                self._segments.addItem("None", "")
            for segmentId in ids:
                self._segments.addItem(segmentation.GetSegment(segmentId).GetName(), segmentId)
            index = self._segments.findData(self._segment)
            self._segments.setCurrentIndex(index if index >= 0 else min(0, len(ids) - 1))
        self._chosen()

    def _chosen(self, *_) -> None:
        segment = self._segments.currentData() or ""
        if segment != self._segment:
            self._segment = segment
            self.currentSegmentChanged.emit(segment)

    @Slot(object)
    def setMRMLScene(self, scene) -> None:
        self._nodes.setMRMLScene(scene)

    @Slot(result=object)
    def mrmlScene(self):
        return self._nodes.mrmlScene()

    @Slot(result=object)
    def currentNode(self):
        return self._nodes.currentNode()

    @Slot(object)
    def setCurrentNode(self, node) -> None:
        self._nodes.setCurrentNode(checkedNode(node, "setCurrentNode"))

    @Slot(str)
    def setCurrentNodeID(self, nodeId) -> None:
        self._nodes.setCurrentNodeID(nodeId)

    @Slot(result=str)
    def currentNodeID(self) -> str:
        return self._nodes._id()

    @Slot(result=str)
    def currentSegmentID(self) -> str:
        return self._segment

    @Slot(str)
    def setCurrentSegmentID(self, segmentId) -> None:
        index = self._segments.findData(str(segmentId))
        self._segments.setCurrentIndex(index)
        self._chosen()

    def _setNone(self, none: bool) -> None:
        self._none = none
        self._refresh()

    noneEnabled = Property(bool, lambda self: self._none, _setNone)
    segmentationNodeSelectorVisible = Property(
        bool, lambda self: not self._nodes.isHidden(), lambda self, v: self._nodes.setVisible(v)
    )


class _TableModel(QtCore.QAbstractTableModel):
    """A vtkTable as Qt's model."""

    def __init__(self, parent) -> None:
        super().__init__(parent)
        self.node = None
        self.observers = Observers()

    def show(self, node) -> None:
        self.observers.clear()
        self.node = node
        if node is not None:
            self.observers.add(node, (vtk.vtkCommand.ModifiedEvent,), self._reset)
        self._reset()

    def _reset(self, *_) -> None:
        self.beginResetModel()
        self.endResetModel()

    def _table(self):
        return None if self.node is None else self.node.GetTable()

    def rowCount(self, parent=QtCore.QModelIndex()) -> int:  # noqa: B008
        return 0 if self._table() is None or parent.isValid() else self._table().GetNumberOfRows()

    def columnCount(self, parent=QtCore.QModelIndex()) -> int:  # noqa: B008
        return (
            0 if self._table() is None or parent.isValid() else self._table().GetNumberOfColumns()
        )

    def data(self, index, role=QtCore.Qt.ItemDataRole.DisplayRole):
        kinds = QtCore.Qt.ItemDataRole
        if self._table() is None or role not in (kinds.DisplayRole, kinds.EditRole):
            return None
        value = self._table().GetValue(index.row(), index.column())
        return value.ToString() if value.IsValid() else ""

    def headerData(self, section, orientation, role=QtCore.Qt.ItemDataRole.DisplayRole):
        if role != QtCore.Qt.ItemDataRole.DisplayRole or self._table() is None:
            return None
        if orientation == QtCore.Qt.Orientation.Horizontal:
            return self._table().GetColumnName(section)
        return str(section + 1)

    def flags(self, index):
        flags = super().flags(index)
        locked = self.node is None or self.node.GetLocked()
        return flags if locked else flags | QtCore.Qt.ItemFlag.ItemIsEditable

    def setData(self, index, value, role=QtCore.Qt.ItemDataRole.EditRole) -> bool:
        self._table().SetValueByName(
            index.row(), self._table().GetColumnName(index.column()), vtk.vtkVariant(str(value))
        )
        self.node.Modified()
        return True


class qMRMLTableView(QtWidgets.QTableView):
    """Shows a table node and follows it."""

    mrmlSceneChanged = Signal(object)
    vtkSignals = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._scene = None
        self.setModel(_TableModel(self))

    @Slot(object)
    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    @Slot(result=object)
    def mrmlScene(self):
        return self._scene

    @Slot(object)
    def setMRMLTableNode(self, node) -> None:
        self.model().show(checkedNode(node, "setMRMLTableNode", "vtkMRMLTableNode"))

    @Slot(result=object)
    def mrmlTableNode(self):
        return self.model().node

    @Slot()
    def copySelection(self) -> None:
        chosen = sorted((i.row(), i.column()) for i in self.selectionModel().selectedIndexes())
        rows: dict[int, list[str]] = {}
        for row, column in chosen:
            rows.setdefault(row, []).append(str(self.model().index(row, column).data()))
        text = "\n".join("\t".join(cells) for cells in rows.values())
        QtGui.QGuiApplication.clipboard().setText(text)


WIDGETS = (
    qMRMLWidget, qMRMLNodeComboBox, qMRMLColorTableComboBox, qMRMLCheckableNodeComboBox,
    qMRMLSegmentSelectorWidget, qMRMLTableView,
)  # fmt: skip
for _widget in WIDGETS:
    customWidgets[_widget.__name__] = _widget


def wrappers() -> dict[str, type]:
    """What `slicer` gets: its widget classes by name."""
    return {widget.__name__: classFor(widget) for widget in WIDGETS}
