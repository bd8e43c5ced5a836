"""The schema of model.json: everything that a run needs to know about a model, and its card."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SCHEMA_FILE = Path(__file__).with_name("model.schema.json")

SLUG = r"^[a-z0-9][a-z0-9-]{1,63}$"
Slug = Annotated[str, StringConstraints(pattern=SLUG)]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Version = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Channel = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(gt=0, le=100)]
Voxels = Annotated[int, Field(ge=1, le=2048)]
JsonValue = bool | int | float | str | None | list | dict


class Part(BaseModel):
    """Base of every part: unknown fields are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(Part):
    """One coded term, e.g. scheme "SCT", value "52988006", meaning "Lesion"."""

    scheme: str
    value: str
    meaning: str


class Terminology(Part):
    """The codes of a label as DICOM SEG and Slicer's terminologies have them."""

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None


class Label(Part):
    """One class that the model answers; the background has none.

    `one_piece`: only its largest connected component stays, as of an organ.
    """

    value: Annotated[int, Field(ge=1, le=255)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    color: tuple[Channel, Channel, Channel]
    threshold: Share = 0.5
    one_piece: bool = False
    terminology: Terminology | None = None


class Normalisation(Part):
    """How the intensities x of one input become (x - centre) / scale, clipped; outside: 0.

    The foreground is x > `foreground_share` times the 99.5th percentile of the positive voxels.
    Centre and scale over the foreground, by method:
        zscore: mean, standard deviation;
        robust: median, interquartile range / 1.349;
        mode: position of the histogram's highest peak, its full width at half maximum / 2.355.
    `window` is for images with values below 0, such as CT in HU: before all this x is cut to it
    and its low end taken away, so that the air around the patient is 0.
    """

    method: Literal["zscore", "robust", "mode"]
    window: tuple[float, float] | None = None
    foreground_share: Share = 0.02
    clip: tuple[float, float] = (-8.0, 12.0)

    @model_validator(mode="after")
    def _clip_is_ordered(self) -> "Normalisation":
        if not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip {self.clip} has to be (low, high)")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window {self.window} has to be (low, high)")
        return self


class InputMatch(Part):
    """Regular expressions (case is ignored) that tell which volume is this input."""

    series_description: list[str] = []
    names: list[str] = []
    exclude: list[str] = []

    @model_validator(mode="after")
    def _patterns_compile(self) -> "InputMatch":
        for pattern in [*self.series_description, *self.names, *self.exclude]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
        return self


class InputSpec(Part):
    """One image that the model takes."""

    key: Key
    title: str
    modality: Literal["MR", "CT", "PT", "US", "OT"]
    required: bool
    match: InputMatch = InputMatch()
    units: str = "arbitrary"
    normalisation: Normalisation


