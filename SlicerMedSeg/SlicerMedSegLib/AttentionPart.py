"""The panel's part for attention: which map is shown, how, and what the user asks of it."""

from collections.abc import Callable
from typing import Any

import qt
import slicer

from medsegcore.errors import MedSegError

from .AttentionDisplay import AttentionDisplay, AttentionMap, attentionMaps
from .CorrelationProbe import CorrelationProbe
from .HeatMapLabel import HeatMapLabel
from .NodeNames import KEY
from .Observing import Observers, onSceneClose
from .PlotLayout import PlotLayout
from .PointPlacing import PointPlacing
from .ResultToScene import findRuns
from .SceneConversion import imageFromVolumeNode
from .SliceAttentionView import SliceAttentionView
from .Translation import _

HEAT_MAP_PIXELS = 280


class AttentionPart:
    """Shows one map of a run over the slice views, and gives the views back.

    Args:
        ui: the named widgets of AttentionPart.ui.
        scene: MRML scene.
        showStarts: called before a map is laid over the views.

    Attributes:
        run: as `findRuns` names it; None when there is none.
        maps: what can be chosen, in the order of the list.
        shown: the map that is on; None when none is.
        view: SliceAttentionView, while a slice attention is on.
        probe: CorrelationProbe, while a correlation is on.
    """

    def __init__(self, ui, scene, showStarts: Callable[[], None] = lambda: None) -> None:
        self.ui, self.scene, self._showStarts = ui, scene, showStarts
        self.run: str | None = None
        self.maps: list[AttentionMap] = []
        self.shown: AttentionMap | None = None
        self.view: SliceAttentionView | None = None
        self.probe: CorrelationProbe | None = None
        self._display = AttentionDisplay(scene)
        self._plot = PlotLayout(scene)
        self._placing = PointPlacing(scene, self._placingChanged)
        self._heatMap = HeatMapLabel(ui.heatMapLabel, self._onHeatMapClicked)
        self._check = qt.QTimer()
        self._check.setSingleShot(True)
        # After the views: together they would take longer than an event may.
        self._drawing = qt.QTimer()
        self._drawing.setSingleShot(True)
        self._signals: list[tuple] = [
            (self._check, "timeout()", self._lookAround),
            (self._drawing, "timeout()", self._drawHeatMap),
            (ui.mapSelector, "currentIndexChanged(int)", self._onMapChosen),
            (ui.showButton, "toggled(bool)", self._onToggled),
            (ui.opacitySlider, "valueChanged(double)", self._onOpacity),
            (ui.windowRange, "valuesChanged(double,double)", self._onWindow),
            (ui.placeButton, "toggled(bool)", self._onPlace),
            (ui.plotButton, "toggled(bool)", self._onPlot),
        ]
        for sender, signal, slot in self._signals:
            sender.connect(signal, slot)
        self._observers = Observers()
        onSceneClose(self._observers, scene, self._sceneCloses)
        self._observers.add(
            scene, slicer.vtkMRMLScene.NodeRemovedEvent, lambda *_a: self._nodeRemoved()
        )
        self.setRun(None)

    # What the panel says

    def setRun(self, run: str | None) -> None:
        """Offer the maps of a run, or none; a map of another run is taken off.

        A map that a loaded scene shows already is taken over.
        """
        maps = attentionMaps(self.scene, run) if run is not None else []
        over = self._display.shown
        if run != self.run or (self.shown is not None and self.shown not in maps):
            self._turnOff(unless=[m.node for m in maps if m.kind == "spatial"])
        self.run, self.maps = run, sorted(maps, key=lambda m: _ORDER.index(kindOf(m)))
        selector = self.ui.mapSelector
        key = self.maps[selector.currentIndex].key if self._stillChosen() else None
        blocked = selector.blockSignals(True)
        selector.clear()
        selector.addItems([_listed(m) for m in self.maps])
        at = [m.node is over for m in self.maps] if over is not None else []
        if True in at:
            self.shown = self.maps[at.index(True)]
            selector.setCurrentIndex(at.index(True))
        elif key is not None:
            selector.setCurrentIndex(max([m.key for m in self.maps].index(key), 0))
        selector.blockSignals(blocked)
        self._readDisplay()
        self._refresh()

    def follow(self, run: str | None) -> None:
        """Offer the maps of another frame's run: what is shown goes on with that run's own map."""
        shown, plotted = self.shown, self._plot.shown
        place = self.probe.place if self.probe is not None else None
        self.setRun(run)
        keys = [m.key for m in self.maps]
        if shown is None or shown.key not in keys:
            return
        blocked = self.ui.mapSelector.blockSignals(True)
        self.ui.mapSelector.setCurrentIndex(keys.index(shown.key))
        self.ui.mapSelector.blockSignals(blocked)
        self._turnOn(place)
        if plotted:
            self.ui.plotButton.setChecked(True)

    def off(self) -> None:
        """Everything off, and every view as the user had it; harmless when nothing is on."""
        self._turnOff()
        self._refresh()

    def close(self) -> None:
        """Everything off, and nothing observed any more; harmless when repeated."""
        self._turnOff()
        self._check.stop()
        self._drawing.stop()
        self._observers.clear()
        self._display.close()
        self._heatMap.close()
        signals, self._signals = self._signals, []
        for sender, signal, slot in signals:
            sender.disconnect(signal, slot)

    # On and off

    def _chosen(self) -> AttentionMap | None:
        n = self.ui.mapSelector.currentIndex
        return self.maps[n] if 0 <= n < len(self.maps) else None

    def _stillChosen(self) -> bool:
        labels = [_listed(m) for m in self.maps]
        n = self.ui.mapSelector.currentIndex
        return 0 <= n < len(labels) and self.ui.mapSelector.currentText == labels[n]

    def _turnOn(self, place=None) -> None:
        """The chosen map over the views; the point of a correlation at `place`, RAS mm."""
        chosen = self._chosen()
        if chosen is None:
            return
        self._stopFollowing()
        self._showStarts()
        try:
            node = self._volume(chosen, place)
            self._display.show(node, self.ui.opacitySlider.value)
            self._clearFollowed()
            self.shown = chosen
        except MedSegError as error:
            self._turnOff()
            self._refresh()
            self._say(str(error))
            return
        if chosen.kind == "spatial":
            self._readDisplay()
        else:
            self._onWindow(self.ui.windowRange.minimumValue, self.ui.windowRange.maximumValue)
        self._refresh()

    def _volume(self, chosen: AttentionMap, place) -> Any:
        """What is laid over the views for a map."""
        if chosen.kind == "slice":
            self.view = SliceAttentionView(self.scene, chosen.node)
            node = self.view.sliceNodeFor(self.scene, self.view.axis)
            grid = imageFromVolumeNode(self._anyVolume(), copy=False).grid
            self.view.on(node, grid, lambda: self._drawing.start(0))
            return self.view.weights
        if chosen.kind == "correlation":
            stores = findRuns(self.scene).get(self.run or "", {}).get("correlation", [])
            store = next((n for n in stores if n.GetAttribute(KEY) == chosen.key), None)
            if store is not None:
                self.probe = CorrelationProbe(self.scene, store)
                self.probe.on(self._middleOfViews() if place is None else place)
                return self.probe.map
        return chosen.node

    def _clearFollowed(self) -> None:
        """The view that scrolls along the axis would be tinted evenly, which says nothing."""
        if self.view is None or self.view.sliceNode is None:
            return
        name = self.view.sliceNode.GetLayoutName()
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", self.scene):
            if composite.GetLayoutName() == name:
                composite.SetForegroundOpacity(0)

    def _anyVolume(self):
        """A volume on the run's grid."""
        nodes = findRuns(self.scene).get(self.run or "", {})
        return next(iter([*nodes.get("probability", []), *nodes.get("answer", [])]), None)

    def _middleOfViews(self):
        """Where the user looks: the middle of the first slice view, RAS mm."""
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode", self.scene):
            matrix = node.GetSliceToRAS()
            return [matrix.GetElement(n, 3) for n in range(3)]
        return None

    def _turnOff(self, unless: list | None = None) -> None:
        """Off, except when a node of `unless` is shown, which stays."""
        self._placing.stop()
        self.shown = None
        if not unless or self._display.shown not in unless:
            self._display.off()
        self._stopFollowing()

    def _stopFollowing(self) -> None:
        self._placing.stop()
        self._plot.off()
        view, self.view = self.view, None
        probe, self.probe = self.probe, None
        for each in (view, probe):
            if each is not None:
                each.off()

    # What the scene does

    def _sceneCloses(self) -> None:
        self._turnOff()
        self.setRun(None)

    def _nodeRemoved(self) -> None:
        # What was removed may be in use until all observers have heard of it.
        if not self.scene.IsClosing() and (self.shown is not None or self.maps):
            self._check.start(0)

    def _lookAround(self) -> None:
        """Nodes have left the scene: what is left of what is shown?"""
        if self.run is None:
            return
        if any(m.node.GetScene() is None for m in self.maps):
            self.setRun(self.run if self.run in findRuns(self.scene) else None)
        # The point or the map over the views was deleted by the user.
        gone = self.shown is not None and (
            self._display.shown is None
            or (self.probe is not None and self.probe.map is None)
            or (self.view is not None and self.view.weights is None)
        )
        if gone:
            self.off()

    # What the user does

    def _onMapChosen(self, n: int) -> None:
        self._readDisplay()
        if self.shown is not None:
            self._turnOn()
        else:
            self._refresh()

    def _onToggled(self, on: bool) -> None:
        if on:
            self._turnOn()
        else:
            self.off()

    def _onOpacity(self, value: float) -> None:
        if self.shown is not None:
            self._display.setOpacity(value)
            self._clearFollowed()

    def _onWindow(self, low: float, high: float) -> None:
        if self.shown is not None and low < high:
            self._display.setWindow(low, high)

    def _onHeatMapClicked(self, x: float, y: float) -> None:
        if self.view is not None:
            _row, column = self.view.cellAt(x, y, HEAT_MAP_PIXELS)
            self.view.jumpTo(column)

    def _onPlace(self, on: bool) -> None:
        if on and self.probe is not None and self.probe.point is not None:
            self._placing.start(self.probe.point)
        else:
            self._placing.stop()

    def _onPlot(self, on: bool) -> None:
        if on and self.view is not None:
            self._plot.on(self.view.chart)
        else:
            self._plot.off()

    def _placingChanged(self, active: bool) -> None:
        blocked = self.ui.placeButton.blockSignals(True)
        self.ui.placeButton.setChecked(active)
        self.ui.placeButton.blockSignals(blocked)

    # What is shown in the panel

    def _readDisplay(self) -> None:
        """Window and opacity as the map has them."""
        chosen = self._chosen()
        if chosen is not None and chosen.kind == "spatial" and chosen.node.GetDisplayNode():
            display = chosen.node.GetDisplayNode()
            low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
        else:
            low, high = 0.0, 1.0
        blocked = self.ui.windowRange.blockSignals(True)
        self.ui.windowRange.setValues(low, high)
        self.ui.windowRange.blockSignals(blocked)

    def _refresh(self) -> None:
        on, chosen = self.shown is not None, self._chosen()
        blocked = self.ui.showButton.blockSignals(True)
        self.ui.showButton.setChecked(on)
        self.ui.showButton.blockSignals(blocked)
        self.ui.showButton.setText(_("Off") if on else _("Show"))
        for widget in (self.ui.mapSelector, self.ui.showButton):
            widget.setEnabled(chosen is not None)
        for widget in (self.ui.opacitySlider, self.ui.windowRange):
            widget.setEnabled(on)
        self.ui.sliceFrame.setVisible(self.view is not None)
        blocked = self.ui.plotButton.blockSignals(True)
        self.ui.plotButton.setChecked(self._plot.shown)
        self.ui.plotButton.blockSignals(blocked)
        self.ui.correlationFrame.setVisible(self.probe is not None)
        self.ui.correlationLabel.setText(
            _("Where the other image answers to the point. Drag it, or place it anew.")
        )
        if self.view is not None:
            self._drawing.start(0)
        else:
            self._heatMap.clear()
        if self.run is None:
            self._say(_("Attention maps appear here after a run."))
        else:
            self._say("" if self.maps else _("This run has no attention maps."))

    def _drawHeatMap(self) -> None:
        if self.view is None:
            return
        self._heatMap.show(self.view.heatMap(HEAT_MAP_PIXELS))
        view, row = self.view, self.view.row
        most = int(view.matrix[row].argmax())
        letter = {"sagittal": "R", "coronal": "A", "axial": "S"}[view.axis]
        self.ui.sliceLabel.setText(
            _(
                "Between the white lines: the slice in view ({letter} {here:.0f} mm). It attends"
                " most to {letter} {there:.0f} mm. To the right: slices attended to, upwards:"
                " slices that attend."
            ).format(letter=letter, here=view.places[row], there=view.places[most])
        )

    def _say(self, text: str) -> None:
        self.ui.attentionMessageLabel.setText(text)
        self.ui.attentionMessageLabel.setVisible(bool(text))


_ORDER = ("spatial", "slice", "correlation", "uncertainty")


def kindOf(attentionMap: AttentionMap) -> str:
    """The kind by which a map is listed: uncertainty is a spatial map that stands apart."""
    if attentionMap.key.startswith("uncertainty"):
        return "uncertainty"
    return attentionMap.kind if attentionMap.kind in _ORDER else "spatial"


def kindName(kind: str) -> str:
    """A kind in words."""
    return {
        "spatial": _("Where"),
        "slice": _("Slices"),
        "correlation": _("Between images"),
        "uncertainty": _("Uncertainty"),
    }[kind]


def _listed(attentionMap: AttentionMap) -> str:
    """How a map stands in the list: its kind, unless its title begins with it, and its title."""
    kind = kindName(kindOf(attentionMap)) + ": "
    return kind + attentionMap.title.removeprefix(kind)
