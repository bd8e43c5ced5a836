"""Measures by hand and against a second implementation."""

import numpy as np
import pytest
from scipy import ndimage

from medsegcore.evaluation.metrics import (
    best_threshold_dice,
    dice,
    froc,
    hausdorff95_mm,
    hausdorff_mm,
    iou,
    lesion_detection,
    lesions_by_threshold,
    mean_surface_distance_mm,
    precision,
    sensitivity,
    volume_difference_percent,
    volumetric_overlap_error_percent,
)


@pytest.fixture
def pair():
    reference = np.zeros((8, 8, 8), bool)
    reference[1:3, 1:3, 1:3] = True  # 8 voxels
    answer = np.zeros_like(reference)
    answer[1:3, 1:3, 2:5] = True  # 12 voxels, 4 in common
    return answer, reference


def test_overlap_measures_by_hand(pair):
    assert dice(*pair) == pytest.approx(2 * 4 / 20)
    assert iou(*pair) == pytest.approx(4 / 16)
    assert volumetric_overlap_error_percent(*pair) == pytest.approx(75)
    assert sensitivity(*pair) == pytest.approx(0.5)
    assert precision(*pair) == pytest.approx(1 / 3)
    assert volume_difference_percent(*pair) == pytest.approx(50.0)


def test_empty_masks_have_their_stated_values():
    full, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert (dice(empty, empty), dice(full, empty)) == (1, 0)
    assert (iou(empty, empty), iou(full, empty)) == (1, 0)
    assert volumetric_overlap_error_percent(empty, empty) == 0
    assert sensitivity(full, empty) is None
    assert precision(empty, full) is None
    assert volume_difference_percent(full, empty) is None
    for distance in (hausdorff_mm, hausdorff95_mm, mean_surface_distance_mm):
        assert distance(empty, empty, (1, 1, 1)) == 0
        assert distance(full, empty, (1, 1, 1)) is None
    assert froc([lesions_by_threshold(np.ones((3, 3, 3)), empty)]) is None
    assert lesions_by_threshold(np.zeros((3, 3, 3)), empty).false == [0] * 19
    none = lesion_detection(empty, empty)
    assert (none.recall, none.precision, none.f1) == (None, None, None)
    assert lesion_detection(full, empty).f1 == 0


def surface_distances(a, b, spacing_kji):
    """Distances from the surface voxels of a to the nearest surface voxel of b."""
    cross = ndimage.generate_binary_structure(3, 1)
    edge = [m & ~ndimage.binary_erosion(m, cross) for m in (a, b)]
    points = [np.argwhere(e) * spacing_kji for e in edge]
    return np.array([np.linalg.norm(points[1] - p, axis=1).min() for p in points[0]])


def test_distances_are_in_millimetres_and_agree_with_brute_force(ms_reference):
    box = ndimage.find_objects(ndimage.label(ms_reference.array)[0])[0]
    reference = np.pad(ms_reference.array[box], 4)
    answer = ndimage.shift(reference.astype(float), (1, 2, 0), order=0) > 0.5
    spacing = (0.7, 1.0, 3.0)
    there = surface_distances(answer, reference, spacing[::-1])
    back = surface_distances(reference, answer, spacing[::-1])
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff95_mm(answer, reference, spacing) == pytest.approx(expected, rel=0.02)
    expected = max(there.max(), back.max())
    assert hausdorff_mm(answer, reference, spacing) == pytest.approx(expected, rel=1e-5)
    expected = np.concatenate([there, back]).mean()
    assert mean_surface_distance_mm(answer, reference, spacing) == pytest.approx(expected, rel=1e-5)


def test_distances_of_two_voxels_by_hand():
    answer, reference = np.zeros((2, 2, 5), bool), np.zeros((2, 2, 5), bool)
    answer[0, 0, 0] = reference[0, 0, 3] = reference[0, 0, 0] = True
    # 0.5 mm along i: the second reference voxel lies 1.5 mm off; the other three distances are 0.
    assert hausdorff_mm(answer, reference, (0.5, 1, 1)) == pytest.approx(1.5)
    assert mean_surface_distance_mm(answer, reference, (0.5, 1, 1)) == pytest.approx(0.5)


