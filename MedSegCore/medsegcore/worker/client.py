"""The other end of the worker: starts it, talks to it, and survives it. No torch here.

The client is a state machine that moves only in `poll`, which returns within a few hundredths of
a second whatever is on the way, so that an event loop can call it.
"""

import contextlib
import secrets
import shutil
import signal
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegcore.errors import (
    CancelledError,
    InputError,
    MedSegError,
    OutputError,
    WorkerError,
)
from medsegcore.worker import protocol
from medsegcore.worker.protocol import Arrays, Parser, ProtocolError, RunOptions
from medsegcore.worker.transport import SubprocessTransport, Transport, wait_until_ended

if TYPE_CHECKING:
    from medsegcore.imaging import Image

Progress = Callable[[str, float, float, float | None], None]

POLL_SECONDS = 0.02
CANCEL_SECONDS = 1.0
START_SECONDS = 180.0
# What may wait in the pipe: a cancel has to get through behind it.
UNSENT_BYTES = 2 << 20
LOG_CHARACTERS = 20_000


@dataclass(eq=False)
class Request:
    """Something that was asked of the worker.

    Attributes:
        id: its number.
        progress: called with (stage, done, total, seconds left or None).
        finished: called once with this request.
        done: whether `result` or `error` is there.
        result: what the worker answered: a dict, or a `Result` for a prediction.
        error: what went wrong.
        cancelled: whether that was asked for.
        predicts, sent, deadline: what the client remembers of it.
    """

    id: int
    progress: Progress | None = None
    finished: Callable[["Request"], None] | None = None
    done: bool = False
    result: Any = None
    error: MedSegError | None = None
    cancelled: bool = False
    predicts: bool = False
    sent: bool = False
    deadline: float = float("inf")


