"""SlicerMedSeg: lesion segmentation with MedSegCore inside 3D Slicer."""

import json
import sys
from pathlib import Path

import qt
import slicer
from slicer import vtkMRMLMarkupsROINode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HOMEPAGE = "https://github.com/medseg/SlicerMedSeg"
# Which volume the user chose for which input: the inputs are the model's, so that they are
# references by key and no parameters.
INPUT_REFERENCE = "MedSeg.Input."
# Images that play pass a frame faster: its results are opened once they rest.
FRAME_RESTS_MS = 300
REQUIREMENTS = Path(__file__).resolve().parent / "Resources" / "requirements.txt"


class SlicerMedSeg(ScriptedLoadableModule):
    """What the application shows of the module."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedSeg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The MedSeg contributors"]
        self.parent.helpText = _(
            "Segments lesions in MR volumes with trained networks and shows what they attended to. "
            "Choose a model, check the volumes that it found for its inputs, and click Segment. "
            "Computes on this computer or on one that you name; nothing is uploaded without you. "
            "Research and teaching only; not a medical device."
        )
        self.parent.helpText += '<p>{} <a href="{}">{}</a>.</p>'.format(
            _("A tutorial on sample data is in the"), HOMEPAGE, _("documentation")
        )
        self.parent.acknowledgementText = _(
            "The networks follow published papers; each model's card names its paper, its training "
            "data and their licenses. Please cite the paper of the model that you used, and MedSeg "
            "(CITATION.cff)."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Add the sample cases to the Sample Data module."""
    from SlicerMedSegLib.SampleCases import registerSampleCases

    registerSampleCases()


@parameterNodeWrapper
class SlicerMedSegParameterNode:
    """What the scene remembers of the panel.

    Attributes:
        model: id of the model that is chosen.
        device: "auto", or what the worker calls it.
        careful: full precision, averaged over mirrorings.
        uncertainty: also give uncertainty maps.
        dropout: one of them by dropout.
        ensemble: ids of the models that answer together with it, with blanks between.
        frames: JSON of {input key: frame of a 4-D input that the user chose}.
        region: the box to work in.
    """

    model: str = ""
    device: str = "auto"
    careful: bool = False
    uncertainty: bool = False
    dropout: bool = False
    ensemble: str = ""
    frames: str = "{}"
    region: vtkMRMLMarkupsROINode


class SlicerMedSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Builds the parts of the panel and connects them; what they do is theirs."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.readyPart = self.modelPart = self.inputsPart = self.runPart = None
        self.ensemblePart = None
        self.registrationPart = self.resultsPart = self.attentionPart = None
        self.framePlayer = None
        self._frameRun = None
        self._frameTimer = qt.QTimer()
        self._frameTimer.setSingleShot(True)
        self._frameTimer.connect("timeout()", self._frameRests)
        self._parameterNode = None
        self._guiTags: list = []
        self._partUis: list = []

    def setup(self) -> None:
        """Called once, when the panel is shown for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        addCoreToPath()
        from SlicerMedSegLib.Installation import Installation
        from SlicerMedSegLib.ReadyPart import ReadyPart

        self.ui = self._load("SlicerMedSeg", self.layout)
        readyUi = self._load("ReadyPart", self.ui.readyLayout)
        installation = Installation(REQUIREMENTS, qt.QSettings())
        self.readyPart = ReadyPart(
            readyUi, installation, self._readyChanged, self._setPython,
            running=lambda: self.runPart is not None and self.runPart.busy,
        )  # fmt: skip
        self._setupParts()

    def _setupParts(self) -> None:
        """The rest of the panel, as soon as the packages are there that it needs."""
        sections = ("model", "inputs", "run", "results", "attention")
        for name in sections:
            getattr(self.ui, f"{name}Section").visible = self.readyPart.packagesReady
        if not self.readyPart.packagesReady:
            return
        from SlicerMedSegLib.AttentionPart import AttentionPart
        from SlicerMedSegLib.EnsemblePart import EnsemblePart
        from SlicerMedSegLib.FrameRuns import FramePlayer
        from SlicerMedSegLib.InputsPart import InputsPart
        from SlicerMedSegLib.ModelPart import ModelPart
        from SlicerMedSegLib.RegistrationPart import RegistrationPart
        from SlicerMedSegLib.ResultsPart import ResultsPart
        from SlicerMedSegLib.RunPart import RunPart

        self.logic = SlicerMedSegLogic()
        scene = slicer.mrmlScene
        modelUi = self._load("ModelPart", self.ui.modelSection.layout())
        inputsUi = self._load("InputsPart", self.ui.inputsSection.layout())
        registrationUi = self._load("RegistrationPart", self.ui.inputsSection.layout())
        runUi = self._load("RunPart", self.ui.runSection.layout())
        self._partUis = [inputsUi, runUi]
        self.runPart = RunPart(
            runUi, scene, self._runFinished, self._deviceChanged, self.readyPart.runChanged
        )
        self.ensemblePart = EnsemblePart(runUi, self._ensembleChanged)
        # After the part itself has kept it.
        runUi.pythonEdit.connect("editingFinished()", self.readyPart.pythonChanged)
        self.inputsPart = InputsPart(inputsUi, scene, self._inputsChanged)
        self.registrationPart = RegistrationPart(
            # Both lay something over the views, and one undone under the other would come back.
            registrationUi, scene, self._inputRegistered, lambda: self.attentionPart.off()
        )  # fmt: skip
        self.modelPart = ModelPart(modelUi, self._modelChanged)
        resultsUi = self._load("ResultsPart", self.ui.resultsSection.layout())
        attentionUi = self._load("AttentionPart", self.ui.attentionSection.layout())
        self.attentionPart = AttentionPart(attentionUi, scene, self.registrationPart.off)
        self.resultsPart = ResultsPart(resultsUi, scene, self._runChosen)
        self.framePlayer = FramePlayer(scene, self._frameShown)
        self.addObserver(scene, scene.StartCloseEvent, self._sceneStartsClosing)
        self.addObserver(scene, scene.EndCloseEvent, self._sceneChanged)
        self.addObserver(scene, scene.EndImportEvent, self._sceneChanged)
        self.initializeParameterNode()
        self._showNewestRun()

    def _load(self, name: str, layout):
        widget = slicer.util.loadUI(self.resourcePath(f"UI/{name}.ui"))
        layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        return slicer.util.childWidgetVariables(widget)

    def cleanup(self) -> None:
        """The panel goes: with the application, or before it is reloaded."""
        self.removeObservers()
        self._frameTimer.stop()
        self.setParameterNode(None)
        # The last one first: what one laid over the views of another goes before that.
        parts = (
            self.framePlayer, self.resultsPart, self.attentionPart, self.modelPart,
            self.registrationPart, self.inputsPart, self.ensemblePart, self.runPart, self.readyPart,
        )  # fmt: skip
        for part in parts:
            if part is not None:
                part.close()

    def enter(self) -> None:
        """The panel is shown."""
        self.readyPart.enter()
        if self.logic is not None:
            self.modelPart.refresh()
            self.initializeParameterNode()
            self._showNewestRun()

    def exit(self) -> None:
        """Another module is shown; a run goes on, and the views are the user's again."""
        self.readyPart.exit()
        self.setParameterNode(None)
        if self.attentionPart is not None:
            self.attentionPart.off()
            self.registrationPart.off()

    # The scene.

    def _sceneStartsClosing(self, caller, event) -> None:
        self.setParameterNode(None)

    def _sceneChanged(self, caller, event) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()
            self._showNewestRun()

    def _showNewestRun(self) -> None:
        """A scene that was loaded brings its results along."""
        from SlicerMedSegLib.ResultToScene import findRuns

        runs = list(findRuns(slicer.mrmlScene))
        if self.resultsPart.run is None and runs:
            self._showRun(runs[-1])

    def initializeParameterNode(self) -> None:
        """Take up what the scene remembers; a scene that knows no model keeps the chosen one."""
        parameterNode = self.logic.getParameterNode()
        # Before the rows of another model are made, which remembers that they are empty.
        chosen, frames, ensemble = self._remembered(parameterNode)
        self.setParameterNode(parameterNode)
        self.modelPart.choose(parameterNode.model)
        if parameterNode.model:
            self._offerEnsemble(self.modelPart.entry, ensemble)
        else:
            self._modelChanged(self.modelPart.entry)
        self.runPart.setDevice(parameterNode.device)
        self.inputsPart.setNodes(chosen, frames)

    @staticmethod
    def _remembered(parameterNode) -> tuple[dict, dict, list[str]]:
        """{input key: node}, {input key: frame} and the ids of the ensemble."""
        raw = parameterNode.parameterNode
        roles: list[str] = []
        raw.GetNodeReferenceRoles(roles)
        keys = [r.removeprefix(INPUT_REFERENCE) for r in roles if r.startswith(INPUT_REFERENCE)]
        nodes = {key: raw.GetNodeReference(INPUT_REFERENCE + key) for key in keys}
        return nodes, json.loads(parameterNode.frames), parameterNode.ensemble.split()

    def setParameterNode(self, parameterNode) -> None:
        """Bind the widgets to a parameter node, or to none."""
        if self._parameterNode is not None:
            for tag in self._guiTags:
                self._parameterNode.disconnectGui(tag)
        self._parameterNode, self._guiTags = parameterNode, []
        if parameterNode is not None:
            self._guiTags = [parameterNode.connectGui(ui) for ui in self._partUis]

    # What the parts say to each other.

    def _readyChanged(self) -> None:
        """Something was installed, or stops or no longer stops a run."""
        if self.readyPart is None:
            return
        if self.logic is None:
            self._setupParts()
        else:
            self.runPart.setJob(*self._job())

    def _setPython(self, python: str) -> None:
        """The user has chosen an interpreter by the card's button."""
        from SlicerMedSegLib.Running import PYTHON_SETTING

        if self.runPart is not None:
            self.runPart.setPython(python)
        else:
            qt.QSettings().setValue(PYTHON_SETTING, python)

    def _modelChanged(self, entry) -> None:
        usable = entry is not None and entry.usable
        chosen, frames, ensemble = {}, {}, None
        # What the scene remembers of a model that is not there stays, for where it is.
        if self._parameterNode is not None and entry is not None:
            name = entry.description.id if entry.description is not None else ""
            if usable and name == self._parameterNode.model and not self.inputsPart.inputKeys():
                # It has come back.
                chosen, frames, ensemble = self._remembered(self._parameterNode)
            self._parameterNode.model = name
        self._offerEnsemble(entry, ensemble)
        self.inputsPart.setModel(entry.description if usable else None)
        if chosen:
            self.inputsPart.setNodes(chosen, frames)

    def _offerEnsemble(self, entry, ids=None) -> None:
        usable = entry is not None and entry.usable
        partners = self.modelPart.partners if usable else []
        self.ensemblePart.offer(entry if usable else None, partners, ids)
        if usable:
            self._rememberEnsemble()

    def _rememberEnsemble(self) -> None:
        if self._parameterNode is not None:
            self._parameterNode.ensemble = " ".join(self.ensemblePart.ids)

    def _ensembleChanged(self) -> None:
        self._rememberEnsemble()
        self.runPart.setJob(*self._job())

    def _inputsChanged(self) -> None:
        self._rememberInputs()
        self.runPart.setJob(*self._job())
        self.registrationPart.setInputs(*self.inputsPart.movable())

    def _inputRegistered(self, key: str, node) -> None:
        self.inputsPart.setNodes({key: node})

    def _job(self):
        """What a click on Segment would run, and why it cannot."""
        from SlicerMedSegLib.RunPart import Job

        if self.readyPart.blocker:
            return None, self.readyPart.blocker
        entry, inputs = self.modelPart.entry, self.inputsPart
        if entry is not None and not entry.usable:
            return None, entry.problem
        reason = inputs.reason()
        if entry is None or reason:
            return None, self.modelPart.missing or reason
        others = self.ensemblePart.entries
        need = max(each.description.memory_mb for each in (entry, *others))
        job = Job(
            str(entry.path), inputs.inputNodes(), inputs.frames(), inputs.region(), need,
            tuple(str(other.path) for other in others),
        )  # fmt: skip
        return job, ""

    def _rememberInputs(self) -> None:
        if self._parameterNode is None or not self.inputsPart.inputKeys():
            return
        raw = self._parameterNode.parameterNode
        with slicer.util.NodeModify(raw):
            chosen = self.inputsPart.chosenByUser()
            for key in self.inputsPart.inputKeys():
                node = chosen.get(key)
                raw.SetNodeReferenceID(INPUT_REFERENCE + key, node.GetID() if node else None)
            frames = {k: f for k, f in self.inputsPart.frames().items() if k in chosen}
            self._parameterNode.frames = json.dumps(frames)

    def _deviceChanged(self, device: str) -> None:
        if self._parameterNode is not None:
            self._parameterNode.device = device

    def _runChosen(self, run) -> None:
        self._frameTimer.stop()
        self.attentionPart.setRun(run)
        self.framePlayer.go(run)

    def _frameShown(self, run) -> None:
        self._frameRun = run
        self._frameTimer.start(FRAME_RESTS_MS)

    def _frameRests(self) -> None:
        """The images have gone to another frame: so do its results, and the map that is shown."""
        if self._frameRun != self.resultsPart.run:
            self.resultsPart.setRun(self._frameRun)
            self.attentionPart.follow(self.resultsPart.run)

    def _runFinished(self, nodes) -> None:
        """A result is in the scene."""
        from SlicerMedSegLib.NodeNames import RUN

        self.readyPart.askWorker()
        self._showRun(nodes.segmentation.GetAttribute(RUN))

    def _showRun(self, run: str) -> None:
        self.resultsPart.refresh()
        self.resultsPart.setRun(run)
        self.framePlayer.refresh()
        self._runChosen(run)
        self.ui.resultsSection.collapsed = False


