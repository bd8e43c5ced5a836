"""A run for each frame of 4-D inputs, one after the other through the same warm worker."""

import time
from collections.abc import Callable, Mapping

from medsegcore.imaging import Region
from medsegcore.worker.client import Request
from medsegcore.worker.protocol import RunOptions

from .FrameRuns import FrameRuns
from .InputFrames import ALL_FRAMES, frameSets, framesOf
from .ResultToScene import ResultNodes
from .Running import WarmWorker, warmWorker
from .Segmenting import Segmentation, describeRun
from .Translation import _


class SegmentationSeries:
    """As `Segmentation`, for each frame of the inputs that have `ALL_FRAMES` in `frames`.

    Each frame's result is there as soon as it is finished. When one fails or is cancelled, the
    series ends and what is finished stays.

    Attributes:
        nodes: of the last frame that is finished, None before the first one is.
        finishedNodes: of all frames that are finished.
        error: what ended the series, None when every frame was segmented.
        where: which frame is on its way, for the user.
    """

    def __init__(
        self,
        worker: WarmWorker,
        scene,
        model: str,
        inputNodes: dict,
        options,
        progress: Callable[..., None] | None,
        finished: Callable[["SegmentationSeries"], None] | None,
        frames: Mapping[str, int],
        region: Region | None = None,
        live: bool = False,
    ) -> None:
        self.nodes: ResultNodes | None = None
        self.finishedNodes: list[ResultNodes] = []
        self.error: Exception | None = None
        self.where = ""
        self._common = (worker, scene, model, inputNodes, options)
        self._progress, self._finished = progress, finished
        self._region, self._live = region, live
        (description, *_others), self._title = describeRun(model, RunOptions.of(options))
        self._sets = frameSets(inputNodes, frames)
        series = [key for key, frame in frames.items() if frame == ALL_FRAMES]
        # What the answers lie on leads; else what shows frames in the views.
        series.sort(key=lambda key: (
            key != description.reference, not inputNodes[key].IsA("vtkMRMLVolumeNode")
        ))  # fmt: skip
        lead = inputNodes[series[0]]
        found = framesOf(lead)
        self._labels = found.labels if found is not None else ["1"]
        self._runs = FrameRuns(scene, lead, _("{title}, all frames").format(title=self._title))
        self._done, self._started = 0, time.monotonic()
        self._run = self._start()

    @property
    def request(self) -> Request | None:
        """Of the worker, for the frame that is on its way."""
        return self._run.request

    def cancel(self) -> None:
        """End the frame that is on its way; those that are finished stay."""
        self._run.cancel()

    def _start(self) -> Segmentation:
        count = len(self._sets)
        self.where = _("Frame {number} of {count}").format(number=self._done + 1, count=count)
        return Segmentation(
            *self._common, self._progressed, self._frameEnded, frames=self._sets[self._done],
            region=self._region, title=f"{self._title}, {self._labels[self._done]}",
            live=self._live,
        )  # fmt: skip

    def _progressed(self, stage: str, done: float, total: float, left: float | None) -> None:
        if self._progress is None:
            return
        if left is not None:
            # What a frame takes is known once one is finished.
            each = (time.monotonic() - self._started) / self._done if self._done else None
            rest = len(self._sets) - self._done - 1
            left = left + rest * each if each is not None else None
        self._progress(stage, done, total, left)

    def _frameEnded(self, run: Segmentation) -> None:
        self.error = run.error
        if run.nodes is not None:
            try:
                self.nodes = run.nodes
                self.finishedNodes.append(run.nodes)
                self._runs.add(self._done, run.nodes)
                self._done += 1
                if self._done < len(self._sets):
                    self._run = self._start()
                    return
            except Exception as error:
                # Whoever waits hears of it in any case.
                self.error = error
        if self._finished is not None:
            self._finished(self)


def startSegmentation(
    worker: WarmWorker, scene, model: str, inputNodes: dict, options, progress, finished,
    frames: Mapping[str, int], region: Region | None = None, live: bool = False,
) -> Segmentation | SegmentationSeries:  # fmt: skip
    """A run, or a series of them when an input goes through all its frames.

    Raises:
        MedSegError: what can be told before anything runs.
    """
    run = (worker, scene, model, inputNodes, options, progress, finished, frames, region)
    if ALL_FRAMES in frames.values():
        return SegmentationSeries(*run, live=live)
    return Segmentation(*run, live=live)


def segmentNodes(
    scene, model: str, inputNodes: dict, options=None, progress=None, cancelled=None, idle=None,
    python=None, frames: Mapping[str, int] | None = None,
) -> ResultNodes | list[ResultNodes]:  # fmt: skip
    """Run a model on volume nodes, wait, and add the result; the worker stays warm.

    Args:
        scene, model, inputNodes, options, progress: as `Segmentation`.
        cancelled: asked now and then; True ends the run within about a second.
        idle: called while waiting, e.g. to keep an interface alive.
        python: interpreter or command of the worker, as `Running.workerCommand`.
        frames: as `Segmentation`, or `ALL_FRAMES`.

    Returns:
        The nodes of the result; a list with those of each frame when an input goes through all its
        frames.

    Raises:
        MedSegError: with a sentence for the user; the scene is untouched but for the frames that
            are finished.
    """
    worker = warmWorker(python)
    ended: list[Segmentation | SegmentationSeries] = []
    run = startSegmentation(
        worker, scene, model, inputNodes, options, progress, ended.append, frames or {}
    )
    while not ended:
        assert run.request is not None
        worker.wait(run.request, cancelled, idle)
    if run.error is not None:
        raise run.error
    if isinstance(run, SegmentationSeries):
        return run.finishedNodes
    assert run.nodes is not None
    return run.nodes
