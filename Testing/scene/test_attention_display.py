"""Maps over the views and beside them; the views come back as they were."""

import numpy as np
import pytest
import slicer
import vtk

from medsegcore.errors import MissingInputError, SettingError
from medsegcore.inference import SpatialAttention
from medsegcore.inference.attention import BIT, DEVIATION
from SlicerMedSegLib.AttentionDisplay import AttentionDisplay, attentionMaps
from SlicerMedSegLib.CorrelationProbe import CorrelationProbe
from SlicerMedSegLib.CorrelationStore import loadCorrelation
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.ResultToScene import addResultToScene, findRuns
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.SceneViews import SliceView
from SlicerMedSegLib.SliceAttentionView import SliceAttentionView

SIZE = (200, 200)


@pytest.fixture
def nodes(core, flair, rater_probability, ms_images, make_result, slice_attention,
          correlation_attention):  # fmt: skip
    level = (ms_images["t1"].array / ms_images["t1"].array.max()).astype(np.float32)
    spatial = [
        SpatialAttention("decoder", "Decoder activation", rater_probability, 3.0),
        SpatialAttention("encoder", "Encoder activation", level, 2.0),
    ]
    result = make_result(
        {"MS lesion": rater_probability}, ms_images,
        attention=[*spatial, slice_attention, correlation_attention],
    )  # fmt: skip
    return addResultToScene(result, core.scene, flair, "run")


@pytest.fixture
def views(core, flair, ms_images):
    """Two slice views that the user has set up: T1 over FLAIR, each with a zoom of its own."""
    t1 = volumeNodeFromImage(ms_images["t1"], "T1", core.scene)
    with SliceView(core, "Axial", SIZE) as axial, SliceView(core, "Sagittal", SIZE) as sagittal:
        for n, view in enumerate((axial, sagittal)):
            view.show(flair, (3 * n, -20, 10), 150 + 20 * n, t1, 0.3)
            composite = view.logic.GetSliceCompositeNode()
            composite.SetCompositing(composite.ReverseAlpha)
        yield axial, sagittal


def setUp(view):
    """Everything of a view that the user set up."""
    composite, node = view.logic.GetSliceCompositeNode(), view.node
    return (
        composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(),
        composite.GetForegroundOpacity(), composite.GetCompositing(),
        composite.GetLabelVolumeID(), node.GetFieldOfView(), node.GetXYZOrigin(),
        node.GetDimensions(), slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).tolist(),
        sorted(composite.GetAttributeNames()),
    )  # fmt: skip


def nodeIds(scene):
    return sorted(scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes()))


def test_the_maps_of_a_run_can_be_chosen(core, nodes):
    maps = attentionMaps(core.scene, "run")
    assert [(m.key, m.kind, m.title) for m in maps] == [
        ("decoder", "spatial", "Decoder activation"),
        ("encoder", "spatial", "Encoder activation"),
        ("rsa_axial", "slice", "Slice attention, axial"),
        ("scff", "correlation", "T1 to FLAIR"),
    ]
    assert attentionMaps(core.scene, "no such run") == []


def test_a_map_is_seen_in_every_view_and_off_restores_each(core, nodes, views):
    before, pictures = [setUp(v) for v in views], [v.capture() for v in views]
    ids = nodeIds(core.scene)
    display = AttentionDisplay(core.scene)
    display.show(nodes.attention["encoder"], 0.9)
    assert display.shown is nodes.attention["encoder"]
    for view, picture in zip(views, pictures, strict=True):
        assert (view.capture() != picture).any(axis=-1).mean() > 0.1
    display.show(nodes.attention["decoder"], 0.9)
    display.off()
    assert [setUp(v) for v in views] == before
    for view, picture in zip(views, pictures, strict=True):
        assert np.array_equal(view.capture(), picture)
    assert nodeIds(core.scene) == ids
    assert display.shown is None
    display.off()


