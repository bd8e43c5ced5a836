"""The card at the top of the panel: whether MedSeg can run here, and what is to be done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from . import Preflight
from .Installation import Installation
from .Preflight import Facts, Problem
from .Running import PYTHON_SETTING, endWorker, warmWorker
from .Translation import _

# Who only passes through the panel starts no worker.
ASK_MS = 1500
GREEN, ORANGE, RED, GRAY = "#2e9e44", "#c87a00", "#c62828", "#808080"

Ask = Callable[[Callable[[Any], None]], Any]


class ReadyPart:
    """One line when all is well; otherwise a sentence and a button for each problem.

    Args:
        ui: the widgets of ReadyPart.ui.
        installation: what the buttons do.
        changed: called when something is installed, or stops or ceases to stop a run.
        setPython: called with the interpreter that the user chose.
        ask: asks the worker for its machine and devices, `ask(finished)`; the warm worker of the
            chosen interpreter when None.
        running: whether a segmentation is on its way, which what ends the worker would end.
    """

    def __init__(
        self,
        ui,
        installation: Installation,
        changed: Callable[[], None],
        setPython: Callable[[str], None],
        ask: Ask | None = None,
        running: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ui, self._installation = ui, installation
        self._changed, self._setPython, self._running = changed, setPython, running
        self._ask = ask or (lambda finished: warmWorker(_python()).hello(finished))
        self._worker: dict | None = None
        self._workerError = ""
        self._asking: object = None
        self._closed = self._busy = False
        self.facts = Facts()
        self._removeTip = ui.removeButton.toolTip
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(ASK_MS)
        self._connections = [
            (self._timer, "timeout()", self._askOnce),
            (ui.detailsButton, "toggled(bool)", self._showDetails),
            (ui.checkButton, "clicked()", self.check),
            (ui.removeButton, "clicked()", self._remove),
            *(
                (getattr(ui, f"{key}Button"), "clicked()", lambda key=key: self._act(key))
                for key in Preflight.KEYS
            ),
        ]
        for widget, signal, slot in self._connections:
            widget.connect(signal, slot)
        self._look()
        self._resume()

    @property
    def blocker(self) -> str:
        """Why nothing can be segmented, a sentence; "" when nothing is known to stop it."""
        return Preflight.blocker(self.facts)

    @property
    def packagesReady(self) -> bool:
        """Whether the rest of the panel can be loaded."""
        # Of a package that is loaded in its old version, the new ones would want what it lacks.
        return not self.facts.missing and not self.facts.stale

    def enter(self) -> None:
        """The panel is shown."""
        self._look()
        self._timer.start()

    def exit(self) -> None:
        """Another panel is shown."""
        self._timer.stop()

    def check(self) -> None:
        """Look at everything again."""
        self._installation.failure = None
        self._say("")
        self._forgetWorker()
        self._look()
        self.askWorker()

    def pythonChanged(self) -> None:
        """Another interpreter was chosen."""
        if not self._closed and _python() != self.facts.python:
            self._forgetWorker()
            self._look()
            self.askWorker()

    def runChanged(self) -> None:
        """A segmentation has started or ended."""
        if not self._closed:
            self._show()

    def askWorker(self) -> None:
        """Ask for the devices and what is free on them, unless there is nothing to ask."""
        if self._closed or self._busy or any(p.key != "interpreter" for p in self._stops()):
            return
        asking = self._asking = object()
        self._ask(lambda request: self._answered(asking, request))

    def close(self) -> None:
        """Let go of the widgets."""
        self._closed = True
        self._timer.stop()
        connections, self._connections = self._connections, []
        for widget, signal, slot in connections:
            if widget:
                widget.disconnect(signal, slot)

    # What is known.

    def _look(self) -> None:
        """Look at what can be seen without asking the worker."""
        installation, python = self._installation, _python()
        missing = installation.missing()
        torch = Preflight.installedVersion("torch")
        before = self.facts
        self.facts = Facts(
            python=python,
            missing=missing,
            torch=torch,
            extension=installation.pyTorch.there(),
            worker=self._worker,
            workerError=self._workerError,
            disks=Preflight.measureDisks(
                None if missing else _modelsFolder(), installing=not python and torch is None
            ),
            failure=installation.failure,
            stale=installation.stale,
            offline=Preflight.isOffline(),
        )
        self._show()
        if (before.missing, Preflight.blocker(before)) != (missing, self.blocker):
            self._changed()

    def _stops(self) -> list[Problem]:
        return [p for p in Preflight.problems(self.facts) if p.blocks]

    def _askOnce(self) -> None:
        if self._worker is None and not self._workerError and self._asking is None:
            self.askWorker()

    def _forgetWorker(self) -> None:
        self._worker, self._workerError, self._asking = None, "", None

    def _answered(self, asking: object, request) -> None:
        from medsegcore.errors import CancelledError

        if self._closed or asking is not self._asking:
            return
        self._asking = None
        if isinstance(request.error, CancelledError):
            return
        self._worker = request.result if request.error is None else None
        self._workerError = str(request.error) if request.error is not None else ""
        self._look()

    # What the buttons do.

    def _act(self, key: str) -> None:
        problem = next((p for p in Preflight.problems(self.facts) if p.key == key), None)
        if problem is None or self._busy or self._mustWait(problem.action):
            return
        {
            Preflight.RESTART: self._restart,
            Preflight.PACKAGES: self._installPackages,
            Preflight.TORCH: self._installTorch,
            Preflight.EXTENSION: self._installExtension,
            Preflight.WHEELS: self._installWheels,
            Preflight.INTERPRETER: self._choosePython,
            Preflight.AGAIN: self.check,
        }[problem.action]()

    def _mustWait(self, action: str) -> bool:
        """Whether it would end the worker, and with it a run that nobody cancelled."""
        return self._running() and action not in (Preflight.RESTART, Preflight.AGAIN)

    def _restart(self) -> None:
        if slicer.util.confirmOkCancelDisplay(
            _("Slicer restarts now: what is not saved is lost."), _("Restart Slicer")
        ):
            slicer.util.restart()

    def _installPackages(self) -> None:
        self._run(_("Installing packages..."), self._installation.installPackages)

    def _installTorch(self) -> None:
        self._run(
            _("Installing PyTorch takes minutes, in which Slicer hardly answers..."),
            self._installation.installTorch,
        )

    def _installExtension(self) -> None:
        self._run(_("Installing the extension..."), self._installation.installExtension)

    def _installWheels(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Choose a folder of wheels")
        )
        if folder:
            torch = any(p.key == "torch" for p in Preflight.problems(self.facts))
            self._run(
                _("Installing from {folder}...").format(folder=folder),
                lambda: self._installation.installWheels(Path(folder), torch),
            )

    def _remove(self) -> None:
        names = self._installation.installed()
        if not names:
            self._say(_("MedSeg has installed nothing that is still here."))
            return
        if slicer.util.confirmYesNoDisplay(
            _("Remove {names} from Slicer's Python? Other extensions that use them will ask for "
              "them again.").format(names=", ".join(names)),
            _("Remove packages"),
        ):  # fmt: skip
            self._run(_("Removing packages..."), self._installation.removeInstalled)

    def _run(self, text: str, action: Callable[[], Problem | None]) -> None:
        """Let something be installed; the interface is shown before it stops answering."""
        # Its files are replaced, and it would go on with the old ones.
        endWorker()
        self._forgetWorker()
        self._busy = True
        self._say(text)
        self._show()
        slicer.app.processEvents()
        try:
            failure = action()
        finally:
            self._busy = False
        if self._closed:
            return
        self._say(_("Done.") if failure is None else "")
        self._look()
        self.askWorker()

    def _choosePython(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Choose a Python that has medsegcore and torch")
        )
        if path:
            self._setPython(path)
            self.pythonChanged()

    def _resume(self) -> None:
        if not self._installation.resumed:
            return
        left = self._stops()
        if left:
            step = left[0].button
            self._say(_("Slicer was restarted; the next step is: {step}.").format(step=step))
        else:
            self._say(_("Slicer was restarted: the installation is complete."))

    # What is shown.

    def _show(self) -> None:
        ui, found = self._ui, Preflight.problems(self.facts)
        rows = {problem.key: problem for problem in found}
        for key in Preflight.KEYS:
            label, button = getattr(ui, f"{key}Label"), getattr(ui, f"{key}Button")
            problem = rows.get(key)
            label.visible = button.visible = problem is not None
            if problem is not None:
                waits = self._mustWait(problem.action)
                button.enabled = not self._busy and not waits
                button.toolTip = _waitText() if waits else ""
                label.text, button.text = problem.sentence, problem.button
                # A long path does not wrap and is cut, so that it does not widen the panel.
                label.toolTip = problem.sentence
        color, text = self._headline(found)
        ui.readyLabel.text = text
        ui.readyLabel.setStyleSheet(f"color: {color}")
        ui.checkButton.enabled = not self._busy
        ui.removeButton.enabled = not self._busy and not self._running()
        ui.removeButton.toolTip = _waitText() if self._running() else self._removeTip
        ui.detailsLabel.text = "\n".join(Preflight.details(self.facts))

    def _headline(self, found: list[Problem]) -> tuple[str, str]:
        if any(problem.blocks for problem in found):
            return RED, _("Not ready yet:")
        ready = Preflight.readyLine(self.facts)
        if not ready:
            return GRAY, _("Installed; the devices are not asked for yet.")
        return (ORANGE if found else GREEN), ready

    def _showDetails(self, shown: bool) -> None:
        self._ui.detailsWidget.visible = shown

    def _say(self, text: str) -> None:
        self._ui.stepLabel.text = text
        self._ui.stepLabel.visible = bool(text)


def _waitText() -> str:
    return _("A segmentation is on its way, which this would end: wait, or cancel it.")


def _python() -> str:
    return slicer.util.settingsValue(PYTHON_SETTING, "").strip()


def _modelsFolder() -> Path:
    from medsegcore.models.store import user_folder

    return user_folder()
