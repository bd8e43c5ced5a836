"""Stand-ins for the widgets of CTK: buttons that fold, sliders, paths, combo boxes with checks.

Each declares as Qt properties, signals and slots what the original shows to Python. A name that the
original lacks in Python, although its base class has it, is listed under `notInPython`.
"""

import types
from pathlib import Path

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal, Slot

from .pythonqt import classFor
from .qtmodule import customWidgets, settingsFiles
from .ranges import ctkDoubleRangeSlider, ctkRangeWidget

HEADER_PX = 22


def _fold(child) -> None:
    """Hide a child; one that was hidden on purpose stays so when it is unfolded."""
    explicit = child.testAttribute(QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide)
    child.setProperty("ctkFolded", not (child.isHidden() and explicit))
    child.hide()


def _unfold(child) -> None:
    if child.property("ctkFolded"):
        child.show()


def _widgets(parent) -> list:
    return [child for child in parent.children() if isinstance(child, QtWidgets.QWidget)]


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A header that shows and hides what lies below it."""

    contentsCollapsed = Signal(bool)
    notInPython = ("setCollapsed",)

    def __init__(self, *arguments) -> None:
        texts = [a for a in arguments if isinstance(a, str)]
        super().__init__(*[a for a in arguments if not isinstance(a, str)])
        self._collapsed, self._collapsedHeight, self._flat = False, 10, False
        self.setText(texts[0] if texts else "")
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, HEADER_PX, 0, 0)
        self.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred
        )
        self.toggled.connect(lambda checked: self._collapse(not checked))

    def _collapse(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        for child in _widgets(self):
            _fold(child) if collapsed else _unfold(child)
        self.setMaximumHeight(HEADER_PX + self._collapsedHeight if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def childEvent(self, event) -> None:
        super().childEvent(event)
        if self._collapsed and event.added() and isinstance(event.child(), QtWidgets.QWidget):
            _fold(event.child())

    def hitButton(self, position) -> bool:
        return position.y() < HEADER_PX

    def sizeHint(self) -> QtCore.QSize:
        inside = self.layout().totalSizeHint() if self.layout() and not self._collapsed else None
        width = self.fontMetrics().horizontalAdvance(self.text()) + 40
        if inside is None:
            return QtCore.QSize(
                width, HEADER_PX + (self._collapsedHeight if self._collapsed else 0)
            )
        return inside.expandedTo(QtCore.QSize(width, HEADER_PX))

    def minimumSizeHint(self) -> QtCore.QSize:
        return self.sizeHint()

    def paintEvent(self, event) -> None:
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.width(), HEADER_PX - 2)
        bar = QtWidgets.QStyleOptionButton()
        bar.initFrom(self)
        bar.rect = header
        bevel = QtWidgets.QStyle.ControlElement.CE_PushButtonBevel
        self.style().drawControl(bevel, bar, painter, self)
        arrow = QtWidgets.QStyle.PrimitiveElement
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(4, 5, 11, 11)
        kind = arrow.PE_IndicatorArrowRight if self._collapsed else arrow.PE_IndicatorArrowDown
        self.style().drawPrimitive(kind, option, painter, self)
        painter.drawText(
            header.adjusted(20, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, self.text()
        )

    collapsed = Property(bool, lambda self: self._collapsed, _collapse)

    def _setCollapsedHeight(self, height: int) -> None:
        self._collapsedHeight = height

    def _setFlat(self, flat: bool) -> None:
        self._flat = flat
        self.update()

    collapsedHeight = Property(int, lambda self: self._collapsedHeight, _setCollapsedHeight)
    flat = Property(bool, lambda self: self._flat, _setFlat)


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box whose check mark folds it."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._collapsedHeight = 14
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._expand)

    def _expand(self, expanded: bool) -> None:
        for child in _widgets(self):
            _unfold(child) if expanded else _fold(child)
        # Flat: without a frame around nothing.
        self.setFlat(not expanded)
        self.setMaximumHeight(16777215 if expanded else max(self._collapsedHeight, HEADER_PX))

    def childEvent(self, event) -> None:
        super().childEvent(event)
        if event.added() and isinstance(event.child(), QtWidgets.QWidget) and not self.isChecked():
            _fold(event.child())

    def _setCollapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = Property(bool, lambda self: not self.isChecked(), _setCollapsed)


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with a number beside it; values are clamped floats."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setObjectName("Slider")
        self._spin = QtWidgets.QDoubleSpinBox()
        self._spin.setObjectName("SpinBox")
        self._spin.setKeyboardTracking(False)
        row.addWidget(self._slider, 1)
        row.addWidget(self._spin)
        self._minimum, self._maximum, self._value, self._step = 0.0, 99.0, 0.0, 1.0
        self._tracking, self._changing, self._before, self._tick = True, False, 0.0, 0.0
        self._refresh()
        self._slider.valueChanged.connect(lambda n: self._change(self._minimum + n * self._step))
        self._slider.sliderPressed.connect(self._press)
        self._slider.sliderReleased.connect(self._release)
        self._spin.valueChanged.connect(self._change)

    def _refresh(self) -> None:
        """The parts show what the whole holds, without saying so."""
        with QtCore.QSignalBlocker(self._slider), QtCore.QSignalBlocker(self._spin):
            self._slider.setRange(0, round((self._maximum - self._minimum) / self._step))
            self._slider.setValue(round((self._value - self._minimum) / self._step))
            self._slider.setPageStep(max(1, round(self._page / self._step)))
            self._spin.setRange(self._minimum, self._maximum)
            self._spin.setSingleStep(self._step)
            self._spin.setValue(self._value)

    _page = 10.0

    def _press(self) -> None:
        if not self._tracking:
            self._changing, self._before = True, self._value

    def _release(self) -> None:
        if self._changing:
            self._changing = False
            if abs(self._value - self._before) > self._step * 1e-9:
                self.valueChanged.emit(self._value)

    def _change(self, value: float) -> None:
        value = round(min(max(float(value), self._minimum), self._maximum), self._spin.decimals())
        if value == self._value:
            return
        self._value = value
        self._refresh()
        if not self._tracking:
            self.valueIsChanging.emit(value)
        if not self._changing:
            self.valueChanged.emit(value)

    def _bound(self, minimum: float, maximum: float) -> None:
        self._minimum, self._maximum = minimum, max(minimum, maximum)
        clamped = min(max(self._value, self._minimum), self._maximum)
        self._refresh()
        if clamped != self._value:
            self._change(clamped)

    def _setStep(self, step: float) -> None:
        self._step = step if step > 0 else self._step
        self._refresh()

    def _setPage(self, page: float) -> None:
        self._page = page
        self._refresh()

    def _setTracking(self, tracking: bool) -> None:
        self._tracking = tracking

    def _setTick(self, interval: float) -> None:
        self._tick = interval

    @Slot(float)
    def setValue(self, value) -> None:
        self._change(_number(value, "setValue"))

    @Slot(int)
    def setDecimals(self, decimals) -> None:
        self._spin.setDecimals(int(_number(decimals, "setDecimals")))

    @Slot(bool)
    def setSpinBoxVisible(self, visible) -> None:
        self._spin.setVisible(bool(visible))

    @Slot()
    def reset(self) -> None:
        self._change(0.0)

    value = Property(float, lambda self: self._value, _change)
    minimum = Property(
        float, lambda self: self._minimum, lambda self, v: self._bound(v, max(v, self._maximum))
    )
    maximum = Property(
        float, lambda self: self._maximum, lambda self, v: self._bound(min(v, self._minimum), v)
    )
    singleStep = Property(float, lambda self: self._step, _setStep)
    pageStep = Property(float, lambda self: self._page, _setPage)
    tracking = Property(bool, lambda self: self._tracking, _setTracking)
    tickInterval = Property(float, lambda self: self._tick, _setTick)
    decimals = Property(int, lambda self: self._spin.decimals(), setDecimals)
    prefix = Property(
        str, lambda self: self._spin.prefix(), lambda self, v: self._spin.setPrefix(v)
    )
    suffix = Property(
        str, lambda self: self._spin.suffix(), lambda self, v: self._spin.setSuffix(v)
    )
    spinBoxVisible = Property(bool, lambda self: not self._spin.isHidden(), setSpinBoxVisible)


def _number(value, name: str) -> float:
    if isinstance(value, str) or value is None:
        raise ValueError(f"Called {name}(double) -> void with wrong arguments: ({value!r},)")
    return float(value)


class ctkPathLineEdit(QtWidgets.QWidget):
    """A path with a history and a button to browse."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    pythonEnums = {
        "Dirs": 1,
        "Drives": 4,
        "Files": 2,
        "Executable": 64,
        "Readable": 16,
        "Writable": 32,
    }

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._box = QtWidgets.QComboBox()
        self._box.setObjectName("PathLineEdit")
        self._box.setEditable(True)
        self._box.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._button = QtWidgets.QToolButton()
        self._button.setObjectName("BrowseButton")
        self._button.setText("...")
        row.addWidget(self._box, 1)
        row.addWidget(self._button)
        self._valid, self._path, self._history = False, "", True
        self._filters, self._options, self._key, self._label, self._names = 2 | 16, 0, "", "", []
        self._box.editTextChanged.connect(self._changed)
        self._button.clicked.connect(self.browse)

    def _changed(self, path: str) -> None:
        if path == self._path:
            return
        self._path = path
        valid = (
            Path(path).is_dir()
            if self._filters & 1 and not self._filters & 2
            else Path(path).exists()
        )
        if (valid and path != "") != self._valid:
            self._valid = not self._valid
            self.validInputChanged.emit(self._valid)
        self.currentPathChanged.emit(path)

    @Slot(str)
    def setCurrentPath(self, path) -> None:
        self._box.setEditText(str(path))

    @Slot()
    def browse(self) -> None:
        from . import dialogs

        kind = "Select a directory to save files" if self._filters & 1 else "Open a file"
        chosen = dialogs.returned("ctkPathLineEdit.browse", self._label or kind, self._path)
        if chosen:
            self.setCurrentPath(chosen)

    @Slot()
    def addCurrentPathToHistory(self) -> None:
        if self._path and self._box.findText(self._path) < 0:
            self._box.insertItem(0, self._path)
        if self._key and self._path:
            settings = self._settings()
            known = [self._path, *[p for p in self._known(settings) if p != self._path]]
            settings.setValue(self._key, known)

    @Slot()
    def retrieveHistory(self) -> None:
        if self._key:
            known = self._known(self._settings())
            self._box.clear()
            self._box.addItems(known)
            self._box.setEditText(known[0] if known else "")

    def _settings(self):
        return QtCore.QSettings(
            str(settingsFiles.path("Slicer.ini")), QtCore.QSettings.Format.IniFormat
        )

    def _known(self, settings) -> list:
        stored = settings.value(self._key)
        return [stored] if isinstance(stored, str) else list(stored or [])

    @Slot(result=QtWidgets.QComboBox)
    def comboBox(self):
        return self._box

    def _set(self, name: str, value) -> None:
        setattr(self, name, value)

    currentPath = Property(str, lambda self: self._path, setCurrentPath)
    filters = Property(int, lambda self: self._filters, lambda self, v: self._set("_filters", v))
    options = Property(int, lambda self: self._options, lambda self, v: self._set("_options", v))
    settingKey = Property(str, lambda self: self._key, lambda self, v: self._set("_key", v))
    label = Property(str, lambda self: self._label, lambda self, v: self._set("_label", v))
    nameFilters = Property(
        "QStringList", lambda self: self._names, lambda self, v: self._set("_names", list(v))
    )
    showBrowseButton = Property(
        bool, lambda self: not self._button.isHidden(), lambda self, v: self._button.setVisible(v)
    )
    showHistoryButton = Property(
        bool, lambda self: self._history, lambda self, v: self._set("_history", v)
    )
    sizeAdjustPolicy = Property(
        int,
        lambda self: self._box.sizeAdjustPolicy().value,
        lambda self, v: self._box.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy(v)),
    )


