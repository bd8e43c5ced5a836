"""UNet++, DeepLabV3+, ENet, ESPNet and ERFNet: counts, FLOPs, blocks, taps, sizes, gradients."""

import dataclasses
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medsegcore.errors import ModelSchemaError
from medsegcore.networks import NETWORKS, create_network
from medsegcore.networks.affinity.deeplabv3plus import AtrousPyramid, XceptionBlock
from medsegcore.networks.affinity.enet import Down, Up
from medsegcore.networks.affinity.erfnet import NonBottleneck1d
from medsegcore.networks.affinity.espnet import ESP

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["unetpp", "deeplabv3plus", "enet", "espnet", "erfnet"]
STUDENTS = ["enet", "espnet", "erfnet"]
SMALL = {
    "unetpp": {"width": 4},
    "deeplabv3plus": {"width": 4, "middle_blocks": 2},
    "enet": {"width": 4},
    "espnet": {"width": 4},
    "erfnet": {"width": 4},
}
VARIANTS = [*SMALL.items(), ("enet", {"width": 8, "bottleneck_3_5": True})]


def small(name, **config):
    torch.manual_seed(0)
    return create_network(name, {**SMALL[name], **config}).eval()


def on_meta(name, **config):
    """The network without the memory of its weights."""
    with torch.device("meta"):
        return create_network(name, config).eval()


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


def randomise_norms(network):
    """Statistics and factors as after training, so that no normalisation is the identity."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return network


# Parameters and FLOPs of table 1.


@pytest.mark.parametrize(
    ("name", "runs", "never_runs", "published", "digit"),
    [
        ("unetpp", 36_628_546, 0, 36.6e6, 0.1e6),
        # The classifier of ImageNet, 2048 * 1000 + 1000.
        ("deeplabv3plus", 54_749_010, 2_049_000, 56.8e6, 0.1e6),
        # Bottleneck 3.5: 128*32 + 9*32*32 + 32*128, three norms, three slopes.
        ("enet", 335_966, 4096 + 9216 + 4096 + 2 * (32 + 32 + 128) + 3, 0.353e6, 0.001e6),
        ("espnet", 183_725, 0, 0.183e6, 0.001e6),
        # The 1x1 classifier of the encoder, 128 * 2 + 2.
        ("erfnet", 2_062_872, 258, 2.06e6, 0.01e6),
    ],
)
def test_parameters_that_run_and_those_that_never_do_make_the_published_number(
    name, runs, never_runs, published, digit
):
    assert count(on_meta(name)) == runs
    assert abs(runs + never_runs - published) < digit
    assert abs((runs + never_runs) / published - 1) < 0.005


def test_deeplabv3plus_has_one_normalisation_more_than_the_release_with_the_published_count():
    # There, the second separable convolution of the exit flow (1024 channels) has none after it.
    assert count(on_meta("deeplabv3plus")) == 54_746_962 + 2 * 1024


def test_enet_with_bottleneck_3_5_runs_all_published_parameters():
    assert count(on_meta("enet", bottleneck_3_5=True)) == 353_761


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        # Counted on the authors' own releases for colour images.
        ("espnet", {"in_channels": 3, "out_channels": 20}, 203_189),
        ("erfnet", {"in_channels": 3, "out_channels": 20}, 2_066_836 - (128 * 20 + 20)),
        ("erfnet", {"in_channels": 3, "out_channels": 2}, 2_063_344 - (128 * 2 + 2)),
        # One and two classes of the release with the published counts.
        ("espnet", {"out_channels": 1}, 183_080),
        ("enet", {"out_channels": 1, "bottleneck_3_5": True}, 353_697),
    ],
)
def test_other_inputs_and_classes_have_the_counts_of_public_releases(name, config, expected):
    assert count(on_meta(name, **config)) == expected


PUBLISHED_GFLOPS = {
    "espnet": 1.27,
    "enet": 2.2,
    "erfnet": 16.56,
    "unetpp": 621.38,
    "deeplabv3plus": 273.94,
}


def every_operation(network, x) -> int:
    """Twice what a layer-wise counter gives: the convention that makes the published figures.

    A multiply and its addition are one. A convolution counts its kernel and bias per output (also
    a transposed one, whose kernel in truth works per input); normalisation counts 2 per value,
    activation 1; pooling 1 per input and upsampling 1 per output.
    """
    total = [0]

    def layer(module, args, output):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            per_output = module.in_channels // module.groups * np.prod(module.kernel_size)
            total[0] += output.numel() * int(per_output + (module.bias is not None))
        elif isinstance(module, nn.BatchNorm2d):
            total[0] += 2 * output.numel()
        elif isinstance(module, nn.ReLU | nn.PReLU):
            total[0] += output.numel()

    def counted(function, of_input):
        def call(x, *args, **kwargs):
            output = function(x, *args, **kwargs)
            total[0] += (x if of_input else output).numel()
            return output

        return call

    for module in network.modules():
        module.register_forward_hook(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "avg_pool2d", counted(F.avg_pool2d, of_input=True))
        patch.setattr(F, "max_pool2d", counted(F.max_pool2d, of_input=True))
        patch.setattr(F, "interpolate", counted(F.interpolate, of_input=False))
        network(x)
    return 2 * total[0]


@pytest.mark.parametrize("name", NAMES)
def test_published_flops_are_those_of_one_image_of_384_by_384(name):
    found = every_operation(on_meta(name), torch.empty(1, 1, 384, 384, device="meta")) / 1e9
    assert abs(found / PUBLISHED_GFLOPS[name] - 1) < 0.005
    for size in (256, 320, 448, 512):
        other = every_operation(on_meta(name), torch.empty(1, 1, size, size, device="meta")) / 1e9
        assert abs(other / PUBLISHED_GFLOPS[name] - 1) > 0.25


def test_published_flops_of_enet_leave_bottleneck_3_5_out():
    network = on_meta("enet", bottleneck_3_5=True)
    found = every_operation(network, torch.empty(1, 1, 384, 384, device="meta")) / 1e9
    assert found / PUBLISHED_GFLOPS["enet"] - 1 > 0.03


@pytest.mark.parametrize(("name", "gflops"), [("unetpp", 619.89), ("deeplabv3plus", 272.48)])
def test_convolutions_alone_make_99_percent_of_a_teachers_published_flops(name, gflops):
    with FlopCounterMode(display=False) as counter:
        on_meta(name)(torch.empty(1, 1, 384, 384, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, abs=0.005)
    assert abs(gflops / PUBLISHED_GFLOPS[name] - 1) < 0.01


# Blocks.


def numpy_double(x):
    """Bilinear doubling with aligned corners: output i lies at i (n - 1) / (2n - 1)."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
        low = np.minimum(at.astype(int), n - 2)
        shape = [1] * 4
        shape[axis] = 2 * n
        share = (at - low).reshape(shape)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, low + 1, axis) * share
    return x


