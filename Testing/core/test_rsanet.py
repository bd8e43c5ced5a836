"""RSANet against its equations, written anew in NumPy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsegcore.errors import ModelSchemaError
from medsegcore.networks import NETWORKS, create_network
from medsegcore.networks.blocks import NonLocalBlock3d
from medsegcore.networks.rsanet import (
    RSABlock,
    RSANet,
    RSANetConfig,
    Up,
    slice_attention,
)

SMALL = {"width": 8, "norm_groups": 4}
ODD = (35, 50, 41)

# Section 2.2 names the order; the axes are those of [B, C, D, H, W] in RAS orientation.
ORDER = [("sagittal", 4), ("coronal", 3), ("axial", 2)]
ALPHAS = {"sagittal": 0.3, "coronal": 0.5, "axial": 0.7}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks here are too small to gain from threads, which a busy machine makes slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_slice_attention(theta, phi, value, axis):
    """Eq. 1 and 2 slice by slice: every dot product and weighted sum is written out."""
    batch, length = theta.shape[0], theta.shape[axis]
    attention = np.zeros((batch, length, length))
    gathered = np.zeros(value.shape)
    for b in range(batch):
        slices = [
            [np.take(m[b], n, axis=axis - 1).astype(np.float64) for n in range(length)]
            for m in (theta, phi, value)
        ]
        scores = np.array([[(q * k).sum() for k in slices[1]] for q in slices[0]])
        attention[b] = softmax(scores)
        for n in range(length):
            index = [slice(None)] * 4
            index[axis - 1] = n
            gathered[b][tuple(index)] = sum(
                attention[b, n, m] * slices[2][m] for m in range(length)
            )
    return gathered, attention


def convolved(x: np.ndarray, layer: torch.nn.Conv3d) -> np.ndarray:
    """A 1x1x1 convolution as a matrix product over the channels."""
    weight = layer.weight.detach().numpy()[:, :, 0, 0, 0].astype(np.float64)
    bias = layer.bias.detach().numpy()[None, :, None, None, None]
    return np.einsum("oc,bcdhw->bodhw", weight, x) + bias


def numpy_rsa_block(block: RSABlock, x: torch.Tensor, order):
    """Section 2.2 with the block's own weights, its directions taken in `order`."""
    e = x.detach().numpy().astype(np.float64)
    attention = {}
    for direction, axis in order:
        maps = [convolved(e, layer) for layer in (block.theta, block.phi, block.g)]
        gathered, attention[direction] = numpy_slice_attention(*maps, axis)
        e = ALPHAS[direction] * gathered + e
    return e, attention


def rsa_block_with_alphas(channels: int) -> RSABlock:
    torch.manual_seed(1)
    block = RSABlock(channels)
    with torch.no_grad():
        for direction, alpha in ALPHAS.items():
            block.alpha[direction].fill_(alpha)
    return block


def wake_blocks(network: RSANet) -> RSANet:
    """Give the factors that start at zero a value, so that the blocks change their input."""
    torch.manual_seed(4)
    with torch.no_grad():
        for block in network.blocks.values():
            if isinstance(block, RSABlock):
                for alpha in block.alpha.values():
                    alpha.fill_(0.1)
            else:
                block.out.weight.normal_(std=0.1)
    return network


def parameters_on_meta(**config) -> int:
    """The number of parameters, without the memory that they take."""
    with torch.device("meta"):
        network = RSANet(RSANetConfig(**config))
    return sum(p.numel() for p in network.parameters())


