"""A chart in a plot view of the layout, and the layout given back as it was."""

import slicer


class PlotLayout:
    """Shows one chart at a time.

    Args:
        scene: MRML scene.
    """

    def __init__(self, scene) -> None:
        self._scene = scene
        self._before: tuple[int, str | None] | None = None

    @property
    def shown(self) -> bool:
        """Whether a chart is shown."""
        return self._before is not None

    def on(self, chart) -> None:
        """Show a chart; a layout without a plot view gets the like with one."""
        layout, selection = self._nodes()
        if layout is None or selection is None:
            return
        if self._before is None:
            self._before = layout.GetViewArrangement(), selection.GetActivePlotChartID()
        slicer.modules.plots.logic().ShowChartInLayout(chart)
        selection.SetActivePlotChartID(chart.GetID())
        slicer.app.applicationLogic().PropagatePlotChartSelection()

    def off(self) -> None:
        """The layout as it was; harmless when nothing is shown."""
        before, self._before = self._before, None
        layout, selection = self._nodes()
        if before is None or layout is None or selection is None:
            return
        selection.SetActivePlotChartID(before[1])
        slicer.app.applicationLogic().PropagatePlotChartSelection()
        layout.SetViewArrangement(before[0])

    def _nodes(self) -> tuple:
        return (
            self._scene.GetFirstNodeByClass("vtkMRMLLayoutNode"),
            self._scene.GetNodeByID("vtkMRMLSelectionNodeSingleton"),
        )
