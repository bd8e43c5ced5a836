"""An input moved onto the reference: a transform and a copy under it; the original stays."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from medsegcore.errors import InputError
from medsegcore.imaging import Grid, Image, patient_grid, to_sitk

from .RegistrationRun import RegistrationRun
from .SceneConversion import imageFromVolumeNode, removeWithParts, volumeNodeFromImage
from .Translation import _

# References by which the copy and its transform are found again, also after the scene was saved.
FROM, TO = "MedSeg.RegisteredFrom", "MedSeg.RegisteredTo"
# Of the copy: the normalised mutual information before and after.
QUALITY = "MedSeg.RegistrationQuality"
# A bent transform is kept as displacements this far apart; the splines' knots are 40 mm apart.
FIELD_SPACING_MM = 8.0
FIELD_MARGIN_MM = 40.0
# A gain in normalised mutual information below this is chance.
LEAST_GAIN = 0.005
POLL_SECONDS = 0.03
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class RegisteredInput:
    """What a registration gives.

    Attributes:
        volumeNode: a copy of the input's voxels, under the transform: choose it as the input.
        transformNode: linear, or a grid of displacements.
        qualityBefore, qualityAfter: normalised mutual information with the reference, 0..1.
    """

    volumeNode: Any
    transformNode: Any
    qualityBefore: float
    qualityAfter: float

    @property
    def improved(self) -> bool:
        """Whether the images fit better than before."""
        return self.qualityAfter - self.qualityBefore >= LEAST_GAIN

    def summary(self) -> str:
        """A sentence for the user."""
        values = {"before": self.qualityBefore, "after": self.qualityAfter}
        if self.improved:
            text = _("The images fit better than before: {before:.3f} to {after:.3f} (0 to 1).")
        else:
            text = _("The images fit no better than before ({before:.3f} to {after:.3f}, 0 to 1): "
                     "keep the original.")  # fmt: skip
        return text.format(**values)


@dataclass(frozen=True)
class RegistrationJob:
    """A registration that is on its way: poll `run`, then hand the job to `finish`.

    Attributes:
        run: the child process; it has share, finished, poll() and cancel().
        kind: "rigid", "affine" or "bspline".
        referenceId, movingId: the nodes that it was started with.
        fixed: where the reference stands.
        moving: the input as it was when it was started.
    """

    run: RegistrationRun
    kind: str
    referenceId: str
    movingId: str
    fixed: Grid
    moving: Image


class InputRegistration:
    """Registers volumes of a scene; nothing is added to it before the registration has succeeded.

    Args:
        scene: MRML scene.
        python: interpreter of the child process; the application's own when None.
    """

    def __init__(self, scene, python: str | None = None) -> None:
        self._scene = scene
        self._python = python

    def start(self, referenceNode, movingNode, kind: str = "rigid") -> RegistrationJob:
        """Begin to move an input onto the reference, both where they stand in the world.

        Args:
            kind: "rigid", "affine" or "bspline".

        Raises:
            InputError: a volume cannot be used.
        """
        fixed, moving = imageFromVolumeNode(referenceNode), imageFromVolumeNode(movingNode)
        run = RegistrationRun(fixed, moving, kind, self._python)
        return RegistrationJob(
            run, kind, referenceNode.GetID(), movingNode.GetID(), fixed.grid, moving
        )

    def finish(self, job: RegistrationJob) -> RegisteredInput:
        """Add what a finished job has found to the scene.

        Raises:
            MedSegError: what went wrong; CancelledError when it was cancelled.
            InputError: a volume was removed meanwhile. The scene is as it was in every case.
        """
        if job.run.error is not None:
            raise job.run.error
        nodes = [self._scene.GetNodeByID(name) for name in (job.referenceId, job.movingId)]
        if None in nodes or job.run.transform is None:
            raise InputError(
                _("A volume was removed while it was registered."), _("Choose the inputs again.")
            )
        referenceNode, movingNode = nodes
        name = f"{movingNode.GetName()} {_('registered')}"
        make = self._bentNode if job.kind == "bspline" else self._linearNode
        transform = make(job.run.transform, job.fixed, name)
        volume = volumeNodeFromImage(job.moving, name, self._scene)
        volume.SetAndObserveTransformNodeID(transform.GetID())
        _copyWindow(movingNode, volume)
        volume.SetNodeReferenceID(FROM, movingNode.GetID())
        volume.SetNodeReferenceID(TO, referenceNode.GetID())
        volume.SetAttribute(QUALITY, f"{job.run.qualityBefore:.6f} {job.run.qualityAfter:.6f}")
        return RegisteredInput(volume, transform, job.run.qualityBefore, job.run.qualityAfter)

    def run(
        self,
        referenceNode,
        movingNode,
        kind: str = "rigid",
        progress: Callable[[float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> RegisteredInput:
        """Start, wait and finish, for scripts.

        Args:
            kind: "rigid", "affine" or "bspline".
            progress: called with the share that is done, 0..1.
            cancelled: asked while waiting.
            idle: called while waiting, e.g. to keep an interface alive.

        Raises:
            MedSegError: as `start` and `finish`.
        """
        job = self.start(referenceNode, movingNode, kind)
        try:
            while not job.run.finished:
                job.run.poll()
                if progress is not None:
                    progress(job.run.share)
                if cancelled is not None and cancelled():
                    job.run.cancel()
                if idle is not None:
                    idle()
                time.sleep(POLL_SECONDS)
        finally:
            # An exception of a callback leaves no process behind.
            job.run.cancel()
        return self.finish(job)

    def find(self, referenceNode, node) -> RegisteredInput | None:
        """The registration to a reference that a volume is the copy or the original of."""
        for copy in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", self._scene):
            pair = (copy, copy.GetNodeReference(FROM))
            if node not in pair or copy.GetNodeReference(TO) is not referenceNode:
                continue
            before, after = map(float, (copy.GetAttribute(QUALITY) or "0 0").split())
            return RegisteredInput(copy, copy.GetParentTransformNode(), before, after)
        return None

    def remove(self, result: RegisteredInput) -> None:
        """Take the copy and its transform out of the scene again."""
        for node in (result.volumeNode, result.transformNode):
            if node is not None and node.GetScene() is self._scene:
                removeWithParts(node)

    def _linearNode(self, found: sitk.Transform, _fixed: Grid, name: str):
        # SimpleITK leads from the fixed to the moving image, the node the other way.
        origin = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
        matrix = np.eye(4)
        for axis in range(3):
            point = [0.0, 0.0, 0.0]
            point[axis] = 1.0
            matrix[:3, axis] = np.array(found.TransformPoint(point)) - origin
        matrix[:3, 3] = origin
        toWorld = np.linalg.inv(LPS @ matrix @ LPS)
        node = self._scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
        node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(toWorld))
        return node

    def _bentNode(self, found: sitk.Transform, fixed: Grid, name: str):
        grid = _fieldGrid(fixed)
        target = to_sitk(Image(np.zeros(grid.shape, np.uint8), grid.affine))
        field = sitk.TransformToDisplacementField(
            found, sitk.sitkVectorFloat64, target.GetSize(), target.GetOrigin(),
            target.GetSpacing(), target.GetDirection(),
        )  # fmt: skip
        vectors = sitk.GetArrayFromImage(field) * np.array([-1.0, -1.0, 1.0])
        data = vtk.vtkImageData()
        data.SetDimensions(*grid.shape[::-1])
        data.SetOrigin(*grid.affine[:3, 3])
        data.SetSpacing(*grid.spacing)
        data.GetPointData().SetScalars(
            numpy_to_vtk(np.ascontiguousarray(vectors.reshape(-1, 3)), deep=True)
        )
        transform = slicer.vtkOrientedGridTransform()
        transform.SetDisplacementGridData(data)
        transform.SetInterpolationModeToCubic()
        node = self._scene.AddNewNodeByClass("vtkMRMLGridTransformNode", name)
        node.SetAndObserveTransformFromParent(transform)
        return node


def _fieldGrid(fixed: Grid) -> Grid:
    """An upright grid over the reference and a margin around it."""
    inner = patient_grid(fixed, (FIELD_SPACING_MM,) * 3, "RAS")
    more = int(np.ceil(FIELD_MARGIN_MM / FIELD_SPACING_MM))
    affine = inner.affine.copy()
    affine[:3, 3] -= more * FIELD_SPACING_MM
    k, j, i = (n + 2 * more for n in inner.shape)
    return Grid((k, j, i), affine)


def _copyWindow(source, target) -> None:
    """Show the copy as bright as the original."""
    shown, display = source.GetDisplayNode(), target.GetDisplayNode()
    if shown is None or display is None:
        return
    display.SetAutoWindowLevel(shown.GetAutoWindowLevel())
    display.SetWindowLevel(shown.GetWindow(), shown.GetLevel())
