"""UMMKD's normalisation, layers and networks against eq. 1 and figures 2 and 3, in NumPy."""

import numpy as np
import pytest
import torch

from medsegcore.networks import create_network
from medsegcore.networks.ummkd import (
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

NORMS = ["batch", "instance", "layer", "group"]
SMALL = {"width": 4, "norm_groups": 2, "dropout": 0.0}
SIZES = {"ummkd_2d": (16, 24), "ummkd_3d": (16, 16, 24)}


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