# Slice attention: eq. 1 and 2.


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_slice_attention_is_equation_1_and_2_along_each_axis(axis):
    random = np.random.default_rng(axis)
    theta, phi, value = (random.normal(size=(2, 3, 4, 5, 6)).astype(np.float32) for _ in range(3))
    gathered, attention = slice_attention(*map(torch.from_numpy, (theta, phi, value)), axis)
    expected, weights = numpy_slice_attention(theta, phi, value, axis)
    assert attention.shape == (2, theta.shape[axis], theta.shape[axis])
    np.testing.assert_allclose(attention.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(gathered.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_slice_attention_of_two_slices_by_hand(axis):
    # Two slices of one voxel: theta = (1, 0), phi = (ln 3, 0), value = (4, 8).
    # Slice 0 scores (ln 3, 0), weights 3/4 and 1/4, gathers 3/4*4 + 1/4*8 = 5.
    # Slice 1 scores (0, 0), weights 1/2 and 1/2, gathers 6.
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 2

    def pair(a, b):
        return torch.tensor([a, b], dtype=torch.float32).reshape(shape)

    gathered, attention = slice_attention(pair(1, 0), pair(np.log(3), 0), pair(4, 8), axis)
    torch.testing.assert_close(attention, torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    torch.testing.assert_close(gathered, pair(5, 6))


def test_slice_attention_sums_over_channels_and_both_other_axes_without_a_scale():
    # Slices of 2 channels and 1x2 voxels, all of one value: 4 terms in each dot product.
    # theta = 1 and 0, phi = ln(3)/4 and 0 therefore score ln 3 as above, whatever the size.
    def slices(a, b):
        return torch.tensor([a, b]).reshape(1, 1, 2, 1, 1).expand(1, 2, 2, 1, 2)

    theta, phi = slices(1.0, 0.0), slices(math.log(3) / 4, 0.0)
    gathered, attention = slice_attention(theta, phi, slices(4.0, 8.0), 2)
    torch.testing.assert_close(attention, torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    torch.testing.assert_close(gathered, slices(5.0, 6.0))


def test_slice_attention_under_bf16_autocast_is_as_exact_as_fp32():
    torch.manual_seed(5)
    halves = [torch.randn(1, 3, 4, 5, 6).bfloat16() for _ in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gathered, attention = slice_attention(*halves, 3)
    expected, weights = numpy_slice_attention(*(m.float().numpy() for m in halves), 3)
    assert attention.dtype == gathered.dtype == torch.float32
    # bf16 has 8 bits: products of this size computed in it are wrong by more than 1e-2.
    np.testing.assert_allclose(attention.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(gathered.numpy(), expected, atol=1e-4)


def test_slice_attention_stays_finite_where_fp16_scores_would_overflow():
    # 64 terms of 100 * 100 score 640,000; the largest fp16 number is 65,504.
    theta = torch.full((1, 16, 2, 2, 2), 100.0, dtype=torch.float16)
    phi = theta.clone()
    phi[:, :, 1] = 50.0
    value = torch.ones_like(theta)
    value[:, :, 1] = 2.0
    gathered, attention = slice_attention(theta, phi, value, 2)
    torch.testing.assert_close(attention, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
    torch.testing.assert_close(gathered, torch.ones(1, 16, 2, 2, 2))


# The recurrent block of section 2.2.


def test_rsa_block_goes_sagittal_coronal_axial_and_computes_anew_each_time():
    block = rsa_block_with_alphas(4)
    x = torch.randn(2, 4, 3, 4, 5)
    out, attention = block(x)
    expected, weights = numpy_rsa_block(block, x, ORDER)
    assert list(attention) == ["sagittal", "coronal", "axial"]
    for direction, _ in ORDER:
        np.testing.assert_allclose(
            attention[direction].detach().numpy(), weights[direction], atol=1e-4
        )
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1], [2, 1, 0]])
def test_rsa_block_in_any_other_order_gives_something_else(order):
    block = rsa_block_with_alphas(4)
    x = torch.randn(1, 4, 3, 4, 5)
    other, _ = numpy_rsa_block(block, x, [ORDER[n] for n in order])
    assert np.abs(block(x)[0].detach().numpy() - other).max() > 1e-2


def test_rsa_block_shares_three_kernels_and_has_an_alpha_per_direction():
    for channels in (4, 512):
        count = sum(p.numel() for p in RSABlock(channels).parameters())
        assert count == 3 * (channels**2 + channels) + 3
    assert count == 787_971
    names = {name for name, _ in RSABlock(4).named_parameters()}
    kernels = {
        f"{kernel}.{kind}" for kernel in ("theta", "phi", "g") for kind in ("weight", "bias")
    }
    assert names == kernels | {"alpha.sagittal", "alpha.coronal", "alpha.axial"}


def test_rsa_block_starts_as_identity_because_its_alphas_start_at_zero():
    block = RSABlock(4)
    assert [alpha.item() for alpha in block.alpha.values()] == [0, 0, 0]
    x = torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(block(x)[0], x, rtol=0, atol=0)


def test_rows_of_every_slice_attention_sum_to_1():
    _, attention = rsa_block_with_alphas(4)(torch.randn(2, 4, 3, 4, 5))
    for direction, length in (("sagittal", 5), ("coronal", 4), ("axial", 3)):
        assert attention[direction].shape == (2, length, length)
        torch.testing.assert_close(attention[direction].sum(dim=-1), torch.ones(2, length))


def test_rsa_block_under_bf16_autocast_attends_in_fp32_and_keeps_the_inputs_type():
    block = rsa_block_with_alphas(4)
    for dtype in (torch.float32, torch.bfloat16):
        x = 100 * torch.randn(1, 4, 4, 4, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, attention = block(x.to(dtype))
        assert out.dtype == dtype
        assert torch.isfinite(out).all()
        for weights in attention.values():
            assert weights.dtype == torch.float32
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 4))


# The non-local block of the comparison.


def test_non_local_block_gathers_over_all_voxels():
    torch.manual_seed(2)
    block = NonLocalBlock3d(4)
    with torch.no_grad():
        block.out.weight.normal_()
        block.out.bias.normal_()
    x = torch.randn(2, 4, 2, 3, 2)
    z, attention = block(x)
    a = x.numpy().astype(np.float64)
    theta, phi, g = (convolved(a, m).reshape(2, 2, 12) for m in (block.theta, block.phi, block.g))
    weights, y = np.zeros((2, 12, 12)), np.zeros((2, 2, 12))
    for b in range(2):
        for i in range(12):
            weights[b, i] = softmax(np.array([theta[b, :, i] @ phi[b, :, j] for j in range(12)]))
            y[b, :, i] = sum(weights[b, i, j] * g[b, :, j] for j in range(12))
    np.testing.assert_allclose(attention.detach().numpy(), weights, atol=1e-5)
    expected = convolved(y.reshape(2, 2, 2, 3, 2), block.out) + a
    np.testing.assert_allclose(z.detach().numpy(), expected, atol=1e-5)


def test_non_local_block_of_two_voxels_by_hand():
    block = NonLocalBlock3d(1, reduction=1)
    with torch.no_grad():
        for layer, weight in ((block.theta, 1), (block.phi, 1), (block.g, 2), (block.out, 3)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    # x = (0, s) with s = sqrt(ln 3), so g = (0, 2s). Voxel 0 scores (0, 0), weights 1/2 and 1/2,
    # gathers s, z = 3s + 0. Voxel 1 scores (0, ln 3), weights 1/4 and 3/4, gathers 3/2 s,
    # z = 3 * 3/2 s + s = 5.5 s. With s = 1.048147: z = (3.144441, 5.764809).
    s = math.sqrt(math.log(3))
    z, attention = block(torch.tensor([0.0, s]).reshape(1, 1, 1, 1, 2))
    torch.testing.assert_close(attention, torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))
    expected = torch.tensor([3.144441, 5.764809])
    torch.testing.assert_close(z.flatten(), expected, rtol=0, atol=1e-5)


def test_non_local_block_starts_as_identity_with_half_the_channels_inside():
    block = NonLocalBlock3d(6)
    assert [m.out_channels for m in (block.theta, block.phi, block.g)] == [3, 3, 3]
    x = torch.randn(1, 6, 2, 3, 2)
    z, attention = block(x)
    torch.testing.assert_close(z, x, rtol=0, atol=0)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, 12))


def test_non_local_block_attends_in_fp32_under_bf16_autocast():
    block = NonLocalBlock3d(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, attention = block(10 * torch.randn(1, 4, 2, 3, 2))
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, 12))


