"""The scenarios of the application's self-test, on slicer-core."""

import pytest
import slicer

from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.Scenarios import SCENARIOS
from SlicerMedSegLib.SegmentingFrames import segmentNodes
from SlicerMedSegLib.TrainingCase import saveTrainingCase


class Logic:
    """What SlicerMedSegLogic hands on, without the application's base class."""

    def segment(self, model, inputNodes, options=None, progress=None):
        return segmentNodes(slicer.mrmlScene, model, inputNodes, options, progress)

    def saveTrainingCase(self, run, folder):
        return saveTrainingCase(slicer.mrmlScene, run, folder)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario):
    with EmbeddedCore():
        scenario(Logic())
