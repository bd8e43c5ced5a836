"""A segment follows its threshold, and nothing that a user did is lost."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import slicer
from scipy import ndimage

from medsegcore.errors import EditedSegmentError, MissingInputError, SettingError
from medsegcore.imaging import Image, reorient
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.Lattice import kjiOf, placesIn
from SlicerMedSegLib.LiveThreshold import LiveThreshold
from SlicerMedSegLib.ResultToScene import addResultToScene
from SlicerMedSegLib.RunSegments import RunSegments
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

LABEL = "MS lesion"


@pytest.fixture
def nodes(core, flair, rater_result):
    return addResultToScene(rater_result, core.scene, flair, "run")


@pytest.fixture
def live(core, nodes):
    return LiveThreshold(RunSegments(core.scene, "run"))


def inScene(node, volume, segmentId="Segment_1"):
    """The segment's voxels as Slicer gives them on a volume's grid."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volume) > 0


def paint(node, volume, box, segmentId="Segment_1"):
    """What a user's brush does."""
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volume).copy()
    array[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segmentId, volume)


def test_the_segment_is_what_the_predictor_gives_at_each_threshold(
    live, nodes, flair, rater_result
):
    for value in (0.45, 0.2, 0.31, 0.8, 0.05, 0.99, 0.5):
        live.setThreshold(LABEL, value)
        expected = rater_result.relabel({LABEL: value}, 0.02).labelmap > 0
        assert np.array_equal(inScene(nodes.segmentation, flair), expected), value
        assert live.threshold(LABEL) == value
    # That lesions below 0.02 ml stay out is part of it.
    assert (rater_result.relabel({LABEL: 0.5}, 0.0).labelmap > 0).sum() > expected.sum()


def test_a_step_writes_those_voxels_alone_that_change(live, monkeypatch):
    written = []
    for name in ("_paint", "_modify"):
        method = getattr(RunSegments, name)

        def counted(self, label, voxels, *rest, method=method):
            done = method(self, label, voxels, *rest)
            # `_paint` says that it did nothing where `_modify` has to.
            if done is not False:
                written.append(voxels)
            return done

        monkeypatch.setattr(RunSegments, name, counted)
    live.setThreshold(LABEL, 0.5 - 1e-9)
    for value in (0.4, 0.6, 0.05):
        before = live.segments.mask(LABEL).copy()
        written.clear()
        changed = live.setThreshold(LABEL, value)
        expected = np.flatnonzero(before ^ live.segments.mask(LABEL))
        assert 0 < changed == expected.size < before.size // 10
        assert np.array_equal(np.sort(np.concatenate(written)), expected)


def test_a_drag_is_one_step_of_undo_and_of_redo(live, nodes, flair):
    before = inScene(nodes.segmentation, flair)
    for value in (0.45, 0.4, 0.3):
        live.setThreshold(LABEL, value)
    live.finishDrag()
    after = inScene(nodes.segmentation, flair)
    for value in (0.6, 0.7):
        live.setThreshold(LABEL, value)
    live.finishDrag()
    history = live.segments.history
    assert history.RestorePreviousState()
    assert np.array_equal(inScene(nodes.segmentation, flair), after)
    assert (live.threshold(LABEL), live.edited(LABEL)) == (0.3, False)
    assert history.RestorePreviousState()
    assert np.array_equal(inScene(nodes.segmentation, flair), before)
    assert live.threshold(LABEL) == 0.5
    assert history.RestoreNextState()
    assert np.array_equal(inScene(nodes.segmentation, flair), after)
    live.setThreshold(LABEL, 0.5)
    assert np.array_equal(inScene(nodes.segmentation, flair), before)


