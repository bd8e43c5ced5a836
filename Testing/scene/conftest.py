"""An open scene, and the sample's FLAIR in it."""

import pytest

from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage


@pytest.fixture
def core():
    with EmbeddedCore() as opened:
        yield opened


@pytest.fixture
def flair(core, ms_images):
    """A volume node whose window is black to white from 0 to 1200."""
    node = volumeNodeFromImage(ms_images["flair"], "FLAIR", core.scene)
    node.GetDisplayNode().SetAutoWindowLevel(0)
    node.GetDisplayNode().SetWindowLevelMinMax(0, 1200)
    return node
