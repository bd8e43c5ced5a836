"""What a name or a series description says about an image: its MR contrast, or that it is none.

Hospitals and public data sets call the same sequence by a hundred names; a model's own patterns
cannot know them all, and a plain search finds "T2" in "T2 FLAIR".
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# In this order: what comes first decides. Texts are `plain` ones: lower case, words and blanks.
_KINDS: tuple[tuple[str, str], ...] = (
    (
        "localizer",
        r"loc|localiz\w*|localis\w*|lokali\w*|scouts?|survey|3 ?plane|three plane|aahead\w*"
        r"|aascout|pilot|smartbrain|calib\w*|asset|b[01] ?map|field ?map\w*|gre ?field\w*"
        r"|screen ?save|phoenix\w*|secondary capture|key images?|presentation|dose\w*",
    ),
    (
        "mask",
        r"seg|segments?|segmentations?|mask|brainmask|label|labels|labelmap|roi|lesions?"
        r"|consensus|ground truth|probability|annotations?|prediction",
    ),
    ("derived", r"sub|subs|subtr\w*|minus|mip|minip|mips|projection"),
    (
        "perfusion",
        r"perf\w*|dsc|dce|asl|p?casl|twist|r?cbv|r?cbf|mtt|ttp|tmax|ktrans|dyn|dynamic\w*|wash\w*",
    ),
    ("angiography", r"tof|mra|angio\w*|venogra\w*|inhance|cemra"),
    ("functional", r"bold|r?s?fmri|rest|resting"),
    ("tensor", r"fa|col ?fa|cfa|fracanis\w*|tensor|dti|dtensor|trace map"),
    ("map", r"t[12] ?map\w*|molli|relax\w*|t1rho|qsm|e ?adc|exp ?adc|exponential\w*|snr|ivim\w*"),
    ("phase", r"pha|(?<!in )phase|real|imag|imaginary|inv ?[12]"),
    ("adc", r"[dcr]?adc\w*|apparent diff\w*|adcmap"),
    (
        "dwi",
        r"\w?dwi\w*|dw|diff\w*|trace\w*|hbv|b ?val\w*|calc ?b ?\d+|b ?\d{2,4}|ep2d b\w*"
        r"|resolve|zoomit",
    ),
    ("t2star", r"t2 ?star|t2 ?ffe|swi\w*|swan|susc\w*|hemo|haemo|medic|venobold|r2star"),
    ("dir", r"dir|double inv\w*|double ir"),
    ("flair", r"\w*flair\w*|dark ?fluid|fluid att\w*|tirm df|t2f"),
    ("stir", r"stir|tirm"),
    ("pd", r"pd|pdw|proton\w*"),
)
_T1 = re.compile(
    r"\b(?:s?t1(?:w|n|c|ce|gd|km|se|tse|fs)?\w*|mp2?rage\w*|mp ?rage|mpr|i?r? ?f?spgr\w*|bravo|tfe"
    r"|tfl|vibe|lava|flash)\b"
)
_T1_WORD = re.compile(r"\bs?t1\w*")
_T2 = re.compile(r"\b(?:s?t2(?!f)\w*)\b")
_T1_OR_T2 = re.compile(r"\bs?t[12]\w*")
_POST = re.compile(
    r"\b(?:gad\w*|gd|post\w*|contrast|postcontrast|ce|km|kontrast\w*|t1w?ce|t1c|t1gd|t1km|enhanced"
    r"|dotarem|magnevist|multihance|prohance|inj\w*|delayed)\b"
)
# "T1 pre gad" and "T1 w/o contrast" are what they say: no contrast agent.
_NATIVE = re.compile(
    r"\b(?:pre|without|w o|wo|non|no|ohne|sans|before|minus)\b ?"
    r"(?:gad\w*|gd|contrast|postcontrast|km|ce|enhanc\w*|inj\w*)\b|\bpre\b|\bnativ\w*|\bunenhanced\b"
    r"|\bnoncontrast\b"
)
_B_VALUES = re.compile(r"\bb(?:val(?:ue)?s?)? ?((?:\d{1,4})(?: \d{1,4})*)\b")
_COMPILED = tuple((kind, re.compile(rf"\b(?:{pattern})\b")) for kind, pattern in _KINDS)
NO_IMAGES = frozenset(
    (
        "localizer", "mask", "derived", "perfusion", "angiography", "functional", "tensor", "map",
        "phase",
    )
)  # fmt: skip
_KEYS = {
    "t1": "t1", "t1w": "t1", "t1n": "t1", "t1ce": "t1ce", "t1c": "t1ce", "t1gd": "t1ce",
    "t2": "t2", "t2w": "t2", "flair": "flair", "t2f": "flair", "adc": "adc", "dwi": "dwi",
    "hbv": "dwi", "pd": "pd", "swi": "t2star", "stir": "stir", "dir": "dir",
}  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """What a text says.

    Attributes:
        kind: "t1", "t1ce", "t2", "flair", "adc", "dwi", "t2star", "stir", "dir", "pd"; one of
            `NO_IMAGES`; "" when the text does not say.
        word: the part of the text that says so.
        clear: False when another part of the text says something else.
        b_values: of a diffusion image, s/mm2, as far as the text names them.
    """

    kind: str
    word: str = ""
    clear: bool = True
    b_values: tuple[int, ...] = ()


def plain(text: str) -> str:
    """Lower case, words and single blanks; signs that carry a meaning become words."""
    # In BIDS names "sub" is the subject, not a subtraction.
    text = re.sub(r"(?:^|(?<=[_\s/]))(?:sub|ses|run|acq|rec)-[A-Za-z0-9]+", " ", text)
    text = re.sub(r"(?<=[a-z])(?=ADC\b|FLAIR|DWI\b|T[12])", " ", text).lower()
    text = text.replace("t2*", "t2star ").replace("w/o", "without")
    text = re.sub(r"\+\s*(?:c|gd|km|ce|contrast|gad\w*)\b|\bc\+|\bw/\s*(?:c|gd)\b", " post ", text)
    # A double echo gives both contrasts.
    text = re.sub(r"\bpd\s*[/+&_-]?\s*t2w?\b", "pd", text)
    text = re.sub(r"\bmp-rage\b", "mprage", text)
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text).split())


def without_native(text: str) -> str:
    """A `plain` text without the words that say that no contrast agent was given."""
    return " ".join(_NATIVE.sub(" ", text).split())


@lru_cache(maxsize=4096)
def contrast_of(text: str) -> Contrast:
    """What a name, a series description or a title says about the image."""
    words = plain(text)
    for kind, pattern in _COMPILED:
        found = pattern.search(words)
        if found is None:
            continue
        if kind == "flair" and _T1_WORD.search(words) and not _T2.search(words):
            # GE's "T1 FLAIR": inversion recovery with T1 contrast.
            continue
        if kind == "dwi":
            return Contrast(kind, found.group(), b_values=_b_values(words))
        return Contrast(kind, found.group())
    t1, t2 = _T1.search(words), _T2.search(words)
    if t1 is None and t2 is None:
        return Contrast("")
    if t1 is not None and (t2 is None or not _T1_OR_T2.search(words)):
        return _t1(words, t1.group(), True)
    if t2 is not None and t1 is None:
        return Contrast("t2", t2.group())
    # "P14_T2_t1" is the T1 of the second time point: what comes last is nearer to the image.
    last = _T1_OR_T2.findall(words)[-1]
    return _t1(words, last, False) if "t1" in last else Contrast("t2", last, clear=False)


def _t1(words: str, word: str, clear: bool) -> Contrast:
    post = _POST.search(without_native(words))
    return Contrast("t1ce", post.group(), clear) if post else Contrast("t1", word, clear)


def _b_values(words: str) -> tuple[int, ...]:
    numbers = [int(n) for group in _B_VALUES.findall(words) for n in group.split()]
    return tuple(sorted({n for n in numbers if n <= 5000}))


def contrast_of_key(key: str, title: str) -> str:
    """The contrast that a model's input wants, "" when neither key nor title says it."""
    kind = _KEYS.get(key) or contrast_of(title).kind
    return "" if kind in NO_IMAGES else kind


def contrast_of_timing(
    echo_ms: float | None, repetition_ms: float | None, inversion_ms: float | None
) -> str:
    """ "t1", "t2" or "flair" when echo, repetition and inversion time (ms) leave no doubt."""
    if echo_ms is None or repetition_ms is None:
        return ""
    if inversion_ms and 1400 <= inversion_ms <= 3200 and repetition_ms >= 4000:
        return "flair"
    if echo_ms >= 60 and repetition_ms >= 1800 and not inversion_ms:
        return "t2"
    if echo_ms <= 25 and (repetition_ms <= 1000 or (inversion_ms and 500 <= inversion_ms <= 1300)):
        return "t1"
    return ""
