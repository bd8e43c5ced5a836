"""Which widgets the parameter node wrapper can bind to which types, and how."""

import enum
import pathlib

UNBOUNDED_INT = 2**31 - 1


class Connector:
    """Reads and writes one widget, and says when the user changed it."""

    signal = ""
    property = ""

    def __init__(self, widget, parameter) -> None:
        self.widget, self.parameter, self._listener = widget, parameter, None
        self.prepare()

    def prepare(self) -> None:
        """Set up the widget for the parameter's restrictions."""

    def read(self):
        return getattr(self.widget, self.property)

    def write(self, value) -> None:
        setattr(self.widget, self.property, value)

    def listen(self, callback) -> None:
        self._listener = lambda: callback()
        getattr(self.widget, self.signal).connect(self._listener)

    def stop(self) -> None:
        if self.widget:
            getattr(self.widget, self.signal).disconnect(self._listener)


class Check(Connector):
    signal, property = "toggled", "checked"

    def prepare(self) -> None:
        self.widget.checkable = True


class Number(Connector):
    signal, property = "valueChanged", "value"

    def prepare(self) -> None:
        from .parameternode import Decimals, Maximum, Minimum, SingleStep, WithinRange

        for kind, name in ((Decimals, "decimals"), (SingleStep, "singleStep")):
            note = self.parameter.note(kind)
            if note is not None:
                setattr(self.widget, name, note.value)
        both = self.parameter.note(WithinRange)
        low, high = both or self.parameter.note(Minimum), both or self.parameter.note(Maximum)
        isSlider = type(self.widget).__name__ in ("QSlider", "ctkSliderWidget")
        if isSlider and (low is None or high is None):
            raise RuntimeError("Cannot bind a slider to a number without bounds.")
        isInt = self.parameter.kind is int
        free = UNBOUNDED_INT if isInt else float("inf")
        self.widget.minimum = -free if low is None else low.minimum
        self.widget.maximum = free if high is None else high.maximum


class Text(Connector):
    signal, property = "textChanged", "text"


class LongText(Connector):
    signal = "textChanged"

    def read(self):
        return self.widget.toPlainText()

    def write(self, value) -> None:
        if value != self.widget.toPlainText():
            self.widget.setPlainText(value)


class PathText(Connector):
    signal = "currentPathChanged"

    def read(self):
        return self.parameter.kind(self.widget.currentPath)

    def write(self, value) -> None:
        self.widget.currentPath = str(value)


class Chosen(Connector):
    """A combo box whose items are the choices of the parameter, or the members of its enum."""

    signal = "currentIndexChanged"

    def prepare(self) -> None:
        from .parameternode import Choice

        kind = self.parameter.kind
        if self.parameter.isEnum:
            self.choices = list(kind)
            label = getattr(kind, "label", lambda member: member.name)
        else:
            choice = self.parameter.note(Choice)
            if choice is None:
                raise RuntimeError("A combo box needs the Choice annotation.")
            self.choices, label = list(choice.choices), str
        self.widget.clear()
        for choice in self.choices:
            self.widget.addItem(label(choice))

    def read(self):
        return self.choices[self.widget.currentIndex]

    def write(self, value) -> None:
        self.widget.currentIndex = self.choices.index(value)


class Node(Connector):
    signal = "currentNodeChanged"

    def prepare(self) -> None:
        self.widget.nodeTypes = self.parameter.nodeTypes

    def read(self):
        return self.widget.currentNode()

    def write(self, value) -> None:
        self.widget.setCurrentNode(value)


TABLE = {
    ("QCheckBox", bool): Check, ("QPushButton", bool): Check, ("QSlider", int): Number,
    ("QSpinBox", int): Number, ("QDoubleSpinBox", float): Number,
    ("ctkSliderWidget", float): Number, ("QLineEdit", str): Text, ("QTextEdit", str): LongText,
    ("ctkPathLineEdit", pathlib.PurePath): PathText, ("QComboBox", int): Chosen,
    ("QComboBox", float): Chosen, ("QComboBox", str): Chosen, ("QComboBox", bool): Chosen,
    ("QComboBox", enum.Enum): Chosen,
}  # fmt: skip


def connectorFor(widget, parameter) -> Connector:
    """The connector for a widget's exact class and a parameter's type.

    Raises:
        RuntimeError: the two do not go together.
    """
    name, kind = type(widget).__name__, parameter.kind
    if name == "qMRMLNodeComboBox" and parameter.nodeTypes:
        return Node(widget, parameter)
    if isinstance(kind, type):
        family = next((f for f in (enum.Enum, pathlib.PurePath) if issubclass(kind, f)), kind)
        if (name, family) in TABLE:
            return TABLE[name, family](widget, parameter)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{kind}' to widget '{name}'")
