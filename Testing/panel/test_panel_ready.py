"""The card at the top of the panel: the user's hands on a Slicer that lacks what MedSeg needs."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import slicer

from medsegcore.worker.machine import usable_cores

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"
SMALL = (slice(60, 76), slice(60, 92), slice(50, 82))


@pytest.fixture
def bare(host, medsegFolders, fresh, monkeypatch, tmp_path):
    """Opens the panel of a Slicer whose Python lacks medseg-tiny; PythonSlicer is another one."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("medseg-tiny>=1.0\n")
    monkeypatch.setenv("PATH", f"{fresh.program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    def open_():
        module = host.loadModule(MODULE)
        monkeypatch.setattr(sys.modules["SlicerMedSeg"], "REQUIREMENTS", requirements)
        slicer.util.selectModule(module.name)
        host.wait(0)
        return slicer.modules.SlicerMedSegWidget

    return open_


def texts(ui):
    """What the card shows, row by row."""
    from SlicerMedSegLib.Preflight import KEYS

    rows = {key: getattr(ui, f"{key}Label") for key in KEYS}
    return {key: label.text for key, label in rows.items() if label.visible}


def test_a_bare_slicer_shows_the_card_alone_and_becomes_the_panel_from_a_folder_of_wheels(
    host, bare, wheels, addSample, tmp_path
):
    panel = bare()
    ui = panel.readyPart._ui
    assert ui.readyLabel.text == "Not ready yet:"
    assert list(texts(ui)) == ["packages", "wheels"]
    assert "medseg-tiny>=1.0" in texts(ui)["packages"]
    assert not panel.ui.runSection.visible
    assert panel.runPart is None
    host.screenshot(tmp_path / "bare.png")
    panel.exit()
    panel.enter()
    # No network: pip's own words, and the button that helps.
    host.dialogs.expect("Package installation failed", "OK")
    host.click(ui.packagesButton)
    assert "Failed to establish a new connection" in texts(ui)["failure"]
    assert ui.failureButton.text == "Choose a wheel folder"
    assert ui.packagesButton.enabled
    # What does not wrap does not widen the panel.
    host.wait(50)
    assert panel.parent.width <= 420
    seen = len(host.dialogs.seen)
    assert panel.readyPart._installation.installPackages(interactive=False) is not None
    assert len(host.dialogs.seen) == seen
    # A folder that lacks one.
    some = tmp_path / "some"
    some.mkdir()
    wheel = next(wheels.glob("medseg_tiny*"))
    (some / wheel.name).write_bytes(wheel.read_bytes())
    host.dialogs.expect("Choose a folder of wheels", str(some))
    host.click(ui.failureButton)
    assert "medseg-base>=1.0" in texts(ui)["failure"]
    host.screenshot(tmp_path / "lacking.png")
    # Cancelled: nothing happens.
    host.dialogs.expect("Choose a folder of wheels", "")
    host.click(ui.failureButton)
    assert "medseg-base>=1.0" in texts(ui)["failure"]
    host.dialogs.expect("Choose a folder of wheels", str(wheels))
    host.click(ui.failureButton)
    assert texts(ui) == {}
    assert ui.stepLabel.text == "Done."
    assert panel.ui.runSection.visible
    addSample(SMALL)
    panel.modelPart.choose("ms-lesion-rsanet")
    button = panel.runPart._ui.segmentButton
    host.waitUntil(lambda: button.enabled)
    host.waitUntil(lambda: ui.readyLabel.text.startswith("Ready: "))
    host.screenshot(tmp_path / "ready.png")


def test_a_script_on_a_bare_slicer_is_told_what_is_missing_and_what_to_do(host, bare, monkeypatch):
    from medsegcore.errors import PackagesError
    from SlicerMedSegLib import Installation

    bare()
    # What a bare Slicer cannot import.
    monkeypatch.setitem(sys.modules, "SlicerMedSegLib.SegmentingFrames", None)
    logic = sys.modules["SlicerMedSeg"].SlicerMedSegLogic()
    with pytest.raises(PackagesError, match=r"lacks medseg-tiny>=1.0, .* Open the module MedSeg"):
        logic.segment("ms-lesion-rsanet", {})
    monkeypatch.setattr(Installation, "unmetRequirements", lambda requirements: [])
    monkeypatch.setattr(Installation, "installedVersion", lambda name: None)
    with pytest.raises(PackagesError, match=r"no PyTorch.* Open the module MedSeg"):
        logic.segment("ms-lesion-rsanet", {})
    # Another interpreter has a PyTorch of its own.
    with pytest.raises(ImportError):
        logic.segment("ms-lesion-rsanet", {}, python="ssh host medseg worker")


def test_all_well_is_one_line_and_details_on_a_click(host, panel, tmp_path):
    import torch

    ui = panel.readyPart._ui
    assert texts(ui) == {}
    assert ui.readyLabel.text == "Installed; the devices are not asked for yet."
    # The worker is asked once the user stays.
    host.waitUntil(lambda: ui.readyLabel.text.startswith("Ready: "))
    cores = usable_cores()
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert ui.readyLabel.text == f"Ready: CPU, {cores} cores"
    assert not ui.detailsWidget.visible
    host.screenshot(tmp_path / "line.png")
    host.click(ui.detailsButton)
    assert "Slicer's own Python" in ui.detailsLabel.text
    assert f"PyTorch {torch.__version__}" in ui.detailsLabel.text
    assert "Temporary files" in ui.detailsLabel.text
    assert "only when you click" in ui.detailsLabel.text
    host.screenshot(tmp_path / "details.png")
    host.click(ui.checkButton)
    host.waitUntil(lambda: ui.readyLabel.text.startswith("Ready: "))
    host.click(ui.removeButton)
    assert ui.stepLabel.text == "MedSeg has installed nothing that is still here."


def test_segment_says_what_the_card_says_and_another_interpreter_is_chosen_by_its_button(
    host, panel, addSample, medsegFolders
):
    addSample(SMALL)
    panel.modelPart.choose("ms-lesion-rsanet")
    button, ui = panel.runPart._ui.segmentButton, panel.readyPart._ui
    host.waitUntil(lambda: button.enabled)
    host.click(panel.runPart._ui.advancedBox)
    host.type(panel.runPart._ui.pythonEdit, "/nowhere/python")
    host.waitUntil(lambda: "interpreter" in texts(ui))
    assert "'/nowhere/python' does not start" in texts(ui)["interpreter"]
    assert not button.enabled
    assert "'/nowhere/python' does not start" in button.toolTip
    good = str(Path(slicer.app.slicerHome) / "bin" / "PythonSlicer")
    host.dialogs.expect("Choose a Python", good)
    host.click(ui.interpreterButton)
    assert panel.runPart._ui.pythonEdit.text == good
    host.waitUntil(lambda: ui.readyLabel.text.startswith("Ready: "))
    assert texts(ui) == {}
    assert button.enabled
    assert good in ui.detailsLabel.text


def test_torch_comes_by_slicers_extension_and_after_a_restart_the_next_step_is_named(
    host, bare, fresh, wheels, monkeypatch
):
    from SlicerMedSegLib import Installation, Preflight

    class PyTorchUtilsLogic:
        """As the extension's: PyTorch by its own pip, after asking when told to."""

        def installTorch(
            self, askConfirmation=False, forceComputationBackend=None,
            torchVersionRequirement=None, torchvisionVersionRequirement=None,
        ):  # fmt: skip
            assert not askConfirmation
            assert torchVersionRequirement == ">=2.4"
            links = ["--no-index", "--find-links", str(wheels)]
            slicer.util.executePythonModule("pip", ["install", *links, "medseg-base==1.1"])

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)

    def version(name):
        base = Preflight.importlib.metadata
        try:
            return base.version("medseg-base" if name == "torch" else name)
        except base.PackageNotFoundError:
            return None

    # medseg-base plays torch: 1.1 is not new enough, so that the sentence changes.
    monkeypatch.setattr(Preflight, "installedVersion", version)
    monkeypatch.setattr(Installation, "installedVersion", version)
    record = json.dumps({"process": os.getpid() + 1, "names": ["typing-extensions"]})
    host.qt.QSettings().setValue("MedSeg/AfterRestart", record)
    panel = bare()
    ui = panel.readyPart._ui
    assert ui.stepLabel.text == "Slicer was restarted; the next step is: Install packages."
    assert "up to 3 GB" in texts(ui)["torch"]
    assert host.qt.QSettings().value("MedSeg/AfterRestart") is None
    host.click(ui.torchButton)
    assert "PyTorch 1.1 is too old" in texts(ui)["torch"]
    assert ui.stepLabel.text == "Done."
    # What was installed is removed after asking.
    host.click(ui.detailsButton)
    host.dialogs.expect("Remove medseg-base from Slicer's Python?", "No")
    host.click(ui.removeButton)
    assert version("torch") == "1.1"
    host.dialogs.expect("Remove medseg-base from Slicer's Python?", "Yes")
    host.click(ui.removeButton)
    assert version("torch") is None
    assert "no PyTorch" in texts(ui)["torch"]


