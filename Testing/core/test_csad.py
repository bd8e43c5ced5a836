"""CSAD as a whole: its variants, parameters, attention, sizes, gradients and config."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from medsegcore.errors import ModelSchemaError
from medsegcore.imaging import read_image, resample
from medsegcore.losses.csad import CSADLoss
from medsegcore.networks import create_network
from medsegcore.networks.csad import CSAD, SCFF, VARIANTS, CSADConfig, Up

pytestmark = pytest.mark.usefixtures("one_thread")

FUSIONS = ["scff", "concat", "early", "late"]
ODD = (35, 50)


def small(**config) -> CSAD:
    """A narrow network whose running means are those of noise, as if it had been trained.

    With the running means of the start the features of eval mode are close to 0, the attention
    maps all but flat, and a test of them could hardly fail.
    """
    torch.manual_seed(1)
    network = create_network("csad", {"width": 4, **config})
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(2, 2 * network.config.stream_channels, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
    return network


def maps_of(network: CSAD, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return network(x, with_attention=True)[1]


# Its parts and their number.


def stage_count(n_in: int, n_out: int) -> int:
    """Two 3x3 kernels without bias, each with the scale and offset of its normalisation."""
    return 9 * n_in * n_out + 9 * n_out**2 + 4 * n_out


def encoder_count(n_in: int, widths: list[int]) -> int:
    pairs = zip([n_in, *widths[:-1]], widths, strict=True)
    return sum(stage_count(a, b) for a, b in pairs)


def decoder_count(n_in: int, widths: list[int], skips: int) -> int:
    total = 0
    for n_out in reversed(widths[:-1]):
        total += 4 * n_in * n_out + stage_count((1 + skips) * n_out, n_out)
        n_in = n_out
    return total


@pytest.mark.parametrize(
    ("fusion", "count"),
    [("scff", 53_539_842), ("concat", 55_112_194), ("early", 31_036_162), ("late", 62_073_122)],
)
def test_parameters_are_those_of_the_layer_list(fusion, count):
    # The paper prints no number of parameters.
    with torch.device("meta"):
        network = CSAD(CSADConfig(fusion=fusion))
    widths = [64, 128, 256, 512, 1024]
    expected = {
        "scff": 2 * encoder_count(1, widths) + (1024 * 512 + 512)
        + decoder_count(1024, widths, 2) + 2 * 64 + 2,
        "concat": 2 * encoder_count(1, widths) + decoder_count(2048, widths, 2) + 2 * 64 + 2,
        "early": encoder_count(2, widths) + decoder_count(1024, widths, 1) + 2 * 64 + 2,
        "late": 2 * encoder_count(1, widths) + 2 * decoder_count(1024, widths, 1)
        + (64 * 32 + 32) + 2 * 64 + 2,
    }  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == expected[fusion] == count


def test_group_normalisation_has_as_many_parameters_as_batch_normalisation():
    counts = [
        sum(p.numel() for p in small(norm=norm, norm_groups=2).parameters())
        for norm in ("batch", "group")
    ]
    assert counts[0] == counts[1]


def test_variants_are_the_rows_of_tables_1_to_3():
    assert VARIANTS == {
        "baseline": ("concat", "nlc"),
        "baseline+scff": ("scff", "nlc"),
        "baseline+csad": ("concat", "ilc"),
        "proposed": ("scff", "ilc"),
        "nlc": ("scff", "nlc"),
        "plc": ("scff", "plc"),
        "ilc": ("scff", "ilc"),
        "early": ("early", "ilc"),
        "late": ("late", "ilc"),
    }


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_is_where_the_variant_has_it(fusion):
    network = small(fusion=fusion).eval()
    seen = []
    watched = {"decoder": network.decoders[0], "head": network.head}
    if network.scff is not None:
        watched["scff"] = network.scff
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.append(
                (name, [tuple(a.shape[1:]) for a in args if torch.is_tensor(a)])
            )
        )
    with torch.no_grad():
        network(torch.randn(1, 2, 32, 48))
    # Stage 5 has 64 channels of 2 x 3; C~ is half of them.
    assert (
        seen
        == {
            "scff": [
                ("scff", [(64, 2, 3)] * 2),
                ("decoder", [(64, 2, 3)]),
                ("head", [(4, 32, 48)]),
            ],
            "concat": [("decoder", [(128, 2, 3)]), ("head", [(4, 32, 48)])],
            "early": [("decoder", [(64, 2, 3)]), ("head", [(4, 32, 48)])],
            "late": [
                ("decoder", [(64, 2, 3)]),
                ("scff", [(4, 32, 48)] * 2),
                ("head", [(4, 32, 48)]),
            ],
        }[fusion]
    )
    assert sum(isinstance(m, SCFF) for m in network.modules()) == (fusion in ("scff", "late"))


@pytest.mark.parametrize("skips", ["both", "none"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_decoders_take_the_skips_of_their_own_streams_or_none(fusion, skips):
    network = small(fusion=fusion, skips=skips).eval()
    features, joined = {}, []
    for k, encoder in enumerate(network.encoders):
        encoder.register_forward_hook(lambda _, args, out, k=k: features.update({k: out}))
    for decoder in network.decoders:
        for up in decoder.ups:
            up.stage.register_forward_pre_hook(lambda _, args: joined.append(args[0]))
    with torch.no_grad():
        network(torch.randn(1, 2, 32, 32))
    streams = {"early": [[0]], "late": [[0], [1]]}.get(fusion, [[0, 1]])
    steps = [(own, m) for own in streams for m in (3, 2, 1, 0)]
    assert len(joined) == len(steps)
    for (own, m), together in zip(steps, joined, strict=True):
        used = own if skips == "both" else []
        width = 4 * 2**m
        assert together.shape[1] == (len(used) + 1) * width
        for n, k in enumerate(used):
            part = together[:, n * width : (n + 1) * width]
            torch.testing.assert_close(part, features[k][m], rtol=0, atol=0)


def test_up_doubles_and_cuts_the_far_end():
    up = Up(6, 2, skips=1, config=CSADConfig(width=2))
    joined = []
    up.stage.register_forward_pre_hook(lambda _, args: joined.append(args[0].detach().numpy()))
    x, skip = torch.randn(1, 6, 2, 3), torch.randn(1, 2, 3, 5)
    assert up(x, [skip], (3, 5)).shape == (1, 2, 3, 5)
    weight = up.enlarge.weight.detach().numpy()
    doubled = np.zeros((2, 4, 6), dtype=np.float32)
    for r, c in np.ndindex(4, 6):
        doubled[:, r, c] = x[0, :, r // 2, c // 2].numpy() @ weight[:, :, r % 2, c % 2]
    np.testing.assert_allclose(joined[0][0, 2:], doubled[:, :3, :5], atol=1e-6)
    np.testing.assert_array_equal(joined[0][:, :2], skip.numpy())


def test_each_stream_sees_its_own_image():
    network = small(stream_channels=3).eval()
    x = torch.randn(1, 6, 32, 32)
    other = x.clone()
    other[:, 3:] += 1
    before, after = maps_of(network, x), maps_of(network, other)
    for m in range(1, 6):
        key = f"stage{m}_stream1"
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
        key = f"stage{m}_stream2"
        assert (after[key] - before[key]).abs().max() > 0.01 * before[key].max()


def test_early_fusion_sees_both_images_in_one_stream():
    network = small(fusion="early").eval()
    x = torch.randn(1, 2, 32, 32)
    for image in range(2):
        other = x.clone()
        other[:, image] += torch.randn(1, 32, 32)
        change = maps_of(network, other)["stage1_stream1"] - maps_of(network, x)["stage1_stream1"]
        assert change.abs().max() > 1e-6


@pytest.mark.parametrize("fusion", FUSIONS)
def test_too_many_images_are_refused(fusion):
    with pytest.raises(RuntimeError, match="channels"):
        small(fusion=fusion)(torch.randn(1, 3, 32, 32))


# Attention.


def features_of(network: CSAD, x: torch.Tensor):
    """F_m^k as the encoders make them, and what the network gives as attention."""
    features = {}
    for k, encoder in enumerate(network.encoders, start=1):
        for m, stage in enumerate(encoder.stages, start=1):
            stage.register_forward_hook(
                lambda _, args, out, k=k, m=m: features.update({(m, k): out})
            )
    return features, maps_of(network, x)


def test_stage_maps_are_equations_1_and_2_of_the_encoders_features():
    network = small().eval()
    features, attention = features_of(network, torch.randn(2, 2, 32, 48))
    assert len(features) == 10
    # Far from flat: the largest value is many times the mean of 1 / (32 * 48).
    assert min(a.max() * 32 * 48 for key, a in attention.items() if "stage" in key) > 3
    for (m, k), f in features.items():
        assert f.shape == (2, 4 * 2 ** (m - 1), 32 // 2 ** (m - 1), 48 // 2 ** (m - 1))
        upsampled = F.interpolate(f, size=(32, 48), mode="bilinear").numpy().astype(np.float64)
        energy = (upsampled**2).sum(axis=1).reshape(2, -1)
        e = np.exp(energy - energy.max(axis=1, keepdims=True))
        expected = (e / e.sum(axis=1, keepdims=True)).reshape(2, 1, 32, 48)
        found = attention[f"stage{m}_stream{k}"].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_stage_maps_of_odd_sizes_lie_where_those_of_the_padded_image_lie():
    # Stage 5's 3 x 4 positions are 16 pixels apart whatever is cut off at the far end.
    network = small().eval()
    features, attention = features_of(network, torch.randn(1, 2, *ODD))
    f = features[5, 2]
    assert f.shape == (1, 64, 3, 4)
    upsampled = F.interpolate(f, scale_factor=16, mode="bilinear")[..., : ODD[0], : ODD[1]]
    expected = upsampled.square().sum(dim=1).flatten().softmax(dim=0).reshape(1, 1, *ODD)
    torch.testing.assert_close(attention["stage5_stream2"], expected, rtol=1e-3, atol=1e-7)


def test_log_maps_are_the_logarithms_of_the_stage_maps_alone():
    network = small().eval()
    x = torch.randn(2, 2, *ODD)
    attention = maps_of(network, x)
    with torch.no_grad():
        logits, log_maps = network(x, log_maps=True)
        torch.testing.assert_close(logits, network(x), rtol=0, atol=0)
    assert set(log_maps) == {f"stage{m}_stream{k}" for m in range(1, 6) for k in (1, 2)}
    for key, log_map in log_maps.items():
        np.testing.assert_allclose(np.exp(log_map.numpy()), attention[key].numpy(), rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_declared_attention_is_what_forward_returns_at_odd_sizes(fusion):
    network = small(fusion=fusion, max_positions=300).eval()
    with torch.no_grad():
        logits, attention = network(torch.randn(2, 2, *ODD), with_attention=True)
    assert logits.shape == (2, 2, *ODD)
    assert list(attention) == [declared["key"] for declared in network.attention]
    streams = (1,) if fusion == "early" else (1, 2)
    expected = {
        f"stage{m}_stream{k}": ("spatial", None, (2, 1, *ODD)) for k in streams for m in range(1, 6)
    }
    # 35 x 50 has 3 x 4 positions at stage 5; after the decoder 1750, in blocks of 3 x 3 12 x 17.
    grid = {"scff": (3, 4), "late": (12, 17)}.get(fusion)
    if grid is not None:
        for k in streams:
            expected[f"correlation_stream{k}"] = ("correlation", None, (2, *grid, *grid))
    found = {
        declared["key"]: (declared["kind"], declared["axis"], attention[declared["key"]].shape)
        for declared in network.attention
    }
    assert found == expected
    titles = [declared["title"] for declared in network.attention]
    assert all(titles)
    assert len(set(titles)) == len(titles)
    for key, a in attention.items():
        assert a.dtype == torch.float32
        assert torch.isfinite(a).all()
        assert (a >= 0).all()
        if key.startswith("stage"):
            torch.testing.assert_close(a.sum(dim=(1, 2, 3)), torch.ones(2))


def test_shown_correlation_is_that_of_the_last_stage():
    network = small().eval()
    assert network.scff is not None
    features, attention = features_of(network, torch.randn(1, 2, 48, 32))
    weight = network.scff.general.weight.detach().numpy()[:, :, 0, 0]
    bias = network.scff.general.bias.detach().numpy()[:, None]
    x, y = (weight @ features[5, k][0].flatten(1).numpy() + bias for k in (1, 2))
    z = x.T @ y / 32
    expected = np.exp(z) / np.exp(z).sum(axis=0)
    shown = attention["correlation_stream1"].reshape(6, 6).numpy()
    np.testing.assert_allclose(shown, expected, rtol=1e-3)
    shown = attention["correlation_stream2"].reshape(6, 6).numpy()
    np.testing.assert_allclose(shown, expected.T, rtol=1e-3)


# Sizes, modes, weights.


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("size", [(17, 25), (16, 33), (5, 70)])
def test_sizes_come_back_as_they_were(fusion, size):
    network = small(fusion=fusion).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 2, *size))
    assert logits.shape == (1, 2, *size)
    assert torch.isfinite(logits).all()


def test_what_is_near_does_not_depend_on_what_is_cut_off_far_away():
    # A last row and column of 0 that the pooling rounds up with change nothing at the start.
    network = small(fusion="concat").eval()
    x = torch.randn(1, 2, 161, 161)
    with torch.no_grad():
        whole, cut = network(x), network(x[..., :160, :160])
    torch.testing.assert_close(whole[..., :4, :4], cut[..., :4, :4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "size"), [("batch", (32, 32)), ("group", (32, 32)), ("group", (16, 16))]
)
def test_a_batch_of_one_trains(norm, size):
    network = small(norm=norm, norm_groups=2).train()
    x, target = torch.randn(1, 2, *size), torch.ones(1, 1, *size)
    logits, maps = network(x, log_maps=True)
    loss = CSADLoss()(logits, target, maps)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("n_out", [2, 4])
def test_number_of_classes_is_that_of_the_config(n_out):
    with torch.no_grad():
        assert small(out_channels=n_out)(torch.randn(2, 2, 16, 16)).shape == (2, n_out, 16, 16)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_eval_mode_is_deterministic_with_and_without_attention(fusion):
    network = small(fusion=fusion).eval()
    x = torch.randn(1, 2, 32, 16)
    with torch.no_grad():
        first = network(x)
        torch.testing.assert_close(network(x), first, rtol=0, atol=0)
        logits, _ = network(x, with_attention=True)
    torch.testing.assert_close(logits, first, rtol=0, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_saved_and_loaded_weights_give_equal_outputs(tmp_path, fusion):
    network = small(fusion=fusion)
    x = torch.randn(2, 2, 32, 16)
    with torch.no_grad():
        network(x)  # moves the running means, which have to be saved too
    network.eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(10)
    again = create_network("csad", {"width": 4, "fusion": fusion}).eval()
    with torch.no_grad():
        first = network(x)
        assert (again(x) - first).abs().max() > 1e-3
        again.load_state_dict(load_file(tmp_path / "w.safetensors"))
        torch.testing.assert_close(again(x), first, rtol=0, atol=0)
    before, after = maps_of(network, x), maps_of(again, x)
    for key, a in before.items():
        torch.testing.assert_close(after[key], a, rtol=0, atol=0)


@pytest.mark.parametrize("skips", ["both", "none"])
@pytest.mark.parametrize("softmax", ["shared", "direction"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_of_the_logits_reach_every_parameter(fusion, softmax, skips):
    network = small(fusion=fusion, correlation_softmax=softmax, skips=skips)
    (network(torch.randn(2, 2, 48, 32)) * torch.randn(2, 2, 48, 32)).sum().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert [name for name, g in grads.items() if g is None or not g.abs().max() > 0] == []
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize(("fusion", "scheme"), sorted(set(VARIANTS.values())))
def test_gradients_of_every_variants_loss_reach_every_parameter(fusion, scheme):
    network = small(fusion=fusion)
    x, target = torch.randn(2, 2, 32, 32), torch.zeros(2, 1, 32, 32)
    target[..., 8:20, 8:20] = 1
    logits, maps = network(x, log_maps=True) if scheme != "nlc" else (network(x), None)
    CSADLoss(scheme)(logits, target, maps).backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert [name for name, g in grads.items() if g is None or not g.abs().max() > 0] == []


@pytest.mark.parametrize("scheme", ["plc", "ilc"])
def test_distillation_alone_reaches_every_layer_of_both_encoders(scheme):
    network = small()
    _, maps = network(torch.randn(2, 2, 32, 32), log_maps=True)
    logits = torch.zeros(2, 2, 32, 32)
    CSADLoss(scheme)(logits, torch.zeros(2, 1, 32, 32), maps).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in network.named_parameters() if n.startswith("encoders.")}
    assert all(p.grad.abs().max() > 0 for p in network.encoders.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bf16_autocast_gives_finite_logits_and_fp32_maps(fusion):
    network = small(fusion=fusion).eval()
    x = torch.randn(1, 2, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, attention = network(x, with_attention=True)
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        assert (logits.float() - network(x)).abs().max() < 0.1
    for a in attention.values():
        assert a.dtype == torch.float32
        assert torch.isfinite(a).all()


# Its config.


def test_defaults_are_the_proposed_network():
    assert dataclasses.asdict(CSADConfig()) == {
        "stream_channels": 1,
        "out_channels": 2,
        "width": 64,
        "fusion": "scff",
        "skips": "both",
        "reduction": 2,
        "correlation_softmax": "shared",
        "max_positions": 1024,
        "norm": "batch",
        "norm_groups": 8,
    }
    assert CSAD.multiple == 2**4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"fusion": "middle"},
            "fusion is 'middle', not one of ['scff', 'concat', 'early', 'late']",
        ),
        ({"fusion": ["scff"]}, "fusion is ['scff'], not one of"),
        ({"skips": True}, "skips is True, not one of ['both', 'none']"),
        ({"norm": "layer"}, "norm is 'layer', not one of ['batch', 'group']"),
        ({"correlation_softmax": "rows"}, "correlation_softmax is 'rows', not one of"),
        ({"reduction": 3}, "reduction 3 does not divide 1024 channels"),
        ({"fusion": "late", "width": 4, "reduction": 8}, "reduction 8 does not divide 4 channels"),
        ({"norm": "group", "width": 12}, "norm_groups 8 does not divide width 12"),
    ],
)
def test_a_value_that_the_network_refuses_is_a_plain_error(config, words):
    with pytest.raises(ModelSchemaError) as caught:
        create_network("csad", config)
    assert caught.value.message.startswith("The network 'csad' refuses its config: ")
    assert words in caught.value.message


@pytest.mark.parametrize("value", [0, -8, 4.0, "4", None, True])
@pytest.mark.parametrize(
    "field",
    ["stream_channels", "out_channels", "width", "reduction", "max_positions", "norm_groups"],
)
def test_a_number_that_is_none_is_an_error_that_names_its_setting(field, value):
    with pytest.raises(ModelSchemaError, match=f"{field} is {value!r}"):
        create_network("csad", {field: value})


# Real images.


def prostate_slices(shared_data, case: str, slices: list[int]):
    """T2W, and ADC on its grid, and the cancer's mask: 48 mm squares round the cancer."""
    folder = shared_data / "prostate" / case
    if not folder.is_dir():
        pytest.skip("the prostate cases are not here")
    t2w, adc, lesion = (read_image(folder / f"{key}.nii.gz") for key in ("t2w", "adc", "lesion"))
    adc = resample(adc, t2w.grid)
    images, masks = [], []
    for k in slices:
        mask = lesion.array[k] > 0
        j, i = (int(n.mean()) for n in np.nonzero(mask))
        box = (k, slice(j - 48, j + 48), slice(i - 48, i + 48))
        channels = [image.array[box].astype(np.float32) for image in (t2w, adc)]
        images.append(np.stack([(c - c.mean()) / c.std() for c in channels]))
        masks.append(mask[box[1:]][None])
    return np.stack(images), np.stack(masks)


def slice_dice(network: CSAD, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        found = network(x).argmax(dim=1, keepdim=True)
    network.train()
    overlap = (found * target).sum(dim=(1, 2, 3))
    return 2 * overlap / (found.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3)))


@pytest.mark.slow
def test_four_real_slices_of_prostate_cancer_are_learnt_by_heart(shared_data):
    cases = [
        prostate_slices(shared_data, "prostatex/ProstateX-0000", [8, 9]),
        prostate_slices(shared_data, "picai/10021_1000021", [5, 8]),
    ]
    x = torch.from_numpy(np.concatenate([images for images, _ in cases]))
    target = torch.from_numpy(np.concatenate([masks for _, masks in cases])).float()
    assert x.shape == (4, 2, 96, 96)
    network = small().train()
    loss = CSADLoss()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    dice = slice_dice(network, x, target)
    assert dice.max() < 0.5
    for step in range(300):
        logits, maps = network(x, log_maps=True)
        optimiser.zero_grad()
        loss(logits, target, maps).backward()
        optimiser.step()
        if step % 20 == 19:
            dice = slice_dice(network, x, target)
            if dice.min() > 0.96:
                break
    assert dice.min() > 0.95
