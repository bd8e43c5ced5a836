"""I2CVB: the prostate in T2W of one hospital, on a 1.5 T GE and a 3 T Siemens scanner."""

from collections.abc import Iterator
from pathlib import Path

from medsegcore.training.datasets.adapters.layout import Adapter, Found, painted
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source


def _find(root: Path) -> Iterator[Found]:
    for mask in sorted(root.rglob("GT/prostate")):
        patient = mask.parent.parent
        if not (patient / "T2W").is_dir():
            continue
        number = patient.name.replace(" ", "_").removeprefix("Patient_")
        yield Found(
            id=f"{patient.parent.name}_{number}",
            patient=f"{patient.parent.name}_{number}",
            site=patient.parent.name,
            images={"t2w": patient / "T2W"},
            label=painted([(mask, 1)]),
        )


I2CVB = Adapter(
    name="i2cvb",
    source=Source(
        "I2CVB: multiparametric prostate MRI of one hospital on two scanners",
        "as stated at the download, not checked",
        False,
        "Lemaitre G, Marti R, Freixenet J, Vilanova JC, Walker PM, Meriaudeau F. Computer-aided "
        "detection and diagnosis for prostate cancer based on mono and multi-parametric MRI: a "
        "review. Comput Biol Med 60:8-31 (2015).",
        "https://i2cvb.github.io",
    ),
    layout="GE/Patient */ and Siemens/Patient */, each with T2W/ and GT/prostate/ as DICOM. As "
    "public code reads it; not tried on the download. The authors' own code turned the order of "
    "the masks' slices round for some time: look at the pictures of 'medseg dataset check'.",
    channels={"t2w": Channel("T2W")},
    labels={"prostate": 1},
    find=_find,
)
