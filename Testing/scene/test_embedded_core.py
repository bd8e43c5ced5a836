"""Slicer's scene, logics and views without the application: they live, keep, show and let go."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

from medsegcore.errors import OutputError, SettingError, UnreadableImageError
from medsegcore.imaging import read_image
from SlicerMedSegLib import SceneViews
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.SceneConversion import orientedImage, volumeNodeFromImage
from SlicerMedSegLib.SceneViews import SliceView, ThreeDView, render3D, renderSlice

RED = (0.9, 0.1, 0.1)
SIZE = (240, 200)
TERMINOLOGY = (
    "Segmentation category and type - DICOM master list"
    "~SCT^49755003^Morphologically Altered Structure~SCT^52988006^Lesion~^^"
    "~Anatomic codes - DICOM master list~SCT^12738006^Brain~^^"
)


@pytest.fixture(scope="module")
def flairImage(ms_case_dir):
    return read_image(ms_case_dir / "flair.nii.gz")


@pytest.fixture(scope="module")
def lesionImage(ms_case_dir):
    image = read_image(ms_case_dir / "lesion.nii.gz")
    return image.with_array((image.array > 0).astype(np.uint8))


def addSegmentation(core, image, volume, name="Lesions"):
    node = core.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.AddSegmentFromBinaryLabelmapRepresentation(orientedImage(image), "MS", list(RED), "MS")
    return node


@pytest.fixture
def lesions(core, flair, lesionImage):
    return addSegmentation(core, lesionImage, flair)


@pytest.fixture
def center(lesionImage):
    """RAS mm of the middle of the fullest axial slice's lesions."""
    k = int(lesionImage.array.sum(axis=(1, 2)).argmax())
    j, i = np.argwhere(lesionImage.array[k]).mean(axis=0)
    return lesionImage.grid.to_ras([i, j, k])


def red(picture):
    """Where a picture is clearly red."""
    return picture[..., 0].astype(int) - picture[..., 1:].max(axis=-1) > 50


def nodeIds(scene):
    return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}


def oneSide(image, column, sign):
    """The part of a mask on one side (R, A or S: +1) of the grid's middle."""
    ras = image.grid.to_ras(np.stack(np.indices(image.shape)[::-1], axis=-1).reshape(-1, 3))
    side = sign * (ras[:, column] - image.grid.center[column]) > 0
    return image.with_array(image.array * side.reshape(image.shape).astype(np.uint8))


def runPython(script, environment=None):
    """A script in a process of its own, which may crash."""
    imports = f"""
import gc, sys
sys.path.insert(0, {str(Path(SceneViews.__file__).parents[1])!r})
import numpy as np, slicer
from medsegcore.errors import OutputError
from SlicerMedSegLib.EmbeddedCore import EmbeddedCore
from SlicerMedSegLib.SceneViews import SliceView, ThreeDView
"""
    return subprocess.run(
        [sys.executable, "-c", imports + script], capture_output=True, text=True, env=environment
    )


def test_slicers_utilities_work_as_in_the_application(core, flair, lesionImage):
    node = core.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.SetReferenceImageGeometryParameterFromVolumeNode(flair)
    segment = node.GetSegmentation().AddEmptySegment("MS", "MS", RED)
    slicer.util.updateSegmentBinaryLabelmapFromArray(lesionImage.array, node, segment)
    back = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment)
    assert np.array_equal(back, lesionImage.array)
    assert slicer.util.getNode("FLAIR") is flair
    assert slicer.modules.segmentations.logic() is core.logics["Segmentations"]
    assert slicer.util.getNode("Grey").GetNumberOfColors() == 256


def test_an_adopted_scene_keeps_its_nodes_when_the_core_closes():
    scene = slicer.vtkMRMLScene()
    note = scene.AddNewNodeByClass("vtkMRMLTextNode", "mine")
    with EmbeddedCore(scene) as core:
        assert core.scene is slicer.mrmlScene is scene
        assert scene.GetSubjectHierarchyNode() is not None
    assert scene.GetFirstNodeByName("mine") is note
    assert scene.GetDataIOManager() is None