def test_froc_by_hand():
    # Two cases. Lesions at 1-2 (answered by 0.92) and 5 (by 0.32) of the first, at 3 (not
    # answered) of the second; false lesions of 0.62 and 0.22 in the first, 0.42 in the second.
    probability = np.zeros((2, 1, 1, 14))
    reference = np.zeros((2, 1, 1, 14), bool)
    probability[0, ..., [1, 5, 9, 12]] = np.array([0.92, 0.32, 0.62, 0.22])[:, None, None]
    probability[1, ..., 7] = 0.42
    reference[0, ..., [1, 2, 5]] = reference[1, ..., 3] = True
    pairs = list(zip(probability, reference, strict=True))
    curve = froc([lesions_by_threshold(p, r) for p, r in pairs])
    # At 0.05 to 0.2, 0.25 and 0.3, 0.35 and 0.4, 0.45 to 0.6, 0.65 to 0.9, and 0.95.
    parts = (4, 2, 2, 4, 6, 1)
    np.testing.assert_allclose(curve.false_per_case, np.repeat([1.5, 1, 1, 0.5, 0, 0], parts))
    recall = np.repeat([2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 0], parts)
    np.testing.assert_allclose(curve.recall, recall)
    # With at most 1/4 and 1/2 false lesions per case 1/3 are found, with 1, 2, 4 and 8 of them 2/3.
    assert curve.score == pytest.approx((2 * 1 / 3 + 4 * 2 / 3) / 6)
    large = froc([lesions_by_threshold(p, r, 2) for p, r in pairs])
    assert large.recall.max() == 0


def test_one_answer_over_everything_finds_no_lesion_at_any_threshold():
    reference = np.zeros((4, 20, 20), bool)
    reference[1, 3:5, 3:5] = reference[2, 12:14, 12:14] = True
    whole = froc([lesions_by_threshold(np.full(reference.shape, 0.8), reference)])
    assert (whole.score, whole.recall.max()) == (0, 0)
    np.testing.assert_allclose(whole.false_per_case[:15], 1)
    # The same answer, but above 0.5 on the lesions alone.
    better = np.where(reference, 0.8, 0.5)
    assert froc([lesions_by_threshold(better, reference)]).score == 1


def test_lesions_count_as_found_when_a_tenth_is_covered():
    reference = np.zeros((1, 1, 40), bool)
    for where in (slice(0, 11), slice(13, 15), slice(17, 19), slice(30, 40)):
        reference[..., where] = True  # of 11, 2, 2 and 10 voxels
    answer = np.zeros_like(reference)
    for where in (slice(10, 12), slice(14, 16), slice(21, 23), slice(39, 40)):
        answer[..., where] = True
    # 1 of 11 is covered: too little. 1 of 2, half of it outside: found. 0 of 2: missed. 1 of 10.
    found = lesion_detection(answer, reference)
    assert (found.found, found.missed) == (2, 2)
    # Of 2 answered voxels 1 lies in a lesion of 11, of which 10 lie outside: wrong. The second is
    # right, the third touches nothing, and of the last one's lesion nine tenths lie outside.
    assert (found.right, found.wrong) == (1, 3)
    assert found.recall == pytest.approx(1 / 2)
    assert found.precision == pytest.approx(1 / 4)
    assert found.f1 == pytest.approx(1 / 3)
    large = lesion_detection(answer, reference, min_voxels=2)
    assert (large.found, large.missed, large.right, large.wrong) == (1, 3, 1, 2)


def test_a_mask_of_everything_finds_no_lesion(ms_reference):
    reference = ms_reference.array
    everything = lesion_detection(np.ones_like(reference), reference)
    assert (everything.found, everything.right) == (0, 0)
    same = lesion_detection(reference, reference)
    assert (same.missed, same.wrong) == (0, 0)
    assert same.f1 == 1


def test_a_lesion_is_found_by_its_largest_partners_alone():
    reference = np.zeros((1, 3, 30), bool)
    reference[0, 0, :20] = True
    answer = np.zeros_like(reference)
    answer[0, 0, 0:14] = True  # 14 of 18 overlapping voxels: more than 65 %
    answer[0, 0, 16:20] = True  # the rest, with most of its voxels outside
    answer[0, 1:, 16:30] = True
    assert lesion_detection(answer, reference).found == 1
    # With 10 of 14 the first alone still suffices; with 4 of 8 the second one counts too.
    answer[0, 0, 4:14] = False
    assert lesion_detection(answer, reference).found == 0


def test_the_best_threshold_is_the_best_of_all():
    values = np.array([[[0.1, 0.4, 0.5, 0.6, 0.9, 0.95]]])
    reference = np.array([[[False, False, True, False, True, True]]])
    score, threshold = best_threshold_dice(values, np.ones_like(reference), reference, steps=1000)
    # From 0.5 on: three of three found, one wrong: 6/7. Above 0.6 it would be 4/5.
    assert score == pytest.approx(6 / 7)
    assert 0.4 <= threshold < 0.5
