"""The development data: a few patients of several public sets, by task.

Folders as described in the SOURCES.md beside them.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from medsegcore.errors import DatasetError
from medsegcore.imaging import Image, read_image
from medsegcore.training.datasets.adapters.brats import (
    BRATS_CHANNELS,
    BRATS_LABELS,
    BRATS_SOURCE,
)
from medsegcore.training.datasets.adapters.layout import (
    Adapter,
    Found,
    ImageSource,
    by_label,
    matches,
)
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
    masks="The reference masks of the patients of PROSTATEx and PI-CAI are a published AI's, not "
    "drawn by hand.",
)
MS = Source(
    "MS samples of open_ms and MSLesSeg",
    "CC BY, CC BY 4.0",
    True,
    f"{SOURCES['open_ms'].citation} | {SOURCES['mslesseg'].citation}",
    "",
    skull_stripped=True,
)
SARCOMA = Source(
    "Soft-tissue sarcomas in unpaired CT, T1 and T2",
    "CC BY 3.0 (as recalled, not checked)",
    False,
    "Vallieres M, Freeman CR, Skamene SR, El Naqa I. Phys Med Biol 60(14):5471 (2015). "
    "doi 10.7937/K9/TCIA.2015.7GO2GSKS",
    "https://doi.org/10.7937/K9/TCIA.2015.7GO2GSKS",
)
# Air of a CT's darkest voxels, and muscle without contrast medium.
LOWEST_HU, MUSCLE_HU = -1024, 55
# Fat of -130 to -70 HU, as the ratio of the distances of both from the lowest value.
FAT_TO_MUSCLE = (0.82, 0.90)


def _same_names(*keys: str) -> dict[str, str]:
    return {key: f"{key}.nii.gz" for key in keys}


_find_zones = by_label(
    r"prostate/(?P<site>prostatex|picai)/(?P<case>(?P<patient>[^/_]+)[^/]*)/zones\.nii\.gz",
    _same_names("t2w", "adc"), None, "{site}_{case}", "{site}_{patient}", "{site}",
)  # fmt: skip


def _muscle_peak(gray: np.ndarray) -> float:
    """Where muscle lies in the histogram of a slice: the upper one of two peaks, the lower of
    which is fat; not a number where there is no such pair."""
    counts = gaussian_filter1d(np.bincount(gray.ravel(), minlength=256).astype(float), 1.0)
    counts[: len(counts) // 5] = 0
    peaks, _ = find_peaks(counts, height=0.15 * counts.max(), distance=6)
    pairs = [
        upper
        for lower, upper in itertools.combinations(peaks, 2)
        if FAT_TO_MUSCLE[0] < lower / upper < FAT_TO_MUSCLE[1]
    ]
    return float(pairs[0]) if pairs else math.nan


def in_hounsfield(path: Path) -> Image:
    """A CT of 8 bits, each slice of which is scaled by itself, put back to about HU.

    0 is taken for -1024 HU and the peak of muscle for 55 HU; a slice without one has the scale of
    the nearest that has. One gray level is 9 to 11 HU.

    Raises:
        DatasetError: no slice has the peaks of fat and muscle.
    """
    image = read_image(path)
    muscle = np.array([_muscle_peak(gray.astype(np.uint8)) for gray in image.array])
    known = np.flatnonzero(np.isfinite(muscle))
    if known.size == 0:
        raise DatasetError(
            f"No slice of '{path}' has the peaks of fat and muscle.", "Give a CT of 8 bits."
        )
    nearest = known[np.abs(np.arange(len(muscle))[:, None] - known).argmin(axis=1)]
    scale = (MUSCLE_HU - LOWEST_HU) / muscle[nearest]
    array = image.array.astype(np.float32) * scale[:, None, None] + LOWEST_HU
    return image.with_array(np.rint(array).astype(np.int16))


def _find_sarcoma(root: Path) -> Iterator[Found]:
    """Each image is a case of its own: its mask is drawn on it, and CT is not registered to MR."""
    pattern = r"sarcoma/sts/(?P<patient>STS_\d+)/tumor_on_(?P<key>ct|t1|t2)\.nii\.gz"
    for path, groups in matches(root, pattern):
        key, file = groups["key"], path.with_name(f"{groups['key']}.nii.gz")
        image: ImageSource = functools.partial(in_hounsfield, file) if key == "ct" else file
        yield Found(
            id=f"{groups['patient']}_{key}",
            patient=groups["patient"],
            site="sts",
            images={key: image},
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
        ".nii.gz. Tried on the data. The voxel size of 1 mm is a placeholder, and the HU of the CT "
        "are put back from 8 bits by fat and muscle.",
        channels={"ct": Channel("CT", "CT", "HU", required=False),
                  "t1": Channel("T1", required=False), "t2": Channel("T2", required=False)},
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