def test_the_newest_open_core_counts_in_whatever_order_they_close():
    before = {name: getattr(slicer, name, None) for name in ("mrmlScene", "modules")}
    first, second = EmbeddedCore(), EmbeddedCore()
    first.close()
    assert slicer.mrmlScene is second.scene
    third = EmbeddedCore()
    assert slicer.modules.volumes.logic() is third.logics["Volumes"]
    third.close()
    assert slicer.mrmlScene is second.scene
    assert slicer.modules.volumes.logic() is second.logics["Volumes"]
    second.close()
    assert {name: getattr(slicer, name, None) for name in before} == before


def test_a_closed_core_leaves_nothing_behind(flairImage, lesionImage, center):
    gone = []
    warnings = vtk.vtkObject.GetGlobalWarningDisplay()
    core = EmbeddedCore()
    core.scene.AddObserver("DeleteEvent", lambda *_: gone.append("scene"))
    core.applicationLogic.AddObserver("DeleteEvent", lambda *_: gone.append("logic"))
    flair = volumeNodeFromImage(flairImage, "FLAIR", core.scene)
    addSegmentation(core, lesionImage, flair)
    sliceView, threeDView = SliceView(core, "Axial", SIZE), ThreeDView(core, SIZE)
    sliceView.show(flair, center, 180)
    threeDView.show((0, 1, 0))
    core.close()
    assert core.views == []
    # Closing once more is harmless, also for the views.
    for closed in (sliceView, threeDView, core):
        closed.close()
    assert sorted(gone) == ["logic", "scene"]
    assert vtk.vtkObject.GetGlobalWarningDisplay() == warnings


@pytest.mark.parametrize("end", ["", "core.close()", "del view, solid; gc.collect(); core.close()"])
def test_a_process_ends_well_however_things_are_deleted(end):
    done = runPython(f"""
core = EmbeddedCore()
volume = slicer.util.addVolumeFromArray(np.ones((9, 9, 9)))
view, solid = SliceView(core, "Axial", (32, 32)), ThreeDView(core, (32, 32))
view.show(volume, (0, 0, 0), 20)
solid.show((0, 1, 0))
{end}
""")
    # VTK tells of cursors that a machine without a screen does not have.
    words = [line for line in done.stderr.splitlines() if "vtkX11Functions" not in line]
    assert (done.returncode, words) == (0, [])


def addEverything(core, flair, lesions):
    """Beside the volume and the segmentation: a table, a text and a folder with all of them."""
    segment = lesions.GetSegmentation().GetNthSegment(0)
    segment.SetTag(segment.GetTerminologyEntryTagName(), TERMINOLOGY)
    table = core.scene.AddNewNodeByClass("vtkMRMLTableNode", "Lesion table")
    slicer.util.updateTableFromArray(table, [np.array([1.5, 0.25]), np.array([3, 4])], ["ml", "n"])
    text = core.scene.AddNewNodeByClass("vtkMRMLTextNode", "Provenance")
    text.SetText('{"model": "größer", "lines": "a\\nb"}')
    hierarchy = core.scene.GetSubjectHierarchyNode()
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Run 1")
    for node in (flair, lesions, table, text):
        hierarchy.SetItemParent(hierarchy.CreateItem(folder, node), folder)


def whereRas(volume, mask):
    """RAS mm of the voxels of a mask on a volume's grid, sorted."""
    affine = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(affine)
    affine = slicer.util.arrayFromVTKMatrix(affine)
    ras = np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    return sorted(map(tuple, (ras.round(3) + 0.0).tolist()))


def content(core):
    """What has to survive, by name."""
    flair, lesions = slicer.util.getNode("FLAIR"), slicer.util.getNode("Lesions")
    table, text = slicer.util.getNode("Lesion table"), slicer.util.getNode("Provenance")
    segment, tag = lesions.GetSegmentation().GetNthSegment(0), vtk.reference("")
    segment.GetTag(segment.GetTerminologyEntryTagName(), tag)
    hierarchy = core.scene.GetSubjectHierarchyNode()
    reference = lesions.GetNodeReference(lesions.GetReferenceImageGeometryReferenceRole())
    # Slicer's reader turns left-handed axes round: the voxels are compared where they lie.
    array = slicer.util.arrayFromVolume(flair)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(lesions, "MS", flair)
    return {
        "values": np.sort(array, axis=None).tobytes(),
        "brightest": whereRas(flair, array > np.percentile(array, 99.5)),
        "lesions": whereRas(flair, mask > 0),
        "window": flair.GetDisplayNode().GetWindow(),
        "segment": (segment.GetName(), tuple(np.round(segment.GetColor(), 4)), str(tag)),
        "source": lesions.GetSegmentation().GetSourceRepresentationName(),
        "reference": reference.GetName(),
        "cells": [[table.GetCellText(r, c) for c in range(2)] for r in range(2)],
        "text": text.GetText(),
        "parents": [
            hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))
            for node in (flair, lesions, table, text)
        ],
    }


