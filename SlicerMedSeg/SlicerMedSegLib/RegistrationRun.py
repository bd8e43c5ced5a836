"""A registration in a child process, watched without ever waiting: SimpleITK blocks for seconds."""

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import medsegcore
from medsegcore.errors import CancelledError, MedSegError, RunError
from medsegcore.imaging import Image
from medsegcore.imaging.registration_process import REQUEST, TRANSFORM

from .Running import pythonExecutable
from .Translation import _

MODULE = "medsegcore.imaging.registration_process"
END_SECONDS = 1.0


class RegistrationRun:
    """Starts at once; call `poll` now and then, e.g. from a timer, until `finished`.

    Args:
        fixed, moving: the images.
        kind: "rigid", "affine" or "bspline".
        python: interpreter with medsegcore; the application's own when None.

    Attributes:
        share: how much is done, 0..1.
        finished: whether there is a transform or an error.
        error: what went wrong, None when nothing did.
        transform: SimpleITK transform from the fixed image's points to the moving one's.
        qualityBefore, qualityAfter: normalised mutual information, 0..1.
    """

    def __init__(self, fixed: Image, moving: Image, kind: str, python: str | None = None) -> None:
        self.share, self.finished = 0.0, False
        self.error: MedSegError | None = None
        self.transform: sitk.Transform | None = None
        self.qualityBefore = self.qualityAfter = 0.0
        self._told: dict | None = None
        self._pending = b""
        self._folder = tempfile.TemporaryDirectory(prefix="medseg-registration-")
        self._process: subprocess.Popen | None = None
        folder = Path(self._folder.name)
        request = {"kind": kind}
        try:
            for name, image in (("fixed", fixed), ("moving", moving)):
                np.save(folder / f"{name}.npy", image.array)
                request[name] = image.affine.tolist()
            (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
            self._start([python or pythonExecutable(), "-m", MODULE, str(folder)], folder)
        except OSError as error:
            self._end(
                RunError(
                    _("The registration cannot be started: {why}.").format(
                        why=error.strerror or error
                    ),
                    _("Check the free space of the disk and the interpreter."),
                )
            )

    def _start(self, command: list[str], folder: Path) -> None:
        environment = dict(os.environ)
        core = Path(medsegcore.__file__).resolve().parents[1]
        if core.name not in ("site-packages", "dist-packages"):
            paths = [str(core), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        # To files: reading a pipe would block, or need a thread, which Qt's event loop starves.
        with (folder / "events").open("wb") as out, (folder / "words").open("wb") as words:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=words, env=environment,
                # PythonSlicer would open a console of its own on Windows.
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )  # fmt: skip
        self._events = (folder / "events").open("rb")

    def poll(self) -> None:
        """Take in what the process has said; returns at once."""
        if self.finished or self._process is None:
            return
        code = self._process.poll()
        self._pending += self._events.read()
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                self._heard(json.loads(line))
        if code is not None:
            self._ended(code)

    def cancel(self) -> None:
        """End the process now; harmless when it has ended."""
        if not self.finished:
            self._end(CancelledError(_("The registration was cancelled.")))

    def _heard(self, event: dict) -> None:
        if event.get("event") == "progress":
            self.share = max(self.share, float(event["share"]))
        elif event.get("event") in ("result", "error"):
            self._told = event

    def _ended(self, code: int) -> None:
        told = self._told or {}
        if told.get("event") == "error":
            self._end(_errorOf(told))
            return
        if code != 0 or told.get("event") != "result":
            words = (Path(self._folder.name) / "words").read_text(errors="replace").strip()
            last = words.splitlines()[-1] if words else _("it left no message")
            self._end(
                RunError(
                    _("The registration ended with code {code}: {last}.").format(
                        code=code, last=last.rstrip(".")
                    ),
                    _("Try again; if it happens twice, use the volume as it is."),
                )
            )
            return
        self.transform = sitk.ReadTransform(str(Path(self._folder.name) / TRANSFORM))
        self.qualityBefore, self.qualityAfter = float(told["before"]), float(told["after"])
        self.share = 1.0
        self._end(None)

    def _end(self, error: MedSegError | None) -> None:
        self.error, self.finished = error, True
        if self._process is not None:
            if self._process.stdin is not None:
                # What a launcher has started ends by this, too.
                self._process.stdin.close()
            if self._process.poll() is None:
                self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            self._events.close()
        # On Windows a file can be in use for a moment longer.
        with contextlib.suppress(OSError):
            self._folder.cleanup()


def _errorOf(event: dict) -> MedSegError:
    """The child's error as the class that has its code."""
    waiting: list[type[MedSegError]] = [MedSegError]
    while waiting:
        candidate = waiting.pop()
        if candidate.code == event["code"]:
            return candidate(event["message"], event["action"])
        waiting += candidate.__subclasses__()
    return MedSegError(event["message"], event["action"])
