"""Proposes a volume of the scene for each input of a model, and says why and how sure."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import slicer

from medsegcore.imaging import Grid
from medsegcore.models import (
    Match,
    ModelDescription,
    Score,
    VolumeFacts,
    match_inputs,
    score_input,
)

from .InputRegistration import FROM
from .ResultToScene import ROLE
from .SceneConversion import localAffine, parentToWorld
from .Translation import _

INSTANCE_UIDS = "DICOM.instanceUIDs"
TAGS = {
    "description": "0008,103e",
    "protocol": "0018,1030",
    "modality": "0008,0060",
    "image_type": "0008,0008",
    "study": "0020,000d",
    "echo": "0018,0081",
    "repetition": "0018,0080",
    "inversion": "0018,0082",
    "agent": "0018,0010",
}
# The standard's, Siemens's, GE's and Philips's place for the b-value.
B_VALUE_TAGS = ("0018,9087", "0019,100c", "0043,1039", "2001,1003")
# GE adds a billion to mark how it was acquired.
GE_OFFSET = 1_000_000_000
# Slices this much thicker than their pixels are wide have a plane.
THICK = 1.8


class TagReader(Protocol):
    """Reads DICOM headers of instances that are known by their UID."""

    def value(self, instanceUid: str, tag: str) -> str:
        """The value of a tag such as "0008,103e", "" when it is not there."""
        ...


class DatabaseTags:
    """`TagReader` on the application's DICOM database."""

    def __init__(self, database) -> None:
        self._database = database

    def value(self, instanceUid: str, tag: str) -> str:
        """See `TagReader`; what the database cannot read is not there."""
        with contextlib.suppress(Exception):
            return str(self._database.instanceValue(instanceUid, tag) or "").strip()
        return ""


def applicationTags() -> DatabaseTags | None:
    """The tags of the application's DICOM database, None where there is none open."""
    database = getattr(slicer, "dicomDatabase", None)
    if database is None or not getattr(database, "isOpen", False):
        return None
    return DatabaseTags(database)


@dataclass(frozen=True)
class Candidate:
    """A volume that fits an input: its node, 0..1 how well, and a sentence why."""

    node: Any
    score: float
    why: str


@dataclass(frozen=True)
class Proposal:
    """What is proposed for one input.

    Attributes:
        key: of the input.
        node: the volume node, None when nothing fits.
        score: 0..1.
        why: a sentence for the user; also when nothing fits.
        alternatives: other volumes that fit, best first.
        ambiguous: another volume fits nearly as well: the user should look.
    """

    key: str
    node: Any
    score: float
    why: str
    alternatives: list[Candidate] = field(default_factory=list)
    ambiguous: bool = False


