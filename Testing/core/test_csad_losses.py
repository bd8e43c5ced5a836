"""CSAD's losses against eq. 3-4 and 8-11, written anew in NumPy and by hand."""

import math

import numpy as np
import pytest
import torch

from medsegcore.losses.csad import (
    CSADLoss,
    WeightedBinaryCrossEntropy,
    attention_distillation,
    distillation_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = 5
HALF, QUARTER = (0.5, 0.5), (0.25, 0.75)


def pixels(values) -> torch.Tensor:
    """The logarithm of a map of one row."""
    return torch.tensor(values, dtype=torch.float64).log().float().reshape(1, 1, 1, -1)


def numpy_distillation(a, b):
    """Eq. 4 pixel by pixel, for the maps [H, W] themselves."""
    total = 0.0
    height, width = a.shape
    for i in range(height):
        for j in range(width):
            total += a[i, j] * np.log(a[i, j] / b[i, j]) + b[i, j] * np.log(b[i, j] / a[i, j])
    return total / (2 * width * height)


def random_maps(seed, streams=2, batch=1):
    """{"stage<m>_stream<k>": map [B, H, W]} in float64."""
    random = np.random.default_rng(seed)
    maps = {}
    for k in range(1, streams + 1):
        for m in range(1, STAGES + 1):
            a = np.exp(random.normal(size=(batch, 3, 4)))
            maps[f"stage{m}_stream{k}"] = a / a.sum(axis=(1, 2), keepdims=True)
    return maps


def logarithms(maps):
    return {key: torch.from_numpy(np.log(a)).float()[:, None] for key, a in maps.items()}


def random_batch(seed, share=0.3):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(2, 2, 4, 5))
    target = (random.random((2, 1, 4, 5)) < share).astype(np.float64)
    return logits, target


def tensors(*arrays):
    return [torch.from_numpy(a).float() for a in arrays]


def foreground(logits):
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def numpy_dice(logits, target, sigma=1.0):
    """Eq. 10 of one mask: 1 - (2 |X n Y| + sigma) / (|X| + |Y| + sigma)."""
    x, y = foreground(logits), target[:, 0]
    return 1 - (2 * (x * y).sum() + sigma) / (x.sum() + y.sum() + sigma)


def numpy_cross_entropy(logits, target, weight=0.95):
    """Eq. 11 pixel by pixel."""
    predicted, labels = foreground(logits).ravel(), target.ravel()
    total = 0.0
    for p, p_hat in zip(labels, predicted, strict=True):
        total += -weight * p * np.log(p_hat) - (1 - weight) * (1 - p) * np.log(1 - p_hat)
    return total / labels.size


def quarter_foreground(labels):
    """Pixels that all have p^ = 1/4, since e^0 / (e^ln(3) + e^0) = 1/4."""
    n = len(labels)
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1).repeat(1, 1, 1, n)
    return logits, torch.tensor(labels, dtype=torch.float32).reshape(1, 1, 1, n)


# Eq. 4.


def test_distillation_of_two_pixels_by_hand():
    # a = (1/4, 3/4), b = (1/2, 1/2).
    # KL(a|b) = 1/4 ln(1/2) + 3/4 ln(3/2) = -0.173287 + 0.304099 = 0.130812.
    # KL(b|a) = 1/2 ln 2 + 1/2 ln(2/3) = 0.346574 - 0.202733 = 0.143841.
    # (0.130812 + 0.143841) / (2 * 2 * 1) = 0.068663.
    loss = attention_distillation(pixels(QUARTER), pixels(HALF))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.068663, abs=1e-6)


def test_distillation_is_equation_4_and_the_mean_over_the_batch():
    a, b = (random_maps(seed, batch=2)["stage1_stream1"] for seed in (1, 2))
    expected = np.mean([numpy_distillation(a[n], b[n]) for n in range(2)])
    measured = attention_distillation(
        *(torch.from_numpy(np.log(m)).float()[:, None] for m in (a, b))
    )
    assert measured.item() == pytest.approx(expected, rel=1e-5)


