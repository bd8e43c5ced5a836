"""The check of a data set: it finds what was put in, and nothing in sound data."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image as Picture

from medsegcore.cli import main
from medsegcore.imaging import Image, read_image, write_image
from medsegcore.training.datasets import read_dataset, split_folds
from medsegcore.training.datasets.adapters import ADAPTERS
from medsegcore.training.datasets.check import check_dataset, intensities, tilt_degrees
from medsegcore.training.datasets.visits import visits_as_patients
from medsegcore.training.recipes import RSANetRecipe
from medsegcore.training.setup import Plan, set_up


@pytest.fixture(scope="module")
def sound(ms_cases, tmp_path_factory):
    """A data set in nnU-Net's raw form: three cases of two patients; the last has no T2."""
    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(ms_cases, folder / "ms" / "open_ms")
    ADAPTERS["samples-ms"].convert(folder, folder / "set")
    return folder / "set"


@pytest.fixture
def root(sound, tmp_path):
    """A copy that a test may spoil; no hard links, which would spoil the original."""
    shutil.copytree(sound, tmp_path / "set")
    return tmp_path / "set"


def change(path, make):
    """Write an image again as `make` changes it."""
    image = make(read_image(path))
    path.unlink()
    write_image(image, path)


def findings(root, folds=()):
    report = check_dataset(read_dataset(root, strict=False), folds)
    return [(f.severity, f.case, f.text) for f in report.findings]


SOUND = [("note", "", "The optional channel 't2' is missing in 1 of 3 cases: b.")]


def test_sound_data_have_no_errors_and_their_volumes_are_right(root):
    report = check_dataset(read_dataset(root))
    assert [(f.severity, f.case, f.text) for f in report.findings] == SOUND
    case = report.cases[0]
    mask = read_image(root / "labelsTr" / "a_1.nii.gz")
    expected = (mask.array > 0).sum() * np.prod(mask.spacing) / 1000
    assert case.volumes_ml["MS lesion"] == pytest.approx(expected, abs=1e-3)
    flair = read_image(root / "imagesTr" / "a_1_0002.nii.gz").array
    found = case.intensities["flair"]
    assert found.mean == pytest.approx(flair.mean(dtype=float))
    assert found.sd == pytest.approx(flair.std(dtype=float))
    assert found.percentiles[1] == pytest.approx(np.median(flair))
    assert case.shapes["flair"] == flair.shape[::-1]


def shifted(mm):
    def make(image):
        affine = image.affine.copy()
        affine[0, 3] += mm
        return Image(image.array, affine)

    return make


