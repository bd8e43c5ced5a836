"""The child process: its result, its errors, its death, and that nothing of it stays."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest

from medsegcore.errors import CancelledError, ModelNotFoundError, OverlapError, RunError
from medsegcore.imaging import Image
from SlicerMedSegLib.Running import runPredict

MODEL = "ms-lesion-rsanet"
OPTIONS = ["--device", "cpu"]


@pytest.fixture(autouse=True)
def nothingStays(tmp_path, monkeypatch):
    """Every test ends without child processes and without files in the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.slow
def test_the_child_answers_as_the_predictor_does(ms_images, ms_result):
    seen = []
    result = runPredict(MODEL, ms_images, OPTIONS, progress=lambda *p: seen.append(p))
    assert np.array_equal(result.labelmap, ms_result.labelmap)
    assert result.lesions == ms_result.lesions
    assert {"load", "segment", "write"} <= {stage for stage, *_ in seen}


def test_the_childs_error_comes_back_as_its_own_class(ms_images):
    with pytest.raises(ModelNotFoundError, match="no model 'absent'"):
        runPredict("absent", ms_images, OPTIONS)
    far = ms_images["t1"].affine.copy()
    far[0, 3] += 300
    with pytest.raises(OverlapError, match="only 0%"):
        runPredict(MODEL, {**ms_images, "t1": Image(ms_images["t1"].array, far)}, OPTIONS)


def test_a_python_that_does_not_start_or_lacks_the_package_is_named(ms_images, tmp_path):
    with pytest.raises(RunError, match="does not start"):
        runPredict(MODEL, ms_images, OPTIONS, python=str(tmp_path / "python"))
    other = shutil.which("false")
    assert other
    with pytest.raises(RunError, match="ended with code"):
        runPredict(MODEL, ms_images, OPTIONS, python=other)


def test_a_killed_child_is_a_sentence(ms_images):
    def kill(stage, *_):
        if stage == "load":
            for child in psutil.Process(os.getpid()).children():
                if "medsegcore" in child.cmdline():
                    child.kill()

    with pytest.raises(RunError, match="ended with code -9"):
        runPredict(MODEL, ms_images, OPTIONS, progress=kill)


def test_cancel_ends_the_child(ms_images):
    stages, idles = [], []
    with pytest.raises(CancelledError):
        runPredict(
            MODEL, ms_images, OPTIONS,
            progress=lambda stage, *_: stages.append(stage),
            cancelled=lambda: "segment" in stages,
            idle=lambda: idles.append(1),
        )  # fmt: skip
    assert len(idles) > 3
