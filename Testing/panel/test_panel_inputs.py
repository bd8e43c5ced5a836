"""The user gives each input its volume by hand, and is told what is to be said about them."""

import json
import shutil
import time

import numpy as np
import pytest
import slicer
import vtk

from medsegcore.imaging import Image

MODEL = "ms-lesion-rsanet"
CROP = (slice(60, 92), slice(60, 124), slice(50, 114))


@pytest.fixture(autouse=True)
def noWorker(monkeypatch, host):
    """Which devices there are is another file's matter; no process is started here."""
    from SlicerMedSegLib.RunPart import RunPart

    monkeypatch.setattr(RunPart, "findDevices", lambda self: None)


@pytest.fixture
def part(panel):
    panel.modelPart.choose(MODEL)
    return panel.inputsPart


def looked(host, part):
    host.waitUntil(lambda: part.findings is not None and not part._steps)


def selector(part, key):
    return part._rows[key].selector


def why(part, key):
    return part._rows[key].why.text


def names(part):
    return {key: node.GetName() for key, node in part.inputNodes().items()}


def findings(part):
    box = part._ui.findingsList
    return [box.item(n).text() for n in range(box.count)]


MATCHED = {"t1": "MS T1", "t2": "MS T2", "flair": "MS FLAIR"}


def test_the_samples_volumes_find_their_rows_and_say_why_and_how_sure(
    host, panel, part, addSample, tmp_path
):
    looked(host, part)
    assert panel.runPart._ui.segmentButton.toolTip.startswith("<p>T1-weighted MR: the model")
    addSample()
    host.waitUntil(lambda: names(part) == MATCHED)
    looked(host, part)
    assert why(part, "flair").startswith("The volume's name says 'flair'.")
    assert why(part, "flair").endswith("% sure)")
    assert "T2-weighted MR: same grid as the reference." in findings(part)
    assert part.reason() == ""
    assert panel.runPart._ui.segmentButton.enabled
    slicer.util.setSliceViewerLayers(background=part.inputNodes()["flair"], fit=True)
    host.screenshot(tmp_path / "matched.png")


def test_what_the_user_chose_is_never_overridden(host, panel, part, addSample, flair):
    addSample()
    host.waitUntil(lambda: names(part).get("t1") == "MS T1")
    # Two fit equally well, which is said; choosing either settles it.
    looked(host, part)
    assert "fits nearly as well: please check" in why(part, "flair")
    host.choose(selector(part, "flair"), "MS FLAIR")
    host.choose(selector(part, "flair"), "FLAIR")
    looked(host, part)
    assert why(part, "flair").startswith("Chosen by you.")
    host.click(part._ui.autoMatchButton)
    looked(host, part)
    assert names(part) == {"t1": "MS T1", "t2": "MS T2", "flair": "FLAIR"}
    # Emptied by hand it stays empty, until the user asks.
    host.choose(selector(part, "t2"), "None")
    looked(host, part)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", "note")
    host.wait(300)
    assert "t2" not in names(part)
    assert "zeros in its place" in " ".join(findings(part))
    host.click(part._ui.autoMatchButton)
    looked(host, part)
    assert names(part) == {"t1": "MS T1", "t2": "MS T2", "flair": "FLAIR"}