class GridSpec(Part):
    """The grid on which the network works.

    Attributes:
        orientation: where the axes i, j, k point to, e.g. "RAS".
        axes: "patient" puts them along the patient's axes, whatever the tilt of the slices;
            "reference" along those axes of the reference image that are nearest, which keeps
            thick slices as they were acquired.
        spacing: mm along i, j, k; null keeps the reference's own (only with its axes).
        dimensionality: "3D"; "2D" gives the network slices along k, as a batch; "2.5D" does so
            with `neighbours` slices on each side as channels.
        neighbours: slices on each side, of each input, in the order of k; the outermost slice
            is repeated where there are no more.
        tile: voxels along k, j, i that go through the network at once; k is the batch in 2D.
        overlap: share of a tile that the next one covers again, 0..0.9.
        blend: "gaussian" trusts a tile's middle more than its border, "constant" averages.
        multiple: tile starts are multiples of this many voxels.
        crop: "foreground" of the reference image; its "middle", `middle_mm` along i and j and all
            of k, where the organ is by the way such images are planned; or "none". A region that
            the user draws takes the place of the middle.
        middle_mm: see `crop`; null but for "middle".
        margin_mm: kept around the foreground.
        mirror: axes along which the training has shown mirrored images to the network, and along
            which the careful mode may; of slices, j and i alone count.
    """

    orientation: Annotated[str, StringConstraints(pattern=r"^[RL][AP][SI]$")] = "RAS"
    axes: Literal["patient", "reference"] = "patient"
    spacing: tuple[Millimetres | None, Millimetres | None, Millimetres | None]
    dimensionality: Literal["2D", "2.5D", "3D"] = "3D"
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    tile: tuple[Voxels, Voxels, Voxels]
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    blend: Literal["gaussian", "constant"] = "gaussian"
    multiple: Annotated[int, Field(ge=1, le=128)] = 1
    crop: Literal["foreground", "middle", "none"] = "foreground"
    middle_mm: Annotated[float, Field(gt=0, le=1000)] | None = None
    margin_mm: Annotated[float, Field(ge=0, le=100)] = 5.0
    mirror: tuple[Literal["k", "j", "i"], ...] = ("k", "j", "i")

    @model_validator(mode="after")
    def _tile_fits_multiple(self) -> "GridSpec":
        multiples = self.multiples
        if any(size % m for size, m in zip(self.tile, multiples, strict=True)):
            raise ValueError(f"tile {self.tile} is no multiple of {multiples} voxels")
        return self

    @model_validator(mode="after")
    def _spacing_is_known(self) -> "GridSpec":
        if self.axes == "patient" and None in self.spacing:
            raise ValueError("spacing may be null only with the axes of the reference")
        return self

    @model_validator(mode="after")
    def _middle_has_a_size(self) -> "GridSpec":
        if (self.crop == "middle") != (self.middle_mm is not None):
            raise ValueError(f"middle_mm is {self.middle_mm} but crop is '{self.crop}'")
        return self

    @model_validator(mode="after")
    def _neighbours_are_of_25d(self) -> "GridSpec":
        if (self.dimensionality == "2.5D") != (self.neighbours > 0):
            raise ValueError(f"neighbours is {self.neighbours} but {self.dimensionality} is given")
        return self

    @property
    def flat(self) -> bool:
        """Whether the network takes slices."""
        return self.dimensionality != "3D"

    @property
    def multiples(self) -> tuple[int, int, int]:
        """What tile starts and sizes are multiples of along k, j, i."""
        return (1 if self.flat else self.multiple, self.multiple, self.multiple)


class NetworkSpec(Part):
    """A name of `medsegcore.networks.NETWORKS` and the fields of its config."""

    name: Key
    config: dict[str, JsonValue]


class WeightsSpec(Part):
    """The weights file, beside model.json."""

    file: FileName = "model.safetensors"
    sha256: Sha256
    dtype: Literal["float16", "float32"]
    license: str
    commercial_use: bool


class AttentionSpec(Part):
    """One attention map that the network gives; `axis` for slice attention alone."""

    key: Key
    kind: Literal["spatial", "slice", "correlation"]
    title: str
    axis: Literal["sagittal", "coronal", "axial"] | None = None

    @model_validator(mode="after")
    def _slice_has_axis(self) -> "AttentionSpec":
        if (self.kind == "slice") != (self.axis is not None):
            raise ValueError(f"attention '{self.key}': an axis belongs to slice attention alone")
        return self


class DatasetUse(Part):
    """Cases of one public data set, and what they were used for."""

    name: str
    split: Literal["training", "validation", "test"]
    patients: list[str]
    cases: Annotated[int, Field(ge=1)]
    license: str
    citation: str


class Metric(Part):
    """One measured figure; `value` is None where the measure is not defined."""

    name: str
    value: float | None
    unit: str
    case: str
    n: Annotated[int, Field(ge=1)]
    how: str


class Timing(Part):
    """Seconds of one run on a named device."""

    what: str
    device: str
    seconds: float


