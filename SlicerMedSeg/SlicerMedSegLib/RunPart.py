"""The part of the panel where a run is started, followed and ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import qt
import slicer

from medsegcore.errors import CancelledError, MedSegError
from medsegcore.imaging import Region

from .Observing import Observers, onSceneClose
from .Preflight import gigabytes
from .ResultToScene import ResultNodes
from .Running import PYTHON_SETTING, endWorker, warmWorker
from .Segmenting import Segmentation
from .SegmentingFrames import SegmentationSeries, startSegmentation
from .Translation import _

LAYOUT_MS = 30
DROPOUT_PASSES = 8


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        model: folder of the model.
        inputNodes: {input key: volume node}, of the inputs that are given.
        frames: {input key: frame of a 4-D input, from 0, or `ALL_FRAMES`}.
        region: the box to work in, None for everywhere.
        needMb: the model's estimate of memory; the largest of several, which run in turn.
        ensemble: folders of further models that answer together with it.
    """

    model: str
    inputNodes: Mapping[str, Any]
    frames: Mapping[str, int] = field(default_factory=dict)
    region: Region | None = None
    needMb: float = 0.0
    ensemble: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunState:
    """Everything that the Segment button shows.

    Attributes:
        enabled: whether a click starts a run.
        text: on the button.
        reason: why it cannot be clicked, or what a click does; the tooltip.
        busy: whether a run is on its way.
    """

    enabled: bool
    text: str
    reason: str
    busy: bool


def runState(job: Job | None, reason: str, busy: bool) -> RunState:
    """The one place that decides.

    Args:
        job: what would be run, None when something is missing.
        reason: what is missing, a sentence.
        busy: whether a run is on its way.
    """
    if busy:
        return RunState(
            False, _("Segmenting..."), _("A run is on its way: wait, or cancel it."), True
        )
    if job is None:
        return RunState(False, _("Segment"), reason or _("Choose a model first."), False)
    return RunState(True, _("Segment"), _("Run the model; nothing in the scene is changed."), False)


