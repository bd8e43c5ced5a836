"""Which patients are left out of which training; a patient's visits are never separated."""

import numpy as np

from medsegcore.errors import SettingError
from medsegcore.training.datasets.dataset import Dataset


def split_folds(dataset: Dataset, folds: int, seed: int = 0) -> list[list[str]]:
    """Patients of each fold; every patient is in one.

    Each site's patients are spread evenly over the folds, in an order that depends on the seed
    but puts patients with many visits first, always into the fold that has the fewest of that
    site and then the fewest cases. A patient of several sites counts for the first.

    Raises:
        SettingError: fewer than two folds, or more than there are patients.
    """
    visits: dict[str, int] = {}
    sites: dict[str, str] = {}
    for case in dataset.cases:
        visits[case.patient] = visits.get(case.patient, 0) + 1
        sites[case.patient] = min(case.site, sites.get(case.patient, case.site))
    if not 2 <= folds <= len(visits):
        raise SettingError(
            f"{len(visits)} patients cannot be split into {folds} folds.",
            f"Choose 2 to {len(visits)}.",
        )
    order = [str(p) for p in np.random.default_rng(seed).permutation(sorted(visits))]
    order.sort(key=lambda patient: (sites[patient], -visits[patient]))
    found: list[list[str]] = [[] for _ in range(folds)]

    def load(fold: list[str], site: str) -> tuple[int, int]:
        return sum(sites[p] == site for p in fold), sum(visits[p] for p in fold)

    for patient in order:
        min(found, key=lambda fold: load(fold, sites[patient])).append(patient)
    return [sorted(fold) for fold in found]


def leave_one_site_out(dataset: Dataset) -> dict[str, list[str]]:
    """By site, all patients that were seen there: the rest is what to train on.

    A patient of two sites is left out with both.

    Raises:
        SettingError: there is only one site.
    """
    if len(dataset.sites) < 2:
        raise SettingError(
            f"All cases are of the site '{dataset.sites[0]}'.", "Two sites are needed."
        )
    return {
        site: sorted({case.patient for case in dataset.cases if case.site == site})
        for site in dataset.sites
    }


def leave_one_patient_out(dataset: Dataset) -> list[list[str]]:
    """One fold for each patient.

    Raises:
        SettingError: there is only one patient.
    """
    if len(dataset.patients) < 2:
        raise SettingError(
            f"All cases are of the patient '{dataset.patients[0]}'.", "Two patients are needed."
        )
    return [[patient] for patient in dataset.patients]
