"""Ten things that a user does in the wrong moment, and what is left when parts of it go."""

import contextlib
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import slicer

from SlicerMedSegLib.ResultToScene import findRuns

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"
MODEL = "ms-lesion-rsanet"
LABEL = "MS lesion"
SLIDER = f"thresholdSlider_{LABEL}"
CROP = (slice(20, 68), slice(20, 116), slice(20, 116))
SMALL = (slice(60, 76), slice(60, 92), slice(50, 82))


def children():
    return {
        p.pid
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE
    }


def held():
    """How many things on scene and nodes are observed, by all parts that there are."""
    from SlicerMedSegLib.Observing import Observers

    gc.collect()
    return sum(len(each) for each in gc.get_objects() if isinstance(each, Observers))


def views():
    """Everything of the slice views that a map changes."""
    found = []
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        found.append((
            composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(),
            composite.GetForegroundOpacity(), composite.GetCompositing(),
        ))  # fmt: skip
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        found.append(slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).tolist())
    return found


@pytest.fixture
def hand(host, panel):
    from host.hand import HostHand

    return HostHand(host, panel)


@pytest.fixture
def ready(hand, addSample):
    """Puts a part of the sample into the scene and waits until a click would run it."""

    def makeReady(box=SMALL):
        hand.clickRow("modelList", "MS lesions")
        nodes = addSample(box)
        slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)
        hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
        return nodes

    return makeReady


def segmenting(hand, careful=False):
    """A run has been started and the model computes; carefully where it must not end soon."""
    if careful:
        hand.click("carefulCheckBox")
    hand.click("segmentButton")
    hand.waitUntil(lambda: hand.text("progressLabel").startswith("Segmenting"), 60)


def ended(hand):
    hand.waitUntil(lambda: not hand.panel.runPart.busy, 60)
    return hand.text("runMessageLabel")


def run(hand):
    hand.click("segmentButton")
    assert ended(hand) == "Done."
    filled(hand)
    return findRuns(slicer.mrmlScene)


def filled(hand):
    """The lesions are measured and listed."""

    def settled():
        words = hand.text("totalsLabel").split()
        return len(words) > 2 and words[2] == str(hand.widget("lesionTable").rowCount)

    hand.waitUntil(settled)


def segmentation():
    return list(findRuns(slicer.mrmlScene).values())[-1]["segmentation"][0]


def voxels():
    node = segmentation()
    segmentId = node.GetSegmentation().GetNthSegmentID(0)
    return int((slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId) > 0).sum())


# 1


def test_a_scene_closed_while_it_runs_with_results_and_a_map_shown(host, hand, ready):
    ready(CROP)
    run(hand)
    hand.unfold("attentionSection")
    hand.click("showButton")
    segmenting(hand, careful=True)
    slicer.mrmlScene.Clear()
    assert ended(hand) == "The scene was closed, which ended the run."
    assert findRuns(slicer.mrmlScene) == {}
    assert hand.widget("lesionTable").rowCount == 0
    assert not any((hand.widget("segmentButton").enabled, hand.widget("showButton").enabled))
    ready(SMALL)
    hand.click("carefulCheckBox")
    assert len(run(hand)) == 1


# 2


def test_an_optional_input_deleted_while_it_runs_does_no_harm(hand, ready):
    nodes = ready(CROP)
    segmenting(hand)
    slicer.mrmlScene.RemoveNode(nodes["t2"])
    assert ended(hand) == "Done."
    filled(hand)
    assert hand.cells("lesionTable", "Mean FLAIR")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    assert hand.widget("t2Selector").currentNode() is None


def test_the_reference_deleted_while_it_runs_is_a_sentence(hand, ready):
    nodes = ready(CROP)
    segmenting(hand)
    slicer.mrmlScene.RemoveNode(nodes["flair"])
    assert "'MS FLAIR' was removed while the model was running" in ended(hand)
    assert findRuns(slicer.mrmlScene) == {}


# 3


def test_nodes_and_segments_renamed_while_it_runs_keep_their_meaning(hand, ready):
    nodes = ready(CROP)
    run(hand)
    segmentation().GetSegmentation().GetNthSegment(0).SetName("plaque")
    segmentation().SetName("my reading")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    segmenting(hand)
    nodes["flair"].SetName("renamed")
    assert ended(hand) == "Done."
    assert len(findRuns(slicer.mrmlScene)) == 2
    # The renamed segment of the first run is still the one that follows its threshold.
    hand.choose("runSelector", next(iter(findRuns(slicer.mrmlScene))))
    filled(hand)
    before = hand.text("totalsLabel")
    hand.drag(SLIDER, 0.6)
    hand.waitUntil(lambda: hand.text("totalsLabel") != before)
    assert next(iter(findRuns(slicer.mrmlScene).values()))["segmentation"][0].GetSegmentation(
    ).GetNthSegment(0).GetName() == "plaque"  # fmt: skip


