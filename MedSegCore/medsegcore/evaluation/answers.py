"""What is measured: a model, or a folder of predictions that something else has made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from medsegcore.errors import MissingInputError, SettingError, UnreadableImageError
from medsegcore.imaging import Grid, Image, check_overlap, read_labels, resample
from medsegcore.inference.predictor import Predictor
from medsegcore.models import ModelDescription
from medsegcore.models.label_names import standard_name

PREDICTION_ENDINGS = (".nii.gz", ".seg.nrrd", ".nrrd", ".mha")
# Value by name in a label map; None stands for every value above 0.
LabelValues = Mapping[str, int | None]


class CaseFiles(NamedTuple):
    """A case to measure on: image by input key, and the reference mask."""

    name: str
    images: Mapping[str, Path]
    mask: Path


class Answer(NamedTuple):
    """Of one case, on the grid of its reference mask, by label name.

    Attributes:
        masks: bool [k, j, i].
        probabilities: float32 [k, j, i], 0..1; {} where there are none.
    """

    masks: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]


class Method(Protocol):
    """Something that answers cases.

    Attributes:
        name: what tables call it.
        facts: what tells it apart from all others, by what it is.
        keys: inputs that it wants, the one to draw pictures over first.
    """

    name: str
    facts: dict[str, str]
    keys: tuple[str, ...]

    def answer(self, case: str, images: Mapping[str, Image], grid: Grid) -> Answer:
        """Answer one case on a grid."""
        ...


class ModelAnswers:
    """A model that segments each case.

    Args:
        labels: what is measured; a model of one label answers the only one whatever its name.
        thresholds: by label name, 0..1; the model's own where none is given.

    Raises:
        SettingError: the model has no such label.
    """

    def __init__(
        self,
        predictor: Predictor,
        labels: Sequence[str],
        mirror: bool = False,
        thresholds: Mapping[str, float] | None = None,
    ):
        description = predictor.description
        self.predictor, self.mirror, self.thresholds = predictor, mirror, thresholds
        self.name = description.id
        self.facts = {
            "model": f"{description.id} {description.version}",
            "sha256 of the weights": description.weights.sha256,
            "device": f"{predictor.device}, {str(predictor.dtype).removeprefix('torch.')}",
        }
        keys = [spec.key for spec in description.inputs]
        self.keys = tuple(sorted(keys, key=lambda key: key != description.reference))
        self._labels = _own_labels(description, labels)

    def answer(self, case: str, images: Mapping[str, Image], grid: Grid) -> Answer:
        """Segment, and bring the answer from the reference image's grid to the mask's.

        Raises:
            OverlapError: the mask lies elsewhere than the images.
        """
        result = self.predictor.predict(
            {key: image for key, image in images.items() if key in self.keys},
            attention=False, mirror=self.mirror, thresholds=self.thresholds,
        )  # fmt: skip
        check_overlap(result.grid, grid, f"The reference mask of '{case}'")
        labelmap = resample(result.image(result.labelmap), grid, "nearest").array
        values = {label.name: label.value for label in result.labels}
        return Answer(
            {name: labelmap == values[own] for name, own in self._labels.items()},
            {
                name: resample(result.image(result.probabilities[own]), grid).array
                for name, own in self._labels.items()
            },
        )


def _own_labels(description: ModelDescription, labels: Sequence[str]) -> dict[str, str]:
    """The model's name of each label that is measured."""
    own = [label.name for label in description.labels]
    if len(labels) == 1 and len(own) == 1:
        return {labels[0]: own[0]}
    standard = {standard_name(name): name for name in own}
    for name in labels:
        if standard_name(name) not in standard:
            raise SettingError(
                f"The model '{description.id}' has no label '{name}'.",
                f"Its labels: {', '.join(own)}. Name what the masks' values are with --labels.",
            )
    return {name: standard[standard_name(name)] for name in labels}


