"""BraTS: gliomas in T1, contrast-enhanced T1, T2 and FLAIR, skull-stripped at 1 mm."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

BRATS_SOURCE = Source(
    "BraTS: gliomas in four MR contrasts",
    "BraTS's terms: research use with citation",
    False,
    "Baid U, Ghodasara S, Mohan S, et al. The RSNA-ASNR-MICCAI BraTS 2021 benchmark. "
    "arXiv:2107.02314. Menze BH, Jakab A, Bauer S, et al. The multimodal brain tumor image "
    "segmentation benchmark. IEEE TMI 34(10):1993-2024 (2015). Bakas S, Akbari H, Sotiras A, "
    "et al. Sci Data 4:170117 (2017).",
    "https://www.synapse.org/brats",
    skull_stripped=True,
)
BRATS_CHANNELS = {
    "t1": Channel("T1"), "t1ce": Channel("T1 Gd"), "t2": Channel("T2"), "flair": Channel("FLAIR"),
}  # fmt: skip
BRATS_LABELS = {"necrotic core": 1, "oedema": 2, "enhancing tumour": 3}

BRATS = Adapter(
    name="brats",
    source=BRATS_SOURCE,
    layout="2023 and later: BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz (-t1c, -t2w, -t2f, "
    "-seg). 2021: BraTS2021_00000/BraTS2021_00000_t1.nii.gz (_t1ce, _t2, _flair, _seg; the "
    "enhancing tumour is 4). As published; not tried on the whole download.",
    channels=BRATS_CHANNELS,
    labels=BRATS_LABELS,
    find=by_label(
        r"(?P<case>(?P<patient>BraTS(?:-GLI-\d+|2021_\d+))(?:-\d+)?)[-_]seg\.nii\.gz",
        {
            "t1": "{case}-t1n.nii.gz|{case}_t1.nii.gz",
            "t1ce": "{case}-t1c.nii.gz|{case}_t1ce.nii.gz",
            "t2": "{case}-t2w.nii.gz|{case}_t2.nii.gz",
            "flair": "{case}-t2f.nii.gz|{case}_flair.nii.gz",
        },
        {1: 1, 2: 2, 3: 3, 4: 3},
        "{case}",
        "{patient}",
        "brats",
    ),
)