def test_a_segment_that_the_user_edited_is_left_alone_until_that_is_undone(live, nodes, flair):
    history = live.segments.history
    history.SaveState()
    paint(nodes.segmentation, flair, np.s_[5:9, 5:9, 5:9])
    painted = inScene(nodes.segmentation, flair)
    states = history.GetNumberOfStates()
    assert live.edited(LABEL)
    with pytest.raises(EditedSegmentError, match="edited by hand"):
        live.setThreshold(LABEL, 0.3)
    assert np.array_equal(inScene(nodes.segmentation, flair), painted)
    assert history.GetNumberOfStates() == states
    history.RestorePreviousState()
    assert not live.edited(LABEL)
    assert live.setThreshold(LABEL, 0.3) > 0


def test_moving_a_segment_counts_as_an_edit(live, nodes):
    shift = slicer.vtkMRMLLinearTransformNode()
    nodes.segmentation.GetScene().AddNode(shift)
    matrix = np.eye(4)
    matrix[0, 3] = 7.0
    shift.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    nodes.segmentation.SetAndObserveTransformNodeID(shift.GetID())
    nodes.segmentation.HardenTransform()
    assert live.edited(LABEL)


def test_a_segment_without_voxels_of_its_own_counts_as_edited(live, nodes):
    nodes.segmentation.CreateClosedSurfaceRepresentation()
    segmentation = nodes.segmentation.GetSegmentation()
    segmentation.SetSourceRepresentationName("Closed surface")
    segmentation.RemoveRepresentation("Binary labelmap")
    with pytest.raises(EditedSegmentError):
        live.setThreshold(LABEL, 0.3)


def test_a_loaded_scene_goes_on_where_the_saved_one_was(
    core, live, nodes, flair, rater_result, tmp_path
):
    live.setThreshold(LABEL, 0.35)
    core.saveScene(tmp_path / "mine.mrb")
    paint(nodes.segmentation, flair, np.s_[5:9, 5:9, 5:9])
    core.saveScene(tmp_path / "edited.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "mine.mrb")
        again = LiveThreshold(RunSegments(other.scene, "run"))
        assert (again.threshold(LABEL), again.edited(LABEL)) == (0.35, False)
        again.setThreshold(LABEL, 0.6)
        expected = rater_result.relabel({LABEL: 0.6}, 0.02)
        turned = reorient(Image(expected.labelmap, expected.grid.affine), "RAS").array > 0
        assert np.array_equal(again.segments.mask(LABEL), turned)
        volume = other.scene.GetFirstNodeByName("FLAIR")
        assert inScene(again.segments.segmentation, volume).sum() == turned.sum()
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "edited.mrb")
        assert LiveThreshold(RunSegments(other.scene, "run")).edited(LABEL)


@pytest.fixture
def two(rater_probability, make_result, ms_images):
    """Two labels that compete: the lesions, and what lies round them."""
    wide = np.clip(ndimage.gaussian_filter(rater_probability, 3.0) * 1.2, 0, 0.9)
    return make_result({"core": rater_probability, "rim": wide.astype(np.float32)}, ms_images)


def test_neighbours_give_and_take_as_the_predictor_says(core, flair, two):
    nodes = addResultToScene(two, core.scene, flair, "two")
    live = LiveThreshold(RunSegments(core.scene, "two"))
    thresholds = {}
    for label, value in (("core", 0.7), ("rim", 0.3), ("core", 0.2), ("rim", 0.6), ("core", 0.9)):
        thresholds[label] = value
        live.setThreshold(label, value)
        expected = two.relabel(thresholds).labelmap
        for n in (1, 2):
            found = inScene(nodes.segmentation, flair, f"Segment_{n}")
            assert np.array_equal(found, expected == n), (label, value, n)


