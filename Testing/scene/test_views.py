"""Slice and 3D views by Slicer's displayable managers show what they should."""

import numpy as np
import pytest

from medsegcore.imaging import Image
from SlicerMedSegLib.ResultToScene import addResultToScene
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage
from SlicerMedSegLib.SceneViews import SliceView, ThreeDView

SIZE = (240, 200)


def orange(picture):
    """Where the picture is clearly more red than blue."""
    return picture[..., 0].astype(int) - picture[..., 2] > 60


def test_the_patients_right_is_on_the_left_and_anterior_is_up(core, ms_images):
    flair = ms_images["flair"]
    ras = flair.grid.to_ras(np.stack(np.indices(flair.shape)[::-1], axis=-1))
    middle = flair.grid.center
    right = Image((ras[..., 0] > middle[0]).astype(np.float32), flair.affine)
    front = Image((ras[..., 1] > middle[1]).astype(np.float32), flair.affine)
    with SliceView(core, "Axial", SIZE) as view:
        shown = view.show(volumeNodeFromImage(right, "right", core.scene), middle, 120)
        assert shown[:, :100].mean() > 200 > 50 > shown[:, 140:].mean()
        shown = view.show(volumeNodeFromImage(front, "front", core.scene), middle, 120)
        assert shown[:80].mean() > 200 > 50 > shown[120:].mean()
    assert shown.shape == (200, 240, 3)


@pytest.mark.parametrize("orientation", ["Axial", "Sagittal", "Coronal"])
def test_the_outline_appears_where_the_lesions_are(core, flair, ms_result, orientation):
    center = ms_result.lesions[0].center_ras
    with SliceView(core, orientation, SIZE) as view:
        plain = view.show(flair, center, 180)
        nodes = addResultToScene(ms_result, core.scene, flair, "MS lesions")
        outlined = view.show(flair, center, 180)
        nodes.segmentation.GetDisplayNode().SetVisibility(0)
        hidden = view.show(flair, center, 180)
    assert plain.mean() > 10
    assert not orange(plain).any()
    assert orange(outlined).sum() > 20
    assert np.array_equal(hidden, plain)


def test_an_overlay_colors_only_where_it_is_not_clear(core, flair, ms_result):
    nodes = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    nodes.segmentation.GetDisplayNode().SetVisibility(0)
    (label,) = ms_result.labels
    center = ms_result.lesions[0].center_ras
    with SliceView(core, "Axial", SIZE) as view:
        plain = view.show(flair, center, 180)
        overlaid = view.show(flair, center, 180, nodes.probabilities[label.name], 0.8)
        off = view.show(flair, center, 180)
    changed = (plain != overlaid).any(axis=-1)
    assert 50 < changed.sum() < 0.5 * changed.size
    assert np.array_equal(off, plain)


def test_the_3d_view_shows_the_lesions(core, flair, ms_result):
    nodes = addResultToScene(ms_result, core.scene, flair, "MS lesions")
    nodes.segmentation.CreateClosedSurfaceRepresentation()
    with ThreeDView(core, SIZE) as view:
        front = view.show((0, 1, 0))
        side = view.show((1, 0, 0))
    assert orange(front).sum() > 200
    assert not np.array_equal(front, side)
    assert (front[0, 0] == 0).all()


def test_closed_views_leave_no_nodes(core, flair):
    def names():
        return sorted(
            core.scene.GetNthNode(n).GetID() for n in range(core.scene.GetNumberOfNodes())
        )

    with SliceView(core, "Axial", SIZE) as view:
        view.show(flair, (0, 0, 0), 100)
    before = names()
    for _ in range(3):
        with SliceView(core, "Axial", SIZE) as view:
            view.show(flair, (0, 0, 0), 100)
    assert names() == before
