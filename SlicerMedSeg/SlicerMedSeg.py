"""SlicerMedSeg: lesion segmentation with MedSegCore inside 3D Slicer."""

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)


class SlicerMedSeg(ScriptedLoadableModule):
    """What the application shows of the module."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedSeg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The MedSeg contributors"]
        self.parent.helpText = _(
            "Segments lesions in MR volumes with trained networks and shows what they attended to."
        )
        self.parent.acknowledgementText = _(
            "The networks follow published papers; each model's card names its paper and data."
        )
        # There is a logic for scripts; a panel to show comes with the Widget class.
        self.parent.hidden = True
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Add the sample cases to the Sample Data module."""
    from SlicerMedSegLib.SampleCases import registerSampleCases

    registerSampleCases()


class SlicerMedSegLogic(ScriptedLoadableModuleLogic):
    """Segment volume nodes of the scene; for the panel, scripts and the Python console."""

    def segment(self, model, inputNodes, options=None, progress=None, cancelled=None, python=None):
        """Segment one case and put the result into the scene.

        Args:
            model: id or folder of a model.
            inputNodes: {input key of the model: volume node}.
            options: fields of `medsegcore.worker.protocol.RunOptions`, e.g. {"device": "cpu",
                "mode": "careful"}.
            progress: called with (stage, done, total, seconds left or None).
            cancelled: asked now and then; True ends the run.
            python: interpreter of the worker, or a whole command such as
                "ssh host medseg worker"; the application's own when None. The worker stays warm
                for the next call.

        Returns:
            `SlicerMedSegLib.ResultToScene.ResultNodes`.

        Raises:
            medsegcore.errors.MedSegError: with a sentence for the user; the scene is untouched.
        """
        addCoreToPath()
        from SlicerMedSegLib.Segmenting import segmentNodes

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
        )

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
    """The self-test of the application."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Every scenario; each starts with an empty scene."""
        addCoreToPath()
        from SlicerMedSegLib.Scenarios import SCENARIOS

        for scenario in SCENARIOS:
            self.setUp()
            self.delayDisplay(scenario.__doc__.splitlines()[0])
            scenario(SlicerMedSegLogic())
        self.delayDisplay("All scenarios passed")
