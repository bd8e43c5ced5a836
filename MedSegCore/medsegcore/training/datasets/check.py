"""What is wrong with a data set, before a training finds out: every image is opened once."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medsegcore.errors import MedSegError
from medsegcore.imaging import Grid, Image, fov_overlap, measure, read_image, read_labels
from medsegcore.models.contrasts import contrast_of
from medsegcore.training.datasets.dataset import Case, Dataset
from medsegcore.training.datasets.picture import draw_case
from medsegcore.training.datasets.visits import visits_as_patients

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
# Centres that are this near to each other are the same: headers are rounded.
SAME_GRID_MM = 0.1
TILT_DEGREES = 0.5
# Air has -1000 HU and every CT shows some, unless it was shifted or windowed.
HU_OF_AIR = -500.0


@dataclass(frozen=True)
class Finding:
    """One sentence about one case, or about the whole data set when `case` is empty."""

    severity: Severity
    case: str
    text: str


@dataclass(frozen=True)
class Intensities:
    """Of all finite voxels of an image.

    Attributes:
        percentiles: the 0.5th, 50th and 99.5th.
        not_finite: voxels that are NaN or infinite; always 0 for NIfTI, where ITK reads them as 0.
    """

    mean: float
    sd: float
    percentiles: tuple[float, float, float]
    not_finite: int
    constant: bool


@dataclass(frozen=True)
class CaseSummary:
    """What a case holds.

    Attributes:
        part: "training" or "test".
        shapes, spacings: i, j, k; voxels and mm, by channel.
        tilt_degrees: largest angle between an axis of the first channel and the patient's.
        intensities: by channel.
        volumes_ml: by label.
        picture: file name, "" when none was drawn.
    """

    id: str
    patient: str
    site: str
    part: str
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    spacings: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    tilt_degrees: float = 0.0
    intensities: dict[str, Intensities] = field(default_factory=dict)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    picture: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, the worst first, and what each case holds."""

    dataset: Dataset
    findings: list[Finding]
    cases: list[CaseSummary]

    def count(self, severity: Severity) -> int:
        """How many findings of that severity there are."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def size(self) -> str:
        """E.g. "3 cases of 2 patients from 1 site"."""
        patients = len({case.patient for case in self.cases})
        return (
            f"{counted(len(self.cases), 'case')} of {counted(patients, 'patient')} from "
            f"{counted(len(self.dataset.sites), 'site')}"
        )

    @property
    def counts(self) -> str:
        """E.g. "0 errors, 1 warning, 2 notes"."""
        return ", ".join(counted(self.count(severity), severity) for severity in SEVERITIES)


def counted(number: int, what: str) -> str:
    """E.g. "1 case", "3 cases"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_dataset(
    dataset: Dataset,
    folds: Sequence[Sequence[str]] = (),
    pictures: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Open every image and label, compare, and say what was found.

    Args:
        dataset: read with `strict` False, so that missing files become findings.
        folds: patients of each fold.
        pictures: an existing folder for one PNG per case.
        progress: called with (case, done, total).
    """
    checks = _Checks(dataset, folds)
    for problem in dataset.problems:
        checks.say("error", "", problem)
    parts = [(case, "training") for case in dataset.cases]
    parts += [(case, "test") for case in dataset.test]
    for done, (case, part) in enumerate(parts):
        if progress is not None:
            progress(case.id, done, len(parts))
        checks.look_at(case, part, pictures)
    checks.compare()
    if progress is not None:
        progress("", len(parts), len(parts))
    order = sorted(checks.findings, key=lambda f: (SEVERITIES.index(f.severity), f.case))
    return Report(dataset, order, checks.cases)


def tilt_degrees(grid: Grid) -> float:
    """Largest angle between an axis and the patient's axis that is nearest to it."""
    cosines = [abs(grid.direction[row, n]) for n, (row, _) in enumerate(grid.axes())]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0.0, 1.0))))


def intensities(image: Image) -> Intensities:
    """Summary of an image's values."""
    finite = image.array[np.isfinite(image.array)]
    missing = int(image.array.size - finite.size)
    if finite.size == 0:
        return Intensities(0.0, 0.0, (0.0, 0.0, 0.0), missing, True)
    low, middle, high = (float(p) for p in np.percentile(finite, [0.5, 50, 99.5]))
    return Intensities(
        mean=float(finite.mean(dtype=np.float64)),
        sd=float(finite.std(dtype=np.float64)),
        percentiles=(low, middle, high),
        not_finite=missing,
        constant=bool(finite.min() == finite.max()),
    )


def _some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


