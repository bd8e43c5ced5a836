"""The worker: answers requests on stdin until it is closed, with models that stay warm."""

import contextlib
import os
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

import medsegcore
from medsegcore.errors import (
    CancelledError,
    MedSegError,
    OutOfMemoryError,
    OutputError,
    SettingError,
    WorkerError,
    is_out_of_memory,
)
from medsegcore.imaging import Region
from medsegcore.worker import protocol
from medsegcore.worker.machine import describe_machine
from medsegcore.worker.protocol import Arrays, Parser, ProtocolError, RunOptions
from medsegcore.worker.warm import WarmModels, find_model, list_devices, memory_mb

if TYPE_CHECKING:
    from medsegcore.models import ModelFolder


def serve() -> None:
    """Be the worker of whoever holds the other ends of stdin and stdout."""
    read, write = _private_ends()
    # Ctrl-C in the terminal of the client goes to the whole group: the client decides, not we.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Server(read, write).run()


def _private_ends() -> tuple[int, int]:
    """File descriptors that no library knows: what they print goes to stderr."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    read, write = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for end in (read, write):
            msvcrt.setmode(end, os.O_BINARY)
    # What was printed before may have left a line open.
    os.write(write, b"\n")
    return read, write


class Server:
    """One client's worker. A thread reads, so that a cancel is heard while a model computes.

    Args:
        read, write: file descriptors of the stream.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._writing = threading.Lock()
        # Of what the two threads both know: what is open, what runs, what was cancelled.
        self._state = threading.Lock()
        self._jobs: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._arrays = Arrays()
        self._cancelled: set[int] = set()
        self._open: set[int] = set()
        self._current = 0
        self._models = WarmModels(self._check)

    def run(self) -> NoReturn:
        """Answer until the client says quit or is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self._answer(self._jobs.get())

    # The reading thread.

    def _listen(self) -> NoReturn:
        parser = Parser()
        try:
            while data := os.read(self._read, 1 << 18):
                parser.feed(data)
                self._take(parser)
        except OSError:
            pass
        except BaseException:
            traceback.print_exc()
        self._leave()

    def _take(self, parser: Parser) -> None:
        while True:
            try:
                message = parser.next()
                if message is None:
                    return
                self._sort(message)
            except (ProtocolError, KeyError, TypeError, ValueError) as error:
                self._fail(None, WorkerError(f"The worker does not understand '{error}'."))

    def _sort(self, message: dict) -> None:
        kind, request = message["request"], int(message["id"])
        if kind == "frame":
            self._arrays.add(message)
        elif kind == "cancel":
            self._cancel(int(message["target"]))
        elif kind == "quit":
            self._leave()
        else:
            with self._state:
                self._open.add(request)
            self._jobs.put(message)

    def _cancel(self, target: int) -> None:
        with self._state:
            if target == self._current:
                self._cancelled.add(target)
                return
            # It waits for its turn, or its arrays are still on the way.
            self._open.discard(target)
            self._arrays.drop(target)
        self._fail(target, CancelledError("The run was cancelled."))

    def _leave(self) -> NoReturn:
        """End at once, whatever the other thread computes, and leave no file."""
        if self._arrays.folder is not None:
            # Twice: the other thread may just be writing one.
            for _ in range(2):
                shutil.rmtree(self._arrays.folder, ignore_errors=True)
        os._exit(0)

    # The working thread.

    def _answer(self, message: dict) -> None:
        request = int(message["id"])
        with self._state:
            if request not in self._open:
                return
            self._current = request
        try:
            self._check()
            answer = {
                "hello": self._hello,
                "load": self._load,
                "predict": self._predict,
            }.get(message["request"])
            if answer is None:
                raise WorkerError(f"The worker knows no request '{message['request']}'.")
            answer(request, message)
        except MedSegError as error:
            self._fail(request, error)
        except ProtocolError as error:
            self._fail(request, WorkerError(f"The worker does not understand '{error}'."))
        except Exception as error:
            traceback.print_exc()
            if is_out_of_memory(error):
                self._fail(request, _no_memory())
            else:
                self._fail(
                    request,
                    MedSegError(
                        f"MedSeg failed unexpectedly: {type(error).__name__}: {error}.",
                        "Report this sentence and the log of the worker.",
                    ),
                )
        finally:
            with self._state:
                self._current = 0
                self._open.discard(request)
                self._cancelled.discard(request)
                self._arrays.drop(request)

    def _check(self) -> None:
        if self._current in self._cancelled:
            raise CancelledError("The run was cancelled.")

    def _hello(self, request: int, message: dict) -> None:
        token = None
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            folder = Path(message["share"]["folder"])
            token = (folder / protocol.TOKEN_FILE).read_text(encoding="ascii")
            # Results go the other way: both ends have to see what the other writes.
            (folder / protocol.ECHO_FILE).write_text(token, encoding="ascii")
            self._arrays.folder = folder
        self._event("log", request, text="starting torch")
        try:
            devices, machine = list_devices(), describe_machine()
        except ImportError as error:
            raise WorkerError(
                f"The worker's Python cannot load what it needs: {error}.",
                "Install it there, or choose another Python.",
            ) from error
        self._event(
            "result", request, protocol=protocol.PROTOCOL, version=medsegcore.__version__,
            token=token, devices=devices, machine=machine,
        )  # fmt: skip

    def _load(self, request: int, message: dict) -> None:
        predictor = self._warm(request, find_model(str(message["model"])), _options(message))
        free, _ = memory_mb(str(predictor.device))
        description = predictor.description
        self._event(
            "result", request, device=str(predictor.device), free_mb=free,
            need_mb=description.memory_mb,
            model={"id": description.id, "version": description.version},
        )  # fmt: skip

    def _warm(self, request: int, folder: "ModelFolder", options: RunOptions) -> Any:
        self._event("progress", request, stage="load", done=0, total=1, eta_s=None)
        predictor = self._models.get(folder, options)
        self._event("progress", request, stage="load", done=1, total=1, eta_s=0.0)
        self._check()
        return predictor

    def _predict(self, request: int, message: dict) -> None:
        options = _options(message)
        images = protocol.decode_images(
            message.get("images"), lambda named: self._arrays.get(request, named)
        )
        region = Region.from_dict(options.region) if options.region is not None else None
        settings = {
            "mirror": options.mirror, "attention": options.attention, "region": region,
            "uncertainty": options.uncertainty, "dropout": options.dropout,
            "thresholds": options.thresholds, "min_lesion_ml": options.min_lesion_ml,
            "progress": lambda stage, done, total, eta_s: self._event(
                "progress", request, stage=stage, done=done, total=total, eta_s=eta_s
            ),
            "cancelled": lambda: request in self._cancelled,
        }  # fmt: skip
        folders = _folders(message, options)
        if options.ensemble:
            result = self._predict_together(request, folders, options, images, settings)
        else:
            result = self._warm(request, folders[0], options).predict(images, **settings)
        sender = _Sender(self, request)
        try:
            encoded = protocol.encode_result(result, sender.put)
            self._check()
            self._event("result", request, **encoded)
        except BaseException:
            sender.undo()
            raise

    def _predict_together(
        self,
        request: int,
        folders: list["ModelFolder"],
        options: RunOptions,
        images: Any,
        settings: dict,
    ) -> Any:
        from medsegcore.inference.ensemble import predict_in_turn
        from medsegcore.inference.preprocess import check_same_task

        check_same_task([folder.description for folder in folders])
        # One after the other, so that they need no more memory than the largest.
        members = (self._warm(request, folder, options) for folder in folders)
        return predict_in_turn(members, len(folders), images, **settings)

    # Writing, from both threads.

    def _event(self, name: str, request: int | None, **fields: Any) -> None:
        self.write(protocol.line({"event": name, "id": request, **fields}))

    def _fail(self, request: int | None, error: MedSegError) -> None:
        self._event("error", request, code=error.code, message=error.message, action=error.action)

    @property
    def folder(self) -> Path | None:
        """The one that both ends share."""
        return self._arrays.folder

    def write(self, data: bytes) -> None:
        """All of it, undivided; the end of the process when nobody listens."""
        view = memoryview(data)
        with self._writing:
            try:
                while view:
                    view = view[os.write(self._write, view) :]
            except OSError:
                self._leave()

    def check(self) -> None:
        """Raise when the current request was cancelled."""
        self._check()


class _Sender:
    """Hands the arrays of one result over."""

    def __init__(self, server: Server, request: int) -> None:
        self.server, self.request = server, request
        self.names: list[str] = []

    def put(self, array: np.ndarray) -> dict[str, Any]:
        name = f"a{self.request}-{len(self.names)}"
        self.names.append(name)
        folder = self.server.folder
        if folder is None:
            for frame in protocol.frames("event", self.request, name, array):
                self.server.check()
                self.server.write(frame)
            return protocol.reference(name, array)
        try:
            for _ in protocol.write_npy(folder / f"{name}.npy", array):
                self.server.check()
        except OSError as error:
            raise OutputError(
                f"The result cannot be written to '{folder}': {error.strerror}.",
                "Free some space on that disk and run again.",
            ) from error
        return protocol.reference(name, array)

    def undo(self) -> None:
        """Take away the files of a result that nobody gets."""
        for name in self.names:
            if self.server.folder is not None:
                with contextlib.suppress(OSError):
                    (self.server.folder / f"{name}.npy").unlink()


def _options(message: Mapping[str, Any]) -> RunOptions:
    try:
        return RunOptions.of(message.get("options"))
    except (TypeError, AttributeError) as error:
        raise SettingError(f"The options are not of their types: {error}.") from error


def _folders(message: Mapping[str, Any], options: RunOptions) -> list["ModelFolder"]:
    """Of the model and of each of the ensemble, as the client wants them."""
    models = [str(message["model"]), *options.ensemble]
    wanted = message.get("wanted") or [None] * len(models)
    try:
        return [find_model(m, w) for m, w in zip(models, wanted, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"wanted: {type(error).__name__}: {error}"[:200]) from error


def _no_memory() -> OutOfMemoryError:
    return OutOfMemoryError(
        "The memory of the computer does not hold this case.",
        "Close other programs, or crop the volumes.",
    )
