"""A module that shows the results and attention parts alone, as the panel does."""

from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

RESOURCES = Path(__file__).resolve().parents[3] / "SlicerMedSeg" / "Resources"


class PanelParts(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Panel parts")
        self.parent.categories = ["Testing"]


class PanelPartsWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        from SlicerMedSegLib.AttentionPart import AttentionPart
        from SlicerMedSegLib.ResultsPart import ResultsPart

        ScriptedLoadableModuleWidget.setup(self)
        self.resultsUi, self.attentionUi = self.load("ResultsPart"), self.load("AttentionPart")
        self.layout.addStretch(1)
        self.chosen = []
        self.attention = AttentionPart(self.attentionUi, slicer.mrmlScene)
        self.results = ResultsPart(self.resultsUi, slicer.mrmlScene, self.onRunChanged)

    def load(self, name):
        widget = slicer.util.loadUI(str(RESOURCES / "UI" / f"{name}.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        return slicer.util.childWidgetVariables(widget)

    def onRunChanged(self, run):
        self.chosen.append(run)
        self.attention.setRun(run)

    def show(self, run):
        self.results.setRun(run)
        self.attention.setRun(run)

    def exit(self):
        self.attention.off()

    def cleanup(self):
        self.results.close()
        self.attention.close()
        self.results.close()
        self.attention.close()