@pytest.mark.parametrize("make", [RSABlock, NonLocalBlock3d])
def test_the_bias_of_phi_changes_nothing(make):
    # It adds the same number to a whole row of scores, which the softmax takes away again.
    torch.manual_seed(6)
    block = make(4)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(1, 4, 2, 3, 2)
    before = block(x)[0]
    with torch.no_grad():
        block.phi.bias.add_(torch.randn(block.phi.bias.shape))
    torch.testing.assert_close(block(x)[0], before, rtol=1e-4, atol=1e-4)


# The network.


def test_published_width_has_the_published_number_of_parameters():
    count = parameters_on_meta()
    assert count == 24_554_339
    assert abs(count / 24.55e6 - 1) < 0.005


@pytest.mark.parametrize(("placement", "blocks"), [("000", []), ("101", [256] * 2)])
def test_every_placed_block_adds_its_own_parameters_to_the_backbone(placement, blocks):
    expected = 23_766_368 + sum(3 * (c**2 + c) + 3 for c in blocks)
    assert parameters_on_meta(placement=placement) == expected


@pytest.mark.parametrize(
    ("placement", "channels"),
    [
        ("000", {}),
        ("010", {"bottom": 128}),
        ("101", {"encoder": 64, "decoder": 64}),
        ("111", {"encoder": 64, "bottom": 128, "decoder": 64}),
    ],
)
@pytest.mark.parametrize("block", ["rsa", "nonlocal"])
def test_placements_hold_their_blocks_exactly_there(placement, channels, block):
    network = create_network("rsanet", {**SMALL, "placement": placement, "block": block}).eval()
    kind = RSABlock if block == "rsa" else NonLocalBlock3d
    assert {place: module.g.in_channels for place, module in network.blocks.items()} == channels
    assert [m for m in network.modules() if isinstance(m, kind)] == list(network.blocks.values())
    seen = []
    for place, module in network.blocks.items():
        module.register_forward_pre_hook(
            lambda _, args, place=place: seen.append((place, tuple(args[0].shape)))
        )
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 16, 16))
    sizes = {"encoder": (4, 2, 2), "bottom": (2, 1, 1), "decoder": (4, 2, 2)}
    assert seen == [(place, (1, c, *sizes[place])) for place, c in channels.items()]


