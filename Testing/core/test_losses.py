"""The loss of RSANet against its formula."""

import math

import numpy as np
import pytest
import torch

from medsegcore.losses import (
    ExponentiallyWeightedCrossEntropy,
    LesionLoss,
    exponential_weights,
)


def test_printed_weights_give_the_rare_class_less_and_swapped_ones_more():
    # r = 5.15e-4: e^r = 1.000515, e^(1-r) = 2.716882; shares 0.26914 and 0.73086.
    background, lesion = exponential_weights(5.15e-4, "printed")
    assert (lesion, background) == pytest.approx((0.26914, 0.73086), abs=1e-5)
    assert exponential_weights(5.15e-4, "swapped") == pytest.approx((lesion, background))


def numpy_loss(logits, target, share, form):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    w = exponential_weights(share, form)
    weight = np.where(target[:, 0] == 1, w[1], w[0])
    right = np.where(target[:, 0] == 1, p[:, 1], p[:, 0])
    cross_entropy = (-weight * np.log(right)).sum() / weight.sum()
    q, t = p[:, 1], target[:, 0]
    dice = 1 - (2 * (q * t).sum() + 1e-5) / ((q**2).sum() + (t**2).sum() + 1e-5)
    return cross_entropy, dice


@pytest.mark.parametrize("form", ["printed", "swapped"])
def test_loss_is_weighted_cross_entropy_plus_dice_over_the_batch(form):
    random = np.random.default_rng(5)
    logits = random.normal(size=(2, 2, 3, 4, 5))
    target = (random.random((2, 1, 3, 4, 5)) < 0.3).astype(np.float64)
    cross_entropy, dice = numpy_loss(logits, target, 0.01, form)
    given = torch.from_numpy(logits).float(), torch.from_numpy(target).float()
    measured = ExponentiallyWeightedCrossEntropy(0.01, form)(*given)
    assert measured.item() == pytest.approx(cross_entropy, abs=1e-5)
    assert LesionLoss(0.01, form)(*given).item() == pytest.approx(cross_entropy + dice, abs=1e-4)


def test_cross_entropy_of_two_voxels_by_hand():
    # Both voxels have p(lesion) = 1/4; the first is lesion. With r = 1/2 both classes weigh 1/2:
    # (-ln(1/4) - ln(3/4)) / 2 = 0.83699.
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 2)
    target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    loss = ExponentiallyWeightedCrossEntropy(0.5)(logits, target)
    assert loss.item() == pytest.approx(0.83699, abs=1e-5)


def test_gradient_pushes_the_lesion_up_and_the_rest_down():
    logits = torch.zeros(1, 2, 1, 1, 2, requires_grad=True)
    target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    LesionLoss(0.01)(logits, target).backward()
    lesion = logits.grad[0, 1, 0, 0]
    assert lesion[0] < 0 < lesion[1]


@pytest.mark.parametrize(("share", "form"), [(1.5, "printed"), (-0.1, "printed"), (0.1, "other")])
def test_bad_settings_are_refused(share, form):
    with pytest.raises(ValueError, match="but has to"):
        exponential_weights(share, form)
