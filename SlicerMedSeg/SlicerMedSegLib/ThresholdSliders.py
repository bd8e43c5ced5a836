"""A threshold slider for each label of a run; the segment follows while it is dragged."""

from collections.abc import Callable, Mapping

import ctk
import qt

from medsegcore.errors import MedSegError

from .LiveThreshold import LiveThreshold
from .Translation import _


class ThresholdSliders:
    """A row per label: color, name, slider with number, reset, and why it does not move.

    Args:
        frame: QWidget with a vertical layout that gets the rows.
        live: of the run.
        defaults: the model's own threshold by label.
        tell: called with what came of a move, a sentence; "" when it worked.
    """

    def __init__(
        self, frame, live: LiveThreshold, defaults: Mapping[str, float],
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.live, self._defaults, self._tell = live, dict(defaults), tell
        self._rows: dict[str, _Row] = {}
        for label in live.labels:
            row = self._rows[label] = _Row(frame, label, live)
            row.slider.connect("valueIsChanging(double)", self._mover(label, self._move))
            row.slider.connect("valueChanged(double)", self._mover(label, self._settle))
            # That does not tell of a drag that ends where it began.
            row.slider.findChild("QSlider").connect("sliderReleased()", self.finish)
            row.reset.connect("clicked()", self._resetter(label))
        self.refresh()

    def refresh(self) -> None:
        """Show where each segment is cut now, and whether it still follows."""
        for label, row in self._rows.items():
            try:
                row.show(self.live.threshold(label), self.live.edited(label), self._default(label))
            except MedSegError as error:
                row.disable(str(error))

    def slider(self, label: str):
        """The ctkSliderWidget of a label."""
        return self._rows[label].slider

    def resetButton(self, label: str):
        """The button that brings back the model's own threshold of a label."""
        return self._rows[label].reset

    def reason(self, label: str) -> str:
        """Why the slider of a label is disabled; empty when it is not."""
        return self._rows[label].reason.text

    def close(self) -> None:
        """Take the rows out of the panel; harmless when repeated."""
        rows, self._rows = self._rows, {}
        for row in rows.values():
            row.widget.hide()
            row.widget.setParent(None)
            row.widget.deleteLater()

    def _default(self, label: str) -> float | None:
        return self._defaults.get(label)

    def _mover(self, label: str, move: Callable[[str, float], None]) -> Callable[[float], None]:
        return lambda value: move(label, value)

    def _resetter(self, label: str) -> Callable[[], None]:
        return lambda: self._settle(label, self._defaults[label])

    def _move(self, label: str, value: float) -> None:
        try:
            self.live.setThreshold(label, value)
            self._tell("")
        except MedSegError as error:
            self._tell(str(error))
            self.refresh()

    def _settle(self, label: str, value: float) -> None:
        self._move(label, value)
        self.finish()

    def finish(self) -> None:
        """A drag has ended: the next change is a new step of undo."""
        self.live.finishDrag()
        self.refresh()


class _Row:
    def __init__(self, frame, label: str, live: LiveThreshold) -> None:
        self.widget, self.label = qt.QWidget(frame), label
        grid = qt.QGridLayout(self.widget)
        grid.setContentsMargins(0, 0, 0, 0)
        swatch, name = qt.QLabel(), qt.QLabel(label)
        picture = qt.QPixmap(12, 12)
        picture.fill(qt.QColor(*(round(255 * c) for c in live.segments.color(label))))
        swatch.setPixmap(picture)
        self.slider = ctk.ctkSliderWidget()
        self.slider.decimals = 2
        self.slider.singleStep = 0.01
        self.slider.pageStep = 0.1
        self.slider.maximum = live.highest
        self.slider.minimum = live.lowest
        # Without tracking it tells a drag under way from one that has ended.
        self.slider.tracking = False
        self.slider.objectName = f"thresholdSlider_{label}"
        self.reset = qt.QToolButton()
        self.reset.text = _("Reset")
        self.reset.objectName = f"resetButton_{label}"
        self.reason = qt.QLabel()
        self.reason.wordWrap = True
        self.reason.objectName = f"reasonLabel_{label}"
        for column, part in enumerate((swatch, name, self.slider, self.reset)):
            grid.addWidget(part, 0, column)
        grid.setColumnStretch(2, 1)
        grid.addWidget(self.reason, 1, 1, 1, 3)
        frame.layout().addWidget(self.widget)

    def show(self, threshold: float, edited: bool, default: float | None) -> None:
        blocked = self.slider.blockSignals(True)
        self.slider.setValue(threshold)
        self.slider.blockSignals(blocked)
        if edited:
            self.disable(
                _(
                    "Edited by hand: it stays as it is. To move the threshold, take the edits back"
                    " with Undo in Segment Editor."
                )
            )
            return
        self.reason.setText("")
        self.reason.hide()
        self.slider.setEnabled(True)
        self.slider.toolTip = _("Lowest probability that counts as {label}").format(
            label=self.label
        )
        self.reset.setEnabled(default is not None and default != threshold)
        if default is not None:
            self.reset.toolTip = _("Back to the model's own threshold, {value:g}").format(
                value=default
            )

    def disable(self, reason: str) -> None:
        for part in (self.slider, self.reset):
            part.setEnabled(False)
            part.toolTip = reason
        self.reason.setText(reason)
        self.reason.show()