def test_volumes_that_are_loaded_one_after_the_other_find_their_rows(host, part, addSample):
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    looked(host, part)
    assert why(part, "t1") == "There is no volume in the scene: load one."
    addSample(CROP, ["t1"])
    host.waitUntil(lambda: names(part) == {"t1": "MS T1"})
    looked(host, part)
    assert why(part, "t2") == "None of the 1 volumes looks like it: please choose."
    # Emptied by hand a row stays empty, whatever comes.
    host.choose(selector(part, "t1"), "Choose a volume")
    first = addSample(CROP, ["flair"])["flair"]
    host.waitUntil(lambda: names(part) == {"flair": "MS FLAIR"})
    looked(host, part)
    assert why(part, "t2") == "None of the 2 volumes looks like it: please choose."
    host.choose(selector(part, "t1"), "MS T1")
    addSample(CROP, ["t2"])
    host.waitUntil(lambda: names(part) == MATCHED)
    looked(host, part)
    assert why(part, "t2").startswith("The volume's name says 't2'.")
    # A second one takes no place, and is told of.
    assert "please check" not in why(part, "flair")
    image = Image(slicer.util.arrayFromVolume(first).copy(), np.eye(4))
    volumeNodeFromImage(image, "FLAIR again", slicer.mrmlScene)
    host.waitUntil(lambda: "'FLAIR again' fits nearly as well" in why(part, "flair"))
    assert names(part) == MATCHED
    assert part.inputNodes()["flair"] is first
    slicer.mrmlScene.RemoveNode(first)
    host.waitUntil(lambda: names(part) == {**MATCHED, "flair": "FLAIR again"})


def offered(part, key):
    box = selector(part, key)
    return {box.nodeFromIndex(n).GetName() for n in range(box.nodeCount())}


def test_what_runs_have_made_is_offered_for_no_input(
    host, part, addSample, make_result, rater_probability, ms_images, tmp_path
):
    from SlicerMedSegLib.ResultToScene import addResultToScene

    nodes = addSample()
    host.waitUntil(lambda: len(names(part)) == 3)
    result = make_result({"MS lesion": rater_probability}, ms_images)
    addResultToScene(result, slicer.mrmlScene, nodes["flair"], "Rater")
    host.waitUntil(lambda: offered(part, "t1") == set(MATCHED.values()))
    assert names(part) == MATCHED
    host.core.saveScene(tmp_path / "scene.mrb")
    slicer.mrmlScene.Clear()
    host.core.loadScene(tmp_path / "scene.mrb")
    host.waitUntil(lambda: names(part) == MATCHED)
    assert all(offered(part, key) == set(MATCHED.values()) for key in MATCHED)


def test_choosing_one_of_several_images_empties_the_other_rows(
    host, panel, medsegFolders, ct_or_mr_model, abdomen
):
    from medsegcore.models.store import user_folder
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    shutil.copytree(ct_or_mr_model.path, user_folder() / "ct-or-mr")
    panel.modelPart.refresh()
    panel.modelPart.choose("ct-or-mr")
    part = panel.inputsPart
    for key, image in abdomen.items():
        volumeNodeFromImage(image, f"Abdomen {key.upper()}", slicer.mrmlScene)
    host.waitUntil(lambda: len(names(part)) == 1)
    looked(host, part)
    assert part.reason() == ""
    for key in ("mr", "ct"):
        host.choose(selector(part, key), f"Abdomen {key.upper()}")
        looked(host, part)
        assert names(part) == {key: f"Abdomen {key.upper()}"}
        assert panel.runPart._ui.segmentButton.enabled
    host.choose(selector(part, "ct"), "None")
    looked(host, part)
    assert part.reason() == "The model needs one image: choose a volume for CT or MR."


def test_one_volume_twice_stops_the_run_with_its_reason(host, panel, part, addSample):
    addSample()
    host.waitUntil(lambda: len(names(part)) == 3)
    host.choose(selector(part, "t1"), "MS FLAIR")
    looked(host, part)
    button = panel.runPart._ui.segmentButton
    assert not button.enabled
    assert "is chosen for T1" in button.toolTip
    assert findings(part)[0] in button.toolTip
    with pytest.raises(AssertionError, match="not enabled"):
        host.click(button)


