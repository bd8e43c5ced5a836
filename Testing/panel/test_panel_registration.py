"""The user moves an input onto the reference by hand, looks at it, and takes it back."""

import numpy as np
import psutil
import pytest
import slicer

from medsegcore.imaging import Image, grid_with_spacing, resample
from medsegcore.inference import SpatialAttention

MODEL = "ms-lesion-rsanet"


@pytest.fixture(autouse=True)
def noWorker(monkeypatch, host):
    """Which devices there are is another file's matter."""
    from SlicerMedSegLib.RunPart import RunPart

    monkeypatch.setattr(RunPart, "findDevices", lambda self: None)


@pytest.fixture(scope="module")
def small(ms_images):
    grid = grid_with_spacing(ms_images["t1"].grid, (3, 3, 3))
    return {key: resample(image, grid) for key, image in ms_images.items()}


@pytest.fixture
def nodes(host, small):
    """FLAIR and T1 in place, and a T2 that its header puts 8 mm beside them."""
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    moved = small["t2"].affine.copy()
    moved[:3, 3] += (6, -4, 3)
    images = {**small, "t2": Image(small["t2"].array, moved)}
    return {
        key: volumeNodeFromImage(image, key.upper(), host.core.scene)
        for key, image in images.items()
    }


@pytest.fixture
def part(host, panel, nodes):
    panel.modelPart.choose(MODEL)
    host.waitUntil(lambda: panel.inputsPart.inputNodes() == nodes)
    part = panel.registrationPart
    host.click(part._ui.registrationSection)
    host.choose(part._ui.registrationInputBox, "T2-weighted MR: T2")
    return part


def register(host, part):
    host.click(part._ui.registerButton)
    host.waitUntil(lambda: not part.busy)


def views():
    return [
        (
            node.GetBackgroundVolumeID(), node.GetForegroundVolumeID(),
            round(node.GetForegroundOpacity(), 3),
        )
        for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    ]  # fmt: skip


def test_a_moved_input_becomes_the_input_and_goes_back_to_the_original(
    host, panel, part, nodes, tmp_path
):
    ui = part._ui
    before = slicer.util.arrayFromVolume(nodes["t2"]).tobytes(), nodes["t2"].GetTransformNodeID()
    count = slicer.mrmlScene.GetNumberOfNodes()
    assert ui.registerButton.text == "Register to FLAIR"
    assert ui.registrationKindBox.currentText == "Rigid"
    host.click(ui.registerButton)
    assert ui.cancelRegistrationButton.enabled
    assert not ui.registerButton.enabled
    seen = set()
    host.waitUntil(lambda: seen.add(ui.registrationProgressBar.value) or not part.busy)
    assert len(seen) > 3
    copy = panel.inputsPart.inputNodes()["t2"]
    assert copy.GetName() == "T2 registered"
    assert "fit better than before: 0." in ui.registrationMessageLabel.text
    matrix = slicer.util.arrayFromTransformMatrix(copy.GetParentTransformNode())
    assert np.allclose(matrix[:3, 3], (-6, 4, -3), atol=1.0)
    assert before == (
        slicer.util.arrayFromVolume(nodes["t2"]).tobytes(), nodes["t2"].GetTransformNodeID()
    )  # fmt: skip
    host.waitUntil(lambda: panel.inputsPart.findings is not None)
    assert panel.inputsPart.reason() == ""
    host.screenshot(tmp_path / "registered.png")
    assert not ui.registerButton.enabled
    assert "remove that first" in ui.registerButton.toolTip
    host.click(ui.removeRegistrationButton)
    assert panel.inputsPart.inputNodes()["t2"] is nodes["t2"]
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert ui.registerButton.enabled
    assert not ui.registrationMessageLabel.visible


def test_previews_are_left_with_one_click_and_the_views_are_as_they_were(
    host, panel, part, nodes, tmp_path
):
    ui = part._ui
    slicer.util.setSliceViewerLayers(
        background=nodes["t1"], foreground=nodes["t2"], foregroundOpacity=0.3, fit=True
    )
    host.wait(50)
    before = views()
    host.click(ui.checkerboardButton)
    host.waitUntil(lambda: not part.drawing)
    board = slicer.mrmlScene.GetFirstNodeByName("Checkerboard")
    assert {view[0] for view in views()} == {board.GetID()}
    host.screenshot(tmp_path / "checkerboard.png")
    host.click(ui.blendButton)
    assert not ui.checkerboardButton.checked
    assert slicer.mrmlScene.GetFirstNodeByName("Checkerboard") is None
    host.dragSlider(ui.blendSlider, 0.8)
    ids = nodes["flair"].GetID(), nodes["t2"].GetID()
    assert {view[:2] for view in views()} == {ids}
    assert views()[0][2] == pytest.approx(0.8, abs=0.05)
    host.screenshot(tmp_path / "blend.png")
    host.click(ui.blendButton)
    assert views() == before
    # Another click while the board is on its way leaves nothing of it.
    host.click(ui.checkerboardButton)
    host.click(ui.checkerboardButton)
    assert not part.drawing
    host.wait(100)
    assert views() == before
    assert slicer.mrmlScene.GetFirstNodeByName("Checkerboard") is None
    # Leaving the panel ends a preview, too.
    host.click(ui.checkerboardButton)
    host.waitUntil(lambda: not part.drawing)
    assert views() != before
    panel.exit()
    assert views() == before
    assert not ui.checkerboardButton.checked
    assert slicer.mrmlScene.GetFirstNodeByName("Checkerboard") is None