def test_distillation_is_the_same_both_ways_and_0_for_equal_maps():
    maps = logarithms(random_maps(3))
    a, b = maps["stage1_stream1"], maps["stage2_stream2"]
    assert attention_distillation(a, b).item() == attention_distillation(b, a).item() > 0
    assert attention_distillation(a, a).item() == 0


def test_distillation_gradient_is_the_slope_of_equation_4_in_both_maps():
    random = np.random.default_rng(4)
    scores = random.normal(size=(2, 3, 4))

    def softmax(s):
        return np.exp(s) / np.exp(s).sum()

    given = torch.from_numpy(scores).float().requires_grad_()
    logs = torch.log_softmax(given.flatten(1), dim=1).reshape(2, 1, 1, 3, 4)
    attention_distillation(logs[0], logs[1]).backward()
    for index in [(0, 0, 0), (0, 2, 3), (1, 1, 2), (1, 2, 0)]:
        ends = []
        for step in (1e-5, -1e-5):
            moved = scores.copy()
            moved[index] += step
            ends.append(numpy_distillation(softmax(moved[0]), softmax(moved[1])))
        slope = (ends[0] - ends[1]) / 2e-5
        assert given.grad[index].item() == pytest.approx(slope, abs=1e-6)


def test_distillation_of_maps_that_are_0_in_fp32_is_finite_and_still_has_a_gradient():
    # exp(-300) is 0 in fp32. a is sure of the first pixel, b of the second:
    # (1 * 300 + 1 * 300) / 4 = 150.
    scores = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    logs = torch.log_softmax(scores, dim=1)
    assert logs[0, 1].exp().item() == 0
    loss = attention_distillation(logs[0].reshape(1, 1, 1, 2), logs[1].reshape(1, 1, 1, 2))
    assert loss.item() == pytest.approx(150)
    loss.backward()
    # Descent makes each less sure of its own pixel and more of the other's.
    assert (scores.grad.sign() == torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).all()


def test_distillation_under_bf16_autocast_is_as_exact_as_fp32():
    maps = random_maps(5)
    logs = logarithms(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(logs)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(logs), rtol=0, atol=0)


# Eq. 3 and the connection schemes.


def test_interlaced_connections_are_equation_3():
    maps = random_maps(6)
    expected = 0.0
    for m in range(1, STAGES):
        for k, other in ((1, 2), (2, 1)):
            expected += numpy_distillation(
                maps[f"stage{m}_stream{k}"][0], maps[f"stage{m + 1}_stream{other}"][0]
            )
    assert distillation_loss(logarithms(maps), "ilc").item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(logarithms(maps)).item() == pytest.approx(expected, rel=1e-5)


def test_position_connections_compare_equal_stages_of_both_streams():
    maps = random_maps(7)
    expected = 0.0
    for m in range(1, STAGES + 1):
        for k, other in ((1, 2), (2, 1)):
            expected += numpy_distillation(
                maps[f"stage{m}_stream{k}"][0], maps[f"stage{m}_stream{other}"][0]
            )
    assert distillation_loss(logarithms(maps), "plc").item() == pytest.approx(expected, rel=1e-5)


def test_no_connections_cost_nothing():
    assert distillation_loss(logarithms(random_maps(8)), "nlc").item() == 0


@pytest.mark.parametrize(("scheme", "expected"), [("ilc", 0.068663), ("plc", 0.137327)])
def test_schemes_of_two_stages_and_two_pixels_by_hand(scheme, expected):
    # L_AD(a, b) = 0.068663 (above). Stage 1: a and b; stage 2: b and b.
    # ILC: L(a, b) + L(b, b) = 0.068663. PLC: 2 L(a, b) + 2 L(b, b) = 0.137327.
    maps = {
        "stage1_stream1": pixels(QUARTER),
        "stage1_stream2": pixels(HALF),
        "stage2_stream1": pixels(HALF),
        "stage2_stream2": pixels(HALF),
    }
    assert distillation_loss(maps, scheme).item() == pytest.approx(expected, abs=1e-6)


