"""An open scene, the sample's FLAIR in it, and a result without a network."""

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


@pytest.fixture
def rater_result(rater_probability, ms_images, make_result):
    """What a perfect network would answer for the sample; lesions below 0.02 ml are dropped."""
    return make_result({"MS lesion": rater_probability}, ms_images, minMl=0.02)