def test_unetpp_nodes_join_all_before_them_in_their_level_and_the_one_below():
    network = small("unetpp")
    inputs, outputs = {}, {}
    for key, node in network.nodes.items():
        node.register_forward_pre_hook(
            lambda _, args, key=key: inputs.update({key: args[0].numpy().astype(np.float64)})
        )
        node.register_forward_hook(
            lambda _, args, out, key=key: outputs.update({key: out.numpy().astype(np.float64)})
        )
    with torch.no_grad():
        network(torch.randn(1, 1, 64, 32))
    assert len(inputs) == 15
    for i in range(1, 5):
        above = outputs[f"{i - 1}_0"]
        b, c, h, w = above.shape
        pooled = above.reshape(b, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
        np.testing.assert_allclose(inputs[f"{i}_0"], pooled, atol=1e-6)
    for j in range(1, 5):
        for i in range(5 - j):
            row = [outputs[f"{i}_{k}"] for k in range(j)]
            expected = np.concatenate([*row, numpy_double(outputs[f"{i + 1}_{j - 1}"])], axis=1)
            np.testing.assert_allclose(inputs[f"{i}_{j}"], expected, atol=1e-5)


def numpy_conv(x, layer):
    """Any convolution of stride 1 that keeps the size, position by position."""
    weight = layer.weight.detach().numpy().astype(np.float64)
    pad, rate = layer.padding, layer.dilation
    padded = np.pad(x, [(0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2])
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    n_in = weight.shape[1]
    for o in range(weight.shape[0]):
        first = o // (weight.shape[0] // layer.groups) * n_in
        for c in range(n_in):
            for a in range(weight.shape[2]):
                for b in range(weight.shape[3]):
                    y, z = a * rate[0], b * rate[1]
                    window = padded[:, first + c, y : y + x.shape[2], z : z + x.shape[3]]
                    out[:, o] += weight[o, c, a, b] * window
    if layer.bias is not None:
        out += layer.bias.detach().numpy()[None, :, None, None]
    return out


def numpy_norm(x, norm):
    mean, var, weight, bias = (
        t.detach().numpy().astype(np.float64)[None, :, None, None]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("channels", [(4, 4, 4, 4), (4, 6, 6, 8)])
def test_xception_block_is_three_relus_and_separable_convolutions_plus_its_shortcut(channels):
    torch.manual_seed(1)
    block = randomise_norms(XceptionBlock(channels, rate=2)).eval()
    x = torch.randn(2, 4, 9, 7)
    expected = x.numpy().astype(np.float64)
    convolutions = [m for m in block.residual.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.residual.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [c.groups for c in convolutions] == [channels[0], 1, channels[1], 1, channels[2], 1]
    for n in range(3):
        expected = relu(expected)
        for k in (2 * n, 2 * n + 1):
            expected = numpy_norm(numpy_conv(expected, convolutions[k]), norms[k])
    shortcut = x.numpy().astype(np.float64)
    if channels[0] != channels[3]:
        shortcut = numpy_norm(numpy_conv(shortcut, block.shortcut[0]), block.shortcut[1])
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), expected + shortcut, atol=1e-4)


def test_deeplabv3plus_has_16_middle_blocks_and_rates_in_the_place_of_strides():
    network = on_meta("deeplabv3plus")

    def depthwise(module):
        return [
            (m.stride[0], m.dilation[0])
            for m in module.modules()
            if isinstance(m, nn.Conv2d) and m.groups > 1
        ]

    assert depthwise(network.entry1) == depthwise(network.entry2) == [(1, 1), (1, 1), (2, 1)]
    assert depthwise(network.entry3) == [(1, 1)] * 3
    assert depthwise(network.middle) == [(1, 2)] * 3 * 16
    assert depthwise(network.exit1) == [(1, 2)] * 3
    assert depthwise(network.exit2) == [(1, 4)] * 3
    assert 2 + len(depthwise(network)) == 65  # with the two convolutions of the stem
    assert [branch[0].dilation[0] for branch in network.pyramid.branches] == [1, 12, 24, 36]


def test_atrous_pyramid_joins_four_branches_and_the_mean_of_the_image():
    torch.manual_seed(2)
    pyramid = randomise_norms(AtrousPyramid(3, 2, dropout=0.5)).eval()
    x = torch.randn(2, 3, 5, 6)
    a = x.numpy().astype(np.float64)

    def layer(x, conv_norm):
        return relu(numpy_norm(numpy_conv(x, conv_norm[0]), conv_norm[1]))

    maps = [layer(a, branch) for branch in pyramid.branches]
    mean = layer(a.mean(axis=(2, 3), keepdims=True), pyramid.pool)
    joined = np.concatenate([*maps, np.broadcast_to(mean, maps[0].shape)], axis=1)
    with torch.no_grad():
        np.testing.assert_allclose(pyramid(x).numpy(), layer(joined, pyramid.project[0]), atol=1e-5)


def test_esp_fuses_its_five_branches_one_after_the_other():
    # Each kernel is a number at its middle: the reduced image is 1, the branches are 1, 2, 4, 8
    # and 16. Branch 1 stays as it is; the others are added up: 2, 2+4, 2+4+8, 2+4+8+16.
    block = ESP(1, 5, residual=False)
    with torch.no_grad():
        block.reduce.weight.fill_(1)
        for branch, value in zip(block.branches, (1, 2, 4, 8, 16), strict=True):
            branch.weight.zero_()
            branch.weight[:, :, 1, 1] = value
        block.activate = nn.Identity()
        out = block(torch.ones(1, 1, 4, 4))
    assert out[0, :, 0, 0].tolist() == [1, 2, 6, 14, 30]
    assert [branch.dilation[0] for branch in block.branches] == [1, 2, 4, 8, 16]


def test_esp_gives_branch_1_the_channels_that_five_do_not_divide_and_adds_its_input():
    torch.manual_seed(3)
    block = randomise_norms(ESP(8, 8)).eval()
    assert [branch.out_channels for branch in block.branches] == [4, 1, 1, 1, 1]
    x = torch.randn(1, 8, 6, 5)
    a = x.numpy().astype(np.float64)
    one, two, *rest = (numpy_conv(numpy_conv(a, block.reduce), b) for b in block.branches)
    fused = [one, two]
    for branch in rest:
        fused.append(fused[-1] + branch)
    expected = numpy_norm(np.concatenate(fused, axis=1) + a, block.activate[0])
    expected = np.where(expected > 0, expected, 0.25 * expected)  # PReLU starts at 0.25
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), expected, atol=1e-5)


