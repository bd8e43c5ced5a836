"""Two visits of one patient as a sequence: every frame is segmented, and plays with the images."""

import tempfile
import time

import numpy as np
import pytest
import slicer

from medsegcore.errors import CancelledError, SettingError
from medsegcore.imaging import resample
from SlicerMedSegLib.FrameRuns import FramePlayer
from SlicerMedSegLib.InputChecks import InputChecks
from SlicerMedSegLib.InputFrames import ALL_FRAMES, frameSets
from SlicerMedSegLib.LesionTable import LesionTable
from SlicerMedSegLib.NodeNames import FRAME
from SlicerMedSegLib.ResultToScene import findRuns
from SlicerMedSegLib.Running import endWorker, warmWorker
from SlicerMedSegLib.RunSegments import RunSegments
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.Segmenting import Segmentation
from SlicerMedSegLib.SegmentingFrames import SegmentationSeries, segmentNodes, startSegmentation

MODEL = "ms-lesion-rsanet"
CPU = {"device": "cpu"}
BOTH = {"flair": ALL_FRAMES, "t1": ALL_FRAMES}


@pytest.fixture(autouse=True, scope="module")
def workerEnds(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        folder = str(tmp_path_factory.mktemp("temporary"))
        patched.setattr(tempfile, "tempdir", folder)
        patched.setenv("TMPDIR", folder)
        yield
        endWorker()


@pytest.fixture
def browser(core):
    return core.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Visits")


@pytest.fixture
def nodes(core, browser, ms_visits, make_sequence):
    """FLAIR and T1 as sequences of two visits, and a plain T2."""
    made = {
        key: make_sequence(core, browser, key.upper(), [visit[key] for visit in ms_visits])
        for key in ("flair", "t1")
    }
    return made | {"t2": volumeNodeFromImage(ms_visits[0]["t2"], "T2", core.scene)}


def runSeries(core, nodes, frames=BOTH, progress=None):
    """A series that has ended."""
    worker, ended = warmWorker(), []
    series = startSegmentation(
        worker, core.scene, MODEL, nodes, CPU, progress and (lambda *a: progress(series, *a)),
        ended.append, frames,
    )  # fmt: skip
    while not ended:
        worker.poll()
        time.sleep(0.005)
    assert ended == [series]
    return series


def answers(scene):
    return {
        run: slicer.util.arrayFromVolume(roles["answer"][0])
        for run, roles in findRuns(scene).items()
    }


def shown(scene):
    """The frames whose segmentations are shown."""
    return [
        node.GetAttribute(FRAME)
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene)
        if node.GetDisplayNode().GetVisibility()
    ]


def test_every_frame_gets_the_answer_that_its_volumes_get_alone(core, nodes, ms_visits):
    said = []
    series = runSeries(core, nodes, progress=lambda s, stage, *rest: said.append((s.where, stage)))
    assert isinstance(series, SegmentationSeries)
    assert series.error is None
    found = answers(core.scene)
    titles = list(found)
    assert [title.split(", ")[-1] for title in titles] == [
        "1 of 2 (visit = 2)", "2 of 2 (visit = 3)",
    ]  # fmt: skip
    assert {where for where, _stage in said} == {"Frame 1 of 2", "Frame 2 of 2"}
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(core.scene)
    folder = hierarchy.GetItemByName("MS lesions from T1, T2 and FLAIR (RSANet), all frames")
    assert hierarchy.GetNumberOfItemChildren(folder) == 2
    # Whatever is shown now, the means are those of the frame that was segmented.
    for n, title in enumerate(titles):
        table = LesionTable(RunSegments(core.scene, title))
        for row in table.rows():
            for key, of_visit in (("flair", ms_visits[n]), ("t2", ms_visits[0])):
                image = resample(of_visit[key], table.segments.worldGrid)
                inside = image.array.reshape(-1)[row.voxels]
                assert row.lesion.inputs[key] == pytest.approx(inside.mean(), rel=1e-5)
    second = {
        key: volumeNodeFromImage(ms_visits[1][key], key, core.scene) for key in ("flair", "t1")
    }
    alone = segmentNodes(core.scene, MODEL, second | {"t2": nodes["t2"]}, CPU)
    expected = slicer.util.arrayFromVolume(alone.answer)
    assert expected.any()
    assert np.array_equal(found[titles[1]], expected)
    assert not np.array_equal(found[titles[0]], expected)


