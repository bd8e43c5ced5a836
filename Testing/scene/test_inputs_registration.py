"""An input is moved onto the reference by a copy; the user's own volume never changes."""

import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from medsegcore.errors import (
    CancelledError,
    EmptyImageError,
    InputError,
    OverlapError,
    RunError,
)
from medsegcore.imaging import (
    Image,
    from_sitk,
    grid_with_spacing,
    resample,
    to_sitk,
)
from SlicerMedSegLib.InputMatcher import InputMatcher
from SlicerMedSegLib.InputRegistration import InputRegistration, RegistrationJob
from SlicerMedSegLib.RegistrationPreview import RegistrationPreview
from SlicerMedSegLib.SceneConversion import imageFromVolumeNode, volumeNodeFromImage


@pytest.fixture(scope="module")
def small(ms_images):
    grid = grid_with_spacing(ms_images["t1"].grid, (3, 3, 3))
    return {key: resample(image, grid) for key, image in ms_images.items()}


@pytest.fixture(scope="module")
def movement():
    """RAS to RAS: 6 degrees and a few millimetres."""
    turn = vtk.vtkTransform()
    turn.Translate(5, -4, 3)
    turn.RotateZ(6)
    return slicer.util.arrayFromVTKMatrix(turn.GetMatrix())


@pytest.fixture
def pair(core, small, movement):
    """FLAIR, and the T2 that a header puts beside it."""
    flair = volumeNodeFromImage(small["flair"], "FLAIR", core.scene)
    wrong = Image(small["t2"].array, movement @ small["t2"].affine)
    return flair, volumeNodeFromImage(wrong, "T2", core.scene)


def distance_mm(node, true: Image) -> float:
    """Mean distance in mm of the head's voxels from where they belong."""
    found = imageFromVolumeNode(node)
    ijk = np.argwhere(true.array > true.array.mean())[::97][:, ::-1]
    return float(np.linalg.norm(found.grid.to_ras(ijk) - true.grid.to_ras(ijk), axis=1).mean())