def test_the_map_has_a_color_legend_in_slice_views_alone(core, nodes, views):
    display = AttentionDisplay(core.scene)
    volume = nodes.attention["decoder"]
    display.show(volume)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)
    assert legend.GetVisibility()
    assert legend.GetTitleText() == "Decoder activation\n(share of the highest value)"
    assert [legend.IsDisplayableInView(v.node.GetID()) for v in views] == [1, 1]
    assert not legend.IsDisplayableInView("vtkMRMLViewNode1")
    with_legend = views[0].capture()
    legend.SetVisibility(0)
    assert not np.array_equal(views[0].capture(), with_legend)


def test_uncertainty_is_shown_by_its_own_values_in_a_window_that_is_the_same_for_all_cases(
    core, flair, rater_probability, ms_images, make_result, tmp_path
):
    quarter = (0.25 * rater_probability).astype(np.float32)
    maps = [
        SpatialAttention("uncertainty_dropout", "Over dropout", quarter, 1.0, DEVIATION),
        SpatialAttention("uncertainty_entropy", "Entropy", rater_probability, 1.0, BIT),
    ]
    result = make_result({"MS lesion": rater_probability}, ms_images, attention=maps)
    addResultToScene(result, core.scene, flair, "unsure")
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as opened:
        opened.loadScene(tmp_path / "scene.mrb")
        shown = {m.key: m.node for m in attentionMaps(opened.scene, "unsure")}
        display = AttentionDisplay(opened.scene)
        for key, highest, text in (
            ("uncertainty_dropout", 0.5, "(standard deviation of the probability)"),
            ("uncertainty_entropy", 1.0, "(entropy in bit)"),
        ):
            node = shown[key]
            display.show(node)
            legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
            assert legend.GetTitleText().splitlines()[1] == text
            window = node.GetDisplayNode()
            assert (window.GetWindowLevelMin(), window.GetWindowLevelMax()) == (0, highest)
            assert window.GetLowerThreshold() == pytest.approx(0.05 * highest)
            display.setWindow(0.0, highest / 2)
            assert window.GetLowerThreshold() == pytest.approx(0.05 * highest)


def test_a_view_that_does_not_show_the_map_has_no_legend(core, nodes, views, flair):
    volume = nodes.attention["decoder"]
    AttentionDisplay(core.scene).show(volume, 0.0)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)

    def seen():
        there = [legend.IsDisplayableInView(v.node.GetID()) for v in views]
        return there if legend.GetVisibility() else None

    assert seen() is None
    AttentionDisplay(core.scene).setOpacity(0.8)
    display = AttentionDisplay(core.scene)
    display.setOpacity(0.7)
    assert seen() == [1, 1]
    axial, sagittal = (v.logic.GetSliceCompositeNode() for v in views)
    sagittal.SetForegroundVolumeID(flair.GetID())
    assert seen() == [1, 0]
    # Who hides the legend does not get it back by looking at the map otherwise.
    legend.SetVisibility(0)
    axial.SetForegroundOpacity(0.5)
    assert seen() is None
    legend.SetVisibility(1)
    axial.SetForegroundOpacity(0)
    assert seen() is None
    sagittal.SetForegroundVolumeID(volume.GetID())
    assert seen() == [0, 1]


def test_a_legend_that_the_user_had_stays_as_it_was(core, nodes, views):
    volume = nodes.attention["decoder"]
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(volume)
    legend.SetVisibility(0)
    legend.SetTitleText("mine")
    display = AttentionDisplay(core.scene)
    display.show(volume)
    assert legend.GetVisibility()
    display.off()
    assert slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume) is legend
    assert (legend.GetVisibility(), legend.GetTitleText()) == (0, "mine")


def test_opacity_and_window_change_what_is_seen(core, nodes, views):
    display = AttentionDisplay(core.scene)
    display.show(nodes.attention["encoder"], 1.0)
    full = views[0].capture()
    display.setOpacity(0.3)
    assert not np.array_equal(views[0].capture(), full)
    display.setOpacity(1.0)
    display.setWindow(0.6, 0.9)
    assert not np.array_equal(views[0].capture(), full)
    shown = nodes.attention["encoder"].GetDisplayNode()
    assert (shown.GetWindowLevelMin(), shown.GetWindowLevelMax()) == pytest.approx((0.6, 0.9))
    with pytest.raises(SettingError, match=r"opacity is 1\.2"):
        display.setOpacity(1.2)
    with pytest.raises(SettingError, match="is empty"):
        display.setWindow(0.5, 0.5)


