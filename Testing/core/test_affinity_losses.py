"""The losses of affinity distillation against eq. 1-8, written anew in NumPy, loop by loop."""

import itertools
import math

import numpy as np
import pytest
import torch

from medsegcore.losses.affinity import (
    AffinityDistillationLoss,
    AffinityLossConfig,
    SegmentationLoss,
    affinity_loss,
    gram_matrix,
    kernel_loss,
    logits_loss,
    neighbour_offsets,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Logits whose softmax is (3/4, 1/4), (1/2, 1/2) and (1/4, 3/4).
P, Q, R = (math.log(3), 0.0), (0.0, 0.0), (0.0, math.log(3))
# KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2, and the other way 1/2 ln 2/3 + 1/2 ln 2.
P_TO_Q, Q_TO_P = 0.1308120, 0.1438410


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def numpy_affinity(logits, labels, sides, margin):
    """Eq. 1-4: every pixel i of every image with every neighbour j of its window, one by one."""
    p = softmax(logits)
    equal, unequal = [], []
    windows = [range(-(n // 2), n // 2 + 1) for n in sides]
    for b in range(p.shape[0]):
        for i in np.ndindex(p.shape[2:]):
            for step in itertools.product(*windows):
                j = tuple(a + s for a, s in zip(i, step, strict=True))
                inside = all(0 <= a < n for a, n in zip(j, p.shape[2:], strict=True))
                if j == i or not inside:
                    continue
                w = divergence(p[(b, slice(None), *i)], p[(b, slice(None), *j)])
                if labels[(b, 0, *i)] == labels[(b, 0, *j)]:
                    equal.append(w)
                else:
                    unequal.append(max(0.0, margin - w))
    return sum(np.mean(terms) for terms in (equal, unequal) if terms)


def numpy_kernel(student, teacher, unit=False):
    """Eq. 5 and 6, entry by entry of the Gram matrices."""
    n = student.shape[0]

    def entry(features, i, j):
        a, b = features[i].ravel(), features[j].ravel()
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt((a**2).sum() * (b**2).sum()) if unit else product

    squares = norm = 0.0
    for i in range(n):
        for j in range(n):
            difference = entry(student, i, j) - entry(teacher, i, j)
            squares += difference**2
            norm += abs(difference)
    return squares / n + norm


def numpy_logits(student, teacher):
    """Eq. 7, pixel by pixel."""
    s, t = softmax(student), softmax(teacher)
    terms = [
        divergence(s[(b, slice(None), *i)], t[(b, slice(None), *i)])
        for b in range(s.shape[0])
        for i in np.ndindex(s.shape[2:])
    ]
    return np.mean(terms)


def numpy_dice(logits, target):
    """1 - Dice of the foreground, over all pixels of the batch."""
    p, t = softmax(logits)[:, 1], (target[:, 0] == 1).astype(np.float64)
    return 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)


def numpy_focal(logits, target):
    """-(1 - p)^2 log p of the right class, over all pixels and classes."""
    p = softmax(logits)
    right = np.take_along_axis(p, target.astype(int), axis=1)
    return (-((1 - right) ** 2) * np.log(right)).sum() / p.size


def tensor(array):
    return torch.from_numpy(np.asarray(array)).float()


def row(*pixels):
    """Logits [1, 2, 1, n] of an image of one row."""
    return torch.tensor(pixels, dtype=torch.float32).T[None, :, None]


def labels(*numbers):
    return torch.tensor(numbers).reshape(1, 1, 1, -1)


# AAM.


@pytest.mark.parametrize(
    ("space", "neighbourhood", "sides"),
    [
        ((4, 5), 3, (3, 3)),
        ((4, 5), 5, (5, 5)),
        ((5, 4), (1, 3), (1, 3)),
        ((3, 4, 3), 3, (3, 3, 3)),
        ((3, 4, 3), (1, 3, 3), (1, 3, 3)),
    ],
)
@pytest.mark.parametrize("margin", [0.1, 3.0])
def test_affinity_is_equation_1_to_4_in_2d_and_3d(space, neighbourhood, sides, margin):
    random = np.random.default_rng(1)
    logits = 2 * random.normal(size=(2, 3, *space))
    teacher = random.integers(0, 3, size=(2, 1, *space))
    found = affinity_loss(tensor(logits), torch.from_numpy(teacher), neighbourhood, margin)
    expected = numpy_affinity(logits, teacher, sides, margin)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_affinity_of_two_pixels_by_hand():
    # KL((3/4, 1/4) || (1/4, 3/4)) = 3/4 ln 3 - 1/4 ln 3 = 1/2 ln 3 = 0.549306, both ways.
    logits = row(P, R)
    assert affinity_loss(logits, labels(0, 0)).item() == pytest.approx(0.549306, abs=1e-5)
    # Unequal labels: max(0, m - W) is 3 - 0.549306, and nothing where m is less than W.
    assert affinity_loss(logits, labels(0, 1)).item() == pytest.approx(2.450694, abs=1e-5)
    assert affinity_loss(logits, labels(0, 1), margin=0.5).item() == 0


def test_affinity_takes_both_directions_of_a_pair():
    found = affinity_loss(row(P, Q), labels(1, 1)).item()
    assert found == pytest.approx((P_TO_Q + Q_TO_P) / 2, abs=1e-6)
    assert found == pytest.approx(0.1373265, abs=1e-6)


def test_affinity_of_three_pixels_by_hand():
    # Pixels (p, q, q), labels (0, 0, 1). P+ is the first pair, mean 0.1373265. P- is the second
    # pair, whose W is 0: the loss is m = 3. Together 3.1373265.
    logits, teacher = row(P, Q, Q), labels(0, 0, 1)
    assert affinity_loss(logits, teacher).item() == pytest.approx(3.1373265, abs=1e-5)
    # In a window of 5 the outer two are unequal neighbours too: P- is
    # (3 + 3 + (3 - 0.1308120) + (3 - 0.1438410)) / 4 = 2.9313368. Together 3.0686633.
    assert affinity_loss(logits, teacher, 5).item() == pytest.approx(3.0686633, abs=1e-5)


def test_affinity_pools_the_pairs_of_the_whole_batch():
    # Image 1: p q, equal; image 2: q q, equal. Four ordered pairs, two of them with W = 0.
    logits = torch.cat([row(P, Q), row(Q, Q)])
    teacher = torch.cat([labels(0, 0), labels(1, 1)])
    found = affinity_loss(logits, teacher).item()
    assert found == pytest.approx((P_TO_Q + Q_TO_P) / 4, abs=1e-6)
    # With unequal labels in image 2 the sets are those of the batch: 0.1373265 + 3.
    teacher = torch.cat([labels(0, 0), labels(0, 1)])
    assert affinity_loss(logits, teacher).item() == pytest.approx(3.1373265, abs=1e-5)


@pytest.mark.parametrize(("neighbourhood", "axes", "pairs"), [(3, 2, 4), (3, 3, 13), (5, 2, 12)])
def test_each_unordered_pair_of_neighbours_comes_once(neighbourhood, axes, pairs):
    offsets = neighbour_offsets(neighbourhood, axes)
    opposite = [tuple(-step for step in offset) for offset in offsets]
    assert len(offsets) == pairs
    assert len({*offsets, *opposite}) == 2 * pairs == neighbourhood**axes - 1


def test_a_window_larger_than_the_image_finds_the_pairs_that_there_are():
    logits = tensor(np.random.default_rng(2).normal(size=(1, 2, 2, 2)))
    teacher = torch.tensor([0, 1, 1, 0]).reshape(1, 1, 2, 2)
    wide, narrow = (affinity_loss(logits, teacher, n).item() for n in (7, 3))
    assert wide == pytest.approx(narrow)
    assert affinity_loss(logits[..., :1, :1], teacher[..., :1, :1]).item() == 0


def test_affinity_pulls_equal_neighbours_together_and_pushes_unequal_ones_apart():
    def distance_after(teacher):
        logits = row((0.5, 0.0), (0.0, 0.5)).requires_grad_()
        for _ in range(20):
            (gradient,) = torch.autograd.grad(affinity_loss(logits, teacher), logits)
            with torch.no_grad():
                logits -= 0.5 * gradient
        p = torch.softmax(logits.detach(), dim=1)[0, 0, 0]
        return abs(p[0] - p[1]).item()

    start = abs(2 / (1 + math.exp(-0.5)) - 1)
    assert distance_after(labels(1, 1)) < 0.5 * start
    assert distance_after(labels(0, 1)) > 1.5 * start


# KMM.


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("form", ["printed", "unit"])
def test_kernel_loss_is_equation_5_and_6_in_2d_and_3d(space, form):
    random = np.random.default_rng(3)
    student, teacher = random.normal(size=(2, 3, 4, *space))
    found = kernel_loss(tensor(student), tensor(teacher), form).item()
    assert found == pytest.approx(numpy_kernel(student, teacher, form == "unit"), rel=1e-4)


def test_kernel_loss_of_two_samples_by_hand():
    # Student (1, 0) and (1, 1): K_S = [[1, 1], [1, 2]]. Teacher (1, 1) and (0, 1):
    # K_T = [[2, 1], [1, 1]]. The difference [[-1, 0], [0, 1]] has squares 2, over n 1, norm 2.
    student = torch.tensor([[1.0, 0], [1, 1]]).reshape(2, 2, 1, 1)
    teacher = torch.tensor([[1.0, 1], [0, 1]]).reshape(2, 2, 1, 1)
    assert gram_matrix(student).tolist() == [[1, 1], [1, 2]]
    assert gram_matrix(teacher).tolist() == [[2, 1], [1, 1]]
    assert kernel_loss(student, teacher).item() == 3
    # Of length 1, both have [[1, 0.7071068], [0.7071068, 1]]: nothing is left.
    assert kernel_loss(student, teacher, "unit").item() == pytest.approx(0, abs=1e-6)
    # Against (1, 0) and (0, 1) it is 2 * 0.5 / 2 + 2 * 0.7071068 = 1.9142136.
    apart = torch.eye(2).reshape(2, 2, 1, 1)
    assert kernel_loss(student, apart, "unit").item() == pytest.approx(1.9142136, abs=1e-6)


def test_gram_matrix_is_n_by_n_over_the_samples():
    assert gram_matrix(torch.randn(5, 3, 7, 2)).shape == (5, 5)
    # One sample of 2 channels and 1x3 positions, all 2: <f, f> = 6 * 4.
    assert gram_matrix(torch.full((1, 2, 1, 3), 2.0)).tolist() == [[24]]


# LM.


@pytest.mark.parametrize("space", [(4, 5), (2, 3, 4)])
def test_logits_loss_is_equation_7_in_2d_and_3d(space):
    student, teacher = np.random.default_rng(4).normal(size=(2, 2, 3, *space))
    found = logits_loss(tensor(student), tensor(teacher)).item()
    assert found == pytest.approx(numpy_logits(student, teacher), rel=1e-5)


def test_logits_loss_is_student_against_teacher_and_a_mean_over_pixels_by_hand():
    assert logits_loss(row(P), row(Q)).item() == pytest.approx(P_TO_Q, abs=1e-6)
    assert logits_loss(row(Q), row(P)).item() == pytest.approx(Q_TO_P, abs=1e-6)
    # Two pixels, the second one equal in both networks.
    assert logits_loss(row(P, R), row(Q, R)).item() == pytest.approx(0.0654060, abs=1e-6)


# The sum.


def batch(space=(4, 5), classes=2, seed=5):
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, 3, classes, *space))
    features = random.normal(size=(2, 3, 4, *space)) / 4
    target = random.integers(0, 2, size=(3, 1, *space))
    return student, teacher, features, target


def total_of(loss, student, teacher, features, target):
    pairs = [(tensor(features[0]), tensor(features[1]))]
    return loss(tensor(student), tensor(teacher), pairs, tensor(target))


@pytest.mark.parametrize(
    ("term", "reference"),
    [
        ("dice", numpy_dice),
        ("focal", numpy_focal),
        ("dice+focal", lambda x, t: (numpy_dice(x, t) + numpy_focal(x, t)) / 2),
    ],
)
def test_segmentation_loss_is_dice_or_focal_or_their_mean(term, reference):
    student, _, _, target = batch()
    found = SegmentationLoss(term)(tensor(student), tensor(target)).item()
    assert found == pytest.approx(reference(student, target), rel=1e-4)


@pytest.mark.parametrize("space", [(4, 5), (2, 3, 4)])
def test_total_is_equation_8_with_the_papers_weights(space):
    student, teacher, features, target = batch(space)
    losses = total_of(AffinityDistillationLoss(), student, teacher, features, target)
    teacher_labels = teacher.argmax(axis=1)[:, None]
    parts = {
        "segmentation": numpy_dice(student, target),
        "logits": numpy_logits(student, teacher),
        "kernel": numpy_kernel(features[0], features[1]),
        "affinity": numpy_affinity(student, teacher_labels, (3,) * len(space), 3.0),
    }
    for name, expected in parts.items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-4), name
    expected = (
        parts["segmentation"]
        + 0.2 * parts["logits"]
        + 0.9 * parts["kernel"]
        + 0.9 * parts["affinity"]
    )
    assert losses["total"].item() == pytest.approx(expected, rel=1e-4)