def test_a_preview_takes_an_attention_map_off_the_views_first(
    host, panel, part, nodes, small, make_result
):
    from SlicerMedSegLib.AttentionDisplay import AttentionDisplay
    from SlicerMedSegLib.ResultToScene import addResultToScene

    slicer.util.setSliceViewerLayers(background=nodes["t1"], fit=True)
    before = views()
    bright = np.clip(small["flair"].array / small["flair"].array.max(), 0, 1).astype(np.float32)
    result = make_result({"Bright": bright}, small)
    shown = addResultToScene(result, slicer.mrmlScene, nodes["flair"], "Bright")
    panel.attentionPart.setRun("Bright")
    AttentionDisplay(slicer.mrmlScene).show(shown.probabilities["Bright"])
    host.click(part._ui.blendButton)
    assert {view[:2] for view in views()} == {(nodes["flair"].GetID(), nodes["t2"].GetID())}
    host.click(part._ui.blendButton)
    assert views() == before


@pytest.mark.parametrize("leave", ["exit", "cleanup"])
def test_a_map_shown_over_a_preview_ends_it_and_the_views_come_back(
    host, panel, part, nodes, small, make_result, leave
):
    from SlicerMedSegLib.ResultToScene import addResultToScene

    slicer.util.setSliceViewerLayers(
        background=nodes["t1"], foreground=nodes["flair"], foregroundOpacity=0.25, fit=True
    )
    before = views()
    bright = np.clip(small["flair"].array / small["flair"].array.max(), 0, 1).astype(np.float32)
    maps = [SpatialAttention("bright", "Brightness", bright, 1.0)]
    result = make_result({"Bright": bright}, small, attention=maps)
    shown = addResultToScene(result, slicer.mrmlScene, nodes["flair"], "Bright")
    panel.attentionPart.setRun("Bright")
    host.wait(0)
    host.click(part._ui.blendButton)
    host.click(panel.ui.attentionSection)
    host.click(panel.attentionPart.ui.showButton)
    assert not part._ui.blendButton.checked
    ids = nodes["t1"].GetID(), shown.attention["bright"].GetID()
    assert {view[:2] for view in views()} == {ids}
    getattr(panel, leave)()
    assert views() == before


def test_a_cancelled_registration_leaves_no_process_and_the_scene_as_it_was(host, part, nodes):
    ui, count = part._ui, slicer.mrmlScene.GetNumberOfNodes()
    host.click(ui.registerButton)
    process = psutil.Process(part._job.run._process.pid)
    host.click(ui.cancelRegistrationButton)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert ui.registrationMessageLabel.text == "Cancelled: the scene is as it was."
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert not ui.cancelRegistrationButton.visible
    # Closing the scene, and the panel, end it as well.
    host.click(ui.registerButton)
    process = psutil.Process(part._job.run._process.pid)
    slicer.mrmlScene.Clear()
    assert not part.busy
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    host.wait(200)
    assert not ui.registerButton.enabled
    assert "Choose a reference" in ui.registerButton.toolTip


def test_a_registration_that_gains_nothing_is_said_and_not_used(host, panel, part, nodes, small):
    from SlicerMedSegLib.SceneConversion import fillVolumeNode

    fillVolumeNode(nodes["t2"], small["t2"])
    register(host, part)
    assert "keep the original" in part._ui.registrationMessageLabel.text
    assert panel.inputsPart.inputNodes()["t2"] is nodes["t2"]
    host.click(part._ui.removeRegistrationButton)
    assert slicer.mrmlScene.GetFirstNodeByName("T2 registered") is None


def test_what_the_user_chose_meanwhile_stays(host, panel, part, nodes):
    host.click(part._ui.registerButton)
    host.choose(panel.inputsPart._rows["t2"].selector, "None")
    host.waitUntil(lambda: not part.busy)
    assert "t2" not in panel.inputsPart.inputNodes()


def test_a_registration_is_found_again_and_a_preview_left_after_loading_the_scene(
    host, panel, part, nodes, tmp_path
):
    slicer.util.setSliceViewerLayers(background=nodes["t1"], fit=True)
    register(host, part)
    host.click(part._ui.blendButton)
    host.core.saveScene(tmp_path / "scene.mrb")
    slicer.mrmlScene.Clear()
    host.core.loadScene(tmp_path / "scene.mrb")
    inputs = panel.inputsPart
    host.waitUntil(lambda: len(inputs.inputNodes()) == 3 and inputs.findings is not None)
    assert inputs.inputNodes()["t2"].GetName() == "T2 registered"
    background = slicer.mrmlScene.GetFirstNodeByName("T1").GetID()
    assert {view[:2] for view in views()} == {(background, None)}
    host.choose(part._ui.registrationInputBox, "T2-weighted MR: T2 registered")
    assert "fit better than before" in part._ui.registrationMessageLabel.text
    host.click(part._ui.removeRegistrationButton)
    assert inputs.inputNodes()["t2"].GetName() == "T2"
    assert slicer.mrmlScene.GetFirstNodeByName("T2 registered") is None


def test_a_closed_part_leaves_no_observer_timer_or_preview(host, part, nodes):
    slicer.util.setSliceViewerLayers(background=nodes["t1"], fit=True)
    before = views()
    host.click(part._ui.blendButton)
    host.click(part._ui.registerButton)
    part.close()
    part.close()
    assert not part.busy
    assert len(part._observers) == 0
    assert not part._timer.active
    assert views() == before
