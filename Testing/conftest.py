"""Where the tests find data and models. Fixtures hold the data, tests hold the logic."""

import os
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SAMPLE = PROJECT / "Testing" / "data" / "ms_sample"
SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", PROJECT.parent / "shared" / "data"))
sys.path.insert(0, str(PROJECT / "SlicerMedSeg"))


@pytest.fixture(scope="session")
def ms_case_dir() -> Path:
    """A real patient: t1, t2, flair and lesion .nii.gz on one 1 mm grid."""
    return SAMPLE


@pytest.fixture(scope="session")
def ms_images(ms_case_dir):
    """The sample's t1, t2 and flair as Images by key."""
    from medsegcore.imaging import read_image

    return {key: read_image(ms_case_dir / f"{key}.nii.gz") for key in ("t1", "t2", "flair")}


@pytest.fixture(scope="session")
def ms_reference(ms_case_dir):
    """The sample's reference mask, bool."""
    from medsegcore.imaging import read_image

    mask = read_image(ms_case_dir / "lesion.nii.gz")
    return mask.with_array(mask.array > 0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip("the development data are not here")
    return SHARED


@pytest.fixture(scope="session")
def shipped_model():
    """The shipped MS lesion model."""
    from medsegcore.models import ModelStore

    return ModelStore(SAMPLE / "none").find("ms-lesion-rsanet")


@pytest.fixture(scope="session")
def predictor(shipped_model):
    """The shipped model, ready on the CPU."""
    from medsegcore.inference import Predictor

    return Predictor(shipped_model, device="cpu")


@pytest.fixture(scope="session")
def ms_result(predictor, ms_images):
    """The shipped model's answer for the sample."""
    return predictor.predict(ms_images)


@pytest.fixture
def model_copy(shipped_model, tmp_path):
    """A copy of the shipped model that a test may damage."""
    import shutil

    from medsegcore.models import ModelFolder

    target = tmp_path / "model" / shipped_model.path.name
    shutil.copytree(shipped_model.path, target)
    return ModelFolder.read(target)
