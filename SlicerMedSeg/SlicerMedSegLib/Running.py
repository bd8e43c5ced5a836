"""The segmentation in a child process: torch stays out of Slicer's own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from medsegcore.errors import CancelledError, MedSegError, RunError
from medsegcore.imaging import Image, write_image
from medsegcore.inference import Result

POLL_SECONDS = 0.03
GRACE_SECONDS = 2.0
CORE_FOLDER = Path(__file__).resolve().parents[2] / "MedSegCore"


def pythonExecutable() -> str:
    """The interpreter for the child: PythonSlicer inside the application, else the current one."""
    try:
        import slicer

        folder = Path(slicer.app.slicerHome) / "bin"
    except (ImportError, AttributeError):
        return sys.executable
    name = "PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer"
    return str(folder / name)


def runPredict(
    model: str,
    images: dict[str, Image],
    options: list[str] | None = None,
    progress: Callable[[str, float, float, float | None], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    idle: Callable[[], None] | None = None,
    python: str | None = None,
) -> Result:
    """Run `medseg predict` on images and wait for its result.

    Args:
        model: id or folder of a model.
        images: Image by input key.
        options: further options of `medseg predict`, e.g. ["--device", "cpu"].
        progress: called with (stage, done, total, seconds left or None).
        cancelled: asked between polls; the whole process tree ends within a few seconds.
        idle: called while waiting, e.g. to keep an interface alive.
        python: interpreter with medsegcore and torch.

    Raises:
        MedSegError: what the child says went wrong; RunError when it died without a word;
            CancelledError.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-run-") as folder:
        command = [python or pythonExecutable(), "-m", "medsegcore", "predict", "--json"]
        command += ["--model", model, "--out", str(Path(folder) / "out"), *(options or [])]
        for key, image in images.items():
            # Uncompressed: the file lives for seconds.
            path = Path(folder) / f"{key}.nii"
            write_image(image, path)
            command += [f"--{key}", str(path)]
        with _Child(command, Path(folder)) as child:
            error = child.follow(progress, cancelled, idle)
        if error is not None:
            raise error
        return Result.load(Path(folder) / "out")


class _Child:
    """A process whose output goes to a file: polling needs no thread, which Qt would starve."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.outPath, self.errPath = folder / "stdout", folder / "stderr"
        environment = dict(os.environ)
        # Slicer's own modules are no part of the child.
        paths = [str(CORE_FOLDER)] if CORE_FOLDER.is_dir() else []
        environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
        with self.outPath.open("wb") as out, self.errPath.open("wb") as err:
            try:
                self.process = subprocess.Popen(
                    command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment
                )
            except OSError as error:
                raise RunError(
                    f"The interpreter '{command[0]}' does not start: {error.strerror}.",
                    "Choose a Python that has medsegcore and torch.",
                ) from error
        self.reader = self.outPath.open("r", encoding="utf-8")
        self.pending = ""

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        self.reader.close()

    def follow(self, progress, cancelled, idle) -> MedSegError | None:
        """Pass the events on until the process ends; gives its error."""
        error: MedSegError | None = None
        while True:
            running = self.process.poll() is None
            for event in self._events():
                if event["event"] == "progress" and progress is not None:
                    progress(event["stage"], event["done"], event["total"], event["eta_s"])
                elif event["event"] == "error":
                    error = _errorOf(event)
            if not running:
                break
            if cancelled is not None and cancelled():
                self.end()
                return CancelledError("The run was cancelled.")
            if idle is not None:
                idle()
            time.sleep(POLL_SECONDS)
        if self.process.returncode != 0 and error is None:
            words = self.errPath.read_text(encoding="utf-8", errors="replace").strip()
            last = words.splitlines()[-1] if words else "it left no message"
            error = RunError(
                f"The segmentation process ended with code {self.process.returncode}: {last}",
                "Run it again; if it happens twice, use a smaller volume or the device cpu.",
            )
        return error

    def _events(self) -> list[dict]:
        self.pending += self.reader.read()
        *lines, self.pending = self.pending.split("\n")
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                events.append(event)
        return events

    def end(self) -> None:
        """End the process and all that it started; harmless when it has ended."""
        if self.process.poll() is not None:
            return
        import psutil

        try:
            tree = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.Error:
            tree = [self.process]
        for process in tree:
            _quietly(process.terminate)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for process in tree:
            _quietly(process.kill)
        self.process.wait()


def _quietly(action: Callable[[], None]) -> None:
    import psutil

    try:
        action()
    except (psutil.Error, OSError):
        pass


def _errorOf(event: dict) -> MedSegError:
    """The child's error as the class that has its code."""
    waiting = [MedSegError]
    while waiting:
        candidate = waiting.pop()
        if candidate.code == event["code"]:
            return candidate(event["message"], event["action"])
        waiting += candidate.__subclasses__()
    return MedSegError(event["message"], event["action"])
