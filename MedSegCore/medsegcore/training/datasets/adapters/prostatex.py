"""PROSTATEx with the masks of Cuocolo et al.: zones on T2W, lesions on T2W with ADC."""

import re
from collections.abc import Iterator
from pathlib import Path

from medsegcore.training.datasets.adapters.layout import Adapter, Found, matches, painted
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

SOURCE = Source(
    "PROSTATEx with masks of the zones and of 299 lesions",
    "images CC BY 3.0; masks not stated",
    False,
    "Litjens G, Debats O, Barentsz J, Karssemeijer N, Huisman H. ProstateX Challenge data. TCIA "
    "2017. doi 10.7937/K9TCIA.2017.MURS5CL. Cuocolo R, Stanzione A, Castaldo A, De Lucia DR, "
    "Imbriaco M. Quality control and whole-gland, zonal and lesion annotations for the PROSTATEx "
    "challenge public dataset. Eur J Radiol 138:109647 (2021).",
    "https://github.com/rcuocolo/PROSTATEx_masks",
)


def _numbered(folder: Path) -> dict[int, Path]:
    """Files by patient number: a few are called "ProstateX-080" or "VOLUME-0202_pz"."""
    files = {}
    for file in sorted(folder.glob("*.nii.gz")):
        number = re.search(r"\d+", file.name)
        if number is not None:
            files[int(number.group())] = file
    return files


def _find_zones(root: Path) -> Iterator[Found]:
    for folder in sorted(root.rglob("mask_pz")):
        transition = _numbered(folder.parent / "mask_tz")
        images = _numbered(folder.parent / "Images")
        for number, peripheral in _numbered(folder).items():
            if number in transition and number in images:
                parts = [(transition[number], 2), (peripheral, 1)]
                yield _case(number, {"t2w": images[number]}, parts)


def _find_lesions(root: Path) -> Iterator[Found]:
    findings: dict[int, list[Path]] = {}
    for path, groups in matches(root, r"lesions/Masks/T2/ProstateX-(?P<n>\d+)[^/]*\.nii\.gz"):
        findings.setdefault(int(groups["n"]), []).append(path)
    for number, masks in findings.items():
        folder = masks[0].parents[2] / "Images"
        series = {key: _numbered(folder / name) for key, name in (("t2w", "T2"), ("adc", "ADC"))}
        images = {key: files[number] for key, files in series.items() if number in files}
        if "t2w" in images:
            yield _case(number, images, [(mask, 1) for mask in masks])


def _case(number: int, images: dict[str, Path], parts: list[tuple[Path, int]]) -> Found:
    name = f"ProstateX-{number:04}"
    return Found(name, name, "prostatex", dict(images), painted(parts))


LAYOUT = (
    "A checkout of github.com/rcuocolo/PROSTATEx_masks, which holds the T2W and ADC images "
    "beside the masks: Files/{}. Names as listed there; not tried on all files."
)
PROSTATEX_ZONES = Adapter(
    name="prostatex-zones",
    source=SOURCE,
    layout=LAYOUT.format("prostate/Images, mask_pz and mask_tz"),
    channels={"t2w": Channel("T2W")},
    labels={"peripheral zone": 1, "transition zone": 2},
    find=_find_zones,
)
PROSTATEX_LESIONS = Adapter(
    name="prostatex-lesions",
    source=SOURCE,
    layout=LAYOUT.format("lesions/Images/T2 and ADC, lesions/Masks/T2"),
    channels={
        "t2w": Channel("T2W"),
        "adc": Channel("ADC", units="1e-6 mm2/s", required=False),
    },
    labels={"prostate lesion": 1},
    find=_find_lesions,
)
