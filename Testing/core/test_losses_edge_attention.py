"""The losses of the edge attention network against loops and by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from medsegcore.losses.edge_attention import EdgeAttentionLoss, edge_map, pretraining_loss


def ball(shape=(6, 11, 12), centre=(3, 5, 6), radius=3.2) -> np.ndarray:
    grids = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) <= radius**2


@pytest.mark.parametrize("in_plane", [True, False])
def test_the_wavelet_edge_map_is_where_a_neighbourhood_of_two_voxels_is_mixed(in_plane):
    mask = ball()
    found = edge_map(torch.from_numpy(mask)[None, None], in_plane).numpy()[0, 0]
    reach = [0, 1]
    for at in np.ndindex(mask.shape):
        values = {
            bool(
                mask[tuple(min(p + o, n - 1) for p, o, n in zip(at, step, mask.shape, strict=True))]
            )
            for step in itertools.product([0] if in_plane else reach, reach, reach)
        }
        assert found[at] == (len(values) == 2), at


@pytest.mark.parametrize("in_plane", [True, False])
def test_the_plain_edge_map_is_the_mask_minus_its_erosion(in_plane):
    from scipy.ndimage import binary_erosion

    mask = ball()
    box = np.ones((1, 3, 3) if in_plane else (3, 3, 3))
    expected = mask & ~binary_erosion(mask, box, border_value=1)
    found = edge_map(torch.from_numpy(mask)[None, None], in_plane, wavelet=False)
    np.testing.assert_array_equal(found.numpy()[0, 0], expected)


def test_a_boundary_between_two_wavelet_blocks_is_found():
    mask = torch.zeros(1, 1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    found = edge_map(mask, in_plane=True)[0, 0, 0]
    # Voxels whose right and lower neighbours are of both kinds: a ring from 1 to 5.
    expected = torch.zeros(8, 8)
    expected[1:6, 1:6] = 1
    expected[2:5, 2:5] = 0
    torch.testing.assert_close(found, expected)
    assert edge_map(torch.ones(1, 1, 2, 4, 4), in_plane=False).sum() == 0


def test_the_total_loss_of_four_voxels_by_hand():
    # One row of 4 voxels, y = (0, 1, 1, 0); the logits give p = (1/4, 3/4, 1/2, 0).
    # Eq. 3: 1 - 2 (3/4 + 1/2) / (2 + 1/16 + 9/16 + 1/4) = 1 - 2.5 / 2.875 = 0.130435.
    # Eq. 4: edges of y, mixed with the voxel to the right: (1, 0, 1, 0). Level 1 has one voxel,
    # reference 1, edge 1/2: 1/4. Level 2 has two, references (1, 1), edges (1, 0): 1/2.
    # Level 3 has all four, edges (1, 0, 0, 0): 1/4.
    # Eq. 2: 0.130435 + 0.5/4 + 0.8/2 + 1.0/4 = 0.905435.
    y = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 1, 1, 4)
    p = torch.tensor([0.25, 0.75, 0.5, 1e-9]).reshape(1, 1, 1, 1, 4)
    logits = torch.cat([torch.zeros_like(p), torch.log(p / (1 - p))], dim=1)
    edges = {
        "edge1": torch.tensor([0.5]).reshape(1, 1, 1, 1, 1),
        "edge2": torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2),
        "edge3": torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 1, 4),
    }
    loss = EdgeAttentionLoss()(logits, edges, y)
    assert loss.item() == pytest.approx(0.905435, abs=1e-5)


def test_the_dice_term_is_equation_3_over_the_whole_batch():
    random = np.random.default_rng(1)
    logits = random.normal(size=(2, 2, 3, 4, 5))
    y = random.random((2, 1, 3, 4, 5)) < 0.3
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    expected = 1 - 2 * (y[:, 0] * p).sum() / (y.sum() + (p**2).sum())
    loss = EdgeAttentionLoss(weights=())(
        torch.from_numpy(logits).float(), {}, torch.from_numpy(y).float()
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_the_edge_term_is_equation_4_against_the_pooled_reference():
    mask = ball((4, 8, 12), (2, 4, 6), 2.5)
    edge = np.random.default_rng(2).random((1, 1, 4, 4, 6))
    reference = edge_map(torch.from_numpy(mask)[None, None], in_plane=True)
    blocks = reference.numpy()[0, 0].reshape(4, 4, 2, 6, 2).max(axis=(2, 4))
    expected = ((blocks - edge[0, 0]) ** 2).sum() / edge.size
    found = EdgeAttentionLoss().edge(torch.from_numpy(edge), reference)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_pretraining_loss_is_equation_1_per_voxel():
    # Two voxels, p = 0.9 where y = 1 and 0.2 where y = 0: -(ln 0.9 + ln 0.8) / 2 = 0.164252.
    p = torch.tensor([0.9, 0.2]).reshape(1, 1, 1, 1, 2)
    logits = torch.cat([torch.log(1 - p), torch.log(p)], dim=1)
    target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    expected = -(math.log(0.9) + math.log(0.8)) / 2
    assert expected == pytest.approx(0.164252, abs=1e-6)
    assert pretraining_loss(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_a_missing_edge_map_is_an_error_and_not_a_smaller_loss():
    logits, y = torch.zeros(1, 2, 2, 4, 4), torch.zeros(1, 1, 2, 4, 4)
    with pytest.raises(KeyError, match="edge1"):
        EdgeAttentionLoss()(logits, {}, y)