def test_segmentations_play_with_the_browser_and_a_run_takes_it_to_its_frame(
    core, nodes, browser, tmp_path
):
    runSeries(core, nodes)
    player = FramePlayer(core.scene)
    first, second = findRuns(core.scene)
    player.go(second)
    assert (browser.GetSelectedItemNumber(), shown(core.scene)) == (1, ["1"])
    browser.SetSelectedItemNumber(0)
    assert shown(core.scene) == ["0"]
    # What the user hides stays hidden while the images stay.
    segmentation = findRuns(core.scene)[first]["segmentation"][0]
    segmentation.GetDisplayNode().SetVisibility(0)
    browser.SetPlaybackRateFps(3)
    assert shown(core.scene) == []
    core.saveScene(tmp_path / "scene.mrb")
    core.scene.Clear()
    core.loadScene(tmp_path / "scene.mrb")
    again = core.scene.GetFirstNodeByName("Visits")
    again.SetSelectedItemNumber(1)
    assert shown(core.scene) == ["1"]
    player.go(first)
    assert (again.GetSelectedItemNumber(), shown(core.scene)) == (0, ["0"])
    player.close()
    again.SetSelectedItemNumber(1)
    assert shown(core.scene) == ["0"]


def test_cancelled_in_the_second_frame_the_first_one_stays(core, nodes):
    def cancel(series, stage, *_rest):
        if series.where == "Frame 2 of 2":
            series.cancel()

    series = runSeries(core, nodes, progress=cancel)
    assert isinstance(series.error, CancelledError)
    assert len(findRuns(core.scene)) == 1
    assert series.nodes.segmentation.GetAttribute(FRAME) == "0"
    assert shown(core.scene) == ["0"]


def test_a_frame_that_fails_ends_the_series_and_what_is_finished_stays(core, nodes, browser):
    def remove(series, stage, *_rest):
        if series.where == "Frame 2 of 2" and core.scene.IsNodePresent(nodes["flair"]):
            core.scene.RemoveNode(nodes["flair"])

    series = runSeries(core, nodes, progress=remove)
    assert "'FLAIR' was removed" in str(series.error)
    assert len(findRuns(core.scene)) == 1


def test_one_frame_is_a_plain_run(core, nodes):
    run = startSegmentation(
        warmWorker(), core.scene, MODEL, nodes, CPU, None, None, {"flair": 1, "t1": 1}
    )
    assert isinstance(run, Segmentation)
    run.cancel()


def test_what_is_said_before_a_series(
    core, nodes, browser, ms_visits, shipped_model, make_sequence
):
    checks, ms = InputChecks(), shipped_model.description
    said = {f.text: f.level for f in checks.checkSeries(ms, nodes, BOTH)}
    assert said["FLAIR MR: all 2 frames of 'FLAIR' are segmented, one after the other."] == "ok"
    assert checks.canRun(checks.checkSeries(ms, nodes, BOTH))
    # The second frame of one input is empty.
    image = ms_visits[0]["t1"]
    empty = [image, image.with_array(np.zeros_like(image.array))]
    nodes["t1"] = make_sequence(core, browser, "T1", empty)
    wrong = [f for f in checks.checkSeries(ms, nodes, BOTH) if f.level == "error"]
    assert [(f.key, f.code) for f in wrong] == [("t1", "constant")]
    assert wrong[0].text.endswith("(In frame 2.)")
    nodes["t1"] = make_sequence(core, browser, "T1", [image] * 3)
    (wrong,) = checks.checkSeries(ms, nodes, BOTH)
    assert "2 of 'FLAIR', 3 of 'T1" in wrong.text
    with pytest.raises(SettingError):
        frameSets(nodes, BOTH)
    assert frameSets(nodes, {"flair": ALL_FRAMES, "t1": 2}) == [
        {"flair": 0, "t1": 2}, {"flair": 1, "t1": 2},
    ]  # fmt: skip


def test_frames_without_a_browser_are_shown_one_at_a_time(core, nodes, ms_visits):
    # A plain sequence is no volume: the answers lie on the FLAIR, which stays the same.
    flair = volumeNodeFromImage(ms_visits[0]["flair"], "FLAIR alone", core.scene)
    sequence = next(
        s for s in slicer.util.getNodesByClass("vtkMRMLSequenceNode", core.scene)
        if s.GetName() == "T1"
    )  # fmt: skip
    series = runSeries(core, {"flair": flair, "t1": sequence}, {"t1": ALL_FRAMES})
    assert series.error is None
    player = FramePlayer(core.scene)
    first, second = findRuns(core.scene)
    player.go(first)
    assert shown(core.scene) == ["0"]
    player.go(second)
    assert shown(core.scene) == ["1"]
    player.go(None)
    assert shown(core.scene) == ["1"]
    player.close()
