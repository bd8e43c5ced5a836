"""What a training reads: cases of patients from sites, their images by channel and their labels.

Three forms on disk, told apart by themselves:

- nnU-Net's raw form (its version 2): `dataset.json` with `channel_names`, `imagesTr`, `labelsTr`,
  and optionally `imagesTs`, `labelsTs`;
- the Medical Segmentation Decathlon's: `dataset.json` with `modality` and 4-D images;
- a folder of cases: `<key>.nii.gz` beside `<label>.nii.gz`, one folder per visit; all that is not
  0 is the label.

An optional part "medseg" of either `dataset.json` says what those forms have no place for
(`medsegcore.rawdata.MedSegPart`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel

from medsegcore.errors import DatasetError, MissingInputError
from medsegcore.imaging.io import EXTENSIONS, file_and_volume
from medsegcore.models.contrasts import contrast_of
from medsegcore.rawdata import (
    DATASET_FILE,
    MedSegPart,
    Modality,
    RawFile,
    checked,
    read_json,
)
from medsegcore.training.datasets.sources import SOURCES, combined_terms


@dataclass(frozen=True)
class Channel:
    """What is known of one channel.

    Attributes:
        title: as the data set calls it.
        required: whether every case has it.
    """

    title: str
    modality: Modality = "MR"
    units: str = "arbitrary"
    required: bool = True


@dataclass(frozen=True)
class Case:
    """One visit of one patient.

    Attributes:
        id: unique within the data set.
        patient: visits of one patient are never split.
        site: the hospital, scanner or data set that it comes from.
        images: file by channel key, "FILE@3" for volume 3 of a 4-D file (`read_image` takes
            both); an optional channel may be absent.
        label: file of integer values on the grid of one of the images; None without reference.
    """

    id: str
    patient: str
    site: str
    images: dict[str, Path]
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """Cases and what is known of them.

    Attributes:
        channels: by key, in the data set's order.
        labels: value by name, without the background, which is 0.
        cases: those to train on.
        test: those that the data set itself keeps for testing.
        license, citation, commercial_use, url: "not stated" and False where nothing is said.
        skull_stripped: whether all images show the brain alone.
        masks: a sentence on the reference masks, where no human drew them; for the model's card.
        problems: sentences about files that are missing (only when read with `strict` False).
        left_out: folders of cases with images but without the mask.
        declared: whether the data set itself says its labels' values; a folder of cases does not.
    """

    name: str
    title: str
    channels: dict[str, Channel]
    labels: dict[str, int]
    cases: list[Case]
    test: list[Case] = field(default_factory=list)
    license: str = "not stated"
    citation: str = "not stated"
    commercial_use: bool = False
    url: str = ""
    skull_stripped: bool = False
    masks: str = ""
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    declared: bool = True

    @property
    def patients(self) -> list[str]:
        """Sorted, of the cases to train on."""
        return sorted({case.patient for case in self.cases})

    @property
    def sites(self) -> list[str]:
        """Sorted, of the cases to train on."""
        return sorted({case.site for case in self.cases})


class _ImageAndLabel(BaseModel):
    image: str
    label: str


class _DecathlonFile(BaseModel):
    """The Decathlon's dataset.json."""

    modality: dict[str, str]
    labels: dict[str, str]
    training: list[_ImageAndLabel]
    test: list[str] = []
    name: str = ""
    description: str = ""
    licence: str = "not stated"
    reference: str = "not stated"
    medseg: MedSegPart = MedSegPart()