def test_everything_in_a_scene_survives_saving_and_loading(core, flair, lesions, tmp_path):
    addEverything(core, flair, lesions)
    before = content(core)
    core.saveScene(tmp_path / "first.mrb")
    core.saveScene(tmp_path / "Läsionen (2).mrb")
    assert content(core) == before
    assert before["parents"] == ["Run 1"] * 4
    assert len(before["lesions"]) > 100
    for name in ("first.mrb", "Läsionen (2).mrb"):
        with EmbeddedCore() as other:
            other.loadScene(tmp_path / name)
            assert content(other) == before
            # Loading adds to what is there; the folders of both are in one hierarchy.
            other.loadScene(tmp_path / name)
            assert other.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
            assert other.scene.GetNumberOfNodesByClass("vtkMRMLSubjectHierarchyNode") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"first.mrb", "Läsionen (2).mrb"}


def test_a_scene_that_cannot_be_written_leaves_the_old_file(core, flair, tmp_path):
    (tmp_path / "folder.mrb").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        core.saveScene(tmp_path / "folder.mrb")
    with pytest.raises(OutputError, match=r"\.mrb"):
        core.saveScene(tmp_path / "scene.mrml")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.mrb"]


def rewritten(data, change):
    """A bundle's bytes with `change(name, bytes)` -> (name, bytes) or None for each entry."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return result.getvalue()


def without(ending):
    return lambda data: rewritten(data, lambda n, b: None if n.endswith(ending) else (n, b))


def climbing(data):
    return rewritten(data, lambda n, b: (n.replace("good/Data/", "good/../../"), b))


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


DAMAGES = {
    "cut off": lambda data: data[: len(data) // 2],
    "one byte flipped": flipped,
    "without its volume": without("FLAIR.nrrd"),
    "without its segmentation": without(".seg.nrrd"),
    "without its scene": without(".mrml"),
    "climbing out of its folder": climbing,
}


@pytest.mark.parametrize("damage", [*DAMAGES, "absent"])
def test_a_damaged_bundle_is_refused_and_changes_nothing(core, flair, lesions, tmp_path, damage):
    data = core.saveScene(tmp_path / "good.mrb").read_bytes()
    if damage in DAMAGES:
        (tmp_path / "bad.mrb").write_bytes(DAMAGES[damage](data))
    before, here = nodeIds(core.scene), Path.cwd()
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        core.loadScene(tmp_path / "bad.mrb")
    assert nodeIds(core.scene) == before
    assert Path.cwd() == here


def test_a_slice_shows_the_volume_in_its_window_and_colors(core, flair, center):
    picture = renderSlice(core, "Axial", center, 200, SIZE, flair)
    assert picture.shape == (200, 240, 3)
    assert picture.dtype == np.uint8
    assert (picture[..., 0] == picture[..., 2]).all()
    assert picture[:10].max() == 0 < picture[60:140, 80:160].mean()
    flair.GetDisplayNode().SetWindowLevelMinMax(0, 600)
    assert renderSlice(core, "Axial", center, 200, SIZE, flair).mean() > 1.2 * picture.mean()
    flair.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeRed")
    assert renderSlice(core, "Axial", center, 200, SIZE, flair)[..., 1:].max() == 0


@pytest.mark.parametrize(
    ("orientation", "column", "half"),
    [
        ("Axial", 0, np.s_[:, :120]),
        ("Coronal", 0, np.s_[:, :120]),
        ("Axial", 1, np.s_[:100]),
        ("Sagittal", 1, np.s_[:, :120]),
        ("Coronal", 2, np.s_[:100]),
        ("Sagittal", 2, np.s_[:100]),
    ],
)
def test_right_anterior_and_superior_lesions_are_where_slicer_shows_them(
    core, flair, lesionImage, orientation, column, half
):
    """The patient's right is left, anterior is up or left, superior is up."""
    # The slice with the most lesion on that side, seen around the middle of the grid.
    mask = oneSide(lesionImage, column, +1)
    normal = {"Axial": 2, "Coronal": 1, "Sagittal": 0}[orientation]
    ras = mask.grid.to_ras(np.argwhere(mask.array)[:, ::-1])
    places, counts = np.unique(ras[:, normal], return_counts=True)
    middle = np.array(mask.grid.center)
    middle[normal] = places[counts.argmax()]
    plain = renderSlice(core, orientation, middle, 220, SIZE, flair)
    addSegmentation(core, mask, flair)
    shown = renderSlice(core, orientation, middle, 220, SIZE, flair)
    changed = (plain != shown).any(axis=-1)
    assert changed.sum() > 5
    assert changed[half].sum() == changed.sum()


