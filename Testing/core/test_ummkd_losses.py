"""UMMKD's losses against eq. 2-5, written anew in NumPy, and by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from medsegcore.losses.ummkd import (
    SegmentationLoss,
    UMMKDLoss,
    distillation_loss,
    distilled_knowledge,
    squared_norms,
    weight_of,
)
from medsegcore.networks import create_network

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4


def batch(seed, size=(2, 5, 6), classes=range(CLASSES)):
    """Random logits [B, C, ...] and class numbers [B, 1, ...] out of `classes`."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(size[0], CLASSES, *size[1:]))
    target = random.choice(list(classes), size=(size[0], 1, *size[1:]))
    return logits, target


def tensors(logits, target):
    return torch.from_numpy(logits).float(), torch.from_numpy(target)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def numpy_knowledge(logits, target, temperature=2.0):
    """Eq. 2 and 3 voxel by voxel; the row of a class without voxels is None."""
    rows = []
    for c in range(CLASSES):
        z, count = np.zeros(CLASSES), 0
        for place in np.ndindex(target[:, 0].shape):
            n, inner = place[0], place[1:]
            if target[(n, 0, *inner)] == c:
                count += 1
                for i in range(CLASSES):
                    z[i] += logits[(n, i, *inner)]
        rows.append(softmax(z / count / temperature) if count else None)
    return rows


def numpy_kl(p, q):
    return sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))


def numpy_distillation(a, b):
    """Eq. 4 over the classes that both have."""
    rows = [
        numpy_kl(p, q) + numpy_kl(q, p)
        for p, q in zip(a, b, strict=True)
        if p is not None and q is not None
    ]
    return sum(rows) / len(rows) if rows else 0.0


def measured(first, second, as_released=False):
    return distillation_loss(
        *(distilled_knowledge(*tensors(*d), as_released=as_released) for d in (first, second)),
        as_released=as_released,
    ).item()


# Eq. 2 and 3.


