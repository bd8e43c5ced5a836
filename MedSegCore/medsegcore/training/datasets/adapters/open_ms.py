"""open_ms: MS lesions of 30 patients of one hospital, consensus of three raters."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import SOURCES

OPEN_MS = Adapter(
    name="open-ms",
    source=SOURCES["open_ms"],
    layout="A checkout of github.com/muschellij2/open_ms_data: cross_sectional/"
    "coregistered_resampled/patient01/FLAIR.nii.gz (T1W, T2W, T1WKS, consensus_gt beside it). "
    "Names as listed there; with skull; not tried on all files.",
    channels={
        "t1": Channel("T1"), "t2": Channel("T2"), "flair": Channel("FLAIR"),
        "t1ce": Channel("T1 Gd", required=False),
    },
    labels={"MS lesion": 1},
    find=by_label(
        r"cross_sectional/coregistered_resampled/(?P<case>patient\d+)/consensus_gt\.nii\.gz",
        {
            "t1": "T1W.nii.gz", "t2": "T2W.nii.gz", "flair": "FLAIR.nii.gz",
            "t1ce": "T1WKS.nii.gz",
        },
        1,
        "{case}",
        site="open_ms",
    ),
)  # fmt: skip