def test_enet_unpools_to_where_the_maxima_were():
    down, up = Down(1, 1, 1, 0.0).eval(), Up(1, 1, 1, 0.0).eval()
    with torch.no_grad():
        for block in (down, up):
            block.residual = nn.Identity()
            block.shortcut = nn.Identity()
            block.activate = nn.Identity()
    down.residual = nn.MaxPool2d(2)
    x = torch.tensor([[1.0, 2, 0, 9], [4, 3, 5, 7]])[None, None]
    with torch.no_grad():
        y, indices = down(x)
        assert y.tolist() == [[[[8.0, 18.0]]]]  # the maxima 4 and 9, from both branches
        up.residual = nn.Upsample(scale_factor=2, mode="nearest")
        z = up(torch.tensor([[[[10.0, 20.0]]]]), indices)
    # The residual gives 10 and 20 everywhere; the unpooled ones stand where 4 and 9 had been.
    assert z.tolist() == [[[[10, 10, 20, 40], [20, 10, 20, 20]]]]


def test_enet_alternates_plain_dilated_and_asymmetric_bottlenecks():
    def middles(stage):
        layers = [block.residual[1][0] for block in stage]
        return ["5x1" if isinstance(m, nn.Sequential) else m.dilation[0] for m in layers]

    network = on_meta("enet")
    assert middles(network.stage2) == [1, 2, "5x1", 4, 1, 8, "5x1", 16]
    assert middles(network.stage3) == [1, 2, "5x1", 4, 8, "5x1", 16]
    whole = on_meta("enet", bottleneck_3_5=True)
    assert middles(whole.stage3) == middles(whole.stage2) == middles(network.stage2)
    shares = [m.p for m in network.modules() if isinstance(m, nn.Dropout2d)]
    assert shares == pytest.approx([0.01] * 5 + [0.1] * (len(shares) - 5))