def test_renaming_moving_emptying_and_deleting_nodes_is_noticed(host, part, addSample):
    nodes = addSample(CROP)
    host.waitUntil(lambda: len(names(part)) == 3)
    looked(host, part)
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 500)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "away")
    nodes["t1"].SetAndObserveTransformNodeID(transform.GetID())
    host.waitUntil(lambda: any("'away'" in text for text in findings(part)))
    transform.SetMatrixTransformToParent(matrix)
    host.waitUntil(lambda: "shares only 0%" in part.reason())
    nodes["t1"].SetAndObserveTransformNodeID(None)
    host.waitUntil(lambda: part.reason() == "")
    array = slicer.util.arrayFromVolume(nodes["t2"])
    kept = array.copy()
    array[:] = 7
    slicer.util.arrayFromVolumeModified(nodes["t2"])
    host.waitUntil(lambda: "every voxel of 'MS T2' is 7" in part.reason())
    array[:] = kept
    slicer.util.arrayFromVolumeModified(nodes["t2"])
    host.waitUntil(lambda: part.reason() == "")
    slicer.mrmlScene.RemoveNode(nodes["flair"])
    host.waitUntil(lambda: part.reason().startswith("FLAIR MR: the model cannot run"))


@pytest.fixture
def prostate(host, part, shipped_model):
    """Rows for a T2W and an ADC, and the sample's prostate in the scene."""
    from medsegcore.imaging import read_image
    from SlicerMedSegLib.SampleCases import CASES, LOCAL
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    ms, first = shipped_model.description, shipped_model.description.inputs[0]
    inputs = [
        first.model_copy(update={"key": key, "title": title, "required": True})
        for key, title in (("t2w", "T2W MR"), ("adc", "ADC map"))
    ]
    part.setModel(
        ms.model_copy(update={"inputs": inputs, "reference": "t2w", "skull_stripped": False})
    )
    (case,) = [case for case in CASES if case.name == "MedSegProstate"]
    for file in case.files:
        image = read_image(LOCAL / case.folder / file.file)
        volumeNodeFromImage(image, file.nodeName, slicer.mrmlScene)
    host.waitUntil(lambda: len(names(part)) == 2)
    looked(host, part)
    return part


def test_the_prostate_sample_finds_its_rows_on_two_grids(host, prostate, tmp_path):
    assert names(prostate) == {"t2w": "Prostate T2W", "adc": "Prostate ADC"}
    assert "% sure)" in why(prostate, "adc")
    said = findings(prostate)
    assert any("ADC map: another grid than the reference's, 100% overlap" in text for text in said)
    assert any("fit an ADC map in 1e-6 mm2/s" in text for text in said)
    assert prostate.reason() == ""
    host.screenshot(tmp_path / "prostate.png")


def test_an_adc_that_is_no_adc_is_told_before_the_run(host, prostate):
    host.choose(selector(prostate, "t2w"), "Prostate ADC")
    host.choose(selector(prostate, "adc"), "Prostate T2W")
    looked(host, prostate)
    (warning,) = [text for text in findings(prostate) if "no ADC" in text]
    assert warning.startswith("ADC map: the values of 'Prostate T2W' (median")
    # It is the user's decision: the run is possible.
    assert prostate.reason() == ""


def test_a_frame_of_a_four_dimensional_input_is_chosen_and_saved_with_the_scene(
    host, panel, part, addSample, ms_images, tmp_path
):
    addSample(CROP)
    image = ms_images["t2"]
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "T2 series")
    sequence.SetIndexName("time")
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    for n in range(3):
        frame = Image(image.array[CROP] * (n + 1), image.grid.crop(CROP).affine)
        node = volumeNodeFromImage(frame, "frame", slicer.mrmlScene)
        sequence.SetDataNodeAtValue(node, str(n))
        slicer.mrmlScene.RemoveNode(node)
    browser.AddSynchronizedSequenceNode(sequence)
    host.choose(selector(part, "t2"), "T2 series")
    looked(host, part)
    box = part._rows["t2"].frameBox
    assert box.visible
    assert box.itemText(0).startswith("Shown frame")
    assert part.frames() == {}
    host.choose(box, "3 of 3 (time = 2 s)")
    looked(host, part)
    assert part.frames() == {"t2": 2}
    assert any("frame 3 of 3" in text for text in findings(part))
    host.core.saveScene(tmp_path / "scene.mrb")
    slicer.mrmlScene.Clear()
    looked(host, part)
    host.core.loadScene(tmp_path / "scene.mrb")
    host.waitUntil(lambda: len(names(part)) == 3)
    looked(host, part)
    assert part.frames() == {"t2": 2}
    box = part._rows["t2"].frameBox
    assert box.currentText == "3 of 3 (time = 2 s)"
    host.wait(300)
    assert panel.runPart._job.frames == {"t2": 2}
    host.choose(selector(part, "t2"), "MS T2")
    looked(host, part)
    assert not box.visible
    assert part.frames() == {}
    assert part.inputNodes()["t2"].GetName() == "MS T2"


