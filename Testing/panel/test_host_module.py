"""A small real module goes through its life on the host, by the user's hands."""

import sys
from pathlib import Path

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parent / "HostExample" / "HostExample.py"


@pytest.fixture
def panel(host, flair):
    """The module's panel, entered, with the FLAIR in the scene."""
    return host.openModule(MODULE)


def test_a_module_is_loaded_set_up_and_entered(host, panel):
    import slicer

    module = slicer.util.getModule("HostExample")
    assert module is slicer.modules.hostexample
    assert (module.title, module.categories, module.name) == (
        "Host example", ("Testing",), "HostExample",
    )  # fmt: skip
    assert slicer.modules.HostExampleInstance.started
    assert slicer.modules.HostExampleWidget is panel is slicer.util.getModuleWidget("HostExample")
    assert panel.calls == ["enter"]
    assert (panel.parent.moduleName, panel.parent.isEntered) == ("HostExample", True)
    assert panel.parent.module() is module
    assert slicer.util.selectedModule() == "HostExample"
    assert {"HostExample", "Segmentations", "Volumes"} <= set(slicer.util.moduleNames())
    assert slicer.util.getModuleLogic("HostExample") is panel.logic
    assert "Host example" in host.translated


def test_children_of_the_ui_file_are_attributes(panel):
    assert panel.ui.thresholdSlider.className() == "ctkSliderWidget"
    assert panel.ui.HostExample.className() == "qMRMLWidget"
    assert {"Slider", "SpinBox", "inputsLayout", "qt_spinbox_lineedit"} <= set(vars(panel.ui))
    with pytest.raises(AttributeError):
        panel.ui.missing  # noqa: B018
    assert panel.ui.volumeSelector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert panel.ui.results.collapsed


def test_the_user_chooses_drags_and_applies(host, panel, flair, ms_images):
    ui = panel.ui
    assert (ui.applyButton.enabled, ui.applyButton.toolTip) == (False, "<p>Select a volume</p>")
    with pytest.raises(AssertionError, match="not enabled"):
        host.click(ui.applyButton)
    host.choose(ui.volumeSelector, "FLAIR")
    host.dragSlider(ui.thresholdSlider, 700)
    threshold = panel._parameterNode.threshold
    assert abs(threshold - 700) < 20
    host.click(ui.applyButton)
    expected = int((ms_images["flair"].array >= threshold).sum())
    assert ui.resultLabel.text == f"{expected} voxels"
    assert not ui.results.collapsed
    assert ui.resultTable.model().index(0, 0).data() == str(expected)
    host.click(ui.invertCheckBox)
    assert panel._parameterNode.invert is True
    host.click(ui.applyButton)
    assert ui.resultLabel.text == f"{ms_images['flair'].array.size - expected} voxels"


def test_an_error_is_shown_to_the_user_and_recorded_as_an_exception_of_the_slot(host, panel):
    host.choose(panel.ui.volumeSelector, "FLAIR")
    panel._parameterNode.threshold = 0
    host.dialogs.expect("A threshold of 0 counts everything.", "OK")
    host.click(panel.ui.applyButton)
    assert "ValueError: A threshold of 0" in host.errors[0]
    host.errors.clear()


def test_parameters_are_checked_and_bound_both_ways(panel, flair):
    import slicer

    node, ui = panel._parameterNode, panel.ui
    assert (ui.thresholdSlider.minimum, ui.thresholdSlider.maximum) == (0, 2000)
    assert node.default("threshold").value == 500
    with pytest.raises(ValueError, match="Value must be within range"):
        node.threshold = 3000
    with pytest.raises(TypeError):
        node.invert = "yes"
    node.threshold = 250
    assert ui.thresholdSlider.value == 250.0
    node.inputVolume = flair
    assert ui.volumeSelector.currentNode() is flair
    node.mine = 1
    slicer.mrmlScene.RemoveNode(flair)
    assert node.inputVolume is None
    assert not ui.applyButton.enabled


def test_parameters_come_back_with_the_scene(host, panel, flair, tmp_path):
    import slicer

    panel._parameterNode.threshold = 321
    panel._parameterNode.inputVolume = flair
    bundle = host.core.saveScene(tmp_path / "scene.mrb")
    slicer.mrmlScene.Clear()
    assert panel._parameterNode.threshold == 500
    host.core.loadScene(bundle)
    panel.initializeParameterNode()
    assert panel._parameterNode.threshold == 321
    assert panel._parameterNode.inputVolume.GetName() == "FLAIR"


