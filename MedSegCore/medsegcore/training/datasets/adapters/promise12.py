"""PROMISE12: the prostate in T2W of four hospitals, with and without an endorectal coil."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

# Numbers of the training cases of each hospital, as Liu et al. list them (MICCAI 2020, SAML).
SITES = {
    "RUNMC": range(13, 26), "UCL": [1, *range(26, 38)], "BIDMC": [0, *range(2, 13)],
    "HK": range(38, 50),
}  # fmt: skip


def _site(groups: dict[str, str]) -> str:
    number = int(groups["case"])
    return next((site for site, numbers in SITES.items() if number in numbers), "unknown")


PROMISE12 = Adapter(
    name="promise12",
    source=Source(
        "PROMISE12: prostate in T2W of four hospitals",
        "as stated at the download, not checked",
        False,
        "Litjens G, Toth R, van de Ven W, et al. Evaluation of prostate segmentation algorithms "
        "for MRI: the PROMISE12 challenge. Med Image Anal 18(2):359-373 (2014).",
        "https://zenodo.org/records/8026660",
    ),
    layout="Case00.mhd (with .raw) and Case00_segmentation.mhd to Case49, in any folder. As "
    "published at zenodo.org/records/8026660; not tried on the download.",
    channels={"t2w": Channel("T2W")},
    labels={"prostate": 1},
    find=by_label(
        r"Case(?P<case>\d+)_segmentation\.mhd",
        {"t2w": "Case{case}.mhd"},
        1,
        "promise12_{case}",
        site=_site,
    ),
)
