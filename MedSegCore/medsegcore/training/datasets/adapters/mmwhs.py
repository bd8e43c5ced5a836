"""MM-WHS 2017: seven structures of the heart in CT and, of other patients, in MR."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

# One CT mask holds single voxels of 421 beside 420.
VALUES = {205: 1, 420: 2, 421: 2, 500: 3, 550: 4, 600: 5, 820: 6, 850: 7}

MMWHS = Adapter(
    name="mmwhs",
    source=Source(
        "MM-WHS 2017: seven structures of the heart, unpaired CT and MR",
        "research use with registration",
        False,
        "Zhuang X, Li L, Payer C, et al. Evaluation of algorithms for multi-modality whole heart "
        "segmentation. Med Image Anal 58:101537 (2019). Zhuang X, Shen J. Multi-scale patch and "
        "multi-modality atlases for whole heart segmentation of MRI. Med Image Anal 31:77-87 "
        "(2016).",
        "https://zmiclab.github.io/zxh/0/mmwhs/",
    ),
    layout="ct_train/ct_train_1001_image.nii.gz and _label.nii.gz, mr_train/mr_train_1001_* the "
    "same (.nii too). As public code reads it; not tried on the download.",
    channels={
        "ct": Channel("CT", "CT", "HU", required=False),
        "mr": Channel("MR", required=False),
    },
    labels={
        "myocardium": 1, "left atrium": 2, "left ventricle": 3, "right atrium": 4,
        "right ventricle": 5, "ascending aorta": 6, "pulmonary artery": 7,
    },
    find=by_label(
        r"(?P<kind>ct|mr)_train_(?P<case>\d+)_label\.(?P<ending>nii(?:\.gz)?)",
        {"ct": "ct_train_{case}_image.{ending}", "mr": "mr_train_{case}_image.{ending}"},
        VALUES,
        "{kind}_{case}",
        site="{kind}",
    ),
)  # fmt: skip
