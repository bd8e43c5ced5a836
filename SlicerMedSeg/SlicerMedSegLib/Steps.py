"""Work in short steps, so that the interface stays live: generators that yield between them."""

import inspect
import time
import weakref
from collections.abc import Callable, Generator
from typing import TypeVar

import numpy as np
import vtk
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

T = TypeVar("T")
Steps = Generator[None, None, T]

# What a step moves at most, and how long several short ones are taken together.
SLAB_BYTES = 8 << 20
TOGETHER_SECONDS = 0.01


def runToEnd(steps: Steps[T]) -> T:
    """All steps at once, for scripts; gives what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class EventLoopSteps:
    """Runs steps between the events of the interface.

    Args:
        steps: each next one takes less than 50 ms.
        ended: called once with what they return, and with the exception that ended them or None.
    """

    def __init__(self, steps: Steps, ended: Callable[[object, Exception | None], None]) -> None:
        import qt

        self._steps, self._ended = steps, ended
        self._stopped = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        # A connected method would keep this object, and all that the steps hold, for ever.
        me = weakref.ref(self)
        self._timer.connect("timeout()", lambda: _goOf(me()))
        self._timer.start(0)

    def stop(self) -> None:
        """Give up: what the steps undo at their end is undone; `ended` is not called."""
        self._stopped = True
        self._timer.stop()
        # A step may have caused events that made somebody stop it.
        if inspect.getgeneratorstate(self._steps) != inspect.GEN_RUNNING:
            self._steps.close()

    def finish(self) -> None:
        """All that is left at once, where it cannot wait."""
        while not self._stopped and self._timer.isActive():
            self._timer.stop()
            self._go()

    def _go(self) -> None:
        until = time.monotonic() + TOGETHER_SECONDS
        try:
            next(self._steps)
            while time.monotonic() < until and not self._stopped:
                next(self._steps)
        except StopIteration as end:
            self._ended(end.value, None)
        except Exception as error:
            self._ended(None, error)
        else:
            if self._stopped:
                self._steps.close()
            else:
                self._timer.start(0)


def _goOf(steps: EventLoopSteps | None) -> None:
    if steps is not None:
        steps._go()


def copyInSteps(target: np.ndarray, source: np.ndarray) -> Steps[None]:
    """target[:] = source, [k, j, i], some slices in each step."""
    slices = max(1, SLAB_BYTES // max(target[:1].nbytes, 1))
    for first in range(0, len(target), slices):
        target[first : first + slices] = source[first : first + slices]
        yield


def imageDataInSteps(array: np.ndarray) -> Steps:
    """vtkImageData with its own copy of the voxels [k, j, i]; bool becomes uint8."""
    dtype = np.dtype(np.uint8) if array.dtype == bool else array.dtype
    scalars = vtk.vtkDataArray.CreateDataArray(get_vtk_array_type(dtype))
    scalars.SetNumberOfTuples(array.size)
    yield from copyInSteps(vtk_to_numpy(scalars).reshape(array.shape), array)
    data = vtk.vtkImageData()
    data.SetDimensions(*array.shape[::-1])
    data.GetPointData().SetScalars(scalars)
    return data
