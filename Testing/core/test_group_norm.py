"""Group normalisation in the place of the papers' batch normalisation."""

import pytest
import torch
from torch import nn

from medsegcore.errors import ModelSchemaError
from medsegcore.networks import create_network

FLAT = ("unetpp", "deeplabv3plus", "enet", "espnet", "erfnet")
CONFIGS = {
    "unetpp": {"width": 8},
    "deeplabv3plus": {"width": 8, "middle_blocks": 1},
    "enet": {},
    "espnet": {},
    "erfnet": {},
    "edge_attention": {"depth": 10, "width": 8, "decoder_width": 8},
    "edge_attention_pretraining": {"depth": 10, "width": 8},
}
NORMS = nn.BatchNorm2d | nn.BatchNorm3d


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_means_the_same_whatever_else_is_in_the_batch(name):
    torch.manual_seed(0)
    network = create_network(name, {**CONFIGS[name], "norm": "group"})
    assert not any(isinstance(module, NORMS) for module in network.modules())
    x = torch.randn(2, 1, *((64, 64) if name in FLAT else (16, 32, 32)))
    network.eval()
    with torch.no_grad():
        both, alone = network(x), network(x[:1])
        brighter = network(torch.cat([x[:1], 9 * x[1:]]))
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(both[:1], brighter[:1], atol=1e-4, rtol=1e-3)
    # In training too, but for dropout.
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x), both, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_papers_normalisation_is_the_default(name):
    network = create_network(name, CONFIGS[name])
    assert any(isinstance(module, NORMS) for module in network.modules())
    assert not any(isinstance(module, nn.GroupNorm) for module in network.modules())
    with pytest.raises(ModelSchemaError, match="norm is 'layer'"):
        create_network(name, {**CONFIGS[name], "norm": "layer"})