def test_one_stream_is_both_modalities_of_equation_3():
    maps = random_maps(9, streams=1)
    expected = sum(
        numpy_distillation(maps[f"stage{m}_stream1"][0], maps[f"stage{m + 1}_stream1"][0])
        for m in range(1, STAGES)
    )
    assert distillation_loss(logarithms(maps)).item() == pytest.approx(2 * expected, rel=1e-5)


def test_other_attention_is_not_looked_at():
    maps = logarithms(random_maps(10))
    with_more = {"correlation_stream1": torch.full((1, 2, 2, 2, 2), math.nan), **maps}
    assert distillation_loss(with_more).item() == distillation_loss(maps).item()


@pytest.mark.parametrize("scheme", ["ilc", "plc"])
def test_distillation_reaches_every_map_of_both_streams(scheme):
    maps = {key: a.requires_grad_() for key, a in logarithms(random_maps(11)).items()}
    distillation_loss(maps, scheme).backward()
    assert [key for key, a in maps.items() if a.grad is None or not a.grad.any()] == []


def test_a_scheme_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="scheme is 'all', not one of"):
        distillation_loss(logarithms(random_maps(12)), "all")
    with pytest.raises(ValueError, match="'plc' compares two streams"):
        distillation_loss(logarithms(random_maps(12, streams=1)), "plc")
    with pytest.raises(ValueError, match="ask the network for log_maps=True"):
        distillation_loss({})


# Eq. 11.


def test_cross_entropy_of_two_pixels_by_hand():
    # p^ = 1/4 at a cancer and at another pixel: (0.95 * 1.386294 + 0.05 * 0.287682) / 2
    # = (1.316980 + 0.014384) / 2 = 0.665682.
    loss = WeightedBinaryCrossEntropy()(*quarter_foreground([1, 0]))
    assert loss.item() == pytest.approx(0.665682, abs=1e-6)


@pytest.mark.parametrize("weight", [0.95, 0.3])
def test_cross_entropy_is_equation_11(weight):
    logits, target = random_batch(13)
    measured = WeightedBinaryCrossEntropy(weight)(*tensors(logits, target))
    assert measured.item() == pytest.approx(numpy_cross_entropy(logits, target, weight), rel=1e-5)


def test_cross_entropy_of_a_sure_wrong_answer_is_finite():
    # 200 too high at a background pixel: 0.05 * 200 = 10.
    logits = torch.tensor([0.0, 200.0]).reshape(1, 2, 1, 1)
    loss = WeightedBinaryCrossEntropy()(logits, torch.zeros(1, 1, 1, 1))
    assert loss.item() == pytest.approx(10)


@pytest.mark.parametrize("weight", [-0.1, 1.5, math.nan])
def test_a_foreground_weight_outside_of_0_to_1_is_refused(weight):
    with pytest.raises(ValueError, match=f"foreground_weight is {weight}"):
        WeightedBinaryCrossEntropy(weight)


# Eq. 8 to 10.


def test_segmentation_loss_of_two_pixels_by_hand():
    # Dice: |X| = 1/2, |Y| = 1, |X n Y| = 1/4: 1 - (0.5 + 1) / (1.5 + 1) = 0.4.
    # Eq. 9: 0.4 + 0.1 * 0.665682 = 0.466568.
    loss = CSADLoss("nlc")(*quarter_foreground([1, 0]))
    assert loss.item() == pytest.approx(0.466568, abs=1e-6)


def test_total_loss_of_two_pixels_by_hand():
    # Eq. 8: 0.466568 + 1 * 0.068663 = 0.535231; with alpha = 2 it is 0.603895.
    maps = {
        "stage1_stream1": pixels(QUARTER), "stage1_stream2": pixels(HALF),
        "stage2_stream1": pixels(HALF), "stage2_stream2": pixels(HALF),
    }  # fmt: skip
    batch = quarter_foreground([1, 0])
    assert CSADLoss()(*batch, maps).item() == pytest.approx(0.535231, abs=1e-6)
    assert CSADLoss(alpha=2)(*batch, maps).item() == pytest.approx(0.603895, abs=1e-6)


