"""UMMKD's two networks: sharing, normalisation, layers, parameters, sizes, attention, config."""

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
    Part,
    ResidualBlock,
    UMMKD2d,
    UMMKD2dConfig,
    UMMKD3d,
    UMMKD3dConfig,
    UpConv3d,
    layer_2d,
    normalisation,
    symmetric_pad,
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


# Eq. 1.


def numpy_norm(x, kind, gamma, beta, groups, eps):
    """Eq. 1 with the set S of each kind written out; x [B, C, ...]."""
    y = np.zeros_like(x)
    batch, channels = x.shape[:2]
    per_group = channels // groups
    sets = {
        "batch": [(slice(None), c) for c in range(channels)],
        "instance": [(b, c) for b in range(batch) for c in range(channels)],
        "layer": [(b,) for b in range(batch)],
        "group": [
            (b, slice(g * per_group, (g + 1) * per_group))
            for b in range(batch)
            for g in range(groups)
        ],
    }[kind]
    for s in sets:
        mean = x[s].sum() / x[s].size
        variance = ((x[s] - mean) ** 2).sum() / x[s].size
        y[s] = (x[s] - mean) / np.sqrt(variance + eps)
    for c in range(channels):
        y[:, c] = gamma[c] * y[:, c] + beta[c]
    return y


EPS = {"batch": 1e-3, "instance": 1e-5, "layer": 1e-5, "group": 1e-5}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4, 2, 3, 2)])
def test_normalisation_is_eq_1_over_its_set(kind, shape):
    torch.manual_seed(4)
    config = (UMMKD2dConfig if len(shape) == 4 else UMMKD3dConfig)(**SMALL, norm=kind)
    layer = normalisation(config, 4)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = 3 * torch.randn(shape) + 1
    expected = numpy_norm(
        x.double().numpy(), kind, layer.weight.detach().numpy(), layer.bias.detach().numpy(),
        2, EPS[kind],
    )  # fmt: skip
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        # Channel 0 of both samples: {0, 2, 8, 10}, mean 5, variance 17: -5/sqrt(17), -3/sqrt(17).
        ("batch", (-1.212642, -0.727585)),
        # {0, 2}: mean 1, variance 1.
        ("instance", (-1.0, 1.0)),
        # Both channels of sample 0: {0, 2, 4, 6}, mean 3, variance 5: -3/sqrt(5), -1/sqrt(5).
        ("layer", (-1.341641, -0.447214)),
        # Two groups of one channel each.
        ("group", (-1.0, 1.0)),
    ],
)
def test_normalisation_of_two_samples_by_hand(kind, first):
    layer = normalisation(UMMKD2dConfig(width=2, norm_groups=2, norm=kind), 2)
    x = torch.tensor([[[[0.0, 2.0]], [[4.0, 6.0]]], [[[8.0, 10.0]], [[1.0, 1.0]]]])
    # Epsilon moves the answer by less than 1e-4.
    assert layer(x)[0, 0, 0].tolist() == pytest.approx(first, abs=1e-4)


# The layers.


