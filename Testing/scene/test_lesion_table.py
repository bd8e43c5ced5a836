"""The lesion table says what is in the segment, and its check boxes undo."""

import csv
import io
import time

import numpy as np
import pytest
import slicer
import vtk

from medsegcore.errors import OutputError, SettingError
from medsegcore.imaging import Image, resample
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.ExplainSheet import explainSheet
from SlicerMedSegLib.LesionTable import LesionTable
from SlicerMedSegLib.LiveThreshold import LiveThreshold
from SlicerMedSegLib.ResultToScene import addResultToScene, rememberInputs
from SlicerMedSegLib.RunSegments import RunSegments
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.SceneViews import SliceView, ThreeDView

LABEL = "MS lesion"


@pytest.fixture
def nodes(core, flair, ms_images, rater_result):
    added = addResultToScene(rater_result, core.scene, flair, "run")
    t1 = volumeNodeFromImage(ms_images["t1"], "T1", core.scene)
    rememberInputs(added.segmentation, {"t1": t1, "flair": flair})
    return added


@pytest.fixture
def table(core, nodes):
    return LesionTable(RunSegments(core.scene, "run"))


def inScene(node, volume):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, "Segment_1", volume) > 0


def test_the_rows_are_the_lesions_that_the_predictor_measures(table, rater_result):
    assert len(table.rows()) == len(rater_result.lesions) > 5
    for row, lesion in zip(table.rows(), rater_result.lesions, strict=True):
        assert row.lesion.volume_ml == pytest.approx(lesion.volume_ml)
        assert row.lesion.longest_diameter_mm == pytest.approx(lesion.longest_diameter_mm)
        assert row.lesion.mean_probability == pytest.approx(lesion.mean_probability, rel=1e-5)
        assert row.lesion.max_probability == pytest.approx(lesion.max_probability)
        assert row.lesion.center_ras == pytest.approx(lesion.center_ras, abs=1e-3)
        for key in ("t1", "flair"):
            assert row.lesion.inputs[key] == pytest.approx(lesion.inputs[key], rel=1e-4)
    count, volume = table.totals()
    assert (count, volume) == (
        len(rater_result.lesions), pytest.approx(sum(x.volume_ml for x in rater_result.lesions)),
    )  # fmt: skip


def test_rows_are_sorted_and_filtered(table):
    every = table.rows()
    byMean = table.rows("mean_flair", descending=False)
    assert [r.lesion.inputs["flair"] for r in byMean] == pytest.approx(
        sorted(r.lesion.inputs["flair"] for r in every), rel=1e-3
    )
    big = table.rows(minVolumeMl=0.1)
    assert big == [r for r in every if r.lesion.volume_ml >= 0.1]
    assert 0 < len(big) < len(every)
    sure = table.rows(minProbability=0.8)
    assert sure == [r for r in every if r.lesion.mean_probability >= 0.8]
    assert len(sure) < len(every)
    with pytest.raises(SettingError, match="no column 'size'"):
        table.rows("size")


def test_a_dropped_lesion_leaves_the_segment_and_comes_back_exactly(table, nodes, flair):
    before = inScene(nodes.segmentation, flair)
    _count, volume = table.totals()
    row = table.rows()[2]
    table.setKept([row], False)
    gone = inScene(nodes.segmentation, flair)
    assert before.sum() - gone.sum() == row.voxels.size
    assert table.totals()[1] == pytest.approx(volume - row.lesion.volume_ml)
    (dropped,) = [r for r in table.rows() if not r.kept]
    assert dropped.lesion.center_ras == row.lesion.center_ras
    table.setKept([dropped], True)
    assert np.array_equal(inScene(nodes.segmentation, flair), before)
    assert all(r.kept for r in table.rows())


def test_dropping_several_is_one_step_of_undo(table, nodes, flair):
    before = inScene(nodes.segmentation, flair)
    table.setKept(table.rows()[3:6], False)
    dropped = inScene(nodes.segmentation, flair)
    history = table.segments.history
    assert history.RestorePreviousState()
    table.update()
    assert np.array_equal(inScene(nodes.segmentation, flair), before)
    assert all(r.kept for r in table.rows())
    assert history.RestoreNextState()
    table.update()
    assert np.array_equal(inScene(nodes.segmentation, flair), dropped)
    assert sum(not r.kept for r in table.rows()) == 3


