"""Six sites of prostate T2W, collected by Liu et al. from NCI-ISBI 2013, I2CVB and PROMISE12."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

SIX_SITE = Adapter(
    name="six-site-prostate",
    source=Source(
        "Multi-site data set for prostate MRI segmentation (SAML), six sites",
        "not stated",
        False,
        "Liu Q, Dou Q, Heng PA. Shape-aware meta-learning for generalizing prostate MRI "
        "segmentation to unseen domains. MICCAI 2020. Liu Q, Dou Q, Yu L, Heng PA. MS-Net: "
        "multi-site network for improving prostate segmentation with heterogeneous MRI data. "
        "IEEE TMI 39(9):2713-2724 (2020).",
        "https://liuquande.github.io/SAML/",
    ),
    layout="Folders RUNMC, BMC, I2CVB, UCL, BIDMC and HK with Case00.nii.gz and "
    "Case00_segmentation.nii.gz (BMC: _Segmentation); values 1 and 2 are both prostate. As "
    "public code reads it; not tried on the download.",
    channels={"t2w": Channel("T2W")},
    labels={"prostate": 1},
    find=by_label(
        r"(?P<site>RUNMC|BMC|I2CVB|UCL|BIDMC|HK)/Case(?P<case>\d+)_[Ss]egmentation\.nii\.gz",
        {"t2w": "Case{case}.nii.gz"},
        {1: 1, 2: 1},
        "{site}_{case}",
        site="{site}",
    ),
)