def test_a_reference_moved_while_it_runs_takes_its_answer_along(hand, ready):
    reference = ready(CROP)["flair"]
    shared = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "T")
    reference.SetAndObserveTransformNodeID(shared.GetID())
    segmenting(hand)
    # As the Transforms module does, and as "Center volume" does.
    shared.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(moved(50)))
    reference.SetOrigin(0, 0, 0)
    assert ended(hand) == "Done."
    (nodes,) = findRuns(slicer.mrmlScene).values()
    bounds, others = [0.0] * 6, [0.0] * 6
    reference.GetRASBounds(bounds)
    nodes["probability"][0].GetRASBounds(others)
    assert others == pytest.approx(bounds, abs=1e-3)
    assert nodes["segmentation"][0].GetTransformNodeID() == shared.GetID()


def moved(mm):
    matrix = np.eye(4)
    matrix[:3, 3] = mm
    return matrix


# 4


def test_a_worker_killed_at_rest_or_at_work_is_started_again_by_the_next_click(hand, ready):
    ready(CROP)
    run(hand)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    hand.wait(200)
    assert len(run(hand)) == 2
    segmenting(hand, careful=True)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    assert "The worker was killed" in ended(hand)
    hand.click("carefulCheckBox")
    assert len(run(hand)) == 3


# 5


def test_two_clicks_are_one_run_and_a_script_waits_for_its_turn(hand, ready):
    nodes = ready(CROP)
    button = hand.widget("segmentButton")
    hand.click("segmentButton")
    # The second of a hasty double click comes when the button is off already.
    hand._host.qt.QCoreApplication.processEvents()
    button.click()
    logic = hand.panel.logic
    made = logic.segment(MODEL, nodes, {"device": "cpu"})
    assert made.segmentation is not None
    assert ended(hand) == "Done."
    assert len(findRuns(slicer.mrmlScene)) == 2


# 6


def test_undo_in_the_middle_of_a_drag_takes_the_whole_drag_back(host, hand, qt, ready):
    ready(CROP)
    run(hand)
    before, default = voxels(), hand.widget(SLIDER).value
    slider = hand.widget(SLIDER)
    hand.clickCell("lesionTable", 0, "Volume [ml]")
    for value in (0.8, 0.85, 0.9):
        slider.valueIsChanging.emit(value)
        hand.wait(20)
    host.key(hand.widget("lesionTable"), qt.Qt.Key_Z, qt.Qt.ControlModifier)
    hand.waitUntil(lambda: (voxels(), slider.value) == (before, default))
    hand.wait(1200)
    assert (voxels(), slider.value) == (before, default)
    hand.waitUntil(lambda: hand.widget("redoButton").enabled)
    hand.click("redoButton")
    hand.waitUntil(lambda: voxels() < before)
    hand.waitUntil(lambda: hand.widget("undoButton").enabled)
    hand.click("undoButton")
    host.key(hand.widget("lesionTable"), qt.Qt.Key_Z, qt.Qt.ControlModifier)
    hand.waitUntil(lambda: voxels() == before)


# 7


def test_a_module_reloaded_with_everything_on_leaves_nothing_of_the_old_panel(host, hand, ready):
    ready(CROP)
    before = views()
    run(hand)
    hand.unfold("attentionSection")
    hand.click("showButton")
    segmenting(hand, careful=True)
    observed, processes = held(), children()
    old = hand.panel
    hand.panel.onReload()
    host.wait(50)
    hand.panel = slicer.modules.SlicerMedSegWidget
    assert not children() & processes
    assert views() == before
    # The new panel has taken the results up, and the old one hears of nothing any more.
    assert hand.panel.resultsPart.run is not None
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    assert held() <= observed
    assert old.Observations == []
    for part in (old.inputsPart, old.runPart, old.resultsPart, old.attentionPart):
        assert len(part._observers) == 0
    assert not any(t.active for t in (old.inputsPart._timer, old.resultsPart._timer))
    hand.click("carefulCheckBox")
    assert len(run(hand)) == 2


# 8


@pytest.fixture
def life(monkeypatch, tmp_path):
    """Opens one application after the other, each with the panel; gives its hand."""
    from host import Host

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @contextlib.contextmanager
    def begin():
        with Host() as host:
            from host.hand import HostHand

            host.addPythonSlicer()
            yield HostHand(host, host.openModule(MODULE))
        host.check()

    return begin


