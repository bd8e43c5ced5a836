"""PI-CAI: clinically significant prostate cancer in T2W, ADC and high-b DWI of three centres."""

import csv
from collections.abc import Iterator
from pathlib import Path

from medsegcore.training.datasets.adapters.layout import Adapter, Found, matches, painted
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import Source

FOLDERS = "resampled|Pooch25"
# ISUP grade 2 and above is clinically significant; grade 1 is not marked.
SIGNIFICANT = {1: 0, 2: 1, 3: 1, 4: 1, 5: 1}


def _centers(root: Path) -> dict[tuple[str, str], str]:
    """Centre by patient and study, from the clinical table of picai_labels."""
    found = {}
    for table in root.rglob("clinical_information/marksheet.csv"):
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found[row["patient_id"], row["study_id"]] = row.get("center") or "PI-CAI"
    return found


def _find(root: Path) -> Iterator[Found]:
    images: dict[str, dict[str, Path]] = {}
    for path, groups in matches(root, r"(?P<case>\d+_\d+)_(?P<key>t2w|adc|hbv)\.mha"):
        key = {"hbv": "dwi"}.get(groups["key"], groups["key"])
        images.setdefault(groups["case"], {})[key] = path
    centers = _centers(root)
    pattern = rf"human_expert/(?:{FOLDERS})/(?P<patient>\d+)_(?P<study>\d+)\.nii\.gz"
    for path, groups in matches(root, pattern):
        case = f"{groups['patient']}_{groups['study']}"
        if case in images:
            yield Found(
                id=case,
                patient=groups["patient"],
                site=centers.get((groups["patient"], groups["study"]), "PI-CAI"),
                images=dict(images[case]),
                label=painted([(path, SIGNIFICANT)]),
            )


PICAI = Adapter(
    name="picai",
    source=Source(
        "PI-CAI: clinically significant prostate cancer in biparametric MRI of three centres",
        "CC BY-NC 4.0",
        False,
        "Saha A, Bosma JS, Twilt JJ, et al. Artificial intelligence and radiologists in prostate "
        "cancer detection on MRI (PI-CAI). Lancet Oncol 25:879-887 (2024).",
        "https://zenodo.org/records/6624726 and https://github.com/DIAGNijmegen/picai_labels",
    ),
    layout="The images as <patient>/<patient>_<study>_t2w.mha, _adc.mha and _hbv.mha in any "
    "folder, and beside them picai_labels with csPCa_lesion_delineations/human_expert/resampled "
    "(or Pooch25) and clinical_information/marksheet.csv. As picai_prep reads it; not tried on "
    "the whole download.",
    channels={
        "t2w": Channel("T2W"),
        "adc": Channel("ADC", units="1e-6 mm2/s"),
        "dwi": Channel("HBV", required=False),
    },
    labels={"prostate cancer": 1},
    find=_find,
)