def test_a_lesion_that_was_dropped_stays_out_while_thresholds_move(core, flair, two):
    addResultToScene(two, core.scene, flair, "two")
    segments = RunSegments(core.scene, "two")
    stack = np.stack([segments.probabilities[label] for label in segments.labels])
    thresholds, dropped = {"core": 0.5, "rim": 0.5}, {"core": [], "rim": []}

    def check():
        limits = np.array([thresholds[label] for label in segments.labels], np.float32)
        inside = np.where(stack >= limits[:, None, None, None], stack, 0)
        owner = np.where(inside.max(axis=0) > 0, inside.argmax(axis=0) + 1, 0)
        for n, label in enumerate(segments.labels):
            found, count = ndimage.label(owner == n + 1, np.ones((3, 3, 3)))
            highest = ndimage.maximum_position(stack[n], found, range(1, count + 1))
            for number, place in enumerate(highest, 1):
                if place in dropped[label]:
                    found[found == number] = 0
            assert np.array_equal(segments.mask(label), found > 0), (label, thresholds)

    def drop(label, number):
        found, _count = ndimage.label(segments.mask(label), np.ones((3, 3, 3)))
        voxels = np.flatnonzero(found == number)
        n = segments.labels.index(label)
        peak = voxels[stack[n].reshape(-1)[voxels].argmax()]
        dropped[label].append(np.unravel_index(peak, found.shape))
        segments.recut(label, dropped=[*segments.dropped(label), voxels])
        check()

    def move(label, value):
        thresholds[label] = value
        segments.recut(label, value)
        check()

    check()
    drop("core", 1)
    move("core", 0.3)
    drop("rim", 1)
    move("rim", 0.25)
    move("core", 0.8)
    drop("core", 2)
    move("rim", 0.7)
    for label in segments.labels:
        dropped[label].clear()
        segments.recut(label, dropped=[])
        check()


def test_an_organ_stays_in_one_piece_at_each_threshold(core, flair, two, tmp_path):
    labels = [label.model_copy(update={"one_piece": label.name == "rim"}) for label in two.labels]
    organ = replace(two, labels=labels).relabel({"core": 0.5, "rim": 0.5})
    nodes = addResultToScene(organ, core.scene, flair, "organ")
    live = LiveThreshold(RunSegments(core.scene, "organ"))
    thresholds, several = {"core": 0.5, "rim": 0.5}, []
    for label, value in (("rim", 0.3), ("core", 0.3), ("rim", 0.7), ("core", 0.9), ("rim", 0.1)):
        thresholds[label] = value
        live.setThreshold(label, value)
        expected = organ.relabel(thresholds).labelmap
        for n in (1, 2):
            found = inScene(nodes.segmentation, flair, f"Segment_{n}")
            assert np.array_equal(found, expected == n), (label, value, n)
        assert ndimage.label(expected == 2, np.ones((3, 3, 3)))[1] == 1
        several.append(ndimage.label(two.relabel(thresholds).labelmap == 2)[1])
    assert max(several) > 1
    core.saveScene(tmp_path / "organ.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "organ.mrb")
        again = RunSegments(other.scene, "organ")
        again.recut("rim", 0.7)
        thresholds["rim"] = 0.7
        expected = organ.relabel(thresholds).labelmap == 2
        assert again.mask("rim").sum() == expected.sum()


def test_an_edited_neighbour_neither_loses_nor_is_overlapped(core, flair, two):
    nodes = addResultToScene(two, core.scene, flair, "two")
    live = LiveThreshold(RunSegments(core.scene, "two"))
    paint(nodes.segmentation, flair, np.s_[40:44, 40:44, 40:44], "Segment_2")
    rim = inScene(nodes.segmentation, flair, "Segment_2")
    live.setThreshold("core", 0.05)
    assert np.array_equal(inScene(nodes.segmentation, flair, "Segment_2"), rim)
    assert not (inScene(nodes.segmentation, flair, "Segment_1") & rim).any()


def test_segments_that_share_a_layer_keep_sharing_it(core, flair, two):
    nodes = addResultToScene(two, core.scene, flair, "two")
    nodes.segmentation.GetSegmentation().CollapseBinaryLabelmaps(False)
    live = LiveThreshold(RunSegments(core.scene, "two"))
    live.setThreshold("core", 0.2)
    live.setThreshold("rim", 0.2)
    expected = two.relabel({"core": 0.2, "rim": 0.2}).labelmap
    for n in (1, 2):
        found = inScene(nodes.segmentation, flair, f"Segment_{n}")
        assert np.array_equal(found, expected == n)
    assert nodes.segmentation.GetSegmentation().GetNumberOfLayers() == 1


def test_the_surface_in_3d_follows_when_the_slider_is_let_go(live, nodes):
    nodes.segmentation.CreateClosedSurfaceRepresentation()
    segment = nodes.segmentation.GetSegmentation().GetSegment("Segment_1")
    before = segment.GetRepresentation("Closed surface").GetNumberOfPoints()
    live.setThreshold(LABEL, 0.8)
    live.finishDrag()
    assert 0 < segment.GetRepresentation("Closed surface").GetNumberOfPoints() < before


@pytest.mark.parametrize("value", [0.0, -0.2, 1.5, float("nan")])
def test_thresholds_out_of_range_are_refused(live, nodes, flair, value):
    before = inScene(nodes.segmentation, flair)
    with pytest.raises(SettingError, match="threshold of 'MS lesion'"):
        live.setThreshold(LABEL, value)
    assert np.array_equal(inScene(nodes.segmentation, flair), before)
    assert live.segments.history.GetNumberOfStates() == 0


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "PIL"])
def test_flipped_and_permuted_axes_are_cut_the_same(
    core, ms_images, rater_probability, make_result, orientation
):
    images = {"flair": reorient(ms_images["flair"], orientation)}
    turned = reorient(Image(rater_probability, ms_images["flair"].affine), orientation)
    volume = volumeNodeFromImage(images["flair"], "turned", core.scene)
    result = make_result({LABEL: turned.array}, images, 0.02)
    nodes = addResultToScene(result, core.scene, volume, "turned")
    live = LiveThreshold(RunSegments(core.scene, "turned"))
    assert not live.edited(LABEL)
    for value in (0.3, 0.7):
        live.setThreshold(LABEL, value)
        expected = result.relabel({LABEL: value}, 0.02).labelmap > 0
        assert np.array_equal(inScene(nodes.segmentation, volume), expected)


