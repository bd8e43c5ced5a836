"""A radiologist's hands on the attention: maps over the views, slices, points, and all off."""

from pathlib import Path

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parent / "PanelParts" / "PanelParts.py"
LABEL = "MS lesion"


def addRun(host, flair, result, name="run"):
    from SlicerMedSegLib.ResultToScene import addResultToScene

    return addResultToScene(result, host.core.scene, flair, name)


@pytest.fixture
def result(rater_probability, ms_images, make_result, slice_attention, correlation_attention):
    """Every kind of map, made of the sample's own images."""
    from medsegcore.inference import SpatialAttention

    level = (ms_images["t1"].array / ms_images["t1"].array.max()).astype(np.float32)
    doubt = (4 * rater_probability * (1 - rater_probability)).astype(np.float32)
    maps = [
        SpatialAttention("uncertainty_entropy", "Uncertainty: entropy", doubt, 1.0),
        SpatialAttention("decoder", "Decoder activation", rater_probability, 3.0),
        SpatialAttention("encoder", "Encoder activation", level, 2.0),
    ]
    return make_result(
        {LABEL: rater_probability}, ms_images,
        attention=[*maps, slice_attention, correlation_attention],
    )  # fmt: skip


@pytest.fixture
def nodes(host, flair, result, ms_images):
    """The run, in views that the user has set up: T1 over FLAIR, zoomed."""
    import slicer

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    t1 = volumeNodeFromImage(ms_images["t1"], "T1", host.core.scene)
    slicer.util.setSliceViewerLayers(foreground=t1, foregroundOpacity=0.25)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.SetFieldOfView(*(0.8 * f for f in node.GetFieldOfView()))
    return addRun(host, flair, result)


@pytest.fixture
def panel(host, nodes):
    opened = host.openModule(MODULE)
    opened.show("run")
    opened.resultsUi.resultsBox.hide()
    host.wait(0)
    return opened


def setUp():
    """Everything of the views that the user set up."""
    import slicer

    found: list = []
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        found.append((
            composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(),
            composite.GetForegroundOpacity(), composite.GetCompositing(),
            composite.GetLabelVolumeID(), sorted(composite.GetAttributeNames()),
        ))  # fmt: skip
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        place = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).tolist()
        found.append((node.GetFieldOfView(), node.GetXYZOrigin(), place))
    return found


def nodeIds():
    import slicer

    scene = slicer.mrmlScene
    return sorted(scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes()))


def composites():
    import slicer

    return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"))


def rowShown(panel):
    """The middle of the row between the white lines of the heat map, in matrix rows."""
    from host.conversion import unwrap

    image = unwrap(panel.attentionUi.heatMapLabel).pixmap().toImage()
    size = image.height()
    # Only the lines are white from the left edge to the right one.
    lines = [
        y for y in range(size)
        if all(image.pixelColor(x, y).name() == "#ffffff" for x in range(0, size, 7))
    ]  # fmt: skip
    assert lines
    inside = (lines[0] + lines[-1]) / 2
    return int((size - 1 - inside) * len(panel.attention.view.matrix) / size)


def test_the_maps_are_listed_by_kind(panel):
    selector = panel.attentionUi.mapSelector
    assert [selector.itemText(n) for n in range(selector.count)] == [
        "Where: Decoder activation",
        "Where: Encoder activation",
        "Slices: Slice attention, axial",
        "Between images: T1 to FLAIR",
        "Uncertainty: entropy",
    ]
    assert panel.attentionUi.showButton.text == "Show"


def test_a_map_is_shown_and_off_gives_the_views_back(host, panel, nodes, tmp_path):
    ui, before, ids = panel.attentionUi, setUp(), nodeIds()
    host.screenshot(tmp_path / "before.png")
    doubt = ("Uncertainty: entropy", "uncertainty_entropy")
    for name, key in (("Where: Decoder activation", "decoder"), doubt):
        host.choose(ui.mapSelector, name)
        host.click(ui.showButton)
        assert ui.showButton.text == "Off"
        shown = {c.GetForegroundVolumeID() for c in composites()}
        assert shown == {nodes.attention[key].GetID()}
        host.screenshot(tmp_path / f"{key}.png")
        host.click(ui.showButton)
        assert (setUp(), nodeIds(), ui.showButton.text) == (before, ids, "Show")