def test_closing_the_scene_leaves_a_panel_that_works(host, panel):
    import slicer

    host.choose(panel.ui.volumeSelector, "FLAIR")
    slicer.mrmlScene.Clear()
    assert panel.calls == ["enter", "close"]
    assert panel.ui.volumeSelector.nodeCount() == 0
    assert not panel.ui.applyButton.enabled
    slicer.util.addVolumeFromArray(np.ones((3, 4, 5)), name="new")
    host.choose(panel.ui.volumeSelector, "new")
    host.click(panel.ui.applyButton)
    assert panel.ui.resultLabel.text == "0 voxels"


def test_a_reload_cleans_up_and_sets_up_again(host, panel):
    import slicer

    panel.onReload()
    again = slicer.modules.HostExampleWidget
    assert panel.calls == ["enter", "cleanup"]
    assert again is not panel
    assert again is slicer.util.getModuleWidget("HostExample")
    host.choose(again.ui.volumeSelector, "FLAIR")
    host.click(again.ui.applyButton)
    assert again.ui.resultLabel.text.endswith("voxels")


def test_switching_modules_exits_and_enters(host, panel):
    import slicer

    slicer.util.selectModule("Volumes")
    assert panel.calls == ["enter", "exit"]
    slicer.util.selectModule("HostExample")
    assert panel.calls == ["enter", "exit", "enter"]
    assert slicer.util.selectModule("nosuch") is None
    assert "nosuch" in host.errors[0]
    host.errors.clear()


def test_quitting_exits_and_cleans_up(host, panel):
    host.quit()
    assert panel.calls == ["enter", "exit", "cleanup"]


def test_what_is_missing_is_said_as_in_the_application(host):
    import slicer

    with pytest.raises(RuntimeError, match="Could not find module with name"):
        slicer.util.getModule("nosuch")
    with pytest.raises(slicer.util.MRMLNodeNotFoundException):
        slicer.util.getNode("nosuch")
    with pytest.raises(RuntimeError, match="file not found"):
        slicer.util.loadUI("/no/such.ui")
    with pytest.raises(AttributeError):
        slicer.app.nosuch  # noqa: B018
    assert slicer.util.mainWindow() is slicer.util.mainWindow()


def test_slice_views_follow_layers_wheel_and_offset(host, flair):
    import slicer
    from host.conversion import unwrap

    manager = slicer.app.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Yellow", "Green")
    red = manager.sliceWidget("Red")
    assert red.mrmlSliceNode().GetID() == "vtkMRMLSliceNodeRed"
    host.wait(0)

    def seen():
        return unwrap(red.sliceView())._view.picture()

    before, offset = seen(), red.sliceLogic().GetSliceOffset()
    assert before.mean() > 10
    host.wheel(red.sliceView(), 3)
    assert abs(red.sliceLogic().GetSliceOffset() - offset) > 1
    assert not np.array_equal(seen(), before)
    red.sliceController().setSliceOffsetValue(offset)
    assert np.array_equal(seen(), before)
    slicer.util.setSliceViewerLayers(background=None)
    assert seen().mean() < 1


def test_a_screenshot_shows_the_panel_beside_the_slices(host, panel, tmp_path):
    from PIL import Image

    host.choose(panel.ui.volumeSelector, "FLAIR")
    host.click(panel.ui.applyButton)
    picture = np.asarray(Image.open(host.screenshot(tmp_path / "a.png")).convert("RGB"))
    assert picture.shape == (800, 1280, 3)
    assert picture[:, :420].mean() > 200
    brain = picture[40:380, 440:840]
    assert brain.mean() > 20
    assert brain.std() > 20


def test_nothing_of_the_host_stays_behind(ms_images):
    import slicer
    from host import Host

    with Host() as running:
        running.openModule(MODULE)
        assert "HostExample" in sys.modules
    assert not {"qt", "ctk", "slicer.i18n", "HostExample"} & set(sys.modules)
    for name in ("app", "modules", "mrmlScene", "qMRMLWidget", "parameterNodeWrapper"):
        assert not hasattr(slicer, name)


def test_the_extensions_own_module_loads(host):
    path = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"
    module = host.loadModule(path)
    assert module.title == "MedSeg"
    assert module.categories == ("Segmentation",)


def test_packages_are_installed_after_asking_alone(host):
    import slicer.packaging

    host.dialogs.expect("Mine - Install Python Packages", "Cancel")
    with pytest.raises(RuntimeError, match="declined"):
        slicer.packaging.pip_ensure(["not-there-at-all"], requester="Mine")
    assert slicer.packaging.pip_check("numpy>=1 scipy")
    assert not slicer.packaging.pip_check("numpy<1")
    slicer.packaging.pip_ensure("numpy>=1")
    with pytest.raises(ValueError, match="string or list"):
        slicer.packaging.pip_install(("numpy",))
