"""`medseg evaluate` on folders of label maps, alone, together, and beside a model."""

import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medsegcore.cli import main
from medsegcore.evaluation.lesions import by_size, lesion_records
from medsegcore.evaluation.metrics import (
    THRESHOLDS,
    lesion_detection,
    lesions_by_threshold,
)
from medsegcore.imaging import Image, read_image, reorient, write_image

CASES = ("a_1", "a_2", "b")


def threshold(flair, level):
    """A plain way to find MS lesions: what is bright on a smoothed FLAIR."""
    smooth = ndimage.gaussian_filter(flair.array.astype(np.float32), 0.7)
    return (smooth > np.percentile(smooth[flair.array > 0], level)).astype(np.uint8)


@pytest.fixture
def predictions(ms_cases, tmp_path):
    """Label maps of the three cases, in three kinds of files."""
    folder = tmp_path / "bright"
    folder.mkdir()
    for case, ending in zip(CASES, (".nii.gz", ".seg.nrrd", ".mha"), strict=True):
        flair = read_image(ms_cases / case / "flair.nii.gz")
        write_image(flair.with_array(threshold(flair, 92)), folder / f"{case}{ending}")
    return folder


def evaluate(capsys, data, *arguments):
    """Exit code and events."""
    code = main(["evaluate", "--data", str(data), *map(str, arguments), "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def figures(events):
    return {e["case"]: e["figures"] for e in events if e["event"] == "case"}


def warnings(events):
    return [e["message"] for e in events if e["event"] == "warning"]


def test_a_folder_of_predictions_is_measured_case_by_case(ms_cases, predictions, capsys):
    code, events = evaluate(capsys, ms_cases, "--predictions", predictions)
    assert code == 0
    assert not warnings(events)
    found = figures(events)
    assert tuple(found) == CASES
    measures = sitk.LabelOverlapMeasuresImageFilter()
    reference = read_image(ms_cases / "b" / "lesion.nii.gz").array > 0
    answer = read_image(predictions / "b.mha").array
    measures.Execute(
        sitk.GetImageFromArray(reference.astype(np.uint8)), sitk.GetImageFromArray(answer)
    )
    assert found["b"]["Dice"] == pytest.approx(measures.GetDiceCoefficient(1))
    assert 0.3 < found["b"]["Dice"] < 0.9
    (together,) = [e for e in events if e["event"] == "pooled"]
    assert "FROC score" not in together["figures"]


def test_other_axes_and_a_smaller_field_change_nothing_but_are_told(ms_cases, predictions, capsys):
    image = read_image(predictions / "b.mha")
    image.array[:10] = 0
    write_image(image, predictions / "b.mha")
    _, before = evaluate(capsys, ms_cases, "--predictions", predictions)
    box = (slice(10, 50), slice(0, 80), slice(0, 70))
    write_image(Image(image.array[box], image.grid.crop(box).affine), predictions / "b.mha")
    image = read_image(predictions / "a_1.nii.gz")
    write_image(reorient(image, "PIL"), predictions / "a_1.nii.gz")
    code, after = evaluate(capsys, ms_cases, "--predictions", predictions)
    assert code == 0
    assert figures(after) == figures(before)
    told = warnings(after)
    assert len(told) == 2
    assert "a_1.nii.gz' lies on another grid" in told[0]
    assert "70 x 80 x 50 voxels" in told[0]


def test_another_voxel_size_is_resampled_in_physical_space(ms_cases, predictions, capsys):
    _, before = evaluate(capsys, ms_cases, "--predictions", predictions)
    image = read_image(predictions / "b.mha")
    # Each voxel cut in eight, none of them elsewhere: the middle of the first moves.
    affine = image.affine @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = image.grid.to_ras(np.array([-0.25, -0.25, -0.25]))
    fine = image.array.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write_image(Image(fine, affine), predictions / "b.mha")
    code, after = evaluate(capsys, ms_cases, "--predictions", predictions)
    assert code == 0
    assert figures(after)["b"] == figures(before)["b"]
    assert "0.5 x 0.5 x 0.5 mm" in warnings(after)[0]


def test_missing_predictions_are_named_before_anything_is_measured(ms_cases, predictions, capsys):
    (predictions / "a_1.nii.gz").unlink()
    (predictions / "b.mha").unlink()
    code, events = evaluate(capsys, ms_cases, "--predictions", predictions)
    assert code == 3
    assert "2 of 3 predictions are missing" in events[-1]["message"]
    assert "a_1, b." in events[-1]["message"]
    assert [e["event"] for e in events] == ["error"]
    shutil.copy(predictions / "a_2.seg.nrrd", predictions / "a_1.nrrd")
    assert evaluate(capsys, ms_cases, "--predictions", predictions, "--patient", "a")[0] == 0


def test_empty_masks_have_the_figures_that_are_defined(ms_cases, predictions, tmp_path, capsys):
    image = read_image(predictions / "b.mha")
    write_image(image.with_array(np.zeros_like(image.array)), predictions / "b.mha")
    data = tmp_path / "data"
    shutil.copytree(ms_cases, data)
    write_image(image.with_array(np.zeros_like(image.array)), data / "b" / "lesion.nii.gz")
    mask = read_image(data / "a_1" / "lesion.nii.gz")
    write_image(mask.with_array(np.zeros_like(mask.array)), data / "a_1" / "lesion.nii.gz")
    code, events = evaluate(capsys, data, "--predictions", predictions, "--out", tmp_path / "x.csv",
                            "--lesions", tmp_path / "l.csv",
                            "--report", tmp_path / "x.html")  # fmt: skip
    assert code == 0
    found = figures(events)
    assert (found["b"]["Dice"], found["b"]["HD95"], found["b"]["lesion F1"]) == (1, 0, None)
    assert (found["a_1"]["Dice"], found["a_1"]["HD95"], found["a_1"]["sensitivity"]) == (
        0, None, None,
    )  # fmt: skip
    line = next(csv.DictReader((tmp_path / "x.csv").open()))
    assert (line["case"], line["HD95 [mm]"], line["volume difference [%]"]) == ("a_1", "", "")
    lesions = list(csv.DictReader((tmp_path / "l.csv").open()))
    assert {(x["case"], x["kind"]) for x in lesions} == {
        ("a_1", "false"), ("a_2", "reference"), ("a_2", "false")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: Image(i.array, np.diag([1.0, 1, 1, 1])), "of its field of view in common"),
        (lambda i: Image(i.array.transpose(2, 1, 0)[:9], i.affine + np.eye(4, k=3) * 60), "field"),
        (lambda i: i.with_array(i.array * np.float32(0.5)), "holds values such as 0.5, no labels"),
    ],
    ids=["no geometry", "another shape elsewhere", "probabilities"],
)
def test_what_is_no_label_map_of_the_case_is_refused(ms_cases, predictions, capsys, change, words):
    image = read_image(predictions / "b.mha")
    write_image(change(image), predictions / "b.mha")
    code, events = evaluate(capsys, ms_cases, "--predictions", predictions)
    assert code == 3
    assert "b.mha" in events[-1]["message"]
    assert words in events[-1]["message"]


