"""How the commands speak: a progress bar for people, JSON lines for programs."""

import json
import sys
import time
from typing import Any

from medsegcore.errors import MedSegError

# Of the progress in a file or a pipe, where there is no bar.
LINE_EVERY_SECONDS = 60


class Console:
    """Speaks to a person, or (with `machine`) writes one JSON object per line to stdout.

    Events: {"event": "progress", "stage", "done", "total", "eta_s"}, {"event": "result", ...},
    {"event": "warning", "message"}, {"event": "error", "code", "message", "action"}. `command` is
    what was typed.
    """

    def __init__(self, machine: bool = False, debug: bool = False, command: str = ""):
        self.machine = machine
        self.debug = debug
        self.command = command
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._told = 0.0

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.machine:
            self.stop()
            print(text, flush=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table for people."""
        if self.machine:
            return
        self.stop()
        from rich.console import Console as RichConsole
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(title), title_justify="left")
        for n, column in enumerate(columns):
            # A unit such as [mm] would be taken for a style.
            table.add_column(escape(column), justify="left" if n == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        # In a file or a pipe, half a table is worse than a wide one.
        width = None if sys.stdout.isatty() else 160
        RichConsole(width=width).print(table)

    def event(self, name: str, **fields: Any) -> None:
        """A line for programs."""
        if self.machine:
            print(json.dumps({"event": name, **fields}), flush=True)

    def progress(self, stage: str, done: float, total: float, eta_s: float | None) -> None:
        """How far a stage is; `eta_s` is the time left in seconds."""
        if self.machine:
            eta = None if eta_s is None else round(eta_s, 1)
            self.event("progress", stage=stage, done=done, total=total, eta_s=eta)
            return
        if not sys.stderr.isatty():
            self._tell(stage, done / total if total else 1.0, eta_s)
            return
        if self._bar is None:
            self._start()
        if stage != self._stage:
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total, left="")
        left = "" if eta_s is None else f"{_minutes(eta_s)} left"
        self._bar.update(self._task, completed=done, total=total, left=left)

    def _tell(self, stage: str, share: float, eta_s: float | None) -> None:
        """The same in a file or a pipe: a line at each new stage, and then one a minute."""
        now = time.monotonic()
        if stage == self._stage and now - self._told < LINE_EVERY_SECONDS:
            return
        self._stage, self._told = stage, now
        left = "" if eta_s is None else f", {_minutes(eta_s)} left"
        print(f"{stage} {share:.0%}{left}", file=sys.stderr, flush=True)

    def _start(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[left]}"), console=RichConsole(stderr=True),
        )  # fmt: skip
        self._bar.start()

    def stop(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._stage = None, ""

    def warn(self, message: str) -> None:
        """Something that may be wrong, in one sentence."""
        self.stop()
        self.event("warning", message=message)
        print(f"Warning: {message}", file=sys.stderr, flush=True)

    def fail(self, error: MedSegError) -> int:
        """Report an error; gives the exit code."""
        self.stop()
        self.event("error", code=error.code, message=error.message, action=error.action)
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
