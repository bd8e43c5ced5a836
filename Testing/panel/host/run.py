"""The host itself: begins and ends a life of the application, plays the user, takes pictures."""

import os
import shutil
import sys
import tempfile
import time
import types
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtTest, QtWidgets

from SlicerMedSegLib.EmbeddedCore import EmbeddedCore

from . import dialogs, parameternode, records, scripted
from .application import application
from .conversion import unwrap
from .ctkwidgets import ctk
from .mrmlwidgets import wrappers
from .packaging import packagingModule
from .pythonqt import classFor, wrap
from .qtmodule import qt, settingsFiles
from .sampledata import sampleData

_SLICER_NAMES = (
    "app", "qMRMLWidget", "qSlicerScriptedLoadableModule", "qSlicerScriptedLoadableModuleWidget",
    "selfTests",
)  # fmt: skip

# What ends a wait on a busy machine is never this, but what is waited for.
PATIENCE_S = 300.0
# Of what Qt prints, what is a mistake of the code or the .ui file.
_MISTAKES = ("Designer:", "QObject::connect", "QLayout::", "QFormBuilder", "SignalManager")


def _qtSays(kind, context, message: str) -> None:
    if message.startswith(_MISTAKES):
        records.record(message)
    elif "propagateSizeHints" not in message:
        print(message, file=sys.stderr)


