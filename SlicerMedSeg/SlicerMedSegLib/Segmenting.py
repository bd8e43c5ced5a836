"""From volume nodes to a result in the scene."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from medsegcore.errors import MissingInputError
from medsegcore.imaging import Region
from medsegcore.inference.preprocess import check_keys
from medsegcore.models import ModelStore
from medsegcore.worker.client import Request
from medsegcore.worker.protocol import RunOptions

from .InputFrames import imageOfFrame
from .ResultToScene import ResultNodes, addResultToScene, rememberInputs
from .Running import WarmWorker, warmWorker
from .Translation import _


class Segmentation:
    """One run on volume nodes where they stand in the world.

    The scene is changed after the run has succeeded, and by adding alone. The constructor returns
    when the run is on its way.

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

    Attributes:
        nodes: of the result, None before it is there and when there was an error.
        error: what went wrong.
        request: of the worker.

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
    ) -> None:
        self.nodes: ResultNodes | None = None
        self.error: Exception | None = None
        self._worker, self._scene, self._finished = worker, scene, finished
        description = ModelStore().find(model).description
        check_keys(description, inputNodes)
        _checkNotTwice(inputNodes)
        self._reference: Any = inputNodes[description.reference_of(inputNodes)]
        _checkReferenceIsVolume(self._reference)
        options = RunOptions.of(options)
        if region is not None:
            options = replace(options, region=region.as_dict())
        images = {
            key: imageOfFrame(node, (frames or {}).get(key)) for key, node in inputNodes.items()
        }
        self._title = description.title
        self._inputs = {key: node for key, node in inputNodes.items() if node is not None}
        self._referenceName = self._reference.GetName()
        self.request = worker.predict(model, images, options, progress, self._received)

    def cancel(self) -> None:
        """End the run; `finished` follows within about a second, with a CancelledError."""
        self._worker.cancel(self.request)

    def _received(self, request: Request) -> None:
        self.error = request.error
        if self.error is None:
            try:
                self._checkReference()
                self.nodes = addResultToScene(
                    request.result, self._scene, self._reference, self._title
                )
                there = {k: n for k, n in self._inputs.items() if self._scene.IsNodePresent(n)}
                rememberInputs(self.nodes.segmentation, there)
            except Exception as error:
                # Whoever waits hears of it in any case.
                self.error = error
        if self._finished is not None:
            self._finished(self)

    def _checkReference(self) -> None:
        """The user may have removed it, or closed the scene, meanwhile."""
        if self._scene.IsNodePresent(self._reference):
            return
        raise MissingInputError(
            f"The volume '{self._referenceName}' was removed while the model was running.",
            "Load it again and run again.",
        )


def segmentNodes(
    scene, model: str, inputNodes: dict, options=None, progress=None, cancelled=None, idle=None,
    python=None,
) -> ResultNodes:  # fmt: skip
    """Run a model on volume nodes, wait, and add the result; the worker stays warm.

    Args:
        scene, model, inputNodes, options, progress: as `Segmentation`.
        cancelled: asked now and then; True ends the run within about a second.
        idle: called while waiting, e.g. to keep an interface alive.
        python: interpreter or command of the worker, as `Running.workerCommand`.

    Raises:
        MedSegError: with a sentence for the user; the scene is untouched.
    """
    worker = warmWorker(python)
    run = Segmentation(worker, scene, model, inputNodes, options, progress)
    worker.wait(run.request, cancelled, idle)
    if run.error is not None:
        raise run.error
    assert run.nodes is not None
    return run.nodes


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
                f"The same volume is chosen for '{seen[node.GetID()]}' and '{key}'.",
                "Choose a different volume for each input.",
            )
        seen[node.GetID()] = key