class SlicerMedSegLogic(ScriptedLoadableModuleLogic):
    """Segment volume nodes of the scene; for the panel, scripts and the Python console."""

    def getParameterNode(self) -> SlicerMedSegParameterNode:
        """What the scene remembers of the panel."""
        return SlicerMedSegParameterNode(super().getParameterNode())

    def segment(
        self, model, inputNodes, options=None, progress=None, cancelled=None, python=None,
        frames=None,
    ):  # fmt: skip
        """Segment one case and put the result into the scene.

        Args:
            model: id or folder of a model.
            inputNodes: {input key of the model: volume node}.
            options: fields of `medsegcore.worker.protocol.RunOptions`, e.g. {"device": "cpu",
                "mode": "careful"}; {"ensemble": [...]} names further models of the same inputs and
                labels, whose mean is the answer.
            progress: called with (stage, done, total, seconds left or None).
            cancelled: asked now and then; True ends the run.
            python: interpreter of the worker, or a whole command such as
                "ssh host medseg worker"; the application's own when None. The worker stays warm
                for the next call.
            frames: {input key: frame of a 4-D input, from 0, or -1 for all}; the shown one where
                none is given. Inputs that go through all their frames do so together.

        Returns:
            `SlicerMedSegLib.ResultToScene.ResultNodes`; with -1 in `frames` a list, one for each
            frame.

        Raises:
            medsegcore.errors.MedSegError: with a sentence for the user; the scene is untouched,
                but for the frames that are finished.
        """
        addCoreToPath()
        from SlicerMedSegLib.Installation import checkInstalled

        checkInstalled(REQUIREMENTS, python)
        # A Slicer that lacks packages cannot import it.
        from SlicerMedSegLib.SegmentingFrames import segmentNodes

        application = getattr(slicer, "app", None)
        return segmentNodes(
            slicer.mrmlScene,
            model,
            inputNodes,
            options=options,
            progress=progress,
            cancelled=cancelled,
            idle=application.processEvents if application is not None else None,
            python=python,
            frames=frames,
        )

    def saveTrainingCase(self, run, folder, model=None):
        """Save the images of a result and its mask, as it is corrected now, as a case to train on.

        Nothing that names anybody is written. The same result that is saved again takes the place
        of its case.

        Args:
            run: what `segment` returned (one of the list, if it was one), or the name of the
                result's folder in the scene.
            folder: of the data set, for `medseg fine-tune --cases`; made if it is not there.
            model: folder of the model that answered, if it is not among the installed ones.

        Returns:
            `SlicerMedSegLib.TrainingCase.SavedTrainingCase`.

        Raises:
            medsegcore.errors.MedSegError: with a sentence for the user; the folder is untouched.
        """
        addCoreToPath()
        from SlicerMedSegLib.TrainingCase import saveTrainingCase

        return saveTrainingCase(slicer.mrmlScene, run, folder, model)

    def endWorker(self):
        """End the warm worker; without this it ends with the application."""
        addCoreToPath()
        from SlicerMedSegLib.Running import endWorker

        endWorker()


