"""What a run answers, how it is kept on disk, and how thresholds move it. No torch here."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medsegcore.errors import OutputError, SettingError, UnreadableImageError
from medsegcore.files import write_file
from medsegcore.imaging import Grid, Image, read_image, resample, to_sitk, write_image
from medsegcore.inference.attention import (
    SHARE,
    Attention,
    CorrelationAttention,
    SliceAttention,
    SpatialAttention,
)
from medsegcore.inference.lesions import Lesion, find_lesions, label_voxels
from medsegcore.models.schema import Label

RESULT_FILE = "result.json"
LABELMAP_FILE = "labelmap.nii.gz"
SEGMENTATION_FILE = "segmentation.seg.nrrd"
LESIONS_FILE = "lesions.csv"


@dataclass(frozen=True)
class Result:
    """The answer for one case, on the reference image's own grid.

    Attributes:
        grid: of every array here.
        labels: what the labelmap's values mean.
        probabilities: float32 [k, j, i] by label name, 0..1.
        labelmap: uint8 [k, j, i], 0 is background.
        attention: maps of every kind that the network has; [] when not asked for.
        lesions: connected components, by falling volume.
        settings: thresholds by label name, min_lesion_ml, mirror, device, precision.
        provenance: model id, version and sha256, the inputs' sizes, software, time (JSON).
        timings: seconds by stage.
    """

    grid: Grid
    labels: list[Label]
    probabilities: dict[str, np.ndarray]
    labelmap: np.ndarray
    attention: list[Attention]
    lesions: list[Lesion]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    timings: dict[str, float] = field(default_factory=dict)

    def relabel(
        self,
        thresholds: Mapping[str, float],
        min_lesion_ml: float = 0.0,
        inputs: Mapping[str, Image] | None = None,
    ) -> Result:
        """The same probabilities cut at other thresholds; nothing is computed anew.

        Args:
            thresholds: by label name; labels that are not named keep theirs.
            min_lesion_ml: smaller components are dropped.
            inputs: the images whose means the lesions are to have.

        Raises:
            SettingError: a threshold outside of 0..1 or of an unknown label.
        """
        cut = check_thresholds(self.labels, {**self.settings["thresholds"], **thresholds})
        if min_lesion_ml < 0:
            raise SettingError(
                f"The smallest lesion volume is {min_lesion_ml} ml.", "Give 0 ml or more."
            )
        arrays = {
            key: resample(image, self.grid, outside=np.nan).array
            for key, image in (inputs or {}).items()
        }
        labelmap, lesions = find_lesions(
            label_voxels(self.labels, self.probabilities, cut),
            self.grid, self.labels, self.probabilities, arrays, min_lesion_ml,
        )  # fmt: skip
        settings = {**self.settings, "thresholds": cut, "min_lesion_ml": min_lesion_ml}
        return replace(self, labelmap=labelmap, lesions=lesions, settings=settings)

    def image(self, array: np.ndarray) -> Image:
        """An array of this result with its place in the patient."""
        return Image(array, self.grid.affine)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write everything into `folder`; result.json comes last and tells that all is there.

        Files: labelmap.nii.gz, segmentation.seg.nrrd (opens as a segmentation in Slicer),
        probability_<value>.nii.gz, attention_<key>.nii.gz, .csv or .npz, lesions.csv, result.json.

        Raises:
            OutputError: a result is there already (and `overwrite` is False), or no space.
        """
        folder = Path(folder)
        if (folder / RESULT_FILE).exists() and not overwrite:
            raise OutputError(
                f"'{folder}' holds a result already.", "Choose another folder or overwrite it."
            )
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # All in a folder of its own first: a full disk leaves what was there before.
            with tempfile.TemporaryDirectory(prefix=".result-", dir=folder) as temporary:
                self._write_into(Path(temporary))
                (folder / RESULT_FILE).unlink(missing_ok=True)
                files = sorted(Path(temporary).iterdir(), key=lambda f: f.name == RESULT_FILE)
                for file in files:
                    os.replace(file, folder / file.name)
        except OSError as error:
            raise OutputError(
                f"The folder '{folder}' cannot be written: {error.strerror}.",
                "Check the free space and the permissions.",
            ) from error
        finally:
            if new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return folder

    def _write_into(self, folder: Path) -> None:
        write_image(self.image(self.labelmap), folder / LABELMAP_FILE)
        self._save_segmentation(folder / SEGMENTATION_FILE)
        for label in self.labels:
            write_image(
                self.image(self.probabilities[label.name]),
                folder / f"probability_{label.value}.nii.gz",
            )
        for attention in self.attention:
            self._save_attention(attention, folder)
        write_file(folder / LESIONS_FILE, lesion_table(self.lesions))
        write_file(folder / RESULT_FILE, json.dumps(self.index(), indent=2) + "\n")

    def _save_segmentation(self, path: Path) -> None:
        image = to_sitk(self.image(self.labelmap))
        for n, label in enumerate(self.labels):
            for field_name, value in _segment_tags(label).items():
                image.SetMetaData(f"Segment{n}_{field_name}", value)
        image.SetMetaData("Segmentation_MasterRepresentation", "Binary labelmap")
        import SimpleITK as sitk

        try:
            sitk.WriteImage(image, str(path), useCompression=True)
        except RuntimeError as error:
            raise OutputError(
                f"'{path.name}' cannot be written.", "Check the free space and the permissions."
            ) from error

    def _save_attention(self, attention: Attention, folder: Path) -> None:
        if isinstance(attention, SpatialAttention):
            write_image(self.image(attention.values), folder / f"attention_{attention.key}.nii.gz")
            return
        if isinstance(attention, CorrelationAttention):
            np.savez_compressed(folder / f"attention_{attention.key}.npz", maps=attention.maps)
            return
        text = io.StringIO()
        np.savetxt(text, attention.matrix, delimiter=",", fmt="%.9g")
        write_file(folder / f"attention_{attention.key}.csv", text.getvalue())

    def index(self) -> dict[str, Any]:
        """All but the arrays, as JSON."""
        maps = []
        for attention in self.attention:
            entry: dict[str, Any] = {
                "key": attention.key,
                "title": attention.title,
                "kind": attention.kind,
            }
            if isinstance(attention, SpatialAttention):
                entry["scale"], entry["unit"] = attention.scale, attention.unit
            elif isinstance(attention, CorrelationAttention):
                entry["affine"] = attention.affine.tolist()
            else:
                entry["axis"] = attention.axis
                entry["centers_ras"] = attention.centers_ras.tolist()
                entry["normal_ras"] = attention.normal_ras.tolist()
            maps.append(entry)
        return {
            "labels": [label.model_dump(mode="json") for label in self.labels],
            "attention": maps,
            "lesions": [asdict(lesion) for lesion in self.lesions],
            "settings": self.settings,
            "provenance": self.provenance,
            "timings_s": self.timings,
        }

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what `save` wrote.

        Raises:
            UnreadableImageError: there is no complete result in that folder.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnreadableImageError(
                f"There is no complete result in '{folder}'.", f"It has no sound {RESULT_FILE}."
            ) from error
        labels = [Label.model_validate(entry) for entry in index["labels"]]
        labelmap = read_image(folder / LABELMAP_FILE)
        return cls(
            grid=labelmap.grid,
            labels=labels,
            probabilities={
                label.name: read_image(folder / f"probability_{label.value}.nii.gz").array
                for label in labels
            },
            labelmap=labelmap.array.astype(np.uint8),
            attention=[_load_attention(entry, folder) for entry in index["attention"]],
            lesions=[
                Lesion(**{**entry, "center_ras": tuple(entry["center_ras"])})
                for entry in index["lesions"]
            ],
            settings=index["settings"],
            provenance=index["provenance"],
            timings=index["timings_s"],
        )