def test_outlines_of_surfaces_are_smooth(core, lesions, center):
    display = lesions.GetDisplayNode()
    display.SetVisibility2DFill(0)
    display.SetPreferredDisplayRepresentationName2D("Closed surface")
    lesions.CreateClosedSurfaceRepresentation()
    reds = renderSlice(core, "Axial", center, 120, SIZE)[..., 0]
    full = reds.max()
    assert full > 200
    assert ((reds > 0.15 * full) & (reds < 0.85 * full)).sum() > 50


def test_the_layers_over_the_volume_are_as_opaque_as_asked_for(core, flair, lesionImage, center):
    lesion = volumeNodeFromImage(lesionImage, "mask", core.scene)
    lesion.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeRed")
    label = volumeNodeFromImage(lesionImage, "label", core.scene, "vtkMRMLLabelMapVolumeNode")
    plain = renderSlice(core, "Axial", center, 180, SIZE, flair)
    over = [
        renderSlice(core, "Axial", center, 180, SIZE, flair, lesion, opacity)
        for opacity in (0.0, 0.5, 1.0)
    ]
    assert np.array_equal(over[0], plain)
    assert over[2][..., 1:].max() == 0
    middle = (plain.astype(int) + over[2]) / 2
    assert np.abs(over[1] - middle).max() < 3
    labeled = renderSlice(core, "Axial", center, 180, SIZE, flair, label=label, labelOpacity=0.6)
    changed = (labeled != plain).any(axis=-1)
    assert 50 < changed.sum() < 0.1 * changed.size


def test_a_color_legend_is_drawn_for_the_volume_that_has_one(core, flair, center):
    plain = renderSlice(core, "Axial", center, 180, SIZE, flair)
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(flair)
    shown = renderSlice(core, "Axial", center, 180, SIZE, flair)
    changed = np.argwhere((plain != shown).any(axis=-1))
    assert len(changed) > 200
    assert changed[:, 1].min() > 120
    legend.SetVisibility(0)
    assert np.array_equal(renderSlice(core, "Axial", center, 180, SIZE, flair), plain)


def test_a_slice_follows_the_volumes_transform(core, flair, lesions, center):
    plain = renderSlice(core, "Axial", center, 180, SIZE, flair)
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    shift = np.eye(4)
    shift[:3, 3] = (40.0, -30.0, 12.0)
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
    for node in (flair, lesions):
        node.SetAndObserveTransformNodeID(transform.GetID())
    moved = renderSlice(core, "Axial", center + shift[:3, 3], 180, SIZE, flair)
    assert (np.abs(moved.astype(int) - plain) > 8).any(axis=-1).mean() < 0.002


def test_what_cannot_be_a_slice_is_refused(core, flair):
    with pytest.raises(SettingError, match="'Oblique'"):
        renderSlice(core, "Oblique", (0, 0, 0), 100, SIZE, flair)
    with pytest.raises(SettingError, match="0 mm"):
        renderSlice(core, "Axial", (0, 0, 0), 0, SIZE, flair)
    with pytest.raises(SettingError, match="0 x 5"):
        renderSlice(core, "Axial", (0, 0, 0), 100, (0, 5), flair)
    assert core.views == []
    assert renderSlice(core, "Axial", (0, 0, 0), 100, SIZE).max() == 0


