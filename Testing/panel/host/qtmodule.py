"""The module `qt`: every class of PySide6's essentials by PythonQt's conventions."""

import re
import shutil
import tempfile
import types
from pathlib import Path

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import dialogs
from .conversion import unwrap
from .pythonqt import (
    SPECIAL,
    Fixed,
    Hidden,
    PythonQtInstanceWrapper,
    WrapperType,
    _members,
    classFor,
    isGenerated,
    wrap,
)
from .signals import Relay, mostArguments

PARTS = (QtCore, QtGui, QtWidgets, QtUiTools)
# PySide has them; PythonQt does not, or the application has no such thing.
ABSENT = {"QThread", "QVariant", "QThreadPool", "QRunnable", "Property", "SIGNAL", "SLOT"}
# {class name: PySide class} of the stand-ins that QUiLoader makes too.
customWidgets: dict[str, type] = {}


class QtModule(types.ModuleType):
    """`qt`; classes are made when they are first asked for."""

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ABSENT:
            raise AttributeError(f"module 'qt' has no attribute '{name}'")
        if name in ("Signal", "Slot"):
            return getattr(QtCore, name)
        for part in PARTS:
            found = getattr(part, name, None)
            if isinstance(found, type):
                made = classFor(found)
                setattr(self, name, made)
                return made
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


# ---- QByteArray: PySide makes it much like bytes, PythonQt does not.


def _refuse(name: str):
    def refused(wrapper, *arguments):
        raise TypeError(f"object of type 'QByteArray' has no {name}")

    return refused


def _sameBytes(wrapper, other) -> bool:
    if isinstance(other, bytes):
        return wrapper._object.data() == other
    inner = unwrap(other)
    return isinstance(inner, QtCore.QByteArray) and wrapper._object == inner


SPECIAL["QByteArray"] = {
    "__str__": lambda wrapper: str(bytes(wrapper._object.data())),
    "__repr__": lambda wrapper: f"QByteArray({bytes(wrapper._object.data())!r})",
    "__bool__": lambda wrapper: not wrapper._object.isEmpty(),
    "__eq__": _sameBytes,
    "__hash__": lambda wrapper: hash(bytes(wrapper._object.data())),
    "__len__": Hidden("__len__"),
    "__bytes__": _refuse("__bytes__"),
    "data": Fixed(lambda wrapper: bytes(wrapper._object.data())),
}  # fmt: skip

# ---- QObject's children are found by Python's rules, timers fire into Python.


def _singleShot(milliseconds, callee) -> None:
    relay = Relay(callee, -1 if hasattr(callee, "generated") else mostArguments(callee))
    # A lambda, because PySide holds methods weakly.
    QtCore.QTimer.singleShot(int(milliseconds), lambda: relay())


SPECIAL["QTimer"] = {"singleShot": Fixed(_singleShot, static=True)}


def _startProcess(wrapper, *arguments) -> None:
    """With one text and no list, it is a command line, as in Qt 5."""
    process = wrapper.pysideObject()
    if not arguments:
        process.start()
    elif len(arguments) == 1 and isinstance(arguments[0], str):
        process.startCommand(arguments[0])
    elif isinstance(arguments[0], str) and isinstance(arguments[1], list | tuple):
        rest = [QtCore.QIODevice.OpenModeFlag(int(mode)) for mode in arguments[2:]]
        process.start(arguments[0], [str(text) for text in arguments[1]], *rest)
    else:
        raise ValueError(f"Called start with wrong arguments: {arguments!r}")


def _write(wrapper, data) -> int:
    if not isinstance(data, str | bytes) and not isinstance(unwrap(data), QtCore.QByteArray):
        raise ValueError(f"Called write with wrong arguments: ({data!r},)")
    raw = data.encode() if isinstance(data, str) else unwrap(data)
    return wrapper.pysideObject().write(QtCore.QByteArray(raw))


SPECIAL["QProcess"] = {"start": Fixed(_startProcess), "pid": Hidden("pid")}
SPECIAL["QIODevice"] = {"write": Fixed(_write)}

# ---- Dialogs.


def _exec(wrapper) -> int:
    return dialogs.runModal(wrapper.pysideObject())


SPECIAL["QDialog"] = {"exec": Fixed(_exec), "exec_": Fixed(_exec)}


def _fileDialog(name: str):
    def ask(parent=None, caption="", directory="", filters="", *rest) -> str:
        return dialogs.returned(f"QFileDialog.{name}", str(caption), str(directory))

    return Fixed(ask, static=True)


def _fileNames(parent=None, caption="", directory="", filters="", *rest) -> tuple:
    answer = dialogs.active.take("QFileDialog.getOpenFileNames", str(caption), str(directory))
    return tuple(answer or ())


SPECIAL["QFileDialog"] = {
    **{n: _fileDialog(n) for n in ("getOpenFileName", "getSaveFileName", "getExistingDirectory")},
    "getOpenFileNames": Fixed(_fileNames, static=True),
}


def _inputDialog(name: str):
    def ask(parent, title, label, *rest) -> str:
        return dialogs.returned(f"QInputDialog.{name}", str(title), str(label))

    return Fixed(ask, static=True)


SPECIAL["QInputDialog"] = {n: _inputDialog(n) for n in ("getText", "getItem")}