def test_a_saved_scene_shows_its_results_in_a_fresh_application(life, tmp_path):
    from SlicerMedSegLib.Scenarios import loadSample

    path = str(tmp_path / "scene.mrb")
    with life() as hand:
        hand.clickRow("modelList", "MS lesions")
        nodes = loadSample(CROP)
        slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)
        hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
        run(hand)
        totals = hand.text("totalsLabel")
        hand.drag(SLIDER, 0.3)
        hand.waitUntil(lambda: hand.text("totalsLabel") != totals)
        totals, threshold = hand.text("totalsLabel"), hand.widget(SLIDER).value
        hand.unfold("attentionSection")
        hand.click("showButton")
        hand.saveScene(path)
    with life() as hand:
        hand.loadScene(path)
        hand.unfold("resultsSection")
        hand.waitUntil(lambda: hand.text("totalsLabel") == totals)
        assert hand.widget(SLIDER).value == pytest.approx(threshold)
        hand.unfold("attentionSection")
        assert hand.text("showButton") == "Off"
        hand.click("showButton")
        assert all(not each[1] for each in views() if isinstance(each, tuple))
        hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
        assert len(run(hand)) == 2


# 9


def mine(shipped_model, folder, name):
    """A model of the user's own, under an id of its own."""
    target = folder / "data" / "MedSeg" / "models" / name
    shutil.copytree(shipped_model.path, target)
    text = (target / "model.json").read_text(encoding="utf-8")
    text = text.replace(f'"{MODEL}"', f'"{name}"')
    text = text.replace(f'"{shipped_model.description.title}"', f'"{name} title"')
    (target / "model.json").write_text(text, encoding="utf-8")
    return target


def test_a_model_folder_that_goes_is_a_sentence_and_the_shipped_one_works(
    medsegFolders, hand, addSample, shipped_model
):
    folder = mine(shipped_model, medsegFolders, "mine")
    hand.panel.exit()
    hand.panel.enter()
    hand.clickRow("modelList", "mine title")
    addSample(CROP)
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    # While it is chosen.
    folder.rename(folder.with_name("elsewhere"))
    hand.click("segmentButton")
    text = ended(hand)
    assert "mine" in text, text
    assert "MedSeg failed" not in text, text
    # Back again, and gone while it runs: what was read is enough, or it is a sentence.
    folder.with_name("elsewhere").rename(folder)
    segmenting(hand)
    shutil.rmtree(folder)
    text = ended(hand)
    assert text == "Done.", text
    hand.panel.exit()
    hand.panel.enter()
    assert not hand.widget("segmentButton").enabled
    hand.clickRow("modelList", "MS lesions")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    assert len(run(hand)) == 2


# 10


def test_a_four_dimensional_input_that_loses_its_frames_stops_the_run_with_a_reason(
    hand, ready, ms_images
):
    from medsegcore.imaging import Image
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    ready(SMALL)
    image = ms_images["t2"]
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "T2 series")
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    for n in range(2):
        frame = Image(image.array[SMALL] * (n + 1), image.grid.crop(SMALL).affine)
        node = volumeNodeFromImage(frame, "frame", slicer.mrmlScene)
        sequence.SetDataNodeAtValue(node, str(n))
        slicer.mrmlScene.RemoveNode(node)
    browser.AddSynchronizedSequenceNode(sequence)
    hand.choose("t2Selector", "T2 series")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    run(hand)
    sequence.RemoveAllDataNodes()
    hand.waitUntil(lambda: not hand.widget("segmentButton").enabled)
    assert "T2" in hand.widget("segmentButton").toolTip
    hand.choose("t2Selector", "None")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)


# What is left.


def test_a_closed_scene_and_a_loaded_one_leave_as_many_observers_as_before(
    host, hand, ready, tmp_path
):
    nothing = held()
    ready(CROP)
    run(hand)
    hand.unfold("attentionSection")
    hand.click("showButton")
    hand.click("showButton")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    once = held()
    hand.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    hand.wait(300)
    assert held() == nothing
    for _time in range(2):
        hand.loadScene(str(tmp_path / "scene.mrb"))
        hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
        hand.wait(300)
        assert held() == once


def test_another_module_gets_the_views_back_and_no_timer_goes_on(host, hand, ready):
    ready(CROP)
    run(hand)
    before = views()
    hand.unfold("attentionSection")
    hand.click("showButton")
    assert views() != before
    host.loadModule(Path(__file__).resolve().parent / "HostExample" / "HostExample.py")
    slicer.util.selectModule("HostExample")
    host.wait(1500)
    assert views() == before
    from host.conversion import unwrap

    timers = [t for t in unwrap(hand.panel.parent).findChildren(host.qt.QTimer) if t.isActive()]
    assert timers == []
    assert not hand.panel.inputsPart._timer.active
    assert not hand.panel.resultsPart._timer.active
    slicer.util.selectModule("SlicerMedSeg")
    assert hand.panel.resultsPart.run is not None
    filled(hand)
    assert hand.widget("lesionTable").rowCount > 0


def test_a_panel_that_was_cleaned_up_hears_nothing_and_holds_no_process(host, hand, ready):
    ready(SMALL)
    run(hand)
    assert children()
    observed = held()
    hand.panel.cleanup()
    assert children() == set()
    assert held() == 0 < observed
    assert hand.panel.Observations == []
    slicer.mrmlScene.Clear()
    host.wait(300)
