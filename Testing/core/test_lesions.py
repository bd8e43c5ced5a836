"""Lesions by hand and against a second implementation."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.distance import pdist

from medsegcore.imaging import Grid, to_sitk
from medsegcore.inference.lesions import find_lesions, label_voxels, longest_diameter_mm
from medsegcore.models import Label

LESION = Label(value=1, name="lesion", color=(255, 0, 0))
CORE = Label(value=2, name="core", color=(0, 255, 0))


def test_two_lesions_by_hand():
    grid = Grid((6, 6, 6), np.array([[-2, 0, 0, 10], [0, 2, 0, -5], [0, 0, 3, 1], [0, 0, 0, 1.0]]))
    labelmap = np.zeros((6, 6, 6), np.uint8)
    labelmap[1, 1, 1] = 1
    labelmap[4, 4, 2:5] = 1
    probability = np.where(labelmap, 0.6, 0.0).astype(np.float32)
    probability[4, 4, 3] = 0.9
    flair = np.arange(216, dtype=np.float32).reshape(6, 6, 6)
    kept, (first, second) = find_lesions(
        labelmap, grid, [LESION], {"lesion": probability}, {"flair": flair}
    )
    assert np.array_equal(kept, labelmap)
    # Three voxels of 2 x 2 x 3 mm = 0.012 ml each; corners span 6 x 2 x 3 mm: 7 mm.
    assert first.number == 1
    assert first.volume_ml == pytest.approx(0.036)
    assert first.longest_diameter_mm == pytest.approx(7.0)
    assert first.mean_probability == pytest.approx(0.7)
    assert first.max_probability == pytest.approx(0.9)
    assert first.center_ras == pytest.approx((10 - 2 * 3, -5 + 2 * 4, 1 + 3 * 4))
    assert first.inputs == {"flair": pytest.approx(4 * 36 + 4 * 6 + 3)}
    # One voxel: the space diagonal of 2 x 2 x 3 mm.
    assert second.longest_diameter_mm == pytest.approx(np.sqrt(17))
    kept, lesions = find_lesions(labelmap, grid, [LESION], {"lesion": probability}, {}, 0.02)
    assert len(lesions) == 1
    assert kept[1, 1, 1] == 0


def test_means_are_of_the_voxels_that_an_image_has():
    labelmap = np.zeros((4, 4, 8), np.uint8)
    labelmap[1, 1, 2:6] = labelmap[3, 3, 7] = 1
    adc = np.arange(128, dtype=np.float32).reshape(4, 4, 8)
    adc[:, :, 4:] = np.nan
    _, (half, beyond) = find_lesions(
        labelmap, Grid(labelmap.shape, np.eye(4)), [LESION], {"lesion": labelmap.astype(float)},
        {"adc": adc, "t2w": np.full_like(adc, 7)},
    )  # fmt: skip
    assert half.inputs == {"adc": pytest.approx(adc[1, 1, 2:4].mean()), "t2w": 7}
    assert beyond.inputs == {"adc": None, "t2w": 7}


def test_of_a_label_in_one_piece_the_largest_component_stays():
    labelmap = np.zeros((6, 6, 6), np.uint8)
    labelmap[1, 1, 1] = labelmap[5, :, 5] = 1
    labelmap[4, 4, 2:4] = 2
    grid, parts = Grid((6, 6, 6), np.eye(4)), [LESION.model_copy(update={"one_piece": True}), CORE]
    parts_of = {"lesion": labelmap == 1, "core": labelmap == 2}
    probabilities = {name: mask.astype(np.float32) for name, mask in parts_of.items()}
    kept, lesions = find_lesions(labelmap, grid, parts, probabilities, {})
    assert kept[1, 1, 1] == 0
    assert np.count_nonzero(kept != labelmap) == 1
    assert [lesion.label for lesion in lesions] == ["lesion", "core"]
    kept, lesions = find_lesions(np.zeros_like(labelmap), grid, parts, probabilities, {})
    assert not kept.any()
    assert not lesions


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    labelmap = np.zeros((4, 4, 4), np.uint8)
    labelmap[0, 0, 0] = labelmap[1, 1, 1] = 1
    grid = Grid((4, 4, 4), np.eye(4))
    _, lesions = find_lesions(labelmap, grid, [LESION], {"lesion": labelmap.astype(float)}, {})
    assert len(lesions) == 1


def test_real_lesions_agree_with_itk(ms_reference):
    grid = ms_reference.grid
    labelmap = ms_reference.array.astype(np.uint8)
    _, lesions = find_lesions(labelmap, grid, [LESION], {"lesion": labelmap.astype(float)}, {})
    components = sitk.ConnectedComponent(to_sitk(ms_reference), True)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(components)
    expected = sorted((shapes.GetPhysicalSize(n) / 1000 for n in shapes.GetLabels()), reverse=True)
    assert [lesion.volume_ml for lesion in lesions] == pytest.approx(expected)
    largest = max(shapes.GetLabels(), key=shapes.GetPhysicalSize)
    x, y, z = shapes.GetCentroid(largest)
    assert lesions[0].center_ras == pytest.approx((-x, -y, z), abs=1e-3)


def by_all_pairs(mask, affine):
    half = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5])).reshape(3, -1).T
    corners = (np.argwhere(mask)[:, None, ::-1] + half).reshape(-1, 3) @ affine[:3, :3].T
    return pdist(np.unique(corners, axis=0)).max()


@pytest.mark.parametrize("seed", range(12))
def test_longest_diameter_is_the_largest_distance_of_all_corner_pairs(seed):
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = random.normal(size=(3, 3)) + 2 * np.eye(3)
    mask = random.random((5, 6, 7)) < (0.02 if seed % 3 else 0.3)
    mask[2, 3, 4] = True
    longest = longest_diameter_mm(np.nonzero(mask), Grid(mask.shape, affine))
    assert longest == pytest.approx(by_all_pairs(mask, affine))


def test_longest_diameter_of_round_long_and_bent_lesions():
    k, j, i = np.indices((15, 16, 17)) - 8
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    shapes = {
        "ball": k**2 + j**2 + i**2 < 30,
        "rod": (k - i) ** 2 + (j + i) ** 2 < 5,
        "shell": abs(k**2 + j**2 + i**2 - 36) < 9,
        "bow": (abs(j**2 + i**2 - 40) < 12) & (abs(k) < 2) & (j > -2),
        "voxel": (k == 0) & (j == 0) & (i == 0),
    }
    for name, mask in shapes.items():
        longest = longest_diameter_mm(np.nonzero(mask), Grid(mask.shape, affine))
        assert longest == pytest.approx(by_all_pairs(mask, affine)), name


def test_the_label_of_the_highest_probability_at_its_own_threshold_wins():
    probabilities = {
        "lesion": np.array([[[0.6, 0.6, 0.2, 0.5]]], np.float32),
        "core": np.array([[[0.7, 0.3, 0.3, 0.5]]], np.float32),
    }
    cut = {"lesion": 0.5, "core": 0.25}
    assert label_voxels([LESION, CORE], probabilities, cut).tolist() == [[[2, 1, 2, 1]]]
