"""The comparators against their papers' counts and structure."""

import numpy as np
import pytest
import torch

from medsegcore.networks import create_network
from medsegcore.networks.comparators import MultiResBlock

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "config", "published"),
    [
        ("multiresunet", {"out_channels": 1}, 7_251_130),
        ("multiresunet", {"out_channels": 1, "dimensions": 3}, 18_645_514),
        ("hyperdensenet", {"out_channels": 4}, 10_361_922),
        ("hyperdensenet", {"in_channels": 3, "out_channels": 4}, 23_173_431),
    ],
)
def test_parameters_are_those_of_the_public_networks_within_a_thousandth(name, config, published):
    with torch.device("meta"):
        network = create_network(name, config)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(published, rel=1e-3)


def test_a_multires_block_joins_its_three_convolutions_and_adds_the_shortcut():
    torch.manual_seed(1)
    block = MultiResBlock(2, 3, 8, 1.67).eval()
    # W = 13.36: 2, 4 and 6 filters.
    assert [step[0].out_channels for step in block.steps] == [2, 4, 6]
    x = torch.randn(1, 3, 9, 7)
    a = block.steps[0](x)
    b = block.steps[1](a)
    c = block.steps[2](b)
    with torch.no_grad():
        joined = np.concatenate([t.detach().numpy() for t in (a, b, c)], axis=1)
        # New batch normalisations divide by sqrt(1 + eps).
        scale = 1 / np.sqrt(1 + 1e-5)
        expected = np.maximum(joined * scale + block.shortcut(x).numpy(), 0) * scale
        np.testing.assert_allclose(block(x).numpy(), expected, atol=1e-5)


def test_every_layer_of_hyperdensenet_takes_all_earlier_ones_of_both_paths_its_own_first():
    network = create_network("hyperdensenet", {"width": 2, "dimensions": 2}).eval()
    seen = {}
    for n, path in enumerate(network.paths):
        for depth, layer in enumerate(path):
            layer.register_forward_hook(
                lambda _, args, out, at=(n, depth): seen.update({at: (args[0], out)})
            )
    with torch.no_grad():
        network(torch.randn(1, 2, 9, 9))
    for depth in range(1, 9):
        for own, other in ((0, 1), (1, 0)):
            expected = torch.cat(
                [seen[(path, d)][1] for d in range(depth) for path in (own, other)], dim=1
            )
            torch.testing.assert_close(seen[(own, depth)][0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("fusion", ["fuse", "octopus", "late"])
def test_every_encoder_of_a_fusion_unet_sees_its_own_image_alone(fusion):
    torch.manual_seed(2)
    network = create_network("fusion_unet", {"width": 4, "fusion": fusion, "in_channels": 3}).eval()
    x = torch.randn(1, 3, 32, 32)
    seen = []
    for encoder in network.encoders:
        encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        before = network(x)
        for n in range(3):
            torch.testing.assert_close(seen[n], x[:, n : n + 1])
            changed = x.clone()
            changed[:, n] += 1
            assert (network(changed) - before).abs().max() > 1e-6


def test_late_fusion_is_the_mean_of_a_unet_per_image():
    network = create_network("fusion_unet", {"width": 2, "fusion": "late"}).eval()
    x = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        each = [
            head(decoder(encoder(x[:, n : n + 1])))
            for n, (encoder, decoder, head) in enumerate(
                zip(network.encoders, network.decoders, network.heads, strict=True)
            )
        ]
        torch.testing.assert_close(network(x), (each[0] + each[1]) / 2)
