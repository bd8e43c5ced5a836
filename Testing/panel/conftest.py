"""An application for each test of the panel; what goes wrong silently fails the test."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def host():
    """The application with its window and an empty scene."""
    from host import Host

    with Host() as running:
        yield running
        running.wait(0)
    running.check()


@pytest.fixture
def qt():
    """Qt by PythonQt's conventions, without a scene; `recorded` is left to the test."""
    from host import application, qt, records

    application()
    records.recorded.clear()
    yield qt
    records.recorded.clear()


@pytest.fixture
def recorded(qt):
    """What was printed instead of raised."""
    from host import records

    return records.recorded


@pytest.fixture
def flair(host, ms_images):
    """The sample's FLAIR in the scene and in the slice views."""
    import slicer

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    node = volumeNodeFromImage(ms_images["flair"], "FLAIR", host.core.scene)
    node.GetDisplayNode().SetAutoWindowLevel(0)
    node.GetDisplayNode().SetWindowLevelMinMax(0, 1200)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node