def test_a_dropped_lesion_stays_out_while_the_threshold_moves(table, nodes, flair):
    live = LiveThreshold(table.segments)
    row = table.rows()[1]
    table.setKept([row], False)
    middle = np.unravel_index(row.voxels[row.voxels.size // 2], table.segments.grid.shape)
    live.setThreshold(LABEL, 0.55)
    live.setThreshold(LABEL, 0.48)
    assert not live.segments.mask(LABEL)[middle]
    live.setThreshold(LABEL, 0.5)
    live.finishDrag()
    table.update()
    (dropped,) = [r for r in table.rows() if not r.kept]
    table.setKept([dropped], True)
    assert live.segments.mask(LABEL)[middle]
    assert not live.edited(LABEL)


def test_lesions_of_an_edited_segment_are_measured_dropped_and_kept(table, nodes, flair):
    array = slicer.util.arrayFromSegmentBinaryLabelmap(
        nodes.segmentation, "Segment_1", flair
    ).copy()
    array[2:6, 2:6, 2:6] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, nodes.segmentation, "Segment_1", flair)
    edited = inScene(nodes.segmentation, flair)
    rows = table.update()
    drawn = next(r for r in rows if r.lesion.max_probability == 0)
    assert drawn.lesion.volume_ml == pytest.approx(0.064)
    table.setKept([drawn, rows[0]], False)
    assert edited.sum() - inScene(nodes.segmentation, flair).sum() == (
        drawn.voxels.size + rows[0].voxels.size
    )
    assert table.segments.edited(LABEL)
    table.setKept([r for r in table.rows() if not r.kept], True)
    assert np.array_equal(inScene(nodes.segmentation, flair), edited)


def test_drops_survive_saving_and_loading(core, table, nodes, flair, tmp_path):
    before = inScene(nodes.segmentation, flair).sum()
    table.setKept(table.rows()[:2], False)
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        again = LesionTable(RunSegments(other.scene, "run"))
        assert sorted(again.inputs) == ["flair", "t1"]
        assert [r.kept for r in again.rows()][:3] == [False, False, True]
        for row, old in zip(again.rows(), table.rows(), strict=True):
            assert row.lesion.center_ras == pytest.approx(old.lesion.center_ras, abs=1e-3)
            assert row.lesion.inputs == pytest.approx(old.lesion.inputs, rel=1e-4)
        again.setKept([r for r in again.rows() if not r.kept], True)
        assert again.segments.mask(LABEL).sum() == before


def test_under_a_transform_lesions_are_where_the_world_has_them(
    core, flair, ms_images, rater_probability, make_result
):
    turn = vtk.vtkTransform()
    turn.Translate(12, -7, 30)
    turn.RotateX(25)
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turned")
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    flair.SetAndObserveTransformNodeID(transform.GetID())
    affine = slicer.util.arrayFromVTKMatrix(turn.GetMatrix()) @ ms_images["flair"].affine
    images = {"flair": ms_images["flair"]}
    result = make_result({LABEL: rater_probability}, images, 0.02, affine=affine)
    addResultToScene(result, core.scene, flair, "moved")
    table = LesionTable(RunSegments(core.scene, "moved"), {"flair": flair})
    assert not table.segments.edited(LABEL)
    for row, lesion in zip(table.rows(), result.lesions, strict=True):
        assert row.lesion.center_ras == pytest.approx(lesion.center_ras, abs=1e-2)
        assert row.lesion.longest_diameter_mm == pytest.approx(lesion.longest_diameter_mm)
        assert row.lesion.inputs["flair"] == pytest.approx(lesion.inputs["flair"], rel=1e-3)


def test_the_table_in_the_scene_keeps_step(table, nodes):
    def column(name):
        array = nodes.lesions.GetTable().GetColumnByName(name)
        return [array.GetValue(n) for n in range(array.GetNumberOfValues())]

    LiveThreshold(table.segments).setThreshold(LABEL, 0.3)
    rows = table.update()
    assert column("volume_ml") == pytest.approx([r.lesion.volume_ml for r in rows], abs=1e-4)
    assert column("number") == list(range(1, len(rows) + 1))
    table.setKept(rows[:1], False)
    assert column("kept")[:2] == ["no", "yes"]


def test_an_update_takes_less_than_a_third_of_a_second(table):
    live = LiveThreshold(table.segments)
    spent = []
    for value in (0.45, 0.4, 0.35):
        live.setThreshold(LABEL, value)
        start = time.thread_time()
        table.update()
        spent.append(time.thread_time() - start)
    print(f"median {np.median(spent) * 1000:.0f} ms of {len(table.rows())} lesions")
    assert np.median(spent) < 0.3


def test_the_table_follows_when_results_and_images_are_moved_together(core, flair, rater_result):
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "T")
    flair.SetAndObserveTransformNodeID(transform.GetID())
    nodes = addResultToScene(rater_result, core.scene, flair, "run")
    rememberInputs(nodes.segmentation, {"flair": flair})
    table, told = LesionTable(RunSegments(core.scene, "run")), []
    table.watch(lambda: told.append(None))
    before = [row.lesion for row in table.rows()]
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 30.0)
    transform.SetMatrixTransformToParent(matrix)
    assert told
    for row, old in zip(table.update(), before, strict=True):
        r, a, s = old.center_ras
        assert row.lesion.center_ras == pytest.approx((r + 30, a, s), abs=1e-3)
        assert row.lesion.inputs["flair"] == pytest.approx(old.inputs["flair"], rel=1e-5)


