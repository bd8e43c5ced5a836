"""One harness for every network and every variant of ours."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsegcore.models.schema import AttentionSpec
from medsegcore.networks import NETWORKS, create_network

pytestmark = pytest.mark.usefixtures("one_thread")

SHARINGS = ("individual", "joint", "joint+kd", "y", "x", "chilopod", "ours")
# The smallest width of every variant; a network without a row here fails the first test.
VARIANTS = {
    "rsanet": [
        {"width": 4, "norm_groups": 2, "placement": placement, "block": block}
        for placement, block in [
            ("000", "rsa"), ("010", "rsa"), ("101", "rsa"), ("111", "rsa"),
            ("010", "nonlocal"), ("101", "nonlocal"), ("111", "nonlocal"),
        ]
    ],
    "edge_attention": [
        {"depth": 10, "width": 4, "decoder_width": 4},
        {"depth": 50, "width": 4, "decoder_width": 4, "stem_depth_stride": 2},
        {"depth": 10, "width": 4, "decoder_width": 4, "edges": "convolution"},
        {"depth": 10, "width": 4, "decoder_width": 4, "edges": "none"},
    ],
    "edge_attention_pretraining": [{"depth": 10, "width": 4}],
    "csad": [{"width": 4, "fusion": fusion} for fusion in ("scff", "concat", "early", "late")],
    "ummkd_2d": [
        *({"width": 4, "sharing": sharing} for sharing in SHARINGS),
        *({"width": 4, "norm": norm, "norm_groups": 2} for norm in ("instance", "layer", "group")),
        {"width": 4, "layout": "released"},
    ],
    "ummkd_3d": [
        *({"width": 4, "sharing": sharing} for sharing in SHARINGS),
        {"width": 4, "layout": "released"},
    ],
    "unetpp": [{"width": 4}],
    "deeplabv3plus": [{"width": 4, "middle_blocks": 1}],
    "enet": [{"width": 4}, {"width": 4, "bottleneck_3_5": True}],
    "espnet": [{"width": 4}],
    "erfnet": [{"width": 4}],
    "unet": [{"width": 4}, {"width": 4, "in_channels": 3, "dimensions": 3}],
    "multiresunet": [{"width": 8}, {"width": 8, "dimensions": 3}],
    "hyperdensenet": [{"width": 2}, {"width": 2, "in_channels": 3, "dimensions": 2}],
    "fusion_unet": [
        *({"width": 4, "fusion": fusion} for fusion in ("fuse", "octopus", "late")),
        {"width": 4, "dimensions": 3},
    ],
}  # fmt: skip
CASES = [
    pytest.param(name, config, id="-".join([name, *(str(v) for v in config.values())]))
    for name, configs in VARIANTS.items()
    for config in configs
]
EVEN = {2: (64, 96), 3: (16, 32, 48)}
ODD = {2: (57, 83), 3: (13, 35, 42)}


def built(name, config):
    """The network with weights away from where some start at zero, and an input maker."""
    torch.manual_seed(1)
    network = create_network(name, config)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)

    def image(sizes, batch=1):
        return torch.randn(batch, network.config.in_channels, *sizes[network.dimensions])

    return network, image


def test_every_network_has_its_variants_here():
    assert set(VARIANTS) == set(NETWORKS)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_every_parameter_gets_a_gradient(name, config):
    network, image = built(name, config)
    # A network of several modalities has parameters that only one of them reaches.
    for modality in range(getattr(network.config, "modalities", 1)):
        options = {"modality": modality} if modality else {}
        logits = network(image(EVEN, batch=2), **options)
        (logits * torch.randn_like(logits)).sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert not without
    still = [n for n, p in network.named_parameters() if not p.grad.any()]
    assert not still


@pytest.mark.parametrize(("name", "config"), CASES)
def test_odd_sizes_and_a_batch_of_one_come_back_as_they_were(name, config):
    network, image = built(name, config)
    x = image(ODD)
    with torch.no_grad():
        logits = network.eval()(x)
    assert logits.shape == (1, network.config.out_channels, *x.shape[2:])
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "config"), CASES)
def test_attention_is_what_is_declared_finite_and_changes_no_answer(name, config):
    network, image = built(name, config)
    network.eval()
    x = image(ODD)
    with torch.no_grad():
        plain = network(x)
        logits, attention = network(x, with_attention=True)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)
    declared = [AttentionSpec.model_validate(spec) for spec in network.attention]
    assert declared, "every network gives at least one attention"
    assert [spec.key for spec in declared] == list(attention)
    for spec in declared:
        values = attention[spec.key]
        assert torch.isfinite(values).all(), spec.key
        if spec.kind == "spatial":
            assert values.shape[:2] == (1, 1), spec.key
            assert values.ndim == x.ndim, spec.key
            assert all(n <= m for n, m in zip(values.shape[2:], x.shape[2:], strict=True))
        elif spec.kind == "correlation":
            assert values.ndim == 5, spec.key
            assert (values >= 0).all(), spec.key
        else:
            assert values.ndim == 3, spec.key
            torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:2]))


@pytest.mark.parametrize(("name", "config"), CASES)
def test_saved_loaded_and_run_again_it_answers_the_same(name, config, tmp_path):
    network, image = built(name, config)
    network.eval()
    x = image(EVEN)
    with torch.no_grad():
        before = network(x)
        torch.testing.assert_close(network(x), before, rtol=0, atol=0)
        tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, tmp_path / "m.safetensors")
        again = create_network(name, dataclasses.asdict(network.config)).eval()
        again.load_state_dict(load_file(tmp_path / "m.safetensors"))
        torch.testing.assert_close(again(x), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_bf16_answers_nearly_the_same(name, config):
    network, image = built(name, config)
    network.eval()
    x = image(EVEN)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x).float()
    assert torch.isfinite(rounded).all()
    # bf16 keeps 8 bits; over tens of layers the errors add up to some per cent of the spread.
    assert (rounded - exact).abs().mean() < 0.1 * exact.std() + 1e-3


# A tracing takes seconds: one network of each paper.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["csad", "edge_attention", "ummkd_2d", "enet", "rsanet"])
def test_traced_by_torch_compile_it_answers_the_same(name):
    network, image = built(name, VARIANTS[name][0])
    network.eval()
    x = image(EVEN)
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)
