"""A result on disk, and thresholds that move it."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from medsegcore.errors import OutputError, SettingError, UnreadableImageError
from medsegcore.imaging import Image
from medsegcore.inference import Result
from medsegcore.worker.protocol import decode_result, encode_result, line


def test_everything_survives_saving_and_loading(ms_result, tmp_path):
    ms_result.save(tmp_path / "r")
    again = Result.load(tmp_path / "r")
    assert again.grid.same_as(ms_result.grid, 1e-4)
    assert np.array_equal(again.labelmap, ms_result.labelmap)
    assert again.lesions == ms_result.lesions
    assert again.labels == ms_result.labels
    assert again.settings == ms_result.settings
    assert again.provenance == ms_result.provenance
    for name, array in ms_result.probabilities.items():
        assert np.array_equal(again.probabilities[name], array)
    for a, b in zip(again.attention, ms_result.attention, strict=True):
        assert (a.key, a.kind, a.title) == (b.key, b.kind, b.title)
        if a.kind == "slice":
            np.testing.assert_allclose(a.matrix, b.matrix, rtol=1e-6)
            np.testing.assert_allclose(a.centers_ras, b.centers_ras)
        else:
            assert np.array_equal(a.values, b.values)


def test_a_result_is_never_overwritten_unasked(ms_result, tmp_path):
    ms_result.save(tmp_path / "r")
    with pytest.raises(OutputError, match="holds a result already"):
        ms_result.save(tmp_path / "r")
    ms_result.save(tmp_path / "r", overwrite=True)


def test_an_incomplete_result_is_not_loaded(ms_result, tmp_path):
    ms_result.save(tmp_path / "r")
    (tmp_path / "r" / "result.json").unlink()
    with pytest.raises(UnreadableImageError, match="no complete result"):
        Result.load(tmp_path / "r")


def test_a_full_disk_leaves_what_was_there_before(ms_result, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("ITK: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sitk, "WriteImage", full)
        with pytest.raises(OutputError, match="cannot be written"):
            ms_result.save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []
    ms_result.save(tmp_path / "r")
    before = {file.name: file.read_bytes() for file in (tmp_path / "r").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(sitk, "WriteImage", full)
        with pytest.raises(OutputError):
            ms_result.save(tmp_path / "r", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "r").iterdir()} == before


def test_the_segmentation_file_says_name_color_and_codes(ms_result, tmp_path):
    ms_result.save(tmp_path / "r")
    image = sitk.ReadImage(str(tmp_path / "r" / "segmentation.seg.nrrd"))
    assert image.GetMetaData("Segment0_Name") == "MS lesion"
    assert image.GetMetaData("Segment0_LabelValue") == "1"
    assert "SCT^52988006^Lesion" in image.GetMetaData("Segment0_Tags")
    assert np.array_equal(sitk.GetArrayFromImage(image), ms_result.labelmap)


def test_the_table_has_units_and_one_row_per_lesion(ms_result, tmp_path):
    ms_result.save(tmp_path / "r")
    with (tmp_path / "r" / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ms_result.lesions) > 5
    assert float(rows[0]["volume_ml"]) == pytest.approx(ms_result.lesions[0].volume_ml, abs=1e-4)
    assert {"longest_diameter_mm", "center_r_mm", "mean_flair"} <= set(rows[0])


def test_a_mean_that_there_is_not_survives_files_and_the_workers_stream(
    ms_result, ms_images, tmp_path
):
    flair = ms_images["flair"]
    box = (slice(0, 4), slice(0, 4), slice(0, 4))
    corner = Image(flair.array[box], flair.grid.crop(box).affine)
    result = ms_result.relabel({}, inputs={"flair": flair, "t1": corner})
    assert {lesion.inputs["t1"] for lesion in result.lesions} == {None}
    result.save(tmp_path / "r")
    assert Result.load(tmp_path / "r").lesions == result.lesions
    with (tmp_path / "r" / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["mean_t1"] for row in rows} == {""}
    assert all(float(row["mean_flair"]) > 0 for row in rows)
    arrays: list[np.ndarray] = []

    def put(array):
        arrays.append(array)
        return len(arrays) - 1

    sent = line(encode_result(result, put))
    message = json.loads(sent, parse_constant=pytest.fail)
    assert decode_result(message, arrays.__getitem__).lesions == result.lesions


def test_a_higher_threshold_shrinks_the_answer_and_nothing_else(ms_result, ms_images):
    name = ms_result.labels[0].name
    higher = ms_result.relabel({name: 0.9}, inputs=ms_images)
    assert 0 < higher.labelmap.sum() < ms_result.labelmap.sum()
    assert ((higher.labelmap > 0) <= (ms_result.labelmap > 0)).all()
    back = higher.relabel({name: ms_result.settings["thresholds"][name]}, inputs=ms_images)
    assert np.array_equal(back.labelmap, ms_result.labelmap)
    assert back.lesions == ms_result.lesions
    large = ms_result.relabel({}, min_lesion_ml=0.1)
    assert min(lesion.volume_ml for lesion in large.lesions) >= 0.1
    with pytest.raises(SettingError, match="is 2"):
        ms_result.relabel({name: 2.0})


def test_nothing_that_names_a_patient_or_a_path_is_written(ms_result, tmp_path):
    ms_result.save(tmp_path / "r")
    text = (tmp_path / "r" / "result.json").read_text(encoding="utf-8")
    assert "patient" not in text.lower()
    assert str(tmp_path) not in text
    assert json.loads(text)["provenance"]["model"]["id"] == "ms-lesion-rsanet"


def test_results_models_and_images_load_without_torch_and_quickly():
    code = (
        "import sys, time; t = time.perf_counter();"
        "import medsegcore, medsegcore.imaging, medsegcore.models, medsegcore.inference;"
        "heavy = {'torch', 'monai', 'lightning', 'SimpleITK', 'scipy'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