def test_what_the_user_changed_meanwhile_is_kept(core, nodes, views, flair):
    display = AttentionDisplay(core.scene)
    display.show(nodes.attention["decoder"])
    axial, sagittal = views
    chosen = sagittal.logic.GetSliceCompositeNode()
    chosen.SetForegroundVolumeID(flair.GetID())
    axial.node.JumpSliceByCentering(11, 12, 13)
    display.off()
    assert chosen.GetForegroundVolumeID() == flair.GetID()
    assert axial.node.GetSliceToRAS().GetElement(2, 3) == pytest.approx(13)
    assert axial.logic.GetSliceCompositeNode().GetForegroundOpacity() == pytest.approx(0.3)


def test_a_view_that_is_added_later_shows_the_map_too(core, nodes, views):
    display = AttentionDisplay(core.scene)
    display.show(nodes.attention["decoder"], 0.8)
    with SliceView(core, "Coronal", SIZE) as late:
        composite = late.logic.GetSliceCompositeNode()
        assert composite.GetForegroundVolumeID() == nodes.attention["decoder"].GetID()
        display.off()
        assert composite.GetForegroundVolumeID() is None


def test_deleting_the_map_gives_the_views_back(core, nodes, views):
    before = [setUp(v) for v in views]
    display = AttentionDisplay(core.scene)
    display.show(nodes.attention["decoder"])
    core.scene.RemoveNode(nodes.attention["decoder"])
    assert [setUp(v) for v in views] == before
    with pytest.raises(MissingInputError, match="not in the scene any more"):
        display.show(nodes.attention["decoder"])


def test_after_a_reload_another_display_takes_over(core, nodes, views):
    before = [setUp(v) for v in views]
    first = AttentionDisplay(core.scene)
    first.show(nodes.attention["decoder"])
    first.close()
    second = AttentionDisplay(core.scene)
    assert second.shown is nodes.attention["decoder"]
    second.show(nodes.attention["encoder"], 0.4)
    second.off()
    assert [setUp(v) for v in views] == before
    assert len(first._observers) == len(second._observers) == 0


def test_off_works_after_the_scene_was_saved_and_loaded_while_a_map_was_on(
    core, nodes, views, tmp_path
):
    AttentionDisplay(core.scene).show(nodes.attention["decoder"])
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        display = AttentionDisplay(other.scene)
        assert display.shown.GetAttribute("MedSeg.Key") == "decoder"
        display.off()
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", other.scene):
            foreground = other.scene.GetNodeByID(composite.GetForegroundVolumeID())
            assert foreground.GetName() == "T1"
            assert composite.GetForegroundOpacity() == pytest.approx(0.3)
            assert composite.GetCompositing() == composite.ReverseAlpha
        assert other.scene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode") is None


def test_closing_the_scene_leaves_no_observer(core, nodes, views, flair):
    display = AttentionDisplay(core.scene)
    display.show(nodes.attention["decoder"])
    beside = SliceAttentionView(core.scene, nodes.attention["rsa_axial"])
    beside.on(views[0].node, gridOf(flair))
    (store,) = findRuns(core.scene)["run"]["correlation"]
    probe = CorrelationProbe(core.scene, store)
    probe.on()
    core.scene.Clear()
    for part in (display, beside, probe):
        assert len(part._observers) == 0
    assert (display.shown, beside.weights, probe.map, probe.point) == (None,) * 4
    # Nothing of ours answers to what the views do now.
    views[0].node.SetSliceOffset(5)
    core.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "new")


def gridOf(node):
    from SlicerMedSegLib.SceneConversion import imageFromVolumeNode

    return imageFromVolumeNode(node).grid


