"""The user runs the model by hand: the real worker on a part of the sample."""

import gc
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import slicer

from medsegcore.imaging import resample
from medsegcore.inference import Result
from SlicerMedSegLib.ResultToScene import findRuns
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.Steps import EventLoopSteps

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"
MODEL = "ms-lesion-rsanet"
CROP = (slice(60, 92), slice(60, 124), slice(50, 114))
SMALL = (slice(60, 76), slice(60, 92), slice(50, 82))
RELAY = Path(__file__).resolve().parents[1] / "worker_relay.py"


def children():
    return [
        p.pid
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture(autouse=True)
def nothingStays(medsegFolders, host):
    """When the application quits no process and no file in the temporary folder is left."""
    before = set(children())
    yield
    host.quit()
    assert [pid for pid in children() if pid not in before] == []
    assert list((medsegFolders / "temporary").glob("medseg-*")) == []


def ready(host, panel, model=MODEL):
    """The model chosen, the volumes matched, the devices known."""
    panel.modelPart.choose(model)
    ui = panel.runPart._ui
    host.waitUntil(lambda: ui.segmentButton.enabled)
    host.waitUntil(lambda: ui.deviceBox.count > 1 or ui.runMessageLabel.text != "")
    return ui


def watch(panel):
    """Every (stage, text) of progress, as it is shown."""
    stages = []
    shown = panel.runPart._progressed

    def progressed(stage, *rest):
        shown(stage, *rest)
        stages.append((stage, panel.runPart._ui.progressLabel.text))

    panel.runPart._progressed = progressed
    return stages


def done(host, panel):
    host.waitUntil(lambda: not panel.runPart.busy)


def test_volumes_become_a_result_and_the_second_click_starts_at_once(
    host, panel, addSample, shipped_model, tmp_path
):
    nodes = addSample(CROP)
    ui = ready(host, panel)
    assert ui.deviceBox.itemText(1).startswith("CPU")
    assert "GB free" in ui.deviceBox.itemText(1)
    needs = shipped_model.description.memory_mb / 1000
    assert ui.memoryLabel.text == f"Needs about {needs:.1f} GB on CPU."
    slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)
    stages = watch(panel)
    host.choose(ui.deviceBox, ui.deviceBox.itemText(1))
    assert panel._parameterNode.device == "cpu"
    host.click(ui.segmentButton)
    assert not ui.segmentButton.enabled
    assert "on its way" in ui.segmentButton.toolTip
    host.waitUntil(lambda: "segment" in dict(stages))
    host.reachable(ui.progressBar)
    host.screenshot(tmp_path / "running.png")
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    assert ui.segmentButton.enabled
    assert not ui.progressBar.visible
    assert {"load", "segment"} <= set(dict(stages))
    assert len(findRuns(slicer.mrmlScene)) == 1
    host.reachable(ui.segmentButton)
    host.screenshot(tmp_path / "done.png")
    worker = children()
    stages.clear()
    host.click(ui.segmentButton)
    done(host, panel)
    assert children() == worker
    assert "start" not in dict(stages)
    assert len(findRuns(slicer.mrmlScene)) == 2
    host.waitUntil(lambda: not panel.resultsPart.busy)
    host.wait(50)
    # The arrays are the scene's now: a session of many runs must not keep each of them twice.
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) in (Result, EventLoopSteps)]


@pytest.mark.parametrize("shows", [False, True], ids=["images are read", "the result is shown"])
def test_a_panel_that_closes_while_it_works_leaves_nothing_to_go_on(
    host, panel, addSample, monkeypatch, shows
):
    from SlicerMedSegLib import Steps

    def slowly():
        monkeypatch.setattr(Steps, "SLAB_BYTES", 1)
        monkeypatch.setattr(Steps, "TOGETHER_SECONDS", 0)

    addSample(CROP)
    ui = ready(host, panel)
    before = slicer.mrmlScene.GetNumberOfNodes()
    if not shows:
        slowly()
    host.click(ui.segmentButton)
    run = panel.runPart._run
    if shows:
        host.waitUntil(lambda: run.request is not None)
        slowly()
        host.waitUntil(lambda: run.request.done)
        host.waitUntil(lambda: slicer.mrmlScene.GetNumberOfNodes() > before)
        assert run.nodes is None
    else:
        assert run.request is None
    panel.cleanup()
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert children() == []
    # As long as the rest of it would have taken.
    host.wait(1500)
    assert children() == []
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert findRuns(slicer.mrmlScene) == {}


