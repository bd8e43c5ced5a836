"""What a model's card says of the data that it was trained on."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from medsegcore.models import (
    DatasetUse,
    ModelDescription,
    Parent,
    TrainingRecord,
    WeightsSpec,
)
from medsegcore.training.cases import Split
from medsegcore.training.datasets import Case, Dataset
from medsegcore.training.datasets.sources import SOURCES, combined_terms


def size_of(training: Sequence[Case]) -> str:
    """What the card says first of a model's limits."""
    patients = len({case.patient for case in training})
    sites = len({case.site for case in training})
    return (
        f"Trained on {len(training)} cases of {patients} patients from {sites} "
        f"data set{'s' if sites > 1 else ''}: how it does on other scanners and protocols is "
        "not known."
    )


def weights_terms(data: Dataset, training: Sequence[Case]) -> dict[str, str | bool]:
    """The weights' licence: that of the training data when it is known, else nothing is allowed."""
    license_, commercial_use = data.license, data.commercial_use
    sites = sorted({case.site for case in training})
    if all(site in SOURCES for site in sites):
        license_, commercial_use, _ = combined_terms(sites)
    return {"license": license_, "commercial_use": commercial_use}


def joined_terms(weights: Sequence[WeightsSpec]) -> dict[str, str | bool]:
    """The licence of weights that come from all these: no more is allowed than by each."""
    licenses = dict.fromkeys(w.license for w in weights)
    if "not stated" in licenses:
        return {"license": "not stated", "commercial_use": False}
    return {
        "license": ", ".join(licenses),
        "commercial_use": all(w.commercial_use for w in weights),
    }


def kept_settings(record: TrainingRecord) -> dict[str, Any]:
    """The recipe's own settings, without paths of the computer that it was trained on."""
    left_out = ("chosen", "teachers", "fine_tuning", "pretrained")
    return {name: value for name, value in record.settings.items() if name not in left_out}


def patients_held_out(description: ModelDescription) -> list[tuple[str, str]]:
    """(site, patient) of those whom a model was not trained on: its test and validation."""
    return [(u.name, p) for u in description.data if u.split != "training" for p in u.patients]


def known_to(model: ModelDescription | Parent) -> list[DatasetUse]:
    """What a model, or one that it comes from, was trained on or chosen by."""
    if isinstance(model, Parent):
        return model.data
    inherited = [use for parent in model.training.parents for use in parent.data]
    uses = [use for use in [*model.data, *inherited] if use.split != "test"]
    return [use for n, use in enumerate(uses) if use not in uses[:n]]


def parent_of(description: ModelDescription, role: Literal["teacher", "start"]) -> Parent:
    """A model as the parent of another, with all that it knows."""
    return Parent(
        id=description.id, version=description.version, sha256=description.weights.sha256,
        role=role, data=known_to(description),
    )  # fmt: skip


def seen_before(model: ModelDescription | Parent, uses: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence about those of these patients whom the model, or one that it comes from, was
    trained on or chosen by, and one about those who only have the name of one who was, in another
    data set.

    A patient who comes back, e.g. with a corrected mask, comes from a folder of another name.

    Args:
        uses: (site, patient).
    """
    seen = {(use.name, patient) for use in known_to(model) for patient in use.patients}
    surely = sorted({patient for site, patient in uses if (site, patient) in seen})
    perhaps = {patient for site, patient in uses} - {*surely}
    namesakes = sorted((patient, site) for site, patient in seen if patient in perhaps)
    who = f"'{model.id}'"
    if isinstance(model, ModelDescription) and any(p.data for p in model.training.parents):
        who += ", or a model that it comes from,"
    told = [f"{who} was trained on the patients {', '.join(surely)}."] if surely else []
    if namesakes:
        names = ", ".join(f"{patient} ({site})" for patient, site in namesakes)
        told.append(
            f"{who} was trained on patients of the same name, who may be the same: {names}."
        )
    return told


def inherited(parents: Iterable[Parent], case: Case) -> str:
    """Which of the models that another comes from knew a case that was kept apart; "" for none."""
    knew = dict.fromkeys(
        f"'{parent.id}'"
        for parent in parents
        if any(use.name == case.site and case.patient in use.patients for use in parent.data)
    )
    if not knew:
        return ""
    return f"{' and '.join(knew)}, from which it comes, was trained on it: it flatters"


def how_unseen(parents: Iterable[Parent], case: Case) -> str:
    """How a test case was never seen, or by whom it was."""
    known = inherited(parents, case)
    return f"never trained on here, but {known}" if known else "never trained on"


def data_use(data: Dataset, split: Split) -> list[DatasetUse]:
    """Which cases were used for what, by site."""
    parts: list[tuple[Literal["training", "validation", "test"], list[Case]]] = [
        ("training", split.training),
        ("validation", split.validation),
        ("test", split.test),
    ]
    uses = []
    for name, cases in parts:
        for site in sorted({case.site for case in cases}):
            of_site = [case for case in cases if case.site == site]
            source = SOURCES.get(site, data)
            uses.append(
                DatasetUse(
                    name=site,
                    split=name,
                    patients=sorted({case.patient for case in of_site}),
                    cases=len(of_site),
                    license=source.license,
                    citation=source.citation,
                )
            )
    return uses