class RunPart:
    """Device, options, the Segment button, progress, and what went wrong.

    Args:
        ui: the widgets of RunPart.ui.
        scene: MRML scene.
        finished: called with the ResultNodes of each run that succeeded.
        deviceChanged: called with the device that the user chose, e.g. "auto" or "cuda:0".
        busyChanged: called when a run has started or ended.
    """

    def __init__(
        self,
        ui,
        scene,
        finished: Callable[[ResultNodes], None],
        deviceChanged: Callable[[str], None] = lambda device: None,
        busyChanged: Callable[[], None] = lambda: None,
    ) -> None:
        self._ui, self._scene, self._finished = ui, scene, finished
        self._deviceChanged, self._busyChanged = deviceChanged, busyChanged
        self._job: Job | None = None
        self._reason = ""
        self._run: Segmentation | SegmentationSeries | None = None
        self._whyEnded = ""
        self._asked = self._closed = False
        self._devices: list[dict] = []
        self._wanted = "auto"
        self._observers = Observers()
        onSceneClose(self._observers, scene, self._sceneCloses)
        ui.pythonEdit.text = slicer.util.settingsValue(PYTHON_SETTING, "")
        self._connections = [
            (ui.segmentButton, "clicked()", self._start),
            (ui.cancelButton, "clicked()", self._cancel),
            (ui.refreshDevicesButton, "clicked()", self.findDevices),
            (ui.deviceBox, "currentIndexChanged(int)", self._deviceChosen),
            (ui.pythonEdit, "editingFinished()", self._pythonChanged),
            (ui.testConnectionButton, "clicked()", self._testConnection),
        ]
        for widget, signal, slot in self._connections:
            widget.connect(signal, slot)
        self._fillDevices()
        self._show()

    @property
    def busy(self) -> bool:
        """Whether a run is on its way."""
        return self._run is not None

    def setJob(self, job: Job | None, reason: str = "") -> None:
        """Say what a click would run, or why it cannot.

        The first job starts the worker, so that its devices are known and it is warm.
        """
        self._job, self._reason = job, reason
        self._show()
        if job is not None and not self._asked:
            self.findDevices()

    def setDevice(self, device: str) -> None:
        """Choose a device; it is kept until the worker says that it is not there."""
        self._wanted = device
        self._fillDevices()

    def setPython(self, python: str) -> None:
        """Choose the interpreter or command that computes."""
        self._ui.pythonEdit.text = python
        self._pythonChanged()

    def findDevices(self) -> None:
        """Ask the worker for its devices; the list follows when it answers."""
        if self._closed or self.busy:
            return
        self._asked = True
        self._ui.deviceBox.toolTip = _("Looking for devices...")
        warmWorker(self._python()).hello(self._devicesFound)

    def close(self) -> None:
        """End the run and the worker, and let go of scene and widgets."""
        if self._closed:
            return
        self._closed = True
        self._observers.clear()
        for widget, signal, slot in self._connections:
            if widget:
                widget.disconnect(signal, slot)
        self._connections = []
        run, self._run = self._run, None
        if run is not None:
            # While it reads images or shows a result, the end of the worker would not end it.
            run.cancel()
        endWorker()

    # Devices.

    def _devicesFound(self, request) -> None:
        if self._closed:
            return
        box = self._ui.deviceBox
        if request.error is not None:
            self._devices = []
            box.toolTip = str(request.error)
            if not isinstance(request.error, CancelledError) and not self.busy:
                self._say(str(request.error))
        else:
            self._devices = list(request.result["devices"])
            box.toolTip = _("Where the model computes")
        self._fillDevices()

    def _fillDevices(self) -> None:
        box = self._ui.deviceBox
        blocked = box.blockSignals(True)
        box.clear()
        box.addItem(_("Automatic"), "auto")
        for device in self._devices:
            box.addItem(_deviceTitle(device), device["name"])
        if box.findData(self._wanted) < 0 and not self._devices:
            box.addItem(self._wanted, self._wanted)
        box.setCurrentIndex(max(box.findData(self._wanted), 0))
        box.blockSignals(blocked)
        self._showMemory()

    def _deviceChosen(self, index: int) -> None:
        self._wanted = self._ui.deviceBox.itemData(index) or "auto"
        self._deviceChanged(self._wanted)
        self._showMemory()

    def _showMemory(self) -> None:
        """The model's need beside what the device has."""
        label = self._ui.memoryLabel
        device = self._computingDevice()
        need = self._job.needMb if self._job is not None else 0
        label.visible = bool(device and need)
        if not device or not need:
            return
        text = _("Needs about {need} GB on {device}.")
        if device["free_mb"] is not None and device["free_mb"] < need:
            text = _("Needs about {need} GB, but {device} has {free} GB free: close other "
                     "programs, choose a smaller region, or another device.")  # fmt: skip
        label.text = text.format(
            need=gigabytes(need), device=device["name"].upper(),
            free=gigabytes(device["free_mb"] or 0),
        )  # fmt: skip

    def _device(self) -> str:
        return self._ui.deviceBox.currentData or "auto"

    def _computingDevice(self) -> dict | None:
        """What the choice means: "auto" takes a GPU where there is one."""
        named = {device["name"]: device for device in self._devices}
        if self._device() != "auto":
            return named.get(self._device())
        gpus = [d for d in self._devices if d["name"].startswith(("cuda", "mps"))]
        return gpus[0] if gpus else named.get("cpu")

    def _python(self) -> str:
        return self._ui.pythonEdit.text.strip()

    def _pythonChanged(self) -> None:
        if self._python() == slicer.util.settingsValue(PYTHON_SETTING, ""):
            return
        qt.QSettings().setValue(PYTHON_SETTING, self._python())
        self._sayConnection("")
        self._devices = []
        self._fillDevices()
        if not self.busy:
            self._say("")
            self.findDevices()

    def _testConnection(self) -> None:
        if self._closed or self.busy:
            return
        self._sayConnection(_("Connecting..."))
        worker = warmWorker(self._python())

        def answered(request) -> None:
            if self._closed:
                return
            self._devicesFound(request)
            if request.error is not None:
                self._sayConnection(str(request.error))
                return
            device = (self._computingDevice() or self._devices[0])["title"]
            version = request.result["version"]
            text = _("It works: MedSeg {version} there computes on {device}.")
            assert worker.client.info is not None
            if not worker.client.info["shared"]:
                text += " " + _("It shares no folder with this computer: images are sent to it.")
            self._sayConnection(text.format(version=version, device=device))

        worker.hello(answered)

    def _sayConnection(self, text: str) -> None:
        label = self._ui.connectionLabel
        label.text = text
        label.visible = bool(text)

    # The run.

    def _start(self) -> None:
        job = self._job
        if job is None or self.busy:
            return
        self._whyEnded = ""
        self._say("")
        options = {
            # Not what a scene from another computer wished for, but what the user sees.
            "device": self._device(),
            "mode": "careful" if self._ui.carefulCheckBox.checked else "fast",
            "uncertainty": self._ui.uncertaintyCheckBox.checked,
            "dropout": DROPOUT_PASSES if self._ui.dropoutCheckBox.checked else 0,
            "ensemble": job.ensemble,
        }
        try:
            self._run = startSegmentation(
                warmWorker(self._python()), self._scene, job.model, dict(job.inputNodes), options,
                self._progressed, self._ended, frames=job.frames, region=job.region,
                live=True,
            )  # fmt: skip
        except Exception as error:
            self._run = None
            self._say(_sentence(error))
        self._showProgress("start", 0, 1, None)
        self._show()
        self._busyChanged()
        if self.busy:
            _reveal(self._ui.progressLabel)

    def _cancel(self) -> None:
        if self._run is not None:
            self._whyEnded = self._whyEnded or _("Cancelled.")
            self._ui.cancelButton.enabled = False
            self._ui.progressLabel.text = _("Cancelling...")
            self._run.cancel()

    def _sceneCloses(self) -> None:
        """The inputs go, so that there is nothing to put a result beside."""
        self._job = None
        self._reason = ""
        if self._run is not None:
            self._whyEnded = _("The scene was closed, which ended the run.")
            self._cancel()
        self._show()

    def _progressed(self, stage: str, done: float, total: float, left: float | None) -> None:
        if not self._closed and self._run is not None:
            self._showProgress(stage, done, total, left)

    def _ended(self, run: Segmentation | SegmentationSeries) -> None:
        if self._closed:
            return
        self._run = None
        if isinstance(run.error, CancelledError):
            self._say(self._whyEnded or str(run.error))
        elif run.error is not None:
            self._say(_sentence(run.error))
        else:
            self._say(_("Done."))
        self._show()
        self._busyChanged()
        # What is free has changed; the worker is warm and answers at once.
        if run.nodes is not None:
            self.findDevices()
            self._finished(run.nodes)

    # What is shown.

    def _show(self) -> None:
        ui = self._ui
        state = runState(self._job, self._reason, self.busy)
        ui.segmentButton.enabled = state.enabled
        ui.segmentButton.text = state.text
        ui.segmentButton.toolTip = state.reason
        for widget in (ui.progressBar, ui.cancelButton, ui.progressLabel):
            widget.visible = state.busy
        ui.cancelButton.enabled = state.busy
        ui.refreshDevicesButton.enabled = not state.busy
        ui.pythonEdit.enabled = not state.busy
        ui.testConnectionButton.enabled = not state.busy
        self._showMemory()

    def _showProgress(self, stage: str, done: float, total: float, left: float | None) -> None:
        percent = int(100 * done / total) if total else 0
        self._ui.progressBar.value = min(max(percent, 0), 100)
        text = _stageTitle(stage)
        if self._run is not None and self._run.where:
            text = f"{self._run.where}: {text}"
        if left is not None:
            text += ", " + timeLeft(left)
        self._ui.progressLabel.text = text

    def _say(self, text: str) -> None:
        label = self._ui.runMessageLabel
        label.text = text
        label.visible = bool(text)
        if text:
            _reveal(label)


