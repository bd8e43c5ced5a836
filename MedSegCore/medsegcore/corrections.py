"""Cases that a reader corrected, saved one by one into a data set to learn from. No torch here.

The data set has nnU-Net's raw form, but for this: each image keeps its own grid. Nothing in it
comes from a name of a file, volume or patient; what tells runs and subjects apart is random.
"""

import contextlib
import os
import re
import tempfile
import time
import uuid
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsegcore.errors import DatasetError, OutputError
from medsegcore.files import write_file
from medsegcore.imaging import Image, writing_nifti
from medsegcore.models import ModelDescription
from medsegcore.rawdata import (
    BACKGROUND,
    DATASET_FILE,
    ENDING,
    IMAGES,
    LABELS,
    CaseOrigin,
    ChannelFacts,
    RawFile,
    checked,
    image_name,
    json_text,
    label_name,
    raw_content,
    read_json,
)

CASE = re.compile(r"case_(\d+)(?:_\d{4})?(?:\.nii\.gz)?")
IMAGE = re.compile(rf"([^.].*)_\d{{4}}{re.escape(ENDING)}")
LOCK = ".saving.lock"
# Writing dataset.json and renaming takes far less than the first, in which what is left of a
# process that died is nobody's any more; the second is how long another one is waited for.
LOCK_SECONDS, WAIT_SECONDS, TRY_SECONDS = 60.0, 10.0, 0.01
COMPARED_BYTES = 1 << 20
MASKS = "The masks are answers of {models} that a reader could correct in 3D Slicer; "
MASKS += "{changed} of {count} were changed."
MASKS_TEXT = re.compile(MASKS.replace(".", r"\.").format(models=".*", changed=r"\d+", count=r"\d+"))
CHOOSE = "Choose an empty folder, or one with saved cases of this model."


@dataclass(frozen=True)
class CorrectedCase:
    """What a run looked at, and its answer as it was corrected.

    Attributes:
        images: by input key, each on its own grid.
        label: integer values of the model's labels on the grid of one of the images.
    """

    images: Mapping[str, Image]
    label: Image
    origin: CaseOrigin


@dataclass(frozen=True)
class SavedCase:
    """Where a case is.

    Attributes:
        id: of the case in the data set.
        replaced: whether it took the place of what was saved of the same run before.
        subject: as `CaseOrigin`; that of a case with the same image, if there is one.
    """

    id: str
    replaced: bool
    subject: str


def saving_case(
    case: CorrectedCase, description: ModelDescription, folder: str | Path
) -> Generator[None, None, SavedCase]:
    """Add a case to a data set, or make one of it; the same run takes the place of its case.

    Iterate to the end; each step is short. Given up, or failed, it leaves the folder as it was.

    Args:
        description: of the model that answered.
        folder: of the data set; may be missing, its parent may not.

    Raises:
        DatasetError: the folder holds something else; nothing is written.
        GeometryError, OutputError: it cannot be written.
    """
    folder = Path(folder).expanduser()
    if not folder.parent.is_dir():
        raise OutputError(f"There is no folder '{folder.parent}'.", "Create it first.")
    new = not folder.exists()
    try:
        try:
            _content(folder, description)
        except DatasetError:
            # Another process may have moved its files there and not yet written what they are;
            # under the lock it is looked at again in any case.
            if not (folder / LOCK).exists():
                _content(folder, description)
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            made = Path(temporary)
            for n, spec in enumerate(description.inputs):
                if spec.key in case.images:
                    yield from writing_nifti(case.images[spec.key], made / image_name(IMAGES, n))
            yield from writing_nifti(case.label, made / label_name(LABELS))
            case = replace(case, origin=(yield from _with_kin(made, case, description, folder)))
            yield from _lock(folder, made)
            try:
                return _take_in(made, case, description, folder)
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{folder}' cannot be written: {error.strerror}.",
            "Check the free space and the permissions.",
        ) from error
    finally:
        if new:
            # It stays as soon as there is something in it.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _content(folder: Path, description: ModelDescription) -> dict[str, Any] | None:
    """What the folder's dataset.json says; None where there is nothing yet.

    Raises:
        DatasetError: there is something else than saved cases of such a model.
    """
    if not folder.exists():
        return None
    file = folder / DATASET_FILE
    if not file.is_file():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            raise DatasetError(
                f"The folder '{folder.name}' holds other files, such as '{others[0]}', and no "
                "data set.", CHOOSE,
            )  # fmt: skip
        return None
    content = read_json(file)
    raw = checked(RawFile, content, folder) if "channel_names" in content else None
    # The terms of somebody else's data set are not those of what is added to it here.
    if raw is None or not raw.medseg.cases or raw.dataset is not None or raw.file_ending != ENDING:
        raise DatasetError(
            f"The data set in '{folder.name}' was not made by saving corrected cases.", CHOOSE
        )
    named = [
        raw.channel_names[number] for number in sorted(raw.channel_names, key=lambda n: (len(n), n))
    ]
    facts = [raw.medseg.channels.get(name) for name in named]
    there = [channel.key for channel in facts if channel is not None]
    wanted = [spec.key for spec in description.inputs]
    labels = {name: value for name, value in raw.labels.items() if name != BACKGROUND}
    values = {label.name: label.value for label in description.labels}
    same_images = raw.medseg.skull_stripped == description.skull_stripped and None not in facts
    if (there, labels) != (wanted, values) or not same_images:
        raise DatasetError(
            f"The data set in '{folder.name}' is of another model: it has the images "
            f"{', '.join(there)} and the labels {_listed(labels)}; this one has "
            f"{', '.join(wanted)} and {_listed(values)}.", CHOOSE,
        )  # fmt: skip
    return content