@pytest.mark.parametrize("block", ["rsa", "nonlocal"])
def test_every_placed_block_changes_the_logits(block):
    torch.manual_seed(7)
    network = create_network("rsanet", {**SMALL, "placement": "111", "block": block}).eval()
    x = torch.randn(1, 3, 32, 16, 16)
    with torch.no_grad():
        plain = network(x)
        for place, module in network.blocks.items():
            start = {k: v.clone() for k, v in module.state_dict().items()}
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert (network(x) - plain).abs().max() > 1e-4, place
            module.load_state_dict(start)


@pytest.mark.parametrize(
    ("block", "placement"),
    [
        ("rsa", "000"),
        ("rsa", "010"),
        ("rsa", "101"),
        ("rsa", "111"),
        ("nonlocal", "010"),
        ("nonlocal", "111"),
    ],
)
def test_declared_attention_is_what_forward_returns_at_odd_sizes(block, placement):
    network = create_network("rsanet", {**SMALL, "placement": placement, "block": block}).eval()
    with torch.no_grad():
        logits, attention = network(torch.randn(1, 3, *ODD), with_attention=True)
    assert logits.shape == (1, 2, *ODD)
    assert list(attention) == [declared["key"] for declared in network.attention]
    places = {"000": [], "010": ["bottom"], "101": ["encoder", "decoder"]}.get(
        placement, ["encoder", "bottom", "decoder"]
    )
    # 35, 50 and 41 halve, rounded up, to 5, 7, 6 at stride 8 and 3, 4, 3 at stride 16.
    grids = {"encoder": (5, 7, 6), "bottom": (3, 4, 3), "decoder": (5, 7, 6)}
    expected = {}
    for place in places:
        d, h, w = grids[place]
        if block == "rsa":
            expected[f"{place}_sagittal"] = ("slice", "sagittal", (1, w, w))
            expected[f"{place}_coronal"] = ("slice", "coronal", (1, h, h))
            expected[f"{place}_axial"] = ("slice", "axial", (1, d, d))
        else:
            expected[f"{place}_nonlocal"] = ("spatial", None, (1, 1, d, h, w))
    expected["decoder"] = ("spatial", None, (1, 1, *ODD))
    found = {
        declared["key"]: (declared["kind"], declared["axis"], attention[declared["key"]].shape)
        for declared in network.attention
    }
    assert found == expected
    titles = [declared["title"] for declared in network.attention]
    assert all(titles)
    assert len(set(titles)) == len(titles)
    assert all(a.dtype == torch.float32 for a in attention.values())


