"""Progress, cancelling and the seconds of a run's stages."""

import time
from collections.abc import Callable

from medsegcore.errors import CancelledError

Progress = Callable[[str, int, int, float | None], None]


class Clock:
    """Progress, cancelling and the seconds of each stage."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None):
        self.progress, self.cancelled = progress, cancelled
        self.seconds: dict[str, float] = {}
        self.stage = ""
        self.done = self.total = 0
        self.started = 0.0

    def begin(self, stage: str, total: int) -> None:
        self.end()
        self.stage, self.done, self.total, self.started = stage, 0, total, time.monotonic()
        self.check()
        self._report()

    def step(self, count: int = 1) -> None:
        self.done += count
        self._report()

    def check(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise CancelledError("The run was cancelled.")

    def end(self) -> None:
        if self.stage:
            spent = time.monotonic() - self.started
            self.seconds[self.stage] = round(self.seconds.get(self.stage, 0.0) + spent, 3)

    def _report(self) -> None:
        if self.progress is None:
            return
        spent = time.monotonic() - self.started
        left = spent / self.done * (self.total - self.done) if self.done else None
        self.progress(self.stage, self.done, self.total, left)
