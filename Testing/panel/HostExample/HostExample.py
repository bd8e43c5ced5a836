"""A small scripted module as Slicer's template has them: counts voxels above a threshold."""

from typing import Annotated

import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class HostExample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Host example")
        self.parent.categories = ["Testing"]
        slicer.app.connect("startupCompleted()", self.onStarted)
        self.started = False

    def onStarted(self):
        self.started = True


@parameterNodeWrapper
class HostExampleParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(0, 2000)] = 500
    invert: bool = False


class HostExampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self.calls = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/HostExample.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = HostExampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.initializeParameterNode()

    def cleanup(self):
        self.calls.append("cleanup")
        self.removeObservers()

    def enter(self):
        self.calls.append("enter")
        self.initializeParameterNode()

    def exit(self):
        self.calls.append("exit")
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        self.calls.append("close")
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(
                self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply
            )
        self._parameterNode = parameterNode
        if parameterNode:
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
            self._checkCanApply()

    def _checkCanApply(self, caller=None, event=None):
        ready = bool(self._parameterNode and self._parameterNode.inputVolume)
        self.ui.applyButton.enabled = ready
        self.ui.applyButton.toolTip = _("Count") if ready else _("Select a volume")

    def onApply(self):
        with slicer.util.tryWithErrorDisplay(_("Failed to count.")):
            count = self.logic.process(
                self._parameterNode.inputVolume,
                self._parameterNode.threshold,
                self._parameterNode.invert,
            )
            self.ui.resultLabel.text = _("{count} voxels").format(count=count)
            self.ui.resultTable.setMRMLTableNode(self.logic.table())
            self.ui.results.collapsed = False
            qt.QSettings().setValue("HostExample/last", count)


class HostExampleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return HostExampleParameterNode(super().getParameterNode())

    def table(self):
        node = slicer.mrmlScene.GetFirstNodeByName("Counts")
        return node or slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "Counts")

    def process(self, volume, threshold, invert):
        if threshold == 0:
            raise ValueError("A threshold of 0 counts everything.")
        array = slicer.util.arrayFromVolume(volume)
        count = int((array < threshold if invert else array >= threshold).sum())
        table = self.table().GetTable()
        if table.GetColumnByName("voxels") is None:
            column = vtk.vtkIntArray()
            column.SetName("voxels")
            table.AddColumn(column)
        table.SetValue(table.InsertNextBlankRow(), 0, count)
        self.table().Modified()
        return count
