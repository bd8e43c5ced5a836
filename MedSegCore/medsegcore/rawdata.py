"""nnU-Net's raw form of a data set, with what MedSeg adds to it: names and fields. No torch here.

The form is nnU-Net's version 2: `dataset.json`, `imagesTr/CASE_0000.nii.gz` for each channel and
`labelsTr/CASE.nii.gz`. The part "medseg" of `dataset.json` says what it has no place for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medsegcore.errors import DatasetError
from medsegcore.models.schema import Key

DATASET_FILE = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
ENDING = ".nii.gz"
BACKGROUND = "background"
Modality = Literal["MR", "CT", "PT", "US", "OT"]
File = TypeVar("File", bound=BaseModel)


class ChannelFacts(BaseModel):
    """What "medseg" may say of a channel."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    modality: Modality = "MR"
    units: str = "arbitrary"


class ModelUsed(BaseModel):
    """A model that answered."""

    model_config = ConfigDict(extra="forbid")

    id: str
    version: str
    sha256: str


class CaseOrigin(BaseModel):
    """How a case that was saved from a run came about. Nothing of it names anybody.

    Attributes:
        run: random; the same run that is saved again takes the place of its case.
        subject: random; cases of one subject are visits, or readings, of one patient.
        models: those that answered, several for their mean.
        medseg: version of MedSeg that saved it.
        changed: whether the mask is another than the models' answer; None where that is unknown.
        edited: labels whose segment was changed by hand, by more than thresholds and whole lesions.
        thresholds: by label, at which its segment was cut last.
        region: whether the models looked at a box of the image alone.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    subject: str
    models: list[ModelUsed]
    medseg: str
    changed: bool | None
    edited: list[str] = []
    thresholds: dict[str, float] = {}
    region: bool = False


class MedSegPart(BaseModel):
    """The part "medseg" of a dataset.json.

    Attributes:
        patients, sites: by case; the case itself, and the data set's name, where absent.
        channels: by the channel's name in the file.
        optional: keys of channels that a case may lack.
        skull_stripped, masks: as in `medsegcore.training.datasets.Dataset`.
        cases: by case, of those that were saved from a run.
    """

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    patients: dict[str, str] = {}
    sites: dict[str, str] = {}
    license: str = "not stated"
    citation: str = "not stated"
    commercial_use: bool = False
    url: str = ""
    skull_stripped: bool = False
    masks: str = ""
    channels: dict[str, ChannelFacts] = {}
    optional: list[Key] = []
    cases: dict[str, CaseOrigin] = {}


class ListedCase(BaseModel):
    """A case of a dataset.json that names its files."""

    images: list[str]
    label: str


class RawFile(BaseModel):
    """nnU-Net's dataset.json."""

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    file_ending: str
    numTraining: int | None = None
    name: str = ""
    description: str = ""
    dataset: dict[str, ListedCase] | None = None
    medseg: MedSegPart = MedSegPart()


def image_name(case: str, channel: int) -> str:
    """File of a case's channel, in `IMAGES`."""
    return f"{case}_{channel:04}{ENDING}"


def label_name(case: str) -> str:
    """File of a case's mask, in `LABELS`."""
    return f"{case}{ENDING}"


def raw_content(
    name: str,
    title: str,
    channels: Mapping[str, ChannelFacts],
    labels: Mapping[str, int],
    cases: int,
    part: Mapping[str, Any],
) -> dict[str, Any]:
    """What a dataset.json says.

    Args:
        channels: by the channel's name, in the order of their numbers.
        labels: value by name, without the background.
        cases: how many there are in `IMAGES`.
        part: further fields of `MedSegPart`.
    """
    return {
        "name": name,
        "description": title,
        "channel_names": {str(n): channel for n, channel in enumerate(channels)},
        "labels": {BACKGROUND: 0, **labels},
        "numTraining": cases,
        "file_ending": ENDING,
        "medseg": {
            "title": title,
            **part,
            "channels": {channel: facts.model_dump() for channel, facts in channels.items()},
        },
    }


def json_text(content: Mapping[str, Any]) -> str:
    """As it is written into the file."""
    return json.dumps(content, indent=1) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DatasetError: the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"'{path}' cannot be read: {error}.", "Mend the file.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"'{path}' holds no JSON object.", "Mend the file.")
    return content


def checked(kind: type[File], content: dict[str, Any], folder: Path) -> File:
    """The content of a folder's dataset.json as that kind of file.

    Raises:
        DatasetError: a field is missing or wrong.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DatasetError(
            f"'{folder / DATASET_FILE}' has a bad '{where}': {first['msg']}.", "Mend the file."
        ) from error
