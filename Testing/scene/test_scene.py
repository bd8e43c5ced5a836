"""Volumes, results and whole scenes on Slicer's real MRML."""

import json

import numpy as np
import pytest
import slicer
import vtk
import vtk.util.numpy_support

from medsegcore.errors import (
    ColorImageError,
    EmptyImageError,
    GeometryError,
    MissingInputError,
    OutputError,
    UnreadableImageError,
)
from medsegcore.imaging import Image, reorient, resample
from medsegcore.inference import Result
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.ResultToScene import CHECKSUM, addResultToScene, checksum, findRuns
from SlicerMedSegLib.SceneConversion import imageFromVolumeNode, localAffine


def turnedTransform(scene, name="turned"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    turn = vtk.vtkTransform()
    turn.Translate(12, -7, 30)
    turn.RotateX(25)
    turn.RotateZ(-40)
    node.SetMatrixTransformToParent(turn.GetMatrix())
    return node, slicer.util.arrayFromVTKMatrix(turn.GetMatrix())


def segmentMask(node, n=0):
    """The n-th segment as an array on the reference geometry."""
    segmentation = node.GetSegmentation()
    image = segmentation.GetNthSegment(n).GetRepresentation("Binary labelmap")
    geometry = slicer.vtkOrientedImageData()
    text = segmentation.GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    moved = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, geometry, moved, False, True
    )
    values = vtk.util.numpy_support.vtk_to_numpy(moved.GetPointData().GetScalars())
    return values.reshape(moved.GetDimensions()[::-1])


def test_a_volume_node_is_the_image_it_was_made_from(ms_images, flair):
    back = imageFromVolumeNode(flair)
    assert np.array_equal(back.array, ms_images["flair"].array)
    assert back.array.dtype == ms_images["flair"].array.dtype
    np.testing.assert_allclose(back.affine, ms_images["flair"].affine, atol=1e-9)
    ras = flair.GetImageData().GetDimensions()
    assert ras == ms_images["flair"].shape[::-1]


def test_later_edits_of_the_volume_do_not_reach_the_image(flair):
    image = imageFromVolumeNode(flair)
    slicer.util.arrayFromVolume(flair)[:] = 0
    assert image.array.any()


def test_linear_transforms_move_the_affine_where_the_world_is(core, ms_images, flair):
    outer, a = turnedTransform(core.scene)
    inner, b = turnedTransform(core.scene, "inner")
    inner.SetAndObserveTransformNodeID(outer.GetID())
    flair.SetAndObserveTransformNodeID(inner.GetID())
    moved = imageFromVolumeNode(flair)
    np.testing.assert_allclose(moved.affine, a @ b @ ms_images["flair"].affine, atol=1e-6)
    assert np.array_equal(moved.array, ms_images["flair"].array)
    # VTK's own way from a point of the volume to the world agrees.
    world = [0.0] * 3
    flair.TransformPointToWorld(list(ms_images["flair"].grid.to_ras([10, 20, 30])), world)
    np.testing.assert_allclose(moved.grid.to_ras([10, 20, 30]), world, atol=1e-4)


def test_a_warping_transform_resamples_a_copy_and_leaves_the_volume(core, ms_images, flair):
    grid = vtk.vtkOrientedGridTransform() if hasattr(vtk, "vtkOrientedGridTransform") else None
    grid = grid or slicer.vtkOrientedGridTransform()
    field = vtk.vtkImageData()
    field.SetDimensions(12, 12, 12)
    field.SetSpacing(25, 25, 25)
    field.SetOrigin(-130, -150, -130)
    field.AllocateScalars(vtk.VTK_DOUBLE, 3)
    shift = vtk.util.numpy_support.vtk_to_numpy(field.GetPointData().GetScalars())
    shift[:] = 0  # VTK hands out memory as it finds it
    shift[:, 0] = 6.0
    grid.SetDisplacementGridData(field)
    node = core.scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "warp")
    node.SetAndObserveTransformToParent(grid)
    flair.SetAndObserveTransformNodeID(node.GetID())
    before = core.scene.GetNumberOfNodes()
    moved = imageFromVolumeNode(flair)
    assert core.scene.GetNumberOfNodes() == before
    assert np.array_equal(slicer.util.arrayFromVolume(flair), ms_images["flair"].array)
    # A shift by 6 mm to the right: the same as moving the affine.
    affine = ms_images["flair"].affine.copy()
    affine[0, 3] += 6
    expected = resample(Image(ms_images["flair"].array, affine), moved.grid)
    inner = (slice(20, -20),) * 3
    difference = np.abs(moved.array[inner] - expected.array[inner])
    assert difference.mean() < 2