def test_two_views_of_one_orientation_do_not_disturb_each_other(core, flair, center):
    with SliceView(core, "Axial", SIZE) as first:
        before = first.show(flair, center, 180)
        with SliceView(core, "Axial", SIZE) as second:
            second.show(flair, center + 20, 90)
        assert np.array_equal(first.capture(), before)


def addBrain(core, image, opacity):
    """The surface of what is bright in an image, as a model."""
    bright = image.with_array((image.array > 150).astype(np.uint8))
    drawn = addSegmentation(core, bright, slicer.util.getNode("FLAIR"), "drawn")
    drawn.CreateClosedSurfaceRepresentation()
    node = core.scene.AddNewNodeByClass("vtkMRMLModelNode", "Brain")
    node.SetAndObserveMesh(drawn.GetClosedSurfaceInternalRepresentation("MS"))
    core.scene.RemoveNode(drawn)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetColor(0.8, 0.8, 0.85)
    node.GetDisplayNode().SetOpacity(opacity)
    return node


def test_lesions_shine_through_the_translucent_brain(core, flairImage, lesions):
    brain = addBrain(core, flairImage, 0.2)
    through = render3D(core, SIZE)
    brain.GetDisplayNode().SetOpacity(1.0)
    opaque = render3D(core, SIZE)
    assert red(through).sum() > 200
    assert red(opaque).sum() < 0.01 * red(through).sum()
    brainPixels = (through > 0).any(axis=-1) & ~red(through)
    assert brainPixels.sum() > red(through).sum()


@pytest.mark.parametrize("view", [(0, 0), (90, 10), (-60, 45), (180, -20), (0, 90)])
def test_what_is_visible_fills_the_picture_from_every_side(core, lesions, view):
    shown = (render3D(core, SIZE, *view) > 0).any(axis=-1)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    height, width = shown.shape
    assert max((np.ptp(rows) + 1) / height, (np.ptp(columns) + 1) / width) > 0.85
    for low, high, size in ((rows[0], rows[-1], height), (columns[0], columns[-1], width)):
        assert low > 0
        assert high < size - 1
        assert abs(low - (size - 1 - high)) < 0.06 * size


def test_the_3d_view_stands_where_the_angles_say(core, flair, flairImage, lesionImage):
    addSegmentation(core, oneSide(lesionImage, 0, +1), flair, "of the right side")
    addBrain(core, flairImage, 0.2)

    def middle(*view):
        """Of the red pixels, from the picture's middle: to the right and up."""
        row, column = np.argwhere(red(render3D(core, SIZE, *view))).mean(axis=0)
        return column - (SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2 - row

    assert middle(0, 0)[0] < -10  # from the front the patient's right is on the left
    assert middle(180, 0)[0] > 10
    assert middle(0, 90)[0] > 10  # from above with the front up, it is on the right


def test_a_picture_in_3d_leaves_the_scene_as_it_was(core, lesions):
    before = nodeIds(core.scene)
    picture = render3D(core, SIZE, background=(0.0, 0.0, 1.0))
    assert tuple(picture[0, 0]) == (0, 0, 255)
    assert red(picture).sum() > 200
    assert nodeIds(core.scene) == before
    assert not lesions.GetSegmentation().ContainsRepresentation("Closed surface")
    lesions.GetDisplayNode().SetVisibility3D(0)
    assert not red(render3D(core, SIZE)).any()
    assert (render3D(core, (40, 30), background=(1.0, 1.0, 1.0)) == 255).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lacks a window")
def test_a_machine_that_cannot_render_says_what_is_missing():
    if any(map(SceneViews._loads, SceneViews.OSMESA_NAMES)):
        pytest.skip("OSMesa is installed: this machine can always render")
    hidden = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    hidden.pop("VTK_DEFAULT_OPENGL_WINDOW", None)
    # EGL's library is there, but it finds no driver.
    hidden |= {"__EGL_VENDOR_LIBRARY_FILENAMES": "/dev/null"}
    done = runPython(
        """
with EmbeddedCore() as core:
    try:
        SliceView(core, "Axial", (32, 32))
    except OutputError as error:
        print(error)
""",
        hidden,
    )
    assert done.returncode == 0, done.stderr
    assert "libegl1" in done.stdout
    assert "libosmesa6" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