def test_opacity_and_window_are_set_while_a_map_is_shown(host, panel, nodes):
    ui = panel.attentionUi
    with pytest.raises(AssertionError, match="not enabled"):
        host.dragSlider(ui.opacitySlider, 0.3)
    host.click(ui.showButton)
    host.dragSlider(ui.opacitySlider, 0.3)
    assert abs(ui.opacitySlider.value - 0.3) < 0.05
    assert {c.GetForegroundOpacity() for c in composites()} == {ui.opacitySlider.value}
    host.type(ui.windowRange.findChild("QDoubleSpinBox", "MinimumSpinBox"), "0.40")
    host.type(ui.windowRange.findChild("QDoubleSpinBox", "MaximumSpinBox"), "0.90")
    display = nodes.attention["decoder"].GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.4, 0.9)
    # Another map has a window of its own, and this one keeps what it was given.
    host.choose(ui.mapSelector, "Where: Encoder activation")
    assert (ui.windowRange.minimumValue, ui.windowRange.maximumValue) == (0.0, 1.0)
    host.choose(ui.mapSelector, "Where: Decoder activation")
    assert (ui.windowRange.minimumValue, ui.windowRange.maximumValue) == (0.4, 0.9)


def test_the_heat_maps_row_follows_as_the_user_scrolls(host, panel, nodes, tmp_path):
    import slicer

    ui, before, ids = panel.attentionUi, setUp(), nodeIds()
    host.choose(ui.mapSelector, "Slices: Slice attention, axial")
    assert not ui.sliceFrame.visible
    host.click(ui.showButton)
    red = slicer.app.layoutManager().sliceWidget("Red")
    row = rowShown(panel)
    assert row == panel.attention.view.row
    # The view that scrolls would be tinted evenly; the others show which slices are attended to.
    opacities = {c.GetLayoutName(): c.GetForegroundOpacity() for c in composites()}
    assert opacities == {"Red": 0.0, "Yellow": 0.6, "Green": 0.6}
    text = ui.sliceLabel.text
    host.wheel(red.sliceView(), 12)
    assert panel.attention.view.row == row + 3
    assert rowShown(panel) == row + 3
    assert ui.sliceLabel.text != text
    host.screenshot(tmp_path / "slice.png")
    host.wheel(red.sliceView(), -12)
    host.click(ui.showButton)
    assert not ui.sliceFrame.visible
    assert (setUp(), nodeIds()) == (before, ids)


def test_the_row_is_a_curve_in_a_plot_view_that_follows_and_is_saved(host, panel, nodes, tmp_path):
    import slicer

    from SlicerMedSegLib.EmbeddedCore import EmbeddedCore

    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    plot = slicer.mrmlScene.AddNode(slicer.vtkMRMLPlotViewNode())
    plain = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    plotted = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView
    for arrangement in (plain, plotted):
        layout.AddLayoutDescription(arrangement, '<layout type="vertical"/>')
    layout.SetViewArrangement(plain)
    plot.SetLayoutName("PlotView1")
    ui = panel.attentionUi
    host.choose(ui.mapSelector, "Slices: Slice attention, axial")
    host.click(ui.showButton)
    host.click(ui.plotButton)
    view = panel.attention.view
    assert plot.GetPlotChartNodeID() == view.chart.GetID()
    assert layout.GetViewArrangement() == plotted

    def curve(chart):
        series = chart.GetNthPlotSeriesNode(0)
        table = series.GetTableNode().GetTable()
        column = table.GetColumnByName(series.GetYColumnName())
        return [column.GetVariantValue(n).ToDouble() for n in range(table.GetNumberOfRows())]

    first = curve(view.chart)
    host.wheel(slicer.app.layoutManager().sliceWidget("Red").sliceView(), 12)
    order = np.argsort(view.places)
    assert curve(view.chart) == pytest.approx(view.matrix[view.row][order])
    assert curve(view.chart) != first
    bundle = host.core.saveScene(tmp_path / "scene.mrb")
    host.click(ui.plotButton)
    assert layout.GetViewArrangement() == plain
    saved = curve(view.chart)
    with EmbeddedCore() as other:
        other.loadScene(bundle)
        chart = other.scene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
        assert curve(chart) == pytest.approx(saved, rel=1e-4)


def test_a_click_on_the_heat_map_jumps_to_the_slice_that_is_attended_to(host, panel, nodes):
    import slicer

    ui = panel.attentionUi
    host.choose(ui.mapSelector, "Slices: Slice attention, axial")
    host.click(ui.showButton)
    view = panel.attention.view
    for column in (4, 20):
        x = round((column + 0.5) * 280 / len(view.matrix))
        host.click(ui.heatMapLabel, (x, 200))
        offset = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceOffset()
        assert offset == pytest.approx(view.centers[column, 2], abs=0.01)
        assert rowShown(panel) == column