def test_volumes_that_are_no_images_are_refused(core, flair):
    with pytest.raises(EmptyImageError, match="No volume"):
        imageFromVolumeNode(None)
    empty = core.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    with pytest.raises(EmptyImageError, match="no voxels"):
        imageFromVolumeNode(empty)
    rgb = core.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "rgb")
    data = vtk.vtkImageData()
    data.SetDimensions(4, 4, 4)
    data.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    rgb.SetAndObserveImageData(data)
    with pytest.raises(ColorImageError, match="3 values"):
        imageFromVolumeNode(rgb)
    shear = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shear")
    matrix = np.eye(4)
    matrix[0, 1] = 0.4
    shear.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    flair.SetAndObserveTransformNodeID(shear.GetID())
    with pytest.raises(GeometryError, match="not orthogonal"):
        imageFromVolumeNode(flair)


def test_a_result_makes_one_folder_with_everything(core, flair, ms_result):
    nodes = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(core.scene)
    assert hierarchy.GetItemName(nodes.folder) == "MS lesions"
    for node in nodes.all():
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == nodes.folder
    assert np.array_equal(segmentMask(nodes.segmentation), ms_result.labelmap)
    segment = nodes.segmentation.GetSegmentation().GetNthSegment(0)
    (label,) = ms_result.labels
    assert segment.GetName() == label.name
    np.testing.assert_allclose(segment.GetColor(), np.array(label.color) / 255, atol=1e-3)
    tag = vtk.reference("")
    assert segment.GetTag(segment.GetTerminologyEntryTagName(), tag)
    assert "SCT^52988006^Lesion" in str(tag)
    reference = nodes.segmentation.GetNodeReference(
        slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    )
    assert reference is flair
    answer = slicer.util.arrayFromVolume(nodes.answer)
    assert np.array_equal(answer, ms_result.labelmap)
    assert nodes.answer.GetAttribute(CHECKSUM) == checksum(answer)
    assert not nodes.answer.GetSelectable()
    np.testing.assert_array_equal(localAffine(nodes.answer), localAffine(flair))
    provenance = json.loads(nodes.provenance.GetText())
    assert provenance["model"]["sha256"] == ms_result.provenance["model"]["sha256"]
    assert provenance["settings"] == ms_result.settings


def test_overlays_are_clear_at_zero_and_colored_elsewhere(core, flair, ms_result):
    nodes = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    (label,) = ms_result.labels
    volume = nodes.probabilities[label.name]
    np.testing.assert_allclose(
        slicer.util.arrayFromVolume(volume), ms_result.probabilities[label.name], atol=1e-6
    )
    display = volume.GetDisplayNode()
    assert display.GetApplyThreshold()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0, 1)
    assert 0 < display.GetLowerThreshold() < 0.1
    rgba = [0.0] * 4
    display.GetColorNode().GetColor(0, rgba)
    assert rgba[3] == 0
    display.GetColorNode().GetColor(255, rgba)
    assert rgba[3] == 1


def test_tables_hold_the_lesions_and_the_slice_attention(core, flair, ms_result):
    nodes = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    table = nodes.lesions.GetTable()
    assert table.GetNumberOfRows() == len(ms_result.lesions)
    volumes = vtk.util.numpy_support.vtk_to_numpy(table.GetColumnByName("volume_ml"))
    np.testing.assert_allclose(volumes, [x.volume_ml for x in ms_result.lesions], atol=1e-4)
    for attention in ms_result.attention:
        if attention.kind != "slice":
            continue
        node = nodes.attention[attention.key]
        assert node.GetAttribute("MedSeg.Axis") == attention.axis
        columns = [
            vtk.util.numpy_support.vtk_to_numpy(node.GetTable().GetColumnByName(f"weight_{n}"))
            for n in range(len(attention.matrix))
        ]
        np.testing.assert_allclose(np.stack(columns, axis=1), attention.matrix, atol=1e-6)


def test_the_result_moves_with_its_reference(core, flair, ms_result):
    transform, matrix = turnedTransform(core.scene)
    moved = Result(**{**vars(ms_result), "grid": type(ms_result.grid)(
        ms_result.grid.shape, matrix @ ms_result.grid.affine)})  # fmt: skip
    flair.SetAndObserveTransformNodeID(transform.GetID())
    nodes = addResultToScene(moved, core.scene, flair, "MS lesions")
    for node in (nodes.segmentation, nodes.answer, *nodes.probabilities.values()):
        assert node.GetTransformNodeID() == transform.GetID()
    np.testing.assert_array_equal(localAffine(nodes.answer), localAffine(flair))
    assert np.array_equal(segmentMask(nodes.segmentation), ms_result.labelmap)


