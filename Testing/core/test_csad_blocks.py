"""AMGB and SCFF against eq. 1-2 and 5-7, written anew in NumPy and by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsegcore.networks import csad
from medsegcore.networks.csad import SCFF, log_attention_map, upsampled_energy

pytestmark = pytest.mark.usefixtures("one_thread")


def softmax(a: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of entries of any tensor that is made, backward pass included."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor):
                self.entries = max(self.entries, made.untyped_storage().nbytes() // 4)
        return out


# AMGB: eq. 1 and 2.


def numpy_upsampled(features, factor, size):
    """P of eq. 2, pixel by pixel: bilinear, pixel centres at half positions."""
    channels, height, width = features.shape
    out = np.zeros((channels, *size))
    for r, c in np.ndindex(size):
        y = min(max((r + 0.5) / factor - 0.5, 0), height - 1)
        x = min(max((c + 0.5) / factor - 0.5, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        u, v = y - top, x - left
        out[:, r, c] = (
            (1 - u) * (1 - v) * features[:, top, left]
            + (1 - u) * v * features[:, top, right]
            + u * (1 - v) * features[:, bottom, left]
            + u * v * features[:, bottom, right]
        )
    return out


def test_attention_map_of_two_pixels_upsampled_by_hand():
    # One channel (0, 2), doubled: 0, 0.5, 1.5, 2 in both rows. Squares 0, 0.25, 2.25, 4
    # (squared before the upsampling they would be 0, 1, 3, 4). The softmax divides
    # 1, 1.284025, 9.487736, 54.598150 by 2 * 66.369911.
    features = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
    energy = upsampled_energy(features, 2, (2, 4))
    torch.testing.assert_close(energy, torch.tensor([[[0, 0.25, 2.25, 4]] * 2]))
    expected = torch.tensor([0.007534, 0.009673, 0.071476, 0.411317]).expand(1, 1, 2, 4)
    a = log_attention_map(features, 2, (2, 4)).exp()
    torch.testing.assert_close(a, expected, rtol=0, atol=1e-6)


def test_attention_map_sums_over_the_channels_by_hand():
    # Two pixels with the channels (1, 2, -1) and (1, 1, 2): S = 6 and 6, so 1/2 each;
    # with the last channel 0 at the second pixel S = 6 and 2: 1 / (1 + e^-4) = 0.982014.
    features = torch.tensor([[1.0, 1], [2, 1], [-1, 2]]).reshape(1, 3, 1, 2)
    a = log_attention_map(features, 1, (1, 2)).exp()
    torch.testing.assert_close(a.flatten(), torch.tensor([0.5, 0.5]))
    features[0, 2, 0, 1] = 0
    a = log_attention_map(features, 1, (1, 2)).exp()
    torch.testing.assert_close(a.flatten(), torch.tensor([0.982014, 0.017986]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "size"),
    [(1, (3, 4)), (2, (6, 8)), (2, (5, 7)), (4, (12, 16)), (8, (17, 30)), (16, (48, 49))],
)
def test_attention_map_is_equations_1_and_2_in_their_order(factor, size):
    features = np.random.default_rng(factor).normal(size=(2, 5, 3, 4))
    energy = upsampled_energy(torch.from_numpy(features).float(), factor, size)
    a = log_attention_map(torch.from_numpy(features).float(), factor, size)
    assert a.shape == (2, 1, *size)
    for b in range(2):
        expected = (np.abs(numpy_upsampled(features[b], factor, size)) ** 2).sum(axis=0)
        np.testing.assert_allclose(energy[b].numpy(), expected, rtol=1e-4, atol=1e-5)
        chi = softmax(expected.ravel(), 0).reshape(size)
        np.testing.assert_allclose(a[b, 0].exp().numpy(), chi, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_gradient_of_an_attention_map_is_that_of_the_printed_order(factor):
    torch.manual_seed(1)
    features = torch.randn(2, 6, 5, 4, dtype=torch.float32, requires_grad=True)
    weights = torch.randn(2, 1, 5 * factor, 4 * factor)
    size = weights.shape[2:]
    (log_attention_map(features, factor, tuple(size)) * weights).sum().backward()
    found, features.grad = features.grad, None
    upsampled = F.interpolate(features, scale_factor=factor, mode="bilinear")
    energy = upsampled.square().sum(dim=1).flatten(1)
    (torch.log_softmax(energy, dim=1).reshape(weights.shape) * weights).sum().backward()
    torch.testing.assert_close(found, features.grad, rtol=1e-3, atol=1e-3)


def test_attention_map_never_holds_the_upsampled_features():
    # Stage 5 of a 256 x 256 image: 1024 channels would be 67 million entries. The largest
    # tensor is the 17 x 17 inner products' factors or the map itself.
    features = torch.randn(1, 1024, 16, 16, requires_grad=True)
    with LargestTensor() as largest:
        log_attention_map(features, 16, (256, 256)).mean().backward()
    assert largest.entries <= 1024 * 17 * 17
    assert features.grad.shape == features.shape


def test_attention_map_under_bf16_autocast_is_as_exact_as_fp32():
    torch.manual_seed(2)
    features = torch.randn(1, 64, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a = log_attention_map(features, 4, (16, 16))
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, log_attention_map(features.float(), 4, (16, 16)))


def test_attention_map_of_large_fp16_features_is_finite():
    # 300^2 is above the largest fp16 number, 65,504.
    features = torch.full((1, 8, 2, 2), 300.0, dtype=torch.float16)
    a = log_attention_map(features, 2, (4, 4))
    torch.testing.assert_close(a.exp(), torch.full((1, 1, 4, 4), 1 / 16))


def test_log_of_a_map_that_is_0_in_fp32_is_finite():
    # S = 400 and 0: chi = (1, e^-400).
    a = log_attention_map(torch.tensor([20.0, 0.0]).reshape(1, 1, 1, 2), 1, (1, 2))
    assert a.exp().flatten().tolist() == [1, 0]
    assert a.flatten().tolist() == [0, -400]


# SCFF: eq. 5 to 7.


def general_features(fusion: SCFF, x: torch.Tensor) -> np.ndarray:
    """The shared 1x1 convolution as a matrix product: [B, C~, H*W]."""
    weight = fusion.general.weight.detach().numpy()[:, :, 0, 0].astype(np.float64)
    bias = fusion.general.bias.detach().numpy()[None, :, None].astype(np.float64)
    return np.einsum("oc,bcn->bon", weight, x.detach().flatten(2).numpy()) + bias


def numpy_correlation(x, y):
    """Eq. 5 and 6 of one pair [C~, N], position by position."""
    n = x.shape[1]
    z = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            z[i, j] = sum(x[t, i] * y[t, j] for t in range(x.shape[0])) / x.shape[0]
    return z


def numpy_fused(x, y, kind):
    """Eq. 7 of one pair [C~, N] -> [2 C~, N]."""
    z = numpy_correlation(x, y)
    over_first = softmax(z, axis=0)
    weights = over_first if kind == "shared" else softmax(z, axis=1)
    return np.concatenate([x @ over_first, y @ weights.T])


def identity_fusion(channels: int, kind: str) -> SCFF:
    fusion = SCFF(channels, reduction=1, softmax=kind)
    with torch.no_grad():
        fusion.general.weight.copy_(torch.eye(channels)[:, :, None, None])
        fusion.general.bias.zero_()
    return fusion


@pytest.mark.parametrize(
    ("kind", "second"), [("shared", (0.823959, 0.274653)), ("direction", (0.823959, 0.549306))]
)
def test_fusion_of_two_positions_by_hand(kind, second):
    # C~ = 2. x = ((1, 1), (0, 0)), y = ((t, t), (0, 0)) with t = ln 3 = 1.098612.
    # Z = ((2 t / 2, 0), (0, 0)) = ((ln 3, 0), (0, 0)). Softmax over the positions of x, the
    # columns: Z_G = ((3/4, 1/2), (1/4, 1/2)). x Z_G = (3/4, 1/2) in both channels.
    # Shared: y Z_G^T = (3/4 t, 1/4 t) = (0.823959, 0.274653).
    # Each direction its own: the rows of Z give ((3/4, 1/4), (1/2, 1/2)), so
    # (3/4 t, 1/2 t) = (0.823959, 0.549306).
    x = torch.tensor([1.0, 0.0]).expand(2, 2).reshape(1, 2, 1, 2)
    fused = identity_fusion(2, kind)(x, math.log(3) * x)
    expected = torch.tensor([[0.75, 0.5]] * 2 + [list(second)] * 2).reshape(1, 4, 1, 2)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["shared", "direction"])
def test_fusion_is_equations_5_to_7(kind):
    torch.manual_seed(3)
    fusion = SCFF(6, reduction=2, softmax=kind)
    first, second = 3 * torch.randn(2, 6, 3, 4), 3 * torch.randn(2, 6, 3, 4)
    fused = fusion(first, second)
    assert fused.shape == (2, 6, 3, 4)
    x, y = general_features(fusion, first), general_features(fusion, second)
    expected = np.stack([numpy_fused(x[b], y[b], kind) for b in range(2)]).reshape(2, 6, 3, 4)
    np.testing.assert_allclose(fused.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_fusion_has_one_kernel_for_both_streams():
    shapes = {name: tuple(p.shape) for name, p in SCFF(6).named_parameters()}
    assert shapes == {"general.weight": (3, 6, 1, 1), "general.bias": (3,)}


@pytest.mark.parametrize("kind", ["shared", "direction"])
@pytest.mark.parametrize("columns", [1, 5])
def test_fusion_in_chunks_is_the_whole_and_so_are_its_gradients(kind, columns, monkeypatch):
    torch.manual_seed(4)
    fusion = SCFF(4, softmax=kind)
    images = [torch.randn(2, 4, 4, 3, requires_grad=True) for _ in range(2)]
    weights = torch.randn(2, 4, 4, 3)

    def gradients():
        fused = fusion(*images)
        wanted = [*images, *fusion.parameters()]
        return [fused, *torch.autograd.grad((fused * weights).sum(), wanted)]

    whole = gradients()
    monkeypatch.setattr(csad, "CHUNK_ENTRIES", columns * 2 * 12)
    for part, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fusion(*images), whole[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["shared", "direction"])
def test_fusion_of_many_positions_never_holds_their_matrix(kind, monkeypatch):
    # 32 x 32 positions have a matrix of 1,048,576 entries; a chunk of 32 columns has 32,768.
    monkeypatch.setattr(csad, "CHUNK_ENTRIES", 32 * 1024)
    fusion = SCFF(4, softmax=kind)
    images = [torch.randn(1, 4, 32, 32, requires_grad=True) for _ in range(2)]
    with LargestTensor() as largest:
        fusion(*images).square().sum().backward()
    assert largest.entries <= 32 * 1024
    assert all(image.grad.abs().max() > 0 for image in images)


@pytest.mark.parametrize("kind", ["shared", "direction"])
def test_fusion_of_many_positions_does_not_keep_their_matrix_for_the_backward_pass(
    kind, monkeypatch
):
    monkeypatch.setattr(csad, "CHUNK_ENTRIES", 32 * 1024)
    kept: dict[int, int] = {}  # entries by the storage that holds them

    def keep(a):
        storage = a.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // 4
        return a

    images = [torch.randn(1, 4, 32, 32, requires_grad=True) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda a: a):
        fused = SCFF(4, softmax=kind)(*images)
    # The features and the general features of both images; a single chunk has 32,768 entries.
    assert fused.requires_grad
    assert 0 < sum(kept.values()) < 20_000


def test_fusion_stays_finite_where_fp16_products_would_overflow():
    # 16 terms of 300 * 300 are 1,440,000 before T = C~ divides them; fp16 ends at 65,504.
    fusion = identity_fusion(16, "shared").half()
    x = torch.full((1, 16, 1, 2), 300.0, dtype=torch.float16)
    fused = fusion(x, x)
    assert fused.dtype == torch.float16
    torch.testing.assert_close(fused, torch.full((1, 32, 1, 2), 300.0, dtype=torch.float16))


def test_fusion_under_bf16_autocast_correlates_in_fp32():
    torch.manual_seed(5)
    fusion = SCFF(8)
    images = [4 * torch.randn(1, 8, 3, 3) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, y = (fusion.general(a).float().flatten(2)[0].detach().numpy() for a in images)
        fused = fusion(*images)
        shown = fusion.correlation(*images, 100)
    assert fused.dtype == torch.bfloat16
    expected = numpy_fused(x.astype(np.float64), y.astype(np.float64), "shared")
    # The result is rounded to bf16 once; scores rounded to it would be off by more than 1e-2.
    np.testing.assert_allclose(
        fused.detach().float()[0].flatten(1).numpy(), expected, rtol=5e-3, atol=1e-3
    )
    assert all(a.dtype == torch.float32 for a in shown)


@pytest.mark.parametrize("kind", ["shared", "direction"])
def test_shown_correlation_is_what_the_fusion_weighs_with(kind):
    torch.manual_seed(6)
    fusion = SCFF(4, softmax=kind)
    first, second = 3 * torch.randn(1, 4, 2, 3), 3 * torch.randn(1, 4, 2, 3)
    from_first, from_second = fusion.correlation(first, second, max_positions=6)
    assert from_first.shape == from_second.shape == (1, 2, 3, 2, 3)
    x, y = general_features(fusion, first)[0], general_features(fusion, second)[0]
    z = numpy_correlation(x, y)
    rows = softmax(z, axis=0) if kind == "shared" else softmax(z, axis=1)
    columns = softmax(z, axis=0)
    np.testing.assert_allclose(from_first.detach().reshape(6, 6), rows, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(from_second.detach().reshape(6, 6), columns.T, rtol=1e-4, atol=1e-6)


def test_a_picked_position_shows_where_the_other_image_answers():
    # Only (0, 2) of the first image and (1, 0) of the second have anything in common.
    first, second = torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 2, 3)
    first[0, 1, 0, 2] = 8
    second[0, 1, 1, 0] = 8
    for kind in ("shared", "direction"):
        from_first, from_second = identity_fusion(4, kind).correlation(first, second, 100)
        assert from_first[0, 0, 2].flatten().argmax().item() == 3  # row 1, column 0
        assert from_second[0, 1, 0].flatten().argmax().item() == 2  # row 0, column 2
        assert from_second[0, 1, 0, 0, 2].item() > 0.99


def test_shown_correlation_of_too_many_positions_is_that_of_averaged_blocks():
    torch.manual_seed(7)
    fusion = SCFF(4)
    first, second = 3 * torch.randn(1, 4, 4, 6), 3 * torch.randn(1, 4, 4, 6)
    # 24 positions; blocks of 2 x 2 leave 6.
    from_first, _ = fusion.correlation(first, second, max_positions=23)
    assert from_first.shape == (1, 2, 3, 2, 3)
    x, y = (
        general_features(fusion, a)[0].reshape(2, 2, 2, 3, 2).mean(axis=(2, 4)).reshape(2, 6)
        for a in (first, second)
    )
    expected = softmax(numpy_correlation(x, y), axis=0)
    np.testing.assert_allclose(from_first.detach().reshape(6, 6), expected, rtol=1e-4, atol=1e-6)
    assert fusion.correlation(first, second, max_positions=24)[0].shape == (1, 4, 6, 4, 6)
