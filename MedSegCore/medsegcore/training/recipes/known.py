"""Images and structures that we know by name, and the model description that recipes share."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from medsegcore.errors import MissingInputError, SettingError
from medsegcore.models import (
    AttentionSpec,
    Code,
    GridSpec,
    InputMatch,
    InputSpec,
    Label,
    ModelDescription,
    NetworkSpec,
    Normalisation,
    TrainingRecord,
)
from medsegcore.models.label_names import plain_name, standard_name
from medsegcore.networks import create_network
from medsegcore.training.recipes.base import NO_WEIGHTS, RESEARCH_ONLY
from medsegcore.training.recipes.terms import COLORS, ONE_PIECE, TERMINOLOGY

if TYPE_CHECKING:
    from medsegcore.training.datasets import Dataset

# From fat, about -100 HU, to the enhanced vessels; bone is cut.
CT_WINDOW = (-200.0, 400.0)


def _input(key: str, title: str, patterns: list[str], exclude: Sequence[str] = (), **more: Any):
    names = more.pop("names", patterns)
    match = InputMatch(series_description=patterns, names=names, exclude=list(exclude))
    how = Normalisation(method=more.pop("method", "zscore"), window=more.pop("window", None))
    modality = more.pop("modality", "MR")
    return InputSpec(
        key=key, title=title, modality=modality, required=True, match=match, normalisation=how,
        **more,
    )  # fmt: skip


_CONTRAST = [r"t1\s*ce", r"gad", r"\bgd\b", r"contrast", r"post"]
# FLAIR by the position and width of its main peak, normal-appearing tissue, which neither the
# lesion load nor the extent of the brain mask moves; T1 and T2 of the brain have no such peak.
INPUTS = {
    spec.key: spec
    for spec in (
        _input("t1", "T1-weighted MR", [r"\bt1", r"mp-?rage", r"(ir-?)?spgr"], _CONTRAST,
               names=["t1"], method="robust"),
        _input("t2", "T2-weighted MR", [r"\bt2"], [r"flair", r"t2\*", r"swi"], names=["t2"],
               method="robust"),
        _input("flair", "FLAIR MR", [r"flair", r"dark.?fluid"], names=["flair"], method="mode"),
        _input("t2w", "T2-weighted MR", [r"\bt2", r"t2w"], [r"flair", r"t2\*", r"swi", r"map"]),
        _input("adc", "ADC map", [r"\badc", r"apparent diff"], [r"\beadc", r"exponential"],
               units="10^-6 mm2/s"),
        _input("hbv", "Diffusion-weighted MR, high b-value",
               [r"\bhbv", r"\bdwi", r"b-?(?:val\w*)?[ _=]*(?:8|9|1\d|2\d)\d\d\b", r"trace"],
               [r"\badc"]),
        _input("ct", "CT", [r"\bct\b"], [r"topogram", r"scout"], modality="CT", units="HU",
               window=CT_WINDOW),
        _input("mr", "MR", [r"\bmri?\b"]),
    )
}  # fmt: skip

SKULL_STRIPPED = "The images have to be skull-stripped, as those it was trained on were."
_REGIONS = {
    "brain": ("MS lesion", Code(scheme="SCT", value="12738006", meaning="Brain")),
    "prostate": ("Prostate lesion", Code(scheme="SCT", value="41216001", meaning="Prostate")),
}


def anatomy_of(data: "Dataset") -> str:
    """The anatomy: "prostate" or "brain" by the names of channels and labels, else "unknown"."""
    if {"adc", "hbv", "t2w"} & {*data.channels} or any("prostate" in name for name in data.labels):
        return "prostate"
    return "brain" if "flair" in data.channels else "unknown"


def known_inputs(data: "Dataset", keys: Sequence[str]) -> list[InputSpec]:
    """The inputs of those channels; a channel that we do not know by its key is described by the
    data set.

    Raises:
        MissingInputError: the data set has no such channel.
    """
    specs = []
    for key in keys:
        if key not in data.channels:
            raise MissingInputError(
                f"The data set '{data.name}' has no channel '{key}'.",
                f"Its channels: {', '.join(data.channels)}.",
            )
        channel = data.channels[key]
        spec = INPUTS.get(key)
        if spec is None:
            patterns = [rf"\b{re.escape(key)}\b"]
            spec = _input(key, channel.title, patterns, modality=channel.modality)
        # Only intensities in HU have a zero and a scale that a window can stand for.
        window = CT_WINDOW if channel.units == "HU" else None
        how = spec.normalisation.model_copy(update={"window": window})
        update = {"required": channel.required, "units": channel.units, "normalisation": how}
        specs.append(spec.model_copy(update=update))
    return specs


def known_labels(data: "Dataset", threshold: float = 0.5) -> list[Label]:
    """The labels of a data set, with terminology and colour where we know the name."""
    anatomy = anatomy_of(data)
    labels = []
    for n, (name, value) in enumerate(sorted(data.labels.items(), key=lambda item: item[1])):
        plain = standard_name(name)
        title, terms = plain.capitalize(), TERMINOLOGY.get(plain)
        if plain in ("lesion", "lesions", "ms lesion", "cancer") and anatomy in _REGIONS:
            title, region = _REGIONS[anatomy]
            terms = TERMINOLOGY["lesion"].model_copy(update={"region": region})
        labels.append(
            Label(
                value=value, name=title, color=COLORS[n % len(COLORS)], threshold=threshold,
                one_piece=plain in ONE_PIECE, terminology=terms,
            )
        )  # fmt: skip
    return labels


def check_labels(description: ModelDescription, data: "Dataset") -> None:
    """Raise SettingError unless the data set has the model's labels, by value and name."""
    own = {(label.value, plain_name(label.name)) for label in description.labels}
    raw = {(value, plain_name(name)) for name, value in data.labels.items()}
    named = known_labels(data)
    if own not in (raw, {(label.value, plain_name(label.name)) for label in named}):
        raise SettingError(
            f"The model's labels are {_names(description.labels)}, the data set's {_names(named)}.",
            "Name and number the labels of the data set as the model does.",
        )


