"""Which of a patient's images is which input of a model: scored, explained, never twice."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medsegcore.imaging import Grid, fov_overlap
from medsegcore.models.contrasts import (
    NO_IMAGES,
    Contrast,
    contrast_of,
    contrast_of_key,
    contrast_of_timing,
    plain,
    without_native,
)
from medsegcore.models.schema import InputSpec, ModelDescription

# Nothing is proposed below this score.
MINIMUM = 0.3
# Another volume that comes as near as this makes a proposal ambiguous.
NEAR = 0.1
SCORE_DESCRIPTION, SCORE_NAME, SCORE_TIMING, SCORE_KNOWN = 0.9, 0.75, 0.4, 0.95
HIGH_B = 700.0  # s/mm2
# Share of the field of view that a volume has in common with the reference; less cannot be run.
LEAST_OVERLAP = 0.5
# Of volumes that fit equally, the one that lies where the reference lies.
PLACE_BONUS = 0.05


@dataclass(frozen=True)
class VolumeFacts:
    """What is known of a volume without looking at its voxels.

    Attributes:
        name: as the user sees it.
        description: DICOM SeriesDescription, "" when unknown; so are the following.
        modality: DICOM Modality, e.g. "MR".
        image_type: DICOM ImageType, e.g. ("DERIVED", "PRIMARY", "DIFFUSION", "ADC").
        b_value: s/mm2.
        echo_ms, repetition_ms, inversion_ms: TE, TR, TI.
        agent: DICOM ContrastBolusAgent.
        study: DICOM StudyInstanceUID; volumes of two studies are never mixed.
        plane: "axial", "sagittal" or "coronal" for thick slices, "" for (nearly) cubic voxels.
        grid: where it lies in the patient, None when unknown.
    """

    name: str
    description: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    b_value: float | None = None
    echo_ms: float | None = None
    repetition_ms: float | None = None
    inversion_ms: float | None = None
    agent: str = ""
    study: str = ""
    plane: str = ""
    grid: Grid | None = None


@dataclass(frozen=True)
class Score:
    """How well a volume fits an input.

    Attributes:
        value: 0 (it does not) to 1.
        source: what decided: "description", "name", "image_type", "timing", "b_value",
            "modality", "" when nothing speaks for it.
        word: the text or value that decided.
        kind: the contrast that was found, e.g. "flair"; "" when unknown.
        notes: what lowered the score: "derived", "plane", "b_value", "timing", "unclear",
            "excluded".
    """

    value: float
    source: str = ""
    word: str = ""
    kind: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """The proposal for one input.

    Attributes:
        index: of the volume, None when none fits.
        score: of that volume.
        alternatives: further volumes that fit, best first, with their scores.
        ambiguous: whether another volume, used for no other input, fits nearly as well.
    """

    index: int | None
    score: Score
    alternatives: list[tuple[int, Score]] = field(default_factory=list)
    ambiguous: bool = False


def score_input(spec: InputSpec, facts: VolumeFacts, plane: str = "") -> Score:
    """How well a volume fits an input.

    Args:
        plane: the slices' plane that the model wants, "" when it does not matter.
    """
    if facts.modality and facts.modality != spec.modality:
        return Score(0.0, "modality", facts.modality)
    wanted = contrast_of_key(spec.key, spec.title) if spec.modality == "MR" else ""
    from_type = _of_image_type(facts.image_type)
    if from_type.kind in NO_IMAGES or (wanted and from_type.kind not in ("", wanted)):
        return Score(0.0, "image_type", from_type.word, from_type.kind)
    found = _of_texts(spec, facts, wanted)
    if found.value == 0 and found.source:
        return found
    timing = contrast_of_timing(facts.echo_ms, facts.repetition_ms, facts.inversion_ms)
    if timing == "t1" and facts.agent:
        timing = "t1ce"
    if found.value == 0 and wanted:
        if from_type.kind == wanted:
            found = Score(SCORE_DESCRIPTION, "image_type", from_type.word, wanted)
        elif timing == wanted:
            found = Score(SCORE_TIMING, "timing", _timing_text(facts), wanted)
    if found.value == 0:
        return found
    return _weighed(found, facts, wanted, timing, plane)


def match_inputs(
    description: ModelDescription,
    volumes: Sequence[VolumeFacts],
    taken: Mapping[str, int] | None = None,
) -> dict[str, Match]:
    """The best assignment of volumes to inputs over all; each volume is used once at most.

    Inputs for which nothing fits get None, and all but one where the model takes one. Volumes of
    different studies, or that lie elsewhere than the reference, are not mixed.

    Args:
        taken: {input key: index of the volume} that stays, whether it fits or not; for models
            that take several inputs.
    """
    rows = {spec.key: row for row, spec in enumerate(description.inputs)}
    fixed = {rows[key]: n for key, n in (taken or {}).items()}
    plane = _wanted_plane(description)
    scores = [[score_input(spec, v, plane) for v in volumes] for spec in description.inputs]
    if description.one_of:
        options = _single(scores)
    else:
        options = _options(description, scores, volumes, fixed)
    assigned = (options[0][1] if options else {}) | fixed
    rivals = [found for total, found in options[1:] if total >= options[0][0] - NEAR]
    used = set(assigned.values())
    matches = {}
    for row, spec in enumerate(description.inputs):
        chosen = assigned.get(row)
        others = sorted(
            ((n, s) for n, s in enumerate(scores[row]) if n != chosen and s.value >= MINIMUM),
            key=lambda pair: -pair[1].value,
        )
        score = scores[row][chosen] if chosen is not None else Score(0.0)
        near = any(n not in used and s.value >= score.value - NEAR for n, s in others)
        rivalled = any(found.get(row, chosen) != chosen for found in rivals)
        rivalled = rivalled or (description.one_of and bool(rivals))
        ambiguous = chosen is not None and (near or rivalled or "unclear" in score.notes)
        matches[spec.key] = Match(chosen, score, others, ambiguous)
    return matches


def _options(
    description: ModelDescription,
    scores: list[list[Score]],
    volumes: Sequence[VolumeFacts],
    fixed: Mapping[int, int],
) -> list[tuple[float, dict[int, int]]]:
    """Assignments with the sums of their scores, best first.

    One for each volume that can be the reference and each study; without a reference, one for
    each study. Of equal ones the one that came first. `fixed` is in all of them.
    """
    row = next(n for n, s in enumerate(description.inputs) if s.key == description.reference)
    known = {volumes[n].study for n in fixed.values()} - {""} or {v.study for v in volumes} - {""}
    studies = sorted(known) or [""]
    anchors: list[int | None] = [
        n
        for n, s in enumerate(scores[row])
        if s.value >= MINIMUM and n not in fixed.values() and volumes[n].study in ("", *studies)
    ]
    if row in fixed:
        anchors = [fixed[row]]
    options = []
    for anchor in anchors or [None]:
        places = [_shared(volumes, anchor, n) for n in range(len(volumes))]
        for study in studies:
            allowed = [
                n
                for n, v in enumerate(volumes)
                if n in fixed.values() or (v.study in ("", study) and places[n] >= LEAST_OVERLAP)
            ]
            if anchor is not None and anchor not in allowed:
                continue
            wanted = dict(fixed) if anchor is None else {**fixed, row: anchor}
            options.append(_assign(description, scores, allowed, places, wanted))
    return sorted((o for o in options if o[1]), key=lambda option: -option[0])


def _single(scores: list[list[Score]]) -> list[tuple[float, dict[int, int]]]:
    """As `_options`, where the model takes one of its inputs: one volume for one of them."""
    found = [
        (score.value, {row: n})
        for row, of_input in enumerate(scores)
        for n, score in enumerate(of_input)
        if score.value >= MINIMUM
    ]
    return sorted(found, key=lambda option: -option[0])


def _shared(volumes: Sequence[VolumeFacts], anchor: int | None, n: int) -> float:
    """Share 0..1 of the fields of view that two volumes have in common; 1 when unknown."""
    if anchor is None or anchor == n:
        return 1.0
    a, b = volumes[anchor].grid, volumes[n].grid
    return 1.0 if a is None or b is None else fov_overlap(a, b)


def _assign(
    description: ModelDescription,
    scores: list[list[Score]],
    allowed: list[int],
    places: list[float],
    fixed: Mapping[int, int],
) -> tuple[float, dict[int, int]]:
    """The greatest sum of scores, and its {row of the input: volume}; `fixed` are among them."""
    from scipy.optimize import linear_sum_assignment

    if not allowed:
        return 0.0, {}
    values = np.array([[row[n].value for n in allowed] for row in scores])
    values[values < MINIMUM] = 0
    # Where both want the same volume, the input that cannot be missed gets it.
    weight = np.array([1.25 if spec.required else 1.0 for spec in description.inputs])
    gain = values * weight[:, None] + (values > 0) * PLACE_BONUS * np.array(places)[allowed]
    for row, n in fixed.items():
        gain[row, allowed.index(n)] = 10.0 * len(scores)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if values[r, c] > 0]
    total = sum(values[r, c] + PLACE_BONUS * places[allowed[c]] for r, c in pairs)
    return float(total), {int(r): allowed[int(c)] for r, c in pairs}


def _of_texts(spec: InputSpec, facts: VolumeFacts, wanted: str) -> Score:
    """By the series description; by the name where the description says nothing."""
    for source, text, weight in (
        ("description", facts.description, SCORE_DESCRIPTION),
        ("name", facts.name, SCORE_NAME),
    ):
        if not text:
            continue
        contrast = contrast_of(text)
        if contrast.kind == "t1" and facts.agent and source == "description":
            contrast = Contrast("t1ce", facts.agent)
        if contrast.kind in NO_IMAGES or (wanted and contrast.kind not in ("", wanted)):
            return Score(0.0, source, contrast.word, contrast.kind)
        excluded = _search(spec.match.exclude, text)
        if excluded:
            return Score(0.0, source, excluded, contrast.kind, ("excluded",))
        patterns = spec.match.series_description
        hit = _search(patterns if source == "description" else [*spec.match.names, *patterns], text)
        notes = () if contrast.clear else ("unclear",)
        factor = 1.0 if contrast.clear else 0.6
        if hit:
            return Score(weight * factor, source, hit, contrast.kind, notes)
        if wanted and contrast.kind == wanted:
            value = weight * SCORE_KNOWN * factor
            return Score(value, source, contrast.word, contrast.kind, notes)
    return Score(0.0)


def _search(patterns: Sequence[str], text: str) -> str:
    """What the first pattern that fits finds in the text, as written or with plain words."""
    words = plain(text)
    # Words about an absent contrast agent must not count as one.
    for pattern in patterns:
        for variant in (without_native(words), text if without_native(words) == words else ""):
            found = re.search(pattern, variant, re.IGNORECASE)
            if variant and found:
                return found.group()
    return ""


def _of_image_type(parts: Sequence[str]) -> Contrast:
    values = {part.upper().strip() for part in parts}
    for kind, marks in (
        ("localizer", {"LOCALIZER"}),
        ("derived", {"SUBTRACTION", "SUB", "PROJECTION IMAGE", "MIP", "MINIP", "MIN IP"}),
        ("phase", {"PHASE", "PHASE MAP", "P", "REAL", "IMAGINARY"}),
        ("tensor", {"FA", "TENSOR", "DIFFUSION_ANISO"}),
        ("map", {"EADC", "T1 MAP", "T2 MAP", "T2_STAR MAP"}),
        ("adc", {"ADC", "ADC_UNSPECIFIED"}),
        ("dwi", {"TRACEW", "CALC_BVALUE", "DIFFUSION"}),
    ):
        found = values & marks
        if found:
            return Contrast(kind, min(found))
    return Contrast("")


def _weighed(found: Score, facts: VolumeFacts, wanted: str, timing: str, plane: str) -> Score:
    """The score of what the texts say, with what the other facts say for and against it."""
    value, notes = found.value, list(found.notes)
    if timing and wanted in ("t1", "t1ce", "t2", "flair"):
        agrees = timing == wanted or {timing, wanted} == {"t1", "t1ce"}
        value = min(value + 0.08, 1.0) if agrees else value * 0.6
        notes += [] if agrees else ["timing"]
    if wanted == "dwi":
        b_values = contrast_of(facts.description or facts.name).b_values
        highest = facts.b_value if facts.b_value is not None else max(b_values, default=None)
        if highest is None or highest < HIGH_B or (facts.b_value is None and len(b_values) > 1):
            value *= 0.85 if highest is None else 0.5 if highest < 300 else 0.8
            notes.append("b_value")
    types = {part.upper() for part in facts.image_type}
    words = plain(facts.description or facts.name)
    remade = types & {"MPR", "REFORMATTED", "RESAMPLED", "CPR"} or re.search(
        r"\b(?:reformat\w*|recon|mpr (?:sag|cor|tra|ax)\w*$|derived|resampled)\b", words
    )
    if wanted != "adc" and remade:
        value *= 0.8
        notes.append("derived")
    seen = facts.plane or _plane_of(words)
    if plane and seen and seen != plane:
        value *= 0.8
        notes.append("plane")
    return Score(value, found.source, found.word, found.kind or wanted, tuple(notes))


def _plane_of(words: str) -> str:
    for plane, pattern in (
        ("axial", r"\b(?:ax\w*|tra\w*)\b"),
        ("sagittal", r"\bsag\w*\b"),
        ("coronal", r"\bcor\w*\b"),
    ):
        if re.search(pattern, words):
            return plane
    return ""


def _wanted_plane(description: ModelDescription) -> str:
    """Models that work on the slices as they were acquired want them in a certain plane."""
    grid = description.grid
    if grid.axes != "reference":
        return ""
    return {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}.get(
        grid.orientation[2], "axial"
    )


def _timing_text(facts: VolumeFacts) -> str:
    parts = [("TE", facts.echo_ms), ("TR", facts.repetition_ms), ("TI", facts.inversion_ms)]
    return ", ".join(f"{name} {value:g} ms" for name, value in parts if value)
