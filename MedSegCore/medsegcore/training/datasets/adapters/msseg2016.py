"""MSSEG 2016: MS lesions of three hospitals and four scanners, consensus of seven raters."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

FOLDER = "../Preprocessed_Data/"

MSSEG2016 = Adapter(
    name="msseg2016",
    source=Source(
        "MSSEG 2016: MS lesions, consensus of seven raters",
        "data use agreement of Shanoir",
        False,
        "Commowick O, Kain M, Casey R, et al. Multiple sclerosis lesions segmentation from "
        "multiple experts: the MICCAI 2016 challenge dataset. NeuroImage 244:118589 (2021).",
        "https://shanoir.irisa.fr (MSSEG-1)",
    ),
    layout="Training/Center_01/<patient>/Preprocessed_Data/FLAIR_preprocessed.nii.gz (T1, T2, DP "
    "and GADO beside it) and Masks/Consensus.nii.gz; Testing the same. As public code reads it; "
    "not tried on the download.",
    channels={
        "t1": Channel("T1"), "t2": Channel("T2"), "flair": Channel("FLAIR"),
        "pd": Channel("PD", required=False), "t1ce": Channel("T1 Gd", required=False),
    },
    labels={"MS lesion": 1},
    find=by_label(
        r"Center_(?P<site>\w+)/(?P<case>[^/]+)/Masks/Consensus\.nii\.gz",
        {
            "t1": FOLDER + "T1_preprocessed.nii.gz",
            "t2": FOLDER + "T2_preprocessed.nii.gz",
            "flair": FOLDER + "FLAIR_preprocessed.nii.gz",
            "pd": FOLDER + "DP_preprocessed.nii.gz",
            "t1ce": FOLDER + "GADO_preprocessed.nii.gz",
        },
        1,
        "{site}_{case}",
        site="Center_{site}",
    ),
)  # fmt: skip