def _names(labels: Sequence[Label]) -> str:
    return ", ".join(f"{label.value} {label.name}" for label in labels)


def classes_of(data: "Dataset") -> int:
    """Number of classes with the background."""
    return max(data.labels.values()) + 1


def middle_of(mm: float | None) -> dict[str, Any]:
    """Fields of a `GridSpec` that looks at the images' middle, or at all of them."""
    return {"crop": "none"} if mm is None else {"crop": "middle", "middle_mm": mm}


def describe(
    data: "Dataset",
    record: TrainingRecord,
    inputs: Sequence[InputSpec],
    grid: GridSpec,
    network: NetworkSpec,
    *,
    method: str,
    citation: Sequence[str],
    limits: Sequence[str] = (),
    threshold: float = 0.5,
    one_of: bool = False,
) -> ModelDescription:
    """The model folder's description, without licence, data and figures.

    Args:
        method: as it stands in the title, e.g. "CSAD".
        threshold: of every label.
        one_of: exactly one of the inputs is given; otherwise all are needed, the first of which
            is the reference.
    """
    labels = known_labels(data, threshold)
    structures = ", ".join(label.name for label in labels)
    images = (" or " if one_of else " and ").join(spec.title for spec in inputs)
    with torch.device("meta"):
        attention: Any = create_network(network.name, network.config).attention
    required = {"required": not one_of}
    return ModelDescription(
        id=_slug(f"{data.name}-{record.recipe}"),
        version="1.0.0",
        title=f"{structures} in {images} ({method})",
        task=f"Segments {structures} in {images}.",
        anatomy=anatomy_of(data),
        skull_stripped=data.skull_stripped,
        network=network,
        weights=NO_WEIGHTS,
        inputs=[spec.model_copy(update=required) for spec in inputs],
        reference=None if one_of else inputs[0].key,
        missing_input="one_of" if one_of else "refuse",
        grid=grid,
        labels=labels,
        attention=[AttentionSpec.model_validate(a) for a in attention],
        training=record,
        data=[],
        metrics=[],
        intended_use=RESEARCH_ONLY,
        limits=[*([SKULL_STRIPPED] if data.skull_stripped else []), *limits],
        citation=list(citation),
        memory_mb=0,
    )


def _slug(text: str) -> str:
    """What may be a model's id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64]
