"""UMMKD's two networks: parameters, sharing, attention, sizes, gradients, config, learning."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from medsegcore.errors import ModelSchemaError
from medsegcore.imaging import read_image
from medsegcore.losses.ummkd import UMMKDLoss
from medsegcore.networks import NETWORKS, create_network
from medsegcore.networks.ummkd import (
    SETTINGS,
    Layer,
    UMMKD2d,
    UMMKD2dConfig,
    UMMKD3d,
    UMMKD3dConfig,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["ummkd_2d", "ummkd_3d"]
NORMS = ["batch", "instance", "layer", "group"]
SMALL = {"width": 4, "norm_groups": 2, "dropout": 0.0}
SIZES = {"ummkd_2d": (16, 24), "ummkd_3d": (16, 16, 24)}
ODD = {"ummkd_2d": (29, 34), "ummkd_3d": (5, 19, 26)}


def make(name, **config):
    torch.manual_seed(1)
    return create_network(name, {**SMALL, **config})


def images(name, size=None, batch=2):
    torch.manual_seed(2)
    channels = 3 if name == "ummkd_2d" else 1
    return torch.randn(batch, channels, *(size or SIZES[name]))


def used(network):
    """Give the running moments and the scales of every normalisation values of their own."""
    torch.manual_seed(3)
    with torch.no_grad():
        for key, value in [*network.named_buffers(), *network.named_parameters()]:
            if key.endswith("running_mean") or (".norm." in key and key.endswith("bias")):
                value.normal_(std=0.3)
            elif key.endswith("running_var") or (".norm." in key and key.endswith("weight")):
                value.uniform_(0.5, 1.5)
    return network


# Tables I and II.

PUBLISHED = {  # setting: (2D in millions, 3D in thousands)
    "individual": (78.64, 3832),
    "joint": (39.32, 1916),
    "joint+kd": (39.32, 1916),
    "y": (39.99, 2124),
    "x": (65.96, 3389),
    "chilopod": (39.34, 1919),
    "ours": (39.34, 1919),
}


def parameters_on_meta(name, **config):
    """The number of parameters, without the memory that they take."""
    with torch.device("meta"):
        network = create_network(name, config)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("setting", PUBLISHED)
def test_every_setting_has_the_published_number_of_parameters(setting):
    millions, thousands = PUBLISHED[setting]
    assert abs(parameters_on_meta("ummkd_2d", sharing=setting) / 1e6 - millions) < 0.01
    assert abs(parameters_on_meta("ummkd_3d", sharing=setting) / 1e3 - thousands) < 1


def test_there_are_the_seven_settings_and_two_of_them_distil():
    assert list(SETTINGS) == list(PUBLISHED)
    assert {name for name, s in SETTINGS.items() if s.distilled} == {"joint+kd", "ours"}


@pytest.mark.parametrize(
    ("name", "setting", "count"),
    [
        ("ummkd_2d", "joint", 39_322_648),
        ("ummkd_2d", "chilopod", 39_342_840),
        ("ummkd_2d", "individual", 78_645_296),
        ("ummkd_3d", "joint", 2_201_589),
        ("ummkd_3d", "chilopod", 2_204_565),
    ],
)
def test_released_layout_has_the_parameters_of_the_release(name, setting, count):
    assert parameters_on_meta(name, sharing=setting, layout="released") == count


def test_kernels_and_norms_of_the_2d_network_are_39302456_and_21216():
    with torch.device("meta"):
        network = UMMKD2d(UMMKD2dConfig(sharing="joint"))
    norms = sum(p.numel() for n, p in network.named_parameters() if ".norm." in n)
    assert norms == 21_216
    assert sum(p.numel() for p in network.parameters()) - norms == 39_302_456


# What the modalities share.

G = [f"group{n}" for n in range(1, 11)]
L = ["encoder1", "encoder2", "encoder3", "encoder4", "decoder3", "decoder2", "decoder1"]
TABLES = {
    "individual": (dict.fromkeys(G, "both"), dict.fromkeys(L, "both")),
    "joint": (dict.fromkeys(G, "none"), dict.fromkeys(L, "none")),
    "joint+kd": (dict.fromkeys(G, "none"), dict.fromkeys(L, "none")),
    "y": (
        dict(zip(G, ["both"] * 4 + ["none"] * 6, strict=True)),
        dict(zip(L, ["both"] * 3 + ["none"] * 4, strict=True)),
    ),
    "x": (
        dict(zip(G, ["both"] * 4 + ["none"] * 3 + ["both"] * 3, strict=True)),
        dict(zip(L, ["both"] * 3 + ["none"] + ["both"] * 3, strict=True)),
    ),
    "chilopod": (dict.fromkeys(G, "norms"), dict.fromkeys(L, "norms")),
    "ours": (dict.fromkeys(G, "norms"), dict.fromkeys(L, "norms")),
}


def reached(network, name, modality):
    """The parameters that a batch of that modality has gradients for."""
    network.zero_grad(set_to_none=True)
    network(images(name), modality).square().sum().backward()
    return {n for n, p in network.named_parameters() if p.grad is not None}


def part_of(network, parameter):
    if parameter.startswith("out."):
        return network.config.parts[-1]
    return parameter.split(".")[1]


def table_by_gradients(network, name):
    """What each modality has for itself, by which parameters its batches reach."""
    per_modality = [reached(network, name, m) for m in range(2)]
    table = {}
    for part in network.config.parts:
        names = {n for n, _ in network.named_parameters() if part_of(network, n) == part}
        own = []
        for kind in ("kernels", "norms"):
            of_kind = {n for n in names if (".norm." in n) == (kind == "norms")}
            first, second = (found & of_kind for found in per_modality)
            assert first | second == of_kind
            assert first == second or not first & second
            if first != second:
                own.append(kind)
        table[part] = "both" if len(own) == 2 else own[0] if own else "none"
    return table


@pytest.mark.parametrize("setting", TABLES)
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_a_modality_reach_what_its_setting_says(name, setting):
    expected = TABLES[setting][NAMES.index(name)]
    network = make(name, sharing=setting)
    assert network.config.table() == expected
    assert table_by_gradients(network, name) == expected


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("ummkd_2d", {"group1": "kernels", "group3": "norms", "group10": "both"}),
        ("ummkd_3d", {"encoder2": "norms", "decoder3": "kernels", "decoder1": "both"}),
    ],
)
def test_a_table_of_ones_own_may_share_any_part_in_any_way(name, table):
    network = make(name, sharing=table)
    expected = {part: table.get(part, "none") for part in network.config.parts}
    assert table_by_gradients(network, name) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("setting", "same"), [("joint", True), ("chilopod", False)])
def test_running_moments_are_shared_or_those_of_each_modality(name, setting, same):
    network = make(name, sharing=setting).train()
    before = {k: v.clone() for k, v in network.named_buffers() if k.endswith("running_mean")}
    with torch.no_grad():
        network(images(name), 1)
    changed = {
        k for k, v in network.named_buffers() if k in before and not torch.equal(v, before[k])
    }
    if same:
        assert changed == set(before)
    else:
        assert changed == {k for k in before if ".copies.1." in k}
        assert len(changed) == len(before) // 2


@pytest.mark.parametrize("name", NAMES)
def test_a_joint_network_answers_alike_for_both_modalities_and_a_chilopod_does_not(name):
    x = images(name)
    with torch.no_grad():
        joint = used(make(name, sharing="joint")).eval()
        torch.testing.assert_close(joint(x, 0), joint(x, 1), rtol=0, atol=0)
        chilopod = used(make(name, sharing="chilopod")).eval()
        torch.testing.assert_close(chilopod(x), chilopod(x, 0), rtol=0, atol=0)
        assert (chilopod(x, 0) - chilopod(x, 1)).abs().max() > 1e-3


@pytest.mark.parametrize("modality", [-1, 2])
def test_a_modality_that_is_not_there_is_refused(modality):
    network = make("ummkd_2d")
    with pytest.raises(ValueError, match=f"modality is {modality} but the network has 2, from 0"):
        network(images("ummkd_2d"), modality)


@pytest.mark.parametrize("name", NAMES)
def test_three_modalities_have_three_sets_of_norms(name):
    network = used(make(name, modalities=3)).eval()
    with torch.no_grad():
        answers = [network(images(name), m) for m in range(3)]
    assert (answers[2] - answers[0]).abs().max() > 1e-3
    assert (answers[2] - answers[1]).abs().max() > 1e-3


def slopes(network):
    """{part: slopes of its ReLUs} by the parts' names."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, Layer):
            found.setdefault(part_of(network, name), set()).add(module.slope)
    return found