def state(node):
    """All of a volume that a registration could touch."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    affine = str(slicer.util.arrayFromVTKMatrix(matrix))
    voxels = slicer.util.arrayFromVolume(node).tobytes()
    return voxels, affine, node.GetTransformNodeID(), node.GetName()


def test_a_rigid_movement_is_found_and_the_original_stays(core, pair, small):
    before = state(pair[1]), state(pair[0])
    shares = []
    found = InputRegistration(core.scene).run(*pair, progress=shares.append)
    assert distance_mm(pair[1], small["t2"]) > 5
    assert distance_mm(found.volumeNode, small["t2"]) < 1.0
    assert (state(pair[1]), state(pair[0])) == before
    assert found.volumeNode.GetTransformNodeID() == found.transformNode.GetID()
    assert found.improved
    assert "fit better" in found.summary()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_volumes_under_transforms_are_registered_where_they_stand(core, small, movement):
    flair = volumeNodeFromImage(small["flair"], "FLAIR", core.scene)
    t2 = volumeNodeFromImage(small["t2"], "T2", core.scene)
    moved = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(movement))
    t2.SetAndObserveTransformNodeID(moved.GetID())
    found = InputRegistration(core.scene).run(flair, t2)
    assert t2.GetTransformNodeID() == moved.GetID()
    assert distance_mm(found.volumeNode, small["t2"]) < 1.0


def bentTransform(fixed: Image) -> sitk.Transform:
    """A turn and a wave of a few millimetres."""
    wave = sitk.BSplineTransformInitializer(to_sitk(fixed), [4, 4, 4])
    count = len(wave.GetParameters())
    wave.SetParameters(np.random.default_rng(3).uniform(-6, 6, count).tolist())
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.05, 0.0, -0.08, (3.0, -2.0, 4.0))
    return sitk.CompositeTransform([turn, wave])


class Found:
    """A run that has found a transform."""

    error, finished, qualityBefore, qualityAfter = None, True, 0.1, 0.2

    def __init__(self, transform):
        self.transform = transform


def jobOf(pair, kind, makeTransform) -> RegistrationJob:
    fixed, moving = (imageFromVolumeNode(node) for node in pair)
    ids = [node.GetID() for node in pair]
    return RegistrationJob(Found(makeTransform(fixed)), kind, *ids, fixed.grid, moving)


def test_a_bent_registration_becomes_a_node_that_does_the_same(core, pair, small):
    job = jobOf(pair, "bspline", bentTransform)
    found = InputRegistration(core.scene).finish(job)
    transform, target, source = job.run.transform, *(imageFromVolumeNode(node) for node in pair)
    expected = from_sitk(
        sitk.Resample(to_sitk(source), to_sitk(target), transform, sitk.sitkLinear, 0.0)
    )
    general = vtk.vtkGeneralTransform()
    found.transformNode.GetTransformFromWorld(general)
    inner = np.argwhere(small["t2"].array > 300)[::501][:, ::-1]
    flip = np.array([-1, -1, 1])
    apart = [
        np.linalg.norm(
            np.array(general.TransformPoint(point))
            - np.array(transform.TransformPoint((point * flip).tolist())) * flip
        )
        for point in small["t2"].grid.to_ras(inner)
    ]
    assert len(apart) > 50
    assert np.max(apart) < 0.5
    again = resample(imageFromVolumeNode(found.volumeNode), target.grid).array
    brain = expected.array > 100
    assert np.corrcoef(again[brain], expected.array[brain])[0, 1] > 0.95


def test_a_cancelled_or_failed_registration_leaves_the_scene_as_it_was(core, pair):
    before = core.scene.GetNumberOfNodes()
    registration = InputRegistration(core.scene)
    asked = []

    def cancelled():
        asked.append(time.monotonic())
        return len(asked) > 5

    with pytest.raises(CancelledError):
        registration.run(*pair, cancelled=cancelled)
    with pytest.raises(EmptyImageError):
        registration.run(pair[0], None)
    assert core.scene.GetNumberOfNodes() == before


def test_a_registration_that_gains_nothing_says_so(core, small):
    nodes = [volumeNodeFromImage(small[key], key, core.scene) for key in ("flair", "t2")]
    before = core.scene.GetNumberOfNodes()
    registration = InputRegistration(core.scene)
    found = registration.run(*nodes)
    assert not found.improved
    assert "keep the original" in found.summary()
    again = registration.find(*nodes)
    assert again.volumeNode is found.volumeNode
    assert again.summary() == found.summary()
    assert registration.find(*reversed(nodes)) is None
    registration.remove(again)
    registration.remove(found)
    assert core.scene.GetNumberOfNodes() == before
    assert registration.find(*nodes) is None


def test_the_users_own_choice_during_a_preview_stays(core, small, views):
    flair, t1, t2 = (volumeNodeFromImage(small[k], k, core.scene) for k in ("flair", "t1", "t2"))
    views[0].SetBackgroundVolumeID(t1.GetID())
    before = core.scene.GetNumberOfNodes()
    preview = RegistrationPreview(core.scene)
    preview.checkerboard(flair, t2)
    views[1].SetBackgroundVolumeID(t2.GetID())
    views[0].SetForegroundVolumeID(t2.GetID())
    views[0].SetForegroundOpacity(0.7)
    # Another object, as after the scene was loaded, knows it from the views.
    RegistrationPreview(core.scene).restore()
    assert views[0].GetBackgroundVolumeID() == t1.GetID()
    assert views[1].GetBackgroundVolumeID() == t2.GetID()
    assert views[0].GetForegroundVolumeID() == t2.GetID()
    assert views[0].GetForegroundOpacity() == 0.7
    preview.restore()
    assert core.scene.GetNumberOfNodes() == before


@pytest.fixture
def views(core):
    made = []
    for name in ("Red", "Green"):
        view = slicer.vtkMRMLSliceCompositeNode()
        view.SetLayoutName(name)
        made.append(core.scene.AddNode(view))
    return made


def test_previews_give_the_views_back(core, small, views):
    flair, t1, t2 = (volumeNodeFromImage(small[k], k, core.scene) for k in ("flair", "t1", "t2"))
    views[0].SetBackgroundVolumeID(t1.GetID())
    views[0].SetForegroundVolumeID(t2.GetID())
    views[0].SetForegroundOpacity(0.3)
    preview = RegistrationPreview(core.scene)
    preview.blend(flair, t2, 0.7)
    for view in views:
        assert view.GetBackgroundVolumeID() == flair.GetID()
        assert view.GetForegroundVolumeID() == t2.GetID()
        assert view.GetForegroundOpacity() == 0.7
    board = preview.checkerboard(flair, t2)
    assert views[1].GetBackgroundVolumeID() == board.GetID()
    boardId = preview.checkerboard(flair, t2, 40).GetID()
    assert core.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 4
    core.scene.RemoveNode(t2)
    preview.restore()
    assert core.scene.GetNodeByID(boardId) is None
    assert views[0].GetBackgroundVolumeID() == t1.GetID()
    assert views[0].GetForegroundVolumeID() is None
    assert views[0].GetForegroundOpacity() == 0.3
    assert views[1].GetBackgroundVolumeID() is None


def test_the_checkerboard_alternates_between_both_images(core, small):
    flair, t2 = (volumeNodeFromImage(small[k], k, core.scene) for k in ("flair", "t2"))
    board = slicer.util.arrayFromVolume(RegistrationPreview(core.scene).checkerboard(flair, t2, 24))
    assert board.min() == 0
    assert board.max() == 1
    # Cubes of 24 mm at 3 mm: each follows one of the two images.
    middle = [slice(16, 24), slice(16, 24), slice(16, 24)]
    next_ = [slice(16, 24), slice(16, 24), slice(24, 32)]
    for box, key in ((middle, "flair"), (next_, "t2")):
        box = tuple(box)
        same = np.corrcoef(board[box].ravel(), small[key].array[box].ravel())[0, 1]
        assert same > 0.95


def test_the_checkerboard_of_a_large_reference_is_coarser(core, small, monkeypatch):
    flair, t2 = (volumeNodeFromImage(small[k], k, core.scene) for k in ("flair", "t2"))
    most = small["flair"].array.size // 3
    monkeypatch.setattr("SlicerMedSegLib.RegistrationPreview.MOST", most)
    board = imageFromVolumeNode(RegistrationPreview(core.scene).checkerboard(flair, t2))
    assert most / 2 < board.array.size <= most
    np.testing.assert_allclose(board.grid.center, small["flair"].grid.center, atol=0.1)
    np.testing.assert_allclose(board.grid.size_mm, small["flair"].grid.size_mm, atol=5)


def test_copies_are_no_candidates_for_matching(core, pair, shipped_model):
    job = jobOf(pair, "rigid", lambda fixed: sitk.Transform(3, sitk.sitkIdentity))
    found = InputRegistration(core.scene).finish(job)
    matched = InputMatcher(core.scene).match(shipped_model.description)
    assert matched["t2"].node is pair[1]
    assert matched["t2"].alternatives == []
    assert found.volumeNode not in InputMatcher(core.scene).candidates()


def folders():
    return {p.name for p in Path(tempfile.gettempdir()).glob("medseg-registration-*")}


def test_polling_never_waits_and_nothing_is_left_behind(core, pair):
    before = folders()
    job = InputRegistration(core.scene).start(*pair)
    longest = 0.0
    while not job.run.finished:
        start = time.thread_time()
        job.run.poll()
        longest = max(longest, time.thread_time() - start)
        time.sleep(0.02)
    assert longest < 0.05
    assert job.run.error is None
    assert job.run.share == 1.0
    assert folders() == before


def test_cancelling_ends_the_process_at_once(core, pair, small):
    before = folders()
    large = grid_with_spacing(small["t1"].grid, (1.5, 1.5, 1.5))
    nodes = [volumeNodeFromImage(resample(small[k], large), k, core.scene) for k in ("t1", "t2")]
    job = InputRegistration(core.scene).start(*nodes)
    while job.run.share == 0 and not job.run.finished:
        job.run.poll()
        time.sleep(0.02)
    process = job.run._process
    start = time.monotonic()
    job.run.cancel()
    assert time.monotonic() - start < 1
    assert process.poll() is not None
    assert folders() == before
    with pytest.raises(CancelledError):
        InputRegistration(core.scene).finish(job)


def test_the_process_ends_when_the_one_that_started_it_goes(core, pair, small):
    job = InputRegistration(core.scene).start(*pair)
    job.run._process.stdin.close()
    assert job.run._process.wait(timeout=20) == 1
    job.run.poll()
    assert isinstance(job.run.error, RunError)


def test_on_windows_the_process_opens_no_console(core, pair, monkeypatch):
    asked = []

    def popen(command, **options):
        asked.append(options["creationflags"])
        raise OSError("no process")

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    InputRegistration(core.scene).start(*pair)
    assert asked == [0x08000000]


def test_errors_of_the_process_come_back_as_what_they_are(core, small, pair):
    affine = small["t2"].affine.copy()
    affine[0, 3] += 900
    far = volumeNodeFromImage(Image(small["t2"].array, affine), "far", core.scene)
    before = core.scene.GetNumberOfNodes()
    with pytest.raises(OverlapError, match="only 0%"):
        InputRegistration(core.scene).run(pair[0], far)
    with pytest.raises(RunError, match="cannot be started"):
        InputRegistration(core.scene, python="/no/such/python").run(*pair)
    assert core.scene.GetNumberOfNodes() == before


def test_a_volume_that_was_removed_meanwhile_is_told(core, pair):
    job = jobOf(pair, "rigid", lambda fixed: sitk.Transform(3, sitk.sitkIdentity))
    core.scene.RemoveNode(pair[1])
    with pytest.raises(InputError, match="was removed"):
        InputRegistration(core.scene).finish(job)
