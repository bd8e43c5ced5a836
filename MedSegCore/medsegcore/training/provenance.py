"""What a model's card says of the data that it was trained on."""

from collections.abc import Sequence
from typing import Literal

from medsegcore.models import DatasetUse, ModelDescription, WeightsSpec
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


def seen_before(description: ModelDescription, cases: Sequence[Case]) -> list[str]:
    """A sentence about the patients of these cases that the model was trained on or chosen by, and
    one about those who only have the name of one who was, in another data set.

    A patient who comes back, e.g. with a corrected mask, comes from a folder of another name.
    """
    seen = {
        (use.name, patient)
        for use in description.data if use.split != "test" for patient in use.patients
    }  # fmt: skip
    names = {patient: site for site, patient in sorted(seen)}
    surely = sorted({case.patient for case in cases if (case.site, case.patient) in seen})
    perhaps = sorted({case.patient for case in cases if case.patient in names} - {*surely})
    told = [f"The model was trained on the patients {', '.join(surely)}."] if surely else []
    if perhaps:
        sites = ", ".join(sorted({names[patient] for patient in perhaps}))
        told.append(
            f"The model was trained on patients of the names {', '.join(perhaps)} in {sites}, who "
            "may be the same."
        )
    return told


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