def numpy_conv(x, weight, dilation=1):
    """Convolution of an odd size over zeros beyond the edge, tap by tap."""
    size, kernel = x.shape[2:], weight.shape[2:]
    margins = [dilation * (k // 2) for k in kernel]
    padded = np.pad(x, [(0, 0), (0, 0), *((m, m) for m in margins)])
    y = np.zeros((x.shape[0], weight.shape[0], *size))
    for tap in np.ndindex(kernel):
        window = tuple(
            slice(dilation * t, dilation * t + n) for t, n in zip(tap, size, strict=True)
        )
        y += np.einsum("oc,bc...->bo...", weight[(..., *tap)], padded[(..., *window)])
    return y


def double(tensor):
    return tensor.detach().double().numpy()


def numpy_eval_norm(x, layer):
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, variance, gamma, beta = (
        double(v).reshape(shape)
        for v in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


def numpy_layer(x, layer, order, slope, dilation=1):
    """The steps "c", "n" and "r" of `order` with the weights of modality 1, where it has some."""
    for step in order:
        if step == "c":
            x = numpy_conv(x, double(layer.kernel.copies[-1].weight), dilation)
        elif step == "n":
            x = numpy_eval_norm(x, layer.norm.copies[-1])
        else:
            x = np.where(x > 0, x, slope * x)
    return x


@pytest.mark.parametrize(
    ("layout", "place", "order", "slope"),
    [
        ("paper", "first", "cnr", 0),
        ("paper", "inner", "cnr", 0),
        ("paper", "sum", "cn", 0),
        ("released", "first", "c", 0.2),
        ("released", "inner", "nrc", 0.2),
        ("released", "sum", "nrc", 0.2),
    ],
)
def test_a_2d_layer_takes_its_steps_in_the_order_of_its_layout(layout, place, order, slope):
    part = Part(UMMKD2dConfig(**SMALL, layout=layout), "group2")
    layer = used(torch.nn.ModuleDict({"x": layer_2d(part, 4, 6, place)})).eval()["x"]
    x = torch.randn(2, 4, 5, 7)
    expected = numpy_layer(double(x), layer, order, slope)
    np.testing.assert_allclose(layer(x, 1).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["paper", "released"])
@pytest.mark.parametrize(("n_in", "dilation"), [(4, 1), (8, 2)])
def test_a_residual_block_adds_its_input_with_new_channels_half_before_half_behind(
    layout, n_in, dilation
):
    part = Part(UMMKD2dConfig(**SMALL, layout=layout), "group8")
    block = used(torch.nn.ModuleDict({"x": ResidualBlock(part, n_in, 8, dilation)})).eval()["x"]
    x = torch.randn(2, n_in, 6, 7)
    a = double(x)
    orders = ("cnr", "cn") if layout == "paper" else ("nrc", "nrc")
    branch = a
    for layer, order in zip(block.branch, orders, strict=True):
        branch = numpy_layer(branch, layer, order, 0 if layout == "paper" else 0.2, dilation)
    shortcut = np.zeros((2, 8, 6, 7))
    shortcut[:, 2:6] = a if n_in == 4 else 0
    total = branch + (a if n_in == 8 else shortcut)
    expected = np.maximum(total, 0) if layout == "paper" else total
    np.testing.assert_allclose(block(x, 1).detach().numpy(), expected, atol=1e-5)


def test_symmetric_padding_mirrors_the_edge_pixel_too():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(1, 1, 2, 3)
    row = [[5, 4, 4, 5, 6, 6, 5], [2, 1, 1, 2, 3, 3, 2]]
    # Rows 1 and 0 mirrored in front, 0 and 1, then 1 and 0 behind.
    expected = [row[0], row[1], row[1], row[0], row[0], row[1]]
    assert symmetric_pad(x, 2)[0, 0].tolist() == expected
    y = torch.randn(2, 3, 4, 5)
    np.testing.assert_array_equal(
        symmetric_pad(y, 1).numpy(),
        np.pad(y.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)], "symmetric"),
    )


def test_head_of_the_2d_network_spreads_64_channels_over_8x8_pixels_and_mirrors_the_edge():
    network = used(make("ummkd_2d", out_channels=2)).eval()
    seen = {}
    network.groups["group9"].register_forward_hook(lambda *a: seen.update(deep=a[2]))
    with torch.no_grad():
        logits, maps = network(images("ummkd_2d"), 1, with_attention=True)
    layer = network.groups["group10"][0]
    inner = numpy_conv(
        np.pad(double(seen["deep"]), [(0, 0), (0, 0), (1, 1), (1, 1)], "symmetric"),
        double(layer.kernel.copies[0].weight),
    )[:, :, 1:-1, 1:-1]
    spread = np.maximum(numpy_eval_norm(inner, layer.norm.copies[1]), 0)
    pixels = np.zeros((2, 4, 16, 24))  # two classes of width / 2 channels
    for k, row, column in np.ndindex(4, 16, 24):
        channel = 64 * k + 8 * (row % 8) + column % 8
        pixels[:, k, row, column] = spread[:, channel, row // 8, column // 8]
    np.testing.assert_allclose(
        maps["group10"].numpy(), (pixels**2).sum(axis=1, keepdims=True), atol=1e-4, rtol=1e-4
    )
    expected = numpy_conv(
        np.pad(pixels, [(0, 0), (0, 0), (2, 2), (2, 2)], "symmetric"),
        double(network.out.copies[0].weight),
    )[:, :, 2:-2, 2:-2]
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_up_convolution_doubles_by_its_taps_or_else_by_repetition(kernel):
    up = UpConv3d(2, 3, kernel, holes=False)
    x = torch.randn(1, 2, 2, 3, 2)
    weight = double(up.conv.weight)  # in, out, taps
    expected = np.zeros((1, 3, 4, 6, 4))
    for place in np.ndindex(4, 6, 4):
        tap = tuple(p % k for p, k in zip(place, kernel, strict=True))  # p % 1 is 0
        source = tuple(p // 2 for p in place)
        expected[(0, slice(None), *place)] = (
            double(x)[(0, slice(None), *source)] @ weight[(slice(None), slice(None), *tap)]
        )
    np.testing.assert_allclose(up(x).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3)])
def test_released_up_convolution_has_stride_2_and_is_cut_at_the_high_end(kernel):
    up = UpConv3d(2, 3, kernel, holes=True)
    x = torch.randn(1, 2, 2, 3, 2)
    expected = np.zeros((1, 3, 6, 8, 6))
    for source in np.ndindex(2, 3, 2):
        for tap in np.ndindex(kernel):
            place = tuple(2 * s + t for s, t in zip(source, tap, strict=True))
            expected[(0, slice(None), *place)] += double(x)[(0, slice(None), *source)] @ double(
                up.conv.weight[(slice(None), slice(None), *tap)]
            )
    found = up(x).detach().numpy()
    np.testing.assert_allclose(found, expected[:, :, :4, :6, :4], atol=1e-6)
    # A kernel of 1 leaves every second slice empty.
    assert bool(found[:, :, 1].any()) == (kernel[0] == 3)


def pooled(a):
    """The largest of each two along every axis of space."""
    for axis in range(2, a.ndim):
        pairs = np.stack([a.take(range(n, a.shape[axis], 2), axis=axis) for n in (0, 1)])
        a = pairs.max(axis=0)
    return a


def test_2d_network_is_the_dilated_network_of_figure_2_up_to_its_head():
    network = used(make("ummkd_2d", width=2)).eval()
    seen = {}
    network.groups["group9"].register_forward_hook(lambda *a: seen.update(deep=a[2]))
    x = images("ummkd_2d", (16, 24), batch=1)
    network(x, 1)
    a = numpy_layer(double(x), network.groups["group1"][0], "cnr", 0)
    for number, channels in zip(range(1, 9), (2, 4, 8, 16, 32, 32, 64, 64), strict=True):
        dilation = 2 if number == 8 else 1
        for block in network.groups[f"group{number}"]:
            if not isinstance(block, ResidualBlock):
                continue
            branch = a
            for layer, order in zip(block.branch, ("cnr", "cn"), strict=True):
                branch = numpy_layer(branch, layer, order, 0, dilation)
            new = (channels - a.shape[1]) // 2
            a = np.maximum(branch + np.pad(a, [(0, 0), (new, new), (0, 0), (0, 0)]), 0)
        a = pooled(a) if number <= 3 else a
    for layer in network.groups["group9"]:
        a = numpy_layer(a, layer, "cnr", 0)
    assert a.shape == (1, 64, 2, 3)
    np.testing.assert_allclose(seen["deep"].detach().numpy(), a, atol=1e-4)


def numpy_up(x, layer):
    """An up-convolution of the default layout, its normalisation and ReLU."""
    weight = double(layer.kernel.copies[0].conv.weight)
    doubled = x
    for axis in (2, 3, 4):
        doubled = doubled.repeat(2, axis=axis)
    y = np.zeros((x.shape[0], weight.shape[1], *doubled.shape[2:]))
    for place in np.ndindex(doubled.shape[2:]):
        tap = tuple(p % k for p, k in zip(place, weight.shape[2:], strict=True))
        y[(..., *place)] = doubled[(..., *place)] @ weight[(..., *tap)]
    return np.maximum(numpy_eval_norm(y, layer.norm.copies[1]), 0)


def test_3d_network_is_the_u_net_of_figure_3():
    network = used(make("ummkd_3d", width=2)).eval()
    x = images("ummkd_3d", (8, 8, 16), batch=1)

    def level(name, a):
        for layer in network.levels[name]:
            a = numpy_layer(a, layer, "cnr", 0)
        return a

    one = level("encoder1", double(x))
    two = level("encoder2", pooled(one))
    three = level("encoder3", pooled(two))
    a = level("encoder4", pooled(three))
    for name, skip in (("decoder3", three), ("decoder2", two), ("decoder1", one)):
        a = level(name, np.concatenate([numpy_up(a, network.ups[name]), skip], axis=1))
    out = network.out.copies[0]
    expected = numpy_conv(a, double(out.weight)) + double(out.bias).reshape(1, -1, 1, 1, 1)
    np.testing.assert_allclose(network(x, 1).detach().numpy(), expected, atol=1e-4)


def kernel_shapes(network):
    return [
        tuple(p.shape)
        for n, p in network.named_parameters()
        if ".norm." not in n and n.endswith("weight")
    ]


def test_kernels_of_the_3d_u_net_are_those_of_the_layer_list():
    with torch.device("meta"):
        network = UMMKD3d(UMMKD3dConfig())
    cube, flat = (3, 3, 3), (1, 3, 3)
    assert kernel_shapes(network) == [
        (16, 1, *cube), (32, 16, *cube), (32, 32, *cube), (64, 32, *cube),
        (64, 64, *flat), (128, 64, *flat), (128, 128, *flat), (256, 128, *flat),
        (128, 384, *flat), (128, 128, *flat), (64, 192, *cube), (64, 64, *cube),
        (32, 64, *cube), (32, 32, *cube),
        # transposed: in, out
        (256, 256, 1, 1, 1), (128, 128, 1, 2, 2), (64, 32, 2, 2, 2),
        (5, 32, 1, 1, 1),
    ]  # fmt: skip
    with torch.device("meta"):
        released = UMMKD3d(UMMKD3dConfig(layout="released"))
    ups = [(256, 128, *flat), (128, 128, *flat), (64, 64, *cube)]
    assert kernel_shapes(released)[-4:-1] == ups


def test_kernels_of_the_2d_network_are_those_of_the_layer_list():
    with torch.device("meta"):
        network = UMMKD2d(UMMKD2dConfig())
    pairs = [(16, 3), *[(16, 16)] * 2]
    for n_in, n_out, blocks in (
        (16, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2), (256, 256, 2), (256, 512, 2),
        (512, 512, 2),
    ):  # fmt: skip
        pairs += [(n_out, n_in), *[(n_out, n_out)] * (2 * blocks - 1)]
    pairs += [(512, 512)] * 2 + [(2560, 512)]
    assert kernel_shapes(network) == [(*pair, 3, 3) for pair in pairs] + [(5, 40, 5, 5)]
    dilated = {
        name.split(".")[1]
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.dilation == (2, 2)
    }
    assert dilated == {"group8"}


def test_2d_network_pools_after_its_first_three_groups():
    network = make("ummkd_2d").eval()
    sizes = []
    for group in network.groups.values():
        group.register_forward_hook(lambda _, args, out: sizes.append(tuple(args[0].shape[2:])))
    with torch.no_grad():
        network(images("ummkd_2d"))
    assert sizes == [(16, 24), (8, 12), (4, 6)] + [(2, 3)] * 7


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
        expected = (double(seen[key]) ** 2).sum(axis=1, keepdims=True)
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
    assert dataclasses.asdict(UMMKD2dConfig()) == {**shared, "in_channels": 3, "dropout": 0.25}
    assert dataclasses.asdict(UMMKD3dConfig()) == {**shared, "in_channels": 1, "dropout": 0.0}
    assert NETWORKS["ummkd_2d"] == (UMMKD2dConfig, UMMKD2d)
    assert NETWORKS["ummkd_3d"] == (UMMKD3dConfig, UMMKD3d)
    assert UMMKD2d.multiple == UMMKD3d.multiple == 2**3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sharing": "z"}, "sharing is 'z', not one of ['individual', 'joint', 'joint+kd', 'y',"),
        ({"sharing": 3}, "sharing is 3, not one of"),
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
