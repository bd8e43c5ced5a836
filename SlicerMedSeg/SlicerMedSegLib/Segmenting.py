"""From volume nodes to a result in the scene."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from medsegcore.errors import CancelledError, MissingInputError
from medsegcore.imaging import Region
from medsegcore.inference import Result
from medsegcore.inference.preprocess import check_keys, check_same_task
from medsegcore.models import ModelDescription, ModelStore
from medsegcore.worker.client import Request
from medsegcore.worker.protocol import RunOptions

from .InputFrames import framesOf, imageOfFrame
from .ResultToScene import ResultNodes, rememberInputs, resultSteps
from .Running import WarmWorker
from .Steps import EventLoopSteps, Steps, copyInSteps, runToEnd
from .Translation import _


class Segmentation:
    """One run on volume nodes where they stand in the world.

    The scene is changed after the run has succeeded, and by adding alone. The constructor returns
    when the run is on its way; with `live` what takes long before and after it is done in short
    steps between the events of the interface.

    Args:
        worker: runs it.
        scene: MRML scene.
        model: id or folder of a model.
        inputNodes: {input key: volume node}; optional inputs may be absent.
        options: `RunOptions` or a dict of its fields, e.g. {"device": "cpu", "mode": "careful"}.
        progress: called with (stage, done, total, seconds left or None).
        finished: called once with this object.
        frames: {input key: frame of a 4-D input, from 0}; the shown one where none is given.
        region: the box to work in; everywhere when None.
        title: of the result; as `describeRun` has it when empty.
        live: for the panel; without an event loop nothing would go on.

    Attributes:
        nodes: of the result, None before it is there and when there was an error.
        error: what went wrong.
        request: of the worker; None before the images were read.
        where: which part of a series it is, for the user; empty here.

    Raises:
        MedSegError: what can be told before anything runs, with a sentence for the user.
    """

    def __init__(
        self,
        worker: WarmWorker,
        scene,
        model: str,
        inputNodes: dict,
        options=None,
        progress: Callable[..., None] | None = None,
        finished: Callable[["Segmentation"], None] | None = None,
        frames: Mapping[str, int] | None = None,
        region: Region | None = None,
        title: str = "",
        live: bool = False,
    ) -> None:
        self.where = ""
        self.nodes: ResultNodes | None = None
        self.error: Exception | None = None
        self._worker, self._scene, self._finished = worker, scene, finished
        options = RunOptions.of(options)
        descriptions, itsTitle = describeRun(model, options)
        description = descriptions[0]
        # The computer of the worker may have another model of that name.
        wanted = [{"id": d.id, "version": d.version, "sha256": d.weights.sha256}
                  for d in descriptions]  # fmt: skip
        check_keys(description, inputNodes)
        _checkNotTwice(inputNodes)
        self._reference: Any = inputNodes[description.reference_of(inputNodes)]
        _checkReferenceIsVolume(self._reference)
        if region is not None:
            options = replace(options, region=region.as_dict())
        self._title = title or itsTitle
        self._inputs = {key: node for key, node in inputNodes.items() if node is not None}
        self._frames: dict[str, int] = {}
        # Where the reference is when it is read: the user may move it while the model runs.
        self._stood: np.ndarray | None = None
        self._affines: dict[str, np.ndarray] = {}
        self.request: Request | None = None
        self._live = live
        self._steps: EventLoopSteps | None = None

        def send(images: dict) -> None:
            self.request = worker.predict(model, images, options, progress, self._received, wanted)

        reading = self._read(inputNodes, frames or {}, send)
        if live:
            self._steps = EventLoopSteps(reading, self._wasRead)
        else:
            runToEnd(reading)

    def cancel(self) -> None:
        """End the run; `finished` follows within about a second, with a CancelledError."""
        if self.request is not None and not self.request.done:
            self._worker.cancel(self.request)
        elif self._steps is not None:
            self._steps.stop()
            self._end(CancelledError(_("The run was cancelled.")))

    def _read(
        self, nodes: Mapping, frames: Mapping[str, int], send: Callable[[dict], None]
    ) -> Steps[None]:
        images = {}
        for key, node in nodes.items():
            self._checkPresent(node)
            found = framesOf(node)
            frame = frames.get(key)
            if found is not None:
                frame = found.selected if frame is None else frame
                self._frames[key] = frame
            image = imageOfFrame(node, frame, copy=False)
            array = np.empty_like(image.array)
            self._affines[key] = image.affine
            if node is self._reference:
                self._stood = image.affine
            yield from copyInSteps(array, image.array)
            images[key] = image.with_array(array)
        send(images)

    def _wasRead(self, nothing: object, error: Exception | None) -> None:
        if error is not None:
            self._end(error)

    def _received(self, request: Request) -> None:
        if request.error is not None:
            self._end(request.error)
        elif self._live:
            self._steps = EventLoopSteps(self._add(request.result), lambda _, e: self._end(e))
        else:
            try:
                runToEnd(self._add(request.result))
            except Exception as error:
                # Whoever waits hears of it in any case.
                self._end(error)
            else:
                self._end(None)

    def _add(self, result: Result) -> Steps[None]:
        self._checkPresent(self._reference)
        adding = resultSteps(result, self._scene, self._reference, self._title, self._stood)
        try:
            while True:
                next(adding)
                yield
                self._checkPresent(self._reference)
        except StopIteration as end:
            self.nodes = end.value
        finally:
            adding.close()
        assert self.nodes is not None
        there = {k: n for k, n in self._inputs.items() if self._scene.IsNodePresent(n)}
        frames = {key: frame for key, frame in self._frames.items() if key in there}
        assert self._stood is not None
        toReference = np.linalg.inv(self._stood)
        places = {key: toReference @ self._affines[key] for key in there}
        rememberInputs(self.nodes.segmentation, there, frames, places)

    def _end(self, error: Exception | None) -> None:
        self._steps = None
        self.error = error
        if self._finished is not None:
            self._finished(self)

    def _checkPresent(self, node) -> None:
        """The user may have removed it, or closed the scene, meanwhile."""
        if node is None or self._scene.IsNodePresent(node):
            return
        raise MissingInputError(
            _("The volume '{name}' was removed while the model was running.").format(
                name=node.GetName()
            ),
            _("Load it again and run again."),
        )


def describeRun(model: str, options: RunOptions) -> tuple[list[ModelDescription], str]:
    """The models of a run, the one that it begins with first, and a title that names them all.

    Raises:
        ModelError: one of them is not there, or they do not go together.
    """
    models = [ModelStore().find(m).description for m in (model, *options.ensemble)]
    check_same_task(models)
    first, *others = models
    if not others:
        return models, first.title
    names = ", ".join(description.id for description in others)
    return models, _("{title} together with {names}").format(title=first.title, names=names)


def _checkReferenceIsVolume(node) -> None:
    """The answer lies on the reference's grid and under its transform: a sequence has neither."""
    if node is not None and not node.IsA("vtkMRMLVolumeNode"):
        raise MissingInputError(
            _("'{name}' is no volume, but the answer needs the grid of one.").format(
                name=node.GetName()
            ),
            _("Choose the volume that shows the sequence."),
        )


def _checkNotTwice(inputNodes: dict) -> None:
    seen: dict[str, str] = {}
    for key, node in inputNodes.items():
        if node is None:
            continue
        if node.GetID() in seen:
            raise MissingInputError(
                _("The same volume is chosen for '{first}' and '{second}'.").format(
                    first=seen[node.GetID()], second=key
                ),
                _("Choose a different volume for each input."),
            )
        seen[node.GetID()] = key
