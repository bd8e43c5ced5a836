"""The distillation of any teacher of ours into any student, 2D and 3D."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from medsegcore.losses.affinity import AffinityLossConfig
from medsegcore.networks import create_network
from medsegcore.training.distillation import Distillation, TapPair
from medsegcore.training.running import run_with_taps

pytestmark = pytest.mark.usefixtures("one_thread")

UNIT = AffinityLossConfig(kernel_form="unit")
SMALL = {
    "unetpp": {"width": 4},
    "deeplabv3plus": {"width": 4, "middle_blocks": 2},
    "enet": {"width": 8},
    "espnet": {"width": 4},
    "erfnet": {"width": 4},
}


def small(name, **config):
    return create_network(name, {**SMALL[name], **config})


def rsanet(width, **config):
    return create_network("rsanet", {"in_channels": 1, "width": width, "norm_groups": 4, **config})


def batch(*space, n=2):
    torch.manual_seed(1)
    return torch.randn(n, 1, *space), torch.randint(0, 2, (n, 1, *space))


def pair_2d(config=UNIT, **options):
    torch.manual_seed(0)
    return Distillation(
        small("unetpp"), small("enet"), torch.zeros(1, 1, 16, 16), config=config, **options
    )


@pytest.mark.parametrize("student", ["enet", "espnet", "erfnet"])
@pytest.mark.parametrize("teacher", ["unetpp", "deeplabv3plus"])
def test_every_pair_of_the_paper_distils_at_odd_sizes(teacher, student):
    torch.manual_seed(0)
    pairs = [TapPair("low", "low"), TapPair("high", "high")]
    both = Distillation(small(teacher), small(student), torch.zeros(1, 1, 16, 16), pairs, UNIT)
    x, target = batch(45, 38)
    logits, losses = both.train()(x, target)
    assert logits.shape == (2, 2, 45, 38)
    assert set(losses) == {"total", "segmentation", "logits", "kernel", "affinity"}
    assert all(torch.isfinite(value) and value.dim() == 0 for value in losses.values())
    for adapter, (theirs, ours) in zip(both.adapters, pairs, strict=True):
        assert isinstance(adapter, nn.Conv2d)
        assert adapter.kernel_size == (1, 1)
        assert adapter.in_channels == both.student.taps[ours][0]
        assert adapter.out_channels == both.teacher.taps[theirs][0]


def test_a_3d_teacher_and_student_without_taps_distil_by_submodules():
    torch.manual_seed(0)
    pairs = [TapPair("encoder.4", "encoder.4"), TapPair("blocks.bottom", "blocks.bottom")]
    both = Distillation(rsanet(16), rsanet(4), torch.zeros(1, 1, 16, 16, 16), pairs, UNIT).train()
    assert [(a.in_channels, a.out_channels) for a in both.adapters] == [(64, 256)] * 2
    assert all(isinstance(a, nn.Conv3d) for a in both.adapters)
    x, target = batch(16, 20, 17)
    logits, losses = both(x, target)
    losses["total"].backward()
    assert logits.shape == (2, 2, 16, 20, 17)
    assert all(torch.isfinite(value) for value in losses.values())
    # The three kernels of an RSA block learn only once its alphas have left 0.
    for name, parameter in [*both.student.named_parameters(), *both.adapters.named_parameters()]:
        if not name.startswith("blocks.") or "alpha" in name:
            assert parameter.grad.abs().max() > 0, name


def numpy_gram_unit(features):
    rows = features.reshape(len(features), -1).astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_the_terms_compare_what_the_two_networks_give_for_the_same_image():
    both = pair_2d().eval()
    x, target = batch(24, 32)
    with torch.no_grad():
        logits, losses = both(x, target)
        student_logits, learnt = both.student.forward_features(x)
        teacher_logits, taught = both.teacher.forward_features(x)
    torch.testing.assert_close(logits, student_logits, rtol=0, atol=0)
    p, q = (torch.softmax(t.double(), dim=1).numpy() for t in (student_logits, teacher_logits))
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    assert losses["logits"].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    adapter = both.adapters[0]
    weight, bias = adapter.weight.detach().numpy()[:, :, 0, 0], adapter.bias.detach().numpy()
    adapted = np.einsum("oc,bchw->bohw", weight, learnt["high"].numpy())
    adapted += bias[None, :, None, None]
    difference = numpy_gram_unit(adapted) - numpy_gram_unit(taught["high"].numpy())
    expected = (difference**2).sum() / 2 + np.abs(difference).sum()
    assert losses["kernel"].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_teacher_is_frozen_whatever_is_trained():
    both = pair_2d()
    before = copy.deepcopy(both.teacher.state_dict())
    both.train()
    assert both.student.training
    assert not any(module.training for module in both.teacher.modules())
    optimiser = torch.optim.Adam((p for p in both.parameters() if p.requires_grad), lr=0.1)
    x, target = batch(32, 32)
    for _ in range(2):
        optimiser.zero_grad()
        both(x, target)[1]["total"].backward()
        optimiser.step()
    assert all(p.grad is None and not p.requires_grad for p in both.teacher.parameters())
    for name, value in both.teacher.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_gradients_reach_every_parameter_of_the_student_and_of_the_adapters():
    both = pair_2d().train()
    x, target = batch(64, 64)
    both(x, target)[1]["total"].backward()
    trained = [*both.student.named_parameters(), *both.adapters.named_parameters()]
    without = [name for name, p in trained if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
    assert {name.split(".")[0] for name, p in both.named_parameters() if p.requires_grad} == {
        "student",
        "adapters",
    }


@pytest.mark.parametrize(
    "only", ["logits_weight", "kernel_weight", "affinity_weight"], ids=lambda name: name[:-7]
)
def test_each_term_by_itself_can_be_learned(only):
    weights = {"logits_weight": 0.0, "kernel_weight": 0.0, "affinity_weight": 0.0, only: 1.0}
    both = pair_2d(AffinityLossConfig(**weights, kernel_form="unit")).train()
    term = only.removesuffix("_weight")
    optimiser = torch.optim.Adam((p for p in both.parameters() if p.requires_grad), lr=1e-2)
    x, target = batch(32, 32)
    values = []
    for _ in range(30):
        loss = both(x, target)[1][term]
        values.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert min(values[-5:]) < 0.7 * values[0]


def test_features_of_another_size_are_resized_to_the_teachers():
    torch.manual_seed(0)
    pairs = [TapPair("low", "high"), TapPair("nodes.0_0", "stage2")]
    both = Distillation(
        small("unetpp"), small("enet"), torch.zeros(1, 1, 32, 16), pairs, UNIT
    ).eval()
    x, target = batch(32, 48)
    with torch.no_grad():
        _, losses = both(x, target)
        _, taught = run_with_taps(both.teacher, x, ["low", "nodes.0_0"])
        _, learnt = run_with_taps(both.student, x, ["high", "stage2"])
        assert taught["low"].shape == (2, 8, 16, 24)
        assert taught["nodes.0_0"].shape == (2, 4, 32, 48)
        assert learnt["high"].shape == learnt["stage2"].shape == (2, 64, 4, 6)
        aligned = both._align(both.adapters[0], learnt["high"], taught["low"])
    assert aligned.shape == taught["low"].shape
    assert torch.isfinite(losses["total"])


def test_taps_by_name_and_by_submodule_are_the_same_features():
    network = small("erfnet").eval()
    x, _ = batch(32, 32)
    with torch.no_grad():
        logits, features = run_with_taps(network, x, ["high", "encoder", "low", "initial"])
        torch.testing.assert_close(logits, network(x), rtol=0, atol=0)
    torch.testing.assert_close(features["high"], features["encoder"], rtol=0, atol=0)
    torch.testing.assert_close(features["low"], features["initial"], rtol=0, atol=0)


def test_no_hook_stays_behind():
    network = rsanet(4).eval()
    x, _ = batch(16, 16, 16)
    with torch.no_grad():
        run_with_taps(network, x, ["encoder.4", "stem"])
    with pytest.raises(ValueError, match="no tap or submodule 'nowhere'"):
        run_with_taps(network, x, ["stem", "nowhere"])
    assert all(len(module._forward_hooks) == 0 for module in network.modules())


def test_without_the_kernel_term_nothing_is_tapped_or_adapted():
    both = pair_2d(AffinityLossConfig(kernel_weight=0.0), pairs=[TapPair("nowhere", "nowhere")])
    assert len(both.adapters) == 0
    x, target = batch(16, 16)
    assert set(both(x, target)[1]) == {"total", "segmentation", "logits", "affinity"}


def test_the_student_is_left_in_the_mode_and_with_the_statistics_that_it_had():
    student = small("enet").train()
    before = copy.deepcopy(student.state_dict())
    both = Distillation(small("unetpp"), student, torch.zeros(1, 1, 16, 16), config=UNIT)
    assert both.student is student
    assert student.training
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def numpy_affinity(logits, labels, margin=3.0):
    """Eq. 1-4 over the eight neighbours of each pixel of its own slice, pixel by pixel."""
    p = torch.softmax(logits.double(), dim=1).numpy()
    pull, push = [], []
    height, width = p.shape[2:]
    steps = [(dj, di) for dj in (-1, 0, 1) for di in (-1, 0, 1) if (dj, di) != (0, 0)]
    for n, j, i in np.ndindex(len(p), height, width):
        for dj, di in steps:
            if 0 <= j + dj < height and 0 <= i + di < width:
                here, there = p[n, :, j, i], p[n, :, j + dj, i + di]
                divergence = (here * np.log(here / there)).sum()
                equal = labels[n, j, i] == labels[n, j + dj, i + di]
                (pull if equal else push).append(divergence)
    return np.mean(pull) + np.maximum(margin - np.array(push), 0).mean()


def test_a_2d_student_is_compared_with_a_3d_teacher_on_the_slices_of_its_patches():
    torch.manual_seed(0)
    pairs = [TapPair("encoder.4", "high")]
    teacher, student = rsanet(4), small("enet")
    # A teacher that answers something else than background.
    nn.init.normal_(teacher.head[-1].weight, std=2.0)
    both = Distillation(teacher, student, torch.zeros(1, 1, 16, 16, 16), pairs, UNIT).eval()
    x, target = batch(6, 18, 20)
    with torch.no_grad():
        logits, losses = both(x, target)
        of_teacher, taught = run_with_taps(teacher, x, ["encoder.4"])
        slices = torch.stack([x[b, :, k] for b in range(2) for k in range(6)])
        of_student, learnt = student.forward_features(slices)
    for b, k in np.ndindex(2, 6):
        torch.testing.assert_close(logits[b, :, k], of_student[6 * b + k])
    told = torch.stack([of_teacher[b, :, k] for b in range(2) for k in range(6)])
    p, q = (torch.softmax(t.double(), dim=1).numpy() for t in (of_student, told))
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    assert losses["logits"].item() == pytest.approx(expected, rel=1e-3)
    labels = q.argmax(axis=1)
    assert 0.02 < labels.mean() < 0.98
    assert losses["affinity"].item() == pytest.approx(numpy_affinity(of_student, labels), rel=1e-3)
    true = torch.stack([target[b, 0, k] for b in range(2) for k in range(6)]).numpy()
    overlap = (2 * (p[:, 1] * true).sum() + 1e-5) / (p[:, 1].sum() + true.sum() + 1e-5)
    assert losses["segmentation"].item() == pytest.approx(1 - overlap, rel=1e-4)
    # A sample of eq. 5 is a patch: the student's features of it are those of its slices.
    whole = np.stack([learnt["high"][6 * b : 6 * b + 6].numpy() for b in range(2)])
    adapter = both.adapters[0]
    adapted = np.einsum("oc,bkcji->bokji", adapter.weight.detach().numpy()[..., 0, 0, 0], whole)
    adapted += adapter.bias.detach().numpy()[None, :, None, None, None]
    size = taught["encoder.4"].shape[2:]
    adapted = nn.functional.interpolate(torch.from_numpy(adapted), size, mode="trilinear").numpy()
    difference = numpy_gram_unit(adapted) - numpy_gram_unit(taught["encoder.4"].numpy())
    expected = (difference**2).sum() / 2 + np.abs(difference).sum()
    assert losses["kernel"].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    weighted = (
        losses["segmentation"] + 0.2 * losses["logits"] + 0.9 * losses["kernel"]
        + 0.9 * losses["affinity"]
    )  # fmt: skip
    torch.testing.assert_close(losses["total"], weighted)


def test_patches_of_one_slice_are_slices():
    torch.manual_seed(0)
    both = Distillation(
        rsanet(4), small("enet"), torch.zeros(1, 1, 16, 16, 16), [TapPair("encoder.4", "high")],
        UNIT,
    ).eval()  # fmt: skip
    x, target = batch(1, 24, 16)
    with torch.no_grad():
        logits, losses = both(x, target)
        torch.testing.assert_close(logits[:, :, 0], both.student(x[:, :, 0]))
    assert all(torch.isfinite(value) for value in losses.values())


def of_two_modalities(student):
    torch.manual_seed(0)
    teacher = create_network("ummkd_2d", {"width": 2, "in_channels": 1, "out_channels": 2})
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    config = AffinityLossConfig(kernel_weight=0.0)
    return Distillation(teacher, student, torch.zeros(1, 1, 16, 16), config=config, modalities=2)


def test_each_modality_is_taught_by_the_teachers_answers_in_it_and_counts_the_same():
    both = of_two_modalities(small("enet", dropout=0.0)).eval()
    x, target = batch(24, 16, n=6)
    with torch.no_grad():
        logits, losses = both(x, target)
        torch.testing.assert_close(logits, both.student(x))
        parts = []
        for n, part in enumerate((slice(0, 3), slice(3, 6))):
            told = both.teacher(x[part], modality=n)
            other = both.teacher(x[part], modality=1 - n)
            assert (told - other).abs().max() > 0.1
            parts.append(both.loss(logits[part], told, [], target[part]))
    for name, value in losses.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, msg=name)
    # One network for both is normalised over both, as it is at inference.
    alone = copy.deepcopy(both.student).train()
    alone(x)
    before = both.student.initial.activate[0].running_mean.clone()
    both.train()(x, target)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(both.student.state_dict()[name], value, msg=name)
    assert not torch.equal(both.student.initial.activate[0].running_mean, before)


def test_a_student_that_tells_modalities_apart_is_told_them():
    student = create_network("ummkd_2d", {"width": 2, "in_channels": 1, "out_channels": 2})
    both = of_two_modalities(student).eval()
    x, target = batch(16, 16, n=4)
    with torch.no_grad():
        logits, _ = both(x, target)
        for n, part in enumerate((slice(0, 2), slice(2, 4))):
            torch.testing.assert_close(logits[part], student(x[part], modality=n))


def test_saved_and_loaded_weights_give_equal_losses(tmp_path):
    both = pair_2d().eval()
    torch.save(both.state_dict(), tmp_path / "w.pt")
    torch.manual_seed(9)
    again = Distillation(
        small("unetpp"), small("enet"), torch.zeros(1, 1, 16, 16), config=UNIT
    ).eval()
    again.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    x, target = batch(32, 32)
    with torch.no_grad():
        first, second = both(x, target)[1], again(x, target)[1]
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)


def test_networks_that_do_not_fit_are_plain_errors():
    example = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="classes and sizes have to be the same"):
        Distillation(small("unetpp", out_channels=3), small("enet"), example, config=UNIT)
    with pytest.raises(ValueError, match=r"ENet has no tap or submodule 'mid' \(taps: low, high\)"):
        Distillation(small("unetpp"), small("enet"), example, [TapPair("high", "mid")])
    with pytest.raises(ValueError, match="the kernel loss needs a pair of taps"):
        Distillation(small("unetpp"), small("enet"), example, [])
    volume = torch.zeros(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="'blocks' of RSANet gives no features"):
        Distillation(rsanet(4), rsanet(4), volume, [TapPair("blocks", "encoder.4")])


def dice(network, images, masks):
    network.eval()
    with torch.no_grad():
        found = network(images).argmax(dim=1, keepdim=True)
    network.train()
    return 2 * float((found * masks).sum()) / float(found.sum() + masks.sum())


@pytest.mark.slow
def test_a_student_of_a_trained_teacher_segments_four_real_slices(prostate_slices):
    images, masks = prostate_slices
    torch.manual_seed(0)
    teacher = small("unetpp").train()
    optimiser = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(teacher(images), masks[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert dice(teacher, images, masks) > 0.95
    student = small("enet", dropout=0.0)
    both = Distillation(teacher, student, images, config=UNIT).train()
    optimiser = torch.optim.Adam((p for p in both.parameters() if p.requires_grad), lr=1e-2)
    for step in range(100):
        _, losses = both(images, masks)
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
        if step % 10 == 9 and dice(student, images, masks) > 0.9:
            break
    assert dice(student, images, masks) > 0.9