class _Checks:
    """Findings and summaries as they come up, and what is needed to compare cases."""

    def __init__(self, dataset: Dataset, folds: Sequence[Sequence[str]]):
        self.dataset = dataset
        self.folds = folds
        self.findings: list[Finding] = []
        self.cases: list[CaseSummary] = []
        # Where each image's content was seen: (case, part, channel).
        self.contents: dict[str, list[tuple[Case, str, str]]] = {}
        self.resampled: list[str] = []

    def say(self, severity: Severity, case: str, text: str) -> None:
        self.findings.append(Finding(severity, case, text))

    def look_at(self, case: Case, part: str, pictures: Path | None) -> None:
        """One case by itself."""
        images: dict[str, Image] = {}
        for key, path in case.images.items():
            try:
                images[key] = read_image(path)
                images[key].grid.check(f"The channel '{key}'")
            except MedSegError as error:
                images.pop(key, None)
                self.say("error", case.id, error.message)
        label = self._label(case, images)
        summary = CaseSummary(case.id, case.patient, case.site, part)
        for key, image in images.items():
            summary.shapes[key] = image.shape[::-1]
            summary.spacings[key] = tuple(round(s, 4) for s in image.spacing)  # type: ignore[assignment]
            summary.intensities[key] = self._intensities(case, key, image)
            digest = hashlib.sha256(np.ascontiguousarray(image.array).data).hexdigest()
            self.contents.setdefault(f"{image.shape} {digest}", []).append((case, part, key))
        if label is not None:
            summary.volumes_ml.update(self._volumes(case, label))
        if images:
            first = next(iter(images.values()))
            summary = replace(summary, tilt_degrees=round(tilt_degrees(first.grid), 2))
            self._grids(case, images, label)
        if pictures is not None and images:
            draw_case(pictures / f"{case.id}.png", images, label, self.dataset.labels)
            summary = replace(summary, picture=f"{case.id}.png")
        self.cases.append(summary)

    def _label(self, case: Case, images: dict[str, Image]) -> Image | None:
        if case.label is None:
            return None
        try:
            label = read_labels(case.label)
            label.grid.check("The label")
        except MedSegError as error:
            self.say("error", case.id, error.message)
            return None
        values = {float(v) for v in np.unique(label.array)}
        self._values(case, values)
        if not self.dataset.declared:
            label = label.with_array((label.array > 0).astype(np.uint8))
        if max(values) <= 0:
            self.say("warning", case.id, "The label is empty.")
        if images and not any(
            label.grid.same_as(image.grid, SAME_GRID_MM) for image in images.values()
        ):
            shared = max(fov_overlap(label.grid, image.grid) for image in images.values())
            self.say(
                "warning" if shared > 0.5 else "error",
                case.id,
                "The label lies on another grid than every channel; it shares "
                f"{shared:.0%} of the field of view.",
            )
        return label

    def _values(self, case: Case, values: set[float]) -> None:
        others = values - {0, *self.dataset.labels.values()}
        if not others:
            return
        listed = ", ".join(f"{v:g}" for v in sorted(others)[:8])
        if self.dataset.declared:
            self.say("error", case.id, f"The label has values that are not declared: {listed}.")
            return
        (name,) = self.dataset.labels
        self.say(
            "note" if len(values - {0}) == 1 else "warning",
            case.id,
            f"The label has the values {listed}: all above 0 is '{name}'. To tell several labels "
            "apart, name their values in a dataset.json.",
        )

    def _intensities(self, case: Case, key: str, image: Image) -> Intensities:
        found = intensities(image)
        if found.not_finite:
            self.say(
                "warning", case.id, f"'{key}' has {found.not_finite} voxels that are not finite."
            )
        if found.constant:
            self.say("error", case.id, f"'{key}' is constant.")
            return found
        units = self.dataset.channels[key].units
        if units == "HU" and found.percentiles[0] > HU_OF_AIR:
            self.say(
                "warning",
                case.id,
                f"'{key}' is to be in HU, but its darkest voxels are at "
                f"{found.percentiles[0]:g}: it was shifted or windowed.",
            )
        if units == "1e-6 mm2/s" and measure(image).adc_unit != units:
            self.say(
                "warning",
                case.id,
                f"'{key}' is to be in {units}, but its median of {found.percentiles[1]:g} is not "
                "that of an ADC map.",
            )
        return found

    def _volumes(self, case: Case, label: Image) -> dict[str, float]:
        voxel = label.grid.voxel_volume_ml
        return {
            name: round(float((label.array == value).sum()) * voxel, 4)
            for name, value in self.dataset.labels.items()
        }

    def _grids(self, case: Case, images: dict[str, Image], label: Image | None) -> None:
        (first, reference), *others = images.items()
        for key, image in others:
            if reference.grid.same_as(image.grid, SAME_GRID_MM):
                continue
            self.resampled.append(case.id)
            shared = fov_overlap(reference.grid, image.grid)
            if shared < 0.5:
                self.say(
                    "error",
                    case.id,
                    f"'{key}' has only {shared:.0%} of its field of view in common with '{first}'.",
                )

    def compare(self) -> None:
        """What only shows with all cases at hand."""
        self._compare_spacings()
        self._compare_presence()
        self._compare_contents()
        self._compare_parts()

    def _compare_spacings(self) -> None:
        for key in self.dataset.channels:
            here = [case for case in self.cases if key in case.spacings]
            if not here:
                continue
            median = np.median([case.spacings[key] for case in here], axis=0)
            for case in here:
                ratio = np.array(case.spacings[key]) / median
                if (ratio > 2).any() or (ratio < 0.5).any():
                    size = " x ".join(f"{s:g}" for s in case.spacings[key])
                    usual = " x ".join(f"{s:g}" for s in median)
                    self.say(
                        "warning",
                        case.id,
                        f"'{key}' has voxels of {size} mm; the median is {usual} mm.",
                    )
        tilted = [case.tilt_degrees for case in self.cases if case.tilt_degrees > TILT_DEGREES]
        if tilted:
            self.say(
                "note",
                "",
                f"{len(tilted)} of {len(self.cases)} cases are tilted, by up to "
                f"{max(tilted):.1f} degrees.",
            )
        if self.resampled:
            self.say(
                "note",
                "",
                f"In {len(set(self.resampled))} of {len(self.cases)} cases the channels lie on "
                "different grids: they will be resampled. Cases: "
                f"{_some(list(dict.fromkeys(self.resampled)))}.",
            )

    def _compare_presence(self) -> None:
        for key, channel in self.dataset.channels.items():
            missing = [case.id for case in self.dataset.cases if key not in case.images]
            if missing and not channel.required:
                self.say(
                    "note",
                    "",
                    f"The optional channel '{key}' is missing in {len(missing)} of "
                    f"{len(self.dataset.cases)} cases: {_some(missing)}.",
                )
        self._compare_names()
        if self.dataset.left_out:
            self.say(
                "warning",
                "",
                f"{counted(len(self.dataset.left_out), 'folder')} with images but without the "
                f"label left out: {_some(self.dataset.left_out)}. There, too, the mask has to be "
                f"called '{next(iter(self.dataset.labels))}.nii.gz'.",
            )
        if visits := visits_as_patients(self.dataset):
            self.say("warning", "", visits)
        if len(self.dataset.patients) == 1:
            hint = "" if self.dataset.declared else (
                " The patient is what stands before the first '_' of a folder's name."
            )  # fmt: skip
            self.say(
                "warning",
                "",
                f"All cases are of one patient, '{self.dataset.patients[0]}': none is left to "
                f"validate or test on.{hint}",
            )
        for name in self.dataset.labels:
            if not any(case.volumes_ml.get(name) for case in self.cases):
                self.say("warning", "", f"The label '{name}' is in no case.")

    def _compare_names(self) -> None:
        """A channel that is there only where one of nearly the same name is not."""
        names = {
            key: {case.id for case in self.dataset.cases if key in case.images}
            for key in self.dataset.channels
        }
        for key, cases in names.items():
            others = [x for x in names if len(names[x]) > len(cases) and not names[x] & cases]
            for usual in difflib.get_close_matches(key, others, n=1):
                # T1 and T2 are written alike, too, and are what they say.
                if contrast_of(key).kind not in ("", contrast_of(usual).kind):
                    continue
                self.say(
                    "warning",
                    "",
                    f"'{key}' of {_some(sorted(cases))} may be a misspelt '{usual}': as it stands "
                    "it is a channel of its own.",
                )

    def _compare_contents(self) -> None:
        for places in self.contents.values():
            for n, (case, part, key) in enumerate(places[1:], 1):
                first, first_part, first_key = places[0]
                if case.id == first.id and part == first_part:
                    self.say("warning", case.id, f"'{key}' is the same image as '{first_key}'.")
                    continue
                if any(seen.id == case.id and at == part for seen, at, _ in places[:n]):
                    continue
                where = f"'{key}' is the same image as '{first_key}' of '{first.id}'"
                if case.patient == first.patient and part == first_part:
                    self.say("warning", case.id, f"{where}.")
                else:
                    self.say(
                        "error",
                        case.id,
                        f"{where}, which is said to be patient '{first.patient}' ({first_part}); "
                        f"this one is '{case.patient}' ({part}).",
                    )

    def _compare_parts(self) -> None:
        shared = {case.patient for case in self.dataset.test} & set(self.dataset.patients)
        for patient in sorted(shared):
            self.say("error", "", f"The patient '{patient}' is in the training and the test part.")
        fold_of: dict[str, int] = {}
        for number, fold in enumerate(self.folds):
            for patient in fold:
                if fold_of.setdefault(patient, number) != number:
                    self.say(
                        "error",
                        "",
                        f"The patient '{patient}' is in the folds {fold_of[patient]} and {number}.",
                    )
        for places in self.contents.values():
            at = {
                fold_of[case.patient]: case.id
                for case, part, _ in places
                if part == "training" and case.patient in fold_of
            }
            if len(at) > 1:
                text = " and ".join(f"'{case}' in fold {fold}" for fold, case in sorted(at.items()))
                self.say("error", "", f"The same image is in several folds: {text}.")
        if self.folds:
            left = sorted(set(self.dataset.patients) - set(fold_of))
            if left:
                self.say("warning", "", f"The patient '{left[0]}' is in no fold.")
