"""Colours and SNOMED CT codes for the labels of data sets that say no more than a name."""

from medsegcore.models import Code, Terminology

# Okabe and Ito's, which people with colour blindness tell apart.
COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
ALTERED = Code(scheme="SCT", value="49755003", meaning="Morphologically Altered Structure")
ANATOMY = Code(scheme="SCT", value="123037004", meaning="Anatomical Structure")
RIGHT = Code(scheme="SCT", value="24028007", meaning="Right")
LEFT = Code(scheme="SCT", value="7771000", meaning="Left")


def _term(category: Code, value: str, meaning: str, modifier: Code | None = None) -> Terminology:
    code = Code(scheme="SCT", value=value, meaning=meaning)
    return Terminology(category=category, type=code, modifier=modifier)


TUMOR = _term(ALTERED, "108369006", "Neoplasm")
KIDNEY = ("64033007", "Kidney")
# By `plain_name`.
TERMINOLOGY = {
    "lesion": _term(ALTERED, "52988006", "Lesion"),
    "ms lesion": _term(ALTERED, "52988006", "Lesion"),
    "edema": _term(ALTERED, "79654002", "Edema"),
    "oedema": _term(ALTERED, "79654002", "Edema"),
    "necrosis": _term(ALTERED, "6574001", "Necrosis"),
    "tumor": TUMOR,
    "tumour": TUMOR,
    "cancer": TUMOR,
    "prostate": _term(ANATOMY, "41216001", "Prostate"),
    "peripheral zone": _term(ANATOMY, "279706003", "Peripheral zone of the prostate"),
    "transition zone": _term(ANATOMY, "399384005", "Transition zone of the prostate"),
    "spleen": _term(ANATOMY, "78961009", "Spleen"),
    "liver": _term(ANATOMY, "10200004", "Liver"),
    "gallbladder": _term(ANATOMY, "28231008", "Gallbladder"),
    "stomach": _term(ANATOMY, "69695003", "Stomach"),
    "pancreas": _term(ANATOMY, "15776009", "Pancreas"),
    "kidney": _term(ANATOMY, *KIDNEY),
    "right kidney": _term(ANATOMY, *KIDNEY, RIGHT),
    "left kidney": _term(ANATOMY, *KIDNEY, LEFT),
    "kidney right": _term(ANATOMY, *KIDNEY, RIGHT),
    "kidney left": _term(ANATOMY, *KIDNEY, LEFT),
}
# Everybody has one: what else a network answers elsewhere is an error.
ONE_PIECE = {"prostate", "prostate gland"}