def test_a_run_is_cancelled_within_about_a_second_and_the_next_click_works(host, panel, addSample):
    addSample(CROP)
    ui = ready(host, panel)
    stages = watch(panel)
    host.click(ui.carefulCheckBox)
    assert panel._parameterNode.careful is True
    before = slicer.mrmlScene.GetNumberOfNodes()
    host.click(ui.segmentButton)
    host.waitUntil(lambda: "segment" in dict(stages))
    started = time.monotonic()
    host.click(ui.cancelButton)
    done(host, panel)
    assert time.monotonic() - started < 1.5
    assert ui.runMessageLabel.text == "Cancelled."
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    host.click(ui.carefulCheckBox)
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."


def test_a_killed_worker_is_a_sentence_and_the_next_click_works(host, panel, addSample, tmp_path):
    addSample(SMALL)
    ui = ready(host, panel)
    before = slicer.mrmlScene.GetNumberOfNodes()
    host.click(ui.segmentButton)
    os.kill(children()[0], signal.SIGKILL)
    done(host, panel)
    assert "The worker was killed" in ui.runMessageLabel.text
    assert "Run it again" in ui.runMessageLabel.text
    assert host.dialogs.seen == []
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    # The panel has scrolled to the sentence: nobody has to look for it.
    host.wait(100)
    label = ui.runMessageLabel
    assert label.visibleRegion().boundingRect().height() == label.height
    host.screenshot(tmp_path / "killed.png")
    # On a busy machine a check of the inputs may still be on its way.
    host.waitUntil(lambda: ui.segmentButton.enabled, 5)
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    # Deleted while it runs: no result beside nothing, but a sentence.
    host.click(ui.segmentButton)
    slicer.mrmlScene.RemoveNode(panel.inputsPart.inputNodes()["flair"])
    done(host, panel)
    assert "'MS FLAIR' was removed while the model was running." in ui.runMessageLabel.text
    host.wait(300)
    assert not ui.segmentButton.enabled
    assert "FLAIR MR: the model cannot run without it" in ui.segmentButton.toolTip
    assert len(findRuns(slicer.mrmlScene)) == 1


def test_a_python_that_is_none_is_told_and_another_one_works(host, panel, addSample):
    addSample(SMALL)
    ui = ready(host, panel)
    host.click(ui.advancedBox)
    host.type(ui.pythonEdit, "/nowhere/python")
    host.waitUntil(lambda: "'/nowhere/python' does not start" in ui.runMessageLabel.text)
    host.waitUntil(lambda: not ui.segmentButton.enabled)
    assert "Choose a Python that has medsegcore" in ui.segmentButton.toolTip
    host.type(ui.pythonEdit, " ")
    host.waitUntil(lambda: ui.deviceBox.count > 1)
    host.waitUntil(lambda: ui.segmentButton.enabled)
    assert ui.runMessageLabel.text == ""


def test_closing_the_scene_ends_the_run_and_leaves_nothing_in_it(host, panel, addSample):
    addSample(CROP)
    ui = ready(host, panel)
    stages = watch(panel)
    host.click(ui.segmentButton)
    host.waitUntil(lambda: "load" in dict(stages))
    slicer.mrmlScene.Clear()
    done(host, panel)
    assert ui.runMessageLabel.text == "The scene was closed, which ended the run."
    assert findRuns(slicer.mrmlScene) == {}
    assert not ui.segmentButton.enabled
    addSample(SMALL)
    host.waitUntil(lambda: ui.segmentButton.enabled)
    host.click(ui.segmentButton)
    done(host, panel)
    assert len(findRuns(slicer.mrmlScene)) == 1


