"""BTCV: thirteen organs of the abdomen in CT ("Beyond the Cranial Vault")."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
    "aorta", "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland",
    "left adrenal gland",
)  # fmt: skip

BTCV = Adapter(
    name="btcv",
    source=Source(
        "BTCV: thirteen organs of the abdomen in portal venous CT",
        "Synapse's terms, with registration",
        False,
        "Landman B, Xu Z, Igelsias JE, Styner M, Langerak TR, Klein A. Multi-atlas labeling beyond "
        "the cranial vault: workshop and challenge. MICCAI 2015. doi 10.7303/syn3193805",
        "https://www.synapse.org/Synapse:syn3193805",
    ),
    layout="RawData/Training/img/img0001.nii.gz and RawData/Training/label/label0001.nii.gz. As "
    "public code reads it; not tried on the download.",
    channels={"ct": Channel("CT", "CT", "HU")},
    labels={name: n for n, name in enumerate(ORGANS, 1)},
    find=by_label(
        r"label/label(?P<case>\d+)\.nii\.gz",
        {"ct": "../img/img{case}.nii.gz"},
        {n: n for n in range(1, len(ORGANS) + 1)},
        "btcv_{case}",
        site="btcv",
    ),
)