def test_a_voxel_is_found_in_memory_however_the_axes_run():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for order in itertools.permutations(range(3)):
        for steps in itertools.product((1, -1), repeat=3):
            view = array.transpose(order)[tuple(slice(None, None, step) for step in steps)]
            kji = kjiOf(np.arange(view.size), view.shape)
            assert np.array_equal(np.stack(kji), np.indices(view.shape).reshape(3, -1))
            assert np.array_equal(array.reshape(-1)[placesIn(view, kji)], view[kji])


def test_an_empty_segment_can_be_filled_again(core, flair, rater_probability, make_result):
    result = make_result({LABEL: rater_probability * 0.9}, {"flair": imageOf(flair)})
    nodes = addResultToScene(result, core.scene, flair, "pale")
    live = LiveThreshold(RunSegments(core.scene, "pale"))
    live.setThreshold(LABEL, 0.95)
    assert live.segments.mask(LABEL).sum() == 0
    live.setThreshold(LABEL, 0.4)
    expected = result.relabel({LABEL: 0.4}).labelmap > 0
    assert np.array_equal(inScene(nodes.segmentation, flair), expected)


def imageOf(node):
    from SlicerMedSegLib.SceneConversion import imageFromVolumeNode

    return imageFromVolumeNode(node)


def test_what_is_not_there_any_more_is_named(core, live, nodes):
    with pytest.raises(MissingInputError, match="no segmentation with probabilities of 'other'"):
        RunSegments(core.scene, "other")
    nodes.segmentation.GetSegmentation().RemoveSegment("Segment_1")
    with pytest.raises(MissingInputError, match="no segment of 'MS lesion'"):
        live.setThreshold(LABEL, 0.3)
    core.scene.Clear()
    with pytest.raises(MissingInputError):
        live.setThreshold(LABEL, 0.3)
    assert live.segments.history.GetSegmentation() is None