def test_attention_holds_the_matrices_of_each_rsa_block():
    network = wake_blocks(create_network("rsanet", {**SMALL, "placement": "111"})).eval()
    made = {}
    for place, module in network.blocks.items():
        module.register_forward_hook(
            lambda _, args, output, place=place: made.update(
                {f"{place}_{direction}": a for direction, a in output[1].items()}
            )
        )
    with torch.no_grad():
        _, attention = network(torch.randn(1, 3, 16, 32, 48), with_attention=True)
    assert len(made) == 9
    for key, matrix in made.items():
        torch.testing.assert_close(attention[key], matrix, rtol=0, atol=0)


def test_non_local_attention_is_what_the_image_takes_from_a_voxel():
    network = create_network("rsanet", {**SMALL, "block": "nonlocal"}).eval()
    made = []
    network.blocks["bottom"].register_forward_hook(lambda _, args, out: made.append(out[1]))
    with torch.no_grad():
        _, attention = network(torch.randn(1, 3, 32, 48, 32), with_attention=True)
    matrix = made[0][0].numpy()
    # The mean over the rows: column j says how much all voxels together gather from voxel j.
    expected = np.array([matrix[:, j].mean() for j in range(12)]).reshape(1, 1, 2, 3, 2)
    np.testing.assert_allclose(attention["bottom_nonlocal"].numpy(), expected, atol=1e-6)


def test_decoder_map_is_the_channel_sum_of_squares_before_the_head():
    network = create_network("rsanet", SMALL).eval()
    features = []
    network.head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    with torch.no_grad():
        _, attention = network(torch.randn(2, 3, 16, 16, 16), with_attention=True)
    expected = (features[0].numpy() ** 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(attention["decoder"].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [ODD, (17, 25, 20), (16, 16, 33)])
def test_sizes_come_back_as_they_were(size):
    network = create_network("rsanet", SMALL).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 2, *size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 2), (2, 4), (4, 2)])
def test_numbers_of_inputs_and_classes_are_those_of_the_config(n_in, n_out):
    network = create_network("rsanet", {**SMALL, "in_channels": n_in, "out_channels": n_out})
    with torch.no_grad():
        assert network(torch.randn(1, n_in, 32, 16, 16)).shape == (1, n_out, 32, 16, 16)


def test_up_doubles_by_nearest_cuts_the_low_side_and_puts_the_skip_first():
    up = Up(4, groups=2)
    joined = []
    up.level.register_forward_pre_hook(lambda _, args: joined.append(args[0].detach().numpy()))
    x, skip = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 2, 3, 4, 5)
    out = up(x, skip)
    assert out.shape == (1, 2, 3, 4, 5)
    weight = up.reduce.weight.detach().numpy()[:, :, 0, 0, 0]
    doubled = np.einsum("oc,bcdhw->bodhw", weight, x.numpy())
    for axis in (2, 3, 4):
        doubled = doubled.repeat(2, axis=axis)
    expected = np.zeros((1, 4, 3, 4, 5), dtype=np.float32)
    expected[:, :2] = skip.numpy()
    expected[:, 2:, :, :, 1:] = doubled[:, :, 1:]  # 4 to 3: low side cut; 4 to 5: low side zero
    np.testing.assert_allclose(joined[0], expected, atol=1e-6)


@pytest.mark.parametrize("block", ["rsa", "nonlocal"])
def test_eval_mode_is_deterministic_with_and_without_attention(block):
    torch.manual_seed(8)
    config = {**SMALL, "placement": "111", "block": block}
    network = wake_blocks(create_network("rsanet", config)).eval()
    x = torch.randn(1, 3, 32, 16, 32)
    with torch.no_grad():
        first = network(x)
        torch.testing.assert_close(network(x), first, rtol=0, atol=0)
        logits, _ = network(x, with_attention=True)
    torch.testing.assert_close(logits, first, rtol=0, atol=0)


def test_training_drops_channels_of_the_stem_and_eval_does_not():
    torch.manual_seed(9)
    network = create_network("rsanet", {**SMALL, "dropout": 0.5})
    x = torch.randn(1, 3, 16, 16, 16)
    with torch.no_grad():
        network.train()
        assert (network(x) - network(x)).abs().max() > 0
        network.eval()
        assert (network(x) - network(x)).abs().max() == 0