class InputMatcher:
    """Finds the volumes of a scene that belong to a model's inputs.

    Args:
        scene: MRML scene.
        tags: DICOM headers; the application's database when None.
    """

    def __init__(self, scene, tags: TagReader | None = None) -> None:
        self._scene = scene
        self._tags = tags
        # Headers do not change, and reading them from the database takes milliseconds each.
        self._headers: dict[str, dict[str, Any]] = {}

    def candidates(self) -> list:
        """The scene's gray-scale volumes that a user can choose, in its order.

        No label maps, no hidden nodes, nothing that an earlier run or a registration has made.
        """
        found = []
        for n in range(self._scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
            node = self._scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
            if node.IsA("vtkMRMLLabelMapVolumeNode") or node.GetHideFromEditors():
                continue
            made = node.GetAttribute(ROLE) or node.GetNodeReferenceID(FROM)
            if made or node.GetImageData() is None:
                continue
            found.append(node)
        return found

    def match(
        self, description: ModelDescription, taken: Mapping[str, Any] | None = None
    ) -> dict[str, Proposal]:
        """The best proposal for each input of a model, by key; no volume is used twice.

        Args:
            description: the model.
            taken: {input key: node} that stays with its input, for models that take several.
        """
        nodes = self.candidates()
        # What a user can choose is more than what is proposed, and a sequence is no volume.
        stay = {k: node for k, node in (taken or {}).items() if node.IsA("vtkMRMLVolumeNode")}
        nodes += [node for node in stay.values() if node not in nodes]
        facts = [self.facts(node) for node in nodes]
        proposals = {}
        matches = match_inputs(description, facts, {k: nodes.index(n) for k, n in stay.items()})
        enough = description.one_of and any(m.index is not None for m in matches.values())
        for key, match in matches.items():
            others = [
                Candidate(nodes[n], score.value, _why(score)) for n, score in match.alternatives
            ]
            node = None if match.index is None else nodes[match.index]
            if node is not None:
                why = _why(match.score)
            elif enough:
                why = _("Not needed: the model takes one image.")
            else:
                why = _nothing(description, key, nodes, facts, matches)
            if match.ambiguous and others:
                why += " " + _("{name} fits nearly as well: please check.").format(
                    name=f"'{others[0].node.GetName()}'"
                )
            elif match.ambiguous:
                why += " " + _("The name is not clear: please check.")
            proposals[key] = Proposal(key, node, match.score.value, why, others, match.ambiguous)
        return proposals

    def explain(self, description: ModelDescription, key: str, node) -> Candidate:
        """How well a volume that the user has chosen fits an input, and why."""
        score = score_input(description.input(key), self.facts(node))
        return Candidate(node, score.value, _why(score))

    def facts(self, node) -> VolumeFacts:
        """What the node and its DICOM header say."""
        return VolumeFacts(
            name=node.GetName() or "", plane=_plane(node), grid=_grid(node), **self._header(node)
        )

    def _header(self, node) -> dict[str, Any]:
        uids = (node.GetAttribute(INSTANCE_UIDS) or "").split()
        tags = self._tags if self._tags is not None else applicationTags()
        if not uids or tags is None:
            return {}
        # One from the middle: the first and the last slices are those that differ, if any does.
        uid = uids[len(uids) // 2]
        if uid not in self._headers:
            self._headers[uid] = _readHeader(tags, uid)
        return self._headers[uid]


def _readHeader(tags: TagReader, uid: str) -> dict[str, Any]:
    text = {name: tags.value(uid, tag) for name, tag in TAGS.items()}
    return {
        "description": text["description"] or text["protocol"],
        "modality": text["modality"],
        "image_type": tuple(part for part in text["image_type"].split("\\") if part),
        "study": text["study"],
        "echo_ms": _number(text["echo"]),
        "repetition_ms": _number(text["repetition"]),
        "inversion_ms": _number(text["inversion"]),
        "agent": text["agent"],
        "b_value": _bValue(tags, uid),
    }


def _bValue(tags: TagReader, uid: str) -> float | None:
    for tag in B_VALUE_TAGS:
        value = _number(tags.value(uid, tag))
        if value is not None:
            return value % GE_OFFSET if value >= GE_OFFSET else value
    return None


def _number(text: str) -> float | None:
    """The first number of a DICOM value, None when there is none."""
    found = re.match(r"\s*[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", text.split("\\")[0])
    return float(found.group()) if found else None


def _grid(node) -> Grid | None:
    """Where the volume stands in the world; None when it is empty or bent."""
    transform = node.GetParentTransformNode()
    if node.GetImageData() is None or (
        transform is not None and not transform.IsTransformToWorldLinear()
    ):
        return None
    shape = node.GetImageData().GetDimensions()[::-1]
    return Grid(shape, parentToWorld(node) @ localAffine(node))


def _plane(node) -> str:
    """The plane of thick slices."""
    grid = _grid(node)
    if grid is None:
        return ""
    spacing = np.array(grid.spacing)
    thick = int(spacing.argmax())
    if spacing[thick] < THICK * np.sort(spacing)[1]:
        return ""
    axis, _sign = grid.axes()[thick]
    return ("sagittal", "coronal", "axial")[axis]


def _nothing(
    description: ModelDescription,
    key: str,
    nodes: list,
    facts: list[VolumeFacts],
    matches: Mapping[str, Match],
) -> str:
    """Why an input gets no volume."""
    if not nodes:
        return _("There is no volume in the scene: load one.")
    used = {match.index: k for k, match in matches.items() if match.index is not None}
    fitting = [n for n, _score in matches[key].alternatives]
    if not fitting or not used:
        text = _("None of the {count} volumes looks like it: please choose.")
        return text.format(count=len(nodes))
    best = next((n for n in fitting if n not in used), fitting[0])
    name = f"'{nodes[best].GetName()}'"
    if best in used:
        text = _("{name} fits, but is taken for {title}: please choose.")
        return text.format(name=name, title=description.input(used[best]).title)
    studies = {n: facts[n].study for n in used if facts[n].study}
    other = next((n for n, study in studies.items() if facts[best].study not in ("", study)), None)
    if other is not None:
        text = _("{name} fits, but belongs to another study than {other}: please choose.")
    else:
        reference = matches[description.reference].index if description.reference else None
        other = reference if reference is not None else next(iter(used))
        text = _("{name} fits, but does not lie where {other} lies: please choose.")
    return text.format(name=name, other=f"'{nodes[other].GetName()}'")


def _why(score: Score) -> str:
    """A sentence for a score."""
    word = f"'{score.word}'"
    if score.value == 0:
        return _against(score, word)
    text = {
        "description": _("The series description says {word}."),
        "name": _("The volume's name says {word}."),
        "image_type": _("The DICOM image type says {word}."),
        "timing": _("The sequence's times fit ({word})."),
    }[score.source].format(word=score.word if score.source == "timing" else word)
    notes = {
        "derived": _("It is a reformatted image."),
        "plane": _("Its slices lie in another plane than the model's."),
        "b_value": _("Its b-value is low or unknown."),
        "timing": _("Its echo and repetition times speak against it."),
        "unclear": _("Its name can be read in two ways."),
    }
    return " ".join([text, *(notes[note] for note in score.notes if note in notes)])


def _against(score: Score, word: str) -> str:
    if score.source == "modality":
        return _("It is of another modality ({word}).").format(word=score.word)
    if "excluded" in score.notes:
        return _("The model excludes {word}.").format(word=word)
    if score.kind:
        return _("{word} says that it is another image ({kind}).").format(
            word=word, kind=score.kind
        )
    return _("Neither its name nor a DICOM header says what it is.")