def test_erfnet_block_factorises_two_convolutions_of_which_the_second_is_dilated():
    torch.manual_seed(4)
    block = randomise_norms(NonBottleneck1d(3, rate=2, dropout=0.3)).eval()
    convolutions = [m for m in block.residual if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.residual if isinstance(m, nn.BatchNorm2d)]
    assert [m.kernel_size for m in convolutions] == [(3, 1), (1, 3)] * 2
    assert [m.dilation for m in convolutions] == [(1, 1), (1, 1), (2, 1), (1, 2)]
    x = torch.randn(2, 3, 8, 7)
    y = a = x.numpy().astype(np.float64)
    for n in range(2):
        y = relu(numpy_conv(y, convolutions[2 * n]))
        y = numpy_norm(numpy_conv(y, convolutions[2 * n + 1]), norms[n])
        y = relu(y) if n == 0 else relu(y + a)
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), y, atol=1e-5)


def test_erfnet_has_5_plain_and_8_dilated_blocks_with_the_published_dropout():
    network = on_meta("erfnet")
    blocks = [m for m in network.encoder if isinstance(m, NonBottleneck1d)]
    assert [b.residual[5].dilation[0] for b in blocks] == [1] * 5 + [2, 4, 8, 16] * 2
    assert [b.residual[-1].p for b in blocks] == pytest.approx([0.03] * 5 + [0.3] * 8)
    assert [m.residual[-1].p for m in network.decoder if isinstance(m, NonBottleneck1d)] == [0] * 4


