"""NCI-ISBI 2013: peripheral zone and central gland in T2W of two hospitals (1.5 T and 3 T)."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from medsegcore.errors import InputError, MissingInputError
from medsegcore.imaging import Grid, Image, read_image, resample
from medsegcore.training.datasets.adapters.layout import Adapter, Found, matches, painted
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

SITES = {"3T": "RUNMC", "Dx": "BMC"}


def _find(root: Path) -> Iterator[Found]:
    pattern = r"(?P<patient>Prostate(?P<kind>3T|Dx)-\d+-\d+)(?:_[^/]*)?\.nrrd"
    # A corrected file ("..._correctedLabels") comes after the one that it replaces.
    labels = {groups["patient"]: (path, groups) for path, groups in matches(root, pattern)}
    for patient, (path, groups) in labels.items():
        series = _series(root, patient, path)
        yield Found(
            id=patient,
            patient=patient,
            site=SITES[groups["kind"]],
            images={"t2w": series},
            label=partial(_label, path, series),
        )


def _series(root: Path, patient: str, label: Path) -> Path:
    """The DICOM folder of that patient whose field of view is most like the label's."""
    wanted = _bounds(read_image(label).grid)
    distances = {}
    for folder in sorted({file.parent for file in root.rglob(f"{patient}/**/*.dcm")}):
        try:
            distances[folder] = float(np.abs(_bounds(read_image(folder).grid) - wanted).max())
        except InputError:
            # Localizers and the like; the one that is looked for can be read.
            continue
    if not distances:
        raise MissingInputError(
            f"There is no DICOM series of '{patient}' that can be read.",
            "Download the patient's T2W series again.",
        )
    return min(distances, key=lambda folder: distances[folder])


def _bounds(grid: Grid) -> np.ndarray:
    corners = grid.corners()
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def _label(path: Path, series: Path) -> Image:
    """On the image's grid: the axes of the files run in another order, and some are finer."""
    return resample(painted([(path, {1: 1, 2: 2})])(), read_image(series).grid, "nearest")


NCI_ISBI2013 = Adapter(
    name="nci-isbi2013",
    source=Source(
        "NCI-ISBI 2013: peripheral zone and central gland in T2W of two hospitals",
        "CC BY 3.0",
        True,
        "Bloch N, Madabhushi A, Huisman H, et al. NCI-ISBI 2013 Challenge: automated segmentation "
        "of prostate structures. TCIA 2015. doi 10.7937/K9/TCIA.2015.zF0vlOPv",
        "https://doi.org/10.7937/K9/TCIA.2015.zF0vlOPv",
    ),
    layout="Prostate3T-01-0001.nrrd and ProstateDx-01-0001.nrrd in any folder (1 peripheral zone, "
    "2 central gland), and folders of those names with the DICOM series of TCIA below. As public "
    "code reads it; not tried on the download.",
    channels={"t2w": Channel("T2W")},
    labels={"peripheral zone": 1, "central gland": 2},
    find=_find,
)
