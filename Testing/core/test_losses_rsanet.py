"""RSANet's loss against the formulas of section 3.1, written anew in NumPy."""

import math

import numpy as np
import pytest
import torch

from medsegcore.losses.rsanet import (
    ExponentiallyWeightedCrossEntropy,
    LesionLoss,
    exponential_weights,
)

SHARE = 5.15e-4  # r of the paper's patients
FORMS = ["printed", "swapped"]


def numpy_weights(share, form):
    """(background, lesion); section 3.1 prints the lesion's as e^r / (e^r + e^(1-r))."""
    lesion = np.exp(share) / (np.exp(share) + np.exp(1 - share))
    return (1 - lesion, lesion) if form == "printed" else (lesion, 1 - lesion)


def numpy_cross_entropy(logits, target, share, form):
    """Voxel by voxel: weight times minus the log of the right class's probability."""
    weights = numpy_weights(share, form)
    total = divisor = 0.0
    for b, d, h, w in np.ndindex(target[:, 0].shape):
        label = int(target[b, 0, d, h, w])
        scores = logits[b, :, d, h, w]
        total += weights[label] * (np.log(np.exp(scores).sum()) - scores[label])
        divisor += weights[label]
    return total / divisor


def numpy_dice(logits, target):
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2)) of the lesion, over all voxels of the batch."""
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    t = target[:, 0].astype(np.float64)
    return 1 - (2 * (p * t).sum() + 1e-5) / ((p**2).sum() + (t**2).sum() + 1e-5)


def random_batch(seed, lesion=0.3):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(2, 2, 3, 4, 5))
    target = (random.random((2, 1, 3, 4, 5)) < lesion).astype(np.float64)
    return logits, target


def tensors(logits, target):
    return torch.from_numpy(logits).float(), torch.from_numpy(target).float()


def quarter_lesion(labels):
    """Voxels that all have p(lesion) = 1/4, since e^0 / (e^ln(3) + e^0) = 1/4."""
    n = len(labels)
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1, 1).repeat(1, 1, 1, 1, n)
    return logits, torch.tensor(labels, dtype=torch.float32).reshape(1, 1, 1, 1, n)


def test_printed_weights_are_those_of_the_paper_and_give_the_lesion_less():
    # e^r = 1.000515 and e^(1-r) = 2.716882 sum to 3.717397: shares 0.26914 and 0.73086.
    background, lesion = exponential_weights(SHARE, "printed")
    assert round(lesion, 2) == 0.27
    assert round(background, 2) == 0.73
    assert (background, lesion) == pytest.approx((0.73086, 0.26914), abs=1e-5)
    assert exponential_weights(SHARE) == (background, lesion)


def test_swapped_weights_give_the_lesion_more():
    background, lesion = exponential_weights(SHARE, "swapped")
    assert (background, lesion) == pytest.approx((0.26914, 0.73086), abs=1e-5)


@pytest.mark.parametrize(
    ("share", "lesion"), [(0, 0.268941), (0.25, 0.377541), (0.5, 0.5), (1, 0.731059)]
)
def test_weights_sum_to_1_over_the_whole_range_of_shares(share, lesion):
    # e^r / (e^r + e^(1-r)) = 1 / (1 + e^(1-2r)): 1/(1+e), 1/(1+e^0.5), 1/2 and 1/(1+1/e).
    assert exponential_weights(share, "printed") == pytest.approx((1 - lesion, lesion), abs=1e-6)
    assert exponential_weights(share, "swapped") == pytest.approx((lesion, 1 - lesion), abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [SHARE, 0.2])
def test_cross_entropy_is_the_weighted_mean_over_the_voxels(form, share):
    logits, target = random_batch(1)
    measured = ExponentiallyWeightedCrossEntropy(share, form)(*tensors(logits, target))
    assert measured.shape == ()
    assert measured.item() == pytest.approx(
        numpy_cross_entropy(logits, target, share, form), abs=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
def test_lesion_loss_is_cross_entropy_plus_dice(form):
    logits, target = random_batch(2)
    expected = numpy_cross_entropy(logits, target, SHARE, form) + numpy_dice(logits, target)
    assert LesionLoss(SHARE, form)(*tensors(logits, target)).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_dice_is_pooled_over_the_batch_where_one_image_has_no_lesion():
    logits, target = random_batch(3)
    target[1] = 0
    apart = np.mean([numpy_dice(logits[n : n + 1], target[n : n + 1]) for n in range(2)])
    pooled = numpy_dice(logits, target)
    assert abs(apart - pooled) > 0.05
    cross_entropy = numpy_cross_entropy(logits, target, SHARE, "printed")
    measured = LesionLoss(SHARE)(*tensors(logits, target)).item()
    assert measured - cross_entropy == pytest.approx(pooled, abs=1e-5)


@pytest.mark.parametrize(("form", "expected"), [("printed", 0.583367), ("swapped", 1.090609)])
def test_cross_entropy_of_two_voxels_by_hand(form, expected):
    # A lesion and a background voxel, both with p(lesion) = 1/4: -ln(1/4) = 1.386294 and
    # -ln(3/4) = 0.287682; the two weights sum to 1.
    # Printed: 0.269144 * 1.386294 + 0.730856 * 0.287682 = 0.373113 + 0.210254 = 0.583367.
    # Swapped: 0.730856 * 1.386294 + 0.269144 * 0.287682 = 1.013181 + 0.077428 = 1.090609.
    loss = ExponentiallyWeightedCrossEntropy(SHARE, form)(*quarter_lesion([1, 0]))
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def test_cross_entropy_of_three_voxels_divides_by_the_sum_of_weights_by_hand():
    # One lesion and two background voxels with r = 0, weights 0.268941 and 0.731059:
    # (0.268941 * 1.386294 + 2 * 0.731059 * 0.287682) / (0.268941 + 2 * 0.731059)
    # = (0.372832 + 0.420625) / 1.731059 = 0.458365.
    loss = ExponentiallyWeightedCrossEntropy(0)(*quarter_lesion([1, 0, 0]))
    assert loss.item() == pytest.approx(0.458365, abs=2e-6)


def test_lesion_loss_of_two_voxels_by_hand():
    # Cross-entropy with r = 1/2, both weights 1/2: (1.386294 + 0.287682) / 2 = 0.836988.
    # Dice with p = (1/4, 1/4), t = (1, 0): 1 - 2 * 1/4 / (1/16 + 1/16 + 1) = 1 - 4/9 = 0.555556.
    # The constant 1e-5 above and below moves Dice by 5e-6.
    loss = LesionLoss(0.5)(*quarter_lesion([1, 0]))
    assert loss.item() == pytest.approx(0.836988 + 0.555556, abs=2e-5)


def test_a_right_and_sure_answer_costs_nothing_and_a_wrong_one_much():
    _, target = random_batch(4)
    sure = 40 * np.concatenate([1 - target, target], axis=1) - 20
    assert LesionLoss(SHARE)(*tensors(sure, target)).item() == pytest.approx(0, abs=1e-5)
    # Every voxel misses by 40, and no lesion is found: 40 + 1.
    assert LesionLoss(SHARE)(*tensors(-sure, target)).item() == pytest.approx(41, abs=1e-3)


def test_a_batch_without_lesion_has_a_finite_loss_and_gradient():
    logits, target = tensors(*random_batch(5, lesion=0))
    assert not target.any()
    logits.requires_grad_()
    loss = LesionLoss(SHARE)(logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    # Descent has to make every voxel less of a lesion.
    assert (logits.grad[:, 1] > 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_the_type_of_the_target_does_not_matter(dtype):
    logits, target = tensors(*random_batch(6))
    expected = LesionLoss(SHARE)(logits, target)
    torch.testing.assert_close(LesionLoss(SHARE)(logits, target.to(dtype)), expected)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_logits_are_weighed_in_fp32(autocast):
    logits, target = tensors(*random_batch(7))
    rounded = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = LesionLoss(SHARE)(rounded, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LesionLoss(SHARE)(rounded.float(), target))


def test_weights_are_no_part_of_a_checkpoint():
    loss = LesionLoss(SHARE)
    assert list(loss.state_dict()) == []
    assert list(loss.parameters()) == []
    assert loss.cross_entropy.weight.tolist() == pytest.approx([0.73086, 0.26914], abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_slope_of_the_formula(form):
    logits, target = random_batch(8)
    given, labels = tensors(logits, target)
    given.requires_grad_()
    LesionLoss(SHARE, form)(given, labels).backward()
    assert (given.grad != 0).all()

    def formula(z):
        return numpy_cross_entropy(z, target, SHARE, form) + numpy_dice(z, target)

    step = 1e-5
    for index in [(0, 0, 0, 0, 0), (0, 1, 2, 3, 4), (1, 0, 1, 2, 3), (1, 1, 0, 3, 1)]:
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        slope = (formula(up) - formula(down)) / (2 * step)
        assert given.grad[index].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_pushes_the_lesion_up_and_the_rest_down(form):
    logits = torch.zeros(1, 2, 1, 1, 2, requires_grad=True)
    target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    LesionLoss(0.01, form)(logits, target).backward()
    lesion = logits.grad[0, 1, 0, 0]
    assert lesion[0] < 0 < lesion[1]


@pytest.mark.parametrize(
    "make", [exponential_weights, ExponentiallyWeightedCrossEntropy, LesionLoss]
)
@pytest.mark.parametrize("share", [1.5, -0.1, math.nan, math.inf])
def test_a_share_outside_of_0_to_1_is_refused(make, share):
    with pytest.raises(ValueError, match=f"lesion_share is {share} but has to lie between 0 and 1"):
        make(share)


@pytest.mark.parametrize(
    "make", [exponential_weights, ExponentiallyWeightedCrossEntropy, LesionLoss]
)
def test_an_unknown_form_is_refused(make):
    with pytest.raises(ValueError, match="form is 'other' but has to be 'printed' or 'swapped'"):
        make(0.1, "other")
