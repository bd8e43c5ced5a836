"""ISBI 2015: MS lesions of five patients at four or five visits, marked by two raters."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

FILE = "../preprocessed/{case}_{name}_pp.nii|../preprocessed/{case}_{name}_pp.nii.gz"


def _file(name: str) -> str:
    return FILE.replace("{name}", name)


ISBI2015_MS = Adapter(
    name="isbi2015-ms",
    source=Source(
        "ISBI 2015 longitudinal MS lesions, first rater",
        "research use with registration",
        False,
        "Carass A, Roy S, Jog A, et al. Longitudinal multiple sclerosis lesion segmentation: "
        "resource and challenge. NeuroImage 148:77-102 (2017).",
        "https://smart-stats-tools.org/lesion-challenge",
    ),
    layout="training/training01/preprocessed/training01_01_flair_pp.nii (mprage, t2, pd beside "
    "it) and training/training01/masks/training01_01_mask1.nii. The second rater's mask2 is not "
    "used. As public code reads it; not tried on the download.",
    channels={"t1": Channel("T1"), "t2": Channel("T2"), "flair": Channel("FLAIR"),
              "pd": Channel("PD")},
    labels={"MS lesion": 1},
    find=by_label(
        r"masks/(?P<case>(?P<patient>training\d+)_\d+)_mask1\.nii(?:\.gz)?",
        {"t1": _file("mprage"), "t2": _file("t2"), "flair": _file("flair"), "pd": _file("pd")},
        1,
        "{case}",
        "{patient}",
        "isbi2015",
    ),
)  # fmt: skip
