"""The edge attention network's blocks and encoder against NumPy, by hand, and against counts."""

import itertools

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from medsegcore.imaging import read_image, resample
from medsegcore.losses.edge_attention import EdgeAttentionLoss, edge_map
from medsegcore.networks import create_network
from medsegcore.networks.blocks import haar_details
from medsegcore.networks.edge_attention import (
    PAM,
    RRB,
    EdgeAttentionConfig,
    EdgeModule,
    Encoder,
    PretrainingNetwork,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"depth": 10, "width": 4, "decoder_width": 4}


def convolved(x: np.ndarray, layer: torch.nn.Conv3d) -> np.ndarray:
    """A convolution of stride 1 that keeps the size, channel by channel."""
    weight = layer.weight.detach().numpy().astype(np.float64)
    pad = [(0, 0), (0, 0), *((k // 2, k // 2) for k in weight.shape[2:])]
    padded = np.pad(x, pad)
    out = np.stack(
        [
            np.stack(
                [
                    sum(
                        correlate(sample[c], kernel[c], mode="valid")
                        for c in range(kernel.shape[0])
                    )
                    for kernel in weight
                ]
            )
            for sample in padded
        ]
    )
    if layer.bias is not None:
        out = out + layer.bias.detach().numpy()[None, :, None, None, None]
    return out


def normalised(x: np.ndarray, layer: torch.nn.BatchNorm3d) -> np.ndarray:
    """Batch normalisation with the layer's running statistics."""
    mean, var, scale, shift = (
        t.detach().numpy().astype(np.float64)[None, :, None, None, None]
        for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (x - mean) / np.sqrt(var + layer.eps) * scale + shift


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def with_random_state(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and statistic away from its start, so that a swap would show."""
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm3d):
                layer.running_mean.normal_(std=0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 2)
                layer.bias.normal_(std=0.3)
    return module.eval()


# The wavelet.


def test_haar_details_of_one_block_by_hand():
    # The block a b / c d = 1 2 / 3 5: over (H, W) the bands are, all halved,
    # 01: (a + c) - (b + d) = 4 - 7 = -3;  10: (a + b) - (c + d) = 3 - 8 = -5;
    # 11: (a + d) - (b + c) = 6 - 5 = 1.
    block = torch.tensor([[1.0, 2.0], [3.0, 5.0]])[None, None, None]
    details = haar_details(block, in_plane=True)
    assert details.shape == (1, 1, 3, 1, 1, 1)
    torch.testing.assert_close(details.flatten(), torch.tensor([-1.5, -2.5, 0.5]))


@pytest.mark.parametrize("in_plane", [True, False])
def test_haar_details_keep_the_energy_that_is_not_in_the_mean(in_plane):
    torch.manual_seed(1)
    x = torch.randn(2, 3, 4, 6, 8)
    details = haar_details(x, in_plane).numpy()
    k = 1 if in_plane else 2
    blocks = x.numpy().reshape(2, 3, 4 // k, k, 3, 2, 4, 2)
    n = 4 * k
    left = (blocks**2).sum((3, 5, 7)) - blocks.sum((3, 5, 7)) ** 2 / n
    np.testing.assert_allclose((details**2).sum(2), left, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("in_plane", [True, False])
def test_haar_details_are_the_sums_and_differences_of_a_loop_at_odd_sizes(in_plane, stride):
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 2, 3, 5, 4)).astype(np.float32))
    details = haar_details(x, in_plane, stride).numpy()[0]
    source = x.numpy()[0]
    depth = [0] if in_plane else [0, 1]
    bands = [b for b in itertools.product([0] if in_plane else [0, 1], [0, 1], [0, 1]) if any(b)]
    steps = (1 if in_plane else stride, stride, stride)
    sizes = [-(-n // s) for n, s in zip((3, 5, 4), steps, strict=True)]
    assert details.shape == (2, len(bands), *sizes)
    for c, b, d, h, w in itertools.product(range(2), range(len(bands)), *map(range, sizes)):
        expected = 0.0
        for offset in itertools.product(depth, [0, 1], [0, 1]):
            at = [
                min(p * s + o, n - 1)
                for p, s, o, n in zip((d, h, w), steps, offset, (3, 5, 4), strict=True)
            ]
            sign = (-1) ** sum(o * bit for o, bit in zip(offset, bands[b], strict=True))
            expected += sign * source[c][tuple(at)]
        expected /= 2 if in_plane else 2 * np.sqrt(2)
        assert details[c, b, d, h, w] == pytest.approx(expected, abs=1e-5)


# The decoder's blocks.


def test_rrb_refines_within_and_between_slices_and_adds_its_input():
    block = with_random_state(RRB(3, 4))
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 6))
    kernels = [m.kernel_size for m in block.refine if isinstance(m, torch.nn.Conv3d)]
    assert kernels == [(1, 3, 3), (3, 1, 1)] * 2  # the paper's 3x3x1 and 1x1x3 in D, H, W
    first, second, norm1, _, third, fourth, norm2 = block.refine
    projected = convolved(x, block.project)
    refined = relu(normalised(convolved(convolved(projected, first), second), norm1))
    refined = normalised(convolved(convolved(refined, third), fourth), norm2)
    out = block(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(out, relu(projected + refined), atol=1e-4)


def test_pam_weighs_the_pyramid_by_the_decoder_and_adds_the_encoder():
    block = with_random_state(PAM(3, 4, (3, 5)))
    random = np.random.default_rng(2)
    encoded, decoded = random.normal(size=(1, 3, 2, 6, 7)), random.normal(size=(1, 4, 2, 6, 7))
    projected = convolved(encoded, block.project)
    pyramid = np.concatenate([convolved(projected, layer) for layer in block.pyramid], axis=1)
    fused = relu(normalised(convolved(pyramid, block.fuse[0]), block.fuse[1]))
    weights = sigmoid(convolved(decoded, block.weigh))
    out, given = block(torch.from_numpy(encoded).float(), torch.from_numpy(decoded).float())
    np.testing.assert_allclose(given.detach().numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(out.detach().numpy(), weights * fused + projected, atol=1e-4)


@pytest.mark.parametrize("wavelet", [True, False])
def test_edge_module_guides_its_input_by_the_edge_map(wavelet):
    block = with_random_state(EdgeModule(2, wavelet, in_plane=True))
    x = np.random.default_rng(3).normal(size=(1, 2, 3, 4, 6))
    source = x
    if wavelet:
        a, b, c, d = (x[..., i::2, j::2] for i, j in itertools.product((0, 1), repeat=2))
        bands = np.stack([a - b + c - d, a + b - c - d, a - b - c + d], axis=2) / 2
        source = bands.reshape(1, 6, 3, 2, 3)
    mix, norm1, _, within, between, norm2, _ = block.extract
    features = relu(normalised(convolved(source, mix), norm1))
    features = relu(normalised(convolved(convolved(features, within), between), norm2))
    if wavelet:
        # Linear between the blocks' centres, which lie at 0.5, 2.5, ... of the finer grid.
        for axis, size in ((3, 4), (4, 6)):
            centres = np.arange(0.5, size, 2)
            features = np.apply_along_axis(
                lambda line, at=centres, n=size: np.interp(np.arange(n), at, line), axis, features
            )
    edge = sigmoid(convolved(features, block.map))
    out, given_features, given_edge = block(torch.from_numpy(x).float())
    np.testing.assert_allclose(given_features.detach().numpy(), features, atol=1e-4)
    np.testing.assert_allclose(given_edge.detach().numpy(), edge, atol=1e-5)
    np.testing.assert_allclose(out.detach().numpy(), x + x * edge, atol=1e-4)


# The encoder and its transfer.


@pytest.mark.parametrize(
    ("depth", "count"),
    [(10, 14_355_520), (18, 33_160_000), (34, 63_469_632), (50, 46_155_072), (101, 85_201_216)],
)
def test_encoders_have_the_parameters_of_med3d(depth, count):
    with torch.device("meta"):
        encoder = Encoder(EdgeAttentionConfig(depth=depth))
    assert sum(p.numel() for p in encoder.parameters()) == count


def test_the_pretraining_network_has_the_parameters_of_med3d():
    with torch.device("meta"):
        network = PretrainingNetwork(EdgeAttentionConfig())
    assert sum(p.numel() for p in network.parameters()) == 85_753_376


@pytest.mark.parametrize("stride", [1, 2])
def test_the_third_block_is_dilated_by_2_and_the_output_stride_is_8(stride):
    encoder = Encoder(EdgeAttentionConfig(depth=50, width=4, stem_depth_stride=stride)).eval()
    for block in encoder.layer3:
        assert block.conv2.dilation == (2, 2, 2)
    assert encoder.layer3[0].conv2.stride == (1, 1, 1)
    with torch.no_grad():
        shapes = [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 32, 48))]
    d = (8, 4, 2, 2, 2) if stride == 2 else (16, 16, 8, 8, 8)
    assert shapes == [
        (1, 4, d[0], 16, 24), (1, 16, d[1], 8, 12), (1, 32, d[2], 4, 6),
        (1, 64, d[3], 4, 6), (1, 128, d[4], 4, 6),
    ]  # fmt: skip


def test_a_transferred_and_frozen_encoder_stays_as_it_was_pretrained():
    torch.manual_seed(5)
    source = create_network("edge_attention_pretraining", SMALL)
    with_random_state(source)
    network = create_network("edge_attention", SMALL)
    weights = {k: v.clone() for k, v in source.encoder.state_dict().items()}
    network.encoder.transfer(weights, freeze=True)
    network.train()
    x = torch.randn(2, 1, 8, 32, 32)
    network(x).square().mean().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for name, value in network.encoder.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, msg=name)
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.bottom.parameters())
    network.encoder.transfer(weights, freeze=False)
    network.train()
    network(x).square().mean().backward()
    assert all(p.grad is not None for p in network.encoder.parameters())


def test_weights_of_another_encoder_are_refused_and_nothing_changes():
    network = create_network("edge_attention", SMALL)
    before = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    other = create_network("edge_attention", {**SMALL, "depth": 18}).encoder.state_dict()
    with pytest.raises(ValueError, match="another encoder"):
        network.encoder.transfer(other, freeze=True)
    wide = create_network("edge_attention", {**SMALL, "width": 8}).encoder.state_dict()
    with pytest.raises(ValueError, match=r"'conv1.weight' is \[8, 1, 7, 7, 7\] but"):
        network.encoder.transfer(wide, freeze=True)
    for name, value in network.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not network.encoder.frozen


# The network.


def test_edges_come_from_the_last_three_levels_and_their_features_reach_the_prediction():
    network = create_network("edge_attention", SMALL).eval()
    with torch.no_grad():
        logits, attention = network(torch.randn(1, 1, 9, 34, 50), with_attention=True)
    assert logits.shape == (1, 2, 9, 34, 50)
    # 34 and 50 halve, rounded up, to 17, 25; 9, 13; 5, 7. The stem keeps the 9 slices.
    assert [tuple(attention[f"edge{n}"].shape[2:]) for n in (1, 2, 3)] == [
        (5, 5, 7), (9, 9, 13), (9, 17, 25),
    ]  # fmt: skip
    assert [tuple(attention[f"pam{n}"].shape[2:]) for n in (1, 2, 3, 4)] == [
        (5, 5, 7), (5, 5, 7), (9, 9, 13), (9, 17, 25),
    ]  # fmt: skip
    for weights in attention.values():
        assert 0 <= weights.min() <= weights.max() <= 1
    for module in network.edge:
        x = torch.randn(1, 1, 8, 32, 32)
        with torch.no_grad():
            before = network(x)
            keep = module.map.bias.clone()
            module.map.bias.add_(3)
            assert (network(x) - before).abs().max() > 1e-5
            module.map.bias.copy_(keep)


def test_the_ablation_without_edges_has_none_and_the_plain_one_no_wavelet():
    plain = create_network("edge_attention", {**SMALL, "edges": "convolution"})
    assert plain.edge[0].extract[0].in_channels == 4
    wavelet = create_network("edge_attention", SMALL)
    assert wavelet.edge[0].extract[0].in_channels == 3 * 4
    thin = create_network("edge_attention", {**SMALL, "stem_depth_stride": 2})
    assert thin.edge[0].extract[0].in_channels == 7 * 4
    none = create_network("edge_attention", {**SMALL, "edges": "none"})
    assert [a["key"] for a in none.attention] == ["pam1", "pam2", "pam3", "pam4"]


@pytest.mark.slow
def test_it_learns_a_real_prostate_patch_by_heart(shared_data):
    case = shared_data / "prostate" / "ucla" / "0001"
    image = read_image(case / "t2w.nii.gz")
    mask = resample(read_image(case / "prostate.nii.gz"), image.grid, "nearest").array > 0
    k = int(np.argwhere(mask)[:, 0].mean())
    rows, columns = (int(c) for c in np.argwhere(mask)[:, 1:].mean(axis=0))
    box = tuple(
        slice(max(c - n, 0), c + n, s) for c, n, s in ((k, 4, 1), (rows, 64, 2), (columns, 64, 2))
    )
    patch = image.array[box].astype(np.float32)
    x = torch.from_numpy((patch - patch.mean()) / patch.std())[None, None]
    y = torch.from_numpy(mask[box].astype(np.float32))[None, None]
    assert 0.05 < y.mean() < 0.6
    torch.manual_seed(1)
    network = create_network("edge_attention", {"depth": 10, "width": 8, "decoder_width": 8})
    loss = EdgeAttentionLoss()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss(*network(x, with_attention=True), y).backward()
        optimiser.step()
    with torch.no_grad():
        logits, attention = network(x, with_attention=True)
    answer = logits.argmax(1, keepdim=True)
    assert 2 * (answer * y).sum() / (answer.sum() + y.sum()) > 0.95
    # The edge maps, which only the loss's edge terms teach, follow the boundary.
    edge = attention["edge3"]
    boundary = torch.nn.functional.adaptive_max_pool3d(edge_map(y, in_plane=True), edge.shape[2:])
    assert edge[boundary > 0].mean() > 3 * edge[boundary == 0].mean()
