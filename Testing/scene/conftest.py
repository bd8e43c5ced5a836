"""An open scene, the sample's FLAIR in it, and a result without a network."""

import numpy as np
import pytest
from scipy import ndimage

from medsegcore.inference import Result
from medsegcore.inference.lesions import find_lesions, label_voxels
from medsegcore.models.schema import Label
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


def resultFrom(probabilities, images, minMl=0.0, attention=(), threshold=0.5, affine=None):
    """A Result as a predictor makes it, from probabilities by label name."""
    grid = images["flair"].grid
    if affine is not None:
        grid = type(grid)(grid.shape, affine)
    colors = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]
    labels = [
        Label(value=n, name=name, color=colors[n - 1], threshold=threshold)
        for n, name in enumerate(probabilities, 1)
    ]
    cut = {label.name: threshold for label in labels}
    labelmap, lesions = find_lesions(
        label_voxels(labels, probabilities, cut), grid, labels, probabilities,
        {key: image.array for key, image in images.items()}, minMl,
    )  # fmt: skip
    return Result(
        grid=grid, labels=labels, probabilities=probabilities, labelmap=labelmap,
        attention=list(attention), lesions=lesions,
        settings={"thresholds": cut, "min_lesion_ml": minMl}, provenance={"inputs": {}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def rater_probability(ms_reference):
    """The raters' mask blurred by 1 mm: float32, 0..1, 0.5 on the lesions' borders."""
    mask = ms_reference.array.astype(np.float32)
    return np.clip(ndimage.gaussian_filter(mask, 1.0), 0, 1)


@pytest.fixture(scope="session")
def make_result():
    """`resultFrom`."""
    return resultFrom


@pytest.fixture
def rater_result(rater_probability, ms_images):
    """What a perfect network would answer for the sample; lesions below 0.02 ml are dropped."""
    return resultFrom({"MS lesion": rater_probability}, ms_images, minMl=0.02)