def test_a_frame_stays_with_its_volume_and_goes_with_it(
    host, panel, part, ms_visits, make_sequence
):
    scene = slicer.mrmlScene
    for name, prefix in (("Visits", ""), ("Other visits", "Other ")):
        browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", name)
        for key in ("flair", "t1"):
            images = [visit[key] for visit in ms_visits]
            make_sequence(host.core, browser, prefix + key.upper(), images)
    host.choose(selector(part, "flair"), "FLAIR")
    host.choose(selector(part, "t1"), "T1")
    looked(host, part)
    host.choose(part._rows["flair"].frameBox, "2 of 2 (visit = 3)")
    looked(host, part)
    host.choose(part._rows["t1"].frameBox, "All 2 frames")
    looked(host, part)
    expected = {"flair": 1, "t1": -1}
    assert part.frames() == expected
    # The other model wants the same volumes.
    panel.modelPart.choose("ms-lesion-csad")
    looked(host, part)
    assert (names(part), part.frames()) == ({"flair": "FLAIR", "t1": "T1"}, expected)
    # The frames of another volume are others.
    host.choose(selector(part, "flair"), "Other FLAIR")
    assert part.frames() == {"t1": -1}
    looked(host, part)
    assert part._rows["flair"].frameBox.currentText.startswith("Shown frame")
    host.choose(selector(part, "flair"), "FLAIR")
    looked(host, part)
    assert part.frames() == {"t1": -1}
    # Nor has one that takes its place without the user.
    part.setNodes({"t1": scene.GetFirstNodeByName("Other T1")})
    looked(host, part)
    assert part.frames() == {}
    assert json.loads(panel._parameterNode.frames) == {}


def test_a_scene_whose_model_is_not_installed_keeps_its_choice_until_the_user_makes_another(
    host, panel, part, addSample, ms_visits, make_sequence, shipped_model, tmp_path
):
    from medsegcore.models.store import user_folder

    away = tmp_path / "away" / "mine"
    shutil.copytree(shipped_model.path, away)
    text = (away / "model.json").read_text(encoding="utf-8").replace(f'"{MODEL}"', '"mine"')
    (away / "model.json").write_text(text, encoding="utf-8")
    mine = shutil.copytree(away, user_folder() / "mine")
    panel.modelPart.refresh()
    panel.modelPart.choose("mine")
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Visits")
    proxy = make_sequence(host.core, browser, "visits", [visit["t2"] for visit in ms_visits])
    proxy.SetName("T2 of both visits")
    addSample(CROP, ["t1", "flair"])
    host.choose(selector(part, "t2"), "T2 of both visits")
    looked(host, part)
    host.choose(part._rows["t2"].frameBox, "2 of 2 (visit = 3)")
    looked(host, part)
    host.core.saveScene(tmp_path / "scene.mrb")

    def remembered():
        node = panel._parameterNode
        chosen = node.parameterNode.GetNodeReference("MedSeg.Input.t2")
        return node.model, node.frames, chosen.GetName() if chosen else None

    expected = remembered()
    assert expected == ("mine", '{"t2": 1}', "T2 of both visits")
    slicer.mrmlScene.Clear()
    shutil.rmtree(mine)
    panel.exit()
    panel.enter()
    for _ in range(2):
        # Also when it was saved without the model.
        host.core.loadScene(tmp_path / "scene.mrb")
        host.wait(300)
        message = panel.modelPart._ui.modelMessageLabel
        assert message.text.startswith("There is no model 'mine' any more.")
        assert "add it again" in message.text
        assert message.visible
        assert "no model 'mine' any more" in panel.runPart._ui.segmentButton.toolTip
        assert remembered() == expected
        host.core.saveScene(tmp_path / "scene.mrb")
        slicer.mrmlScene.Clear()
        host.wait(0)
        assert not message.visible
    host.core.loadScene(tmp_path / "scene.mrb")
    host.dialogs.expect("Add a model folder", str(away))
    host.click(panel.modelPart._ui.addFolderButton)
    host.waitUntil(lambda: len(names(part)) == 3)
    looked(host, part)
    assert (names(part)["t2"], part.frames()) == ("T2 of both visits", {"t2": 1})
    assert remembered() == expected
    panel.modelPart.choose(MODEL)
    assert remembered()[0] == MODEL