def test_voxels_that_are_no_numbers_change_no_side_and_no_mean(core, flair, nodes, ms_images):
    table = LesionTable(RunSegments(core.scene, "run"), {"flair": flair})
    before = [(row.place, row.lesion.inputs["flair"]) for row in table.rows()]
    array = ms_images["flair"].array.astype(np.float32)
    array[array == 0] = np.nan
    spoilt = volumeNodeFromImage(Image(array, ms_images["flair"].affine), "N", core.scene)
    table = LesionTable(RunSegments(core.scene, "run"), {"flair": spoilt})
    for row, (place, mean) in zip(table.rows(), before, strict=True):
        assert row.place == place
        assert row.lesion.inputs["flair"] == pytest.approx(mean, rel=1e-5)


def test_a_segment_that_is_gone_leaves_the_other_labels_their_rows(
    core, flair, ms_images, rater_probability, make_result
):
    side = np.zeros_like(rater_probability)
    side[:, :, : side.shape[2] // 2] = 1
    both = {"A": rater_probability * side, "B": rater_probability * (1 - side)}
    nodes = addResultToScene(make_result(both, ms_images, 0.02), core.scene, flair, "run")
    table = LesionTable(RunSegments(core.scene, "run"))
    assert {row.lesion.label for row in table.rows()} == {"A", "B"}
    parts = table.volumes()
    assert sum(parts.values()) == pytest.approx(table.totals()[1])
    assert min(parts.values()) > 1
    nodes.segmentation.GetSegmentation().RemoveSegment("Segment_1")
    assert {row.lesion.label for row in table.update()} == {"B"}
    assert table.volumes() == {"B": pytest.approx(parts["B"])}
    assert list(table.problems) == ["A"]
    assert "no segment of 'A'" in table.problems["A"]


def test_an_opening_that_is_given_up_leaves_nothing_that_observes(core, nodes):
    steps = RunSegments.opening(core.scene, "run")
    seen = 0
    while True:
        next(steps)
        segments = steps.gi_frame.f_locals["segments"]
        seen = len(segments._observers)
        if seen:
            break
    steps.close()
    assert len(segments._observers) == 0


def test_undo_leaves_names_and_colors_as_the_user_has_them(core, nodes):
    segments = RunSegments(core.scene, "run")
    segments.begin()
    segments.recut(LABEL, 0.3)
    segments.finish()
    segment = nodes.segmentation.GetSegmentation().GetSegment("Segment_1")
    segment.SetName("mine")
    segment.SetColor(1, 0, 0)
    segments.undo()
    segment = nodes.segmentation.GetSegmentation().GetSegment("Segment_1")
    assert (segment.GetName(), segment.GetColor()) == ("mine", (1, 0, 0))
    assert segments.threshold(LABEL) == 0.5
    segments.begin()
    segments.recut(LABEL, 0.4)
    segments.finish()
    segments.undo()
    segments.redo()
    segment = nodes.segmentation.GetSegmentation().GetSegment("Segment_1")
    assert (segment.GetName(), segment.GetColor()) == ("mine", (1, 0, 0))
    assert segments.threshold(LABEL) == 0.4


def test_text_and_csv_hold_what_is_shown(table, tmp_path):
    rows = table.rows("number", descending=False, minVolumeMl=0.05)
    table.saveCsv(tmp_path / "lesions.csv", rows)
    with (tmp_path / "lesions.csv").open(newline="", encoding="utf-8") as file:
        saved = list(csv.DictReader(file))
    assert [p.name for p in tmp_path.iterdir()] == ["lesions.csv"]
    assert [float(line["volume_ml"]) for line in saved] == pytest.approx(
        [r.lesion.volume_ml for r in rows], abs=1e-4
    )
    assert [line["place"] for line in saved] == [r.place for r in rows]
    lines = list(csv.reader(io.StringIO(table.text()), delimiter="\t"))
    assert lines[0] == table.columns()
    assert lines[-3] == []
    assert len(lines) == len(table.rows()) + 4
    assert lines[-2:] == [
        [f"{len(table.rows())} kept"], ["MS lesion", f"{table.totals()[1]:.3f} ml"]
    ]  # fmt: skip
    with pytest.raises(OutputError):
        table.saveCsv(tmp_path / "absent" / "lesions.csv")


def test_of_an_input_that_ends_in_a_lesion_the_mean_is_that_of_what_is_there(
    core, nodes, flair, ms_images, tmp_path
):
    t1 = ms_images["t1"]
    whole = LesionTable(RunSegments(core.scene, "run"))
    grid, largest = whole.segments.worldGrid, whole.rows()[0]
    k = np.unravel_index(largest.voxels, grid.shape)[0]
    top = int(np.median(k))
    cut = volumeNodeFromImage(Image(t1.array[:top], t1.affine), "T1 cut", core.scene)
    table = LesionTable(whole.segments, {"flair": flair, "t1": cut})
    (half,) = [r for r in table.rows() if np.array_equal(r.voxels, largest.voxels)]
    expected = resample(t1, grid).array.reshape(-1)[largest.voxels[k < top]].mean()
    assert half.lesion.inputs["t1"] == pytest.approx(expected, rel=1e-5)
    beyond = [r for r in table.rows() if r.lesion.inputs["t1"] is None]
    assert 0 < len(beyond) < len(table.rows())
    # They come last, and nowhere are they 0.
    assert table.rows("mean_t1")[-len(beyond) :] == beyond
    table.saveCsv(tmp_path / "lesions.csv", beyond)
    with (tmp_path / "lesions.csv").open(newline="", encoding="utf-8") as file:
        assert {line["mean_t1"] for line in csv.DictReader(file)} == {""}
    column = nodes.lesions.GetTable().GetColumnByName("mean_t1")
    numbers = [column.GetValue(n) for n in range(column.GetNumberOfValues())]
    assert np.count_nonzero(np.isnan(numbers)) == len(beyond)
    assert np.nanmin(numbers) > 0
    assert explainSheet(table, flair, tmp_path / "sheet.png", rows=beyond[:1]).is_file()


def severalValues(core, image, count, kind=np.float32):
    """A volume with so many values per voxel: the image's, 1 more, 2 more, ..."""
    node = core.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "4-D")
    values = np.stack([image.array + n for n in range(count)], axis=-1).astype(kind)
    slicer.util.updateVolumeFromArray(node, values)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(image.affine))
    return node


