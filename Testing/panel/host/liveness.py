"""How long the event loop is held up, by a timer that wants to tick every 5 ms."""

import sys
import threading
import time
from collections import Counter

from PySide6 import QtCore

from SlicerMedSegLib import SceneViews

TICK_MS = 5


class Liveness:
    """Measures from `__enter__` to `__exit__`; use it as a context manager.

    What counts is the thread's own time, because the machine may be busy with something else,
    without the host's drawing of slice views by software: the application has a GPU for that.

    Args:
        tell_ms: gaps above are kept with what ran in them.

    Attributes:
        longest_ms: the longest that passed between two ticks.
        culprits: (ms, innermost functions) of each gap above `tell_ms`, where most of it was spent.
    """

    def __init__(self, tell_ms: float = 50.0) -> None:
        self.tell_ms = tell_ms
        self.longest_ms = 0.0
        self.culprits: list[tuple[float, str]] = []
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._frames: Counter = Counter()
        self._thread = threading.get_ident()
        self._running = True
        self._drawing = 0.0

    def __enter__(self) -> "Liveness":
        capture = self._capture = SceneViews._View.capture

        def timed(view):
            started = time.thread_time()
            try:
                return capture(view)
            finally:
                self._drawing += time.thread_time() - started

        SceneViews._View.capture = timed
        threading.Thread(target=self._watch, daemon=True).start()
        self._last = time.thread_time()
        self._timer.start(TICK_MS)
        return self

    def __exit__(self, *exception: object) -> None:
        self._tick()
        self._running = False
        self._timer.stop()
        SceneViews._View.capture = self._capture

    def _tick(self) -> None:
        now = time.thread_time()
        gap = 1000 * (now - self._last - self._drawing)
        self._drawing = 0.0
        self.longest_ms = max(self.longest_ms, gap)
        frames, self._frames = self._frames, Counter()
        if gap > self.tell_ms:
            top = "; ".join(f"{name} x{count}" for name, count in frames.most_common(5))
            self.culprits.append((gap, top))
        self._last = now

    def _watch(self) -> None:
        """Looks where the measured thread is, every 2 ms."""
        while self._running:
            frame = sys._current_frames().get(self._thread)
            names: list[str] = []
            while frame is not None and len(names) < 5:
                if "SlicerMedSeg" in frame.f_code.co_filename:
                    names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                frame = frame.f_back
            self._frames[" < ".join(names)] += 1
            time.sleep(0.002)