def read_dataset(
    path: str | Path,
    label: str = "lesion",
    keys: Sequence[str] | None = None,
    strict: bool = True,
) -> Dataset:
    """Read what data set lies in a folder; no image is opened.

    Args:
        label: of a folder of cases: the mask's name, `<label>.nii.gz`.
        keys: of a folder of cases: its channels; every image that is no mask when None.
        strict: raise what is wrong with the files instead of keeping it in `problems`.

    Raises:
        MissingInputError: no data set there.
        DatasetError: a dataset.json that cannot be used; files that it promises are missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingInputError(f"There is no folder '{path}'.", "Give the data set's folder.")
    if not (path / DATASET_FILE).is_file():
        return _from_folders(path, label, keys)
    content = read_json(path / DATASET_FILE)
    if "channel_names" in content:
        dataset = _from_raw(path, checked(RawFile, content, path))
    elif "modality" in content:
        dataset = _from_decathlon(path, checked(_DecathlonFile, content, path))
    else:
        raise DatasetError(
            f"'{path / DATASET_FILE}' has neither 'channel_names' nor 'modality'.",
            "Write it as nnU-Net's raw data sets or the Medical Segmentation Decathlon have it.",
        )
    if not dataset.cases:
        raise MissingInputError(
            f"The data set '{path}' has no case.", "Put its images into imagesTr."
        )
    if strict and dataset.problems:
        raise DatasetError(
            f"'{path}': {dataset.problems[0]}",
            "'medseg dataset check' lists everything that is wrong with it.",
        )
    return dataset


def _from_folders(path: Path, label: str, keys: Sequence[str] | None) -> Dataset:
    """Every folder under `path` that holds the mask and at least one channel.

    Where two folders have one name, as `siteA/001` and `siteB/001`, the names are those of each
    site, and the folders above become part of the ids of cases and patients.
    """
    cases = []
    masks = sorted(path.rglob(f"{label}.nii.gz"))
    unique = len({mask.parent.name for mask in masks}) == len(masks)
    for mask in masks:
        folder = mask.parent
        above = () if unique else folder.relative_to(path).parts[:-1]
        files = _images_of(folder, label)
        chosen = keys if keys is not None else files
        images = {key: files[key] for key in chosen if key in files}
        if images:
            patient = "-".join([*above, folder.name.split("_")[0]])
            case = "_".join([*above, folder.name])
            cases.append(Case(case, patient, folder.parent.name, images, mask))
    if not cases:
        images_named = ", ".join(f"{key}.nii.gz" for key in keys or ["t1", "flair"])
        near = [file for file in sorted(path.rglob("*.nii*"))
                if file.name.lower().removesuffix(".gz") == f"{label}.nii".lower()]  # fmt: skip
        if near:
            raise MissingInputError(
                f"There is a '{near[0].name}' in '{near[0].parent}', but no '{label}.nii.gz'.",
                f"Save the masks as {label}.nii.gz.",
            )
        raise MissingInputError(
            f"There is no case with a '{label}.nii.gz' under '{path}'.",
            f"Each case is a folder with images, such as {images_named}, and {label}.nii.gz; "
            "--label names the masks when they are called otherwise.",
        )
    names = keys or sorted({key for case in cases for key in case.images})
    channels = {
        key: replace(_channel(key), required=all(key in case.images for case in cases))
        for key in names
    }
    labelled = {case.images[key].parent for case in cases for key in case.images}
    others = {file.parent for file in path.rglob("*.nii.gz")} - labelled
    left_out = sorted(folder.name for folder in others if {*names} & {*_images_of(folder, label)})
    license_, commercial_use, citation = combined_terms([case.site for case in cases])
    return Dataset(
        path.name, path.name, channels, {label: 1}, cases,
        license=license_, citation=citation, commercial_use=commercial_use,
        skull_stripped=all(c.site in SOURCES and SOURCES[c.site].skull_stripped for c in cases),
        left_out=tuple(left_out), declared=False,
    )  # fmt: skip


def _images_of(folder: Path, label: str) -> dict[str, Path]:
    """Files by channel key, without those that are masks by their name."""
    names = {file.name.removesuffix(".nii.gz"): file for file in sorted(folder.glob("*.nii.gz"))}
    return {_key(n): file for n, file in names.items() if n != label and not _is_mask(n)}


def _key(name: str) -> str:
    """A channel's key from its name, e.g. "t2_flair" from "T2-FLAIR"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _is_mask(name: str) -> bool:
    """Whether a file of a folder of cases is a mask by its name."""
    return contrast_of(name).kind == "mask" or bool(re.match(r"(prostate|zones|tumou?r)", name))


