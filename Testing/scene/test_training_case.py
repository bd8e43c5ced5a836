"""A corrected result becomes a case to train on: what was seen, as it was corrected, by no name."""

import gzip
import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import slicer
import vtk

from medsegcore.cli import main
from medsegcore.errors import (
    DatasetError,
    GeometryError,
    MissingInputError,
    ModelNotFoundError,
    OutputError,
    SegmentsError,
)
from medsegcore.imaging import Image, grid_with_spacing, read_image, resample
from medsegcore.training.datasets import read_dataset
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.LesionTable import LesionTable
from SlicerMedSegLib.LiveThreshold import LiveThreshold
from SlicerMedSegLib.ResultToScene import addResultToScene, rememberInputs
from SlicerMedSegLib.RunSegments import RunSegments
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.Steps import runToEnd
from SlicerMedSegLib.TrainingCase import TrainingCase, saveTrainingCase

LABEL = "MS lesion"
PATIENT = "DOEHRING JANETTA 19700101"


def of(result, model):
    """The result with the provenance that a predictor writes."""
    d = model.description
    told = {"id": d.id, "version": d.version, "sha256": d.weights.sha256}
    return replace(result, provenance={"model": told, "inputs": {"t1": {}, "flair": {}}})


@pytest.fixture
def nodes(core, flair, ms_images, rater_result, shipped_model):
    """A run of the MS model on a T1 on a coarser grid than the FLAIR; T2 was not given."""
    added = addResultToScene(of(rater_result, shipped_model), core.scene, flair, "run")
    coarse = grid_with_spacing(ms_images["t1"].grid, (1.5, 1.5, 2.0))
    t1 = volumeNodeFromImage(resample(ms_images["t1"], coarse), f"T1 {PATIENT}", core.scene)
    t1.SetDescription(PATIENT)
    flair.SetName(f"FLAIR {PATIENT}")
    flair.SetAttribute("DICOM.instanceUIDs", PATIENT)
    rememberInputs(added.segmentation, {"t1": t1, "flair": flair})
    return added


def save(core, folder, run="run", model=None):
    return saveTrainingCase(core.scene, run, folder, model)


def inScene(node, volume, segmentId="Segment_1"):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volume) > 0


def paint(node, volume, box, segmentId="Segment_1"):
    """What a user's brush does."""
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volume).copy()
    array[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segmentId, volume)


def described(folder):
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def patient(folder, name):
    """As a case's patient is called: unlike that of another folder."""
    return f"{name}-{described(folder)['name'][-8:]}"


def images(folder, name):
    """A case's images by key, as a training reads them."""
    (case,) = [case for case in read_dataset(folder).cases if case.id == name]
    return {key: read_image(path) for key, path in case.images.items()}