@pytest.mark.parametrize("size", [(2, 5, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_knowledge_is_the_softened_mean_of_the_logits_of_each_class(size, temperature):
    logits, target = batch(1, size)
    found = distilled_knowledge(*tensors(logits, target), temperature)
    expected = np.stack(numpy_knowledge(logits, target, temperature))
    np.testing.assert_allclose(found.q.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.log_q.numpy(), np.log(expected), atol=1e-5)
    assert found.present.tolist() == [True] * CLASSES


def two_pixels(first, second):
    """Two classes, two pixels: the first of class 0, the second of class 1."""
    logits = torch.tensor([first, second]).T.reshape(1, 2, 1, 2).float()
    return logits, torch.tensor([0, 1]).reshape(1, 1, 1, 2)


SURE = 2 * math.log(3)  # over T = 2 it leaves ln 3, odds of 3 to 1


def test_knowledge_of_two_pixels_and_two_classes_by_hand():
    found = distilled_knowledge(*two_pixels((SURE, 0), (0, 0)))
    torch.testing.assert_close(found.q, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    # T = 1 leaves 2 ln 3, odds of 9 to 1.
    found = distilled_knowledge(*two_pixels((SURE, 0), (0, 0)), temperature=1)
    torch.testing.assert_close(found.q, torch.tensor([[0.9, 0.1], [0.5, 0.5]]))


def test_knowledge_pools_the_voxels_of_the_batch_and_not_the_images_means():
    # Class 0: one pixel of image 0 with 4 ln 3, three of image 1 with 0: the mean is ln 3, over
    # T = 2 odds of sqrt(3) to 1. The mean of the images' means would be 2 ln 3, odds of 3 to 1.
    logits = torch.zeros(2, 2, 1, 3)
    logits[0, 0, 0, 0] = 4 * math.log(3)
    target = torch.tensor([[0, 1, 1], [0, 0, 0]]).reshape(2, 1, 1, 3)
    q = distilled_knowledge(logits, target).q
    share = math.sqrt(3) / (math.sqrt(3) + 1)
    torch.testing.assert_close(q[0], torch.tensor([share, 1 - share]))


def test_the_row_of_an_absent_class_is_uniform_and_marked():
    found = distilled_knowledge(*tensors(*batch(2, classes=(0, 1, 3))))
    assert found.present.tolist() == [True, True, False, True]
    torch.testing.assert_close(found.q[2], torch.full((CLASSES,), 0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_knowledge_of_half_precision_logits_is_summed_in_fp32(dtype):
    # The sum over 10,000 pixels of 100 is 10^6; the largest fp16 number is 65,504, and bf16
    # stops counting at 2^8 of its steps.
    logits = torch.zeros(1, 2, 100, 100, dtype=dtype)
    logits[:, 0] = 100
    target = torch.zeros(1, 1, 100, 100, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distilled_knowledge(logits, target, temperature=100)
    assert found.log_q.dtype == torch.float32
    # Odds of e to 1: 0.731059.
    assert found.q[0, 0].item() == pytest.approx(0.731059, abs=1e-5)


# Eq. 4.


@pytest.mark.parametrize("seed", [3, 5])
def test_distillation_is_the_mean_of_both_divergences(seed):
    a, b = batch(seed), batch(seed + 1, (3, 4, 4))
    expected = numpy_distillation(numpy_knowledge(*a), numpy_knowledge(*b))
    assert expected > 0.01
    assert measured(a, b) == pytest.approx(expected, abs=1e-6)
    assert measured(b, a) == pytest.approx(expected, abs=1e-6)
    assert measured(a, b, as_released=True) == pytest.approx(expected, abs=1e-5)


def test_distillation_of_two_classes_by_hand():
    # Rows (3/4, 1/4) and (1/2, 1/2) of class 0: D(a||b) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812,
    # D(b||a) = 1/2 ln(2/3) + 1/2 ln 2 = 0.143841, sum 0.274653. The rows of class 1 are equal.
    # Mean over two classes: 0.137327.
    a = distilled_knowledge(*two_pixels((SURE, 0), (0, 0)))
    b = distilled_knowledge(*two_pixels((0, 0), (0, 0)))
    assert distillation_loss(a, b).item() == pytest.approx(0.137327, abs=1e-6)


def test_equal_knowledge_costs_nothing():
    a = distilled_knowledge(*tensors(*batch(7)))
    assert distillation_loss(a, a).item() == pytest.approx(0, abs=1e-7)


def test_a_class_that_one_modality_lacks_is_left_out():
    a, b = batch(8, classes=(0, 1, 3)), batch(9, classes=(0, 2, 3))
    rows = zip(numpy_knowledge(*a), numpy_knowledge(*b), strict=True)
    p0, q0, _, _, _, _, p3, q3 = (row for pair in rows for row in pair)
    expected = (numpy_kl(p0, q0) + numpy_kl(q0, p0) + numpy_kl(p3, q3) + numpy_kl(q3, p3)) / 2
    assert measured(a, b) == pytest.approx(expected, abs=1e-6)


def test_as_released_counts_an_absent_class_as_a_uniform_row():
    a, b = batch(8, classes=(0, 1, 3)), batch(9, classes=(0, 2, 3))
    uniform = np.full(CLASSES, 0.25)
    p, q = ([uniform if row is None else row for row in numpy_knowledge(*data)] for data in (a, b))
    expected = sum(numpy_kl(x, y) + numpy_kl(y, x) for x, y in zip(p, q, strict=True)) / CLASSES
    assert measured(a, b, as_released=True) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - measured(a, b)) > 0.01


def test_an_absent_class_by_hand_with_and_without_the_switch():
    # The rows of class 0 are equal. a has no pixel of class 1: its row is (1/2, 1/2), b's is
    # (1/4, 3/4), which are 0.274653 apart (see above). Masked it is left out and the loss is 0,
    # as released it counts as one of two: 0.137327.
    a = torch.zeros(1, 2, 1, 2), torch.zeros(1, 1, 1, 2, dtype=torch.long)
    b = two_pixels((0, 0), (0, SURE))
    masked, released = (
        distillation_loss(
            distilled_knowledge(*a, as_released=switch),
            distilled_knowledge(*b, as_released=switch),
            as_released=switch,
        ).item()
        for switch in (False, True)
    )
    assert masked == pytest.approx(0, abs=1e-7)
    assert released == pytest.approx(0.137327, abs=1e-6)


def test_modalities_without_a_common_class_cost_nothing_and_have_a_finite_gradient():
    a, b = tensors(*batch(10, classes=(0, 1))), tensors(*batch(11, classes=(2, 3)))
    a[0].requires_grad_()
    loss = distillation_loss(distilled_knowledge(*a), distilled_knowledge(*b))
    loss.backward()
    assert loss.item() == 0
    assert not a[0].grad.any()


def test_distillation_moves_both_modalities_by_the_slope_of_eq_4():
    data = {"a": batch(12), "b": batch(13)}
    given = {key: tensors(*d) for key, d in data.items()}
    for logits, _ in given.values():
        logits.requires_grad_()
    distillation_loss(*(distilled_knowledge(*d) for d in given.values())).backward()
    step = 1e-5
    for key in data:
        assert (given[key][0].grad != 0).all()
        for index in [(0, 0, 0, 0), (1, 2, 3, 4), (1, 3, 4, 5)]:
            values = []
            for sign in (1, -1):
                moved = data[key][0].copy()
                moved[index] += sign * step
                q = {k: numpy_knowledge(moved if k == key else d[0], d[1]) for k, d in data.items()}
                values.append(numpy_distillation(q["a"], q["b"]))
            slope = (values[0] - values[1]) / (2 * step)
            assert given[key][0].grad[index].item() == pytest.approx(slope, abs=1e-6)


# The segmentation loss.


def numpy_segmentation(logits, target, floor=0.0):
    """1 - mean Dice over the classes, plus the cross-entropy weighted by 1 - share."""
    places = list(np.ndindex(target[:, 0].shape))
    overlap, squares, counts = np.zeros(CLASSES), np.zeros(CLASSES), np.zeros(CLASSES)
    labels = [target[(n, 0, *inner)] for n, *inner in places]
    for label in labels:
        counts[label] += 1
    entropy = 0.0
    for (n, *inner), label in zip(places, labels, strict=True):
        p = softmax(logits[(n, slice(None), *inner)])
        overlap[label] += p[label]
        squares += p**2
        entropy -= (1 - counts[label] / len(places)) * math.log(max(p[label], floor))
    dice = 2 * overlap / (squares + counts + 1e-7)
    return 1 - dice.mean() + entropy / len(places)


@pytest.mark.parametrize("size", [(2, 5, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("classes", [range(CLASSES), (0, 3)])
def test_segmentation_loss_is_dice_plus_weighted_cross_entropy(size, classes):
    logits, target = batch(14, size, classes)
    loss = SegmentationLoss()(*tensors(logits, target))
    assert loss.item() == pytest.approx(numpy_segmentation(logits, target), abs=1e-5)


def test_segmentation_loss_as_released_has_a_floor_of_one_in_200():
    logits, target = batch(15)
    logits *= 4
    floored = numpy_segmentation(logits, target, floor=0.005)
    assert abs(floored - numpy_segmentation(logits, target)) > 0.1
    loss = SegmentationLoss(as_released=True)(*tensors(logits, target))
    assert loss.item() == pytest.approx(floored, abs=1e-5)


def test_segmentation_loss_of_four_pixels_by_hand():
    # Every pixel has p = (3/4, 1/4); three pixels are of class 0, one is of class 1.
    # Shares 3/4 and 1/4, weights 1/4 and 3/4. Cross-entropy:
    # (3 * 1/4 * 0.287682 + 3/4 * 1.386294) / 4 = (0.215762 + 1.039721) / 4 = 0.313871.
    # Dice 0: 2 * 9/4 / (4 * 9/16 + 3) = 4.5 / 5.25 = 0.857143; 1: 2 * 1/4 / (4/16 + 1) = 0.4.
    # 1 - (0.857143 + 0.4) / 2 = 0.371429. Sum 0.685299.
    logits = torch.tensor([math.log(3), 0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    target = torch.tensor([[0, 0], [0, 1]]).reshape(1, 1, 2, 2)
    assert SegmentationLoss()(logits, target).item() == pytest.approx(0.685299, abs=2e-6)


def test_a_right_and_sure_answer_costs_nothing():
    _, target = tensors(*batch(16))
    sure = 40 * torch.nn.functional.one_hot(target[:, 0], CLASSES).movedim(-1, 1).float()
    assert SegmentationLoss()(sure, target).item() == pytest.approx(0, abs=1e-5)


# The squares of eq. 5.


def test_squares_are_those_of_kernels_and_norms_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ConvTranspose3d(1, 1, 1))
    with torch.no_grad():
        for parameter, values in zip(
            network.parameters(), ([1, 2], [9, 9], [3, 4], [5, 6], [7], [9]), strict=True
        ):
            parameter.copy_(torch.tensor(values).reshape(parameter.shape))
    # Kernels 1 + 4 + 49 = 54, gamma and beta 9 + 16 + 25 + 36 = 86; the biases are neither.
    assert squared_norms(network).item() == 140
    assert squared_norms(network, as_released=True).item() == 27


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group"])
@pytest.mark.parametrize("name", ["ummkd_2d", "ummkd_3d"])
def test_squares_are_of_every_parameter_but_the_classifiers_bias(name, norm):
    network = create_network(name, {"width": 4, "norm_groups": 2, "norm": norm, "sharing": "x"})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-1, 1)
    expected = sum(
        (p.detach().double().numpy() ** 2).sum()
        for n, p in network.named_parameters()
        if not (n.startswith("out.") and n.endswith("bias"))
    )
    assert squared_norms(network).item() == pytest.approx(expected, rel=1e-5)


# Eq. 5.


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_total_is_eq_5(temperature):
    a, b = batch(17), batch(18, (1, 6, 4))
    network = create_network("ummkd_3d", {"width": 2})
    squares = sum((p.detach().numpy() ** 2).sum() for p in network.parameters())
    squares -= sum((m.bias.detach().numpy() ** 2).sum() for m in network.out.copies)
    loss = UMMKDLoss(alpha=0.3, temperature=temperature, eta=1e-3)
    terms = loss(*tensors(*a), *tensors(*b), network)
    distillation = numpy_distillation(*(numpy_knowledge(*data, temperature) for data in (a, b)))
    parts = (numpy_segmentation(*a), numpy_segmentation(*b), distillation, squares)
    assert [t.item() for t in terms[1:5]] == pytest.approx(parts, rel=1e-4)
    expected = parts[0] + parts[1] + 0.3 / 2 * distillation + 1e-3 * squares
    assert terms.total.item() == pytest.approx(expected, rel=1e-5)


def test_total_of_two_pixels_by_hand():
    # b has p = (1/2, 1/2) twice: weights 1/2, cross-entropy 1/2 ln 2 = 0.346574; Dice
    # 2 * 1/2 / (1/2 + 1) = 2/3 for both classes: 1/3. Sum 0.679907.
    # a has p = (9/10, 1/10), (1/2, 1/2): (1/2 * 0.105361 + 1/2 * 0.693147) / 2 = 0.199627;
    # Dice 0: 1.8 / (0.81 + 0.25 + 1) = 0.873786; 1: 1 / (0.01 + 0.25 + 1) = 0.793651;
    # 1 - their mean = 0.166281. Sum 0.365908.
    # Distillation 0.137327 (see above), alpha/2 = 1/4: 0.034332. Total 1.080147.
    terms = UMMKDLoss()(*two_pixels((SURE, 0), (0, 0)), *two_pixels((0, 0), (0, 0)))
    assert terms.segmentation_a.item() == pytest.approx(0.365908, abs=2e-6)
    assert terms.segmentation_b.item() == pytest.approx(0.679907, abs=2e-6)
    assert terms.squares.item() == 0
    assert terms.total.item() == pytest.approx(1.080147, abs=3e-6)


def test_defaults_are_the_papers():
    loss = UMMKDLoss()
    assert (loss.alpha, loss.temperature, loss.eta, loss.as_released) == (0.5, 2.0, 1e-4, False)


def test_matrices_are_kept_for_plotting_without_gradient():
    a, b = batch(19), batch(20, classes=(0, 1, 2))
    given = tensors(*a)[0].requires_grad_()
    terms = UMMKDLoss()(given, torch.from_numpy(a[1]), *tensors(*b))
    assert terms.total.requires_grad
    for knowledge, data in ((terms.knowledge_a, a), (terms.knowledge_b, b)):
        assert not knowledge.q.requires_grad
        for row, expected in zip(knowledge.q.numpy(), numpy_knowledge(*data), strict=True):
            if expected is not None:
                np.testing.assert_allclose(row, expected, atol=1e-6)
    assert terms.knowledge_b.present.tolist() == [True, True, True, False]


def test_without_distillation_its_value_is_still_told_but_moves_nothing():
    a, b = tensors(*batch(21)), tensors(*batch(22))
    terms = UMMKDLoss(alpha=0)(*a, *b)
    assert terms.distillation > 0.01
    expected = terms.segmentation_a + terms.segmentation_b
    torch.testing.assert_close(terms.total, expected)


def test_the_total_carries_the_gradient_of_the_distillation_to_both_modalities():
    def gradients(descend):
        given = [tensors(*batch(seed)) for seed in (21, 22)]
        for logits, _ in given:
            logits.requires_grad_()
        descend(*given).backward()
        return [logits.grad for logits, _ in given]

    full = gradients(lambda a, b: UMMKDLoss(alpha=0.5)(*a, *b).total)
    without = gradients(lambda a, b: UMMKDLoss(alpha=0)(*a, *b).total)
    alone = gradients(
        lambda a, b: distillation_loss(distilled_knowledge(*a), distilled_knowledge(*b))
    )
    for modality in range(2):
        assert alone[modality].abs().max() > 1e-4
        torch.testing.assert_close(full[modality] - without[modality], alone[modality] / 4)


def test_each_setting_has_its_weight():
    names = ("individual", "joint", "joint+kd", "y", "x", "chilopod", "ours")
    assert [weight_of(name) for name in names] == [0, 0, 0.5, 0, 0, 0, 0.5]
    assert weight_of("ours", alpha=0.9) == 0.9


@pytest.mark.parametrize("name", ["ummkd_2d", "ummkd_3d"])
def test_distillation_alone_reaches_the_shared_kernels_and_both_modalities_norms(name):
    torch.manual_seed(23)
    network = create_network(name, {"width": 4, "dropout": 0.0})
    size = (16, 16) if name == "ummkd_2d" else (16, 16, 16)
    x = torch.randn(2, 2, network.config.in_channels, *size)
    target = torch.randint(0, 5, (2, 2, 1, *size))
    a, b = (distilled_knowledge(network(x[m], m), target[m]) for m in range(2))
    distillation_loss(a, b).backward()
    for key, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


def test_as_released_reaches_every_part_of_the_loss():
    a, b = batch(24, classes=(0, 1, 3)), batch(25)
    a[0][:] *= 4
    network = create_network("ummkd_2d", {"width": 2})
    terms = UMMKDLoss(as_released=True)(*tensors(*a), *tensors(*b), network)
    assert terms.segmentation_a.item() == pytest.approx(numpy_segmentation(*a, 0.005), abs=1e-5)
    uniform = np.full(CLASSES, 0.25)
    p = [uniform if row is None else row for row in numpy_knowledge(*a)]
    assert terms.distillation.item() == pytest.approx(
        numpy_distillation(p, numpy_knowledge(*b)), abs=1e-5
    )
    kernels = [p for n, p in network.named_parameters() if ".norm." not in n]
    halved = sum((p.detach().numpy() ** 2).sum() for p in kernels) / 2
    assert terms.squares.item() == pytest.approx(halved, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": -0.1}, "alpha is -0.1 but may not be below 0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"temperature": 0}, "temperature is 0 but has to be above 0"),
        ({"eta": -1}, "eta is -1 but may not be below 0"),
    ],
)
def test_a_weight_that_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        UMMKDLoss(**settings)
