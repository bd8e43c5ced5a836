"""A region of interest of the scene as the box that a run works in."""

import numpy as np
import slicer
import vtk

from medsegcore.errors import GeometryError
from medsegcore.imaging import Grid, Region

from .Translation import _


def regionFromRoiNode(node) -> Region | None:
    """The box where it stands in the world, its own turn and parent transforms included.

    Args:
        node: vtkMRMLMarkupsROINode; None gives None, which is everywhere.

    Raises:
        SettingError: the box is flat or not drawn yet.
        GeometryError: it is under a transform that is not linear, or that shears it.
    """
    if node is None:
        return None
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise GeometryError(
            _("The region '{name}' is under a transform that is not linear.").format(
                name=node.GetName()
            ),
            _("Take it out of the transform."),
        )
    affine = slicer.util.arrayFromVTKMatrix(node.GetObjectToNodeMatrix())
    if transform is not None:
        matrix = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformToWorld(matrix)
        affine = slicer.util.arrayFromVTKMatrix(matrix) @ affine
    scale = np.linalg.norm(affine[:3, :3], axis=0)
    r, a, s = (float(size) for size in np.array(node.GetSize()) * scale)
    if scale.all():
        affine[:3, :3] /= scale
    region = Region(affine, (r, a, s))
    region.check()
    return region


def roiNodeForGrid(scene, grid: Grid, name: str):
    """A new ROI node around a grid, turned as it is, for the user to pull smaller."""
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    affine = np.eye(4)
    affine[:3, :3] = grid.direction
    if np.linalg.det(grid.direction) < 0:
        # A box that is turned inside out is drawn inside out.
        affine[:3, 0] *= -1
    affine[:3, 3] = grid.center
    node.SetSize(*grid.size_mm)
    node.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(affine))
    return node
