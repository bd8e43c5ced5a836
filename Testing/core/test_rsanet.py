"""RSANet against its equations, written anew in NumPy."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsegcore.errors import ModelSchemaError
from medsegcore.networks import create_network
from medsegcore.networks.blocks import NonLocalBlock3d
from medsegcore.networks.rsanet import (
    DIRECTIONS,
    RSABlock,
    RSANet,
    RSANetConfig,
    slice_attention,
)

SMALL = {"width": 8, "norm_groups": 4}


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


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_slice_attention_is_equation_1_and_2_along_each_axis(axis):
    random = np.random.default_rng(axis)
    theta, phi, value = (random.normal(size=(2, 3, 4, 5, 6)).astype(np.float32) for _ in range(3))
    gathered, attention = slice_attention(*map(torch.from_numpy, (theta, phi, value)), axis)
    expected, weights = numpy_slice_attention(theta, phi, value, axis)
    np.testing.assert_allclose(attention.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(gathered.numpy(), expected, atol=1e-4)


def test_slice_attention_of_two_slices_by_hand():
    # Two axial slices of one voxel: theta = (1, 0), phi = (ln 3, 0), value = (4, 8).
    # Slice 0 scores (ln 3, 0), weights 3/4 and 1/4, gathers 3/4*4 + 1/4*8 = 5.
    # Slice 1 scores (0, 0), weights 1/2 and 1/2, gathers 6.
    def column(a, b):
        return torch.tensor([a, b], dtype=torch.float32).reshape(1, 1, 2, 1, 1)

    gathered, attention = slice_attention(column(1, 0), column(np.log(3), 0), column(4, 8), 2)
    torch.testing.assert_close(attention, torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    torch.testing.assert_close(gathered.flatten(), torch.tensor([5.0, 6.0]))


def convolved(x: np.ndarray, layer: torch.nn.Conv3d) -> np.ndarray:
    """A 1x1x1 convolution as a matrix product over the channels."""
    weight = layer.weight.detach().numpy()[:, :, 0, 0, 0]
    bias = layer.bias.detach().numpy()[None, :, None, None, None]
    return np.einsum("oc,bcdhw->bodhw", weight, x) + bias


def test_rsa_block_goes_sagittal_coronal_axial_and_computes_anew_each_time():
    torch.manual_seed(1)
    block = RSABlock(4)
    with torch.no_grad():
        for n, direction in enumerate(DIRECTIONS):
            block.alpha[direction].fill_(0.3 + 0.2 * n)
    x = torch.randn(1, 4, 3, 4, 5)
    out, attention = block(x)
    e = x.numpy().astype(np.float64)
    for n, (direction, axis) in enumerate([("sagittal", 4), ("coronal", 3), ("axial", 2)]):
        maps = [convolved(e, layer) for layer in (block.theta, block.phi, block.g)]
        gathered, weights = numpy_slice_attention(*maps, axis)
        np.testing.assert_allclose(attention[direction].detach().numpy(), weights, atol=1e-4)
        e = (0.3 + 0.2 * n) * gathered + e
    np.testing.assert_allclose(out.detach().numpy(), e, atol=1e-4)


def test_rsa_block_shares_three_kernels_has_three_alphas_and_starts_as_identity():
    block = RSABlock(512)
    assert sum(p.numel() for p in block.parameters()) == 3 * (512**2 + 512) + 3 == 787_971
    small = RSABlock(4)
    x = torch.randn(2, 4, 3, 3, 3)
    out, attention = small(x)
    torch.testing.assert_close(out, x)
    for weights in attention.values():
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3))


def test_attention_runs_in_fp32_where_half_precision_would_overflow():
    block = RSABlock(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, attention = block(100 * torch.randn(1, 4, 4, 4, 4))
    assert all(a.dtype == torch.float32 and torch.isfinite(a).all() for a in attention.values())


def test_non_local_block_gathers_over_all_voxels():
    torch.manual_seed(2)
    block = NonLocalBlock3d(4)
    with torch.no_grad():
        block.out.weight.normal_()
    x = torch.randn(1, 4, 2, 3, 2)
    z, attention = block(x)
    a = x.numpy()
    theta, phi, g = (convolved(a, m).reshape(2, -1) for m in (block.theta, block.phi, block.g))
    weights = np.array([softmax(np.array([t @ p for p in phi.T])) for t in theta.T])
    np.testing.assert_allclose(attention[0].detach().numpy(), weights, atol=1e-5)
    y = (weights @ g.T).T.reshape(1, 2, 2, 3, 2)
    np.testing.assert_allclose(z.detach().numpy(), convolved(y, block.out) + a, atol=1e-5)


def test_non_local_block_of_two_voxels_by_hand():
    block = NonLocalBlock3d(1, reduction=1)
    with torch.no_grad():
        for layer, weight in ((block.theta, 1), (block.phi, 1), (block.g, 2), (block.out, 1)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    # x = (0, sqrt(ln 3)): voxel 0 averages, voxel 1 has scores (0, ln 3), weights 1/4 and 3/4.
    s = float(np.sqrt(np.log(3)))
    z, _ = block(torch.tensor([0.0, s]).reshape(1, 1, 1, 1, 2))
    torch.testing.assert_close(z.flatten(), torch.tensor([s, 1.5 * s + s]))


def test_published_width_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = RSANet(RSANetConfig())
    count = sum(p.numel() for p in network.parameters())
    assert count == 24_554_339
    assert abs(count / 24.55e6 - 1) < 0.005


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
def test_placements_hold_their_blocks(placement, channels, block):
    network = create_network("rsanet", {**SMALL, "placement": placement, "block": block})
    found = {place: module.g.in_channels for place, module in network.blocks.items()}
    assert found == channels
    logits, attention = network.eval()(torch.randn(1, 3, 32, 16, 16), with_attention=True)
    assert logits.shape == (1, 2, 32, 16, 16)
    assert list(attention) == [declared["key"] for declared in network.attention]
    sizes = {"axial": 32, "coronal": 16, "sagittal": 16}
    for declared in network.attention:
        shape = attention[declared["key"]].shape
        if declared["kind"] == "slice":
            stride = 16 if declared["key"].startswith("bottom") else 8
            length = sizes[declared["axis"]] // stride
            assert shape == (1, length, length)
        else:
            assert shape[:2] == (1, 1)
            assert len(shape) == 5


@pytest.mark.parametrize("size", [(17, 25, 20), (16, 16, 33)])
def test_odd_sizes_come_back_as_they_were(size):
    network = create_network("rsanet", SMALL).eval()
    assert network(torch.randn(2, 3, *size)).shape == (2, 2, *size)


def test_eval_mode_is_deterministic_and_survives_saving(tmp_path):
    torch.manual_seed(3)
    network = create_network("rsanet", SMALL).eval()
    x = torch.randn(1, 3, 16, 16, 16)
    first = network(x)
    torch.testing.assert_close(network(x), first, rtol=0, atol=0)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    again = create_network("rsanet", SMALL).eval()
    again.load_state_dict(load_file(tmp_path / "w.safetensors"))
    torch.testing.assert_close(again(x), first, rtol=0, atol=0)


@pytest.mark.parametrize("block", ["rsa", "nonlocal"])
def test_gradients_reach_every_parameter(block):
    network = create_network("rsanet", {**SMALL, "placement": "111", "block": block})
    # Both blocks start as the identity by a zero factor, behind which no gradient passes.
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "alpha" in name or "blocks" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    network(torch.randn(1, 3, 32, 32, 32)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of phi adds the same to a whole row of scores, which the softmax does not see.
    assert [n for n in without if "phi.bias" not in n] == []


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("unet9", {}, "no network named 'unet9'"),
        ("rsanet", {"depth": 3}, "no setting 'depth'"),
        ("rsanet", {"placement": "011"}, "'011'"),
        ("rsanet", {"block": "gate"}, "'gate'"),
        ("rsanet", {"width": 10, "norm_groups": 4}, "does not divide"),
    ],
)
def test_a_bad_config_is_a_plain_error(name, config, words):
    with pytest.raises(ModelSchemaError, match=words):
        create_network(name, config)
