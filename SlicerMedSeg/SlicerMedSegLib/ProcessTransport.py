"""How bytes reach the worker inside the application: `qt.QProcess`.

The application's event loop starves Python's threads, so that nothing here reads in one.
"""

import time

import qt

from medsegcore.worker.transport import kill_tree

WAIT_AFTER_KILL_MS = 40


class ProcessTransport:
    """`medsegcore.worker.transport.Transport` by QProcess; see there for the methods."""

    def __init__(self) -> None:
        self._process = qt.QProcess()
        self._problem = ""
        self._out = b""

    def start(self, command, environment) -> None:
        """Start it; nothing waits here until it runs."""
        settings = qt.QProcessEnvironment()
        for name, value in environment.items():
            settings.insert(name, value)
        self._process.setProcessEnvironment(settings)
        self._process.start(command[0], list(command[1:]))

    def read(self) -> bytes:
        """All that came."""
        # Not str(): that of PythonQt's byte arrays is their repr.
        return bytes(self._process.readAllStandardOutput().data())

    def read_errors(self) -> bytes:
        """All that came on stderr."""
        return bytes(self._process.readAllStandardError().data())

    def write(self, data: bytes) -> None:
        """QProcess keeps it until the worker takes it."""
        if self._process.state() != qt.QProcess.NotRunning:
            self._process.write(bytes(data))

    def unwritten(self) -> int:
        """How many bytes QProcess keeps."""
        return int(self._process.bytesToWrite())

    def running(self) -> bool:
        """Whether it lives or has not been read to the end."""
        if self._process.state() != qt.QProcess.NotRunning:
            return True
        return self._process.bytesAvailable() > 0

    def exit_code(self):
        """Negative for the signal that ended it; None while it runs or when it never did."""
        if self._process.state() != qt.QProcess.NotRunning or self.problem():
            return None
        code = int(self._process.exitCode())
        # Of a crashed process QProcess gives the signal as the code.
        return -code if self._process.exitStatus() == qt.QProcess.CrashExit else code

    def problem(self) -> str:
        """Why it did not start."""
        if self._process.state() != qt.QProcess.NotRunning:
            return ""
        if self._process.error() != qt.QProcess.FailedToStart:
            return ""
        return str(self._process.errorString())

    def wait(self, seconds: float) -> None:
        """Lets Qt read and write meanwhile, for callers that have no event loop."""
        if self._process.state() == qt.QProcess.NotRunning:
            time.sleep(min(seconds, 0.005))
        else:
            self._process.waitForReadyRead(max(1, int(seconds * 1000)))

    def close_input(self) -> None:
        """Close stdin after what QProcess keeps."""
        self._process.closeWriteChannel()

    def kill(self) -> None:
        """End the process and all that it started."""
        try:
            if self._process.state() == qt.QProcess.NotRunning:
                return
        except (ValueError, RuntimeError):
            # Qt has taken it apart at the end of the application, and has ended the process.
            return
        kill_tree(int(self._process.processId()))
        self._process.kill()
        self._process.waitForFinished(WAIT_AFTER_KILL_MS)