def test_reloading_the_module_while_it_runs_leaves_no_process_and_a_panel_that_works(
    host, panel, addSample
):
    addSample(SMALL)
    ui = ready(host, panel)
    host.click(ui.segmentButton)
    old, process = panel, children()
    panel.onReload()
    host.wait(50)
    assert not set(children()) & set(process)
    assert len(old.runPart._observers) == len(old.inputsPart._observers) == 0
    assert not old.inputsPart._timer.active
    new = slicer.modules.SlicerMedSegWidget
    assert new is not old
    ui = ready(host, new)
    host.click(ui.segmentButton)
    done(host, new)
    assert ui.runMessageLabel.text == "Done."


def test_region_and_uncertainty_reach_the_run(host, panel, addSample):
    addSample(CROP)
    ui = ready(host, panel)
    host.click(panel.inputsPart._ui.drawRegionButton)
    roi = panel.inputsPart._ui.regionSelector.currentNode()
    assert panel._parameterNode.region is roi
    roi.SetSize(24, 24, 16)
    host.waitUntil(lambda: panel.inputsPart.findings is not None)
    host.wait(300)
    host.click(ui.uncertaintyCheckBox)
    host.click(ui.segmentButton)
    done(host, panel)
    run = next(iter(findRuns(slicer.mrmlScene).values()))
    probability = slicer.util.arrayFromVolume(run["probability"][0])
    inside = np.argwhere(probability > 0)
    assert len(inside)
    assert (np.ptp(inside, axis=0) < (17, 25, 25)).all()
    assert any("ncertainty" in n.GetName() or "ntropy" in n.GetName() for n in run["attention"])


def test_all_frames_are_segmented_one_after_the_other_and_play_with_the_images(
    host, panel, ms_visits, make_sequence, tmp_path
):
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Visits")
    proxies = {
        key: make_sequence(host.core, browser, key.upper(), [visit[key] for visit in ms_visits])
        for key in ("flair", "t1")
    }
    ui = ready(host, panel)
    inputs = panel.inputsPart
    assert inputs.inputNodes() == proxies
    slicer.util.setSliceViewerLayers(background=proxies["flair"], fit=True)
    for key in proxies:
        host.choose(inputs._rows[key].frameBox, "All 2 frames")
    host.waitUntil(lambda: inputs.findings is not None)
    texts = [finding.text for finding in inputs.findings]
    assert "FLAIR MR: all 2 frames of 'FLAIR' are segmented, one after the other." in texts
    stages = watch(panel)
    host.click(ui.segmentButton)
    host.waitUntil(lambda: any("Frame 2 of 2: " in text for _stage, text in stages))
    host.screenshot(tmp_path / "frame2.png")
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    first, second = findRuns(slicer.mrmlScene)
    assert panel.resultsPart.run == second
    assert browser.GetSelectedItemNumber() == 1
    browser.SetSelectedItemNumber(0)
    segmentations = [
        findRuns(slicer.mrmlScene)[run]["segmentation"][0].GetDisplayNode()
        for run in (first, second)
    ]
    assert [display.GetVisibility() for display in segmentations] == [1, 0]
    host.screenshot(tmp_path / "frames.png")
    # Another frame is chosen among the results: images and segmentation go there.
    host.choose(panel.resultsPart.ui.runSelector, first)
    host.choose(panel.resultsPart.ui.runSelector, second)
    assert browser.GetSelectedItemNumber() == 1
    assert [display.GetVisibility() for display in segmentations] == [0, 1]


@pytest.fixture
def frameRuns(host, panel, ms_images, rater_probability, make_result, make_sequence):
    """A sequence of three visits: its browser, and the runs of the first two, which are shown."""
    from medsegcore.inference import SpatialAttention
    from SlicerMedSegLib.FrameRuns import FrameRuns
    from SlicerMedSegLib.ResultToScene import addResultToScene

    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Visits")
    image = ms_images["flair"]
    visits = [image.with_array(image.array * np.float32(n)) for n in (1, 2, 3)]
    proxy = make_sequence(host.core, browser, "FLAIR", visits)
    slicer.util.setSliceViewerLayers(background=proxy, fit=True)
    series = FrameRuns(slicer.mrmlScene, proxy, "all frames")
    for n in range(2):
        keys = ("decoder", "encoder") if n == 0 else ("encoder",)
        maps = [SpatialAttention(key, key, rater_probability, 1.0) for key in keys]
        result = make_result({"MS lesion": rater_probability}, ms_images, attention=maps)
        series.add(n, addResultToScene(result, slicer.mrmlScene, proxy, f"visit {n + 1}"))
    panel._showRun("visit 2")
    host.waitUntil(lambda: not panel.resultsPart.busy)
    return browser