class WorkerClient:
    """One worker process, started when it is first needed and again when it has died.

    Args:
        command: what runs the worker, e.g. [python, "-m", "medsegcore.worker"] or
            ["ssh", "host", "medseg", "worker"].
        environment: of the process.
        transport: makes a `Transport` for each process.

    Attributes:
        info: the worker's answer to hello {protocol, version, devices, machine, shared}; None
            before it.
        log: what the worker printed last.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        transport: Callable[[], Transport] = SubprocessTransport,
    ) -> None:
        self.command = list(command)
        self.environment = dict(environment)
        self.info: dict[str, Any] | None = None
        self.log = ""
        self._make = transport
        self._transport: Transport | None = None
        self._parser = Parser()
        self._arrays = Arrays()
        self._folder: Path | None = None
        self._token = ""
        self._number = 0
        self._open: dict[int, Request] = {}
        self._outgoing: deque[tuple[Request, Iterator[bytes | None]]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._polling = False
        self._hello: Request | None = None
        self._leftovers: Callable[[], Any] = lambda: None

    # What a user of the worker calls.

    @property
    def busy(self) -> bool:
        """Whether something was asked for and is not answered."""
        return bool(self._open or self._calls)

    @property
    def running(self) -> bool:
        """Whether there is a worker process."""
        return self._transport is not None

    def hello(self, finished: Callable[[Request], None] | None = None) -> Request:
        """Start the worker and ask for its version and devices, with their free memory."""
        return self._ask({"request": "hello"}, finished=finished)

    def load(
        self,
        model: str,
        options: RunOptions | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        finished: Callable[[Request], None] | None = None,
    ) -> Request:
        """Make a model ready; the answer has its need of memory and what is free, in MB."""
        message = {"request": "load", "model": model, "options": RunOptions.of(options).to_json()}
        return self._ask(message, progress=progress, finished=finished)

    def predict(
        self,
        model: str,
        images: Mapping[str, "Image"],
        options: RunOptions | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        finished: Callable[[Request], None] | None = None,
        wanted: Sequence[Mapping[str, str]] = (),
    ) -> Request:
        """Segment one case; the answer is a `Result`. The images must not change meanwhile.

        Args:
            wanted: id, version and sha256 of the model and of each of the ensemble; the worker
                refuses others. It takes what it finds when this is empty.

        Raises:
            SettingError, InputError: an option or an image that cannot be sent.
        """
        # What decodes the answer, loaded before anything waits for it.
        import medsegcore.inference  # noqa: F401

        message = {
            "request": "predict", "model": model, "options": RunOptions.of(options).to_json(),
            "wanted": [dict(each) for each in wanted],
        }  # fmt: skip
        for key, image in images.items():
            if image.array.dtype.kind not in "biuf":
                raise InputError(
                    f"The input '{key}' has voxels of the type {image.array.dtype}.",
                    "Numbers are needed.",
                )
        return self._ask(message, images, progress, finished)

    def cancel(self, request: Request) -> None:
        """End a request; a worker that goes on for a second is killed with all that it started."""
        if request.done or request.cancelled:
            return
        request.cancelled = True
        waiting = [entry for entry in self._outgoing if entry[0] is request]
        for entry in waiting:
            self._outgoing.remove(entry)
            entry[1].close()  # type: ignore[attr-defined]
        if self._transport is None or not request.sent:
            # The worker has not heard of it.
            self._finish(request, error=CancelledError("The run was cancelled."))
            return
        request.deadline = time.monotonic() + CANCEL_SECONDS
        self._transport.write(
            protocol.line({"request": "cancel", "id": request.id, "target": request.id})
        )

    def wait(
        self,
        request: Request,
        cancelled: Callable[[], bool] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> Any:
        """Poll until a request is done; gives its result.

        Args:
            request: what to wait for.
            cancelled: asked between polls; True cancels.
            idle: called between polls, e.g. to keep an interface alive.

        Raises:
            MedSegError: what went wrong.
        """
        self.poll()
        while not request.done:
            if cancelled is not None and cancelled():
                self.cancel(request)
            if idle is not None:
                idle()
            if not request.done and self._transport is not None:
                self._transport.wait(POLL_SECONDS)
            self.poll()
        if request.error is not None:
            raise request.error
        return request.result

    def poll(self) -> None:
        """Move what can be moved, and call who waits for it; harmless at any time."""
        if not self._polling:
            self._polling = True
            try:
                self._move(time.monotonic() + POLL_SECONDS)
            finally:
                self._polling = False
        # Outside of the guard: what is called may wait for another request.
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        """End the worker and take its files away; what is open ends as cancelled."""
        transport = self._transport
        for request in list(self._open.values()):
            request.cancelled = True
        if transport is not None and transport.running():
            transport.write(protocol.line({"request": "quit", "id": 0}))
            transport.close_input()
            # One that computes hears it as well: its reading thread ends the process.
            wait_until_ended(transport, CANCEL_SECONDS)
        self._stop(CancelledError("The worker was ended."))
        self.poll()

    # How it starts and ends.

    def _ask(
        self,
        message: dict[str, Any],
        images: "Mapping[str, Image] | None" = None,
        progress: Progress | None = None,
        finished: Callable[[Request], None] | None = None,
    ) -> Request:
        if self._transport is not None:
            # Nobody waits for the last words of one that died idle.
            idle = not self._open and self._transport.exit_code() is not None
            if idle or not self._transport.running():
                self._died()
        self._number += 1
        request = Request(self._number, progress, finished, predicts=images is not None)
        self._open[request.id] = request
        self._outgoing.append((request, self._steps(request, message, images or {})))
        if self._transport is None:
            self._start(request)
        return request

    def _start(self, first: Request) -> None:
        self.info, self.log = None, ""
        self._parser, self._arrays = Parser(), Arrays()
        try:
            self._make_folder()
        except OSError as error:
            self._stop(
                OutputError(
                    f"The folder for temporary files cannot be used: {error.strerror}.",
                    "Free some space on its disk.",
                )
            )
            return
        transport = self._make()
        self._transport = transport
        # Also when nobody calls close: at the end of the interpreter and of this object.
        self._leftovers = weakref.finalize(self, _clean, transport, self._folder)
        transport.start(self.command, self.environment)
        self._number += 1
        self._hello = Request(self._number, finished=self._greeted)
        self._hello.deadline = time.monotonic() + START_SECONDS
        self._open[self._hello.id] = self._hello
        share = {"folder": str(self._folder)}
        transport.write(
            protocol.line(
                {"request": "hello", "id": self._hello.id, "protocol": protocol.PROTOCOL,
                 "share": share}
            )
        )  # fmt: skip
        self._tell(first, "start", 0, 1, None)

    def _make_folder(self) -> None:
        self._token = secrets.token_hex(16)
        # Private to the user: it holds a patient's images.
        self._folder = Path(tempfile.mkdtemp(prefix="medseg-"))
        try:
            (self._folder / protocol.TOKEN_FILE).write_text(self._token, encoding="ascii")
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            raise

    def _greeted(self, request: Request) -> None:
        """The worker is ready: can it see our folder, and we what it writes there?"""
        if request.error is not None:
            self._stop(request.error)
            return
        assert self._folder is not None
        answer = request.result
        if answer.get("protocol") != protocol.PROTOCOL:
            self._stop(
                WorkerError(
                    f"The worker speaks protocol {answer.get('protocol')}, "
                    f"this MedSeg speaks {protocol.PROTOCOL}.",
                    "Install the same version of medsegcore there as here.",
                )
            )
            return
        echo = None
        with contextlib.suppress(OSError, ValueError):
            echo = (self._folder / protocol.ECHO_FILE).read_text(encoding="ascii")
        shared = answer.pop("token", None) == self._token == echo
        self._arrays.folder = self._folder if shared else None
        answer["shared"] = shared
        self.info = answer

    def _stop(self, error: MedSegError) -> None:
        """End the process and everything that is open."""
        self._leftovers()
        self._transport = self._folder = self._hello = None
        self.info = None
        self._outgoing.clear()
        for request in list(self._open.values()):
            cancelled = CancelledError("The run was cancelled.")
            self._finish(request, error=cancelled if request.cancelled else error)

    def _died(self) -> None:
        assert self._transport is not None
        self._listen()
        said = [text.strip() for text in self.log.splitlines() if text.strip()]
        self._stop(_obituary(self.command[0], self._transport, said, self.info is not None))

    # What moves in `poll`.

    def _move(self, until: float) -> None:
        if self._transport is None:
            return
        moved = True
        while moved and self._transport is not None:
            moved = self._receive()
            if self._transport is not None and self.info is not None:
                moved = self._send() or moved
            if time.monotonic() > until:
                break
        self._listen()
        if self._transport is None:
            return
        if not self._transport.running():
            self._died()
            return
        late = [r for r in self._open.values() if r.deadline < time.monotonic()]
        if late:
            self._stop(
                WorkerError(
                    "The worker did not start in time."
                    if late[0] is self._hello
                    else "The worker was ended with another run that was cancelled.",
                    "Run it again.",
                )
            )

    def _listen(self) -> None:
        if self._transport is not None:
            text = self._transport.read_errors().decode("utf-8", errors="replace")
            if text:
                self.log = (self.log + text)[-LOG_CHARACTERS:]

    def _receive(self) -> bool:
        assert self._transport is not None
        message: dict | None = None
        try:
            message = self._parser.next()
            if message is None:
                data = self._transport.read()
                self._parser.feed(data)
                return bool(data)
            self._hear(message)
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            # A login shell may greet before the worker does.
            if self.info is None and message is None:
                self.log = (self.log + f"{error}\n")[-LOG_CHARACTERS:]
            else:
                self._stop(
                    WorkerError(
                        f"The worker's answer is not understood: '{str(error)[:120]}'.",
                        "Run it again; if it happens twice, report this sentence.",
                    )
                )
        return True

    def _hear(self, event: dict) -> None:
        name, number = event["event"], event.get("id")
        if name == "frame":
            if number in self._open:
                self._arrays.add(event)
            return
        request = self._open.get(number) if isinstance(number, int) else None
        if name == "log":
            self.log = (self.log + f"{event['text']}\n")[-LOG_CHARACTERS:]
        elif name == "error" and number is None:
            raise ProtocolError(str(event.get("message")))
        elif request is None:
            return
        elif name == "progress":
            self._tell(request, event["stage"], event["done"], event["total"], event["eta_s"])
        elif name == "error":
            self._finish(request, error=protocol.error_of(event))
        elif name == "result":
            self._finish(request, self._decode(request, event))

    def _decode(self, request: Request, event: dict) -> Any:
        if not request.predicts:
            hidden = ("event", "id") if request is self._hello else ("event", "id", "token")
            return {key: value for key, value in event.items() if key not in hidden}
        result = protocol.decode_result(event, lambda named: self._arrays.get(request.id, named))
        return result

    def _send(self) -> bool:
        """One portion of what is to go out."""
        assert self._transport is not None
        if not self._outgoing or self._transport.unwritten() > UNSENT_BYTES:
            return False
        request, steps = self._outgoing[0]
        request.sent = True
        try:
            data = next(steps)
        except StopIteration:
            self._outgoing.popleft()
        except OSError as error:
            self._outgoing.popleft()
            self._finish(
                request,
                error=OutputError(
                    f"The images cannot be handed to the worker: {error.strerror}.",
                    f"Free some space on the disk of '{tempfile.gettempdir()}'.",
                ),
            )
        else:
            if data:
                self._transport.write(data)
        return True

    def _steps(
        self, request: Request, message: dict[str, Any], images: "Mapping[str, Image]"
    ) -> Iterator[bytes | None]:
        """The request in portions: bytes for the stream, None for what went into a file."""
        arrays = [image.array for image in images.values()]
        total = sum(array.nbytes for array in arrays) or 1
        done = 0
        references: list[dict] = []
        for n, array in enumerate(arrays):
            name = f"q{request.id}-{n}"
            references.append(protocol.reference(name, array))
            self._tell(request, "send", done, total, None)
            if self._arrays.folder is not None:
                yield from protocol.write_npy(self._arrays.folder / f"{name}.npy", array)
            else:
                yield from protocol.frames("request", request.id, name, array)
            done += array.nbytes
        if request.predicts:
            rest = iter(references)
            message["images"] = protocol.encode_images(images, lambda array: next(rest))
        yield protocol.line({**message, "id": request.id})

    def _tell(self, request: Request, *progress: Any) -> None:
        call = request.progress
        if call is not None and not request.cancelled:
            self._calls.append(lambda: call(*progress))

    def _finish(
        self, request: Request, result: Any = None, error: MedSegError | None = None
    ) -> None:
        self._open.pop(request.id, None)
        self._arrays.drop(request.id)
        self._remove_files()
        if request.cancelled and error is None:
            # It was ready in the same moment; who cancelled does not want it.
            result, error = None, CancelledError("The run was cancelled.")
        request.result, request.error, request.done = result, error, True
        call = request.finished
        if request is self._hello:
            self._hello = None
            # At once: what goes out next depends on it.
            self._greeted(request)
        elif call is not None:
            self._calls.append(lambda: call(request))

    def _remove_files(self) -> None:
        """Those of requests that are done. A mapped array outlives its name."""
        for path in self._folder.glob("*.npy") if self._folder is not None else ():
            number = path.name[1:].partition("-")[0]
            if not number.isdigit() or int(number) not in self._open:
                # On Windows a mapped file stays: it goes with a later request or the folder.
                with contextlib.suppress(OSError):
                    path.unlink()


def _clean(transport: Transport, folder: Path | None) -> None:
    transport.kill()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _obituary(program: str, transport: Transport, said: list[str], ready: bool) -> MedSegError:
    """Why there is no worker any more."""
    if transport.problem():
        return WorkerError(
            f"The worker '{program}' does not start: {transport.problem()}.",
            "Choose a Python that has medsegcore and torch.",
        )
    code = transport.exit_code()
    last = f": {said[-1][:300]}" if said else "; it left no message"
    if not ready:
        return WorkerError(
            f"The worker ended with code {code} before it was ready{last}.",
            "Choose a Python that has medsegcore and torch.",
        )
    if code is not None and code == -getattr(signal, "SIGKILL", 9):
        return WorkerError(
            "The worker was killed, perhaps by the system for want of memory.",
            "Run it again; if it happens twice, close other programs or crop the volumes.",
        )
    return WorkerError(
        f"The worker ended with code {code} in the middle of its work{last}.",
        "Run it again; if it happens twice, use a smaller volume or the device cpu.",
    )