# Slice attention beside the views


@pytest.fixture
def beside(core, nodes, views, flair):
    view = SliceAttentionView(core.scene, nodes.attention["rsa_axial"])
    view.on(SliceAttentionView.sliceNodeFor(core.scene, "axial"), gridOf(flair))
    yield view
    view.off()


def test_the_row_follows_while_the_user_scrolls(beside, views, slice_attention):
    told = []
    beside._changed = lambda: told.append(beside.row)
    assert beside.sliceNode is views[0].node
    for s in (-40.0, 0.5, 30.0):
        views[0].node.SetSliceOffset(s)
        expected = slice_attention.row_at(np.array([0, 0, s]))
        assert beside.row == expected
        curve = slicer.util.arrayFromTableColumn(beside._curve, "weight")
        np.testing.assert_allclose(curve, slice_attention.matrix[expected], atol=1e-6)
        mark = slicer.util.arrayFromTableColumn(beside._mark, "place_mm")
        assert abs(mark[0] - s) <= 2.01
    assert len(told) == 3


def test_the_weights_lie_where_their_slices_are(core, beside, views, slice_attention):
    views[0].node.SetSliceOffset(10.0)
    row = slice_attention.matrix[beside.row]
    best = int(row.argmax())
    world, ijk = [*slice_attention.centers_ras[best], 1.0], [0.0] * 4
    matrix = vtk.vtkMatrix4x4()
    beside.weights.GetRASToIJKMatrix(matrix)
    matrix.MultiplyPoint(world, ijk)
    array = slicer.util.arrayFromVolume(beside.weights)
    assert array[round(ijk[2])].max() == pytest.approx(1.0)
    np.testing.assert_allclose(array[:, 0, 0], row / row.max(), atol=1e-6)
    # In the sagittal view the weights are bands across the whole head.
    display = AttentionDisplay(core.scene)
    plain = views[1].capture()
    display.show(beside.weights, 1.0)
    banded = views[1].capture()
    display.off()
    rows = (banded != plain).any(axis=-1).mean(axis=1)
    assert rows.max() > 0.6


def test_a_click_on_the_heat_map_jumps_to_the_slice(beside, views, slice_attention):
    picture = beside.heatMap(310)
    assert picture.shape == (310, 310, 3)
    row, column = beside.cellAt(205, 100, 310)
    assert (row, column) == (20, 20)
    beside.jumpTo(column)
    assert views[0].node.GetSliceToRAS().GetElement(2, 3) == pytest.approx(
        slice_attention.centers_ras[20, 2]
    )
    assert beside.row == 20
    marked = beside.heatMap(310)
    white = np.flatnonzero((marked == 255).all(axis=(1, 2)))
    # Row 20 lies between pixels 100 and 109, counted from the top.
    assert white.tolist() == [99, 110]


def test_off_takes_the_curve_and_the_weights_out_of_the_scene(core, nodes, views, flair):
    view = SliceAttentionView(core.scene, nodes.attention["rsa_axial"])
    AttentionDisplay(core.scene).show(nodes.attention["decoder"])  # makes the overlay's colors
    AttentionDisplay(core.scene).off()
    before = nodeIds(core.scene)
    view.on(views[0].node, gridOf(flair))
    assert view.chart.GetNumberOfPlotSeriesNodes() == 2
    assert len(nodeIds(core.scene)) > len(before)
    view.off()
    assert nodeIds(core.scene) == before
    with pytest.raises(MissingInputError, match="no slice attention"):
        SliceAttentionView(core.scene, nodes.lesions)


# Correlation