def test_total_loss_is_equations_8_to_11_with_any_weights():
    logits, target = random_batch(14)
    maps = random_maps(15, batch=2)
    alpha, beta, sigma, weight = 3.0, 0.7, 2.0, 0.6
    dice = np.mean([numpy_dice(logits[n : n + 1], target[n : n + 1], sigma) for n in range(2)])
    distillation = 0.0
    for m in range(1, STAGES):
        for k, other in ((1, 2), (2, 1)):
            a, b = maps[f"stage{m}_stream{k}"], maps[f"stage{m + 1}_stream{other}"]
            distillation += np.mean([numpy_distillation(a[n], b[n]) for n in range(2)])
    expected = dice + beta * numpy_cross_entropy(logits, target, weight) + alpha * distillation
    loss = CSADLoss(alpha=alpha, beta=beta, sigma=sigma, foreground_weight=weight)
    measured = loss(*tensors(logits, target), logarithms(maps))
    assert measured.item() == pytest.approx(expected, rel=1e-5)


def test_defaults_are_the_papers_weights():
    logits, target = random_batch(16)
    dice = np.mean([numpy_dice(logits[n : n + 1], target[n : n + 1], 1) for n in range(2)])
    expected = dice + 0.1 * numpy_cross_entropy(logits, target, 0.95)
    measured = CSADLoss("nlc")(*tensors(logits, target))
    assert measured.item() == pytest.approx(expected, rel=1e-5)
    assert CSADLoss().scheme == "ilc"
    assert CSADLoss().alpha == 1


def test_dice_is_each_slices_own_or_pooled_over_the_batch_when_asked():
    logits, target = random_batch(17)
    target[1] = 0
    each = np.mean([numpy_dice(logits[n : n + 1], target[n : n + 1]) for n in range(2)])
    pooled = numpy_dice(logits, target)
    assert abs(each - pooled) > 0.005
    for batch_dice, expected in ((False, each), (True, pooled)):
        loss = CSADLoss("nlc", beta=0, batch_dice=batch_dice)(*tensors(logits, target))
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_slice_without_cancer_has_a_finite_loss_that_asks_for_less_of_it():
    logits, target = tensors(*random_batch(18, share=0))
    assert not target.any()
    logits.requires_grad_()
    loss = CSADLoss("nlc")(logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert (logits.grad[:, 1] > 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_the_type_of_the_target_does_not_matter(dtype):
    logits, target = tensors(*random_batch(19))
    expected = CSADLoss("nlc")(logits, target)
    torch.testing.assert_close(CSADLoss("nlc")(logits, target.to(dtype)), expected)


def test_half_precision_logits_are_weighed_in_fp32():
    logits, target = tensors(*random_batch(20))
    rounded = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CSADLoss("nlc")(rounded, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, CSADLoss("nlc")(rounded.float(), target))


def test_a_loss_without_the_maps_that_it_needs_is_refused():
    logits, target = tensors(*random_batch(21))
    with pytest.raises(ValueError, match="ask the network for log_maps=True"):
        CSADLoss()(logits, target)


def test_each_of_several_classes_is_weighed_against_all_others():
    random = np.random.default_rng(22)
    logits = torch.from_numpy(random.normal(size=(2, 4, 5, 6)).astype(np.float32))
    target = torch.from_numpy(random.integers(0, 4, (2, 1, 5, 6)).astype(np.float32))
    probability = torch.softmax(logits, dim=1)
    expected = 0.0
    for n in (1, 2, 3):
        p, y = probability[:, n], (target[:, 0] == n).float()
        dice = 1 - (2 * (p * y).sum((1, 2)) + 1) / (p.sum((1, 2)) + y.sum((1, 2)) + 1)
        entropy = -0.95 * y * p.log() - 0.05 * (1 - y) * (1 - p).log()
        expected += (dice.mean() + 0.1 * entropy.mean()) / 3
    torch.testing.assert_close(CSADLoss("nlc")(logits, target), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheme": "all"}, "scheme is 'all', not one of"),
        ({"alpha": -1}, "alpha is -1 but has to be 0 or more"),
        ({"beta": math.nan}, "beta is nan but has to be 0 or more"),
        ({"sigma": -0.5}, "sigma is -0.5 but has to be 0 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        CSADLoss(**settings)