def test_a_value_that_is_no_label_is_told(ms_cases, predictions, capsys):
    image = read_image(predictions / "b.mha")
    write_image(image.with_array(image.array * np.uint8(4)), predictions / "b.mha")
    code, events = evaluate(capsys, ms_cases, "--predictions", predictions, "--labels", "lesion=1")
    assert code == 0
    assert figures(events)["b"]["volume"] == 0
    assert "has the value 4, which is none of the labels" in warnings(events)[0]
    assert evaluate(capsys, ms_cases, "--predictions", predictions, "--labels", "lesion")[0] == 3
    assert evaluate(capsys, ms_cases)[0] == 3


def test_several_folders_are_compared_pair_by_pair(ms_cases, predictions, tmp_path, capsys):
    strict = tmp_path / "other" / "bright"
    strict.mkdir(parents=True)
    for case in CASES:
        flair = read_image(ms_cases / case / "flair.nii.gz")
        write_image(flair.with_array(threshold(flair, 97)), strict / f"{case}.nii.gz")
    code, events = evaluate(capsys, ms_cases, "--predictions", predictions, "--predictions", strict,
                            "--out", tmp_path / "x.csv")  # fmt: skip
    assert code == 0
    (dice,) = [e for e in events if e["event"] == "comparison" and e["measure"] == "Dice"]
    assert (dice["first"], dice["second"]) == ("bright (1)", "bright (2)")
    lines = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert [(x["model"], x["case"]) for x in lines[2:4]] == [
        ("bright (1)", "b"), ("bright (2)", "a_1")
    ]  # fmt: skip
    values = np.array([float(x["Dice"]) for x in lines]).reshape(2, 3)
    assert dice["test"]["difference"] == pytest.approx((values[0] - values[1]).mean())
    # With 12 measures of one pair, the smallest p counts up to twelvefold.
    tests = [e for e in events if e["event"] == "comparison" and e["test"]["t_p"] is not None]
    smallest = min(tests, key=lambda e: e["test"]["t_p"])
    assert smallest["t_holm"] == pytest.approx(min(len(tests) * smallest["test"]["t_p"], 1))


def test_a_model_and_its_own_answers_as_files_agree(predictor, ms_cases, tmp_path, capsys):
    folder = tmp_path / "saved"
    folder.mkdir()
    images = {key: read_image(ms_cases / "b" / f"{key}.nii.gz") for key in ("t1", "flair")}
    result = predictor.predict(images, attention=False)
    write_image(result.image(result.labelmap), folder / "b.nii.gz")
    code, events = evaluate(capsys, ms_cases, "--model", "ms-lesion-rsanet", "--device", "cpu",
                            "--patient", "b", "--predictions", folder,
                            "--lesions", tmp_path / "l.csv")  # fmt: skip
    assert code == 0
    assert {e["test"]["difference"] for e in events if e["event"] == "comparison"} == {0}
    lines = list(csv.DictReader((tmp_path / "l.csv").open()))
    mine = [x for x in lines if x["model"] == "ms-lesion-rsanet"]
    theirs = [x for x in lines if x["model"] == "saved"]
    assert len(mine) == len(theirs) > 10
    # Both tell the same but for the probability, which files of labels do not have.
    assert all(a["volume_ml"] == b["volume_ml"] and a["found"] == b["found"]
               for a, b in zip(mine, theirs, strict=True))  # fmt: skip
    assert all(x["max_probability"] for x in mine)
    assert not any(x["max_probability"] for x in theirs)