def _listed(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} {name}" for name, value in labels.items())


def _with_kin(
    made: Path, case: CorrectedCase, description: ModelDescription, folder: Path
) -> Generator[None, None, CaseOrigin]:
    """The case's origin, with the subject of another case that has one of its images.

    The same images, loaded anew, are still of the same patient.
    """
    origin, file = case.origin, folder / DATASET_FILE
    cases = read_json(file)["medseg"]["cases"] if file.is_file() else {}
    subjects = {n: other["subject"] for n, other in cases.items() if other["run"] != origin.run}
    if origin.subject in subjects.values():
        return origin
    own = [
        (made / image_name(IMAGES, n), case.images[spec.key])
        for n, spec in enumerate(description.inputs) if spec.key in case.images
    ]  # fmt: skip
    for path in sorted((folder / IMAGES).glob(f"*{ENDING}")):
        match = IMAGE.fullmatch(path.name)
        if match is None or match[1] not in subjects:
            continue
        for written, image in own:
            # Images of nothing are equal, whoever's they are.
            if (yield from _same_bytes(written, path)) and image.array.min() != image.array.max():
                return origin.model_copy(update={"subject": subjects[match[1]]})
    return origin


def _same_bytes(one: Path, other: Path) -> Generator[None, None, bool]:
    try:
        if one.stat().st_size != other.stat().st_size:
            return False
    except FileNotFoundError:
        # Another process puts a new one there.
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while block := left.read(COMPARED_BYTES):
            if block != right.read(COMPARED_BYTES):
                return False
            yield
    return True


def _lock(folder: Path, made: Path) -> Iterator[None]:
    """Wait until no other process numbers and moves its files in the folder, and keep them out.

    Raises:
        OutputError: another one does not come to its end.
    """
    lock, until = folder / LOCK, time.monotonic() + WAIT_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return
        except FileExistsError:
            pass
        # By the clock of the disk, which may be another computer's.
        clock = made / "clock"
        clock.write_bytes(b"")
        with contextlib.suppress(FileNotFoundError):
            if clock.stat().st_mtime - lock.stat().st_mtime > LOCK_SECONDS:
                lock.unlink()
        if time.monotonic() > until:
            raise OutputError(
                f"Another case is being saved into '{folder.name}' all the time.",
                "Try again in a minute.",
            )
        time.sleep(TRY_SECONDS)
        yield


def _take_in(
    made: Path, case: CorrectedCase, description: ModelDescription, folder: Path
) -> SavedCase:
    """The files that were made become a case, all at once."""
    # Read again: meanwhile another Slicer may have saved a case there.
    content = _content(folder, description) or _fresh(description)
    cases = content["medseg"]["cases"]
    same = [name for name, origin in cases.items() if origin["run"] == case.origin.run]
    name = same[0] if same else _free_id(folder, content)
    keys = [spec.key for spec in description.inputs]
    new = [
        (made / image_name(IMAGES, n), folder / IMAGES / image_name(name, n))
        for n, key in enumerate(keys) if key in case.images
    ]  # fmt: skip
    new.append((made / label_name(LABELS), folder / LABELS / label_name(name)))
    old = [folder / IMAGES / image_name(name, n) for n in range(len(keys))]
    old.append(folder / LABELS / label_name(name))
    aside = [(path, made / f"old-{n}") for n, path in enumerate(old) if path.exists()]
    there = {*_cases(folder), name}
    _enter(content, name, case, [key for key in keys if key not in case.images], there)
    content["numTraining"] = len(there)
    _move([*aside, *new], folder, json_text(content))
    return SavedCase(name, bool(aside), case.origin.subject)