def test_means_are_of_the_frame_that_was_segmented(
    core, nodes, table, ms_images, make_sequence, tmp_path
):
    def means(opened, key):
        return [row.lesion.inputs[key] for row in opened.rows()]

    flair, t1 = ms_images["flair"], ms_images["t1"]
    expected = np.array(means(table, "flair"))
    browser = core.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "visits")
    later = flair.with_array(flair.array + 1000)
    inputs = {
        "flair": make_sequence(core, browser, "FLAIR", [flair, later]),
        "t1": severalValues(core, t1, 3),
        "photo": severalValues(core, flair, 3, np.uint8),
    }
    browser.SetSelectedItemNumber(0)
    rememberInputs(nodes.segmentation, inputs, {"flair": 1, "t1": 2})
    frames = LesionTable(RunSegments(core.scene, "run"))
    assert means(frames, "flair") == pytest.approx(expected + 1000)
    assert means(frames, "t1") == pytest.approx(np.array(means(table, "t1")) + 2, rel=1e-5)
    # What cannot be read takes its own column along, and nothing else.
    assert list(frames.inputs) == ["flair", "t1"]
    browser.SetSelectedItemNumber(1)
    frames.update()
    assert means(frames, "flair") == pytest.approx(expected + 1000)
    # What is changed in the frame itself counts.
    browser.SetSelectedItemNumber(0)
    sequence = browser.GetSequenceNode(inputs["flair"])
    slicer.util.updateVolumeFromArray(sequence.GetNthDataNode(1), flair.array + 500)
    frames.update()
    assert means(frames, "flair") == pytest.approx(expected + 500)
    for node in frames.inputs.values():
        assert explainSheet(frames, node, tmp_path / "sheet.png").is_file()
    assert frames.imageOf(inputs["flair"]).array.max() == flair.array.max() + 500
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        again = LesionTable(RunSegments(other.scene, "run"))
        assert means(again, "flair") == pytest.approx(expected + 500, rel=1e-5)
        assert means(again, "t1") == pytest.approx(means(frames, "t1"), rel=1e-4)


