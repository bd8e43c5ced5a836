"""Long work is done in short steps, and steps that are given up leave no trace."""

import numpy as np
import pytest
from scipy import ndimage

from medsegcore.imaging import Grid, resample
from medsegcore.inference import SpatialAttention
from SlicerMedSegLib import Resampling
from SlicerMedSegLib.LesionTable import LesionTable, meanInside
from SlicerMedSegLib.ResultToScene import findRuns, resultSteps
from SlicerMedSegLib.RunSegments import RunSegments
from SlicerMedSegLib.SegmentRule import components, fallingOrder, without
from SlicerMedSegLib.Steps import SLAB_BYTES, copyInSteps, runToEnd


def nodeIds(scene):
    return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}


@pytest.fixture
def result(rater_probability, ms_images, make_result, slice_attention, correlation_attention):
    doubt = SpatialAttention("doubt", "Doubt", rater_probability, 1.0)
    return make_result(
        {"MS lesion": rater_probability}, ms_images, minMl=0.02,
        attention=[doubt, slice_attention, correlation_attention],
    )  # fmt: skip


def test_no_step_moves_more_than_a_slab():
    source = np.arange(60 * 256 * 256, dtype=np.float32).reshape(60, 256, 256)
    target, moved = np.zeros_like(source), 0
    for _ in copyInSteps(target, source):
        now = np.count_nonzero(target)
        assert 4 * (now - moved) <= SLAB_BYTES + 4
        moved = now
    assert np.array_equal(target, source)


def test_a_result_comes_node_by_node_each_whole_and_as_a_run_at_the_end(core, flair, result):
    scene, steps, count = core.scene, resultSteps(result, core.scene, flair, "run"), 0
    fresh = nodeIds(scene)
    most = 0
    for _ in steps:
        count += 1
        assert findRuns(scene) == {}
        added = [scene.GetNodeByID(i) for i in nodeIds(scene) - fresh]
        most = max(most, sum(bool(node.GetAttribute("MedSeg.Role")) for node in added))
        fresh = nodeIds(scene)
        for node in added:
            if node.IsA("vtkMRMLVolumeNode"):
                assert node.GetImageData().GetPointData().GetScalars().GetNumberOfTuples() > 0
    # The volumes' copies, their nodes, masks, checksums, tables: none together with another one.
    assert count > 20
    assert most <= 2
    assert sum(len(nodes) for nodes in findRuns(scene)["run"].values()) == 9


def test_steps_that_are_given_up_take_out_what_they_added_and_nothing_else(core, flair, result):
    before, mine = nodeIds(core.scene), []
    for given in (1, 5, 9, 14, 19):
        steps = resultSteps(result, core.scene, flair, "run")
        for _ in range(given):
            next(steps)
        mine.append(core.scene.AddNewNodeByClass("vtkMRMLTextNode", "the user's").GetID())
        steps.close()
        assert nodeIds(core.scene) == before | set(mine)
    hierarchy = core.scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    assert not hierarchy.GetItemByName("run")


def test_lesions_are_measured_one_at_a_time_and_given_up_without_loss(core, flair, result):
    runToEnd(resultSteps(result, core.scene, flair, "run"))
    segments = RunSegments(core.scene, "run")
    table = LesionTable(segments, {"flair": flair})
    old = table.rows()
    segments.recut("MS lesion", 0.3)
    steps, measured = table.updateSteps(), len(table._measured)
    for _ in range(12):
        next(steps)
        assert len(table._measured) <= measured + 1
        measured = len(table._measured)
    steps.close()
    assert table.rows() == old
    again = sum(1 for _ in table.updateSteps())
    assert again > len(table.rows())
    assert table.rows() != old


def test_components_are_those_of_a_second_implementation():
    random = np.random.default_rng(2)
    for part, shape in ((0.05, (20, 21, 22)), (0.1, (30, 5, 40)), (0.3, (9, 9, 9))):
        mask = random.random(shape) < part
        numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        assert np.array_equal(components(np.flatnonzero(mask), shape) + 1, numbers[mask])
    assert components(np.zeros(0, np.int64), (3, 3, 3)).size == 0


def test_falling_order_is_numpys_stable_one():
    random = np.random.default_rng(3)
    many = random.random(700_000) ** 4
    for values in (
        random.random(5000), np.round(random.random(5000), 2), np.zeros(3), np.zeros(0),
        many, np.round(many, 2), np.ones(600_000),
    ):  # fmt: skip
        values = values.astype(np.float32)
        expected = np.argsort(-values, kind="stable")
        assert np.array_equal(runToEnd(fallingOrder(values)), expected)


def test_without_takes_away_what_both_have():
    a, b = np.array([1, 3, 5, 9]), np.array([3, 4, 9])
    assert without(a, b).tolist() == [1, 5]
    assert without(b, a).tolist() == [4]
    assert without(a, a[:0]).tolist() == a.tolist()


def test_the_mean_inside_a_lesion_is_that_of_the_whole_volume_resampled(ms_images, monkeypatch):
    flair = ms_images["flair"]
    affine = flair.affine @ np.diag([1.0, 1.0, 3.0, 1])
    thick = Grid((42, *flair.shape[1:]), affine)
    whole = resample(flair, thick).array
    box = (slice(18, 24), slice(60, 80), slice(50, 90))
    mask = np.zeros((6, 20, 40), bool)
    mask[1:5, 3:15, 6:30] = True
    for voxels in (Resampling.VOXELS_A_STEP, 900):
        monkeypatch.setattr(Resampling, "VOXELS_A_STEP", voxels)
        mean = runToEnd(meanInside(flair, thick.crop(box), mask))
        assert mean == pytest.approx(whole[box][mask].mean(), rel=1e-4)
    away = Grid((2, 2, 2), np.diag([1.0, 1, 1, 1]) + 900 * np.outer([1, 1, 1, 0], [0, 0, 0, 1]))
    assert runToEnd(meanInside(flair, away, np.ones((2, 2, 2), bool))) is None
