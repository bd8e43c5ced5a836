"""NCI-ISBI 2013: peripheral zone and central gland in T2W of two hospitals (1.5 T and 3 T)."""

from collections.abc import Iterator
from pathlib import Path

from medsegcore.errors import DatasetError, InputError
from medsegcore.imaging import read_image
from medsegcore.training.datasets.adapters.layout import Adapter, Found, matches, painted
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source


def _find(root: Path) -> Iterator[Found]:
    pattern = r"(?P<patient>Prostate(?P<kind>3T|Dx)-\d+-\d+)(?:_[^/]*)?\.nrrd"
    for path, groups in matches(root, pattern):
        yield Found(
            id=groups["patient"],
            patient=groups["patient"],
            site={"3T": "RUNMC", "Dx": "BMC"}[groups["kind"]],
            images={"t2w": _series(root, groups["patient"], path)},
            label=painted([(path, {1: 1, 2: 2})]),
        )


def _series(root: Path, patient: str, label: Path) -> Path:
    """The DICOM folder of that patient whose grid the label lies on."""
    wanted = read_image(label).grid
    for folder in sorted({file.parent for file in root.rglob(f"{patient}/**/*.dcm")}):
        try:
            grid = read_image(folder).grid
        except InputError:
            # Localizers and the like; the one that is looked for can be read.
            continue
        if grid.shape == wanted.shape and grid.same_as(wanted, tolerance_mm=1.0):
            return folder
    raise DatasetError(
        f"No DICOM series of '{patient}' lies on the grid of '{label.name}'.",
        "Download the patient's T2W series again.",
    )


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
    "2 central gland), and folders of those names with the DICOM series of TCIA below. The values "
    "and the names are from memory of the challenge; not tried on the download.",
    channels={"t2w": Channel("T2W")},
    labels={"peripheral zone": 1, "central gland": 2},
    find=_find,
)