def _channel(name: str) -> Channel:
    """What a channel's name alone says: nnU-Net's "CT" is what asks for Hounsfield units."""
    if name.lower() == "ct":
        return Channel(name, "CT", "HU")
    return Channel(name, "PT" if name.lower() in ("pet", "pt") else "MR")


def _channels(names: dict[str, str], part: MedSegPart, folder: Path) -> dict[str, Channel]:
    """By key, in the order of the channels' numbers."""
    if sorted(names) != sorted(str(n) for n in range(len(names))):
        raise DatasetError(
            f"'{folder / DATASET_FILE}' numbers its channels {', '.join(sorted(names))}.",
            f"They have to be 0 to {len(names) - 1}.",
        )
    found: dict[str, Channel] = {}
    for _, name in sorted(names.items(), key=lambda item: int(item[0])):
        channel = _channel(name)
        key = _key(name)
        if name in part.channels:
            facts = part.channels[name]
            key, channel = facts.key, Channel(name, facts.modality, facts.units)
        if key in found or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", key):
            raise DatasetError(
                f"'{folder / DATASET_FILE}': the channel '{name}' gets the key '{key}', which is "
                f"{'there twice' if key in found else 'none'}.",
                "Name it under medseg.channels: a letter, then letters, digits and '_'.",
            )
        found[key] = replace(channel, required=key not in part.optional)
    unknown = {*part.channels} - {*names.values()} or {*part.optional} - {*found}
    if unknown:
        raise DatasetError(
            f"'{folder / DATASET_FILE}': medseg names the channel '{min(unknown)}', which is not "
            "there.",
            f"Channels: {', '.join(names.values())}; keys: {', '.join(found)}.",
        )
    return found


def _values(labels: dict[str, int | list[int]], folder: Path) -> dict[str, int]:
    """Without the background."""
    values: dict[str, int] = {}
    for name, value in labels.items():
        if isinstance(value, list) or name == "ignore":
            what = "'ignore' marks voxels to leave out" if name == "ignore" else "is a region"
            raise DatasetError(
                f"'{folder / DATASET_FILE}': the label '{name}' ({value}) {what}, "
                "which is not supported.",
                "Give every label one value of its own.",
            )
        values[name] = value
    names = {value: name for name, value in values.items()}
    if len(names) < len(values) or names.get(0, "background") != "background" or min(names) < 0:
        raise DatasetError(
            f"'{folder / DATASET_FILE}' has the labels {values}.",
            "Each needs a value of its own; 0 is the background.",
        )
    values.pop("background", None)
    if not values:
        raise DatasetError(f"'{folder / DATASET_FILE}' has no label.", "Name at least one.")
    return values


def _from_raw(folder: Path, file: RawFile) -> Dataset:
    if file.file_ending not in EXTENSIONS:
        raise DatasetError(
            f"'{folder / DATASET_FILE}' has the file ending '{file.file_ending}'.",
            f"Use one of {', '.join(EXTENSIONS)}.",
        )
    channels = _channels(file.channel_names, file.medseg, folder)
    if file.dataset is not None:
        listed = {
            name: (
                {key: folder / image for key, image in zip(channels, case.images, strict=False)},
                folder / case.label,
            )
            for name, case in file.dataset.items()
        }
    else:
        listed = _raw_files(folder, "Tr", list(channels), file.file_ending)
    test = _raw_files(folder, "Ts", list(channels), file.file_ending)
    problems = []
    if file.numTraining is not None and file.numTraining != len(listed):
        problems.append(
            f"numTraining is {file.numTraining}, but there are {len(listed)} training cases."
        )
    return _assembled(
        folder, file.name, file.description, channels, _values(file.labels, folder),
        listed, test, file.medseg, problems,
    )  # fmt: skip


_Files = dict[str, tuple[dict[str, Path], Path]]


