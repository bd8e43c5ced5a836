"""The panel's part for results: thresholds, lesions, what is kept, and what goes into files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from medsegcore.errors import MedSegError

from .AttentionDisplay import AttentionDisplay
from .ExplainSheet import explaining
from .LesionList import LesionList
from .LesionTable import LesionRow, LesionTable
from .LiveThreshold import LiveThreshold
from .Observing import Observers, onSceneClose
from .ResultToScene import findRuns
from .RunSegments import RunSegments
from .Steps import EventLoopSteps, Steps
from .ThresholdSliders import ThresholdSliders
from .TrainingCase import TrainingCase
from .Translation import _

FOLDER_SETTING = "MedSeg/TrainingFolder"
# Measuring all lesions takes longer than a frame of a drag may: it waits for a rest.
MEASURE_AFTER_MS = 200


class ResultsPart:
    """Thresholds and lesions of one run of the scene.

    Args:
        ui: the named widgets of ResultsPart.ui.
        scene: MRML scene.
        runChanged: called with the run that the user chose, or that took the place of one that
            left the scene (None when there is none).

    Attributes:
        run: as `findRuns` names it; None when none is shown.
        sliders: ThresholdSliders of the run, None without one.
        lesions: LesionList.
    """

    def __init__(self, ui, scene, runChanged: Callable[[str | None], None] | None = None) -> None:
        self.ui, self.scene, self._runChanged = ui, scene, runChanged
        self.run: str | None = None
        self.sliders: ThresholdSliders | None = None
        self._segments: RunSegments | None = None
        self._table: LesionTable | None = None
        # Whether the rows are those of now.
        self._measured = False
        self._answered = ""
        self._runs: list[str] = []
        # Which run's segments are read, or being read.
        self._opened: str | None = None
        self._steps: EventLoopSteps | None = None
        self._picture: EventLoopSteps | None = None
        self._saving: EventLoopSteps | None = None
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self.lesions = LesionList(ui.lesionTable, self._jump, self._keep, lambda: self._soon(0))
        self._signals: list[tuple] = [
            (self._timer, "timeout()", self._update),
            (ui.runSelector, "activated(int)", self._onRunChosen),
            (ui.minVolumeSpinBox, "valueChanged(double)", self._onFilter),
            (ui.minProbabilitySpinBox, "valueChanged(double)", self._onFilter),
            (ui.undoButton, "clicked()", self.undo),
            (ui.redoButton, "clicked()", self.redo),
            (ui.copyButton, "clicked()", self._copy),
            (ui.saveCsvButton, "clicked()", self._saveCsv),
            (ui.savePictureButton, "clicked()", self._savePicture),
            (ui.saveCaseButton, "clicked()", self._saveCase),
        ]
        for keys, slot in (("Ctrl+Z", self.undo), ("Ctrl+Y", self.redo)):
            shortcut = qt.QShortcut(ui.resultsBox)
            shortcut.setKey(qt.QKeySequence(keys))
            shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
            # The application's own Undo may have the same key.
            for signal in ("activated()", "activatedAmbiguously()"):
                self._signals.append((shortcut, signal, slot))
        for sender, signal, slot in self._signals:
            sender.connect(signal, slot)
        self._observers = Observers()
        onSceneClose(self._observers, scene, self._sceneCloses)
        self._observers.add(
            scene, slicer.vtkMRMLScene.NodeRemovedEvent, lambda *_a: self._nodeRemoved()
        )
        self.refresh()

    @property
    def busy(self) -> bool:
        """Whether lesions are being measured, drawn or saved, or are about to be."""
        return bool(self._steps or self._picture or self._saving) or self._timer.isActive()

    # What the panel says

    def setRun(self, run: str | None) -> None:
        """Show a run of the scene, or none."""
        if run != self.run or self._opened is None:
            self._finishPicture()
            self._release()
            self.run = run if run in findRuns(self.scene) else None
        self.refresh()

    def refresh(self) -> None:
        """Read the scene anew: its runs, and the segments of the one that is shown."""
        runs = list(findRuns(self.scene))
        if self.run is not None and self.run not in runs:
            self._release()
            self.run = None
        self._showRuns(runs)
        if self.run is not None and self._opened is None:
            self._opened = self.run
            self._begin(self._opening(self.run))
        self._update()

    def close(self) -> None:
        """Let go of scene and widgets; harmless when repeated."""
        self._release()
        self.run = None
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.stop()
        self._observers.clear()
        self.lesions.close()
        signals, self._signals = self._signals, []
        for sender, signal, slot in signals:
            sender.disconnect(signal, slot)
            if sender.className() == "QShortcut":
                sender.setEnabled(False)

    # Undo

    def undo(self) -> None:
        """Take back the last drag, or what was last kept or dropped."""
        self._restore(back=True)

    def redo(self) -> None:
        """Do again what was undone."""
        self._restore(back=False)

    def _restore(self, back: bool) -> None:
        if self._segments is None or self.sliders is None:
            return
        # A drag that has not rested yet must not be continued in an older state.
        self.sliders.finish()
        try:
            if back:
                self._segments.undo()
            else:
                self._segments.redo()
        except MedSegError as error:
            self._enable()
            self._answer(str(error))
            return
        self._answer("")
        self._update()

    # The run

    def _opening(self, run: str) -> Steps[None]:
        self._segments = yield from RunSegments.opening(self.scene, run)
        self._table = yield from LesionTable.opening(self._segments)
        self._measured = True
        self._table.watch(lambda: self._soon(MEASURE_AFTER_MS))
        yield
        self.sliders = ThresholdSliders(
            self.ui.thresholdsFrame, LiveThreshold(self._segments), self._defaults(), self._answer
        )
        yield
        self._say(self._state())
        self._enable()
        yield from self._fill()

    def _updating(self, table: LesionTable) -> Steps[None]:
        yield from table.updateSteps()
        self._measured = True
        self._say(self._state())
        self._enable()
        yield from self._fill()

    def _begin(self, steps: Steps[None]) -> None:
        """Do something in short steps instead of what is on its way."""
        self._stopSteps()
        self._steps = EventLoopSteps(steps, self._stepsEnded)

    def _stepsEnded(self, _value: object, error: Exception | None) -> None:
        self._steps = None
        if error is None:
            return
        if self._table is None:
            self._release()
        self._measured = False
        self.lesions.clear()
        self.ui.totalsLabel.setText("")
        self._enable()
        if not isinstance(error, MedSegError):
            raise error
        self._say(str(error))

    def _stopSteps(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.stop()

    def _release(self) -> None:
        self._timer.stop()
        self._stopSteps()
        self._stopPicture()
        if self.sliders is not None:
            self.sliders.close()
        if self._table is not None:
            self._table.close()
        if self._segments is not None:
            self._segments.close()
        self.sliders = self._table = self._segments = self._opened = None
        self._answer("")

    def _defaults(self) -> dict[str, float]:
        """The thresholds that the model cut at, from the run's provenance."""
        nodes = findRuns(self.scene).get(self.run or "", {}).get("provenance", [])
        try:
            told = json.loads(nodes[0].GetText())["settings"]["thresholds"] if nodes else {}
            return {str(label): float(value) for label, value in told.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            # The text is the user's to edit; without it there is nothing to reset to.
            return {}

    def _showRuns(self, runs: list[str]) -> None:
        selector = self.ui.runSelector
        if runs != self._runs or selector.count != len(runs):
            self._runs = runs
            selector.clear()
            selector.addItems(runs)
        selector.setCurrentIndex(runs.index(self.run) if self.run in runs else -1)
        for widget in (selector, self.ui.runLabel):
            widget.setVisible(len(runs) > 1 or (self.run is None and len(runs) > 0))

    def _onRunChosen(self, n: int) -> None:
        if 0 <= n < len(self._runs) and self._runs[n] != self.run:
            self.setRun(self._runs[n])
            self._tell()

    def _tell(self) -> None:
        if self._runChanged is not None:
            self._runChanged(self.run)

    def _sceneCloses(self) -> None:
        self._release()
        had, self.run = self.run, None
        self._showRuns([])
        self._update()
        if had is not None:
            self._tell()

    def _nodeRemoved(self) -> None:
        if self.scene.IsClosing() or not self._runs:
            return
        nodes = findRuns(self.scene)
        # Where two results have one name, the other one is shown when this one goes.
        whole = self.run is None or (
            nodes.get(self.run, {}).get("segmentation")
            and nodes.get(self.run, {}).get("probability")
            and (
                self._segments is None
                or self._segments.segmentation in nodes[self.run]["segmentation"]
            )
        )
        if whole and list(nodes) == self._runs:
            return
        had = self.run
        if not whole:
            self._release()
        self.refresh()
        if self.run != had:
            self._tell()

    # What is shown

    def _soon(self, milliseconds: int) -> None:
        self._timer.start(milliseconds)

    def _update(self) -> None:
        """Measure, and show everything as it is now."""
        self._timer.stop()
        if self._table is not None and self.sliders is not None:
            self.sliders.refresh()
            self._begin(self._updating(self._table))
        else:
            self.lesions.clear()
            self.ui.totalsLabel.setText("")
            if self.run is None:
                self._say(_("Results appear here after a run."))
            elif self._steps is not None:
                self._say(_("Measuring lesions..."))
        self._enable()

    def _fill(self) -> Steps[None]:
        assert self._table is not None
        rows = self._shownRows()
        count, every = self._table.totals()[0], len(self._table.rows())
        volumes = self._table.volumes().items()
        text = _("{count} of {every} kept: {volumes}").format(
            count=count, every=every,
            volumes=", ".join(f"{label} {volume:.2f} ml" for label, volume in volumes),
        )  # fmt: skip
        if len(rows) < every:
            text += "; " + _("{shown} shown by the filter").format(shown=len(rows))
        self.ui.totalsLabel.setText(text)
        yield from self.lesions.fill(self._table, rows)

    def _shownRows(self) -> list[LesionRow]:
        assert self._table is not None
        columns = self._table.columns()
        sortBy = self.lesions.sortBy if self.lesions.sortBy in columns else "volume_ml"
        return self._table.rows(
            sortBy,
            self.lesions.descending,
            self.ui.minVolumeSpinBox.value,
            self.ui.minProbabilitySpinBox.value,
        )

    def _enable(self) -> None:
        history = self._segments.history if self._segments else None
        there = self._table is not None
        some = bool(self._table and self._table.rows()) and self._measured
        before = bool(history and history.IsRestorePreviousStateAvailable())
        edited = before and self._segments is not None and self._segments.editedSinceStep()
        self.ui.undoButton.setEnabled(before and not edited)
        self.ui.undoButton.setToolTip(
            _("Edited by hand since: take that back with Undo in Segment Editor first")
            if edited
            else _("Take back the last threshold or the last lesion kept or dropped (Ctrl+Z)")
        )
        self.ui.redoButton.setEnabled(bool(history and history.IsRestoreNextStateAvailable()))
        for widget in (self.ui.copyButton, self.ui.saveCsvButton):
            widget.setEnabled(some)
        self.ui.savePictureButton.setEnabled(some and self._picture is None)
        # An answer without a lesion is a case as well.
        self.ui.saveCaseButton.setEnabled(there and self._saving is None)
        for widget in (
            self.ui.lesionTable, self.ui.minVolumeSpinBox, self.ui.minProbabilitySpinBox,
        ):  # fmt: skip
            widget.setEnabled(there)

    def _say(self, text: str) -> None:
        self.ui.messageLabel.setText(text)
        self.ui.messageLabel.setVisible(bool(text))

    def _answer(self, text: str) -> None:
        """What came of the user's last action; it stays while lesions are measured again."""
        self._answered = text
        self._say(self._state())

    def _state(self) -> str:
        problems = self._table.problems.values() if self._table is not None else ()
        return self._answered or " ".join(problems)

    # What the user does in the table

    def _onFilter(self, value: float) -> None:
        if self._table is not None:
            self._soon(0)

    def _jump(self, row: LesionRow) -> None:
        if self._table is not None:
            self._table.jumpTo(row)

    def _keep(self, row: LesionRow, kept: bool) -> None:
        if self._table is None:
            return
        try:
            self._table.keep([row], kept)
            self._answer("")
        except MedSegError as error:
            self._answer(str(error))
        # The item that was clicked is still in the hands of Qt: the table is filled afterwards.
        self._soon(0)

    # Files and clipboard

    def _copy(self) -> None:
        if self._table is not None:
            qt.QApplication.clipboard().setText(self._table.text(self._shownRows()))

    def _saveCsv(self) -> None:
        path = self._askPath(_("Save the lesions"), _("lesions"), ".csv", _("Table"))
        if path is not None and self._table is not None:
            self._write(lambda table: table.saveCsv(path, self._shownRows()))

    def _savePicture(self) -> None:
        path = self._askPath(_("Save a picture"), _("explained"), ".png", _("Picture"))
        if path is None or self._table is None:
            return
        display = AttentionDisplay(self.scene)
        overlay = display.shown
        display.close()
        self._stopPicture()
        steps = explaining(self._table, self._inputNode(self._table), path, overlay)
        self._picture = EventLoopSteps(steps, self._pictureEnded)
        self._enable()

    def _pictureEnded(self, path: Any, error: Exception | None) -> None:
        self._picture = None
        self._enable()
        if error is None:
            self._answer(_("Saved '{name}'.").format(name=path.name))
        elif isinstance(error, MedSegError):
            slicer.util.errorDisplay(str(error))
        else:
            raise error

    def _finishPicture(self) -> None:
        """The user chose a file for it: another result must not take it away."""
        if self._picture is not None:
            self._picture.finish()

    def _stopPicture(self) -> None:
        picture, self._picture = self._picture, None
        if picture is not None:
            picture.stop()

    def _saveCase(self) -> None:
        if self._segments is None:
            slicer.util.errorDisplay(
                _("No result is ready yet: wait until its lesions are listed.")
            )
            return
        # Before the dialog: while it is open, another result may come to be shown.
        try:
            case = TrainingCase(self._segments)
        except MedSegError as error:
            slicer.util.errorDisplay(str(error))
            return
        caption = _("Choose the folder of the training cases")
        last = slicer.util.settingsValue(FOLDER_SETTING, "")
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), caption, last)
        # The panel may be gone by now.
        if not folder or not self._signals:
            return
        self._answer(_("Saving the training case..."))
        # It goes on when another result is shown: it holds all that it needs.
        self._saving = EventLoopSteps(case.saving(folder), self._caseSaved)
        self._enable()

    def _caseSaved(self, saved: Any, error: Exception | None) -> None:
        self._saving = None
        self._enable()
        if error is None:
            qt.QSettings().setValue(FOLDER_SETTING, str(saved.folder))
            self._answer(saved.message)
            return
        self._answer("")
        if not isinstance(error, MedSegError):
            raise error
        slicer.util.errorDisplay(str(error))

    def _write(self, write: Callable[[LesionTable], Any]) -> None:
        if self._table is None:
            return
        try:
            write(self._table)
        except MedSegError as error:
            slicer.util.errorDisplay(str(error))

    def _inputNode(self, table: LesionTable):
        """The input that the user looks at, or else the first one."""
        nodes = list(table.inputs.values())
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", self.scene):
            for node in nodes:
                if node.GetID() == composite.GetBackgroundVolumeID():
                    return node
        return nodes[0] if nodes else None

    def _askPath(self, caption: str, what: str, suffix: str, kind: str) -> Path | None:
        """Where to save; None when the user thinks better of it."""
        stem = re.sub(r"[^\w .()-]+", "_", f"{self.run} {what}")
        folder = self.scene.GetRootDirectory() or ""
        chosen = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), caption, str(Path(folder) / (stem + suffix)),
            f"{kind} (*{suffix})",
        )  # fmt: skip
        if not chosen:
            return None
        path = Path(chosen)
        if path.suffix.lower() == suffix:
            return path
        path = path.with_name(path.name + suffix)
        # The file dialog has asked about the name without the suffix only.
        question = _("There is a file '{name}' already. Replace it?").format(name=path.name)
        if path.exists() and not slicer.util.confirmYesNoDisplay(question):
            return None
        return path