# Taps, attention and sizes.

TAPS = {  # channels at stride 2 and at stride 8, as the published widths have them
    "unetpp": (128, 512),
    "deeplabv3plus": (32, 2048),
    "enet": (16, 128),
    "espnet": (16, 256),
    "erfnet": (16, 128),
}


@pytest.mark.parametrize("name", NAMES)
def test_taps_of_the_published_widths_are_low_at_stride_2_and_high_at_stride_8(name):
    network = on_meta(name)
    low, high = TAPS[name]
    assert network.taps == {"low": (low, 2), "high": (high, 8)}
    _, features = network.forward_features(torch.empty(1, 1, 64, 48, device="meta"))
    assert {key: tuple(f.shape) for key, f in features.items()} == {
        "low": (1, low, 32, 24),
        "high": (1, high, 8, 6),
    }


@pytest.mark.parametrize("size", [(37, 50), (16, 17), (5, 3)])
@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_any_size_comes_back_with_taps_and_attention_as_declared(name, config, size):
    network = small(name, **config)
    with torch.no_grad():
        logits, attention = network(torch.randn(1, 1, *size), with_attention=True)
        _, features = network.forward_features(torch.randn(1, 1, *size))
    assert logits.shape == (1, 2, *size)
    assert torch.isfinite(logits).all()
    assert list(attention) == [declared["key"] for declared in network.attention]
    for declared in network.attention:
        assert (declared["kind"], declared["axis"]) == ("spatial", None)
        assert declared["title"]
        key = declared["key"]
        channels, stride = network.taps[key]
        grid = tuple(-(-n // stride) for n in size)
        assert features[key].shape == (1, channels, *grid)
        assert attention[key].shape == (1, 1, *grid)
        assert attention[key].dtype == torch.float32
        assert torch.isfinite(attention[key]).all()
        assert attention[key].min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_the_channel_sum_of_the_squared_taps(name):
    network = small(name)
    x = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        _, attention = network(x, with_attention=True)
        _, features = network.forward_features(x)
    for key, feature in features.items():
        expected = (feature.numpy().astype(np.float64) ** 2).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(attention[key].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_are_padded_by_repeating_the_border(name):
    network = small(name)
    x = torch.randn(1, 1, 27, 45)
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (0, 5), (0, 3)], mode="edge"))
    with torch.no_grad():
        expected = network(padded)[:, :, :27, :45]
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (2, 4), (3, 2), (4, 7)])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_inputs_and_classes_are_those_of_the_config(name, n_in, n_out):
    network = small(name, in_channels=n_in, out_channels=n_out, width=8)
    with torch.no_grad():
        assert network(torch.randn(2, n_in, 16, 32)).shape == (2, n_out, 16, 32)


@pytest.mark.parametrize("name", ["enet", "espnet"])
def test_a_single_grey_image_is_three_equal_channels(name):
    grey, colour = small(name), small(name, in_channels=3)
    colour.load_state_dict(grey.state_dict())
    x = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x.repeat(1, 3, 1, 1)), rtol=0, atol=0)


# Training and storing.


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_gradients_reach_every_parameter(name, config):
    network = small(name, **config).train()
    torch.manual_seed(5)
    network(torch.randn(2, 1, 64, 64)).square().sum().backward()
    without = [
        key
        for key, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0 or not torch.isfinite(p.grad).all()
    ]
    assert without == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deeplabv3plus"])
