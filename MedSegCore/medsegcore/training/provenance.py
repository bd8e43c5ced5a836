"""What a model's card says of the data that it was trained on."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from medsegcore.models import DatasetUse, ModelDescription, TrainingRecord, WeightsSpec
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
    """(site, patient) of the test patients of a model."""
    return [(u.name, p) for u in description.data if u.split == "test" for p in u.patients]


def seen_before(description: ModelDescription, uses: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence about those of these patients whom the model was trained on or chosen by, and one
    about those who only have the name of one who was, in another data set.

    A patient who comes back, e.g. with a corrected mask, comes from a folder of another name.

    Args:
        uses: (site, patient).
    """
    seen = {
        (use.name, patient)
        for use in description.data if use.split != "test" for patient in use.patients
    }  # fmt: skip
    surely = sorted({patient for site, patient in uses if (site, patient) in seen})
    perhaps = {patient for site, patient in uses} - {*surely}
    namesakes = sorted((patient, site) for site, patient in seen if patient in perhaps)
    told = (
        [f"'{description.id}' was trained on the patients {', '.join(surely)}."] if surely else []
    )
    if namesakes:
        names = ", ".join(f"{patient} ({site})" for patient, site in namesakes)
        told.append(
            f"'{description.id}' was trained on patients of the same name, who may be the same: "
            f"{names}."
        )
    return told


def how_unseen(ancestors: Iterable[ModelDescription], case: Case) -> str:
    """How a case that was kept apart from a training was never seen, or by whom it was."""
    who = (case.site, case.patient)
    knew = [
        f"'{d.id}'"
        for d in ancestors
        if any(u.name == who[0] and who[1] in u.patients for u in d.data if u.split != "test")
    ]
    if not knew:
        return "never trained on"
    return (
        f"never trained on here, but {' and '.join(knew)}, from which it comes, was trained on it: "
        "it flatters"
    )


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