class ctkCheckableComboBox(QtWidgets.QComboBox):
    """A combo box whose items have check marks."""

    checkedIndexesChanged = Signal()

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.setModel(QtGui.QStandardItemModel(0, 1, self))
        self.model().rowsInserted.connect(self._prepare)
        self.model().dataChanged.connect(self._checksMayHaveChanged)
        self._checks: list = []

    def _prepare(self, parent, first: int, last: int) -> None:
        for row in range(first, last + 1):
            item = self.model().item(row)
            if item is not None:
                item.setFlags(
                    QtCore.Qt.ItemFlag.ItemIsUserCheckable | QtCore.Qt.ItemFlag.ItemIsEnabled
                )
                item.setData(
                    QtCore.Qt.CheckState.Unchecked.value, QtCore.Qt.ItemDataRole.CheckStateRole
                )

    def _checksMayHaveChanged(self, *_) -> None:
        checks = [index.row() for index in self.checkedIndexes()]
        if checks != self._checks:
            self._checks = checks
            self.checkedIndexesChanged.emit()

    @Slot(result=QtCore.QAbstractItemModel)
    def checkableModel(self):
        return self.model()

    @Slot(result=list)
    def checkedIndexes(self) -> list:
        rows = range(self.model().rowCount())
        indexes = [self.model().index(row, 0) for row in rows]
        return [index for index in indexes if self.checkState(index)]

    @Slot(QtCore.QModelIndex, result=int)
    def checkState(self, index) -> int:
        state = index.data(QtCore.Qt.ItemDataRole.CheckStateRole)
        return getattr(state, "value", state) or 0

    @Slot(QtCore.QModelIndex, int)
    def setCheckState(self, index, state) -> None:
        self.model().setData(index, int(state), QtCore.Qt.ItemDataRole.CheckStateRole)

    @Slot(result=bool)
    def allChecked(self) -> bool:
        return len(self.checkedIndexes()) == self.model().rowCount()

    @Slot(result=bool)
    def noneChecked(self) -> bool:
        return not self.checkedIndexes()

    def paintEvent(self, event) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        texts = [index.data() for index in self.checkedIndexes()]
        whole = "All" if texts else "None"
        option.currentText = ", ".join(texts) if 0 < len(texts) < self.count() else whole
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box that may offer not to be shown again."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._key, self._offered = "", False

    def _setKey(self, key: str) -> None:
        self._key = key

    def _setOffered(self, offered: bool) -> None:
        self._offered = offered

    dontShowAgainSettingsKey = Property(str, lambda self: self._key, _setKey)
    dontShowAgainVisible = Property(bool, lambda self: self._offered, _setOffered)


WIDGETS = (
    ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget, ctkDoubleRangeSlider,
    ctkRangeWidget, ctkPathLineEdit, ctkCheckableComboBox, ctkMessageBox,
)  # fmt: skip


class CtkModule(types.ModuleType):
    """`ctk`: the stand-ins and nothing else."""

    def __getattr__(self, name: str):
        raise AttributeError(f"module 'ctk' has no attribute '{name}'")


ctk = CtkModule("ctk", "Stand-ins for CTK's widgets.")
for _widget in WIDGETS:
    setattr(ctk, _widget.__name__, classFor(_widget))
    customWidgets[_widget.__name__] = _widget