@dataclass
class PredictionFolder:
    """Label maps named by case, e.g. patient19.nii.gz or patient19.seg.nrrd.

    Attributes:
        folder: where they are.
        values: by label name.
        warn: called with one sentence about a file that is not as one would expect.
    """

    folder: Path
    values: LabelValues
    warn: Callable[[str], None]
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name = self.folder.resolve().name
        self.facts = {"predictions": str(self.folder)}

    def check(self, cases: Sequence[str]) -> None:
        """Raise MissingInputError that names the cases without a prediction."""
        if not self.folder.is_dir():
            raise MissingInputError(f"There is no folder '{self.folder}'.", "Check its name.")
        missing = [case for case in cases if self._file(case) is None]
        if missing:
            raise MissingInputError(
                f"{len(missing)} of {len(cases)} predictions are missing in '{self.folder}': "
                f"{', '.join(missing)}.",
                f"Name each after its case, e.g. {missing[0]}.nii.gz, or choose the patients.",
            )

    def answer(self, case: str, images: Mapping[str, Image], grid: Grid) -> Answer:
        """Read the label map; nearest neighbours where it lies on another grid than the mask.

        Raises:
            UnreadableImageError: no such file, or values that are no labels.
            OverlapError: it lies elsewhere than the mask.
        """
        file = self._file(case)
        if file is None:
            raise UnreadableImageError(f"'{self.folder}' has no prediction of the case '{case}'.")
        image = read_labels(file)
        values = np.unique(image.array)
        known = set(self.values.values())
        strange = [f"{v:g}" for v in values if v and None not in known and v not in known]
        if strange:
            self.warn(f"'{file}' has the value {', '.join(strange)}, which is none of the labels.")
        if not image.grid.same_as(grid):
            check_overlap(grid, image.grid, f"'{file}'")
            self.warn(
                f"'{file}' lies on another grid than its reference mask ({_size(image.grid)} "
                f"instead of {_size(grid)}): it was resampled by nearest neighbour."
            )
        labelmap = resample(image, grid, "nearest").array
        return Answer({name: chosen(labelmap, value) for name, value in self.values.items()}, {})

    def _file(self, case: str) -> Path | None:
        files = (self.folder / f"{case}{ending}" for ending in PREDICTION_ENDINGS)
        return next((file for file in files if file.is_file()), None)


def chosen(labelmap: np.ndarray, value: int | None) -> np.ndarray:
    """Where a label is, bool; every value above 0 for None."""
    return labelmap > 0 if value is None else labelmap == value


def model_labels(description: ModelDescription) -> dict[str, int | None]:
    """What the masks of a model's training data mean: its own values, or all of a lone label."""
    if len(description.labels) == 1:
        return {description.labels[0].name: None}
    return {label.name: label.value for label in description.labels}


def labels_to_measure(
    known: Mapping[str, int], models: Sequence[ModelDescription], declared: bool = True
) -> dict[str, int | None]:
    """Value by name of the labels that a data set and the models have in common.

    A lone label of the data set stands for every value above 0, e.g. the grades of lesions; a
    model with a lone label is measured on it whatever its name.

    Args:
        known: of the data set.
        declared: whether the data set says what its values are. A folder of cases names one label,
            its mask's; the values are then those of the first model.

    Raises:
        SettingError: no label of the data set is one of the first model's.
    """
    if not models:
        return dict.fromkeys(known) if len(known) == 1 else dict(known)
    own = model_labels(models[0])
    if len(known) == 1 and (len(own) == 1 or not declared):
        return own
    values = {
        standard_name(name): None if len(known) == 1 else value for name, value in known.items()
    }
    common = {name: values[standard_name(name)] for name in own if standard_name(name) in values}
    if not common:
        raise SettingError(
            f"The data set has no label of the model '{models[0].id}': {', '.join(own)}.",
            f"Its labels: {', '.join(known)}. Give --labels NAME=VALUE.",
        )
    return common


def name_apart(methods: Sequence[Method]) -> None:
    """Number the methods that have the same name."""
    names = [method.name for method in methods]
    for n, method in enumerate(methods):
        if names.count(names[n]) > 1:
            method.name = f"{names[n]} ({names[: n + 1].count(names[n])})"


def _size(grid: Grid) -> str:
    size = " x ".join(str(n) for n in grid.shape[::-1])
    return f"{size} voxels of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm"