def _reveal(widget) -> None:
    """Scroll the panel to what has just appeared in it, once it has its place."""
    qt.QTimer.singleShot(LAYOUT_MS, lambda: _scrollTo(widget))


def _scrollTo(widget) -> None:
    area = widget.parent() if widget else None
    while area and not area.inherits("QScrollArea"):
        area = area.parent()
    if area and widget.visible:
        area.ensureWidgetVisible(widget)


def timeLeft(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 5:
        return _("a few seconds left")
    if seconds < 55:
        return _("about {count} seconds left").format(count=5 * round(seconds / 5))
    minutes = round(seconds / 60)
    if minutes <= 1:
        return _("about a minute left")
    if minutes < 90:
        return _("about {count} minutes left").format(count=minutes)
    return _("about {count} hours left").format(count=round(minutes / 60))


def _deviceTitle(device: dict) -> str:
    """A device of the worker's answer, with its free memory where that is known."""
    title = device["title"]
    if device["name"] != title and not device["name"].startswith("cuda"):
        title = f"{device['name'].upper()} ({title})"
    if device["free_mb"] is None:
        return title
    return _("{name}: {free} GB free").format(name=title, free=gigabytes(device["free_mb"]))


def _stageTitle(stage: str) -> str:
    titles = {
        "start": _("Starting"),
        "send": _("Handing over the images"),
        "load": _("Loading the model"),
        "prepare": _("Preparing the images"),
        "segment": _("Segmenting"),
        "restore": _("Bringing the answer onto the image's grid"),
        "measure": _("Measuring lesions"),
        "show": _("Bringing the result into the scene"),
    }
    return titles.get(stage, stage)


def _sentence(error: Exception) -> str:
    """What the user reads; of a defect as much as helps to report it."""
    if isinstance(error, MedSegError):
        return str(error)
    return _(
        "MedSeg failed ({kind}: {text}). Run it again; if it happens twice, report this sentence."
    ).format(kind=type(error).__name__, text=error)