def _load_attention(entry: dict[str, Any], folder: Path) -> Attention:
    if entry["kind"] == "spatial":
        values = read_image(folder / f"attention_{entry['key']}.nii.gz").array
        unit = entry.get("unit", SHARE)
        return SpatialAttention(entry["key"], entry["title"], values, entry["scale"], unit)
    if entry["kind"] == "correlation":
        with np.load(folder / f"attention_{entry['key']}.npz", allow_pickle=False) as file:
            maps = file["maps"]
        affine = np.array(entry["affine"])
        return CorrelationAttention(entry["key"], entry["title"], maps, affine)
    matrix = np.loadtxt(
        folder / f"attention_{entry['key']}.csv", delimiter=",", ndmin=2, dtype=np.float32
    )
    return SliceAttention(
        key=entry["key"],
        title=entry["title"],
        axis=entry["axis"],
        matrix=matrix,
        centers_ras=np.array(entry["centers_ras"]),
        normal_ras=np.array(entry["normal_ras"]),
    )


def check_thresholds(labels: list[Label], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Threshold by label name, the labels' own where none is given.

    Raises:
        SettingError: outside of 0..1, or of an unknown label.
    """
    names = [label.name for label in labels]
    for name, value in thresholds.items():
        if name not in names:
            raise SettingError(
                f"There is no label '{name}' to set a threshold for.",
                f"Labels: {', '.join(names)}.",
            )
        if not 0 <= value <= 1:
            raise SettingError(
                f"The threshold of '{name}' is {value:g}.", "Give a value from 0 to 1."
            )
    return {label.name: float(thresholds.get(label.name, label.threshold)) for label in labels}


def lesion_table(lesions: list[Lesion]) -> str:
    """The lesions as CSV with one header line; units stand in the column names."""
    keys = list(lesions[0].inputs) if lesions else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(lesion_columns(keys))
    for lesion in lesions:
        writer.writerow(lesion_row(lesion, keys))
    return text.getvalue()


def lesion_columns(keys: list[str]) -> list[str]:
    """Column names of the lesion table for these input keys."""
    return [
        "number", "label", "volume_ml", "longest_diameter_mm", "mean_probability",
        "max_probability", "center_r_mm", "center_a_mm", "center_s_mm",
        *[f"mean_{key}" for key in keys],
    ]  # fmt: skip


def lesion_row(lesion: Lesion, keys: list[str]) -> list[str]:
    """One row of the lesion table; the cell of a mean that there is not is empty."""
    means = [lesion.inputs[key] for key in keys]
    return [
        str(lesion.number),
        lesion.label,
        f"{lesion.volume_ml:.4f}",
        f"{lesion.longest_diameter_mm:.2f}",
        f"{lesion.mean_probability:.4f}",
        f"{lesion.max_probability:.4f}",
        *[f"{c:.2f}" for c in lesion.center_ras],
        *["" if mean is None else f"{mean:.4g}" for mean in means],
    ]


def terminology_entry(label: Label) -> str:
    """The label's codes as Slicer's terminology entry string (seven parts joined by "~")."""
    codes = label.terminology
    if codes is None:
        return ""

    def part(code: Any) -> str:
        return "^".join((code.scheme, code.value, code.meaning)) if code else "^^"

    return "~".join(
        [
            "Segmentation category and type - 3D Slicer General Anatomy list",
            part(codes.category), part(codes.type), part(codes.modifier),
            "Anatomic codes - DICOM master list", part(codes.region), part(codes.region_modifier),
        ]
    )  # fmt: skip


def _segment_tags(label: Label) -> dict[str, str]:
    """The fields by which Slicer's segmentation files describe a segment."""
    tags = {
        "ID": f"Segment_{label.value}",
        "Name": label.name,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{c / 255:.6f}" for c in label.color),
        "ColorAutoGenerated": "0",
        "LabelValue": str(label.value),
        "Layer": "0",
    }
    entry = terminology_entry(label)
    if entry:
        tags["Tags"] = f"TerminologyEntry:{entry}|"
    return tags
