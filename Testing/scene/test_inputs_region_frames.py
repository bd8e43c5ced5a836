"""Regions and frames of the scene become what a run works on."""

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from medsegcore.errors import ColorImageError, GeometryError, SettingError
from medsegcore.imaging import grid_with_spacing, resample
from SlicerMedSegLib.InputFrames import framesOf, imageOfFrame
from SlicerMedSegLib.InputRegion import regionFromRoiNode, roiNodeForGrid
from SlicerMedSegLib.SceneConversion import imageFromVolumeNode, volumeNodeFromImage


def transformNode(scene, turn=25.0):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transform = vtk.vtkTransform()
    transform.Translate(12, -7, 30)
    transform.RotateX(turn)
    node.SetMatrixTransformToParent(transform.GetMatrix())
    return node


@pytest.fixture
def small(ms_images):
    return resample(ms_images["flair"], grid_with_spacing(ms_images["flair"].grid, (5, 5, 5)))


@pytest.fixture
def roi(core):
    node = core.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    node.SetCenter(10, 20, 30)
    node.SetSize(40, 50, 60)
    return node


def test_no_roi_is_everywhere():
    assert regionFromRoiNode(None) is None


def test_a_roi_is_a_box_where_it_stands_in_the_world(core, roi):
    region = regionFromRoiNode(roi)
    assert region.size_mm == (40, 50, 60)
    np.testing.assert_allclose(region.affine[:3, 3], (10, 20, 30))
    transform = transformNode(core.scene)
    roi.SetAndObserveTransformNodeID(transform.GetID())
    moved = regionFromRoiNode(roi)
    center = [0.0] * 3
    roi.GetCenterWorld(center)
    np.testing.assert_allclose(moved.affine[:3, 3], center, atol=1e-6)
    np.testing.assert_allclose(moved.size_mm, (40, 50, 60))
    # Slicer's own planes agree with the box at its corners.
    planes = vtk.vtkPlanes()
    roi.GetPlanesWorld(planes)
    for corner in moved.corners():
        assert planes.EvaluateFunction(*corner) == pytest.approx(0, abs=1e-3)


def test_a_flat_roi_and_one_that_is_bent_are_refused(core, roi):
    roi.SetSize(0, 50, 60)
    with pytest.raises(SettingError, match="0 x 50 x 60 mm"):
        regionFromRoiNode(roi)
    roi.SetSize(40, 50, 60)
    shear = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shear")
    matrix = np.eye(4)
    matrix[0, 1] = 0.4
    shear.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    roi.SetAndObserveTransformNodeID(shear.GetID())
    with pytest.raises(GeometryError, match="sheared"):
        regionFromRoiNode(roi)


def test_a_new_roi_lies_around_the_volume(core, small):
    region = regionFromRoiNode(roiNodeForGrid(core.scene, small.grid, "Region"))
    assert region.mask(small.grid).all()
    np.testing.assert_allclose(
        np.sort(region.corners(), axis=0), np.sort(small.grid.corners(), axis=0), atol=1e-6
    )


@pytest.fixture
def sequence(core, small):
    """Three frames, each brighter than the one before, and the proxy that shows the second."""
    node = core.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Dynamic")
    node.SetIndexName("t")
    node.SetIndexUnit("s")
    for n in range(3):
        frame = volumeNodeFromImage(small.with_array(small.array + 100 * n), "f", core.scene)
        node.SetDataNodeAtValue(frame, f"{1.5 * n:g}")
        core.scene.RemoveNode(frame)
    browser = core.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.AddSynchronizedSequenceNode(node)
    browser.SetSelectedItemNumber(1)
    core.logics["Sequences"].UpdateProxyNodesFromSequences(browser)
    return node, browser


def test_a_sequence_has_its_frames_with_times(sequence):
    frames = framesOf(sequence[0])
    assert frames.labels == ["1 of 3 (t = 0 s)", "2 of 3 (t = 1.5 s)", "3 of 3 (t = 3 s)"]


def test_the_proxy_of_a_browser_has_them_too_and_shows_its_own(sequence, small):
    node, browser = sequence
    proxy = browser.GetProxyNode(node)
    assert framesOf(proxy).selected == 1
    assert framesOf(proxy).sequence is node
    for chosen, n in ((None, 1), (0, 0), (1, 1), (2, 2)):
        np.testing.assert_allclose(imageOfFrame(proxy, chosen).array, small.array + 100 * n)
        np.testing.assert_allclose(imageOfFrame(node, chosen or n).array.shape, small.shape)


def test_every_frame_stands_under_the_proxys_transform(core, sequence, small):
    node, browser = sequence
    proxy = browser.GetProxyNode(node)
    proxy.SetAndObserveTransformNodeID(transformNode(core.scene).GetID())
    shown = imageOfFrame(proxy)
    for n in range(3):
        np.testing.assert_allclose(imageOfFrame(proxy, n).affine, shown.affine, atol=1e-9)
    assert not np.allclose(shown.affine, small.affine)


def test_choosing_a_frame_changes_nothing_in_the_scene(core, sequence):
    node, browser = sequence
    before = core.scene.GetNumberOfNodes()
    imageOfFrame(browser.GetProxyNode(node), 2)
    assert browser.GetSelectedItemNumber() == 1
    assert core.scene.GetNumberOfNodes() == before


def test_a_frame_that_is_not_there_is_refused(sequence, flair):
    with pytest.raises(SettingError, match="no frame 3: it has 3"):
        imageOfFrame(sequence[0], 3)
    with pytest.raises(SettingError, match="no frame 1: it has 1"):
        imageOfFrame(flair, 1)


def vectorNode(core, small, count, kind=np.float32):
    node = core.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "4-D")
    data = vtk.vtkImageData()
    data.SetDimensions(*small.shape[::-1])
    values = np.stack([small.array + n for n in range(count)], axis=-1)
    data.GetPointData().SetScalars(
        numpy_to_vtk(values.reshape(-1, count).astype(kind).copy(), deep=True)
    )
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(small.affine))
    node.SetAndObserveImageData(data)
    return node


def test_several_values_per_voxel_are_frames_and_rgb_is_not(core, small):
    node = vectorNode(core, small, 5)
    assert framesOf(node).labels[4] == "5 of 5"
    image = imageOfFrame(node, 3)
    np.testing.assert_allclose(image.array, small.array + 3, rtol=1e-6)
    np.testing.assert_allclose(image.affine, small.affine)
    rgb = vectorNode(core, small, 3, np.uint8)
    assert framesOf(rgb) is None
    with pytest.raises(ColorImageError):
        imageOfFrame(rgb)


def test_a_plain_volume_has_no_frames(flair):
    assert framesOf(flair) is None
    assert framesOf(None) is None
    assert np.array_equal(imageOfFrame(flair).array, imageFromVolumeNode(flair).array)