TERMS = ["logits", "kernel", "affinity"]


@pytest.mark.parametrize(
    "kept", [c for n in range(4) for c in itertools.combinations(TERMS, n)], ids="+".join
)
def test_a_term_of_weight_0_is_neither_computed_nor_added(kept):
    # The eight rows of table 4.
    student, teacher, features, target = batch()
    config = AffinityLossConfig(**{f"{t}_weight": 0.0 for t in TERMS if t not in kept})
    losses = total_of(AffinityDistillationLoss(config), student, teacher, features, target)
    assert set(losses) == {"total", "segmentation", *kept}
    weights = {"logits": 0.2, "kernel": 0.9, "affinity": 0.9}
    expected = losses["segmentation"] + sum(weights[t] * losses[t] for t in kept)
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    # All three on, the total is another one: the terms that are off do count elsewhere.
    whole = total_of(AffinityDistillationLoss(), student, teacher, features, target)["total"]
    assert (len(kept) == 3) == (whole.item() == pytest.approx(losses["total"].item()))


def test_several_pairs_of_features_add_up():
    student, teacher, features, target = batch()
    pair = (tensor(features[0]), tensor(features[1]))
    other = (tensor(features[0][:, :2]), tensor(features[1][:, :2]))
    found = AffinityDistillationLoss()(
        tensor(student), tensor(teacher), [pair, other], tensor(target)
    )["kernel"].item()
    expected = numpy_kernel(*features) + numpy_kernel(features[0][:, :2], features[1][:, :2])
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("term", ["segmentation", *TERMS])
def test_every_term_sends_gradients_to_the_student(term):
    student, teacher, features, target = batch()
    logits, adapted = tensor(student).requires_grad_(), tensor(features[0]).requires_grad_()
    losses = AffinityDistillationLoss()(
        logits, tensor(teacher), [(adapted, tensor(features[1]))], tensor(target)
    )
    gradients = torch.autograd.grad(losses[term], [logits, adapted], allow_unused=True)
    reached = [g is not None and g.abs().max().item() > 0 for g in gradients]
    assert reached == [term != "kernel", term == "kernel"]


