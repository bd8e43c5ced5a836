"""The sample cases are what their checksums say, load, and find their inputs."""

import hashlib
import inspect
import sys
import types
import urllib.request
from pathlib import Path

import pytest

from medsegcore.imaging import fov_overlap, measure, read_image
from SlicerMedSegLib import SampleCases
from SlicerMedSegLib.InputChecks import InputChecks
from SlicerMedSegLib.InputMatcher import InputMatcher
from SlicerMedSegLib.SampleCases import CASES, registerSampleCases
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage


@pytest.fixture
def registered(monkeypatch):
    """What reaches Slicer's Sample Data module, through a signature as it has it."""
    calls = []

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(
            category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
            customDownloader=None, thumbnailFileName=None, loadFileTypes=None, loadFiles=None,
            loadFileProperties={}, checksums=None, loadFileType=None,  # noqa: B006
        ):  # fmt: skip
            names = inspect.signature(SampleDataLogic.registerCustomSampleDataSource).parameters
            calls.append({name: value for name, value in locals().items() if name in names})

    module = types.ModuleType("SampleData")
    module.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    registerSampleCases()
    return calls


def test_both_cases_are_registered_whole(registered):
    assert [call["sampleName"] for call in registered] == ["MedSegMS", "MedSegProstate"]
    names = [name for call in registered for name in call["fileNames"]]
    assert len(set(names)) == len(names) == 5
    for call in registered:
        lengths = {len(call[k]) for k in ("uris", "fileNames", "nodeNames", "checksums")}
        assert len(lengths) == 1
        assert Path(call["thumbnailFileName"]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_is_downloaded_has_its_checksum_and_loads(registered, tmp_path, core, shipped_model):
    nodes = {}
    for call in registered:
        parts = (call[k] for k in ("uris", "fileNames", "nodeNames", "checksums"))
        for uri, file, name, checksum in zip(*parts, strict=True):
            # As Slicer's own module fetches it.
            urllib.request.urlretrieve(uri, tmp_path / file)
            digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
            assert checksum == f"SHA256:{digest}"
            nodes[name] = volumeNodeFromImage(read_image(tmp_path / file), name, core.scene)
    found = InputMatcher(core.scene).match(shipped_model.description)
    # The prostate's T2 in the same scene lies elsewhere; the user is told of it all the same.
    chosen = {"t1": nodes["MS T1"], "t2": nodes["MS T2"], "flair": nodes["MS FLAIR"]}
    assert {key: proposal.node for key, proposal in found.items()} == chosen
    assert found["t2"].ambiguous
    findings = InputChecks().check(shipped_model.description, chosen)
    assert {finding.level for finding in findings} == {"ok"}


def test_the_prostate_case_is_a_t2_and_an_adc_of_one_place():
    folder = SampleCases.LOCAL / "prostate_sample"
    t2w, adc = (read_image(folder / f"{key}.nii.gz") for key in ("t2w", "adc"))
    assert measure(adc).adc_unit == "1e-6 mm2/s"
    assert t2w.spacing == pytest.approx((0.5, 0.5, 3.0), abs=0.01)
    assert fov_overlap(t2w.grid, adc.grid) > 0.9
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_100_000
    assert sorted(file.name for file in folder.iterdir()) == ["adc.nii.gz", "t2w.nii.gz"]
    attribution = (SampleCases.LOCAL / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "10.7937/K9TCIA.2017.MURS5CL" in attribution


def test_without_a_checkout_the_cases_come_from_the_web(monkeypatch, tmp_path):
    monkeypatch.setattr(SampleCases, "LOCAL", tmp_path)
    for case in CASES:
        assert all(uri.startswith("https://raw.githubusercontent.com/") for uri in case.uris())
