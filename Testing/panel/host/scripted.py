"""Stand-ins for Slicer's scripted modules: base classes, module objects, panels and their life."""

import importlib.util
import sys
import unittest
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal, Slot

from .pythonqt import wrap
from .qtmodule import qt
from .records import recordException


def _resource(path: str, name: str) -> str:
    return str(Path(path).parent / "Resources" / name)


class ScriptedLoadableModule:
    """Base of a module's own class."""

    def __init__(self, parent) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.helpText, parent.acknowledgementText = "", "", ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        for suffix in (".svg", ".png"):
            icon = Path(_resource(parent.path, f"Icons/{self.moduleName}{suffix}"))
            if icon.is_file():
                parent.icon = qt.QIcon(str(icon))
                break
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        return _resource(self.parent.path, filename)

    def getDefaultModuleDocumentationLink(self, docPage=None) -> str:
        return ""

    def runTest(self, msec=100, **kwargs) -> None:
        case = getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")()
        case.messageDelay = msec
        case.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """Base of a module's panel."""

    def __init__(self, parent=None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue(
            "Developer/DeveloperMode", False, converter=slicer.util.toBool
        )
        self.parent = slicer.qMRMLWidget() if parent is None else parent
        if parent is None:
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect(
            "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
        )

    def resourcePath(self, filename: str) -> str:
        return _resource(slicer.util.modulePath(self.moduleName), filename)

    def setup(self) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect(
                "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
            )

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    """Base of a module's logic."""

    def __init__(self, parent=None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getAllParameterNodes(self) -> list:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def getParameterNode(self):
        if not self.isSingletonParameterNode:
            found = self.getAllParameterNodes()
            return found[0] if found else slicer.mrmlScene.AddNode(self.createParameterNode())
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            return slicer.mrmlScene.AddNode(self.createParameterNode())
        # A scene that is closed keeps the node and clears its attributes.
        if node.GetAttribute("ModuleName") != self.moduleName:
            node.SetAttribute("ModuleName", self.moduleName)
        return node

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of a module's self-test."""

    messageDelay = 0

    def __init__(self, *arguments, **kwargs) -> None:
        super().__init__(*arguments, **kwargs)

    def delayDisplay(self, message, requestedDelay=None, msec=None) -> None:
        print(message)
        slicer.app.processEvents()

    def runTest(self) -> None:
        """Nothing; modules run their own."""


def _value(kind, name: str) -> Property:
    def read(self):
        return self._values[name]

    def write(self, value) -> None:
        self._values[name] = value

    return Property(kind, read, write)


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """What `slicer.modules.name` is for a scripted module."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__()
        self._name, self._path, self._widget, self._instance = name, path, None, None
        self._values: dict = {
            "title": name, "helpText": "", "acknowledgementText": "", "hidden": False,
            "categories": [], "dependencies": [], "contributors": [], "icon": QtGui.QIcon(),
            "associatedNodeTypes": [],
        }  # fmt: skip

    def _representation(self):
        if self._widget is None:
            self._widget = self._make()
        return self._widget

    def _make(self):
        if not hasattr(sys.modules[self._name], f"{self._name}Widget"):
            return None
        widget = qSlicerScriptedLoadableModuleWidget(self)
        widget.setMRMLScene(slicer.mrmlScene)
        self._widget = self._widget or widget
        widget._build()
        return widget

    @Slot(result=QtWidgets.QWidget)
    def widgetRepresentation(self):
        return self._representation()

    @Slot(result=QtWidgets.QWidget)
    def createNewWidgetRepresentation(self):
        return self._make()

    @Slot(result=bool)
    def isWidgetRepresentationCreated(self) -> bool:
        return self._widget is not None

    @Slot(result=object)
    def logic(self):
        return None

    name = Property(str, lambda self: self._name)
    path = Property(str, lambda self: self._path)
    title = _value(str, "title")
    helpText = _value(str, "helpText")
    acknowledgementText = _value(str, "acknowledgementText")
    hidden = _value(bool, "hidden")
    icon = _value(QtGui.QIcon, "icon")
    categories = _value("QStringList", "categories")
    dependencies = _value("QStringList", "dependencies")
    contributors = _value("QStringList", "contributors")
    associatedNodeTypes = _value("QStringList", "associatedNodeTypes")


class qSlicerScriptedLoadableModuleWidget(QtWidgets.QWidget):
    """The Qt widget around a module's Python panel."""

    mrmlSceneChanged = Signal(object)
    vtkSignals = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, module) -> None:
        super().__init__()
        self._module, self._self, self._entered, self._scene = module, None, False, None
        self.setObjectName(f"{module._name}ModuleWidget")
        QtWidgets.QVBoxLayout(self)

    def _build(self) -> None:
        """Make the Python panel and set it up; its exceptions are printed, as in Slicer."""
        name = self._module._name
        try:
            self._self = getattr(sys.modules[name], f"{name}Widget")(wrap(self))
            setattr(slicer.modules, f"{name}Widget", self._self)
            self._self.setup()
        except Exception:
            recordException()

    def _tell(self, name: str) -> None:
        method = getattr(self._self, name, None)
        if method is not None:
            try:
                method()
            except Exception:
                recordException()

    @Slot(result=object)
    def self(self):
        return self._self

    @Slot(result=QtCore.QObject)
    def module(self):
        return self._module

    @Slot()
    def setup(self) -> None:
        self._tell("setup")

    @Slot()
    def enter(self) -> None:
        self._entered = True
        self._tell("enter")

    @Slot()
    def exit(self) -> None:
        self._entered = False
        self._tell("exit")

    @Slot()
    def reload(self) -> None:
        self._build()

    @Slot(object)
    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    @Slot(result=object)
    def mrmlScene(self):
        return self._scene

    moduleName = Property(str, lambda self: self._module._name)
    isEntered = Property(bool, lambda self: self._entered)


def loadModule(path: str | Path):
    """Import a scripted module's file and make its module object, as at the application's start."""
    path = Path(path).resolve()
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    module = qSlicerScriptedLoadableModule(name, str(path))
    wrapped = wrap(module)
    module._kept = wrapped
    module._instance = getattr(loaded, name)(wrapped)
    setattr(slicer.modules, name.lower(), wrapped)
    setattr(slicer.modules, f"{name}Instance", module._instance)
    return module
