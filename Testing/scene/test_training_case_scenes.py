"""Scenes that changed since the run: what the model did not see together is no training case."""

from dataclasses import replace

import numpy as np
import pytest
import slicer

from medsegcore.errors import GeometryError, MissingInputError, SegmentsError, SettingError
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.NodeNames import INPUT_PLACES
from SlicerMedSegLib.ResultToScene import addResultToScene, inputNodes, rememberInputs
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.TrainingCase import saveTrainingCase


@pytest.fixture
def nodes(core, flair, ms_images, rater_result, shipped_model):
    """A run of the MS model on FLAIR and T1, with where they stood."""
    d = shipped_model.description
    told = {"id": d.id, "version": d.version, "sha256": d.weights.sha256}
    provenance = {"model": told, "inputs": {"t1": {}, "flair": {}}}
    return addRun(core, flair, ms_images, replace(rater_result, provenance=provenance))


def save(core, folder, run="run"):
    return saveTrainingCase(core.scene, run, folder)


def addRun(core, flair, images, result, name="run"):
    added = addResultToScene(result, core.scene, flair, name)
    inputs = {"flair": flair, "t1": volumeNodeFromImage(images["t1"], "T1", core.scene)}
    toReference = np.linalg.inv(images["flair"].affine)
    places = {key: toReference @ images[key].affine for key in inputs}
    rememberInputs(added.segmentation, inputs, None, places)
    return added


def move(core, nodes, millimetres):
    matrix = np.eye(4)
    matrix[:3, 3] = millimetres
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform.GetID())


@pytest.mark.parametrize("names", [["t1"], ["flair", "segmentation"]])
def test_an_input_that_moved_against_the_reference_is_told(core, nodes, tmp_path, names):
    there = inputNodes(nodes.segmentation) | {"segmentation": nodes.segmentation}
    moved = [there[name] for name in names]
    move(core, moved, (0, 40, 0))
    with pytest.raises(GeometryError, match="'T1-weighted MR' has moved against the reference"):
        save(core, tmp_path / "cases")
    assert not (tmp_path / "cases").exists()
    for node in moved:
        node.SetAndObserveTransformNodeID(None)
    save(core, tmp_path / "cases")


def test_what_moved_together_or_never_said_where_it_stood_is_saved(core, nodes, tmp_path):
    there = inputNodes(nodes.segmentation)
    move(core, [*there.values(), nodes.segmentation], (10, 40, 3))
    save(core, tmp_path / "cases")
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        assert save(other, tmp_path / "cases").replaced
    nodes.segmentation.RemoveAttribute(INPUT_PLACES)
    there["t1"].SetAndObserveTransformNodeID(None)
    assert save(core, tmp_path / "cases").replaced


def test_two_results_of_one_name_are_told_and_never_mixed(core, nodes, tmp_path):
    folder = tmp_path / "cases"
    saved = save(core, folder, nodes)
    # As the import of a second scene adds a result of the same name.
    copies = []
    for node in (nodes.segmentation, nodes.answer, nodes.provenance):
        copy = core.scene.AddNewNodeByClass(node.GetClassName(), node.GetName())
        copy.CopyContent(node)
        for name in node.GetAttributeNames():
            copy.SetAttribute(name, node.GetAttribute(name))
        copies.append(copy)
        with pytest.raises(SegmentsError, match="two results called 'run', or a copy of a part"):
            save(core, folder, nodes)
        core.scene.RemoveNode(copy)
    assert save(core, folder, nodes).case == saved.case
    # The copy of a segmentation, which is left alone in the scene, is not what `segment` returned.
    core.scene.AddNode(copies[0])
    core.scene.RemoveNode(nodes.segmentation)
    with pytest.raises(MissingInputError, match="is not in the scene any more"):
        save(core, folder, nodes)


def test_the_results_of_all_frames_are_saved_one_by_one(core, nodes, tmp_path):
    with pytest.raises(SettingError, match="2 results were given, one for each frame"):
        save(core, tmp_path / "cases", [nodes, nodes])
    assert not (tmp_path / "cases").exists()
