"""What has to hold of the module's logic, in the application and on slicer-core alike.

Each scenario gets a logic with `segment`, starts with an empty `slicer.mrmlScene` and raises when
something does not hold.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import slicer

from medsegcore.errors import GeometryError, MissingInputError
from medsegcore.imaging import Image, read_image

from .ResultToScene import CHECKSUM, checksum, findRuns
from .SampleCases import LOCAL, URL
from .SceneConversion import volumeNodeFromImage

MODEL = "ms-lesion-rsanet"
OPTIONS = {"device": "cpu"}


def loadSample(part: tuple[slice, slice, slice] | None = None) -> dict:
    """The sample case as volume nodes by input key; of all voxels, or of some [k, j, i]."""
    nodes = {}
    for key in ("t1", "t2", "flair"):
        image = read_image(_sampleFile(f"{key}.nii.gz"))
        if part is not None:
            image = Image(image.array[part], image.grid.crop(part).affine)
        nodes[key] = volumeNodeFromImage(image, key.upper(), slicer.mrmlScene)
    return nodes


def _sampleFile(name: str) -> Path:
    """A file of the sample; an installed extension has no checkout and downloads it."""
    path = LOCAL / "ms_sample" / name
    if not path.is_file():
        from SampleData import SampleDataLogic

        uri = f"{URL}/ms_sample/{name}"
        path = Path(SampleDataLogic().downloadFileIntoCache(uri, f"MedSegMS-{name}"))
    return path


def segmentsTheSampleCase(logic) -> None:
    """A case is segmented and everything that belongs to the result is in one folder."""
    volumes = loadSample()
    stages = []
    nodes = logic.segment(
        MODEL, volumes, OPTIONS, progress=lambda stage, *rest: stages.append(stage)
    )
    runs = findRuns(slicer.mrmlScene)
    assert len(runs) == 1, f"one run is expected, there are {len(runs)}"
    roles = next(iter(runs.values()))
    assert set(roles) == {
        "segmentation", "answer", "probability", "attention", "lesions", "provenance"
    }, f"roles: {sorted(roles)}"  # fmt: skip
    answer = slicer.util.arrayFromVolume(nodes.answer)
    reference = read_image(_sampleFile("lesion.nii.gz")).array > 0
    dice = 2 * ((answer > 0) & reference).sum() / ((answer > 0).sum() + reference.sum())
    assert dice > 0.6, f"Dice {dice:.2f}"
    assert nodes.answer.GetAttribute(CHECKSUM) == checksum(answer)
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert json.loads(nodes.provenance.GetText())["model"]["id"] == MODEL
    assert {"load", "prepare", "segment", "restore", "measure"} <= set(stages)


def aSecondRunLeavesEditsAlone(logic) -> None:
    """A second run adds its own folder; what the user edited of the first one stays."""
    volumes = loadSample()
    first = logic.segment(MODEL, volumes, OPTIONS)
    segmentId = first.segmentation.GetSegmentation().GetNthSegmentID(0)
    first.segmentation.GetSegmentation().RemoveSegment(segmentId)
    second = logic.segment(MODEL, volumes, OPTIONS)
    assert first.segmentation.GetSegmentation().GetNumberOfSegments() == 0
    assert second.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert len(findRuns(slicer.mrmlScene)) == 2


def aMissingInputChangesNothing(logic) -> None:
    """Without a required volume there is one plain sentence and an untouched scene."""
    volumes = loadSample()
    del volumes["t1"]
    before = slicer.mrmlScene.GetNumberOfNodes()
    try:
        logic.segment(MODEL, volumes, OPTIONS)
    except MissingInputError as error:
        sentence = str(error)
    else:
        raise AssertionError("a missing input was accepted")
    assert "t1" in sentence, sentence
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def aMovedPatientGetsAMovedAnswer(logic) -> None:
    """Volumes under a transform are segmented where they stand, and the answer goes with them."""
    volumes = loadSample()
    plain = logic.segment(MODEL, volumes, OPTIONS)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = np.eye(4)
    matrix[:3, 3] = (20.0, -15.0, 7.0)
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for node in volumes.values():
        node.SetAndObserveTransformNodeID(transform.GetID())
    moved = logic.segment(MODEL, volumes, OPTIONS)
    assert moved.answer.GetTransformNodeID() == transform.GetID()
    assert np.array_equal(
        slicer.util.arrayFromVolume(plain.answer), slicer.util.arrayFromVolume(moved.answer)
    )


def aCorrectedResultBecomesATrainingCase(logic) -> None:
    """Images and the mask as it was corrected are written; saved again, they take their place.

    An input that has moved since the run is told.
    """
    volumes = loadSample((slice(40, 64), slice(40, 88), slice(40, 88)))
    nodes = logic.segment(MODEL, volumes, OPTIONS)
    place = nodes.segmentation, nodes.segmentation.GetSegmentation().GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(*place, volumes["flair"]).copy()
    mask[2:5, 2:5, 2:5] = 1 - mask[2:5, 2:5, 2:5]
    with tempfile.TemporaryDirectory(prefix="medseg-scenario-") as folder:
        logic.saveTrainingCase(nodes, folder)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, *place, volumes["flair"])
        saved = logic.saveTrainingCase(nodes, folder)
        assert (saved.case, saved.replaced) == ("case_001", True), saved
        written = read_image(Path(folder) / "labelsTr" / "case_001.nii.gz").array
        assert np.array_equal(written > 0, mask > 0)
        files = [path.name for path in (Path(folder) / "imagesTr").iterdir()]
        assert len(files) == len(volumes), files
        moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([-1, -1, 1, 1])))
        volumes["t1"].SetAndObserveTransformNodeID(moved.GetID())
        try:
            logic.saveTrainingCase(nodes, folder)
        except GeometryError:
            return
    raise AssertionError("Saved although an input has moved since the run.")


SCENARIOS = (
    segmentsTheSampleCase,
    aSecondRunLeavesEditsAlone,
    aMissingInputChangesNothing,
    aMovedPatientGetsAMovedAnswer,
    aCorrectedResultBecomesATrainingCase,
)
