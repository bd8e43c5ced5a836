"""The segmentation in a warm child process: torch stays out of Slicer's own."""

import atexit
import os
import shlex
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer

import medsegcore
from medsegcore.worker.client import Progress, Request, WorkerClient
from medsegcore.worker.protocol import RunOptions
from medsegcore.worker.transport import SubprocessTransport, Transport

POLL_MS = 20
MODULE = "medsegcore.worker"
# A command is the machine's, not the scene's: a scene from elsewhere must not bring one.
PYTHON_SETTING = "MedSeg/WorkerPython"


def pythonExecutable() -> str:
    """The interpreter for the child: PythonSlicer inside the application, else the current one."""
    try:
        folder = Path(slicer.app.slicerHome) / "bin"
    except AttributeError:
        return sys.executable
    name = "PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer"
    return str(folder / name)


def workerCommand(python: str | Sequence[str] | None = None) -> list[str]:
    """What runs the worker.

    Args:
        python: an interpreter with medsegcore and torch; or a whole command, as one text or as a
            list, e.g. "ssh host medseg worker"; the application's own interpreter when empty.
    """
    if not python:
        return [pythonExecutable(), "-m", MODULE]
    if not isinstance(python, str):
        return list(python)
    words = shlex.split(python, posix=sys.platform != "win32")
    if len(words) == 1 or Path(python).is_file():
        return [python, "-m", MODULE]
    return words


def workerEnvironment(command: Sequence[str]) -> dict[str, str]:
    """Slicer's own interpreter gets Slicer's environment, any other one that from before it."""
    environment = dict(os.environ)
    if getattr(slicer, "app", None) is not None and command[0] != pythonExecutable():
        environment = dict(slicer.util.startupEnvironment())
    core = Path(medsegcore.__file__).resolve().parents[1]
    # Beside the package would come all that is installed there for Slicer's Python.
    if core.name not in ("site-packages", "dist-packages"):
        paths = [str(core), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


class WarmWorker:
    """The worker of one command, with something that polls it: a timer where Qt is.

    Args:
        python: as for `workerCommand`.
        transport: makes the transport; that of the application when None.
    """

    def __init__(
        self,
        python: str | Sequence[str] | None = None,
        transport: Callable[[], Transport] | None = None,
    ) -> None:
        self.command = workerCommand(python)
        if transport is None:
            transport = _transportOfApplication()
        self.client = WorkerClient(self.command, workerEnvironment(self.command), transport)
        self._timer = None
        if transport is not SubprocessTransport:
            # A connected method would keep this object, and its process, for ever.
            me = weakref.ref(self)
            self._timer = _timer(lambda: _pollOf(me()))

    def hello(self, finished: Callable[[Request], None] | None = None) -> Request:
        """Start the worker; the answer has its version and devices with free_mb and total_mb."""
        return self._watched(self.client.hello(finished))

    def load(
        self,
        model: str,
        options: RunOptions | dict | None = None,
        progress: Progress | None = None,
        finished: Callable[[Request], None] | None = None,
    ) -> Request:
        """Make a model ready; the answer has device, need_mb and free_mb."""
        return self._watched(self.client.load(model, options, progress, finished))

    def predict(
        self,
        model: str,
        images: dict,
        options: RunOptions | dict | None = None,
        progress: Progress | None = None,
        finished: Callable[[Request], None] | None = None,
        wanted: Sequence[Mapping[str, str]] = (),
    ) -> Request:
        """Segment Images by input key; returns at once, `finished` is called with the request.

        Args:
            wanted: as `WorkerClient.predict` takes it.

        Raises:
            SettingError, InputError: an option or an image that cannot be sent.
        """
        return self._watched(
            self.client.predict(model, images, options, progress, finished, wanted)
        )

    def cancel(self, request: Request) -> None:
        """End a request within about a second; the worker stays warm when it hears of it."""
        self.client.cancel(request)

    def wait(
        self,
        request: Request,
        cancelled: Callable[[], bool] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> Any:
        """The result of a request, for scripts; see `WorkerClient.wait`."""
        return self.client.wait(request, cancelled, idle)

    def end(self) -> None:
        """End the process; the next request starts a new one."""
        if self._timer is not None:
            self._timer.stop()
        self.client.close()

    def _watched(self, request: Request) -> Request:
        if self._timer is not None:
            self._timer.start()
        return request

    def poll(self) -> None:
        """Let the client move; the timer does this where Qt is."""
        self.client.poll()
        if self._timer is not None and not self.client.busy:
            self._timer.stop()


def _pollOf(worker: WarmWorker | None) -> None:
    if worker is not None:
        worker.poll()


def _transportOfApplication() -> Callable[[], Transport]:
    if getattr(slicer, "app", None) is None:
        return SubprocessTransport
    from .ProcessTransport import ProcessTransport

    return ProcessTransport


def _timer(slot: Callable[[], None]):
    import qt

    timer = qt.QTimer()
    timer.setInterval(POLL_MS)
    timer.timeout.connect(slot)
    return timer


class _Kept:
    """The one worker that stays warm between runs."""

    worker: WarmWorker | None = None
    watching = False


def warmWorker(python: str | Sequence[str] | None = None) -> WarmWorker:
    """The worker that is kept between runs; one with another command is ended first.

    It ends with the application, or by `endWorker`.
    """
    kept = _Kept.worker
    if kept is not None and kept.command == workerCommand(python):
        return kept
    endWorker()
    _Kept.worker = WarmWorker(python)
    if not _Kept.watching:
        _Kept.watching = True
        atexit.register(endWorker)
        application = getattr(slicer, "app", None)
        if application is not None:
            # Qt is gone when Python's own exit comes.
            application.aboutToQuit.connect(endWorker)
    return _Kept.worker


def endWorker() -> None:
    """End the worker that is kept, with what it is doing; harmless when there is none."""
    kept, _Kept.worker = _Kept.worker, None
    if kept is not None:
        kept.end()
