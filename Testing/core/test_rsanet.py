"""RSANet as a whole: its parameters, placements, attention, sizes, gradients and config."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsegcore.errors import ModelSchemaError
from medsegcore.networks import NETWORKS, create_network
from medsegcore.networks.blocks import NonLocalBlock3d
from medsegcore.networks.rsanet import RSABlock, RSANet, RSANetConfig, Up

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": 8, "norm_groups": 4}
ODD = (35, 50, 41)


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
    up = Up(4, RSANetConfig(width=8, norm_groups=2))
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


@pytest.mark.parametrize(("bias", "most"), [(False, 0.5), (True, 1.0)])
def test_where_the_last_features_are_zero_only_a_bias_can_say_lesion(bias, most):
    network = RSANet(RSANetConfig(width=4, norm_groups=2, head_bias=bias)).eval()
    with torch.no_grad():
        # What a ReLU gives for features below 0.
        for part in (
            network.decoder[-1].level.layers[4].weight,
            network.decoder[-1].level.layers[4].bias,
        ):
            part.zero_()
        if bias:
            network.head[1].bias.copy_(torch.tensor([-10.0, 10.0]))
        lesion = network(torch.randn(1, 3, 16, 16, 16)).softmax(dim=1)[:, 1]
    assert torch.allclose(lesion, torch.full_like(lesion, most), atol=1e-6)


# Its config.


def test_defaults_are_the_published_network():
    assert dataclasses.asdict(RSANetConfig()) == {
        "in_channels": 3,
        "out_channels": 2,
        "width": 32,
        "block": "rsa",
        "placement": "010",
        "norm": "group",
        "norm_groups": 8,
        "dropout": 0.2,
        "head_bias": False,
    }
    assert RSANet.multiple == 2**4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"placement": "011"}, "placement is '011', not one of ['000', '010', '101', '111']"),
        ({"placement": 10}, "placement is 10, not one of ['000', '010', '101', '111']"),
        ({"head_bias": 1}, "head_bias is 1 but has to be true or false"),
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
