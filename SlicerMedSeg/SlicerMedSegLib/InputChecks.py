"""What is to be said about the chosen volumes before a run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import MedSegError
from medsegcore.imaging import Grid, Image, Measures, Region, fov_overlap, measure
from medsegcore.models import InputSpec, ModelDescription
from medsegcore.models.contrasts import contrast_of_key

from .InputFrames import ALL_FRAMES, Frames, frameCount, frameSets, framesOf
from .SceneConversion import localAffine, parentToWorld
from .Translation import _

OK, WARNING, ERROR = "ok", "warning", "error"
LEAST_OVERLAP, GOOD_OVERLAP = 0.5, 0.9
# Voxels coarser than the model's by more than this factor lose what it was trained to see.
COARSE = 2.5


@dataclass(frozen=True)
class Finding:
    """One sentence about an input.

    Attributes:
        level: "ok", "warning" (a run is possible) or "error" (it is not).
        key: of the input, "" for the case as a whole.
        code: what it is about, e.g. "overlap"; stays the same in every language.
        text: the sentence.
    """

    level: str
    key: str
    code: str
    text: str


class InputChecks:
    """Looks at the nodes that are chosen for a model's inputs.

    What is measured on voxels is kept until they change, so that asking again costs nothing.
    """

    def __init__(self) -> None:
        self._measured: dict[tuple, Measures] = {}

    def check(
        self,
        description: ModelDescription,
        nodes: Mapping,
        frames: Mapping[str, int] | None = None,
        region: Region | None = None,
    ) -> list[Finding]:
        """All findings, inputs in the model's order; the errors are those that stop a run.

        Args:
            description: the model.
            nodes: {input key: volume node or None}.
            frames: {input key: chosen frame of a 4-D input, from 0}.
            region: the box to work in.
        """
        nodes = {key: node for key, node in nodes.items() if node is not None}
        findings = _twice(description, nodes) + _oneOf(description, nodes)
        referenceKey = description.reference_of(nodes)
        reference = self._grid(nodes.get(referenceKey))
        for spec in description.inputs:
            node = nodes.get(spec.key)
            if node is None:
                findings += _missing(description, spec)
                continue
            others = None if spec.key == referenceKey else reference
            case = _Case(description, spec, node, (frames or {}).get(spec.key), others)
            findings += self._input(case)
        if region is not None and reference is not None:
            findings += _regionFindings(region, reference)
        return findings

    def checkSeries(
        self,
        description: ModelDescription,
        nodes: Mapping,
        frames: Mapping[str, int],
        region: Region | None = None,
    ) -> list[Finding]:
        """As `check`, also where inputs go through all their frames (`ALL_FRAMES`).

        What is wrong with some of the frames names them.
        """
        nodes = {key: node for key, node in nodes.items() if node is not None}
        try:
            sets = frameSets(nodes, frames)
        except MedSegError as error:
            return [Finding(ERROR, "", "frame", str(error))]
        first = self.check(description, nodes, sets[0], region)
        series = [key for key, frame in frames.items() if frame == ALL_FRAMES]
        found = [f for f in first if f.level == OK and (f.code != "frame" or f.key not in series)]
        for key in series:
            text = _("{title}: all {count} frames of {name} are segmented, one after the other.")
            case = _Case(description, description.input(key), nodes[key], None, None)
            found.append(case.say(OK, "frame", text, count=frameCount(nodes[key])))
        # The figures differ from frame to frame: the first one's stand for all.
        wrong: dict[tuple, tuple[Finding, list[int]]] = {}
        for n, one in enumerate(sets):
            for finding in self.check(description, nodes, one, region) if n else first:
                if finding.level != OK:
                    same = (finding.level, finding.key, finding.code)
                    wrong.setdefault(same, (finding, []))[1].append(n + 1)
        for finding, numbers in wrong.values():
            text = finding.text
            if len(numbers) < len(sets):
                text += " " + _("(In frame {numbers}.)").format(
                    numbers=", ".join(map(str, numbers))
                )
            found.append(replace(finding, text=text))
        return found

    @staticmethod
    def canRun(findings: list[Finding]) -> bool:
        """Whether none of the findings is an error."""
        return all(finding.level != ERROR for finding in findings)

    def _input(self, case: "_Case") -> list[Finding]:
        wrong = case.unusable()
        if wrong:
            return [wrong]
        found = case.frameFindings()
        grid = self._grid(case.placed())
        if grid is None:
            found.append(case.bent())
        else:
            found += case.placeFindings(grid)
        return found + case.valueFindings(self._measures(case))

    @staticmethod
    def _grid(node) -> Grid | None:
        """Where a node stands in the world; None when it is empty or bent."""
        if node is None or not node.IsA("vtkMRMLVolumeNode") or node.GetImageData() is None:
            return None
        transform = node.GetParentTransformNode()
        if transform is not None and not transform.IsTransformToWorldLinear():
            return None
        shape = node.GetImageData().GetDimensions()[::-1]
        return Grid(shape, parentToWorld(node) @ localAffine(node))

    def _measures(self, case: "_Case") -> Measures:
        node, data, component = case.data()
        # Frames of a sequence live in a scene of their own, where IDs are used again.
        key = (data.GetAddressAsString(""), data.GetMTime(), node.GetMTime(), component)
        if key not in self._measured:
            # Older states of the same volume will not come back.
            for old in [k for k in self._measured if k[0] == key[0] and k[1:3] != key[1:3]]:
                del self._measured[old]
            values = vtk_to_numpy(data.GetPointData().GetScalars())
            if values.ndim > 1:
                values = values[:, component]
            array = values.reshape(data.GetDimensions()[::-1])
            self._measured[key] = measure(Image(array, localAffine(node)))
        return self._measured[key]


@dataclass(frozen=True)
class _Case:
    """One chosen volume and what it is chosen for.

    Attributes:
        reference: the grid that it has to overlap with; None for the reference itself.
    """

    description: ModelDescription
    spec: InputSpec
    node: Any
    frame: int | None
    reference: Grid | None

    def say(self, level: str, code: str, text: str, **values) -> Finding:
        values = {"title": self.spec.title, "name": f"'{self.node.GetName()}'", **values}
        return Finding(level, self.spec.key, code, text.format(**values))

    def frames(self) -> Frames | None:
        return framesOf(self.node)

    def data(self):
        """The volume node, its voxels, and which of the values per voxel is looked at."""
        frames = self.frames()
        if frames is None:
            return self.node, self.node.GetImageData(), 0
        frame = frames.selected if self.frame is None else self.frame
        if frames.sequence is None:
            return self.node, self.node.GetImageData(), frame
        node = frames.sequence.GetNthDataNode(frame)
        # Sequences hold transforms and models, too, or nothing yet.
        volume = node is not None and node.IsA("vtkMRMLVolumeNode")
        return node, node.GetImageData() if volume else None, 0

    def placed(self):
        """What has a place in the world: the node; of a sequence, which has none, the frame."""
        return self.node if self.node.IsA("vtkMRMLVolumeNode") else self.data()[0]

    def unusable(self) -> Finding | None:
        """What makes further looking pointless."""
        frames = self.frames()
        count = len(frames.labels) if frames is not None else 1
        if self.frame is not None and not 0 <= self.frame < count:
            text = _("{title}: {name} has no frame {frame}, it has {count}: choose another.")
            return self.say(ERROR, "frame", text, frame=self.frame + 1, count=count)
        if frames is None and not self.node.IsA("vtkMRMLVolumeNode"):
            return self._empty()
        node, data, _component = self.data()
        if data is None or data.GetNumberOfPoints() == 0:
            return self._empty()
        if frames is None and data.GetNumberOfScalarComponents() > 1:
            return self.say(
                ERROR, "color",
                _("{title}: {name} has {count} values per voxel: choose a gray-scale volume."),
                count=data.GetNumberOfScalarComponents(),
            )  # fmt: skip
        try:
            Grid(data.GetDimensions()[::-1], localAffine(node)).check()
        except MedSegError as error:
            return self.say(ERROR, "geometry", "{title}: {problem}", problem=str(error))
        return None

    def _empty(self) -> Finding:
        return self.say(ERROR, "empty", _("{title}: {name} has no voxels: choose another volume."))

    def frameFindings(self) -> list[Finding]:
        frames = self.frames()
        if frames is None:
            return []
        if self.frame is None:
            text = _("{title}: {name} has {count} frames; the shown one ({frame}) is used: "
                     "choose one.")  # fmt: skip
            return [
                self.say(WARNING, "frame", text, count=len(frames.labels),
                         frame=frames.labels[frames.selected])
            ]  # fmt: skip
        text = _("{title}: frame {frame} of {name} is used.")
        return [self.say(OK, "frame", text, frame=frames.labels[self.frame])]

    def bent(self) -> Finding:
        return self.say(
            OK, "transform",
            _("{title}: {name} is under the bending transform {transform}: a resampled copy is "
              "used, the volume stays as it is."),
            transform=f"'{self.placed().GetParentTransformNode().GetName()}'",
        )  # fmt: skip

    def placeFindings(self, grid: Grid) -> list[Finding]:
        found = []
        transform = self.placed().GetParentTransformNode()
        if transform is not None:
            found.append(
                self.say(
                    OK,
                    "transform",
                    _(
                        "{title}: {name} counts where the transform {transform} puts it; the "
                        "transform is not hardened and need not be."
                    ),
                    transform=f"'{transform.GetName()}'",
                )
            )
            try:
                grid.check()
            except MedSegError as error:
                found.append(self.say(ERROR, "geometry", "{title}: {problem}", problem=str(error)))
                return found
        found += self._spacing(grid)
        if self.reference is not None:
            found.append(self._overlap(grid))
        return found

    def _overlap(self, grid: Grid) -> Finding:
        assert self.reference is not None
        if grid.same_as(self.reference):
            return self.say(OK, "overlap", _("{title}: same grid as the reference."))
        share = fov_overlap(self.reference, grid)
        if share < LEAST_OVERLAP:
            text = _(
                "{title}: {name} shares only {share:.0%} of its field of view with the "
                "reference, {least:.0%} is needed: choose another or register it."
            )
            return self.say(ERROR, "overlap", text, share=share, least=LEAST_OVERLAP)
        if share < GOOD_OVERLAP:
            text = _("{title}: {name} shares {share:.0%} of its field of view with the reference; "
                     "beyond it the answer rests on the other inputs.")  # fmt: skip
            return self.say(WARNING, "overlap", text, share=share)
        text = _(
            "{title}: another grid than the reference's, {share:.0%} overlap; it is resampled."
        )
        return self.say(OK, "overlap", text, share=share)

    def _spacing(self, grid: Grid) -> list[Finding]:
        """Only along axes where the model has a voxel size of its own."""
        wanted = dict(
            zip(_axesOf(self.description.grid.orientation), self.description.grid.spacing,
                strict=True)
        )  # fmt: skip
        worst, own, model = 0.0, 0.0, 0.0
        for (axis, _sign), spacing in zip(grid.axes(), grid.spacing, strict=True):
            size = wanted[axis]
            if size is not None and spacing / size > worst:
                worst, own, model = spacing / size, spacing, size
        if worst <= COARSE:
            return []
        text = _("{title}: voxels of {name} are {own:.1f} mm long, the model works at {model:.1f} "
                 "mm: expect it to miss small lesions.")  # fmt: skip
        return [self.say(WARNING, "spacing", text, own=own, model=model)]

    def valueFindings(self, measures: Measures) -> list[Finding]:
        if measures.finite == 0:
            return [self.say(ERROR, "nan", _("{title}: {name} holds no number: load it again."))]
        if measures.constant:
            text = _("{title}: every voxel of {name} is {value:g}: choose another volume.")
            return [self.say(ERROR, "constant", text, value=measures.low)]
        if measures.high <= 0:
            text = _("{title}: no voxel of {name} is above 0 (the largest is {value:g}): choose "
                     "another volume.")  # fmt: skip
            return [self.say(ERROR, "positive", text, value=measures.high)]
        found = []
        if measures.finite < 1:
            text = _("{title}: {share:.2%} of the voxels of {name} are no numbers; they count as "
                     "background.")  # fmt: skip
            found.append(self.say(WARNING, "nan", text, share=1 - measures.finite))
        if self.description.skull_stripped and measures.has_skull:
            text = _("{title}: {name} seems to have its skull and air ({share:.0%} of the voxels "
                     "are dim, 3% at most without a skull); the model wants it removed: strip it "
                     "first.")  # fmt: skip
            found.append(self.say(WARNING, "skull", text, share=measures.dim))
        return found + self._diffusion(measures)

    def _diffusion(self, measures: Measures) -> list[Finding]:
        kind = contrast_of_key(self.spec.key, self.spec.title)
        values = {"median": measures.median, "unit": measures.adc_unit}
        if kind == "dwi" and measures.adc_unit == "1e-6 mm2/s":
            text = _("{title}: the values of {name} (median {median:.0f}) look like an ADC map: "
                     "choose the diffusion image.")  # fmt: skip
            return [self.say(WARNING, "adc", text, **values)]
        if kind != "adc":
            return []
        if measures.adc_unit is None:
            text = _("{title}: the values of {name} (median {median:.3g}) are no ADC in any usual "
                     "unit: check that it is the ADC map and not a diffusion image.")  # fmt: skip
            return [self.say(WARNING, "adc", text, **values)]
        expected = self.spec.units if "mm2/s" in self.spec.units else "1e-6 mm2/s"
        if measures.adc_unit != expected.replace("10^", "1e"):
            text = _("{title}: {name} seems to be in {unit} (median {median:.3g}), the model was "
                     "trained on {expected}: rescale it.")  # fmt: skip
            return [self.say(WARNING, "unit", text, expected=expected, **values)]
        text = _("{title}: the values (median {median:.0f}) fit an ADC map in {unit}.")
        return [self.say(OK, "adc", text, **values)]


def _axesOf(orientation: str) -> list[int]:
    """0, 1, 2 for right-left, front-back, up-down of each letter."""
    return ["RLAPSI".index(letter) // 2 for letter in orientation]


def _twice(description: ModelDescription, nodes: Mapping) -> list[Finding]:
    found: list[Finding] = []
    seen: dict[str, str] = {}
    for spec in description.inputs:
        node = nodes.get(spec.key)
        if node is None:
            continue
        if node.GetID() in seen:
            text = _("{name} is chosen for {first} and for {second}: choose two volumes.").format(
                name=f"'{node.GetName()}'", first=seen[node.GetID()], second=spec.title
            )
            found.append(Finding(ERROR, spec.key, "twice", text))
        seen.setdefault(node.GetID(), spec.title)
    return found


def _oneOf(description: ModelDescription, nodes: Mapping) -> list[Finding]:
    """Models that take one of their inputs get neither none nor two."""
    if not description.one_of or len(nodes) == 1:
        return []
    titles = _(" or ").join(spec.title for spec in description.inputs)
    text = _("The model takes one image at a time: empty all but one of the rows.")
    if not nodes:
        text = _("The model needs one image: choose a volume for {titles}.").format(titles=titles)
    return [Finding(ERROR, "", "one_of", text)]


def _missing(description: ModelDescription, spec: InputSpec) -> list[Finding]:
    if description.one_of:
        return []
    if description.needs(spec):
        text = _("{title}: the model cannot run without it: choose a volume.")
        return [Finding(ERROR, spec.key, "missing", text.format(title=spec.title))]
    text = _("{title}: not given; the model runs with zeros in its place and may answer worse.")
    return [Finding(WARNING, spec.key, "missing", text.format(title=spec.title))]


def _regionFindings(region: Region, reference: Grid) -> list[Finding]:
    try:
        box = region.box_in(reference)
    except MedSegError as error:
        return [Finding(ERROR, "", "region", str(error))]
    voxels = np.prod([part.stop - part.start for part in box])
    text = _("The region covers {share:.0%} of the reference; outside of it the answer is empty.")
    share = min(float(voxels / np.prod(reference.shape)), 1.0)
    return [Finding(OK, "", "region", text.format(share=share))]