def test_the_place_is_said_in_the_patients_sides(table, ms_case_dir):
    for row in table.rows():
        r, a, _s = row.lesion.center_ras
        # The sample is in MNI space: its middle plane is at R 0.
        if abs(r) > 9:
            assert row.place.startswith("right" if r > 0 else "left"), row
        if a < -60:
            assert "posterior" in row.place
        if a > 30:
            assert "anterior" in row.place


def test_all_views_jump_to_a_lesion(core, table, flair):
    row = table.rows()[0]
    table.segments.segmentation.CreateClosedSurfaceRepresentation()
    with (
        SliceView(core, "Axial", (100, 100)) as axial,
        SliceView(core, "Sagittal", (100, 100)) as sagittal,
        ThreeDView(core, (100, 100)) as space,
    ):
        space.show((0, 1, 0))
        table.jumpTo(row)
        for view in (axial, sagittal):
            matrix = slicer.util.arrayFromVTKMatrix(view.node.GetSliceToRAS())
            assert matrix[:3, 3] == pytest.approx(row.lesion.center_ras)
        camera = core.scene.GetFirstNodeByClass("vtkMRMLCameraNode")
        assert camera.GetFocalPoint() == pytest.approx(row.lesion.center_ras)


def test_a_watched_table_tells_of_changes_until_it_is_closed(core, table):
    told = []
    table.watch(lambda: told.append(1))
    live = LiveThreshold(table.segments)
    live.setThreshold(LABEL, 0.4)
    live.finishDrag()
    assert told
    told.clear()
    table.segments.history.RestorePreviousState()
    assert told
    told.clear()
    table.segments.segmentation.GetSegmentation().GetNthSegment(0).SetColor(0, 1, 0)
    assert not told
    table.close()
    told.clear()
    live.setThreshold(LABEL, 0.3)
    assert not told
    table.watch(lambda: told.append(1))
    core.scene.Clear()
    assert len(table._observers) == 0


def test_a_volume_that_was_removed_only_takes_its_column_along(core, table):
    core.scene.RemoveNode(core.scene.GetFirstNodeByName("T1"))
    rows = table.update()
    assert list(rows[0].lesion.inputs) == ["flair"]
    assert "mean_t1" not in table.columns()
