"""The frames of 4-D inputs: sequences, volumes that stand for one, several values per voxel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import ColorImageError, EmptyImageError, SettingError
from medsegcore.imaging import Image

from .SceneConversion import imageFromVolumeNode, localAffine, parentToWorld
from .Translation import _

# In place of a frame's number: one run for each frame.
ALL_FRAMES = -1


@dataclass(frozen=True)
class Frames:
    """What there is to choose from.

    Attributes:
        labels: one text for each frame, e.g. "2 of 5 (t = 1.5 s)".
        selected: the frame that the scene shows now.
        sequence: the sequence node, None for volumes with several values per voxel.
        browser: of a proxy node, what says which frame it shows; None for the others.
    """

    labels: list[str]
    selected: int
    sequence: Any = None
    browser: Any = None


def framesOf(node) -> Frames | None:
    """The frames of a node, None for a plain 3-D volume.

    Args:
        node: a volume node, which may be the proxy of a sequence browser, or a sequence node.
    """
    if node is None:
        return None
    if node.IsA("vtkMRMLSequenceNode"):
        return Frames(_sequenceLabels(node), 0, node)
    browser, sequence = _browserOf(node)
    if sequence is not None and sequence.GetNumberOfDataNodes() > 1:
        selected = browser.GetSelectedItemNumber()
        master = browser.GetMasterSequenceNode()
        if master is not None and master is not sequence and selected >= 0:
            # The browser counts in its master's items; a slower sequence has fewer.
            value = master.GetNthIndexValue(selected)
            selected = sequence.GetItemNumberFromIndexValue(value, False)
        return Frames(_sequenceLabels(sequence), max(selected, 0), sequence, browser)
    count = _components(node)
    if count > 1 and not _isColor(node):
        return Frames([_frameLabel(n, count) for n in range(count)], _shownFrame(node, count))
    return None


def showFrame(node, frame: int) -> None:
    """Let the browser of a proxy node go to a frame of it; other nodes stay as they are."""
    frames = framesOf(node)
    if frames is None or frames.browser is None:
        return
    master = frames.browser.GetMasterSequenceNode()
    value = frames.sequence.GetNthIndexValue(frame)
    frames.browser.SetSelectedItemNumber(master.GetItemNumberFromIndexValue(value, False))


def frameSets(nodes: Mapping[str, Any], chosen: Mapping[str, int]) -> list[dict[str, int]]:
    """{input key: frame} for one run after another; one run when no input has `ALL_FRAMES`.

    Args:
        nodes: {input key: node}, as for `framesOf`.
        chosen: {input key: frame from 0, or `ALL_FRAMES`}.

    Raises:
        SettingError: the inputs that go through all their frames differ in their number.
    """
    fixed = {key: frame for key, frame in chosen.items() if frame != ALL_FRAMES}
    counts = {key: frameCount(nodes[key]) for key in chosen if key not in fixed}
    if not counts:
        return [fixed]
    if len(set(counts.values())) > 1:
        raise SettingError(
            _("All frames are wanted, but there are {counts}.").format(
                counts=", ".join(f"{n} of '{nodes[key].GetName()}'" for key, n in counts.items())
            ),
            _("Choose one frame of the input that has others, or another input."),
        )
    return [fixed | dict.fromkeys(counts, n) for n in range(max(counts.values()))]


def frameCount(node) -> int:
    """How many frames a node has, 1 for a plain 3-D volume."""
    frames = framesOf(node)
    return len(frames.labels) if frames is not None else 1


def imageOfFrame(node, frame: int | None = None, copy: bool = True) -> Image:
    """A node's volume, or one of its frames, as an Image in the world's RAS.

    Args:
        node: as for `framesOf`.
        frame: from 0; None takes the one that the scene shows.
        copy: as `imageFromVolumeNode`.

    Raises:
        InputError: as `imageFromVolumeNode`; SettingError when there is no such frame.
    """
    frames = framesOf(node)
    if frames is None:
        if frame not in (None, 0):
            raise _noFrame(node, frame, 1)
        return imageFromVolumeNode(node, copy)
    frame = frames.selected if frame is None else frame
    if not 0 <= frame < len(frames.labels):
        raise _noFrame(node, frame, len(frames.labels))
    if frames.sequence is None:
        return _component(node, frame, copy)
    data = nodeOfFrame(node, frame)
    if data is node:
        return imageFromVolumeNode(node, copy)
    if data is None or not data.IsA("vtkMRMLVolumeNode"):
        raise EmptyImageError(
            _("The sequence '{name}' holds no volumes.").format(name=frames.sequence.GetName()),
            _("Choose a volume."),
        )
    image = imageFromVolumeNode(data, copy)
    if node is frames.sequence:
        return image
    # The frames lie in the sequence; the transform is the proxy's.
    return Image(image.array, parentToWorld(node) @ image.affine, image.name)


def nodeOfFrame(node, frame: int | None = None):
    """The node whose voxels `imageOfFrame` reads, None where a sequence has no such frame."""
    frames = framesOf(node)
    if frames is None or frames.sequence is None:
        return node
    frame = frames.selected if frame is None else frame
    if node is not frames.sequence and frame == frames.selected:
        return node
    there = 0 <= frame < len(frames.labels)
    return frames.sequence.GetNthDataNode(frame) if there else None


def _sequenceLabels(sequence) -> list[str]:
    count = sequence.GetNumberOfDataNodes()
    name, unit = sequence.GetIndexName() or "", sequence.GetIndexUnit() or ""
    labels = []
    for n in range(count):
        value = f"{sequence.GetNthIndexValue(n)} {unit}".strip()
        text = f"{name} = {value}" if name else value
        labels.append(f"{_frameLabel(n, count)} ({text})")
    return labels


def _frameLabel(n: int, count: int) -> str:
    return _("{number} of {count}").format(number=n + 1, count=count)


def _browserOf(node):
    """The sequence browser and the sequence that a proxy node stands for, or (None, None)."""
    scene = node.GetScene()
    if scene is None:
        return None, None
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode")
        sequence = browser.GetSequenceNode(node)
        if sequence is not None:
            return browser, sequence
    return None, None


def _components(node) -> int:
    data = node.GetImageData() if node.IsA("vtkMRMLVolumeNode") else None
    return data.GetNumberOfScalarComponents() if data is not None else 1


def _isColor(node) -> bool:
    return _components(node) in (3, 4) and node.GetImageData().GetScalarTypeAsString() in (
        "unsigned char",
        "char",
    )


def _shownFrame(node, count: int) -> int:
    display = node.GetDisplayNode()
    shown = 0
    if display is not None and display.IsA("vtkMRMLDiffusionWeightedVolumeDisplayNode"):
        shown = display.GetDiffusionComponent()
    return min(max(int(shown), 0), count - 1)


def _component(node, frame: int, copy: bool) -> Image:
    if _isColor(node):
        raise ColorImageError(_("The volume is RGB."), _("A gray-scale volume is needed."))
    data = node.GetImageData()
    values = vtk_to_numpy(data.GetPointData().GetScalars())
    array = values.reshape(*data.GetDimensions()[::-1], -1)[..., frame]
    array = array.copy() if copy else array
    image = Image(array, parentToWorld(node) @ localAffine(node), "volume")
    image.grid.check("The volume under its transform")
    return image


def _noFrame(node, frame, count: int) -> SettingError:
    return SettingError(
        _("'{name}' has no frame {frame}: it has {count}.").format(
            name=node.GetName(), frame=frame, count=count
        ),
        _("Choose one of them."),
    )
