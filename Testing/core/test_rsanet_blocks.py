"""The blocks of RSANet against their equations, written anew in NumPy."""

import math

import numpy as np
import pytest
import torch

from medsegcore.networks.blocks import NonLocalBlock3d
from medsegcore.networks.rsanet import RSABlock, slice_attention

pytestmark = pytest.mark.usefixtures("one_thread")

# Section 2.2 names the order; the axes are those of [B, C, D, H, W] in RAS orientation.
ORDER = [("sagittal", 4), ("coronal", 3), ("axial", 2)]
ALPHAS = {"sagittal": 0.3, "coronal": 0.5, "axial": 0.7}


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