_ICONS = {"question": "Question", "information": "Information", "warning": "Warning",
          "critical": "Critical"}  # fmt: skip


def _messageBox(icon: str, buttons):
    def ask(parent, title, text, standardButtons=None, defaultButton=None):
        box = QtWidgets.QMessageBox(unwrap(parent))
        box.setIcon(getattr(QtWidgets.QMessageBox.Icon, icon))
        box.setWindowTitle(str(title))
        box.setText(str(text))
        kind = QtWidgets.QMessageBox.StandardButton
        box.setStandardButtons(buttons if standardButtons is None else kind(int(standardButtons)))
        if defaultButton is not None:
            box.setDefaultButton(kind(int(defaultButton)))
        return wrap(kind(dialogs.runModal(box)))

    return Fixed(ask, static=True)


_Button = QtWidgets.QMessageBox.StandardButton
SPECIAL["QMessageBox"] = {
    name: _messageBox(icon, _Button.Yes | _Button.No if icon == "Question" else _Button.Ok)
    for name, icon in _ICONS.items()
}


# ---- QSettings: typed while the process lives, what the file says after a restart.


class SettingsFiles:
    """Where settings are kept: never the user's own, and read anew from the file on `restart`."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(
            prefix="panel-settings-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._temporary.name)
        self._current: dict[str, Path] = {}
        self._count = 0

    def path(self, name: str) -> Path:
        if name not in self._current:
            self._count += 1
            self._current[name] = self.folder / f"{self._count}" / Path(name).name
            self._current[name].parent.mkdir()
            if Path(name).is_absolute() and Path(name).exists():
                shutil.copy(name, self._current[name])
        return self._current[name]

    def restart(self) -> None:
        """Forget what is typed in memory; Qt parses a file once per name, so it gets another."""
        for name, old in list(self._current.items()):
            QtCore.QSettings(str(old), QtCore.QSettings.Format.IniFormat).sync()
            del self._current[name]
            new = self.path(name)
            if old.exists():
                shutil.copy(old, new)

    def clear(self) -> None:
        """As on a machine where the application never ran."""
        self._current = {}


settingsFiles = SettingsFiles()


class QSettings(QtCore.QSettings):
    """Settings in a private file, whatever organization or file is named."""

    def __init__(self, *arguments) -> None:
        named = [a for a in arguments if isinstance(a, str)]
        path = settingsFiles.path(named[0] if named else "Slicer.ini")
        super().__init__(str(path), QtCore.QSettings.Format.IniFormat)


def _value(wrapper, key, default=None):
    settings = wrapper.pysideObject()
    return wrap(settings.value(str(key))) if settings.contains(str(key)) else default


def _setValue(wrapper, key, value) -> None:
    inner = unwrap(value)
    wrapper.pysideObject().setValue(str(key), list(inner) if isinstance(inner, tuple) else inner)


SPECIAL["QSettings"] = {"value": Fixed(_value), "setValue": Fixed(_setValue)}


# ---- QUiLoader


_POINTER = re.compile(rb"(?<=\()\s*vtk\w+\s*\*\s*(?=\)</(?:signal|slot)>)")


_SET = re.compile(rb"<(set|enum)>((?:Qt|ctk\w+|qMRML\w+)::[^<]*)</\1>")
_CUSTOM = re.compile(rb'<widget class="((?:ctk|qMRML)\w+)".*?(?=<widget |<layout |</widget>)', re.S)


def _numbers(found: re.Match) -> bytes:
    """The properties of a stand-in, with numbers for the names of enum values."""

    def number(value: re.Match) -> bytes:
        total = 0
        for name in value[2].decode().split("|"):
            scope, member = name.split("::")[0], name.split("::")[-1]
            owner = QtCore.Qt if scope == "Qt" else customWidgets[scope].pythonEnums
            flag = owner[member] if isinstance(owner, dict) else getattr(owner, member).value
            total |= flag
        return b"<number>%d</number>" % total

    standIn = customWidgets.get(found[1].decode())
    if standIn is None:
        return found[0]
    own = {name for c in standIn.__mro__ if not isGenerated(c) for name in vars(c)}
    parts = re.split(rb"(<property .*?</property>)", found[0], flags=re.S)
    for n, part in enumerate(parts):
        name = re.match(rb'<property name="(\w+)"', part)
        if name and name[1].decode() in own:
            parts[n] = _SET.sub(number, part)
    return b"".join(parts)


def _load(wrapper, device, parent=None):
    """Connections of VTK pointers in the file are those of Python objects here."""
    loader = wrapper.pysideObject()
    for cls in customWidgets.values():
        loader.registerCustomWidget(cls)
    text = _POINTER.sub(b"PyObject", bytes(unwrap(device).readAll().data()))
    text = _CUSTOM.sub(_numbers, text)
    buffer = QtCore.QBuffer()
    buffer.setData(text)
    buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
    return wrap(loader.load(buffer, unwrap(parent)))


SPECIAL["QUiLoader"] = {"load": Fixed(_load)}

qt = QtModule("qt", "Qt by PythonQt's conventions, on PySide6.")
_settingsMembers = _members(QtCore.QSettings)
_settingsMembers.update(SPECIAL["QSettings"])
qt.QSettings = WrapperType(
    "QSettings", (PythonQtInstanceWrapper,), _settingsMembers, pysideClass=QSettings
)