def addCoreToPath() -> None:
    """Make `medsegcore` importable: it lies beside the module, in the project and installed."""
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent / "MedSegCore"):
        if (folder / "medsegcore").is_dir() and str(folder) not in sys.path:
            sys.path.append(str(folder))


class SlicerMedSegTest(ScriptedLoadableModuleTest):
    """The self-test of the application: a method for each scenario, all by `runTest`."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()
        addCoreToPath()

    def runTest(self) -> None:
        """Every scenario; each starts with an empty scene."""
        for name in sorted(name for name in dir(self) if name.startswith("test_")):
            self.setUp()
            self.delayDisplay(name.removeprefix("test_"))
            getattr(self, name)()
        self.delayDisplay("All scenarios passed")

    def test_segmentsTheSampleCase(self) -> None:
        self._logic("segmentsTheSampleCase")

    def test_aSecondRunLeavesEditsAlone(self) -> None:
        self._logic("aSecondRunLeavesEditsAlone")

    def test_aMissingInputChangesNothing(self) -> None:
        self._logic("aMissingInputChangesNothing")

    def test_aMovedPatientGetsAMovedAnswer(self) -> None:
        self._logic("aMovedPatientGetsAMovedAnswer")

    def test_aCorrectedResultBecomesATrainingCase(self) -> None:
        self._logic("aCorrectedResultBecomesATrainingCase")

    def test_gettingReady(self) -> None:
        self._panel("gettingReady")

    def test_inputs(self) -> None:
        self._panel("inputs")

    def test_running(self) -> None:
        self._panel("running")

    def test_results(self) -> None:
        self._panel("results")

    def test_attention(self) -> None:
        self._panel("attention")

    def test_aRadiologistsTenMinutes(self) -> None:
        self._panel("aRadiologistsTenMinutes")

    def _logic(self, name: str) -> None:
        from SlicerMedSegLib import Scenarios

        getattr(Scenarios, name)(SlicerMedSegLogic())

    def _panel(self, name: str) -> None:
        from SlicerMedSegLib import PanelScenarios

        getattr(PanelScenarios, name)(self._hand())

    def _hand(self):
        """What works on the panel; tests elsewhere have their own."""
        from SlicerMedSegLib.Hand import Hand

        slicer.util.selectModule("SlicerMedSeg")
        return Hand(slicer.modules.SlicerMedSegWidget)
