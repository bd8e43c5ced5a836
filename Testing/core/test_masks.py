"""Masks that are no masks, lie elsewhere or hold nothing are told before anything is computed."""

import shutil

import numpy as np
import pytest

from medsegcore.errors import (
    DatasetError,
    MissingInputError,
    ModelSchemaError,
    OverlapError,
    UnreadableImageError,
)
from medsegcore.evaluation.answers import ModelAnswers, PredictionFolder
from medsegcore.evaluation.evaluate import CaseFiles, evaluate
from medsegcore.imaging import Image, read_image, read_labels, write_image
from medsegcore.training.datasets import read_dataset
from medsegcore.training.datasets.check import check_dataset
from medsegcore.training.recipes import RSANetRecipe, UNetRecipe
from medsegcore.training.setup import Plan, set_up

SMALL = RSANetRecipe(width=4, norm_groups=1, patch=(32, 32, 32))
PLAN = Plan(steps=1, device="cpu", workers=0)


@pytest.fixture
def root(ms_cases, tmp_path):
    return shutil.copytree(ms_cases, tmp_path / "open_ms")


def spoil(path, make):
    image = read_image(path)
    path.unlink()
    write_image(make(image), path)


def smoothed(image):
    array = image.array.astype(np.float32)
    return image.with_array(array * 0.7)


def elsewhere(image):
    affine = image.affine.copy()
    affine[:3, 3] += 500
    return Image(image.array, affine)


def empty(image):
    return image.with_array(np.zeros_like(image.array))


def test_values_between_labels_are_no_labels(root):
    file = root / "b" / "lesion.nii.gz"
    whole = read_image(file).array
    spoil(file, lambda image: image.with_array(image.array.astype(np.float32)))
    found = read_labels(file).array
    assert np.array_equal(found, whole)
    spoil(file, smoothed)
    with pytest.raises(UnreadableImageError, match=r"values such as 0\.7, no labels"):
        read_labels(file)
    with pytest.raises(UnreadableImageError, match="no labels"):
        set_up(SMALL, root, PLAN)
    with pytest.raises(UnreadableImageError, match="no labels"):
        evaluate([], [CaseFiles("b", {}, file)], {"lesion": None})
    findings = check_dataset(read_dataset(root)).findings
    assert ("error", "b") in [(f.severity, f.case) for f in findings if "no labels" in f.text]


def test_a_mask_that_lies_elsewhere_is_no_empty_one(root, predictor):
    file = root / "a_1" / "lesion.nii.gz"
    spoil(file, elsewhere)
    with pytest.raises(OverlapError, match=r"lesion\.nii\.gz' has only 0%"):
        set_up(SMALL, root, PLAN)
    images = {key: root / "a_1" / f"{key}.nii.gz" for key in ("t1", "t2", "flair")}
    method = ModelAnswers(predictor, ["lesion"])
    with pytest.raises(OverlapError, match="The reference mask of 'a_1' has only 0%"):
        evaluate([method], [CaseFiles("a_1", images, file)], {"lesion": None})


def test_without_a_lesion_nothing_is_learnt(root):
    for name in ("a_1", "a_2"):
        spoil(root / name / "lesion.nii.gz", empty)
    with pytest.raises(DatasetError, match="No mask of the cases to train on has a voxel of MS"):
        set_up(SMALL, root, Plan(steps=1, device="cpu", workers=0, test=["b"]))
    # One case has some.
    assert not [n for n in set_up(SMALL, root, PLAN).notes if "voxel" in n]


def test_of_several_labels_the_one_that_is_nowhere_is_told(root):
    data = read_dataset(root)
    labels = {"lesion": 1, "scar": 2}
    recipe = UNetRecipe(width=2, patch=(32, 32, 32), batch_size=1)
    notes = set_up(recipe, type(data)(**{**vars(data), "labels": labels}), PLAN).notes
    assert "No case to train on has a voxel of 'scar': it is not learnt." in notes


def test_a_mask_below_zero_is_empty(root):
    spoil(root / "b" / "lesion.nii.gz",
          lambda image: image.with_array(-(image.array > 0).astype(np.int16)))  # fmt: skip
    texts = [f.text for f in check_dataset(read_dataset(root)).findings if f.case == "b"]
    assert "The label is empty." in texts


def test_a_mask_that_is_nearly_called_so_is_named(root):
    for file in root.rglob("lesion.nii.gz"):
        file.rename(file.with_name("Lesion.nii.gz"))
    with pytest.raises(MissingInputError, match=r"There is a 'Lesion\.nii\.gz' in"):
        read_dataset(root)


def test_predictions_of_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MissingInputError, match="no folder"):
        PredictionFolder(tmp_path / "nowhere", {"lesion": None}, print).check(["a"])


def test_an_id_that_is_none_is_told_before_the_training(ms_cases):
    with pytest.raises(ModelSchemaError, match="'My Model' cannot be the id of a model"):
        set_up(SMALL, ms_cases, Plan(steps=1, device="cpu", model_id="My Model"))
