"""Data sets: the three forms that are read, what is refused, and the folds."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from medsegcore.errors import DatasetError, MissingInputError, SettingError
from medsegcore.imaging import read_image
from medsegcore.training.datasets import (
    Case,
    Channel,
    Dataset,
    leave_one_patient_out,
    leave_one_site_out,
    read_dataset,
    split_folds,
)

CHANNELS = {"0": "T1", "1": "T2", "2": "FLAIR"}


def raw_copy(ms_cases, root, **changes):
    """The three cases in nnU-Net's raw form; the last has no T2."""
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for folder in ms_cases.iterdir():
        for n, key in enumerate(("t1", "t2", "flair")):
            if (folder / f"{key}.nii.gz").is_file():
                shutil.copy(folder / f"{key}.nii.gz",
                            root / "imagesTr" / f"{folder.name}_000{n}.nii.gz")  # fmt: skip
        shutil.copy(folder / "lesion.nii.gz", root / "labelsTr" / f"{folder.name}.nii.gz")
    content = {
        "channel_names": CHANNELS, "labels": {"background": 0, "lesion": 1}, "numTraining": 3,
        "file_ending": ".nii.gz",
        "medseg": {
            "patients": {"a_1": "a", "a_2": "a"}, "sites": {"b": "elsewhere"},
            "license": "CC BY", "citation": "Lesjak 2017", "commercial_use": True,
            "channels": {"FLAIR": {"key": "dark_fluid", "modality": "MR", "units": "au"}},
            "optional": ["t2"],
        },
        **changes,
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_a_folder_of_cases_is_read_with_what_is_known_of_its_source(ms_cases):
    dataset = read_dataset(ms_cases.parent)
    assert [(c.id, c.patient, c.site, sorted(c.images)) for c in dataset.cases] == [
        ("a_1", "a", "open_ms", ["flair", "t1", "t2"]),
        ("a_2", "a", "open_ms", ["flair", "t1", "t2"]),
        ("b", "b", "open_ms", ["flair", "t1"]),
    ]
    assert {key: c.required for key, c in dataset.channels.items()} == {
        "flair": True, "t1": True, "t2": False,
    }  # fmt: skip
    assert (dataset.labels, dataset.license, dataset.commercial_use) == (
        {"lesion": 1}, "CC BY", True,
    )  # fmt: skip
    assert "Lesjak" in dataset.citation
    assert list(read_dataset(ms_cases, keys=["t1"]).cases[0].images) == ["t1"]


def test_names_of_files_become_keys_and_a_missing_folder_is_told(ms_cases, tmp_path):
    shutil.copytree(ms_cases, tmp_path / "own")
    for file in tmp_path.rglob("flair.nii.gz"):
        file.rename(file.with_name("T2-FLAIR 3D.nii.gz"))
    assert set(read_dataset(tmp_path / "own").channels) == {"t1", "t2", "t2_flair_3d"}
    with pytest.raises(MissingInputError, match="There is no folder"):
        read_dataset(tmp_path / "other")


def test_two_sites_may_call_their_cases_the_same(ms_cases, tmp_path):
    for site in ("north", "south"):
        shutil.copytree(ms_cases / "a_1", tmp_path / site / "a_1")
    shutil.copytree(ms_cases / "a_2", tmp_path / "south" / "a_2")
    assert [(c.id, c.patient, c.site) for c in read_dataset(tmp_path).cases] == [
        ("north_a_1", "north-a", "north"),
        ("south_a_1", "south-a", "south"),
        ("south_a_2", "south-a", "south"),
    ]


def test_masks_of_other_kinds_are_no_channels(shared_data):
    dataset = read_dataset(shared_data / "prostate", label="prostate")
    assert set(dataset.channels) == {"adc", "hbv", "t2w"}
    assert dataset.sites == ["picai", "prostatex", "ucla"]
    assert (dataset.license, dataset.commercial_use) == ("not stated", False)
    ct = read_dataset(shared_data / "sarcoma", label="tumor_on_ct", keys=["ct"])
    assert ct.channels["ct"] == Channel("ct", "CT", "HU")
    with pytest.raises(MissingInputError, match=r"no case with a 'gland\.nii\.gz'"):
        read_dataset(shared_data / "prostate", label="gland")


def test_nnunets_raw_form_is_read_with_our_part_of_its_description(ms_cases, tmp_path):
    dataset = read_dataset(raw_copy(ms_cases, tmp_path / "Dataset001_MS"))
    assert [(c.id, c.patient, c.site, list(c.images)) for c in dataset.cases] == [
        ("a_1", "a", "Dataset001_MS", ["t1", "t2", "dark_fluid"]),
        ("a_2", "a", "Dataset001_MS", ["t1", "t2", "dark_fluid"]),
        ("b", "b", "elsewhere", ["t1", "dark_fluid"]),
    ]
    assert dataset.channels["dark_fluid"] == Channel("FLAIR", "MR", "au")
    assert not dataset.channels["t2"].required
    assert dataset.labels == {"lesion": 1}
    assert (dataset.license, dataset.citation) == ("CC BY", "Lesjak 2017")
    mask = read_image(dataset.cases[0].label)
    assert mask.grid.same_as(read_image(dataset.cases[0].images["t1"]).grid)


def test_nnunets_list_of_files_and_its_test_cases_are_read(ms_cases, tmp_path):
    root = raw_copy(ms_cases, tmp_path / "d")
    (root / "imagesTr").rename(root / "imagesTs")
    (root / "labelsTr").rename(root / "labelsTs")
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["dataset"] = {
        "one": {
            "images": [str(ms_cases / "a_1" / f"{key}.nii.gz") for key in ("t1", "t2", "flair")],
            "label": "labelsTs/a_1.nii.gz",
        }
    }
    content["numTraining"] = 1
    (root / "dataset.json").write_text(json.dumps(content))
    dataset = read_dataset(root)
    assert [case.id for case in dataset.cases] == ["one"]
    assert dataset.cases[0].images["t2"] == ms_cases / "a_1" / "t2.nii.gz"
    assert [case.id for case in dataset.test] == ["a_1", "a_2", "b"]
    assert dataset.test[2].label.name == "b.nii.gz"


def test_what_is_promised_but_missing_is_told_at_once_or_as_a_list(ms_cases, tmp_path):
    root = raw_copy(ms_cases, tmp_path / "d", numTraining=7, medseg={"patients": {"c": "a"}})
    (root / "labelsTr" / "a_2.nii.gz").unlink()
    (root / "imagesTs").mkdir()
    for n in (0, 2):
        shutil.copy(root / "imagesTr" / f"b_000{n}.nii.gz", root / "imagesTs" / f"t_000{n}.nii.gz")
    with pytest.raises(DatasetError, match="numTraining is 7, but there are 3"):
        read_dataset(root)
    problems = read_dataset(root, strict=False).problems
    assert problems[1:] == (
        "The case 'a_2' has no label 'a_2.nii.gz'.",
        "The case 'b' has no file of the channel 't2'.",
        "The case 't' has no file of the channel 't2'.",
        "medseg.patients names the case 'c', which is not there.",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "'whole' .* is a region"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "marks voxels to leave out"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "Each needs a value of its own"),
        ({"labels": {"background": 0}}, "has no label"),
        ({"file_ending": ".png"}, "file ending '.png'"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "numbers its channels 0, 2"),
        ({"channel_names": {"0": "T1", "1": "t1"}}, "key 't1', which is there twice"),
        ({"channel_names": {"0": "3D"}}, "key '3d', which is none"),
        ({"medseg": {"optional": ["adc"]}}, "names the channel 'adc'"),
        ({"medseg": {"optinal": ["t2"]}}, "bad 'medseg.optinal'"),
        ({"labels": None}, "bad 'labels'"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused_in_words(ms_cases, tmp_path, changes, words):
    root = raw_copy(ms_cases, tmp_path / "d", **changes)
    with pytest.raises(DatasetError, match=words):
        read_dataset(root)


def test_a_file_that_is_no_description_is_refused(tmp_path):
    for text, words in (("{", "cannot be read"), ("[]", "no JSON object"), ("{}", "has neither")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DatasetError, match=words):
            read_dataset(tmp_path)
    empty = {"channel_names": {"0": "T1"}, "labels": {"a": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(empty))
    with pytest.raises(MissingInputError, match="has no case"):
        read_dataset(tmp_path)


def test_the_decathlons_channels_are_volumes_of_one_file(ms_cases, tmp_path):
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / part).mkdir()
    keys = ("flair", "t1", "t2")
    stacked = sitk.JoinSeries([sitk.ReadImage(ms_cases / "a_1" / f"{k}.nii.gz") for k in keys])
    for part in ("imagesTr", "imagesTs"):
        sitk.WriteImage(stacked, tmp_path / part / "BRATS_001.nii.gz")
    shutil.copy(ms_cases / "a_1" / "lesion.nii.gz", tmp_path / "labelsTr" / "BRATS_001.nii.gz")
    content = {
        "name": "BRATS", "description": "Gliomas", "reference": "King's College London",
        "licence": "CC-BY-SA 4.0", "modality": {"0": "FLAIR", "1": "T1w", "2": "T2w"},
        "labels": {"0": "background", "1": "edema"}, "test": ["./imagesTs/BRATS_001.nii.gz"],
        "training": [
            {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
        ],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path)
    assert (dataset.title, dataset.license) == ("Gliomas", "CC-BY-SA 4.0")
    assert dataset.labels == {"edema": 1}
    (case,) = dataset.cases
    assert list(case.images) == ["flair", "t1w", "t2w"]
    for key, file in zip(keys, case.images.values(), strict=True):
        expected = read_image(ms_cases / "a_1" / f"{key}.nii.gz")
        found = read_image(file)
        np.testing.assert_array_equal(found.array, expected.array)
        assert found.grid.same_as(expected.grid)
    assert [(case.id, case.label) for case in dataset.test] == [("BRATS_001", None)]


def cases_of(patients):
    """{(patient, site): visits} as a data set without files."""
    cases = [
        Case(f"{patient}_{n}_{site}", patient, site, {}, None)
        for (patient, site), visits in patients.items()
        for n in range(visits)
    ]
    return Dataset("d", "d", {}, {"lesion": 1}, cases)


def test_folds_keep_patients_whole_and_spread_sites_evenly():
    dataset = cases_of({(f"p{n:02}", "one" if n < 14 else "two"): 1 + n % 4 for n in range(20)})
    folds = split_folds(dataset, 3, seed=4)
    assert sorted(p for fold in folds for p in fold) == dataset.patients
    visits = {p: sum(c.patient == p for c in dataset.cases) for p in dataset.patients}
    for site, low, high in (("one", 4, 5), ("two", 2, 2)):
        here = {c.patient for c in dataset.cases if c.site == site}
        assert all(low <= len(here & set(fold)) <= high for fold in folds)
    sizes = [sum(visits[p] for p in fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 4
    assert split_folds(dataset, 3, seed=4) == folds
    assert split_folds(dataset, 3, seed=5) != folds
    for wrong in (1, 21):
        with pytest.raises(SettingError, match="cannot be split"):
            split_folds(dataset, wrong)


def test_sites_and_patients_are_left_out_one_at_a_time():
    dataset = cases_of({("a", "one"): 2, ("b", "one"): 1, ("b", "two"): 1, ("c", "two"): 1})
    assert leave_one_site_out(dataset) == {"one": ["a", "b"], "two": ["b", "c"]}
    assert leave_one_patient_out(dataset) == [["a"], ["b"], ["c"]]
    single = cases_of({("a", "one"): 2})
    with pytest.raises(SettingError, match="of the site 'one'"):
        leave_one_site_out(single)
    with pytest.raises(SettingError, match="of the patient 'a'"):
        leave_one_patient_out(single)
