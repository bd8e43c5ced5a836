"""All maps of a correlation in one node of the scene."""

import json
from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import MissingInputError
from medsegcore.inference import CorrelationAttention

from .NodeNames import KEY, TITLE
from .SceneConversion import movedSince
from .Steps import Steps, imageDataInSteps, runToEnd
from .Translation import _

SHAPE = "MedSeg.Shape"
AFFINE = "MedSeg.Affine"


def storeCorrelation(scene, attention: CorrelationAttention, name: str):
    """A hidden volume node with all maps, bit by bit, which the scene's file compresses.

    Its voxels are the float16's bit patterns, [K, h * w, h' * w'], and not to be looked at.
    """
    return runToEnd(correlationSteps(scene, attention, name))


def correlationSteps(scene, attention: CorrelationAttention, name: str) -> Steps[Any]:
    """`storeCorrelation` in short steps."""
    k, h, w, h2, w2 = attention.maps.shape
    bits = np.ascontiguousarray(attention.maps, np.float16).view(np.uint16)
    data = yield from imageDataInSteps(bits.reshape(k, h * w, h2 * w2))
    node = scene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(1)
    node.SetAndObserveImageData(data)
    node.SetAttribute(SHAPE, json.dumps([k, h, w, h2, w2]))
    node.SetAttribute(AFFINE, json.dumps(attention.affine.tolist()))
    node.SetAttribute(TITLE, attention.title)
    scene.AddNode(node)
    return node


def loadCorrelation(node) -> CorrelationAttention:
    """What `storeCorrelation` stored, also after the scene was saved and loaded.

    Raises:
        MissingInputError: the node holds no correlation.
    """
    shape = json.loads((node.GetAttribute(SHAPE) if node is not None else None) or "[]")
    image = node.GetImageData() if shape else None
    if image is None or image.GetNumberOfPoints() != np.prod(shape):
        raise MissingInputError(
            _("The maps of this correlation are not in the scene."), _("Run the model again.")
        )
    bits = vtk_to_numpy(image.GetPointData().GetScalars()).astype(np.uint16)
    return CorrelationAttention(
        key=node.GetAttribute(KEY) or "",
        title=node.GetAttribute(TITLE) or node.GetName(),
        maps=bits.view(np.float16).reshape(shape),
        affine=movedSince(node) @ np.array(json.loads(node.GetAttribute(AFFINE))),
    )