class Host:
    """The application with its window, for one test; use it as a context manager.

    Args:
        panelWidth: width of the module panel in pixels.
        size: width and height of the window in pixels.

    Attributes:
        core: the EmbeddedCore with the real scene and logics.
        dialogs: `host.dialogs.expect("text in it", "label of the button")` before it opens.
        translated: every text that went through `_()`.
        errors: what was printed instead of raised: exceptions in slots and observers, connections
            that failed, dialogs that nobody expected. Not empty at the end: the test fails.
        qt, ctk: the modules that the code under test imports.
    """

    def __init__(self, panelWidth: int = 420, size: tuple[int, int] = (1280, 800)) -> None:
        self.qt, self.ctk = qt, ctk
        self.translated: set[str] = set()
        self.errors = records.recorded
        self._panelWidth, self._size = panelWidth, size
        self._modules: list[str] = []

    # -- begin and end

    def __enter__(self) -> "Host":
        records.recorded.clear()
        self.dialogs = dialogs.reset()
        settingsFiles.clear()
        self._folder = Path(tempfile.mkdtemp(prefix="panel-host-"))
        self._before = {n: getattr(slicer, n) for n in _SLICER_NAMES if hasattr(slicer, n)}
        self._path = list(sys.path)
        self._hook, sys.excepthook = sys.excepthook, self._uncaught
        QtCore.qInstallMessageHandler(_qtSays)
        self.core = EmbeddedCore()
        self._application = application()
        self._installModules()
        self._application._attach(self.core, self._folder, self._panelWidth)
        self.window = wrap(self._application._window)
        self._application._window.resize(*self._size)
        for name, module in vars(slicer.modules).items():
            title = next((t for t in self.core.logics if t.lower() == name), name)
            self._application._manager._modules[title] = module
        self.window.show()
        self.wait(0)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.quit()
        finally:
            sys.excepthook = self._hook
            QtCore.qInstallMessageHandler(None)
            self._uninstallModules()
            self.core.close()
            sys.path[:] = self._path
            shutil.rmtree(self._folder, ignore_errors=True)

    def quit(self) -> None:
        """What the application does when it is closed: leave the panel, unload the modules."""
        if self._application._window is None:
            return
        self._application._window._leave()
        for name in self._modules:
            wrap(self._application._manager).moduleAboutToBeUnloaded.emit(name)
        self._application._detach()
        self._application.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
        self._application.processEvents()

    def _uncaught(self, kind, error, trace) -> None:
        """VTK prints what an observer raises through here, and so does Qt."""
        try:
            raise error.with_traceback(trace)
        except Exception:
            records.recordException()

    def _installModules(self) -> None:
        i18n = types.ModuleType("slicer.i18n")
        i18n.tr, i18n.translate = self._translate, lambda context, text: self._translate(text)
        base = types.ModuleType("slicer.ScriptedLoadableModule")
        names = ("", "Widget", "Logic", "Test")
        base.__all__ = [f"ScriptedLoadableModule{name}" for name in names]
        for name in base.__all__:
            setattr(base, name, getattr(scripted, name))
        wrapper = types.ModuleType("slicer.parameterNodeWrapper")
        wrapper.__all__ = [exported.__name__ for exported in parameternode.EXPORTED]
        for exported in parameternode.EXPORTED:
            setattr(wrapper, exported.__name__, exported)
        self._installed = {"qt": qt, "ctk": ctk}
        self._installed["SampleData"] = sampleData()
        for module in (i18n, base, wrapper, packagingModule()):
            self._installed[module.__name__] = module
            setattr(slicer, module.__name__.split(".")[1], module)
        self._hidden = {name: sys.modules.get(name) for name in self._installed}
        sys.modules.update(self._installed)
        for name, cls in wrappers().items():
            setattr(slicer, name, cls)
        for cls in (
            scripted.qSlicerScriptedLoadableModule, scripted.qSlicerScriptedLoadableModuleWidget,
        ):  # fmt: skip
            setattr(slicer, cls.__name__, classFor(cls))
        self._application._core = self.core
        slicer.app = wrap(self._application)

    def _uninstallModules(self) -> None:
        for name in [*self._modules, *self._installed]:
            sys.modules.pop(name, None)
            if name.startswith("slicer."):
                delattr(slicer, name.split(".")[1])
        sys.modules.update({name: m for name, m in self._hidden.items() if m is not None})
        for name in (*wrappers(), *_SLICER_NAMES):
            if hasattr(slicer, name):
                delattr(slicer, name)
        for name, value in self._before.items():
            setattr(slicer, name, value)

    def _translate(self, text: str, context: str | None = None) -> str:
        self.translated.add(text)
        return text

    # -- modules

    def loadModule(self, path: str | Path):
        """Load a scripted module from its .py file; `slicer.modules.NAME` afterwards."""
        module = scripted.loadModule(path)
        self._modules.append(module._name)
        self._application._manager._modules[module._name] = module
        self._application._manager.moduleLoaded.emit(module._name)
        return wrap(module)

    def addPythonSlicer(self) -> None:
        """The interpreter that the application has beside it, for child processes."""
        python = Path(slicer.app.slicerHome) / "bin" / "PythonSlicer"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)

    def startupCompleted(self) -> None:
        """The application says that it has started."""
        wrap(self._application).startupCompleted.emit()
        self.wait(0)

    def openModule(self, path: str | Path):
        """Load a module and show its panel, which is returned: the module's own Widget object."""
        module = self.loadModule(path)
        self.startupCompleted()
        slicer.util.selectModule(module.name)
        self.wait(0)
        return getattr(slicer.modules, f"{module.name}Widget", None)

    def restartSettings(self) -> None:
        """Settings are read from their file from now on, as after a restart of the application."""
        settingsFiles.restart()

    # -- time

    def wait(self, milliseconds: int) -> None:
        """Let events run for a while."""
        end = time.monotonic() + milliseconds / 1000
        while True:
            self._application.processEvents()
            self._application.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
            if time.monotonic() >= end:
                self._wrapToolTips()
                return
            time.sleep(0.002)

    def _wrapToolTips(self) -> None:
        """The application makes paragraphs of plain tooltips once events ran."""
        for widget in self._application.allWidgets():
            tip = widget.toolTip()
            if tip and not QtGui.Qt.mightBeRichText(tip):
                widget.setToolTip(f"<p>{tip}</p>")

    def waitUntil(self, condition, seconds: float = PATIENCE_S) -> None:
        """Let events run until a function returns true.

        Raises:
            TimeoutError: it did not in time.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"Still not so after {seconds} s.")
            self.wait(5)

    # -- the user's hands

    def click(self, widget, position=None, modifiers=0) -> None:
        """A click with the left button, in the middle of the widget if not told otherwise.

        Raises:
            AssertionError: the user could not click there: it is hidden or disabled.
        """
        inner = self.reachable(widget)
        point = QtCore.QPoint(*position) if position else inner.rect().center()
        if isinstance(inner, QtWidgets.QCheckBox | QtWidgets.QRadioButton) and not position:
            point = QtCore.QPoint(8, inner.height() // 2)
        elif isinstance(inner, QtWidgets.QGroupBox) and not position:
            option = QtWidgets.QStyleOptionGroupBox()
            inner.initStyleOption(option)
            kind = QtWidgets.QStyle.ComplexControl.CC_GroupBox
            part = QtWidgets.QStyle.SubControl.SC_GroupBoxCheckBox
            point = inner.style().subControlRect(kind, option, part, inner).center()
        elif widget.className() == "ctkCollapsibleButton" and not position:
            point = QtCore.QPoint(inner.width() // 2, 8)
        QtTest.QTest.mouseClick(
            inner, QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier(modifiers), point
        )
        self.wait(0)

    def reachable(self, widget):
        """The Qt widget, scrolled into view.

        Raises:
            AssertionError: the user cannot reach it.
        """
        self.wait(0)
        inner = unwrap(widget)
        name = f"{widget.className()} '{widget.objectName}'"
        if not inner.isVisible():
            raise AssertionError(f"{name} is not visible.")
        if not inner.isEnabled():
            raise AssertionError(f"{name} is not enabled.")
        panel = self._application._window._panel
        if panel.isAncestorOf(inner):
            panel.ensureWidgetVisible(inner)
            self.wait(0)
        return inner

    def drag(self, widget, start, end, steps: int = 8) -> None:
        """Press at one point of a widget, move in steps, release; points are (x, y) in pixels."""
        inner, button = self.reachable(widget), QtCore.Qt.MouseButton.LeftButton
        QtTest.QTest.mousePress(inner, button, pos=QtCore.QPoint(*start))
        for n in range(1, steps + 1):
            x, y = (round(a + (b - a) * n / steps) for a, b in zip(start, end, strict=True))
            self._moveTo(inner, QtCore.QPoint(x, y), button)
            self.wait(0)
        QtTest.QTest.mouseRelease(inner, button, pos=QtCore.QPoint(*end))
        self.wait(0)

    def _moveTo(self, inner, point, button) -> None:
        event = QtGui.QMouseEvent(
            QtCore.QEvent.Type.MouseMove, QtCore.QPointF(point),
            QtCore.QPointF(inner.mapToGlobal(point)), QtCore.Qt.MouseButton.NoButton, button,
            QtCore.Qt.KeyboardModifier.NoModifier,
        )  # fmt: skip
        self._application.sendEvent(inner, event)

    def dragSlider(self, slider, value: float) -> None:
        """Take a slider's handle to a value; a ctkSliderWidget or a QSlider.

        The value is reached as well as a pixel allows.
        """
        inner = unwrap(slider)
        inner = (
            inner if isinstance(inner, QtWidgets.QSlider) else inner.findChild(QtWidgets.QSlider)
        )
        parts = QtWidgets.QStyle.SubControl
        option = QtWidgets.QStyleOptionSlider()
        inner.initStyleOption(option)
        style, kind = inner.style(), QtWidgets.QStyle.ComplexControl.CC_Slider
        handle = style.subControlRect(kind, option, parts.SC_SliderHandle, inner)
        groove = style.subControlRect(kind, option, parts.SC_SliderGroove, inner)
        low, high = slider.minimum, slider.maximum
        span = groove.width() - handle.width()
        end = groove.x() + handle.width() / 2 + span * (value - low) / (high - low)
        start = handle.center()
        self.drag(wrap(inner), (start.x(), start.y()), (round(end), start.y()))

    def type(self, widget, text: str) -> None:
        """Replace a field's text by typing, and press Enter."""
        inner = self.reachable(widget)
        if isinstance(inner, QtWidgets.QAbstractSpinBox | QtWidgets.QComboBox):
            inner = inner.lineEdit()
        inner.setFocus()
        inner.selectAll()
        QtTest.QTest.keyClicks(inner, text)
        QtTest.QTest.keyClick(inner, QtCore.Qt.Key.Key_Return)
        self.wait(0)

    def key(self, widget, key: int, modifiers: int = 0) -> None:
        """Press a key where the focus is put: `host.key(table, qt.Qt.Key_Down)`."""
        inner = self.reachable(widget)
        # A widget that was disabled has given the focus away; keys and shortcuts go by it.
        inner.setFocus()
        QtTest.QTest.keyClick(inner, QtCore.Qt.Key(int(key)), QtCore.Qt.KeyboardModifier(modifiers))
        self.wait(0)

    def choose(self, widget, text: str) -> None:
        """Choose an item of a combo box or node selector by its text, as from its list.

        Raises:
            AssertionError: it is not offered.
        """
        inner = self.reachable(widget)
        box = (
            inner
            if isinstance(inner, QtWidgets.QComboBox)
            else inner.findChild(QtWidgets.QComboBox)
        )
        offered = [box.itemText(n) for n in range(box.count())]
        if text not in offered:
            raise AssertionError(f"'{text}' is not offered, but {offered}.")
        box.setFocus()
        box.setCurrentIndex(offered.index(text))
        box.activated.emit(box.currentIndex())
        self.wait(0)

    def tick(self, widget, text: str) -> None:
        """Tick an item of a combo box with check marks, or take its mark away, as in its list.

        Raises:
            AssertionError: it is not offered.
        """
        box = self.reachable(widget)
        row = box.findText(text)
        if row < 0:
            offered = [box.itemText(n) for n in range(box.count())]
            raise AssertionError(f"'{text}' is not offered, but {offered}.")
        index = box.model().index(row, 0)
        state = QtCore.Qt.CheckState
        mark = state.Unchecked if box.checkState(index) else state.Checked
        box.setCheckState(index, mark.value)
        self.wait(0)

    def drop(self, widget, paths) -> bool:
        """Drop files on a widget, as from a file manager; whether it takes them."""
        inner = self.reachable(widget)
        data = QtCore.QMimeData()
        data.setUrls([QtCore.QUrl.fromLocalFile(str(path)) for path in paths])
        point, qt_ = inner.rect().center(), QtCore.Qt
        rest = (qt_.DropAction.CopyAction, data, qt_.MouseButton.LeftButton,
                qt_.KeyboardModifier.NoModifier)  # fmt: skip
        for event in (QtGui.QDragEnterEvent(point, *rest), QtGui.QDragMoveEvent(point, *rest),
                      QtGui.QDropEvent(point, *rest)):  # fmt: skip
            event.ignore()
            self._application.sendEvent(inner, event)
            if not event.isAccepted():
                return False
        self.wait(0)
        return True

    def wheel(self, widget, notches: int, position=None) -> None:
        """Turn the mouse wheel over a widget; positive is away from the user."""
        inner = self.reachable(widget)
        point = QtCore.QPointF(*position) if position else QtCore.QPointF(inner.rect().center())
        for _ in range(abs(notches)):
            event = QtGui.QWheelEvent(
                point, inner.mapToGlobal(point), QtCore.QPoint(),
                QtCore.QPoint(0, 120 if notches > 0 else -120), QtCore.Qt.MouseButton.NoButton,
                QtCore.Qt.KeyboardModifier.NoModifier, QtCore.Qt.ScrollPhase.NoScrollPhase, False,
            )  # fmt: skip
            self._application.sendEvent(inner, event)
        self.wait(0)

    # -- what the user sees

    def screenshot(self, path: str | Path, widget=None) -> Path:
        """A .png of the whole window, the slice views beside the panel, or of one widget."""
        self.wait(30)
        inner = self._application._window if widget is None else unwrap(widget)
        path = Path(path)
        if not inner.grab().save(str(path)):
            raise OSError(f"'{path}' cannot be written.")
        return path

    def check(self) -> None:
        """Fail on everything that went wrong silently.

        Raises:
            AssertionError: naming all of it.
        """
        left = [f"The dialog '{text}' did not come." for text in self.dialogs.unanswered()]
        if self.errors or left:
            raise AssertionError("\n".join([*self.errors, *left]))


os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
