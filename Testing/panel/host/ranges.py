"""Stand-ins for CTK's sliders with two handles."""

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal, Slot

HANDLE_PX = 10


class _Range(QtWidgets.QWidget):
    """A minimum and a maximum value inside bounds."""

    valuesChanged = Signal(float, float)
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._low, self._high, self._least, self._most = 0.0, 99.0, 0.0, 99.0
        self._step, self._tracking, self._symmetric = 1.0, True, False

    def _shown(self) -> None:
        self.update()

    def _setBoth(self, least: float, most: float) -> None:
        least, most = sorted(min(max(float(v), self._low), self._high) for v in (least, most))
        changed = (least != self._least, most != self._most)
        self._least, self._most = least, most
        self._shown()
        if changed[0]:
            self.minimumValueChanged.emit(least)
        if changed[1]:
            self.maximumValueChanged.emit(most)
        if any(changed):
            self.valuesChanged.emit(least, most)

    def _setBounds(self, low: float, high: float) -> None:
        self._low, self._high = float(low), max(float(low), float(high))
        self._setBoth(self._least, self._most)

    @Slot(float, float)
    def setValues(self, least, most) -> None:
        self._setBoth(least, most)

    @Slot(float, float)
    def setRange(self, low, high) -> None:
        self._setBounds(low, high)

    @Slot(float)
    def setMinimumValue(self, value) -> None:
        self._setBoth(min(float(value), self._most), self._most)

    @Slot(float)
    def setMaximumValue(self, value) -> None:
        self._setBoth(self._least, max(float(value), self._least))

    def _set(self, name: str, value) -> None:
        setattr(self, name, value)
        self._shown()

    minimum = Property(
        float, lambda self: self._low, lambda self, v: self._setBounds(v, max(v, self._high))
    )
    maximum = Property(
        float, lambda self: self._high, lambda self, v: self._setBounds(min(v, self._low), v)
    )
    minimumValue = Property(float, lambda self: self._least, setMinimumValue)
    maximumValue = Property(float, lambda self: self._most, setMaximumValue)
    singleStep = Property(float, lambda self: self._step, lambda self, v: self._set("_step", v))
    tracking = Property(
        bool, lambda self: self._tracking, lambda self, v: self._set("_tracking", v)
    )
    symmetricMoves = Property(
        bool, lambda self: self._symmetric, lambda self, v: self._set("_symmetric", v)
    )


class ctkDoubleRangeSlider(_Range):
    """Two handles on one bar; drag them with the mouse."""

    positionsChanged = Signal(float, float)

    def __init__(self, parent=None) -> None:
        if isinstance(parent, int):
            raise ValueError("ctkDoubleRangeSlider takes only a parent")
        super().__init__(parent)
        self._dragged: str | None = None
        self._orientation = 1
        self.setMinimumHeight(18)
        self.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed
        )

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(120, 20)

    def _position(self, value: float) -> int:
        span = (self._high - self._low) or 1.0
        return round(HANDLE_PX / 2 + (self.width() - HANDLE_PX) * (value - self._low) / span)

    def _value(self, x: float) -> float:
        span = (x - HANDLE_PX / 2) / max(1, self.width() - HANDLE_PX)
        value = self._low + span * (self._high - self._low)
        return self._low + round((value - self._low) / self._step) * self._step

    def mousePressEvent(self, event) -> None:
        x = event.position().x()
        near = {
            "_least": abs(x - self._position(self._least)),
            "_most": abs(x - self._position(self._most)),
        }
        self._dragged = min(near, key=near.get)
        if near["_least"] == near["_most"]:
            self._dragged = "_least" if x < self._position(self._least) else "_most"

    def mouseMoveEvent(self, event) -> None:
        if self._dragged is None:
            return
        value = min(max(self._value(event.position().x()), self._low), self._high)
        if self._dragged == "_least":
            pair = (min(value, self._most), self._most)
        else:
            pair = (self._least, max(value, self._least))
        self.positionsChanged.emit(*pair)
        self._setBoth(*pair)

    def mouseReleaseEvent(self, event) -> None:
        self._dragged = None

    def paintEvent(self, event) -> None:
        painter = QtGui.QPainter(self)
        middle, palette = self.height() // 2, self.palette()
        painter.fillRect(0, middle - 2, self.width(), 4, palette.mid())
        left, right = self._position(self._least), self._position(self._most)
        painter.fillRect(left, middle - 2, right - left, 4, palette.highlight())
        for x in (left, right):
            painter.setBrush(palette.button())
            painter.drawRect(x - HANDLE_PX // 2, middle - 8, HANDLE_PX - 1, 15)

    minimumPosition = Property(float, lambda self: self._least, _Range.setMinimumValue)
    maximumPosition = Property(float, lambda self: self._most, _Range.setMaximumValue)
    orientation = Property(
        int, lambda self: self._orientation, lambda self, v: self._set("_orientation", v)
    )


class ctkRangeWidget(_Range):
    """A range slider between two numbers."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._first, self._second = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        self._first.setObjectName("MinimumSpinBox")
        self._second.setObjectName("MaximumSpinBox")
        self._slider = ctkDoubleRangeSlider()
        self._slider.setObjectName("Slider")
        for spin in (self._first, self._second):
            spin.setKeyboardTracking(False)
        for part, stretch in ((self._first, 0), (self._slider, 1), (self._second, 0)):
            row.addWidget(part, stretch)
        self._shown()
        self._slider.valuesChanged.connect(self._setBoth)
        self._first.valueChanged.connect(lambda v: self.setMinimumValue(v))
        self._second.valueChanged.connect(lambda v: self.setMaximumValue(v))

    def _shown(self) -> None:
        parts = (self._first, self._second, self._slider)
        blockers = [QtCore.QSignalBlocker(part) for part in parts]
        for part, value in ((self._first, self._least), (self._second, self._most)):
            part.setRange(self._low, self._high)
            part.setSingleStep(self._step)
            part.setValue(value)
        self._slider._step = self._step
        self._slider._setBounds(self._low, self._high)
        self._slider._setBoth(self._least, self._most)
        for blocker in blockers:
            blocker.unblock()

    def _setDecimals(self, decimals: int) -> None:
        self._first.setDecimals(decimals)
        self._second.setDecimals(decimals)

    def _setSuffix(self, suffix: str) -> None:
        self._first.setSuffix(suffix)
        self._second.setSuffix(suffix)

    decimals = Property(int, lambda self: self._first.decimals(), _setDecimals)
    suffix = Property(str, lambda self: self._first.suffix(), _setSuffix)