def contents(folder):
    """{path: bytes} of everything below a folder, hidden files included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def test_the_case_has_the_images_on_their_own_grids_and_the_mask_as_the_editor_shows_it(
    core, flair, nodes, ms_images, tmp_path
):
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63])
    segments = RunSegments(core.scene, "run")
    table = LesionTable(segments)
    table.setKept(table.rows()[:1], False)
    nodes.segmentation.GetSegmentation().GetSegment("Segment_1").SetName("my own name")
    shown = inScene(nodes.segmentation, flair)
    saved = save(core, tmp_path / "cases")
    t1 = nodes.segmentation.GetNodeReference("MedSeg.Input.t1")
    written = images(tmp_path / "cases", "case_001")
    assert written.keys() == {"t1", "flair"}
    assert np.array_equal(written["t1"].array, slicer.util.arrayFromVolume(t1))
    assert np.array_equal(written["flair"].array, ms_images["flair"].array)
    assert written["flair"].grid.same_as(ms_images["flair"].grid)
    assert written["t1"].shape != written["flair"].shape
    mask = read_image(tmp_path / "cases" / "labelsTr" / "case_001.nii.gz")
    assert mask.grid.same_as(ms_images["flair"].grid)
    assert mask.array.dtype == np.uint8
    assert np.array_equal(mask.array == 1, shown)
    volume = shown.sum() * mask.grid.voxel_volume_ml
    assert saved.message == (
        f"Saved as case_001 in cases (2 images, mask: MS lesion {volume:.2f} ml)."
    )
    assert (saved.case, saved.replaced) == ("case_001", False)


@pytest.mark.parametrize("orientation", ["LPS", "SRA", "PIR"])
def test_flipped_and_turned_slices_under_a_transform_that_moved_since_stand_where_they_stand(
    core, ms_images, rater_probability, make_result, shipped_model, tmp_path, orientation
):
    from medsegcore.imaging import reorient

    image = reorient(ms_images["flair"], orientation)
    probability = reorient(Image(rater_probability, ms_images["flair"].affine), orientation).array
    flair = volumeNodeFromImage(image, "FLAIR", core.scene)
    t1 = volumeNodeFromImage(ms_images["t1"], "T1", core.scene)
    turned, moved = vtk.vtkTransform(), vtk.vtkTransform()
    turned.RotateX(20)
    moved.Translate(12, -7, 30)
    moved.RotateZ(50)
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "scanner")
    transform.SetMatrixTransformToParent(turned.GetMatrix())
    for node in (flair, t1):
        node.SetAndObserveTransformNodeID(transform.GetID())
    stood = slicer.util.arrayFromVTKMatrix(turned.GetMatrix()) @ image.affine
    result = make_result({LABEL: probability}, {"flair": image}, affine=stood)
    nodes = addResultToScene(of(result, shipped_model), core.scene, flair, "run")
    rememberInputs(nodes.segmentation, {"t1": t1, "flair": flair})
    # The patient is moved after the run; the answer goes along.
    transform.SetMatrixTransformToParent(moved.GetMatrix())
    save(core, tmp_path)
    stands = slicer.util.arrayFromVTKMatrix(moved.GetMatrix())
    mask = read_image(tmp_path / "labelsTr" / "case_001.nii.gz")
    written = images(tmp_path, "case_001")
    assert np.allclose(mask.affine, stands @ image.affine, atol=1e-3)
    assert np.allclose(written["flair"].affine, mask.affine, atol=1e-3)
    assert np.array_equal(written["flair"].array, image.array)
    assert np.array_equal(mask.array > 0, result.labelmap > 0)
    assert np.allclose(written["t1"].affine, stands @ ms_images["t1"].affine, atol=1e-3)


def test_a_reference_that_was_moved_away_from_its_mask_is_no_case(core, flair, nodes, tmp_path):
    shift = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    matrix = np.eye(4)
    matrix[0, 3] = 2.0
    shift.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    flair.SetAndObserveTransformNodeID(shift.GetID())
    with pytest.raises(GeometryError, match="does not lie on the segmentation's grid"):
        save(core, tmp_path / "cases")
    assert not (tmp_path / "cases").exists()


def test_what_made_the_mask_is_told_case_by_case(core, flair, nodes, tmp_path, shipped_model):
    save(core, tmp_path)
    d = shipped_model.description
    (origin,) = described(tmp_path)["medseg"]["cases"].values()
    assert (origin["changed"], origin["edited"]) == (False, [])
    assert origin["models"] == [
        {"id": d.id, "version": d.version, "sha256": d.weights.sha256}
    ]  # fmt: skip
    LiveThreshold(RunSegments(core.scene, "run")).setThreshold(LABEL, 0.3)
    save(core, tmp_path)
    (origin,) = described(tmp_path)["medseg"]["cases"].values()
    assert (origin["changed"], origin["edited"], origin["thresholds"]) == (True, [], {LABEL: 0.3})
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63])
    save(core, tmp_path)
    (origin,) = described(tmp_path)["medseg"]["cases"].values()
    assert (origin["changed"], origin["edited"]) == (True, [LABEL])
    data = read_dataset(tmp_path)
    assert (data.license, data.commercial_use) == ("not stated", False)
    assert data.skull_stripped == d.skull_stripped
    assert f"{d.id} {d.version}" in data.masks
    assert "1 of 1 were changed" in data.masks


def test_all_models_of_a_mean_and_a_box_are_told(core, nodes, tmp_path):
    told = json.loads(nodes.provenance.GetText())
    told["models"] = [told["model"], {**told["model"], "id": "ms-lesion-csad"}]
    told["settings"]["region"] = {"affine": np.eye(4).tolist(), "size_mm": [30, 30, 30]}
    nodes.provenance.SetText(json.dumps(told))
    assert "The model saw a box alone" in save(core, tmp_path).message
    (origin,) = described(tmp_path)["medseg"]["cases"].values()
    assert [model["id"] for model in origin["models"]] == ["ms-lesion-rsanet", "ms-lesion-csad"]
    assert origin["region"]


def test_a_result_that_is_saved_again_takes_the_place_of_its_case_alone(
    core, flair, nodes, rater_result, shipped_model, tmp_path
):
    second = addResultToScene(of(rater_result, shipped_model), core.scene, flair, "other")
    t1 = nodes.segmentation.GetNodeReference("MedSeg.Input.t1")
    rememberInputs(second.segmentation, {"t1": t1, "flair": flair})
    assert [save(core, tmp_path, run).case for run in ("run", "other")] == ["case_001", "case_002"]
    # A researcher wrote into both: the terms, and into a mask.
    content = described(tmp_path)
    content["medseg"]["license"] = "internal"
    content["medseg"]["sites"]["case_001"] = "scanner 2"
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    theirs = tmp_path / "labelsTr" / "case_002.nii.gz"
    theirs.write_bytes((tmp_path / "labelsTr" / "case_001.nii.gz").read_bytes() + b"theirs")
    before = contents(tmp_path)
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63])
    saved = save(core, tmp_path)
    assert (saved.case, saved.replaced) == ("case_001", True)
    assert "Saved again as case_001" in saved.message
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {
        "dataset.json", "labelsTr/case_001.nii.gz"
    }  # fmt: skip
    assert after.keys() == before.keys()
    content = described(tmp_path)
    assert content["numTraining"] == 2
    assert content["medseg"]["license"] == "internal"
    assert content["medseg"]["sites"]["case_001"] == "scanner 2"
    # Two results of one volume are one patient's: they never come into two folds.
    assert read_dataset(tmp_path).patients == [patient(tmp_path, "case_001")]


def test_a_scene_that_was_saved_and_loaded_still_knows_its_case(core, nodes, tmp_path):
    save(core, tmp_path / "cases")
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        assert save(other, tmp_path / "cases").replaced


def test_what_a_user_deletes_from_the_folder_gets_no_other_meaning(
    core, flair, nodes, rater_result, shipped_model, tmp_path
):
    save(core, tmp_path)
    for file in tmp_path.rglob("case_001*"):
        file.unlink()
    second = addResultToScene(of(rater_result, shipped_model), core.scene, flair, "other")
    rememberInputs(
        second.segmentation,
        {"t1": nodes.segmentation.GetNodeReference("MedSeg.Input.t1"), "flair": flair},
    )
    assert save(core, tmp_path, "other").case == "case_002"
    assert described(tmp_path)["numTraining"] == 1


def test_nothing_that_names_anybody_reaches_the_folder(core, nodes, flair, tmp_path):
    folder = tmp_path / f"cases of {PATIENT}"
    save(core, folder)
    words = [*PATIENT.split(), "cases of", str(tmp_path), tmp_path.name]
    words += [nodes.segmentation.GetID(), flair.GetID()]
    files = contents(folder)
    assert len(files) == 4
    for name, data in files.items():
        assert not any(word in name for word in words)
        unpacked = gzip.decompress(data) if name.endswith(".gz") else b""
        for word in words:
            assert word.encode() not in data
            assert word.encode() not in unpacked
        if unpacked:
            # No file name and no time in gzip's header; no text in NIfTI's: db_name and its
            # neighbours, descrip, aux_file, intent_name.
            assert data[3:8] == bytes(5)
            assert not any(unpacked[4:38] + unpacked[148:252] + unpacked[328:344])


def test_a_segment_that_is_none_of_the_models_stops_it_by_its_name(core, flair, nodes, tmp_path):
    segmentation = nodes.segmentation.GetSegmentation()
    own = segmentation.AddEmptySegment("mine", "vessel")
    # Without a voxel nothing would be lost.
    save(core, tmp_path)
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63], own)
    before = contents(tmp_path)
    with pytest.raises(SegmentsError, match=r"'vessel' is none of the model's labels \(MS lesion"):
        save(core, tmp_path)
    segmentation.RemoveSegment(own)
    # A copy of the model's segment has its tags.
    segmentation.CopySegmentFromSegmentation(segmentation, "Segment_1")
    with pytest.raises(SegmentsError, match="none of the model's labels"):
        save(core, tmp_path)
    assert contents(tmp_path) == before


def test_a_removed_segment_or_volume_or_model_is_told_in_a_sentence(
    core, flair, nodes, tmp_path, monkeypatch
):
    segmentation = nodes.segmentation.GetSegmentation()
    kept = slicer.vtkSegment()
    kept.DeepCopy(segmentation.GetSegment("Segment_1"))
    segmentation.RemoveSegment("Segment_1")
    with pytest.raises(MissingInputError, match="no segment of 'MS lesion' any more"):
        save(core, tmp_path)
    segmentation.AddSegment(kept, "Segment_1")
    with monkeypatch.context() as patch:
        patch.setattr("medsegcore.models.store.ZOO", tmp_path)
        with pytest.raises(ModelNotFoundError, match="no model 'ms-lesion-rsanet'"):
            save(core, tmp_path)
    text = nodes.provenance.GetText()
    nodes.provenance.SetText("{}")
    with pytest.raises(MissingInputError, match="which model answered"):
        save(core, tmp_path)
    nodes.provenance.SetText(text)
    core.scene.RemoveNode(nodes.segmentation.GetNodeReference("MedSeg.Input.t1"))
    with pytest.raises(MissingInputError, match="'T1-weighted MR' is not in the scene"):
        save(core, tmp_path)
    assert contents(tmp_path) == {}


def test_a_case_without_a_lesion_is_a_case_and_is_said_to_be_one(core, flair, nodes, tmp_path):
    empty = np.zeros(slicer.util.arrayFromVolume(flair).shape, np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(empty, nodes.segmentation, "Segment_1", flair)
    assert "mask: no MS lesion" in save(core, tmp_path).message
    assert not read_image(tmp_path / "labelsTr" / "case_001.nii.gz").array.any()


def test_each_label_has_the_models_value_and_an_overlap_is_told(
    core, flair, ms_images, rater_probability, make_result, shared_data, tmp_path
):
    from medsegcore.models import ModelStore

    model = ModelStore(tmp_path / "none").find("prostate-zones-csad")
    names = [label.name for label in model.description.labels]
    shifted = np.roll(rater_probability, 12, axis=2) * (rater_probability < 0.1)
    result = make_result(dict(zip(names, (rater_probability, shifted), strict=True)), ms_images)
    told = of(result, model).provenance | {"inputs": {}}
    nodes = addResultToScene(replace(result, provenance=told), core.scene, flair, "run")
    t1 = volumeNodeFromImage(ms_images["t1"], "T1", core.scene)
    rememberInputs(nodes.segmentation, {"t2w": flair, "adc": t1})
    save(core, tmp_path / "cases")
    mask = read_image(tmp_path / "cases" / "labelsTr" / "case_001.nii.gz").array
    for label in model.description.labels:
        own = names.index(label.name) + 1
        assert (mask == label.value).sum() == (result.labelmap == own).sum() > 0
    before = contents(tmp_path / "cases")
    box = np.s_[80:84, 80:84, 80:84]
    grid = ms_images["flair"].grid
    segmentation = nodes.segmentation
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    from SlicerMedSegLib.SceneConversion import orientedImage

    both = np.zeros(grid.shape, np.uint8)
    both[box] = 1
    for segmentId in ("Segment_1", "Segment_2"):
        image = orientedImage(Image(both, grid.affine))
        logic.SetBinaryLabelmapToSegment(
            image, segmentation, segmentId, logic.MODE_MERGE_MAX, image.GetExtent(), False, []
        )
    with pytest.raises(SegmentsError, match=r"overlap in 0\.06 ml"):
        save(core, tmp_path / "cases")
    assert contents(tmp_path / "cases") == before


@pytest.mark.parametrize("other", ["files", "data set", "labels", "images"])
def test_a_folder_of_something_else_is_refused_and_left_alone(core, nodes, tmp_path, other):
    folder = tmp_path / "cases"
    if other == "files":
        folder.mkdir()
        (folder / "thesis.txt").write_text("precious")
    else:
        save(core, folder)
        content = described(folder)
        if other == "data set":
            del content["medseg"]["cases"]
        elif other == "labels":
            content["labels"] = {"background": 0, "tumour": 1}
        else:
            content["medseg"]["channels"]["T1-weighted MR"]["key"] = "adc"
        (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    before = contents(folder)
    with pytest.raises(DatasetError, match="empty folder, or one with saved cases of this model"):
        save(core, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("room", [20_000, 1_400_000])
def test_a_full_disk_leaves_the_folder_as_it_was(core, flair, nodes, tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def saveOnFullDisk(folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(OutputError, match="cannot be written"):
                save(core, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    saveOnFullDisk(tmp_path / "cases")
    assert list(tmp_path.iterdir()) == []
    assert nodes.segmentation.GetAttribute("MedSeg.TrainingRun") is None
    save(core, tmp_path / "cases")
    there = contents(tmp_path / "cases")
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63])
    saveOnFullDisk(tmp_path / "cases")
    assert contents(tmp_path / "cases") == there
    assert sorted(p.name for p in (tmp_path / "cases").iterdir()) == [
        "dataset.json", "imagesTr", "labelsTr"
    ]  # fmt: skip


def test_what_fails_at_the_last_file_is_taken_back(core, flair, nodes, tmp_path, monkeypatch):
    def full(path, content):
        raise OutputError(f"'{path}' cannot be written: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr("medsegcore.corrections.write_file", full)
        with pytest.raises(OutputError):
            save(core, tmp_path / "cases")
        assert list(tmp_path.iterdir()) == []
    save(core, tmp_path / "cases")
    there = contents(tmp_path / "cases")
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63])
    monkeypatch.setattr("medsegcore.corrections.write_file", full)
    with pytest.raises(OutputError):
        save(core, tmp_path / "cases")
    assert contents(tmp_path / "cases") == there


def test_a_case_is_that_of_the_click_and_steps_that_are_given_up_leave_nothing(
    core, flair, nodes, tmp_path
):
    segments = RunSegments(core.scene, "run")
    shown = inScene(nodes.segmentation, flair)
    given_up = TrainingCase(segments).saving(tmp_path / "given up")
    while not list(tmp_path.glob("given up/*/*")):
        next(given_up)
    given_up.close()
    assert list(tmp_path.iterdir()) == []
    steps = TrainingCase(segments).saving(tmp_path / "cases")
    next(steps)
    paint(nodes.segmentation, flair, np.s_[60:63, 60:63, 60:63])
    segments.close()
    runToEnd(steps)
    mask = read_image(tmp_path / "cases" / "labelsTr" / "case_001.nii.gz")
    assert np.array_equal(mask.array > 0, shown)


def test_the_frame_that_was_segmented_is_saved_and_all_frames_are_one_patients(
    core, ms_visits, make_result, make_sequence, shipped_model, tmp_path
):
    browser = core.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    proxies = {
        key: make_sequence(core, browser, key, [visit[key] for visit in ms_visits])
        for key in ("t1", "flair")
    }
    for frame in (0, 1):
        probability = np.zeros(ms_visits[0]["flair"].shape, np.float32)
        probability[4:9, 4:9, 4 : 9 + frame] = 0.9
        result = make_result({LABEL: probability}, ms_visits[0])
        nodes = addResultToScene(
            of(result, shipped_model), core.scene, proxies["flair"], f"frame {frame}"
        )
        rememberInputs(nodes.segmentation, proxies, dict.fromkeys(proxies, frame))
    for frame in (1, 0):
        browser.SetSelectedItemNumber(1 - frame)
        case = save(core, tmp_path, f"frame {frame}").case
        written = images(tmp_path, case)["flair"]
        assert np.array_equal(written.array, ms_visits[frame]["flair"].array)
    data = read_dataset(tmp_path)
    assert len(data.cases) == 2
    assert data.patients == [patient(tmp_path, "case_001")]


def test_a_model_of_one_of_several_inputs_gets_cases_of_each(
    core, abdomen, ct_or_mr_model, make_result, tmp_path
):
    names = [label.name for label in ct_or_mr_model.description.labels]
    for key, image in abdomen.items():
        node = volumeNodeFromImage(image, key, core.scene)
        blocks = {name: np.zeros(image.shape, np.float32) for name in names}
        for n, name in enumerate(names):
            blocks[name][1:4, 40:60, 40 + 30 * n : 60 + 30 * n] = 0.9
        result = of(make_result(blocks, {"flair": image}), ct_or_mr_model)
        told = result.provenance | {"inputs": {key: {}}}
        nodes = addResultToScene(replace(result, provenance=told), core.scene, node, key)
        rememberInputs(nodes.segmentation, {key: node})
        save(core, tmp_path, key, str(ct_or_mr_model.path))
    data = read_dataset(tmp_path)
    assert [sorted(case.images) for case in data.cases] == [["ct"], ["mr"]]
    assert main(["dataset", "check", str(tmp_path)]) == 0


@pytest.mark.slow
def test_the_folder_is_checked_and_learnt_from_by_the_commands(
    core, ms_images, ms_reference, rater_probability, make_result, shipped_model, tmp_path, capsys
):
    folder, boxes = tmp_path / "cases", [np.s_[60:92, 40:104, 30:94], np.s_[68:100, 60:124, 40:104]]
    # Two patients: two parts of the sample.
    for n, box in enumerate(boxes):
        parts = {k: Image(i.array[box], i.grid.crop(box).affine) for k, i in ms_images.items()}
        given = {k: volumeNodeFromImage(parts[k], k, core.scene) for k in ("t1", "flair")}
        result = of(make_result({LABEL: rater_probability[box]}, parts), shipped_model)
        nodes = addResultToScene(result, core.scene, given["flair"], f"patient {n}")
        rememberInputs(nodes.segmentation, given)
        save(core, folder, f"patient {n}")
    assert main(["dataset", "check", str(folder)]) == 0
    assert "0 errors" in capsys.readouterr().out
    data = read_dataset(folder)
    first, second = (patient(folder, name) for name in ("case_001", "case_002"))
    assert data.patients == [first, second]
    assert list(data.channels) == [s.key for s in shipped_model.description.inputs]
    out = tmp_path / "next"
    tune = ["fine-tune", "--model", shipped_model.description.id, "--cases", str(folder),
            "--test", second, "--device", "cpu", "--out", str(out)]  # fmt: skip
    assert main([*tune, "--steps", "1", "--workers", "0"]) == 0
    card = json.loads((out / "model" / "model.json").read_text(encoding="utf-8"))
    assert (card["weights"]["license"], card["weights"]["commercial_use"]) == ("not stated", False)
    used = {(use["split"], *use["patients"]) for use in card["data"]}
    assert {("training", first), ("test", second)} <= used
