"""Who made the public data sets, and what their licences allow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One public data set.

    Attributes:
        license: as its publisher calls it; "not stated" when nothing was found.
        commercial_use: whether that licence clearly allows it.
        url: where it is to be had.
        skull_stripped: whether its images show the brain alone.
        masks: a sentence on the reference masks, where no human drew them.
    """

    title: str
    license: str
    commercial_use: bool
    citation: str
    url: str
    skull_stripped: bool = False
    masks: str = ""


# By the name of the folder above the cases, which is also the site's name.
SOURCES = {
    "open_ms": Source(
        "open_ms: MS patients, consensus of three raters",
        "CC BY",
        True,
        "Lesjak Z, Pernus F, Likar B, Spiclin Z. A novel public MR image dataset of multiple "
        "sclerosis patients with lesion segmentations based on multi-rater consensus. "
        "Neuroinformatics 2017. doi 10.1007/s12021-017-9348-7",
        "https://github.com/muschellij2/open_ms_data",
        skull_stripped=True,
    ),
    "mslesseg": Source(
        "MSLesSeg: MS patients at several time points",
        "CC BY 4.0",
        True,
        "Guarnera F, Rondinella A, Crispino E, et al. MSLesSeg. Sci Data 12, 920 (2025). "
        "doi 10.1038/s41597-025-05250-y",
        "https://springernature.figshare.com/articles/dataset/27919209",
        skull_stripped=True,
    ),
}


def combined_terms(names: list[str]) -> tuple[str, bool, str]:
    """(licence, whether commercial use is allowed, citation) of these sources together.

    One source that is not known makes the licence "not stated", which allows nothing.
    """
    found = [SOURCES[name] for name in sorted(set(names)) if name in SOURCES]
    citation = " | ".join(source.citation for source in found) or "not stated"
    if not found or len(found) < len(set(names)):
        return "not stated", False, citation
    licenses = ", ".join(dict.fromkeys(source.license for source in found))
    return licenses, all(source.commercial_use for source in found), citation
