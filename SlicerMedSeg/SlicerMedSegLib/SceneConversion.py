"""Volume nodes to Images and back; where a node stands in the world is what counts."""

import json

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from medsegcore.errors import ColorImageError, EmptyImageError, GeometryError
from medsegcore.imaging import Image

from .NodeNames import PLACED_WITH, TO_LOCAL
from .Translation import _


def imageFromVolumeNode(node, copy: bool = True) -> Image:
    """A scalar volume node as an Image in the world's RAS, its parent transforms applied.

    A linear transform moves the affine and leaves the voxels; any other one resamples a copy of
    the node.

    Args:
        node: scalar volume node.
        copy: read by copy: what runs later must not see the user's edits half way.

    Raises:
        ColorImageError: a vector or color volume.
        EmptyImageError: no node, or one without voxels.
        GeometryError: a transform that shears or flattens the axes.
    """
    if node is None or node.GetImageData() is None:
        raise EmptyImageError(
            _("The volume has no voxels.") if node else _("No volume is chosen."),
            _("Choose a volume."),
        )
    if node.GetImageData().GetNumberOfScalarComponents() != 1:
        count = node.GetImageData().GetNumberOfScalarComponents()
        raise ColorImageError(
            _("The volume has {count} values per voxel (RGB or vectors).").format(count=count),
            _("A gray-scale volume is needed."),
        )
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        return _hardenedCopy(node)
    array = slicer.util.arrayFromVolume(node)
    array = array.copy() if copy else array
    image = Image(array, parentToWorld(node) @ localAffine(node), "volume")
    image.grid.check("The volume under its transform")
    return image


def localAffine(node) -> np.ndarray:
    """4x4 IJK to RAS of the node itself, without its parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def parentToWorld(node) -> np.ndarray:
    """4x4 of the node's linear parent transforms; the identity when there are none.

    Raises:
        GeometryError: they are not linear.
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise GeometryError(
            _("The volume is under a transform that is not linear."), _("Harden it.")
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def rememberPlace(node, placedNode, toLocal: np.ndarray) -> None:
    """Note that the places (RAS, mm) which a node holds move with another node.

    Args:
        toLocal: 4x4 that takes them to the other node's own coordinates.
    """
    node.SetNodeReferenceID(PLACED_WITH, placedNode.GetID())
    node.SetAttribute(TO_LOCAL, json.dumps(toLocal.tolist()))


def movedSince(node) -> np.ndarray:
    """4x4 from the world as it was when a node's places were noted to the world of now.

    The identity where nothing was noted, or where that cannot be told any more.
    """
    placed, text = node.GetNodeReference(PLACED_WITH), node.GetAttribute(TO_LOCAL)
    transform = placed.GetParentTransformNode() if placed is not None else None
    linear = transform is None or transform.IsTransformToWorldLinear()
    if placed is None or not text or not linear:
        return np.eye(4)
    return parentToWorld(placed) @ np.array(json.loads(text))


def _hardenedCopy(node) -> Image:
    scene = node.GetScene()
    copy = slicer.vtkMRMLScalarVolumeNode()
    copy.Copy(node)
    copy.SetHideFromEditors(1)
    scene.AddNode(copy)
    try:
        copy.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        copy.HardenTransform()
        image = Image(slicer.util.arrayFromVolume(copy).copy(), localAffine(copy), "volume")
    finally:
        scene.RemoveNode(copy)
    image.grid.check("The volume under its transform")
    return image


def volumeNodeFromImage(image: Image, name: str, scene, nodeClass="vtkMRMLScalarVolumeNode"):
    """A new volume node in `scene` with its own copy of the voxels and a default display."""
    node = scene.AddNewNodeByClass(nodeClass, name)
    fillVolumeNode(node, image)
    node.CreateDefaultDisplayNodes()
    return node


def fillVolumeNode(node, image: Image) -> None:
    """Give a volume node the voxels and the affine of an Image."""
    data = vtk.vtkImageData()
    data.SetDimensions(*image.shape[::-1])
    data.GetPointData().SetScalars(_scalars(image.array))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(image.affine))
    node.SetAndObserveImageData(data)


def removeWithParts(node) -> None:
    """Take a node out of its scene, and what shows and stores it, which a scene would keep."""
    scene = node.GetScene()
    if node.IsA("vtkMRMLDisplayableNode"):
        for n in reversed(range(node.GetNumberOfDisplayNodes())):
            scene.RemoveNode(node.GetNthDisplayNode(n))
    if node.IsA("vtkMRMLStorableNode"):
        for n in reversed(range(node.GetNumberOfStorageNodes())):
            scene.RemoveNode(node.GetNthStorageNode(n))
    scene.RemoveNode(node)


def orientedImage(image: Image, box: tuple[slice, ...] | None = None):
    """The Image, or a box of its voxels, as segments hold it."""
    box = box or tuple(slice(0, n) for n in image.shape)
    data = slicer.vtkOrientedImageData()
    data.SetExtent(*(n for s in reversed(box) for n in (s.start, s.stop - 1)))
    data.GetPointData().SetScalars(_scalars(image.array[box]))
    data.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(image.affine))
    return data


def _scalars(array: np.ndarray):
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True)