def test_a_box_around_the_reference_is_made_and_pulled_smaller(host, panel, part, addSample):
    addSample(CROP)
    host.waitUntil(lambda: len(names(part)) == 3)
    looked(host, part)
    host.click(part._ui.drawRegionButton)
    looked(host, part)
    roi = part._ui.regionSelector.currentNode()
    assert part.region() is not None
    assert any("The region covers 100%" in text for text in findings(part))
    roi.SetSize(*(size / 2 for size in roi.GetSize()))
    host.waitUntil(lambda: any("The region covers 12%" in text for text in findings(part)))
    # Moved along by a voxel it covers as much, but the run has to be elsewhere.
    before = panel.runPart._job.region.affine
    roi.SetCenter(*np.add(roi.GetCenter(), (1, 0, 0)))
    host.waitUntil(lambda: panel.runPart._job.region.affine[0, 3] == before[0, 3] + 1)
    roi.SetSize(0, 0, 0)
    host.waitUntil(lambda: "0 x 0 x 0 mm" in part.reason())
    host.choose(part._ui.regionSelector, "Whole volume")
    looked(host, part)
    assert part.reason() == ""
    assert part.region() is None


def test_closing_saving_and_loading_the_scene_keeps_what_was_chosen(
    host, panel, part, addSample, flair, tmp_path
):
    addSample(CROP)
    host.waitUntil(lambda: len(names(part)) >= 2)
    host.choose(selector(part, "flair"), "FLAIR")
    looked(host, part)
    host.core.saveScene(tmp_path / "scene.mrb")
    slicer.mrmlScene.Clear()
    looked(host, part)
    assert part.inputNodes() == {}
    assert panel.modelPart.entry.description.id == MODEL
    host.core.loadScene(tmp_path / "scene.mrb")
    host.waitUntil(lambda: len(names(part)) == 3)
    assert names(part) == {"t1": "MS T1", "t2": "MS T2", "flair": "FLAIR"}
    assert list(part.chosenByUser()) == ["flair"]


def test_looking_at_full_volumes_never_holds_the_interface_for_50_ms(
    host, part, addSample, monkeypatch
):
    from SlicerMedSegLib import InputsPart as module

    spent = []
    step = module.InputsPart._step

    def timed(self):
        # CPU time: the machine may be busy with something else.
        started = time.thread_time()
        step(self)
        spent.append(time.thread_time() - started)

    part._timer.disconnect("timeout()", part._step)
    part._timer.connect("timeout()", lambda: timed(part))
    large = np.random.default_rng(1).integers(0, 900, (300, 512, 512), np.int16)
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    volumeNodeFromImage(Image(large, np.diag([0.5, 0.5, 0.6, 1])), "FLAIR", slicer.mrmlScene)
    addSample()
    host.waitUntil(lambda: len(names(part)) == 3)
    looked(host, part)
    print("longest step in ms", 1000 * max(spent), "of", len(spent))
    assert max(spent) < 0.05


def test_a_closed_part_leaves_no_observer_and_no_timer(host, part, addSample):
    nodes = addSample(CROP)
    looked(host, part)
    part.close()
    part.close()
    assert (len(part._observers), len(part._nodeObservers)) == (0, 0)
    assert not part._timer.active
    nodes["t1"].Modified()
    slicer.mrmlScene.Clear()
    host.wait(200)
    assert not part._timer.active