def overlays():
    """The names of what is laid over the views."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    nodes = {slicer.mrmlScene.GetNodeByID(c.GetForegroundVolumeID() or "") for c in composites}
    return {node.GetName() for node in nodes if node is not None}


def shownRuns():
    runs = findRuns(slicer.mrmlScene)
    nodes = {run: found["segmentation"][0] for run, found in runs.items()}
    return [run for run, node in nodes.items() if node.GetDisplayNode().GetVisibility()]


def test_results_and_the_map_over_the_views_follow_the_frame_that_the_images_show(
    host, panel, frameRuns, tmp_path
):
    browser, results, attention = frameRuns, panel.resultsPart, panel.attentionPart
    panel.ui.attentionSection.collapsed = False
    host.wait(50)
    host.click(attention.ui.showButton)
    second = attention.shown.node
    browser.SetSelectedItemNumber(0)
    host.waitUntil(lambda: results.run == "visit 1")
    host.waitUntil(lambda: not results.busy)
    assert shownRuns() == ["visit 1"]
    assert attention.run == "visit 1"
    assert attention.shown.key == "encoder"
    assert attention.shown.node is not second
    assert overlays() == {attention.shown.node.GetName()}
    assert [m.node for m in attention.maps if m.key == "encoder"] == [attention.shown.node]
    assert attention.ui.mapSelector.currentText == "Where: encoder"
    host.screenshot(tmp_path / "first.png")
    # A drag cuts what is seen.
    hidden = findRuns(slicer.mrmlScene)["visit 2"]["segmentation"][0].GetSegmentation()
    before = hidden.GetSegment("Segment_1").GetRepresentation("Binary labelmap").GetMTime()
    host.dragSlider(results.sliders.slider("MS lesion"), 0.1)
    after = hidden.GetSegment("Segment_1").GetRepresentation("Binary labelmap").GetMTime()
    assert after == before
    # A map that the other run lacks goes off, and the list offers what that has.
    host.choose(attention.ui.mapSelector, "Where: decoder")
    browser.SetSelectedItemNumber(1)
    host.waitUntil(lambda: results.run == "visit 2")
    assert (attention.run, attention.shown, overlays()) == ("visit 2", None, set())
    # A frame without a result has nothing to edit; the next one that has one is shown again.
    host.waitUntil(lambda: not results.busy)
    browser.SetSelectedItemNumber(2)
    host.waitUntil(lambda: results.run is None)
    assert (attention.run, shownRuns()) == (None, [])
    browser.SetSelectedItemNumber(1)
    host.waitUntil(lambda: results.run == "visit 2")
    assert (attention.run, shownRuns()) == ("visit 2", ["visit 2"])


def test_images_that_play_open_no_results_until_they_rest(host, panel, frameRuns, monkeypatch):
    opened = []
    setRun = panel.resultsPart.setRun
    monkeypatch.setattr(panel.resultsPart, "setRun", lambda run: (opened.append(run), setRun(run)))
    for n in (0, 1, 0, 1, 0):
        frameRuns.SetSelectedItemNumber(n)
        host.wait(50)
    assert opened == []
    host.waitUntil(lambda: opened)
    assert opened == ["visit 1"]
    # The panel shows a run of no series: images that play leave it there.
    host.waitUntil(lambda: not panel.resultsPart.busy)
    panel.framePlayer.go(None)
    frameRuns.SetSelectedItemNumber(1)
    host.wait(500)
    assert opened == ["visit 1"]


def test_a_frame_of_a_volume_with_several_values_per_voxel_has_results(host, panel, ms_visits):
    visit = ms_visits[0]
    nodes = {key: volumeNodeFromImage(visit[key], key, slicer.mrmlScene) for key in ("t1", "flair")}
    several = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "T2 4-D")
    # The second one is brighter, and normalised as the first.
    t2 = visit["t2"].with_array(visit["t2"].array * np.float32(10))
    slicer.util.updateVolumeFromArray(several, np.stack([t2.array / 10, t2.array], axis=-1))
    several.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(t2.affine))
    ui = ready(host, panel)
    host.choose(panel.inputsPart._rows["t2"].selector, "T2 4-D")
    host.waitUntil(lambda: panel.inputsPart.findings is not None)
    host.choose(panel.inputsPart._rows["t2"].frameBox, "2 of 2")
    host.waitUntil(lambda: ui.segmentButton.enabled)
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    results = panel.resultsPart
    host.waitUntil(lambda: not results.busy)
    rows = results._table.rows()
    assert results.ui.lesionTable.rowCount == len(rows) > 0
    image = resample(t2, results._segments.worldGrid)
    for row in rows:
        expected = image.array.reshape(-1)[row.voxels].mean()
        assert row.lesion.inputs["t2"] == pytest.approx(expected, rel=1e-5)
    assert results._table.inputs == {**nodes, "t2": several}


def test_a_script_segments_all_frames(host, panel, ms_visits, make_sequence):
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Visits")
    proxies = {
        key: make_sequence(host.core, browser, key.upper(), [visit[key] for visit in ms_visits])
        for key in ("flair", "t1")
    }
    every = dict.fromkeys(proxies, -1)
    first, second = panel.logic.segment(MODEL, proxies, {"device": "cpu"}, frames=every)
    assert not np.array_equal(*(slicer.util.arrayFromVolume(n.answer) for n in (first, second)))
    alone = panel.logic.segment(MODEL, proxies, {"device": "cpu"}, frames={"flair": 1, "t1": 1})
    assert np.array_equal(*(slicer.util.arrayFromVolume(n.answer) for n in (alone, second)))
    assert len(findRuns(slicer.mrmlScene)) == 3


def test_a_device_that_a_scene_brings_but_the_machine_lacks_is_not_used(host, panel, addSample):
    addSample(SMALL)
    panel.runPart.setDevice("cuda:7")
    ui = ready(host, panel)
    host.waitUntil(lambda: ui.deviceBox.itemText(1).startswith("CPU"))
    assert ui.deviceBox.currentText == "Automatic"
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."


def test_a_computer_that_shares_no_folder_is_tested_used_and_remembered(host, panel, addSample):
    addSample(SMALL)
    ui = ready(host, panel)
    host.click(ui.advancedBox)
    command = f"{sys.executable} {RELAY} {sys.executable} -m medsegcore.worker"
    host.type(ui.pythonEdit, command)
    host.click(ui.testConnectionButton)
    host.waitUntil(lambda: "It works" in ui.connectionLabel.text)
    assert "shares no folder" in ui.connectionLabel.text
    assert ui.deviceBox.itemText(1).split(":")[0].removeprefix("CPU ").strip("()") in (
        ui.connectionLabel.text
    )
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    assert len(findRuns(slicer.mrmlScene)) == 1
    # The relay and the worker behind it.
    assert len(children()) == 2
    panel.onReload()
    assert slicer.modules.SlicerMedSegWidget.runPart._ui.pythonEdit.text == command


def test_a_connection_that_fails_says_why(host, panel, addSample):
    ui = panel.runPart._ui
    host.click(ui.advancedBox)
    host.type(ui.pythonEdit, "/nowhere/python")
    host.click(ui.testConnectionButton)
    host.waitUntil(lambda: "does not start" in ui.connectionLabel.text)
    host.type(ui.pythonEdit, " ")
    assert not ui.connectionLabel.visible


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_memory_that_runs_out_is_a_sentence_and_the_next_click_works(host, panel, addSample):
    addSample()
    ui = ready(host, panel)
    (pid,) = children()
    before, nodes = resource.prlimit(pid, resource.RLIMIT_AS), slicer.mrmlScene.GetNumberOfNodes()
    used = psutil.Process(pid).memory_info().vms
    resource.prlimit(pid, resource.RLIMIT_AS, (used + 30_000_000, before[1]))
    try:
        host.click(ui.segmentButton)
        done(host, panel)
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
    assert "memory" in ui.runMessageLabel.text
    assert "Close other programs" in ui.runMessageLabel.text
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    host.click(panel.inputsPart._ui.drawRegionButton)
    panel.inputsPart._ui.regionSelector.currentNode().SetSize(24, 24, 16)
    host.wait(300)
    host.waitUntil(lambda: ui.segmentButton.enabled)
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    assert children() == [pid]


def test_a_disk_that_is_full_is_a_sentence_and_leaves_the_scene_alone(host, panel, addSample):
    addSample(CROP)
    ui = ready(host, panel)
    before = slicer.mrmlScene.GetNumberOfNodes()
    host.click(ui.advancedBox)
    # Its files may have 100 KB, which no map of this crop fits into.
    limit = 'ulimit -f 200; exec "$@"'
    host.type(ui.pythonEdit, f"sh -c '{limit}' sh {sys.executable} -m medsegcore.worker")
    host.waitUntil(lambda: ui.deviceBox.count > 1)
    host.click(ui.segmentButton)
    done(host, panel)
    assert "cannot be written" in ui.runMessageLabel.text
    assert "Free some space" in ui.runMessageLabel.text
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    host.type(ui.pythonEdit, " ")
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."


def test_weights_that_are_damaged_are_a_sentence_and_another_model_works(
    host, medsegFolders, addSample, model_copy
):
    model = medsegFolders / "data" / "MedSeg" / "models" / "damaged"
    model.parent.mkdir(parents=True)
    renamed = model_copy.with_description(
        model_copy.description.model_copy(update={"id": "damaged", "title": "Damaged"})
    )
    shutil.copytree(renamed.path, model)
    panel = host.openModule(MODULE)
    addSample(SMALL)
    ui = ready(host, panel, "damaged")
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    before = slicer.mrmlScene.GetNumberOfNodes()
    host.click(ui.segmentButton)
    done(host, panel)
    assert "truncated" in ui.runMessageLabel.text
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    ready(host, panel)
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."


def test_a_result_on_its_way_into_the_scene_is_cancelled_without_a_trace(
    host, panel, addSample, monkeypatch
):
    # One step a turn of the event loop.
    monkeypatch.setattr("SlicerMedSegLib.Steps.TOGETHER_SECONDS", 0)
    addSample(SMALL)
    ui = ready(host, panel)
    before = slicer.mrmlScene.GetNumberOfNodes()
    host.click(ui.segmentButton)
    host.waitUntil(lambda: slicer.mrmlScene.GetNumberOfNodes() > before)
    # Something of it is there, but not as a run.
    assert findRuns(slicer.mrmlScene) == {}
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", "the user's")
    host.click(ui.cancelButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Cancelled."
    assert slicer.mrmlScene.IsNodePresent(mine)
    assert slicer.mrmlScene.GetNumberOfNodes() == before + 1


def test_uncertainty_by_dropout_reaches_the_run(host, panel, addSample):
    addSample(SMALL)
    ui = ready(host, panel)
    host.click(ui.dropoutCheckBox)
    assert panel._parameterNode.dropout is True
    host.click(ui.segmentButton)
    done(host, panel)
    run = next(iter(findRuns(slicer.mrmlScene).values()))
    assert "uncertainty_dropout" in [n.GetAttribute("MedSeg.Key") for n in run["attention"]]


def test_leaving_the_panel_lets_the_run_go_on(host, panel, addSample):
    addSample(SMALL)
    ui = ready(host, panel)
    host.click(ui.segmentButton)
    panel.exit()
    done(host, panel)
    assert len(findRuns(slicer.mrmlScene)) == 1
    panel.enter()
    assert ui.runMessageLabel.text == "Done."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (2, "a few seconds left"),
        (23, "about 25 seconds left"),
        (54, "about 55 seconds left"),
        (70, "about a minute left"),
        (600, "about 10 minutes left"),
        (9000, "about 2 hours left"),
    ],
)
def test_time_left_is_told_in_words(host, seconds, words):
    from SlicerMedSegLib.RunPart import timeLeft

    assert timeLeft(seconds) == words


def test_one_state_decides_what_the_button_shows(host):
    from SlicerMedSegLib.RunPart import Job, runState

    job = Job("model", {})
    assert runState(job, "", False).enabled
    assert runState(None, "Why not.", False).reason == "Why not."
    assert not runState(job, "", True).enabled
    assert runState(None, "", False).reason == "Choose a model first."
