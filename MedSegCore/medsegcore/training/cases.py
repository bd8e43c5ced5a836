"""Cases for training: which are trained on, validated on and tested on, and how they are loaded."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medsegcore.errors import MissingInputError, SettingError
from medsegcore.imaging import Grid, check_overlap, read_image, read_labels, resample
from medsegcore.inference.preprocess import prepare
from medsegcore.models import Label, ModelDescription
from medsegcore.training.datasets import Case, Dataset


class Split(NamedTuple):
    """The cases of each use; no patient has two."""

    training: list[Case]
    validation: list[Case]
    test: list[Case]


def split_cases(
    dataset: Dataset, test: Collection[str] = (), validation: Collection[str] = ()
) -> Split:
    """All visits of a patient go to one side; the data set's own test cases are among the test's.

    Args:
        test, validation: patients.

    Raises:
        MissingInputError: such a patient has no case, or none is left to train on.
        SettingError: a patient of both.
    """
    cases = [case for case in dataset.cases if case.label is not None]
    patients = {case.patient for case in cases}
    for what, wanted in (("test", test), ("validation", validation)):
        for patient in wanted:
            if patient not in patients:
                raise MissingInputError(
                    f"The {what} patient '{patient}' has no case.",
                    f"Patients: {', '.join(sorted(patients))}.",
                )
    if twice := sorted({*test} & {*validation}):
        raise SettingError(
            f"The patient '{twice[0]}' is named for testing and for validation.", "Choose one."
        )
    training = [case for case in cases if case.patient not in (*test, *validation)]
    if not training:
        raise MissingInputError(
            "No case is left to train on.", "Name fewer patients for testing and validation."
        )
    kept = patients - {*test}
    own = [c for c in dataset.test if c.label is not None and c.patient not in kept]
    return Split(
        training,
        [case for case in cases if case.patient in validation],
        [*(case for case in cases if case.patient in test), *own],
    )


def load_case(case: Case, description: ModelDescription) -> dict[str, Tensor]:
    """A case as the network sees it: {key: [1, k, j, i] normalised, "label": [1, k, j, i]}.

    The images go through the same `prepare` as at inference. The label holds class numbers. Of a
    model that takes one of its inputs, the others are left out.
    """
    keys = [spec.key for spec in description.inputs]
    images = {key: read_image(path) for key, path in case.images.items() if key in keys}
    prepared = prepare(description, images)
    numbers = class_numbers(labels_on(prepared.grid, case), description.labels)
    seen = [key for key in keys if prepared.present[key]] if description.one_of else keys
    data = {key: torch.from_numpy(prepared.tensor[n])[None] for n, key in enumerate(seen)}
    return {**data, "label": torch.from_numpy(numbers)[None]}


def labels_on(grid: Grid, case: Case) -> np.ndarray:
    """The label map of a case on another grid, by nearest neighbours, [k, j, i].

    Raises:
        UnreadableImageError: it holds no labels.
        OverlapError: it lies elsewhere than the images.
    """
    assert case.label is not None
    labels = read_labels(case.label)
    check_overlap(grid, labels.grid, f"'{case.label}'")
    return resample(labels, grid, "nearest").array


def class_numbers(array: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Label map to class numbers, float32: a lone label is all above 0.

    Values that are none of several labels are background.
    """
    if len(labels) == 1:
        return (array > 0).astype(np.float32) * labels[0].value
    values = np.rint(array)
    return np.where(np.isin(values, [label.value for label in labels]), values, 0).astype(
        np.float32
    )