@pytest.mark.parametrize("block", ["rsa", "nonlocal"])
def test_saved_and_loaded_weights_give_equal_outputs(tmp_path, block):
    torch.manual_seed(3)
    config = {**SMALL, "placement": "111", "block": block}
    network = wake_blocks(create_network("rsanet", config)).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(10)
    again = create_network("rsanet", config).eval()
    x = torch.randn(1, 3, 32, 16, 32)
    with torch.no_grad():
        first, maps = network(x, with_attention=True)
        assert (again(x) - first).abs().max() > 1e-3
        again.load_state_dict(load_file(tmp_path / "w.safetensors"))
        second, maps_again = again(x, with_attention=True)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    for key, a in maps.items():
        torch.testing.assert_close(maps_again[key], a, rtol=0, atol=0)


def gradients(network: RSANet) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(11)
    network(torch.randn(1, 3, 32, 16, 16)).square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("block", ["rsa", "nonlocal"])
def test_gradients_reach_every_parameter(block):
    # Eq. 2 multiplies what theta, phi and g make by alpha, which starts at 0: their gradients
    # are 0 until alpha has moved. So alpha is 0.1 here (W_z random for the non-local block).
    config = {**SMALL, "placement": "111", "block": block}
    found = gradients(wake_blocks(create_network("rsanet", config)))
    without = [name for name, g in found.items() if g is None or not g.abs().max() > 0]
    # The bias of phi changes nothing (see above); its gradient is 0 up to rounding.
    assert [name for name in without if not name.endswith("phi.bias")] == []
    assert all(torch.isfinite(g).all() for g in found.values())


def test_at_the_start_only_the_alphas_of_an_rsa_block_learn():
    found = gradients(create_network("rsanet", {**SMALL, "placement": "111"}))
    for name, gradient in found.items():
        if not name.startswith("blocks."):
            continue
        learns = gradient is not None and gradient.abs().max() > 0
        assert learns == ("alpha" in name), name


# Its config.


def test_defaults_are_the_published_network():
    assert dataclasses.asdict(RSANetConfig()) == {
        "in_channels": 3,
        "out_channels": 2,
        "width": 32,
        "block": "rsa",
        "placement": "010",
        "norm_groups": 8,
        "dropout": 0.2,
    }
    assert RSANet.multiple == 2**4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"placement": "011"}, "placement is '011', not one of ['000', '010', '101', '111']"),
        ({"placement": 10}, "placement is 10, not one of ['000', '010', '101', '111']"),
        ({"block": "gate"}, "block is 'gate' but has to be 'rsa' or 'nonlocal'"),
        ({"width": 10, "norm_groups": 4}, "norm_groups 4 does not divide width 10"),
        ({"norm_groups": 0}, "norm_groups is 0 but has to be a whole number above 0"),
        ({"norm_groups": -8}, "norm_groups is -8 but has to be a whole number above 0"),
        ({"dropout": 1.5}, "dropout is 1.5 but has to lie from 0 to below 1"),
    ],
)
def test_a_value_that_the_network_refuses_is_a_plain_error(config, words):
    with pytest.raises(ModelSchemaError) as caught:
        create_network("rsanet", config)
    assert caught.value.message.startswith("The network 'rsanet' refuses its config: ")
    assert words in caught.value.message
    assert caught.value.code == "model.schema"


@pytest.mark.parametrize("value", [0, -8])
@pytest.mark.parametrize("field", ["width", "in_channels", "out_channels"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_number_of_channels_below_1_is_a_plain_error(field, value):
    with pytest.raises(ModelSchemaError, match=field):
        create_network("rsanet", {**SMALL, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 8.0),
        ("width", "8"),
        ("in_channels", "3"),
        ("out_channels", None),
        ("norm_groups", 4.0),
        ("placement", ["010"]),
        ("dropout", "0.2"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_its_setting(field, value):
    with pytest.raises(ModelSchemaError, match=field):
        create_network("rsanet", {**SMALL, field: value})


def test_an_unknown_network_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ModelSchemaError) as caught:
        create_network("unet9", {})
    assert caught.value.message == "There is no network named 'unet9'."
    assert caught.value.action == f"Known networks: {', '.join(sorted(NETWORKS))}."
    assert "rsanet" in caught.value.action


def test_an_unknown_field_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ModelSchemaError) as caught:
        create_network("rsanet", {**SMALL, "depth": 3})
    assert caught.value.message == "The network 'rsanet' has no setting 'depth'."
    for field in dataclasses.fields(RSANetConfig):
        assert field.name in caught.value.action
