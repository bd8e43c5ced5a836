"""The scenarios of the application's self-test, on the host with its user's hands."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import slicer

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"
NAMES = (
    "gettingReady", "inputs", "running", "results", "attention", "aRadiologistsTenMinutes",
)  # fmt: skip


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """One life of the application for all scenarios, as they have it in the self-test."""
    from host import Host

    folder = tmp_path_factory.mktemp("application")
    with pytest.MonkeyPatch.context() as patch, Host() as host:
        patch.setenv("XDG_DATA_HOME", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        host.addPythonSlicer()
        host.openModule(MODULE)
        assert slicer.app.platformName == os.environ["QT_QPA_PLATFORM"]
        yield host
    host.check()


@pytest.fixture
def selfTest(application):
    """The module's own test class."""
    return sys.modules["SlicerMedSeg"].SlicerMedSegTest


def test_the_self_test_has_a_method_for_every_scenario(selfTest):
    from SlicerMedSegLib.PanelScenarios import PANEL_SCENARIOS
    from SlicerMedSegLib.Scenarios import SCENARIOS

    names = [scenario.__name__ for scenario in PANEL_SCENARIOS]
    assert tuple(names) == NAMES
    logic = [scenario.__name__ for scenario in SCENARIOS]
    methods = {name.removeprefix("test_") for name in dir(selfTest) if name.startswith("test_")}
    assert methods == {*names, *logic}


@pytest.mark.parametrize("name", NAMES)
def test_scenario(application, selfTest, monkeypatch, name):
    from host.hand import HostHand

    monkeypatch.setattr(
        selfTest, "_hand", lambda self: HostHand(application, slicer.modules.SlicerMedSegWidget)
    )
    test = selfTest(f"test_{name}")
    test.setUp()
    getattr(test, f"test_{name}")()
    assert application.errors == []


@pytest.mark.parametrize("name", ["gettingReady", "inputs", "results", "attention"])
def test_scenario_by_the_hand_of_the_application(application, selfTest, name):
    test = selfTest(f"test_{name}")
    test.setUp()
    getattr(test, f"test_{name}")()
    assert application.errors == []
