"""The development data: a few patients of several public sets, by task.

Folders as described in the SOURCES.md beside them.
"""

from collections.abc import Iterator
from pathlib import Path

from medsegcore.training.datasets.adapters.brats import (
    BRATS_CHANNELS,
    BRATS_LABELS,
    BRATS_SOURCE,
)
from medsegcore.training.datasets.adapters.layout import Adapter, Found, by_label, matches
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import SOURCES, Source

PROSTATE = Source(
    "Prostate samples of PROSTATEx, PI-CAI and UCLA",
    "PROSTATEx images CC BY 3.0, its masks and PI-CAI CC BY-NC 4.0, UCLA CC BY 4.0",
    False,
    "Litjens G, et al. ProstateX Challenge data. TCIA 2017. doi 10.7937/K9TCIA.2017.MURS5CL | "
    "Saha A, Bosma JS, Twilt JJ, et al. Lancet Oncol 25:879-887 (2024) | Natarajan S, Priester A, "
    "Margolis D, Huang J, Marks L. Prostate-MRI-US-Biopsy. TCIA 2020. "
    "doi 10.7937/TCIA.2020.A61IOC1A",
    "",
)
MS = Source(
    "MS samples of open_ms and MSLesSeg",
    "CC BY, CC BY 4.0",
    True,
    f"{SOURCES['open_ms'].citation} | {SOURCES['mslesseg'].citation}",
    "",
)
SARCOMA = Source(
    "Soft-tissue sarcomas in unpaired CT, T1 and T2",
    "CC BY 3.0 (as recalled, not checked)",
    False,
    "Vallieres M, Freeman CR, Skamene SR, El Naqa I. Phys Med Biol 60(14):5471 (2015). "
    "doi 10.7937/K9/TCIA.2015.7GO2GSKS",
    "https://doi.org/10.7937/K9/TCIA.2015.7GO2GSKS",
)
CT_OR_MR = {"ct": "CT", "t1": "MR", "t2": "MR"}


def _same_names(*keys: str) -> dict[str, str]:
    return {key: f"{key}.nii.gz" for key in keys}


_find_zones = by_label(
    r"prostate/(?P<site>prostatex|picai)/(?P<case>(?P<patient>[^/_]+)[^/]*)/zones\.nii\.gz",
    _same_names("t2w", "adc"), None, "{site}_{case}", "{site}_{patient}", "{site}",
)  # fmt: skip


def _find_sarcoma(root: Path) -> Iterator[Found]:
    """Each image is a case of its own: its mask is drawn on it, and CT is not registered to MR."""
    pattern = r"sarcoma/sts/(?P<patient>STS_\d+)/tumor_on_(?P<key>ct|t1|t2)\.nii\.gz"
    for path, groups in matches(root, pattern):
        yield Found(
            id=f"{groups['patient']}_{groups['key']}",
            patient=groups["patient"],
            site="sts",
            images={groups["key"]: path.with_name(f"{groups['key']}.nii.gz")},
            label=path,
        )


SAMPLES = (
    Adapter(
        name="samples-ms",
        source=MS,
        layout="ms/open_ms/patient07/ and ms/mslesseg/P14_T2/ with t1, t2 (may be absent), flair "
        "and lesion .nii.gz. Tried on the data.",
        channels={"t1": Channel("T1"), "t2": Channel("T2", required=False),
                  "flair": Channel("FLAIR")},
        labels={"MS lesion": 1},
        find=by_label(
            r"ms/(?P<site>open_ms|mslesseg)/(?P<case>(?P<patient>[^/_]+)[^/]*)/lesion\.nii\.gz",
            _same_names("t1", "t2", "flair"), None, "{case}", "{patient}", "{site}",
        ),
    ),
    Adapter(
        name="samples-prostate-gland",
        source=PROSTATE,
        layout="prostate/prostatex, picai and ucla/<case>/ with t2w and prostate .nii.gz. Tried on "
        "the data.",
        channels={"t2w": Channel("T2W"),
                  "adc": Channel("ADC", units="1e-6 mm2/s", required=False)},
        labels={"prostate": 1},
        find=by_label(
            r"prostate/(?P<site>prostatex|picai|ucla)/(?P<case>(?P<patient>[^/_]+)[^/]*)/"
            r"prostate\.nii\.gz",
            _same_names("t2w", "adc"), None, "{site}_{case}", "{site}_{patient}", "{site}",
        ),
    ),
    Adapter(
        name="samples-prostate-zones",
        source=PROSTATE,
        layout="prostate/prostatex and picai/<case>/ with t2w, adc and zones .nii.gz (1 "
        "peripheral, 2 transition); cases without adc are left out. Tried on the data.",
        channels={"t2w": Channel("T2W"), "adc": Channel("ADC", units="1e-6 mm2/s")},
        labels={"peripheral zone": 1, "transition zone": 2},
        find=lambda root: (case for case in _find_zones(root) if "adc" in case.images),
    ),
    Adapter(
        name="samples-sarcoma",
        source=SARCOMA,
        layout="sarcoma/sts/STS_003/ with ct, t1, t2 and tumor_on_ct, tumor_on_t1, tumor_on_t2 "
        ".nii.gz. Tried on the data. The voxel size of 1 mm is a placeholder.",
        channels={key: Channel(key.upper(), "CT" if kind == "CT" else "MR", required=False)
                  for key, kind in CT_OR_MR.items()},
        labels={"sarcoma": 1},
        find=_find_sarcoma,
    ),
    Adapter(
        name="samples-glioma",
        source=BRATS_SOURCE,
        layout="glioma/brats_gli/BraTS-GLI-00000-000/ with t1, t1ce, t2, flair and seg .nii.gz. "
        "Tried on the data.",
        channels=BRATS_CHANNELS,
        labels=BRATS_LABELS,
        find=by_label(
            r"glioma/brats_gli/(?P<case>(?P<patient>BraTS-GLI-\d+)-\d+)/seg\.nii\.gz",
            _same_names("t1", "t1ce", "t2", "flair"), None, "{case}", "{patient}",
            "brats",
        ),
    ),
)  # fmt: skip