def _fresh(description: ModelDescription) -> dict[str, Any]:
    """Of a data set without a case. Its name, which is also its site, is random: a patient is
    told apart by site and number, and those of two clinics are never the same."""
    titles = [spec.title for spec in description.inputs]
    channels = {
        spec.title if titles.count(spec.title) == 1 else spec.key:
            ChannelFacts(key=spec.key, modality=spec.modality, units=spec.units)
        for spec in description.inputs
    }  # fmt: skip
    part: dict[str, Any] = {
        "patients": {}, "sites": {}, "license": "not stated", "citation": "not stated",
        "commercial_use": False, "skull_stripped": description.skull_stripped, "masks": "",
        "optional": [spec.key for spec in description.inputs if not spec.required], "cases": {},
    }  # fmt: skip
    labels = {label.name: label.value for label in description.labels}
    name, title = f"corrected-{uuid.uuid4().hex[:8]}", f"Corrected cases: {description.title}"
    return raw_content(name, title, channels, labels, 0, part)


def _enter(
    content: dict[str, Any],
    name: str,
    case: CorrectedCase,
    missing: Iterable[str],
    there: Collection[str],
) -> None:
    """A case into the content; what was written there by hand stays.

    Args:
        missing: keys of the images that it lacks.
        there: the cases that have files, this one included.
    """
    part = content["medseg"]
    cases = part["cases"]
    patients, sites = part.setdefault("patients", {}), part.setdefault("sites", {})
    subject = case.origin.subject
    kin = [other for other, origin in cases.items() if origin["subject"] == subject]
    patients.setdefault(
        name, patients.get(kin[0], kin[0]) if kin else _patient(name, content.get("name") or "")
    )
    sites.setdefault(name, content.get("name") or name)
    cases[name] = case.origin.model_dump()
    if not part.get("masks") or MASKS_TEXT.fullmatch(part["masks"]):
        part["masks"] = _masks(origin for other, origin in cases.items() if other in there)
    part["optional"] = list(dict.fromkeys([*part.get("optional", []), *missing]))


def _patient(case: str, data: str) -> str:
    """Of nobody known: unlike those of other folders, whose cases have the same names."""
    end = re.sub(r"\W", "", data)[-8:]
    return f"{case}-{end}" if end else case


def _masks(cases: Iterable[Mapping[str, Any]]) -> str:
    """How the masks came about, for the card of a model that learns from them."""
    origins = list(cases)
    models = dict.fromkeys(f"{m['id']} {m['version']}" for o in origins for m in o["models"])
    changed = sum(origin["changed"] is True for origin in origins)
    return MASKS.format(models=", ".join(models), changed=changed, count=len(origins))


def _cases(folder: Path) -> set[str]:
    """Those that have an image."""
    images = folder / IMAGES
    matches = [IMAGE.fullmatch(path.name) for path in images.iterdir()] if images.is_dir() else []
    return {match[1] for match in matches if match is not None}


def _free_id(folder: Path, content: Mapping[str, Any]) -> str:
    """The number after the highest: what was deleted by hand gets no other meaning."""
    part = content["medseg"]
    names = [*part["cases"], *part.get("patients", {}), *part.get("sites", {})]
    for sub in (IMAGES, LABELS, "imagesTs", "labelsTs"):
        if (folder / sub).is_dir():
            names += [path.name for path in (folder / sub).iterdir()]
    numbers = [int(match[1]) for match in map(CASE.fullmatch, names) if match is not None]
    return f"case_{max(numbers, default=0) + 1:03}"


def _move(files: Iterable[tuple[Path, Path]], folder: Path, content: str) -> None:
    """Rename files, then write dataset.json; what fails is taken back."""
    parts = [folder / IMAGES, folder / LABELS]
    made = [part for part in parts if not part.exists()]
    done: list[tuple[Path, Path]] = []
    try:
        for part in made:
            part.mkdir()
        for source, target in files:
            os.replace(source, target)
            done.append((source, target))
        write_file(folder / DATASET_FILE, content)
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        for part in made:
            with contextlib.suppress(OSError):
                part.rmdir()
        raise
