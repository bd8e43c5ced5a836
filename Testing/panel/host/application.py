"""Stand-ins for `slicer.app`, its main window and its module manager."""

import os
import sys
from pathlib import Path

from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property, Signal, Slot

from .qtmodule import QSettings
from .records import record
from .views import qSlicerLayoutManager


class qSlicerModuleFactoryManager(QtCore.QObject):
    """Knows the names of the modules that are loaded."""

    def __init__(self, manager) -> None:
        super().__init__(manager)
        self._manager = manager

    @Slot(result=list)
    def loadedModuleNames(self) -> list:
        return sorted(self._manager._modules)

    @Slot(str, result=bool)
    def isLoaded(self, name) -> bool:
        return str(name) in self._manager._modules


class qSlicerModuleManager(QtCore.QObject):
    """The loaded modules by name."""

    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._modules: dict = {}
        self._factory = qSlicerModuleFactoryManager(self)

    @Slot(str, result=object)
    def module(self, name):
        return self._modules.get(str(name))

    @Slot(result=list)
    def modulesNames(self) -> list:
        return sorted(self._modules)

    @Slot(result=QtCore.QObject)
    def factoryManager(self):
        return self._factory


class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):
    """Chooses the module whose panel is shown."""

    moduleSelected = Signal(str)

    def __init__(self, window) -> None:
        super().__init__(window)
        self._window, self._selected = window, ""

    @Slot(str)
    def selectModule(self, name) -> None:
        name = str(name)
        if not self._window._manager.module(name):
            record(f"qSlicerModuleSelectorToolBar::selectModule: no module named {name}")
            return
        if name != self._selected:
            self._selected = name
            self._window._show(name)
            self.moduleSelected.emit(name)

    selectedModule = Property(str, lambda self: self._selected)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The panel on the left, the slice views on the right."""

    def __init__(self, core, manager: qSlicerModuleManager, panelWidth: int) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer")
        self._manager, self._entered = manager, None
        self._selector = qSlicerModuleSelectorToolBar(self)
        both = QtWidgets.QWidget()
        row = QtWidgets.QHBoxLayout(both)
        row.setContentsMargins(0, 0, 0, 0)
        self._panel = QtWidgets.QScrollArea()
        self._panel.setObjectName("ModulePanelScrollArea")
        self._panel.setWidgetResizable(True)
        self._panel.setFixedWidth(panelWidth)
        row.addWidget(self._panel)
        views = QtWidgets.QWidget()
        views.setStyleSheet("background: #303030; color: #e0e0e0;")
        grid = QtWidgets.QGridLayout(views)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        row.addWidget(views, 1)
        self.setCentralWidget(both)
        self._layouts = qSlicerLayoutManager(core, grid, self)

    def _show(self, name: str) -> None:
        """Leave the panel that is shown and enter another."""
        module = self._manager.module(name)
        widget = getattr(module, "pysideObject", lambda: module)()
        widget = widget._representation() if hasattr(widget, "_representation") else None
        self._leave()
        if widget is None:
            return
        if self._panel.widget() is not None:
            self._panel.takeWidget().hide()
        self._panel.setWidget(widget)
        widget.show()
        self._entered = widget
        widget.enter()

    def _leave(self) -> None:
        if self._entered is not None:
            entered, self._entered = self._entered, None
            entered.exit()

    @Slot(result=QtWidgets.QWidget)
    def moduleSelector(self):
        return self._selector

    @Slot(result=QtWidgets.QWidget)
    def modulePanel(self):
        return self._panel


class qSlicerApplication(QtWidgets.QApplication):
    """`slicer.app`."""

    startupCompleted = Signal()

    def __init__(self, arguments=()) -> None:
        super().__init__(list(arguments))
        self.setApplicationName("Slicer")
        self.setApplicationVersion("5.13.0-host")
        self._core = self._window = self._manager = None
        self._home = self._temporary = ""

    def _attach(self, core, folder: Path, panelWidth: int) -> None:
        """Begin a new life of the application around a scene."""
        self._core = core
        self._home, self._temporary = str(folder / "Slicer"), str(folder / "tmp")
        for path in (self._home, self._temporary):
            Path(path).mkdir(parents=True, exist_ok=True)
        self._manager = qSlicerModuleManager()
        self._window = qSlicerMainWindow(core, self._manager, panelWidth)

    def _detach(self) -> None:
        self._window._layouts.close_()
        self._window.close()
        self._window.deleteLater()
        self._core = self._window = self._manager = None

    @Slot(result=QtCore.QObject)
    def layoutManager(self):
        return None if self._window is None else self._window._layouts

    @Slot(result=QtCore.QObject)
    def moduleManager(self):
        return self._manager

    @Slot(result=object)
    def applicationLogic(self):
        return self._core.applicationLogic

    @Slot(result=object)
    def mrmlApplicationLogic(self):
        return self._core.applicationLogic

    @Slot(result=object)
    def mrmlScene(self):
        return self._core.scene

    @Slot(result=bool)
    def testingEnabled(self) -> bool:
        return False

    @Slot(result=QtCore.QObject)
    def userSettings(self):
        return QSettings()

    @Slot(result=QtCore.QObject)
    def revisionUserSettings(self):
        return QSettings("Slicer-31053.ini")

    @Slot(result=QtCore.QObject)
    def settings(self):
        return QSettings()

    @Slot(result=object)
    def startupEnvironment(self):
        environment = QtCore.QProcessEnvironment()
        for key, value in os.environ.items():
            environment.insert(key, value)
        return environment

    @Slot()
    def pauseRender(self) -> None:
        self._core.applicationLogic.PauseRender()

    @Slot()
    def resumeRender(self) -> None:
        self._core.applicationLogic.ResumeRender()

    @Slot(bool)
    def setRenderPaused(self, paused) -> None:
        self.pauseRender() if paused else self.resumeRender()

    @Slot(result=object)
    def pythonConsole(self):
        return None

    @Slot()
    def restart(self) -> None:
        record("slicer.app.restart() was called: the application would end here.")

    slicerHome = Property(str, lambda self: self._home)
    temporaryPath = Property(str, lambda self: self._temporary)
    majorVersion = Property(int, lambda self: 5)
    minorVersion = Property(int, lambda self: 13)
    revision = Property(str, lambda self: "31053")
    repositoryRevision = Property(str, lambda self: "31053")
    platform = Property(str, lambda self: f"{sys.platform}-amd64")
    os = Property(str, lambda self: {"darwin": "macosx", "win32": "win"}.get(sys.platform, "linux"))


def application() -> qSlicerApplication:
    """The one QApplication of this process."""
    existing = QtWidgets.QApplication.instance()
    if existing is None:
        return qSlicerApplication()
    if not isinstance(existing, qSlicerApplication):
        raise RuntimeError("Another QApplication runs in this process already.")
    return existing