def test_the_map_follows_the_point(core, nodes, correlation_attention):
    (store,) = findRuns(core.scene)["run"]["correlation"]
    probe = CorrelationProbe(core.scene, store)
    told = []
    probe.on(ras=(20, -30, 0), changed=lambda: told.append(1))
    for ras in ([20, -30, 0], [-22.0, -60, 8], [10, 11, -12]):
        probe.point.SetNthControlPointPositionWorld(0, *ras)
        expected = correlation_attention.map_at(np.array(ras))
        shown = slicer.util.arrayFromVolume(probe.map)
        np.testing.assert_allclose(shown, expected.array / expected.array.max(), atol=1e-6)
    calls = len(told)
    probe.point.SetNthControlPointPositionWorld(0, 10.4, 11.3, -12)
    assert len(told) == calls
    point = probe.point
    probe.off()
    point.SetNthControlPointPositionWorld(0, 0, 0, 0)
    assert len(told) == calls
    assert point.GetScene() is None


def test_the_users_own_point_is_followed_and_stays(core, nodes):
    mine = core.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "mine")
    (store,) = findRuns(core.scene)["run"]["correlation"]
    probe = CorrelationProbe(core.scene, store)
    probe.on(pointNode=mine)
    assert probe.map.GetImageData() is None
    mine.AddControlPointWorld(vtk.vtkVector3d(5, -20, 0))
    assert slicer.util.arrayFromVolume(probe.map).max() == pytest.approx(1.0)
    probe.off()
    assert mine.GetScene() is core.scene


def test_the_maps_survive_the_scene_bit_by_bit(core, nodes, correlation_attention, tmp_path):
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        (store,) = findRuns(other.scene)["run"]["correlation"]
        assert store.GetHideFromEditors()
        back = loadCorrelation(store)
        assert np.array_equal(back.maps, correlation_attention.maps)
        np.testing.assert_allclose(back.affine, correlation_attention.affine)
        assert (back.key, back.title) == ("scff", "T1 to FLAIR")
        probe = CorrelationProbe(other.scene, store)
        probe.on()
        assert slicer.util.arrayFromVolume(probe.map).max() == pytest.approx(1.0)
        table = next(m for m in attentionMaps(other.scene, "run") if m.kind == "slice")
        again = SliceAttentionView(other.scene, table.node)
        np.testing.assert_allclose(again.matrix.sum(axis=1), 1, atol=1e-4)


def test_what_is_made_for_looking_alone_is_not_saved(core, nodes, views, flair, tmp_path):
    (store,) = findRuns(core.scene)["run"]["correlation"]
    CorrelationProbe(core.scene, store).on()
    beside = SliceAttentionView(core.scene, nodes.attention["rsa_axial"])
    beside.on(views[0].node, gridOf(flair))
    core.saveScene(tmp_path / "scene.mrb")
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        names = [other.scene.GetNthNode(n).GetName() for n in range(other.scene.GetNumberOfNodes())]
    assert "MedSeg point" not in names
    assert not [n for n in names if n and n.endswith(": weights")]


def test_maps_follow_when_the_images_are_moved_after_the_run(
    core, flair, ms_images, rater_probability, make_result, slice_attention, correlation_attention,
    tmp_path
):  # fmt: skip
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "T")
    flair.SetAndObserveTransformNodeID(transform.GetID())
    attention = [slice_attention, correlation_attention]
    result = make_result({"MS lesion": rater_probability}, ms_images, 0.02, attention)
    nodes = addResultToScene(result, core.scene, flair, "run")
    table = nodes.attention["rsa_axial"]
    (store,) = findRuns(core.scene)["run"]["correlation"]
    np.testing.assert_allclose(
        SliceAttentionView(core.scene, table).centers, slice_attention.centers_ras, atol=1e-6
    )
    np.testing.assert_allclose(
        loadCorrelation(store).affine, correlation_attention.affine, atol=1e-6
    )
    turn = np.array([[0, -1, 0, 5], [1, 0, 0, -7], [0, 0, 1, 40], [0, 0, 0, 1.0]])
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(turn))
    view = SliceAttentionView(core.scene, table)
    np.testing.assert_allclose(
        view.centers, slice_attention.centers_ras @ turn[:3, :3].T + turn[:3, 3], atol=1e-6
    )
    np.testing.assert_allclose(
        loadCorrelation(store).affine, turn @ correlation_attention.affine, atol=1e-6
    )