def test_the_lesion_table_counts_as_the_figures_do(ms_images, ms_reference, rater_probability):
    flair, reference = ms_images["flair"], ms_reference.array
    answer = threshold(flair, 92) > 0
    records = lesion_records(answer, reference, flair.grid, rater_probability, min_voxels=3)
    counts = lesion_detection(answer, reference, 3)
    real = [r for r in records if not r.false]
    false = [r for r in records if r.false]
    assert (sum(r.found for r in real), len(real)) == (counts.found, counts.found + counts.missed)
    assert len(false) == counts.wrong > 10
    assert [r.volume_ml for r in false] == sorted((r.volume_ml for r in false), reverse=True)
    sizes = by_size(records)
    assert sum(s.lesions for s in sizes) == len(real)
    assert sum(s.false for s in sizes) == len(false)
    # The largest lesion by hand: its place and its best partner.
    components, _ = ndimage.label(reference, np.ones((3, 3, 3)))
    largest = components == np.bincount(components.ravel())[1:].argmax() + 1
    kji = np.argwhere(largest)
    assert real[0].center_ras == pytest.approx(flair.grid.to_ras(kji[:, ::-1].mean(axis=0)))
    assert real[0].volume_ml == pytest.approx(len(kji) * flair.grid.voxel_volume_ml)
    assert real[0].max_probability == pytest.approx(rater_probability[largest].max())
    answered, _ = ndimage.label(answer, np.ones((3, 3, 3)))
    dices = [2 * (largest & (answered == n)).sum() / (len(kji) + (answered == n).sum())
             for n in np.unique(answered[largest]) if n]  # fmt: skip
    assert real[0].best_dice == pytest.approx(max(dices))
    # The FROC curve counts what the table lists.
    counts = lesions_by_threshold(rater_probability, reference, 3)
    for value in (0.15, 0.5, 0.8):
        n = THRESHOLDS.index(value)
        answer = rater_probability > value
        table = lesion_records(answer, reference, flair.grid, rater_probability, min_voxels=3)
        assert counts.found[n] == sum(r.found for r in table)
        assert counts.false[n] == sum(r.false for r in table)
        assert counts.lesions == sum(not r.false for r in table)


def test_a_data_set_in_nnu_nets_form_brings_its_labels(shared_data, tmp_path, capsys):
    case = shared_data / "glioma" / "brats_gli" / "BraTS-GLI-00000-000"
    if not case.is_dir():
        pytest.skip("the glioma data are not here")
    names = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3}
    content = {"channel_names": {"0": "FLAIR"}, "labels": names, "numTraining": 1}
    data, folder = tmp_path / "data", tmp_path / "filtered"
    for new in (data / "imagesTr", data / "labelsTr", folder):
        new.mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    mask, flair = read_image(case / "seg.nii.gz"), read_image(case / "flair.nii.gz")
    box = tuple(slice(int(a.min()), int(a.max()) + 1) for a in mask.array.nonzero())
    affine = mask.grid.crop(box).affine
    write_image(Image(flair.array[box], affine), data / "imagesTr" / "g_0000.nii.gz")
    write_image(Image(mask.array[box], affine), data / "labelsTr" / "g.nii.gz")
    answer = np.where(mask.array[box] == 3, 0, mask.array[box]).astype(np.uint8)
    write_image(Image(answer, affine), folder / "g.nii.gz")
    code, events = evaluate(capsys, data, "--predictions", folder)
    assert code == 0
    found = figures(events)["g"]
    assert [found[f"{name}: Dice"] for name in (*names, "mean") if name != "background"] == [
        1, 1, 0, pytest.approx(2 / 3)
    ]  # fmt: skip
    code, events = evaluate(capsys, data, "--predictions", folder, "--labels", "oedema=2")
    assert figures(events)["g"]["Dice"] == 1


def test_several_labels_have_a_table_each(ms_cases, predictions, capsys):
    command = ["evaluate", "--data", str(ms_cases), "--predictions", str(predictions)]
    assert main([*command, "--labels", "lesion=1", "--labels", "core=2"]) == 0
    out = capsys.readouterr().out
    for title in ("bright, lesion", "bright, core", "bright, mean"):
        assert out.count(title) == 1, title
    assert "lesion: Dice" not in out.partition("All cases")[0]
    assert main(command) == 0
    assert "bright, " not in capsys.readouterr().out