def test_restart_is_one_click_and_until_then_the_rest_of_the_panel_is_not_loaded(
    host, medsegFolders
):
    record = json.dumps({"process": os.getpid(), "names": ["typing-extensions"]})
    host.qt.QSettings().setValue("MedSeg/AfterRestart", record)
    panel = host.openModule(MODULE)
    ui = panel.readyPart._ui
    assert "the old typing-extensions" in texts(ui)["restart"]
    assert panel.runPart is None
    assert ui.restartButton.text == "Restart Slicer"
    host.dialogs.expect("what is not saved is lost", "Cancel")
    host.click(ui.restartButton)
    assert host.errors == []
    host.dialogs.expect("what is not saved is lost", "OK")
    host.click(ui.restartButton)
    assert host.errors == ["slicer.app.restart() was called: the application would end here."]
    host.errors.clear()
    panel.exit()
    panel.enter()


def test_a_slicer_before_5_11_installs_by_its_own_means(host, bare, wheels, monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    monkeypatch.setattr(
        slicer.util, "pip_install",
        lambda requirements: slicer.util.executePythonModule("pip", ["install", *requirements]),
    )  # fmt: skip
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    panel = bare()
    host.click(panel.readyPart._ui.packagesButton)
    assert panel.readyPart.packagesReady
    assert panel.ui.runSection.visible


def test_without_its_extension_torch_is_asked_of_the_extension_manager(host, bare, monkeypatch):
    from SlicerMedSegLib import Preflight

    monkeypatch.setattr(Preflight, "installedVersion", lambda name: None)
    panel = bare()
    ui = panel.readyPart._ui
    assert ui.torchButton.text == "Install the extension"
    assert "torch" in texts(ui)
    assert host.dialogs.seen == []


def test_what_would_end_a_run_waits_for_its_end(host, panel, addSample, monkeypatch, tmp_path):
    addSample(SMALL)
    panel.modelPart.choose("ms-lesion-rsanet")
    run, ready = panel.runPart, panel.readyPart
    ui = ready._ui
    host.waitUntil(lambda: run._ui.segmentButton.enabled)
    host.waitUntil(lambda: ui.readyLabel.text.startswith("Ready: "))
    # An idle card asks for another PyTorch, which does not stop a run.
    card = {"nvidia": {"name": "RTX", "driver": "535"}, "cuda_build": None}
    devices = [d for d in ready._worker["devices"] if d["name"] == "cpu"]
    ready._worker = {"devices": devices, "machine": ready._worker["machine"] | card}
    ready.enter()
    ready.exit()
    host.click(ui.detailsButton)
    assert ui.gpuButton.enabled
    host.click(run._ui.segmentButton)
    assert run.busy
    for button in (ui.gpuButton, ui.removeButton):
        assert not button.enabled
        assert "A segmentation is on its way" in button.toolTip
    assert ui.checkButton.enabled
    host.screenshot(tmp_path / "waiting.png")
    # It may have started since the card was drawn.
    monkeypatch.setattr(ready, "_run", lambda *_: pytest.fail("the worker would have ended"))
    ready._act("gpu")
    host.waitUntil(lambda: not run.busy)
    assert run._ui.runMessageLabel.text == "Done."
    host.wait(0)
    assert ui.removeButton.enabled
    assert "Remove from Slicer's Python" in ui.removeButton.toolTip
    host.waitUntil(lambda: ready._asking is None)


def test_a_closed_card_is_deaf(host, panel):
    panel.readyPart.close()
    panel.readyPart.close()
    host.click(panel.readyPart._ui.detailsButton)
    assert not panel.readyPart._ui.detailsWidget.visible
    panel.readyPart.askWorker()
    panel.readyPart.pythonChanged()
