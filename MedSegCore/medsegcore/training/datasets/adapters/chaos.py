"""CHAOS: the liver in CT; liver, kidneys and spleen in MR of other people; DICOM and PNG."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medsegcore.errors import DatasetError
from medsegcore.imaging import Image, read_dicom_slices
from medsegcore.training.datasets.adapters.layout import Adapter, Found, ImageSource
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

# Gray values of a PNG, lowest and highest, by label value.
CT_RANGES = ((1, 255),)
MR_RANGES = ((55, 70), (110, 135), (175, 200), (240, 255))


def _sorted(folder: Path, ending: str) -> list[Path]:
    """Files in the order of the numbers in their names."""
    return sorted(
        folder.glob(f"*{ending}"),
        key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)],
    )


def _image(folder: Path) -> Image:
    return read_dicom_slices(_sorted(folder, ".dcm"))[0]


def _label(folder: Path, masks: Path, ranges: Sequence[tuple[int, int]]) -> Image:
    """The PNGs, one per slice in the order of the names, stacked as the slices are."""
    import SimpleITK as sitk

    slices, pictures = _sorted(folder, ".dcm"), _sorted(masks, ".png")
    if len(slices) != len(pictures):
        raise DatasetError(
            f"'{folder}' has {len(slices)} slices but '{masks}' has {len(pictures)} masks.",
            "Unpack the download again.",
        )
    image, order = read_dicom_slices(slices)
    gray = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(pictures[n]))) for n in order])
    label = np.zeros(image.shape, np.uint8)
    for value, (low, high) in enumerate(ranges, 1):
        label[(gray >= low) & (gray <= high)] = value
    if (label == 0).sum() != (gray == 0).sum():
        raise DatasetError(
            f"'{masks}' has gray values beside those of the organs.", "Unpack the download again."
        )
    return image.with_array(label)


def _case(
    name: str, patient: str, images: dict[str, Path], masks: Path, ranges: Sequence[tuple[int, int]]
) -> Found:
    read: dict[str, ImageSource] = {key: partial(_image, path) for key, path in images.items()}
    first = next(iter(images.values()))
    label: Callable[[], Image] = partial(_label, first, masks, ranges)
    return Found(name, patient, "chaos", read, label)


def _find_ct(root: Path) -> Iterator[Found]:
    for masks in sorted(root.rglob("CT/*/Ground")):
        name = f"ct_{masks.parent.name}"
        yield _case(name, name, {"ct": masks.parent / "DICOM_anon"}, masks, CT_RANGES)


def _find_mr(root: Path) -> Iterator[Found]:
    for masks in sorted(root.rglob("MR/*/*/Ground")):
        patient, folder = f"mr_{masks.parent.parent.name}", masks.parent / "DICOM_anon"
        if masks.parent.name == "T1DUAL":
            images = {"t1_in": folder / "InPhase", "t1_out": folder / "OutPhase"}
            yield _case(f"{patient}_t1", patient, images, masks, MR_RANGES)
        elif masks.parent.name == "T2SPIR":
            yield _case(f"{patient}_t2", patient, {"t2": folder}, masks, MR_RANGES)


SOURCE = Source(
    "CHAOS: organs of the abdomen in unpaired CT and MR",
    "CC BY-NC-SA 4.0",
    False,
    "Kavur AE, Gezer NS, Baris M, et al. CHAOS challenge: combined (CT-MR) healthy abdominal "
    "organ segmentation. Med Image Anal 69:101950 (2021). doi 10.5281/zenodo.3431873",
    "https://zenodo.org/records/3431873",
)
LAYOUT = (
    "CHAOS_Train_Sets.zip unpacked: Train_Sets/{}. As public code reads it, slices and masks in "
    "the order of the numbers in their names; not tried on the download."
)
CHAOS_CT = Adapter(
    name="chaos-ct",
    source=SOURCE,
    layout=LAYOUT.format("CT/1/DICOM_anon/*.dcm and CT/1/Ground/*.png"),
    channels={"ct": Channel("CT", "CT", "HU")},
    labels={"liver": 1},
    find=_find_ct,
)
CHAOS_MR = Adapter(
    name="chaos-mr",
    source=SOURCE,
    layout=LAYOUT.format(
        "MR/1/T1DUAL/DICOM_anon/InPhase, OutPhase and T1DUAL/Ground, MR/1/T2SPIR/DICOM_anon and "
        "T2SPIR/Ground"
    ),
    channels={
        "t1_in": Channel("T1 in phase", required=False),
        "t1_out": Channel("T1 out of phase", required=False),
        "t2": Channel("T2 SPIR", required=False),
    },
    labels={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
    find=_find_mr,
)
