"""Names of labels: which of them mean the same, however a data set writes them."""

import re

_SAME = {
    "gland": "prostate", "prostate gland": "prostate", "whole prostate": "prostate",
    "pz": "peripheral zone", "peripheral": "peripheral zone",
    "tz": "transition zone", "transitional zone": "transition zone", "cg": "transition zone",
    "central gland": "transition zone", "gall bladder": "gallbladder",
    "kidney right": "right kidney", "kidney left": "left kidney",
}  # fmt: skip


def plain_name(name: str) -> str:
    """Lower case, with blanks for whatever is neither letter nor digit."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def standard_name(name: str) -> str:
    """The plain name, the same for all names of one thing: "PZ" becomes "peripheral zone"."""
    plain = plain_name(name)
    return re.sub(r"^tumou?rs?( on \w+)?$", "tumour", _SAME.get(plain, plain))