def test_released_layout_has_leaky_relus_but_for_the_2d_head_and_the_papers_none():
    for name, parts in zip(NAMES, (G, L), strict=True):
        assert slopes(make(name)) == {key: {0.0} for key in parts}
        released = {key: {0.2} for key in parts} | ({"group10": {0.0}} if parts == G else {})
        assert slopes(make(name, layout="released")) == released


# Attention and sizes.


@pytest.mark.parametrize("layout", ["paper", "released"])
@pytest.mark.parametrize("name", NAMES)
def test_declared_attention_is_what_forward_returns_at_odd_sizes(name, layout):
    network = make(name, layout=layout).eval()
    with torch.no_grad():
        logits, attention = network(images(name, ODD[name]), 1, with_attention=True)
    assert logits.shape == (2, 5, *ODD[name])
    assert torch.isfinite(logits).all()
    deep, last = ("group9", "group10") if name == "ummkd_2d" else ("encoder4", "decoder1")
    # 29 and 34 over 8, rounded up, are 4 and 5; 5, 19 and 26 are 1, 3 and 4.
    small = (4, 5) if name == "ummkd_2d" else (1, 3, 4)
    assert {k: v.shape for k, v in attention.items()} == {
        deep: (2, 1, *small),
        last: (2, 1, *ODD[name]),
    }
    assert [(a["key"], a["kind"], a["axis"]) for a in network.attention] == [
        (deep, "spatial", None),
        (last, "spatial", None),
    ]
    assert len({a["title"] for a in network.attention}) == 2
    for values in attention.values():
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_the_channel_sums_of_squares_of_their_stages(name):
    network = make(name).eval()
    seen = {}
    blocks = network.groups if name == "ummkd_2d" else network.levels
    deep, last = list(network.stages)
    blocks[deep].register_forward_hook(lambda *a: seen.update({deep: a[2]}))
    network.out.register_forward_pre_hook(lambda _, args: seen.update({last: args[0]}))
    with torch.no_grad():
        _, attention = network(images(name), with_attention=True)
    for key, values in attention.items():
        expected = (seen[key].numpy().astype(np.float64) ** 2).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_size_is_filled_with_zeros_behind_and_cut_again(name):
    network = used(make(name)).eval()
    x = images(name, ODD[name])
    filled = torch.zeros(*x.shape[:2], *(-(-n // 8) * 8 for n in ODD[name]))
    inner = (..., *(slice(0, n) for n in ODD[name]))
    filled[inner] = x
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(filled)[inner], rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_trains_and_answers_with_every_normalisation(name, norm):
    network = make(name, norm=norm)
    for mode in (True, False):
        logits = network.train(mode)(images(name, batch=1))
        assert logits.shape == (1, 5, *SIZES[name])
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_inputs_and_classes_are_those_of_the_config(name):
    network = make(name, in_channels=2, out_channels=3).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, *SIZES[name])).shape == (1, 3, *SIZES[name])


@pytest.mark.parametrize("name", NAMES)
def test_eval_mode_is_deterministic_and_training_drops_activations(name):
    network = used(make(name, dropout=0.25))
    x = images(name)
    with torch.no_grad():
        assert (network.train()(x) - network(x)).abs().max() > 0
        first = network.eval()(x)
        torch.testing.assert_close(network(x), first, rtol=0, atol=0)
        torch.testing.assert_close(network(x, 0, with_attention=True)[0], first, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_weights_give_equal_outputs(name, tmp_path):
    network = used(make(name)).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(9)
    again = create_network(name, SMALL).eval()
    x = images(name)
    with torch.no_grad():
        first = [network(x, m) for m in range(2)]
        assert (again(x) - first[0]).abs().max() > 1e-3
        again.load_state_dict(load_file(tmp_path / "w.safetensors"))
        for m in range(2):
            torch.testing.assert_close(again(x, m), first[m], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_gives_finite_logits_and_fp32_attention(name):
    network = make(name).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, attention = network(images(name), with_attention=True)
    assert torch.isfinite(logits).all()
    assert {a.dtype for a in attention.values()} == {torch.float32}


VARIANTS = [{"sharing": setting} for setting in SETTINGS]
VARIANTS += [{"norm": norm} for norm in NORMS[1:]]
VARIANTS += [{"layout": "released"}]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_both_modalities_together_reach_every_parameter(name, variant):
    network = make(name, **variant)
    target = torch.randint(0, 5, (2, *SIZES[name]))
    for modality in range(2):
        F.cross_entropy(network(images(name), modality), target).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


# The config.


def test_defaults_are_the_published_networks():
    shared = {
        "out_channels": 5,
        "width": 16,
        "modalities": 2,
        "sharing": "ours",
        "norm": "batch",
        "norm_groups": 16,
        "layout": "paper",
    }
    flat = {"in_channels": 3, "dropout": 0.25, "head_bias": False}
    cubes = {"in_channels": 1, "dropout": 0.0, "head_bias": True}
    assert dataclasses.asdict(UMMKD2dConfig()) == {**shared, **flat}
    assert dataclasses.asdict(UMMKD3dConfig()) == {**shared, **cubes}
    assert NETWORKS["ummkd_2d"] == (UMMKD2dConfig, UMMKD2d)
    assert NETWORKS["ummkd_3d"] == (UMMKD3dConfig, UMMKD3d)
    assert UMMKD2d.multiple == UMMKD3d.multiple == 2**3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sharing": "z"}, "sharing is 'z', not one of ['individual', 'joint', 'joint+kd', 'y',"),
        ({"sharing": 3}, "sharing is 3, not one of"),
        ({"head_bias": 1}, "head_bias is 1 but has to be true or false"),
        ({"sharing": {"group11": "both"}}, "sharing has no part 'group11', only ['group1',"),
        ({"sharing": {"encoder1": "both"}}, "sharing has no part 'encoder1'"),
        ({"sharing": {"group1": "all"}}, "sharing of 'group1' is 'all', not one of ['none',"),
        ({"sharing": {"group1": None}}, "sharing of 'group1' is None, not one of"),
        (
            {"norm": "weight"},
            "norm is 'weight', not one of ['batch', 'instance', 'layer', 'group']",
        ),
        ({"layout": "new"}, "layout is 'new', not one of ['paper', 'released']"),
        ({"layout": ["paper"]}, "layout is ['paper'], not one of"),
        ({"width": 5}, "width is 5 but has to be even"),
        ({"width": 4.0}, "width is 4.0 but has to be a whole number above 0"),
        ({"in_channels": 0}, "in_channels is 0 but has to be a whole number above 0"),
        ({"out_channels": None}, "out_channels is None but has to be a whole number above 0"),
        ({"modalities": True}, "modalities is True but has to be a whole number above 0"),
        ({"norm": "group", "norm_groups": 3}, "norm_groups 3 does not divide width 4"),
        ({"dropout": 1}, "dropout is 1 but has to lie from 0 to below 1"),
        ({"dropout": "0.2"}, "dropout is '0.2' but has to lie from 0 to below 1"),
    ],
)
def test_a_value_that_the_network_refuses_is_a_plain_error(config, words):
    with pytest.raises(ModelSchemaError) as caught:
        create_network("ummkd_2d", {**SMALL, **config})
    assert f"The network 'ummkd_2d' refuses its config: {words}" in caught.value.message


def test_the_tables_parts_are_those_of_the_network():
    with pytest.raises(ModelSchemaError, match="sharing has no part 'group1'"):
        create_network("ummkd_3d", {**SMALL, "sharing": {"group1": "both"}})


# Real images.

# The paper's four organs (section IV-A) by their numbers in the sample's masks.
ORGANS = {5: 1, 1: 2, 2: 3, 3: 4}  # liver, spleen, right kidney, left kidney


def abdomen(root, folder, image, slices):
    """Image of zero mean and unit variance and classes, [k, j, i] each, round the organs."""
    pixels = read_image(root / "abdomen_samples" / folder / f"{image}.nii.gz").array
    mask = read_image(root / "abdomen_samples" / folder / "seg_auto.nii.gz").array
    labels = np.zeros(mask.shape, np.int64)
    for value, number in ORGANS.items():
        labels[mask == value] = number
    pixels = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
    rows, columns = (np.flatnonzero(labels[slices].any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return torch.from_numpy(pixels[box]), torch.from_numpy(labels[box])


def lowest_dice(network, batches):
    """Of all classes that occur, in both modalities."""
    network.eval()
    scores = []
    with torch.no_grad():
        for modality, (x, target) in enumerate(batches):
            answer = network(x, modality).argmax(dim=1, keepdim=True)
            for c in target.unique():
                a, b = answer == c, target == c
                scores.append((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    return min(scores)


def overfit(network, batches, steps, rate):
    """Eq. 5 on the same batch of each modality; returns the lowest Dice and the last terms."""
    loss = UMMKDLoss()
    optimiser = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        network.train()
        (xa, ta), (xb, tb) = batches
        terms = loss(network(xa, 0), ta, network(xb, 1), tb, network)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        schedule.step()
    return lowest_dice(network, batches), terms


SAMPLES = (("ct_example", "ct"), ("mr_example", "mr"))


@pytest.mark.slow
def test_2d_network_learns_two_real_ct_and_two_real_mr_slices_by_heart(shared_data):
    batches = []
    for (folder, image), slices in zip(SAMPLES, ([91, 93], [8, 9]), strict=True):
        pixels, labels = abdomen(shared_data, folder, image, slices)
        x = torch.stack([pixels[k - 1 : k + 2] for k in slices])
        batches.append((x, labels[slices][:, None]))
    dice, terms = overfit(make("ummkd_2d"), batches, steps=100, rate=3e-3)
    assert dice > 0.95
    # Eq. 4 brings the confusion of both modalities together.
    assert terms.distillation < 0.01
    assert (terms.knowledge_a.q.diagonal() > 0.5).all()