def test_a_second_result_has_its_own_folder_and_leaves_the_first(core, flair, ms_result):
    first = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    first.segmentation.GetSegmentation().GetNthSegment(0).SetName("edited by hand")
    times = {node.GetID(): node.GetMTime() for node in first.all()}
    second = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    assert {node.GetID(): node.GetMTime() for node in first.all()} == times
    assert sorted(findRuns(core.scene)) == ["MS lesions", "MS lesions (2)"]
    assert {n.GetID() for n in first.all()}.isdisjoint(n.GetID() for n in second.all())


def test_a_failure_half_way_leaves_the_scene_as_it_was(core, flair, ms_result):
    before = core.scene.GetNumberOfNodes()
    broken = Result(**{**vars(ms_result), "provenance": {"not": {"JSON"}}})
    with pytest.raises(TypeError):
        addResultToScene(broken, core.scene, flair, "MS lesions")
    assert findRuns(core.scene) == {}
    # The subject hierarchy itself may be new.
    assert core.scene.GetNumberOfNodes() - before <= 1


def cell(value):
    """A table's cell: numbers to six digits, which is what its file keeps."""
    text = value.ToString()
    try:
        return f"{float(text):.5g}"
    except ValueError:
        return text


def snapshot(core):
    """Everything of a scene's runs that has to survive."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(core.scene)
    found = {}
    for run, roles in findRuns(core.scene).items():
        for role, nodes in roles.items():
            for node in nodes:
                parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
                content = None
                if node.IsA("vtkMRMLSegmentationNode"):
                    segment = node.GetSegmentation().GetNthSegment(0)
                    tag = vtk.reference("")
                    segment.GetTag(segment.GetTerminologyEntryTagName(), tag)
                    color = np.round(segment.GetColor(), 4).tolist()
                    content = (segment.GetName(), color, str(tag), checksum(segmentMask(node)))
                elif node.IsA("vtkMRMLVolumeNode"):
                    # Slicer's reader turns left-handed axes round: compare where voxels lie.
                    image = reorient(imageFromVolumeNode(node), "RAS")
                    colors = node.GetDisplayNode().GetColorNode().GetName()
                    values = image.array.astype(np.float32).tobytes()
                    content = (values, image.affine.round(4).tolist(), colors)
                elif node.IsA("vtkMRMLTableNode"):
                    table = node.GetTable()
                    content = [
                        [cell(table.GetValue(r, c)) for c in range(table.GetNumberOfColumns())]
                        for r in range(table.GetNumberOfRows())
                    ]
                elif node.IsA("vtkMRMLTextNode"):
                    content = node.GetText()
                found[run, role, node.GetName()] = (hierarchy.GetItemName(parent), content)
    return found


def test_a_scene_saved_and_loaded_again_is_the_same(core, flair, ms_result, tmp_path):
    addResultToScene(ms_result, core.scene, flair, "MS lesions")
    before = snapshot(core)
    core.saveScene(tmp_path / "scene.mrb")
    assert [p.name for p in tmp_path.iterdir()] == ["scene.mrb"]
    with EmbeddedCore() as other:
        other.loadScene(tmp_path / "scene.mrb")
        after = snapshot(other)
    assert after.keys() == before.keys()
    for key, content in before.items():
        assert after[key] == content, key


def test_a_scene_that_cannot_be_written_or_read_says_so(core, flair, tmp_path):
    with pytest.raises(OutputError, match="end with"):
        core.saveScene(tmp_path / "scene.txt")
    with pytest.raises(OutputError, match="absent"):
        core.saveScene(tmp_path / "absent" / "scene.mrb")
    (tmp_path / "bad.mrb").write_text("no bundle")
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        core.loadScene(tmp_path / "bad.mrb")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.mrb"]


def test_the_core_gives_slicers_scene_back_when_it_closes():
    before = getattr(slicer, "mrmlScene", None)
    with EmbeddedCore() as one:
        assert slicer.mrmlScene is one.scene
    assert getattr(slicer, "mrmlScene", None) is before
    one.close()


def test_one_volume_for_two_inputs_is_refused(core, flair):
    from SlicerMedSegLib.SegmentingFrames import segmentNodes

    with pytest.raises(MissingInputError, match="same volume is chosen for 't1' and 'flair'"):
        segmentNodes(core.scene, "ms-lesion-rsanet", {"t1": flair, "flair": flair})
