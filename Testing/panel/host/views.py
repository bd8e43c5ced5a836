"""Slice views in the window: rendered by Slicer's displayable managers, painted by Qt."""

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal, Slot

from SlicerMedSegLib import SceneViews

from .ctkwidgets import ctkSliderWidget
from .nodewidgets import Observers

SLICES = {
    "Red": ("Axial", (0.95, 0.29, 0.25)),
    "Yellow": ("Sagittal", (0.93, 0.84, 0.30)),
    "Green": ("Coronal", (0.43, 0.69, 0.29)),
}
_BUTTONS = {
    QtCore.Qt.MouseButton.LeftButton: "LeftButton",
    QtCore.Qt.MouseButton.RightButton: "RightButton",
    QtCore.Qt.MouseButton.MiddleButton: "MiddleButton",
}


class NamedSlice(SceneViews.SliceView):
    """A slice view with the application's own names for its nodes."""

    def __init__(self, core, name: str, size: tuple[int, int]) -> None:
        orientation, color = SLICES[name]
        SceneViews._View.__init__(
            self, core, size, slicer.vtkMRMLSliceViewDisplayableManagerFactory,
            (
                *SceneViews.SLICE_MANAGERS, "vtkMRMLCrosshairDisplayableManager",
                "vtkMRMLMarkupsDisplayableManager",
            ),
        )  # fmt: skip
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.image = SceneViews._SliceImage(self.renderer)
        self.group.Initialize(self.factory, self.renderer)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(core.applicationLogic)
        core.applicationLogic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(core.scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        self.node.SetLayoutColor(*color)
        self.node.SetLayoutLabel(name[0])
        self.group.SetMRMLDisplayableNode(self.node)
        self.style = slicer.vtkMRMLSliceViewInteractorStyle()
        self.style.SetDisplayableManagers(self.group)
        self.style.SetInteractor(self.interactor)
        composite = self.logic.GetSliceCompositeNode()
        composite.SetInteractionFlags(
            composite.BackgroundVolumeFlag
            | composite.ForegroundVolumeFlag
            | composite.LabelVolumeFlag
        )
        self.resize(size)

    def resize(self, size: tuple[int, int]) -> None:
        self.size = size
        self.window.SetSize(*size)
        self.interactor.UpdateSize(*size)
        self.logic.ResizeSliceNode(*size)

    def picture(self):
        """uint8 [height, width, 3] of what is in the scene now."""
        self.image.show(self.logic.GetImageDataConnection())
        return self.capture()


class qMRMLSliceView(QtWidgets.QWidget):
    """Paints what the displayable managers render, and hands them mouse and wheel."""

    def __init__(self, view: NamedSlice, parent=None) -> None:
        super().__init__(parent)
        self._view, self._observers = view, Observers()
        self.setMinimumSize(80, 80)
        self.setSizePolicy(*[QtWidgets.QSizePolicy.Policy.Expanding] * 2)
        self.setMouseTracking(True)
        for target in (view.logic, view.node, view.logic.GetSliceCompositeNode()):
            self._observers.add(target, (vtk.vtkCommand.ModifiedEvent,), self._stale)
        self._observers.add(view.group, (vtk.vtkCommand.UpdateEvent,), self._stale)
        self._picture: QtGui.QImage | None = None

    def close_(self) -> None:
        self._observers.clear()
        self._view = None

    def _stale(self, *_) -> None:
        self._picture = None
        self.update()

    def resizeEvent(self, event) -> None:
        if self._view is not None:
            self._view.resize((max(1, self.width()), max(1, self.height())))
            self._stale()

    def paintEvent(self, event) -> None:
        if self._view is None:
            return
        if self._picture is None:
            array = self._view.picture()
            height, width, _ = array.shape
            kind = QtGui.QImage.Format.Format_RGB888
            self._picture = QtGui.QImage(array.data, width, height, 3 * width, kind).copy()
        QtGui.QPainter(self).drawImage(0, 0, self._picture)

    def _tell(self, event, name: str) -> None:
        """Hand an event to the displayable manager that wants it most."""
        if self._view is None:
            return
        held, position = event.modifiers(), event.position()
        x, y = round(position.x()), self.height() - 1 - round(position.y())
        data = slicer.vtkMRMLInteractionEventData()
        data.SetType(vtk.vtkCommand.GetEventIdFromString(f"{name}Event"))
        data.SetViewNode(self._view.node)
        data.SetRenderer(self._view.renderer)
        data.SetDisplayPosition([x, y])
        ras = self._view.node.GetXYToRAS().MultiplyPoint((x, y, 0, 1))
        data.SetWorldPosition(list(ras[:3]))
        keys = QtCore.Qt.KeyboardModifier
        flags = ((keys.ShiftModifier, 1), (keys.ControlModifier, 2), (keys.AltModifier, 4))
        data.SetModifiers(sum(flag for key, flag in flags if held & key))
        self._view.style.DelegateInteractionEventDataToDisplayableManagers(data)

    def mousePressEvent(self, event) -> None:
        self._tell(event, f"{_BUTTONS[event.button()]}Press")

    def mouseReleaseEvent(self, event) -> None:
        self._tell(event, f"{_BUTTONS[event.button()]}Release")

    def mouseMoveEvent(self, event) -> None:
        self._tell(event, "MouseMove")

    def wheelEvent(self, event) -> None:
        self._tell(event, f"MouseWheel{'Forward' if event.angleDelta().y() > 0 else 'Backward'}")

    @Slot()
    def scheduleRender(self) -> None:
        self._stale()

    @Slot()
    def forceRender(self) -> None:
        self._stale()
        self.repaint()

    @Slot(result=object)
    def renderWindow(self):
        return self._view.window

    @Slot(result=object)
    def interactor(self):
        return self._view.interactor

    @Slot(result=object)
    def mrmlSliceNode(self):
        return self._view.node


class qMRMLSliceControllerWidget(QtWidgets.QWidget):
    """The bar over a slice view: its name and the offset."""

    def __init__(self, view: NamedSlice, name: str, parent=None) -> None:
        super().__init__(parent)
        self._view, self._observers = view, Observers()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(2, 0, 2, 0)
        label = QtWidgets.QLabel(name[0])
        color = QtGui.QColor.fromRgbF(*SLICES[name][1]).name()
        label.setStyleSheet(f"background: {color}; padding: 1px 6px;")
        self._slider = ctkSliderWidget()
        self._slider.setObjectName("SliceOffsetSlider")
        self._slider._bound(-200.0, 200.0)
        self._slider.setDecimals(2)
        row.addWidget(label)
        row.addWidget(self._slider, 1)
        self._slider.valueChanged.connect(self._moved)
        self._observers.add(view.node, (vtk.vtkCommand.ModifiedEvent,), self._follow)

    def close_(self) -> None:
        self._observers.clear()
        self._view = None

    def _moved(self, value: float) -> None:
        if self._view is not None and abs(self._view.logic.GetSliceOffset() - value) > 1e-3:
            self._view.logic.SetSliceOffset(value)

    def _follow(self, *_) -> None:
        value = self._view.logic.GetSliceOffset()
        with QtCore.QSignalBlocker(self._slider):
            self._slider._bound(min(-200.0, value), max(200.0, value))
            self._slider.setValue(value)

    @Slot(result=QtWidgets.QWidget)
    def sliceOffsetSlider(self):
        return self._slider

    @Slot(float)
    def setSliceOffsetValue(self, offset) -> None:
        self._view.logic.SetSliceOffset(float(offset))

    @Slot()
    def fitSliceToBackground(self) -> None:
        self._view.logic.FitSliceToBackground()

    @Slot(bool)
    def setSliceVisible(self, visible) -> None:
        self._view.node.SetSliceVisible(bool(visible))

    @Slot(result=object)
    def mrmlSliceNode(self):
        return self._view.node

    @Slot(result=object)
    def sliceLogic(self):
        return self._view.logic


class qMRMLSliceWidget(QtWidgets.QWidget):
    """One slice view with its bar."""

    def __init__(self, core, name: str, parent=None) -> None:
        super().__init__(parent)
        self.setObjectName(f"qMRMLSliceWidget{name}")
        self._slice = NamedSlice(core, name, (256, 256))
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self._bar = qMRMLSliceControllerWidget(self._slice, name)
        self._shown = qMRMLSliceView(self._slice)
        column.addWidget(self._bar)
        column.addWidget(self._shown, 1)

    def close_(self) -> None:
        self._bar.close_()
        self._shown.close_()
        self._slice.close()

    @Slot(result=object)
    def sliceLogic(self):
        return self._slice.logic

    @Slot(result=object)
    def mrmlSliceNode(self):
        return self._slice.node

    @Slot(result=object)
    def mrmlSliceCompositeNode(self):
        return self._slice.logic.GetSliceCompositeNode()

    @Slot(result=QtWidgets.QWidget)
    def sliceView(self):
        return self._shown

    @Slot(result=QtWidgets.QWidget)
    def sliceController(self):
        return self._bar

    @Slot()
    def fitSliceToBackground(self) -> None:
        self._slice.logic.FitSliceToBackground()


class qSlicerLayoutManager(QtCore.QObject):
    """The three slice views, and the layout that the code asked for."""

    layoutChanged = Signal(int)

    def __init__(self, core, grid: QtWidgets.QGridLayout, parent=None) -> None:
        super().__init__(parent)
        self._core = core
        self._layout = slicer.vtkMRMLLayoutNode()
        self._layout = core.scene.AddNode(self._layout)
        self._slices = {name: qMRMLSliceWidget(core, name) for name in SLICES}
        for n, widget in enumerate(self._slices.values()):
            grid.addWidget(widget, n // 2, n % 2)

    def close_(self) -> None:
        for widget in self._slices.values():
            widget.close_()

    @Slot(result=list)
    def sliceViewNames(self) -> list:
        return list(self._slices)

    @Slot(str, result=QtWidgets.QWidget)
    def sliceWidget(self, name):
        return self._slices.get(str(name))

    @Slot(result=object)
    def mrmlSliceLogics(self):
        return self._core.applicationLogic.GetSliceLogics()

    @Slot(result=object)
    def mrmlScene(self):
        return self._core.scene

    @Slot(int)
    def setLayout(self, layout) -> None:
        if int(layout) != self._layout.GetViewArrangement():
            self._layout.SetViewArrangement(int(layout))
            self.layoutChanged.emit(int(layout))

    @Slot()
    def resetSliceViews(self) -> None:
        for widget in self._slices.values():
            widget._slice.logic.FitSliceToAll()

    @Slot(object)
    def resetThreeDViews(self, node=None) -> None:
        """There is no 3D view in the host's window."""

    layout = Property(int, lambda self: self._layout.GetViewArrangement(), setLayout)
    threeDViewCount = Property(int, lambda self: 0)
    tableViewCount = Property(int, lambda self: 0)
    plotViewCount = Property(int, lambda self: 0)