def test_a_point_is_placed_by_a_click_and_its_map_follows(host, panel, nodes, tmp_path):
    import slicer
    from host.conversion import unwrap
    from PySide6 import QtCore, QtTest

    ui, before, ids = panel.attentionUi, setUp(), nodeIds()
    host.choose(ui.mapSelector, "Between images: T1 to FLAIR")
    host.click(ui.showButton)
    probe = panel.attention.probe
    assert {c.GetForegroundVolumeID() for c in composites()} == {probe.map.GetID()}
    first = slicer.util.arrayFromVolume(probe.map).copy()
    host.click(ui.placeButton)
    interaction = slicer.mrmlScene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    assert interaction.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place
    assert slicer.mrmlScene.GetNodeByID(
        "vtkMRMLSelectionNodeSingleton"
    ).GetActivePlaceNodeID() == probe.point.GetID()  # fmt: skip
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    host.wheel(view, 4)
    QtTest.QTest.mouseMove(unwrap(view), QtCore.QPoint(250, 100))
    host.wait(0)
    host.click(view, (250, 100))
    host.wait(0)
    assert not ui.placeButton.checked
    assert probe.point.GetNumberOfDefinedControlPoints() == 1
    matrix = view.mrmlSliceNode().GetXYToRAS()
    clicked = matrix.MultiplyPoint((250, unwrap(view).height() - 1 - 100, 0, 1))[:3]
    placed = [0.0] * 3
    probe.point.GetNthControlPointPositionWorld(0, placed)
    assert placed == pytest.approx(clicked, abs=1.0)
    assert not np.array_equal(slicer.util.arrayFromVolume(probe.map), first)
    host.screenshot(tmp_path / "point.png")
    host.wheel(view, -4)
    host.click(ui.placeButton)
    host.click(ui.showButton)
    assert interaction.GetCurrentInteractionMode() != slicer.vtkMRMLInteractionNode.Place
    left = [n for n in nodeIds() if n not in ids]
    assert (setUp(), left) == (before, [])
    assert (ui.correlationFrame.visible, ui.placeButton.checked) == (False, False)


def test_a_point_that_the_user_deletes_ends_its_map(host, panel, nodes):
    import slicer

    before = setUp()
    host.choose(panel.attentionUi.mapSelector, "Between images: T1 to FLAIR")
    host.click(panel.attentionUi.showButton)
    slicer.mrmlScene.RemoveNode(panel.attention.probe.point)
    host.wait(10)
    assert panel.attentionUi.showButton.text == "Show"
    assert setUp() == before


def test_a_map_that_is_deleted_leaves_the_list(host, panel, nodes):
    import slicer

    before = setUp()
    host.click(panel.attentionUi.showButton)
    slicer.mrmlScene.RemoveNode(nodes.attention["decoder"])
    host.wait(10)
    selector = panel.attentionUi.mapSelector
    assert selector.itemText(0) == "Where: Encoder activation"
    assert panel.attentionUi.showButton.text == "Show"
    assert setUp() == before


def test_leaving_the_module_takes_everything_off(host, panel, nodes):
    import slicer

    before, ids = setUp(), nodeIds()
    for n in range(panel.attentionUi.mapSelector.count):
        panel.attentionUi.mapSelector.setCurrentIndex(n)
        host.click(panel.attentionUi.showButton)
        assert setUp() != before
        slicer.util.selectModule("Volumes")
        assert (setUp(), [i for i in nodeIds() if i not in ids]) == (before, [])
        slicer.util.selectModule("PanelParts")
        host.wait(0)
        assert panel.attentionUi.showButton.text == "Show"


def test_another_run_takes_the_maps_of_the_first_off(host, panel, nodes, flair, make_result,
                                                     rater_probability, ms_images):  # fmt: skip
    before = setUp()
    host.click(panel.attentionUi.showButton)
    addRun(host, flair, make_result({LABEL: rater_probability}, ms_images), "bare")
    panel.show("bare")
    assert setUp() == before
    assert panel.attentionUi.attentionMessageLabel.text == "This run has no attention maps."
    assert not panel.attentionUi.showButton.enabled