def test_halves_under_autocast_are_computed_in_fp32():
    student, teacher, features, target = batch()
    halves = [tensor(a).bfloat16() for a in (student, teacher, features[0], features[1])]
    loss = AffinityDistillationLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(halves[0], halves[1], [(halves[2], halves[3])], tensor(target))
    s, t, f, g = (a.float().numpy().astype(np.float64) for a in halves)
    assert all(value.dtype == torch.float32 for value in found.values())
    # bf16 has 8 bits: what is computed in it is wrong by more than 1e-3.
    assert found["logits"].item() == pytest.approx(numpy_logits(s, t), rel=1e-4)
    assert found["kernel"].item() == pytest.approx(numpy_kernel(f, g), rel=1e-4)
    affinity = numpy_affinity(s, t.argmax(axis=1)[:, None], (3, 3), 3.0)
    assert found["affinity"].item() == pytest.approx(affinity, rel=1e-4)


def test_logits_that_are_certain_stay_finite():
    certain = row((200.0, -200.0), (-200.0, 200.0)).requires_grad_()
    losses = [affinity_loss(certain, labels(0, 0)), logits_loss(certain, -certain.detach())]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, certain)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


# What is refused.


def test_shapes_that_do_not_fit_are_plain_errors():
    logits = torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match="at least two classes"):
        affinity_loss(logits[:, :1], torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"labels \(1, 1, 2, 2\) do not fit"):
        affinity_loss(logits, torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"\(1, 3, 3\) does not fit images of 2 axes"):
        affinity_loss(logits, torch.zeros(1, 1, 4, 4), (1, 3, 3))
    with pytest.raises(ValueError, match="do not fit the teacher's"):
        logits_loss(logits, logits[:, :, :2])
    with pytest.raises(ValueError, match="do not fit the teacher's"):
        kernel_loss(logits, logits[:, :1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logits_weight", -0.1),
        ("kernel_weight", "0.9"),
        ("affinity_weight", None),
        ("margin", float("nan")),
        ("margin", float("inf")),
        ("neighbourhood", 2),
        ("neighbourhood", 1),
        ("neighbourhood", ()),
        ("neighbourhood", (1, 1)),
        ("neighbourhood", (3, "3")),
        ("neighbourhood", 3.0),
        ("kernel_form", "cosine"),
        ("segmentation", "ce"),
    ],
)
def test_a_setting_that_makes_no_sense_is_an_error_that_names_it(field, value):
    with pytest.raises(ValueError, match=field):
        AffinityLossConfig(**{field: value})


def test_defaults_are_the_papers_weights():
    config = AffinityLossConfig()
    weights = (config.logits_weight, config.kernel_weight, config.affinity_weight)
    assert weights == (0.2, 0.9, 0.9)
