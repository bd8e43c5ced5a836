"""A radiologist's hands on the results: thresholds, lesions, undo, files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parent / "PanelParts" / "PanelParts.py"
LABEL = "MS lesion"


def addRun(host, flair, result, name="run"):
    from SlicerMedSegLib.ResultToScene import addResultToScene, rememberInputs

    nodes = addResultToScene(result, host.core.scene, flair, name)
    rememberInputs(nodes.segmentation, {"flair": flair})
    return nodes


def showFlair(host, images):
    import slicer

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    node = volumeNodeFromImage(images["flair"], "FLAIR", host.core.scene)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


@pytest.fixture
def result(rater_probability, ms_images, make_result):
    """What a perfect network would answer for the sample."""
    return make_result({LABEL: rater_probability}, ms_images, minMl=0.02)


@pytest.fixture
def nodes(host, flair, result):
    return addRun(host, flair, result)


@pytest.fixture
def panel(host, nodes):
    opened = host.openModule(MODULE)
    opened.show("run")
    opened.attentionUi.attentionBox.hide()
    settle(host)
    return opened


def voxels(nodes, flair):
    import slicer

    array = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "Segment_1", flair)
    return int((array > 0).sum())


def cell(panel, n, title):
    table = panel.resultsUi.lesionTable
    titles = [
        table.horizontalHeaderItem(c).text().replace("\n", " ") for c in range(table.columnCount)
    ]
    return table.item(n, titles.index(title))


def column(panel, title):
    return [cell(panel, n, title).text() for n in range(panel.resultsUi.lesionTable.rowCount)]


def clickCell(host, panel, n, title):
    """A click on a cell; on its box where it has one."""
    table = panel.resultsUi.lesionTable
    item = cell(panel, n, title)
    table.scrollToItem(item)
    box = table.visualItemRect(item)
    x = box.x() + 8 if title == "Keep" else box.center().x()
    host.click(table.viewport(), (x, box.center().y()))


def clickTitle(host, panel, title):
    from host.conversion import unwrap

    table = panel.resultsUi.lesionTable
    titles = [
        table.horizontalHeaderItem(c).text().replace("\n", " ") for c in range(table.columnCount)
    ]
    header = unwrap(table.horizontalHeader())
    section = titles.index(title)
    x = header.sectionViewportPosition(section) + header.sectionSize(section) // 2
    host.click(table.horizontalHeader().viewport(), (x, header.height() // 2))
    settle(host)


def settle(host):
    """Until all lesions are measured, also those of a drag that has to rest first."""
    import slicer

    host.wait(0)
    host.waitUntil(lambda: not slicer.modules.PanelPartsWidget.results.busy)


def test_the_segment_follows_while_the_threshold_is_dragged(host, panel, nodes, flair, result):
    slider = panel.results.sliders.slider(LABEL)
    assert slider.value == 0.5
    seen = [voxels(nodes, flair)]
    slider.connect("valueIsChanging(double)", lambda: seen.append(voxels(nodes, flair)))
    host.dragSlider(slider, 0.2)
    assert len(set(seen)) > 3
    assert seen == sorted(seen)
    expected = result.relabel({LABEL: slider.value}, 0.02).labelmap > 0
    assert abs(slider.value - 0.2) < 0.02
    assert voxels(nodes, flair) == expected.sum()
    # One drag is one step of undo.
    settle(host)
    host.click(panel.resultsUi.undoButton)
    assert (slider.value, voxels(nodes, flair)) == (0.5, seen[0])
    assert not panel.resultsUi.undoButton.enabled
    host.click(panel.resultsUi.redoButton)
    assert voxels(nodes, flair) == expected.sum()


def test_a_drag_that_ends_where_it_began_is_no_part_of_the_next_one(host, panel, nodes, flair):
    sliders, before = panel.results.sliders, voxels(nodes, flair)
    handle = sliders.slider(LABEL).findChild("QSlider")
    handle.setSliderDown(True)
    for value in (handle.value - 10, handle.value):
        handle.setValue(value)
    handle.setSliderDown(False)
    host.dragSlider(sliders.slider(LABEL), 0.2)
    settle(host)
    host.click(panel.resultsUi.undoButton)
    assert (sliders.slider(LABEL).value, voxels(nodes, flair)) == (0.5, before)
    assert panel.resultsUi.undoButton.enabled


def test_a_typed_threshold_counts_and_reset_brings_back_the_models_own(host, panel, nodes, flair):
    before, sliders = voxels(nodes, flair), panel.results.sliders
    assert not sliders.resetButton(LABEL).enabled
    host.type(sliders.slider(LABEL).findChild("QDoubleSpinBox"), "0.80")
    assert voxels(nodes, flair) < before
    assert panel.results.sliders.live.threshold(LABEL) == 0.8
    host.click(sliders.resetButton(LABEL))
    assert (sliders.slider(LABEL).value, voxels(nodes, flair)) == (0.5, before)


def test_an_edited_segment_is_left_alone_and_the_panel_says_why(
    host, panel, nodes, flair, tmp_path
):
    import slicer

    array = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "Segment_1", flair)
    array = array.copy()
    array[60:63, 60:63, 60:63] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, nodes.segmentation, "Segment_1", flair)
    edited = voxels(nodes, flair)
    settle(host)
    sliders = panel.results.sliders
    assert "Edited by hand" in sliders.reason(LABEL)
    with pytest.raises(AssertionError, match="not enabled"):
        host.click(sliders.resetButton(LABEL))
    with pytest.raises(AssertionError, match="not enabled"):
        host.dragSlider(sliders.slider(LABEL), 0.2)
    assert voxels(nodes, flair) == edited
    host.screenshot(tmp_path / "edited.png")


def paint(nodes, flair, k, segmentId="Segment_1"):
    """As Segment Editor does; gives the history of its own that its Undo goes through."""
    import slicer

    editor = slicer.vtkSegmentationHistory()
    editor.SetSegmentation(nodes.segmentation.GetSegmentation())
    editor.SaveState()
    array = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segmentId, flair)
    array = array.copy()
    array[k : k + 2, 60:63, 60:63] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, nodes.segmentation, segmentId, flair)
    return editor


def test_undo_never_takes_back_what_was_painted_by_hand(host, panel, nodes, flair, qt):
    ui, before = panel.resultsUi, voxels(nodes, flair)
    host.dragSlider(panel.results.sliders.slider(LABEL), 0.2)
    settle(host)
    dragged = voxels(nodes, flair)
    editor = paint(nodes, flair, 60)
    painted = voxels(nodes, flair)
    assert painted > dragged
    # The shortcut is faster than the panel's look at what has changed.
    host.key(ui.lesionTable, qt.Qt.Key_Z, qt.Qt.ControlModifier)
    assert voxels(nodes, flair) == painted
    assert "Segment Editor" in ui.messageLabel.text
    host.wait(250)
    settle(host)
    # It is still to be read when the lesions are measured again.
    assert "Segment Editor" in ui.messageLabel.text
    assert not ui.undoButton.enabled
    assert "Undo in Segment Editor" in ui.undoButton.toolTip
    assert "Undo in Segment Editor" in panel.results.sliders.reason(LABEL)
    # What the panel did to the painted segment can be undone, but nothing from before.
    host.wait(250)
    settle(host)
    clickCell(host, panel, 0, "Keep")
    settle(host)
    assert voxels(nodes, flair) < painted
    host.click(ui.undoButton)
    settle(host)
    assert voxels(nodes, flair) == painted
    assert not ui.undoButton.enabled
    editor.RestorePreviousState()
    host.wait(250)
    settle(host)
    assert voxels(nodes, flair) == dragged
    host.click(ui.undoButton)
    settle(host)
    assert voxels(nodes, flair) == before


def test_undo_never_takes_away_a_segment_that_the_user_has_added(host, panel, nodes, flair):
    segmentation = nodes.segmentation.GetSegmentation()
    host.dragSlider(panel.results.sliders.slider(LABEL), 0.2)
    settle(host)
    own = segmentation.AddEmptySegment("mine", "mine")
    paint(nodes, flair, 60, own)
    panel.results.refresh()
    settle(host)
    assert not panel.resultsUi.undoButton.enabled
    panel.results.undo()
    assert voxels(nodes, flair) > 0
    assert list(segmentation.GetSegmentIDs()) == ["Segment_1", "mine"]
    # It is there before the next step, which can be undone without it.
    host.dragSlider(panel.results.sliders.slider(LABEL), 0.6)
    settle(host)
    raised = voxels(nodes, flair)
    host.click(panel.resultsUi.undoButton)
    settle(host)
    assert voxels(nodes, flair) > raised
    assert list(segmentation.GetSegmentIDs()) == ["Segment_1", "mine"]
    assert not panel.resultsUi.undoButton.enabled


def test_lesions_are_sorted_by_the_titles(host, panel):
    volumes = [float(v) for v in column(panel, "Volume [ml]")]
    assert len(volumes) > 5
    assert volumes == sorted(volumes, reverse=True)
    clickTitle(host, panel, "Volume [ml]")
    assert [float(v) for v in column(panel, "Volume [ml]")] == sorted(volumes)
    clickTitle(host, panel, "Mean prob.")
    chances = [float(v) for v in column(panel, "Mean prob.")]
    assert chances == sorted(chances, reverse=True)
    assert [float(v) for v in column(panel, "Volume [ml]")] != sorted(volumes)


def test_a_mean_of_an_input_that_does_not_reach_a_lesion_is_a_dash(
    host, panel, nodes, flair, ms_images
):
    from medsegcore.imaging import Image
    from SlicerMedSegLib.ResultToScene import rememberInputs
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    t1 = Image(ms_images["t1"].array[:64], ms_images["t1"].affine)
    node = volumeNodeFromImage(t1, "T1", host.core.scene)
    rememberInputs(nodes.segmentation, {"flair": flair, "t1": node})
    panel.results.setRun(None)
    panel.show("run")
    settle(host)
    clickTitle(host, panel, "Mean T1")
    shown = column(panel, "Mean T1")
    numbers = [float(text) for text in shown if text != "\N{EN DASH}"]
    assert 0 < len(numbers) < len(shown)
    assert min(numbers) > 0
    assert shown[len(numbers) :] == ["\N{EN DASH}"] * (len(shown) - len(numbers))


def test_small_and_improbable_lesions_are_hidden_not_dropped(host, panel, nodes, flair):
    before, count = voxels(nodes, flair), panel.resultsUi.lesionTable.rowCount
    host.type(panel.resultsUi.minVolumeSpinBox, "0.1")
    settle(host)
    volumes = [float(v) for v in column(panel, "Volume [ml]")]
    assert 0 < len(volumes) < count
    assert min(volumes) >= 0.1
    assert f"{len(volumes)} shown by the filter" in panel.resultsUi.totalsLabel.text
    assert f"{count} of {count} kept: MS lesion" in panel.resultsUi.totalsLabel.text
    host.type(panel.resultsUi.minProbabilitySpinBox, "0.75")
    settle(host)
    assert panel.resultsUi.lesionTable.rowCount < len(volumes)
    assert voxels(nodes, flair) == before


def test_a_lesion_is_dropped_and_comes_back_by_undo(host, panel, nodes, flair, qt):
    before, ui = voxels(nodes, flair), panel.resultsUi
    clickCell(host, panel, 2, "Volume [ml]")
    totals = ui.totalsLabel.text
    volume = float(cell(panel, 0, "Volume [ml]").text())
    clickCell(host, panel, 0, "Keep")
    settle(host)
    assert cell(panel, 0, "Keep").checkState() == qt.Qt.Unchecked
    assert ui.lesionTable.currentRow() == 0
    assert voxels(nodes, flair) == pytest.approx(before - volume * 1000, abs=1)
    count = ui.lesionTable.rowCount
    assert f"{count - 1} of {count} kept: MS lesion" in ui.totalsLabel.text
    host.key(ui.lesionTable, qt.Qt.Key_Z, qt.Qt.ControlModifier)
    assert voxels(nodes, flair) == before
    settle(host)
    assert ui.totalsLabel.text == totals
    host.click(ui.redoButton)
    assert voxels(nodes, flair) < before
    settle(host)
    # A check mark again puts it back as well.
    clickCell(host, panel, 0, "Keep")
    settle(host)
    assert (voxels(nodes, flair), ui.totalsLabel.text) == (before, totals)


def test_a_click_on_a_lesion_jumps_there_in_all_views(host, panel, tmp_path):
    import slicer

    clickCell(host, panel, 3, "Volume [ml]")
    center = [float(cell(panel, 3, f"{axis} [mm]").text()) for axis in "RAS"]
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        matrix = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
        assert np.allclose(matrix[:3, 3], center, atol=0.1)
    host.screenshot(tmp_path / "jump.png")


def test_the_list_is_copied_as_it_is_shown(host, panel, qt):
    host.type(panel.resultsUi.minVolumeSpinBox, "0.1")
    settle(host)
    host.click(panel.resultsUi.copyButton)
    lines = qt.QApplication.clipboard().text().splitlines()
    assert lines[0].split("\t")[2] == "volume_ml"
    volumes = [f"{float(line.split(chr(9))[2]):.3f}" for line in lines[1:-3]]
    assert volumes == column(panel, "Volume [ml]")
    assert lines[-2].endswith(" kept")
    assert lines[-1] == f"MS lesion\t{float(lines[-1].split(chr(9))[1].split()[0]):.3f} ml"


def test_the_list_is_saved_as_csv_with_its_suffix(host, panel, tmp_path):
    host.dialogs.expect("Save the lesions", str(tmp_path / "mine"))
    host.click(panel.resultsUi.saveCsvButton)
    with (tmp_path / "mine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [f"{float(row['volume_ml']):.3f}" for row in rows] == column(panel, "Volume [ml]")
    assert "mean_flair" in rows[0]
    # The name without the suffix was free, the file with it is not.
    (tmp_path / "mine.csv").write_text("precious")
    host.dialogs.expect("Save the lesions", str(tmp_path / "mine"))
    host.dialogs.expect("There is a file 'mine.csv' already", "No")
    host.click(panel.resultsUi.saveCsvButton)
    assert (tmp_path / "mine.csv").read_text(encoding="utf-8") == "precious"
    host.dialogs.expect("Save the lesions", "")
    host.click(panel.resultsUi.saveCsvButton)
    host.dialogs.expect("Save the lesions", str(tmp_path / "no such folder" / "a.csv"))
    host.dialogs.expect("no such folder", "OK")
    host.click(panel.resultsUi.saveCsvButton)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv"]


def test_the_explaining_picture_is_saved(host, panel, flair, result, tmp_path):
    import slicer
    from PIL import Image

    host.dialogs.expect("Save a picture", str(tmp_path / "sheet.png"))
    host.click(panel.resultsUi.savePictureButton)
    assert not panel.resultsUi.savePictureButton.enabled
    host.waitUntil(lambda: not panel.results.busy)
    assert panel.resultsUi.savePictureButton.enabled
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert picture.shape[1] > 1000
    assert picture.std() > 30
    assert panel.resultsUi.messageLabel.text == "Saved 'sheet.png'."
    # Another run that is shown meanwhile does not take the picture away.
    addRun(host, flair, result, "other")
    host.dialogs.expect("Save a picture", str(tmp_path / "first.png"))
    host.click(panel.resultsUi.savePictureButton)
    panel.results.setRun("other")
    settle(host)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    (tmp_path / "first.png").unlink()
    # A scene that closes while the picture is drawn leaves no half of it.
    host.dialogs.expect("Save a picture", str(tmp_path / "half.png"))
    host.click(panel.resultsUi.savePictureButton)
    slicer.mrmlScene.Clear(0)
    host.wait(100)
    assert not panel.results.busy
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


@pytest.fixture
def told(nodes, host, ms_images, shipped_model):
    """The run says of which model it is and has all that it looked at; gives its inputs."""
    from SlicerMedSegLib.ResultToScene import inputNodes, rememberInputs
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    d = shipped_model.description
    model = {"id": d.id, "version": d.version, "sha256": d.weights.sha256}
    nodes.provenance.SetText(json.dumps({"model": model, "settings": {"thresholds": {LABEL: 0.5}}}))
    t1 = volumeNodeFromImage(ms_images["t1"], "T1", host.core.scene)
    inputs = {"t1": t1, **inputNodes(nodes.segmentation)}
    rememberInputs(nodes.segmentation, inputs)
    return inputs


def saveCase(host, panel, folder):
    host.dialogs.expect("Choose the folder of the training cases", str(folder))
    host.click(panel.resultsUi.saveCaseButton)


def test_a_corrected_result_is_saved_as_a_training_case(host, told, panel, nodes, flair, tmp_path):
    import slicer

    from medsegcore.imaging import read_image

    ui, folder = panel.resultsUi, tmp_path / "corrected"
    folder.mkdir()
    paint(nodes, flair, 60)
    host.wait(250)
    settle(host)
    clickCell(host, panel, 0, "Keep")
    settle(host)
    shown = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "Segment_1", flair) > 0
    saveCase(host, panel, folder)
    assert ui.messageLabel.text == "Saving the training case..."
    assert not ui.saveCaseButton.enabled
    settle(host)
    assert ui.saveCaseButton.enabled
    assert ui.messageLabel.text.startswith("Saved as case_001 in corrected (2 images, mask: MS ")
    mask = read_image(folder / "labelsTr" / "case_001.nii.gz").array > 0
    assert np.array_equal(mask, shown)
    assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]
    # The folder is proposed the next time; this time the user thinks better of it.
    assert slicer.util.settingsValue("MedSeg/TrainingFolder", "") == str(folder)
    before = (folder / "dataset.json").read_bytes()
    saveCase(host, panel, "")
    settle(host)
    assert (folder / "dataset.json").read_bytes() == before
    saveCase(host, panel, folder)
    settle(host)
    assert "Saved again as case_001 in corrected" in ui.messageLabel.text


def test_what_is_no_case_is_told_and_nothing_is_written(host, told, panel, nodes, flair, tmp_path):
    own = nodes.segmentation.GetSegmentation().AddEmptySegment("mine", "vessel")
    paint(nodes, flair, 60, own)
    (tmp_path / "corrected").mkdir()
    host.dialogs.expect("'vessel' is none of the model's labels", "OK")
    host.click(panel.resultsUi.saveCaseButton)
    nodes.segmentation.GetSegmentation().RemoveSegment(own)
    (tmp_path / "corrected" / "thesis.txt").write_text("precious")
    host.dialogs.expect("Choose the folder of the training cases", str(tmp_path / "corrected"))
    host.dialogs.expect("holds other files, such as 'thesis.txt'", "OK")
    host.click(panel.resultsUi.saveCaseButton)
    settle(host)
    assert panel.resultsUi.saveCaseButton.enabled
    assert panel.resultsUi.messageLabel.text == ""
    assert [p.name for p in tmp_path.rglob("*")] == ["corrected", "thesis.txt"]


def test_the_result_that_was_shown_at_the_click_is_saved(
    host, told, panel, nodes, flair, result, tmp_path, monkeypatch
):
    from medsegcore.imaging import read_image
    from SlicerMedSegLib import ResultsPart
    from SlicerMedSegLib.ResultToScene import rememberInputs

    second = addRun(host, flair, result.relabel({LABEL: 0.8}, 0.02), "second")
    rememberInputs(second.segmentation, told)
    second.provenance.SetText(nodes.provenance.GetText())
    panel.results.setRun("run")
    settle(host)
    shown = voxels(nodes, flair)

    def anotherIsShown(*_arguments):
        panel.results.setRun("second")
        settle(host)
        return str(tmp_path)

    dialog = ResultsPart.qt.QFileDialog
    monkeypatch.setattr(dialog, "getExistingDirectory", anotherIsShown)
    host.click(panel.resultsUi.saveCaseButton)
    settle(host)
    mask = read_image(tmp_path / "labelsTr" / "case_001.nii.gz").array > 0
    assert mask.sum() == shown != voxels(second, flair)
    # While a result is being read, a script may ask for it nevertheless.
    panel.results.setRun("run")
    host.dialogs.expect("No result is ready yet", "OK")
    panel.results._saveCase()
    settle(host)


def test_of_two_results_of_one_name_the_one_that_is_left_is_saved(
    host, told, panel, nodes, flair, tmp_path
):
    import slicer

    from medsegcore.imaging import read_image

    copy = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "copy")
    copy.CopyContent(nodes.segmentation)
    for name in nodes.segmentation.GetAttributeNames():
        copy.SetAttribute(name, nodes.segmentation.GetAttribute(name))
    for key, node in told.items():
        copy.SetNodeReferenceID(f"MedSeg.Input.{key}", node.GetID())
    host.dialogs.expect("two results called 'run'", "OK")
    host.click(panel.resultsUi.saveCaseButton)
    nodes.segmentation = copy
    paint(nodes, flair, 60)
    kept = voxels(nodes, flair)
    slicer.mrmlScene.RemoveNode(panel.results._segments.segmentation)
    settle(host)
    saveCase(host, panel, tmp_path)
    settle(host)
    assert (read_image(tmp_path / "labelsTr" / "case_001.nii.gz").array > 0).sum() == kept


def test_saving_a_case_goes_on_when_the_scene_closes_and_ends_with_the_panel(
    host, told, panel, nodes, flair, tmp_path
):
    import slicer

    saveCase(host, panel, tmp_path)
    slicer.mrmlScene.Clear()
    settle(host)
    assert (tmp_path / "labelsTr" / "case_001.nii.gz").is_file()
    assert not panel.resultsUi.saveCaseButton.enabled


def test_a_panel_that_goes_leaves_no_half_of_a_case(host, told, panel, tmp_path):
    (tmp_path / "corrected").mkdir()
    saveCase(host, panel, tmp_path / "corrected")
    host.waitUntil(lambda: any((tmp_path / "corrected").iterdir()))
    panel.cleanup()
    assert list((tmp_path / "corrected").iterdir()) == []


def test_saving_a_case_keeps_the_panel_live(host, told, panel, tmp_path):
    from host.liveness import Liveness

    with Liveness() as live:
        saveCase(host, panel, tmp_path)
        settle(host)
    assert "case_001" in panel.resultsUi.messageLabel.text
    print(f"longest gap {live.longest_ms:.0f} ms")
    assert live.longest_ms < 100


def test_a_second_run_is_chosen_from_the_list(host, panel, flair, result):
    assert not panel.resultsUi.runSelector.visible
    second = addRun(host, flair, result.relabel({LABEL: 0.8}, 0.02), "second")
    panel.show("second")
    settle(host)
    assert panel.results.sliders.slider(LABEL).value == 0.8
    host.choose(panel.resultsUi.runSelector, "run")
    settle(host)
    assert (panel.chosen, panel.attention.run) == (["run"], "run")
    assert panel.results.sliders.slider(LABEL).value == 0.5
    host.choose(panel.resultsUi.runSelector, "second")
    settle(host)
    import slicer

    slicer.mrmlScene.RemoveNode(second.segmentation)
    settle(host)
    assert "no segmentation" in panel.resultsUi.messageLabel.text
    assert panel.resultsUi.lesionTable.rowCount == 0
    host.choose(panel.resultsUi.runSelector, "run")
    settle(host)
    assert panel.resultsUi.lesionTable.rowCount > 5


def test_a_closed_scene_leaves_an_empty_panel_that_works(host, panel, nodes, flair, result):
    import slicer

    from medsegcore.imaging import Image
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    image = Image(slicer.util.arrayFromVolume(flair).copy(), result.grid.affine)
    host.dragSlider(panel.results.sliders.slider(LABEL), 0.3)
    slicer.mrmlScene.Clear()
    settle(host)
    ui = panel.resultsUi
    assert (panel.results.run, ui.lesionTable.rowCount) == (None, 0)
    assert panel.chosen[-1] is None
    assert not any((ui.saveCsvButton.enabled, ui.undoButton.enabled, ui.runSelector.visible))
    assert "after a run" in ui.messageLabel.text
    again = volumeNodeFromImage(image, "FLAIR", slicer.mrmlScene)
    addRun(host, again, result, "new")
    panel.show("new")
    settle(host)
    assert ui.lesionTable.rowCount > 5


def test_a_saved_scene_goes_on_in_a_fresh_application(tmp_path, ms_images, result):
    from host import Host

    with Host() as first:
        flair = showFlair(first, ms_images)
        nodes = addRun(first, flair, result)
        panel = first.openModule(MODULE)
        panel.show("run")
        settle(first)
        first.dragSlider(panel.results.sliders.slider(LABEL), 0.3)
        settle(first)
        clickCell(first, panel, 1, "Keep")
        settle(first)
        threshold = panel.results.sliders.slider(LABEL).value
        assert threshold < 0.4
        totals, count = panel.resultsUi.totalsLabel.text, voxels(nodes, flair)
        bundle = first.core.saveScene(tmp_path / "scene.mrb")
    first.check()
    with Host() as fresh:
        panel = fresh.openModule(MODULE)
        fresh.core.loadScene(bundle)
        import slicer

        panel.show("run")
        settle(fresh)
        slider = panel.results.sliders.slider(LABEL)
        assert (slider.value, slider.enabled) == (threshold, True)
        assert panel.resultsUi.totalsLabel.text == totals
        node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        volume = slicer.mrmlScene.GetFirstNodeByName("FLAIR")
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "Segment_1", volume)
        assert (array > 0).sum() == count
        fresh.click(panel.results.sliders.resetButton(LABEL))
        assert slider.value == 0.5
    fresh.check()


def test_a_run_without_its_provenance_has_nothing_to_reset_to(host, flair, nodes):
    nodes.provenance.SetText(json.dumps({"settings": None}))
    panel = host.openModule(MODULE)
    panel.show("run")
    settle(host)
    host.dragSlider(panel.results.sliders.slider(LABEL), 0.3)
    assert panel.results.sliders.slider(LABEL).value < 0.4
    assert not panel.results.sliders.resetButton(LABEL).enabled


def test_a_segment_that_the_user_removes_is_said_to_be_missing(host, panel, nodes):
    nodes.segmentation.GetSegmentation().RemoveSegment("Segment_1")
    settle(host)
    assert "no segment of 'MS lesion'" in panel.resultsUi.messageLabel.text
    assert "no segment of 'MS lesion'" in panel.results.sliders.reason(LABEL)
    assert not panel.results.sliders.slider(LABEL).enabled
    assert panel.resultsUi.lesionTable.rowCount == 0


def test_no_event_of_a_drag_blocks_the_interface_for_long(host, panel):
    import time

    slider, spent = panel.results.sliders.slider(LABEL), []
    for value in np.linspace(0.45, 0.1, 12):
        start = time.thread_time()
        slider.valueIsChanging.emit(float(value))
        spent.append(time.thread_time() - start)
    start = time.thread_time()
    panel.results.refresh()
    measured = time.thread_time() - start
    print(f"step {np.median(spent) * 1000:.0f} ms, lesions measured {measured * 1000:.0f} ms")
    assert np.median(spent) < 0.1


def test_closing_the_part_leaves_no_observer_on_the_scene(host, panel):
    import slicer

    panel.cleanup()
    slicer.mrmlScene.Clear()
    host.wait(250)
    assert panel.chosen == []
