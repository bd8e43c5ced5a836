"""How bytes reach the worker and come back: one small interface, and its `subprocess` form."""

import contextlib
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Protocol

# What the worker has said and nobody has read yet; then the worker has to wait.
UNREAD_BYTES = 64 << 20
STDERR_BYTES = 1 << 16
KILL_SECONDS = 1.0
LAST_WORDS_SECONDS = 0.5


class Transport(Protocol):
    """A child process and its three streams. No method blocks, but `wait` for its seconds."""

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process; when that fails it is not running and `problem` says why."""

    def read(self) -> bytes:
        """What came on stdout since the last call, or a part of it."""

    def read_errors(self) -> bytes:
        """What came on stderr since the last call."""

    def write(self, data: bytes) -> None:
        """Send to stdin, sooner or later; never raises."""

    def unwritten(self) -> int:
        """How many bytes still wait to be sent."""

    def running(self) -> bool:
        """Whether the process lives, or its output is not read to the end."""

    def exit_code(self) -> int | None:
        """Negative for the signal that ended it; None while it runs or when it never did."""

    def problem(self) -> str:
        """Why it did not start."""

    def wait(self, seconds: float) -> None:
        """Return when something happens, at the latest after that time."""

    def close_input(self) -> None:
        """Close stdin after what still waits."""

    def kill(self) -> None:
        """End the process and all that it started, now; harmless when it has ended."""


class SubprocessTransport:
    """By `subprocess` with threads of its own for the blocking ends of the pipes.

    Not for use inside the application: its event loop starves Python's threads.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._problem = ""
        self._changed = threading.Condition()
        self._out: deque[bytes] = deque()
        self._unread = 0
        self._err = bytearray()
        self._in: deque[bytes | None] = deque()
        self._unwritten = 0
        self._listening = False
        self._ended = 0.0

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """See `Transport`."""
        try:
            self._process = subprocess.Popen(
                list(command), env=dict(environment), bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            self._problem = getattr(error, "strerror", None) or str(error)
            return
        self._listening = True
        for target, stream in (
            (self._pump_out, self._process.stdout),
            (self._pump_err, self._process.stderr),
            (self._pump_in, self._process.stdin),
        ):
            threading.Thread(target=target, args=(stream,), daemon=True).start()

    def _pump_out(self, stdout: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := stdout.read(1 << 18):
                with self._changed:
                    self._out.append(data)
                    self._unread += len(data)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._unread < UNREAD_BYTES)
        with self._changed:
            self._listening = False
            self._changed.notify_all()

    def _pump_err(self, stderr: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := stderr.read(1 << 14):
                with self._changed:
                    self._err += data
                    del self._err[:-STDERR_BYTES]

    def _pump_in(self, stdin: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._in)
                    data = self._in[0]
                if data is None:
                    break
                view = memoryview(data)
                while view:
                    view = view[stdin.write(view) :]
                with self._changed:
                    self._in.popleft()
                    self._unwritten -= len(data)
                    self._changed.notify_all()
        with contextlib.suppress(OSError, ValueError):
            stdin.close()

    def read(self) -> bytes:
        """See `Transport`."""
        with self._changed:
            if not self._out:
                return b""
            data = self._out.popleft()
            self._unread -= len(data)
            self._changed.notify_all()
            return data

    def read_errors(self) -> bytes:
        """See `Transport`."""
        with self._changed:
            data = bytes(self._err)
            self._err.clear()
            return data

    def write(self, data: bytes) -> None:
        """See `Transport`."""
        with self._changed:
            self._in.append(data)
            self._unwritten += len(data)
            self._changed.notify_all()

    def unwritten(self) -> int:
        """See `Transport`."""
        return self._unwritten

    def running(self) -> bool:
        """See `Transport`."""
        if self._process is None:
            return False
        if self._process.poll() is None or self._out:
            return True
        self._ended = self._ended or time.monotonic()
        # Its last words are on the way; what it started may hold the pipe open for ever.
        return self._listening and time.monotonic() - self._ended < LAST_WORDS_SECONDS

    def exit_code(self) -> int | None:
        """See `Transport`."""
        return None if self._process is None else self._process.poll()

    def problem(self) -> str:
        """See `Transport`."""
        return self._problem

    def wait(self, seconds: float) -> None:
        """See `Transport`."""
        with self._changed:
            if not self._out:
                self._changed.wait(seconds)

    def close_input(self) -> None:
        """See `Transport`."""
        with self._changed:
            self._in.append(None)
            self._changed.notify_all()

    def kill(self) -> None:
        """See `Transport`."""
        if self._process is None:
            return
        if self._process.poll() is None:
            kill_tree(self._process.pid)
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        self.close_input()
        with self._changed:
            # Lets the reading thread go when it waits for its reader.
            self._out.clear()
            self._unread = 0
            self._changed.notify_all()


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    try:
        import psutil

        tree = [psutil.Process(pid)]
        tree += tree[0].children(recursive=True)
    except ImportError:
        # The workers among them end by themselves when their stdin closes.
        with contextlib.suppress(OSError):
            os.kill(pid, 9)
        return
    except psutil.Error:
        return
    for process in tree:
        with contextlib.suppress(psutil.Error):
            process.kill()


def wait_until_ended(transport: Transport, seconds: float) -> bool:
    """Whether the process ends within that time; its output is thrown away."""
    deadline = time.monotonic() + seconds
    while transport.running():
        if time.monotonic() > deadline:
            return False
        if not transport.read():
            transport.wait(0.005)
    return True
