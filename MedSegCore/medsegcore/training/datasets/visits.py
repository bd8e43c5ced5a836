"""Folders of visits that would count as patients."""

import re

from medsegcore.training.datasets.dataset import Dataset

# Folder names that name no patient: v1, visit_2, ses-01, T2, 2019, 2019-03-04.
VISIT = re.compile(
    r"(v|visit|ses|session|t|tp|timepoint|time|scan|exam|year|month|week|baseline|followup)"
    r"[-_ ]?\d{0,4}|(19|20)\d\d([-_.]?\d\d){0,2}"
)


def visits_as_patients(data: Dataset) -> str:
    """A sentence about folders of visits that count as patients; "" where there is none."""
    if data.declared:
        return ""
    folders = {next(iter(case.images.values())).parent for case in (*data.cases, *data.test)}
    names = sorted({folder.name for folder in folders if VISIT.fullmatch(folder.name.lower())})
    if not names:
        return ""
    example = min(folder for folder in folders if folder.name == names[0])
    more = ", ..." if len(names) > 3 else ""
    return (
        f"Folders called {', '.join(names[:3])}{more} look like visits, but each counts as a "
        "patient of its own: two visits of one patient may come into different folds. Name them "
        f"after the patient, e.g. {example.parent.name}_{names[0]}."
    )