@pytest.mark.parametrize(
    ("file", "make", "severity", "words"),
    [
        ("labelsTr/a_1", lambda i: i.with_array(i.array * 4), "error", "not declared: 4"),
        ("labelsTr/a_1", lambda i: i.with_array(i.array * 0), "warning", "The label is empty"),
        ("labelsTr/a_1", shifted(8.0), "warning", "another grid than every channel; it shares"),
        ("labelsTr/a_1", shifted(60.0), "error", "another grid than every channel; it shares 1"),
        ("imagesTr/a_1_0000", shifted(60.0), "error", "'t2' has only 1"),
        ("imagesTr/a_1_0002", lambda i: i.with_array(i.array * 0), "error", "is constant"),
        ("imagesTr/a_1_0002", lambda i: Image(i.array[::3], i.affine @ np.diag([1, 1, 3, 1])),
         "warning", "'flair' has voxels of 1 x 1 x 3 mm; the median is 1 x 1 x 1 mm"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_image_is_found(root, file, make, severity, words):
    change(root / f"{file}.nii.gz", make)
    found = [text for level, case, text in findings(root) if (level, case) == (severity, "a_1")]
    assert any(words in text for text in found), found


def test_voxels_that_are_no_numbers_are_counted(root):
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["file_ending"] = ".mha"
    (root / "dataset.json").write_text(json.dumps(content))
    for file in root.glob("*/*.nii.gz"):
        image = read_image(file)
        if file.name == "a_1_0002.nii.gz":
            image = image.astype(np.float32)
            image.array[0, 0, :3] = [np.nan, np.inf, -np.inf]
        write_image(image, file.with_name(file.name.replace(".nii.gz", ".mha")))
    assert ("warning", "a_1", "'flair' has 3 voxels that are not finite.") in findings(root)


def test_unreadable_and_missing_files_are_findings_and_no_end(root):
    file = root / "imagesTr" / "a_1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:2000])
    (root / "imagesTr" / "a_2_0002.nii.gz").unlink()
    (root / "labelsTr" / "b.nii.gz").unlink()
    found = [text for level, _, text in findings(root) if level == "error"]
    assert len(found) == 3
    assert any("truncated" in text for text in found)
    assert "The case 'a_2' has no file of the channel 'flair'." in found
    assert "The case 'b' has no label 'b.nii.gz'." in found


def test_one_image_under_two_names_is_found_within_and_between_patients_folds_and_parts(root):
    images = root / "imagesTr"
    shutil.copy(images / "a_1_0002.nii.gz", images / "a_1_0001.nii.gz")
    shutil.copy(images / "a_1_0000.nii.gz", images / "a_2_0000.nii.gz")
    shutil.copy(images / "a_1_0000.nii.gz", images / "b_0000.nii.gz")
    found = findings(root, [["a"], ["b"]])
    assert ("warning", "a_1", "'flair' is the same image as 't2'.") in found
    assert ("warning", "a_2", "'t1' is the same image as 't1' of 'a_1'.") in found
    assert (
        "error", "b", "'t1' is the same image as 't1' of 'a_1', which is said to be patient 'a' "
        "(training); this one is 'b' (training).",
    ) in found  # fmt: skip
    assert any(
        f[0] == "error" and f[2].startswith("The same image is in several folds: ") for f in found
    )
    (root / "imagesTs").mkdir()
    shutil.copy(images / "a_1_0002.nii.gz", root / "imagesTs" / "c_0002.nii.gz")
    assert any(
        case == "c" and "patient 'a' (training); this one is 'c' (test)" in text
        for _, case, text in findings(root)
    )


def test_a_patient_in_two_folds_or_parts_is_found(root):
    found = findings(root, [["a"], ["a"]])
    assert ("error", "", "The patient 'a' is in the folds 0 and 1.") in found
    assert ("warning", "", "The patient 'b' is in no fold.") in found
    (root / "imagesTs").mkdir()
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["medseg"]["patients"]["x"] = "a"
    (root / "dataset.json").write_text(json.dumps(content))
    for n in (0, 2):
        shutil.copy(root / "imagesTr" / f"b_000{n}.nii.gz", root / "imagesTs" / f"x_000{n}.nii.gz")
    assert ("error", "", "The patient 'a' is in the training and the test part.") in findings(root)
    assert findings(root, split_folds(read_dataset(root), 2)) == findings(root)


def test_units_that_the_values_contradict_are_found(root):
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["medseg"]["channels"]["T1"]["units"] = "HU"
    content["medseg"]["channels"]["FLAIR"]["units"] = "1e-6 mm2/s"
    (root / "dataset.json").write_text(json.dumps(content))
    found = [text for level, case, text in findings(root) if (level, case) == ("warning", "a_1")]
    assert any("'t1' is to be in HU, but its darkest voxels are at" in text for text in found)
    assert any("'flair' is to be in 1e-6 mm2/s" in text for text in found)


@pytest.fixture
def folders(ms_cases, tmp_path):
    """A folder of cases that a test may spoil."""
    shutil.copytree(ms_cases, tmp_path / "own")
    return tmp_path / "own"


def test_a_mask_of_255_is_the_label_and_several_values_are_warned_of(folders):
    before = read_image(folders / "a_1" / "lesion.nii.gz").array > 0
    change(folders / "a_1" / "lesion.nii.gz", lambda i: i.with_array((i.array > 0) * np.int16(255)))
    change(folders / "b" / "lesion.nii.gz", lambda i: i.with_array(i.array * (np.arange(
        i.array.shape[2]) % 2 + 1)))  # fmt: skip
    report = check_dataset(read_dataset(folders))
    found = {(f.severity, f.case): f.text for f in report.findings}
    assert "values 255: all above 0 is 'lesion'" in found["note", "a_1"]
    assert "dataset.json" in found["warning", "b"]
    assert report.cases[0].volumes_ml["lesion"] == pytest.approx(before.sum() / 1000, rel=0.02)


def test_folders_that_are_left_out_and_a_lone_patient_are_told(folders):
    assert not [text for _, _, text in findings(folders) if "left out" in text or "one" in text]
    (folders / "b" / "lesion.nii.gz").unlink()
    warnings = [text for severity, _, text in findings(folders) if severity == "warning"]
    left_out = "1 folder with images but without the label left out: b. There, too, the mask has to"
    assert f"{left_out} be called 'lesion.nii.gz'." in warnings
    assert any("All cases are of one patient, 'a'" in text for text in warnings)


def test_a_misspelt_channel_is_told_from_another_one(folders):
    (folders / "b" / "flair.nii.gz").rename(folders / "b" / "flare.nii.gz")
    (folders / "a_1" / "t2.nii.gz").rename(folders / "a_1" / "t3.nii.gz")
    (folders / "a_2" / "t2.nii.gz").rename(folders / "a_2" / "t1ce.nii.gz")
    misspelt = [text for _, _, text in findings(folders) if "misspelt" in text]
    assert misspelt == [
        "'flare' of b may be a misspelt 'flair': as it stands it is a channel of its own."
    ]


def test_tilt_and_intensities_by_hand(ms_images):
    grid = ms_images["flair"].grid
    assert tilt_degrees(grid) == pytest.approx(0.0, abs=0.1)
    angle = np.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert tilt_degrees(type(grid)(grid.shape, turn @ grid.affine)) == pytest.approx(20, abs=0.1)
    empty = ms_images["flair"].with_array(np.full((2, 2, 2), np.nan, np.float32))
    assert (intensities(empty).not_finite, intensities(empty).constant) == (8, True)


def test_the_command_converts_checks_and_draws_every_case(root, tmp_path, capsys):
    out = tmp_path / "report"
    assert main(["dataset", "check", str(root), "--out", str(out), "--folds", "2", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1] == {"event": "result", "errors": 0, "warnings": 0, "notes": 1}
    assert {"event": "folds", "folds": [["a"], ["b"]]} in events
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [case["picture"] for case in report["cases"]] == ["a_1.png", "a_2.png", "b.png"]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "3 cases of 2 patients from 1 site; 0 errors, 0 warnings, 1 note." in text
    assert "![a_1](a_1.png)" in text
    picture = np.asarray(Picture.open(out / "a_1.png").convert("RGB")).astype(int)
    # The outline's orange, which gray images do not have.
    orange = np.abs(picture - [230, 159, 0]).sum(axis=-1) < 60
    assert orange.sum() > 100

    change(root / "labelsTr" / "a_1.nii.gz", lambda image: image.with_array(image.array * 3))
    assert main(["dataset", "check", str(root)]) == 3
    captured = capsys.readouterr()
    assert "not declared: 3" in captured.out
    assert "has 1 error." in captured.err


def test_the_command_lists_licences_and_converts(tmp_path, ms_cases, capsys):
    assert main(["dataset", "list", "--json"]) == 0
    listed = {e["id"]: e for e in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(listed) == set(ADAPTERS)
    assert listed["mslesseg"]["license"] == "CC BY 4.0"
    assert not listed["picai"]["commercial_use"]
    shutil.copytree(ms_cases, tmp_path / "ms" / "open_ms")
    command = ["dataset", "convert", "samples-ms", str(tmp_path), "--out", str(tmp_path / "set")]
    assert main(command) == 0
    assert "3 cases of 2 patients" in capsys.readouterr().out
    assert main(command) == 6
    assert main(["dataset", "convert", "nothing", str(tmp_path), "--out", str(tmp_path / "x")]) == 3
    assert "no data set 'nothing'" in capsys.readouterr().err


def test_folders_of_visits_that_count_as_patients_are_told(ms_cases, tmp_path, capsys):
    for patient, visit, case in (("anna", "v1", "a_1"), ("anna", "v2", "a_2"), ("ben", "v1", "b")):
        shutil.copytree(ms_cases / case, tmp_path / "cohort" / patient / visit)
    told = visits_as_patients(read_dataset(tmp_path / "cohort"))
    assert told.startswith("Folders called v1, v2 look like visits")
    assert told.endswith("e.g. anna_v1.")
    main(["dataset", "check", str(tmp_path / "cohort")])
    assert "look like visits" in " ".join(capsys.readouterr().out.split())
    assert visits_as_patients(read_dataset(ms_cases)) == ""
    setup = set_up(
        RSANetRecipe(width=2, norm_groups=1, patch=(16, 16, 16)), tmp_path / "cohort",
        Plan(steps=1, device="cpu", workers=0),
    )  # fmt: skip
    assert told in setup.notes