def _raw_files(folder: Path, part: str, keys: list[str], ending: str) -> _Files:
    """Case name to (images by key, label) of imagesTr and labelsTr, or of imagesTs and labelsTs."""
    pattern = re.compile(rf"(?P<case>[^.].*)_(?P<channel>\d{{4}}){re.escape(ending)}")
    found: _Files = {}
    images = folder / f"images{part}"
    for file in sorted(images.iterdir()) if images.is_dir() else []:
        match = pattern.fullmatch(file.name)
        if match is not None and int(match["channel"]) < len(keys):
            label = folder / f"labels{part}" / f"{match['case']}{ending}"
            files, _ = found.setdefault(match["case"], ({}, label))
            files[keys[int(match["channel"])]] = file
    return found


def _from_decathlon(folder: Path, file: _DecathlonFile) -> Dataset:
    channels = _channels(file.modality, file.medseg, folder)

    def images(name: str) -> dict[str, Path]:
        if len(channels) == 1:
            return dict.fromkeys(channels, folder / name)
        return {key: folder / f"{name}@{n}" for n, key in enumerate(channels)}

    try:
        labels = {name: int(value) for value, name in file.labels.items()}
    except ValueError as error:
        raise DatasetError(
            f"'{folder / DATASET_FILE}' has the labels {file.labels}.",
            'They are to be written as {"0": "background", "1": ...}.',
        ) from error
    listed = {_stem(c.image): (images(c.image), folder / c.label) for c in file.training}
    test = {_stem(name): (images(name), folder / "labelsTs" / Path(name).name)
            for name in file.test}  # fmt: skip
    part = file.medseg
    if part.license == "not stated":
        part = part.model_copy(update={"license": file.licence})
    if part.citation == "not stated":
        part = part.model_copy(update={"citation": file.reference})
    return _assembled(
        folder, file.name, file.description, channels, _values({**labels}, folder),
        listed, test, part, [],
    )  # fmt: skip


def _stem(name: str) -> str:
    plain = Path(name).name
    return next((plain.removesuffix(e) for e in EXTENSIONS if plain.endswith(e)), plain)


def _assembled(
    folder: Path,
    name: str,
    description: str,
    channels: dict[str, Channel],
    labels: dict[str, int],
    training: _Files,
    test: _Files,
    part: MedSegPart,
    problems: list[str],
) -> Dataset:
    name = name or folder.name
    problems = [*problems, *_missing(channels, training, True), *_missing(channels, test, False)]
    for what, named in (("patients", part.patients), ("sites", part.sites)):
        for case in sorted({*named} - {*training} - {*test}):
            problems.append(f"medseg.{what} names the case '{case}', which is not there.")

    def cases(files: _Files) -> list[Case]:
        return [
            Case(
                id=case,
                patient=part.patients.get(case, case),
                site=part.sites.get(case, name),
                images={key: path for key, path in images.items() if _on_disk(path).is_file()},
                label=label if label.is_file() else None,
            )
            for case, (images, label) in files.items()
        ]

    return Dataset(
        name=name, title=part.title or description or name, channels=channels, labels=labels,
        cases=cases(training), test=cases(test), license=part.license, citation=part.citation,
        commercial_use=part.commercial_use, url=part.url, skull_stripped=part.skull_stripped,
        masks=part.masks, problems=tuple(problems),
    )  # fmt: skip


def _missing(channels: dict[str, Channel], files: _Files, labelled: bool) -> list[str]:
    """A sentence for each file that a case lacks."""
    found = []
    for case, (images, label) in files.items():
        for key, channel in channels.items():
            if channel.required and not (key in images and _on_disk(images[key]).is_file()):
                found.append(f"The case '{case}' has no file of the channel '{key}'.")
        if labelled and not label.is_file():
            found.append(f"The case '{case}' has no label '{label.name}'.")
    return found


def _on_disk(path: Path) -> Path:
    """Without the number of the volume."""
    return Path(file_and_volume(path)[0])