def test_one_image_is_enough_to_train_on(name):
    network = small(name).train()
    network(torch.randn(1, 1, 32, 32)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_deeplabv3plus_trains_on_two_images_or_more_and_answers_one():
    network = small("deeplabv3plus")
    with torch.no_grad():
        assert network(torch.randn(1, 1, 32, 32)).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network.train()(torch.randn(1, 1, 32, 32))


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_eval_mode_is_deterministic_and_independent_of_attention_and_batch(name, config):
    network = small(name, **config)
    x = torch.randn(2, 1, 40, 32)
    with torch.no_grad():
        first = network(x)
        torch.testing.assert_close(network(x), first, rtol=0, atol=0)
        torch.testing.assert_close(network(x, with_attention=True)[0], first, rtol=0, atol=0)
        torch.testing.assert_close(network(x[1:]), first[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_saved_and_loaded_weights_give_equal_outputs(tmp_path, name, config):
    network = randomise_norms(small(name, **config))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(6)
    again = create_network(name, {**SMALL[name], **config}).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        first = network(x)
        assert (again(x) - first).abs().max() > 1e-3
        again.load_state_dict(load_file(tmp_path / "w.safetensors"))
        torch.testing.assert_close(again(x), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_gives_finite_logits_near_those_of_fp32(name):
    network = small(name)
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        plain = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, attention = network(x, with_attention=True)
    assert all(a.dtype == torch.float32 and torch.isfinite(a).all() for a in attention.values())
    # In the mean, because rounding moves some of the maxima that ENet unpools to.
    assert (logits.float() - plain).abs().mean() < 0.05 * plain.abs().mean()


# Configs.


def test_defaults_are_the_published_networks():
    defaults = {name: dataclasses.asdict(NETWORKS[name].config_class()) for name in NAMES}
    common = {"in_channels": 1, "out_channels": 2, "norm": "batch"}
    assert defaults == {
        "unetpp": {**common, "width": 64},
        "deeplabv3plus": {**common, "width": 32, "middle_blocks": 16, "dropout": 0.5},
        "enet": {**common, "width": 16, "bottleneck_3_5": False, "dropout": 0.1},
        "espnet": {**common, "width": 16, "alpha_2": 2, "alpha_3": 3},
        "erfnet": {**common, "width": 16, "dropout": 0.3},
    }


@pytest.mark.parametrize("value", [0, -8, 8.0, "8", None, True])
@pytest.mark.parametrize("field", ["width", "in_channels", "out_channels"])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_channels_that_is_no_whole_number_above_0_is_a_plain_error(name, field, value):
    with pytest.raises(ModelSchemaError, match=field):
        create_network(name, {**SMALL[name], field: value})


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("enet", {"width": 6}, "width is 6 but has to be a multiple of 4"),
        ("enet", {"width": 4, "in_channels": 4}, "width is 4 but has to exceed the stem's 4"),
        ("enet", {"bottleneck_3_5": 1}, "bottleneck_3_5 is 1 but has to be true or false"),
        ("enet", {"dropout": 1}, "dropout is 1 but has to lie from 0 to below 1"),
        ("erfnet", {"width": 4, "in_channels": 4}, "width is 4 but has to exceed the 4 input"),
        ("erfnet", {"dropout": -0.1}, "dropout is -0.1 but has to lie from 0 to below 1"),
        ("espnet", {"width": 1}, "width is 1 but has to be a whole number above 1"),
        ("espnet", {"alpha_3": 0}, "alpha_3 is 0 but has to be a whole number above 0"),
        ("deeplabv3plus", {"middle_blocks": 0}, "middle_blocks is 0 but has to be a whole"),
        ("deeplabv3plus", {"dropout": "0.5"}, "dropout is '0.5' but has to lie from 0 to"),
    ],
)
def test_a_value_that_the_network_refuses_is_a_plain_error(name, config, words):
    with pytest.raises(ModelSchemaError) as caught:
        create_network(name, config)
    assert words in caught.value.message


# Real slices.


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_the_smallest_student_learns_four_real_slices_by_heart(name, prostate_slices):
    images, masks = prostate_slices
    torch.manual_seed(0)
    # To learn by heart, nothing may be dropped.
    drop = {} if name == "espnet" else {"dropout": 0.0}
    network = create_network(name, {**SMALL[name], **drop}).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    start, dice = time.monotonic(), 0.0
    for step in range(600):
        loss = F.cross_entropy(network(images), masks[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 19:
            network.eval()
            with torch.no_grad():
                found = network(images).argmax(dim=1, keepdim=True)
            network.train()
            dice = 2 * float((found * masks).sum()) / float(found.sum() + masks.sum())
            if dice > 0.95:
                break
    print(f"{name}: Dice {dice:.3f} after {step + 1} steps, {time.monotonic() - start:.1f} s")
    assert dice > 0.95