class Parent(Part):
    """A model that these weights come from: one that taught them, or that they started as.

    Attributes:
        data: what it, or a model that it comes from in turn, was trained on or chosen by.
    """

    id: Slug
    version: Version
    sha256: Sha256
    role: Literal["teacher", "start"]
    data: list[DatasetUse] = []


class TrainingRecord(Part):
    """How the weights came about; `sha256` of the parents is that of their weights."""

    recipe: str
    date: str
    minutes: float
    steps: int
    device: str
    seed: int
    settings: dict[str, JsonValue]
    parents: list[Parent] = []


class ModelDescription(Part):
    """model.json as a whole.

    Attributes:
        skull_stripped: whether the images have to be without the skull.
        reference: the input on whose grid the answer lies; null with "one_of".
        missing_input: what happens when an optional input is absent: "zero" puts zeros in its
            place, "refuse" stops. With "one_of" exactly one of the inputs is given. It is the
            reference and the network's only channel, and a network that tells modalities apart is
            told its position among the inputs as `modality`.
    """

    schema_version: Literal[1] = 1
    id: Slug
    version: Version
    title: str
    task: str
    anatomy: str
    skull_stripped: bool = False
    network: NetworkSpec
    weights: WeightsSpec
    inputs: Annotated[list[InputSpec], Field(min_length=1)]
    reference: Key | None
    missing_input: Literal["zero", "refuse", "one_of"]
    grid: GridSpec
    labels: Annotated[list[Label], Field(min_length=1)]
    attention: list[AttentionSpec]
    training: TrainingRecord
    data: list[DatasetUse]
    metrics: list[Metric]
    intended_use: str
    limits: list[str]
    citation: list[str]
    memory_mb: Annotated[int, Field(ge=0)]
    timings: list[Timing] = []

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "ModelDescription":
        keys = [spec.key for spec in self.inputs]
        for what, names in (
            ("input key", keys),
            ("label name", [label.name for label in self.labels]),
            ("label value", [str(label.value) for label in self.labels]),
            ("attention key", [spec.key for spec in self.attention]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"the {what} '{name}' is there twice")
        if self.one_of:
            if self.reference is not None or any(spec.required for spec in self.inputs):
                raise ValueError("with one_of no input is required and the reference is null")
            return self
        if self.reference not in keys:
            raise ValueError(f"the reference '{self.reference}' is none of the inputs {keys}")
        if not self.input(self.reference).required:
            raise ValueError(f"the reference input '{self.reference}' has to be required")
        return self

    @property
    def one_of(self) -> bool:
        """Whether exactly one of the inputs is given."""
        return self.missing_input == "one_of"

    @property
    def channels(self) -> int:
        """How many channels the network sees."""
        images = 1 if self.one_of else len(self.inputs)
        return images * (2 * self.grid.neighbours + 1)

    def needs(self, spec: InputSpec) -> bool:
        """Whether nothing can be answered without that input."""
        return spec.required or self.missing_input == "refuse"

    def same_task(self, other: "ModelDescription") -> bool:
        """Whether both take the same inputs and answer with the same labels on the same grid."""
        return _task(self) == _task(other)

    def reference_of(self, given: Collection[str]) -> str | None:
        """Key of the reference; with "one_of" the one of the inputs that is given, if any is."""
        if self.reference is not None:
            return self.reference
        return next((spec.key for spec in self.inputs if spec.key in given), None)

    def input(self, key: str) -> InputSpec:
        """The input of that key (KeyError when there is none)."""
        return {spec.key: spec for spec in self.inputs}[key]


def _task(d: ModelDescription) -> tuple:
    inputs = sorted((spec.key, d.needs(spec)) for spec in d.inputs)
    return inputs, d.reference, [(label.value, label.name) for label in d.labels]


def json_schema() -> str:
    """The JSON Schema of model.json, as kept in `model.schema.json`."""
    schema = ModelDescription.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json_schema(), encoding="utf-8")