@pytest.mark.parametrize("n", range(5))
def test_what_is_shown_goes_on_with_another_frames_own_map(host, panel, nodes, flair, result, n):
    import slicer

    before = setUp()
    addRun(host, flair, result, "next")
    part, ui = panel.attention, panel.attentionUi
    ui.mapSelector.setCurrentIndex(n)
    host.click(ui.showButton)
    shown = part.shown
    if part.view is not None:
        host.click(ui.plotButton)
        assert ui.plotButton.checked
    if part.probe is not None:
        part.probe.point.SetNthControlPointPositionWorld(0, 12, 34, 56)
    part.follow("next")
    assert (part.run, part.shown.key, ui.showButton.text) == ("next", shown.key, "Off")
    assert part.shown.node is not shown.node
    assert part.shown in part.maps
    assert ui.mapSelector.currentIndex == n
    over = {c.GetForegroundVolumeID() for c in composites()}
    if part.view is not None:
        assert over == {part.view.weights.GetID()}
        assert ui.plotButton.checked
        chart = slicer.mrmlScene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        assert chart.GetActivePlotChartID() == part.view.chart.GetID()
    elif part.probe is not None:
        assert over == {part.probe.map.GetID()}
        assert part.probe.place.tolist() == [12, 34, 56]
    else:
        assert over == {part.shown.node.GetID()}
    part.follow(None)
    assert (setUp(), part.shown, ui.showButton.enabled) == (before, None, False)


@pytest.mark.parametrize("n", range(5))
def test_a_scene_closed_with_a_map_on_leaves_an_empty_panel(host, panel, nodes, n):
    import slicer

    panel.attentionUi.mapSelector.setCurrentIndex(n)
    host.click(panel.attentionUi.showButton)
    slicer.mrmlScene.Clear()
    host.wait(10)
    ui = panel.attentionUi
    assert (ui.mapSelector.count, ui.showButton.enabled, ui.showButton.checked) == (0, False, False)
    assert (panel.attention.view, panel.attention.probe, panel.attention.shown) == (None,) * 3
    assert not slicer.mrmlScene.GetNodesByClass("vtkMRMLMarkupsNode").GetNumberOfItems()


def test_a_map_that_a_loaded_scene_shows_is_taken_over(tmp_path, ms_images, result):
    import slicer
    from host import Host

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    with Host() as first:
        flair = volumeNodeFromImage(ms_images["flair"], "FLAIR", first.core.scene)
        slicer.util.setSliceViewerLayers(background=flair, fit=True)
        addRun(first, flair, result)
        panel = first.openModule(MODULE)
        panel.show("run")
        first.click(panel.attentionUi.showButton)
        bundle = first.core.saveScene(tmp_path / "scene.mrb")
    first.check()
    with Host() as fresh:
        panel = fresh.openModule(MODULE)
        fresh.core.loadScene(bundle)
        panel.show("run")
        fresh.wait(0)
        ui = panel.attentionUi
        assert (ui.showButton.text, ui.mapSelector.currentText) == (
            "Off", "Where: Decoder activation",
        )  # fmt: skip
        fresh.screenshot(tmp_path / "loaded.png")
        fresh.click(ui.showButton)
        assert {c.GetForegroundVolumeID() for c in composites()} == {None}
        assert all("MedSeg" not in n for c in composites() for n in c.GetAttributeNames())
    fresh.check()


def test_what_is_not_saved_with_the_scene_leaves_no_trace_in_the_loaded_one(
    tmp_path, ms_images, result
):
    import slicer
    from host import Host

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    with Host() as first:
        flair = volumeNodeFromImage(ms_images["flair"], "FLAIR", first.core.scene)
        t1 = volumeNodeFromImage(ms_images["t1"], "T1", first.core.scene)
        slicer.util.setSliceViewerLayers(
            background=flair, foreground=t1, foregroundOpacity=0.25, fit=True
        )
        addRun(first, flair, result)
        panel = first.openModule(MODULE)
        panel.show("run")
        first.choose(panel.attentionUi.mapSelector, "Slices: Slice attention, axial")
        first.click(panel.attentionUi.showButton)
        bundle = first.core.saveScene(tmp_path / "scene.mrb")
    first.check()
    with Host() as fresh:
        panel = fresh.openModule(MODULE)
        fresh.core.loadScene(bundle)
        panel.show("run")
        fresh.wait(0)
        assert panel.attentionUi.showButton.text == "Show"
        for composite in composites():
            foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
            assert foreground is not None
            assert (foreground.GetName(), composite.GetForegroundOpacity()) == ("T1", 0.25)
            assert all("MedSeg" not in name for name in composite.GetAttributeNames())
    fresh.check()
