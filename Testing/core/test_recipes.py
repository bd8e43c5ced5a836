"""Each recipe has its paper's settings, trains what its paper trains, and learns a real case."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import RandFlipd

from medsegcore.errors import MissingInputError, ModelWeightsError, SettingError
from medsegcore.evaluation.metrics import dice
from medsegcore.imaging import Image, read_image, resample, write_image
from medsegcore.inference import Predictor
from medsegcore.losses.affinity import AffinityDistillationLoss, AffinityLossConfig
from medsegcore.losses.csad import CSADLoss
from medsegcore.losses.edge_attention import EdgeAttentionLoss
from medsegcore.losses.ummkd import UMMKDLoss
from medsegcore.models import ModelFolder, TrainingRecord
from medsegcore.networks import create_network
from medsegcore.networks.csad import VARIANTS
from medsegcore.training.datasets import Case, Channel, Dataset
from medsegcore.training.facts import DataFacts
from medsegcore.training.recipes import (
    RECIPES,
    AffinityRecipe,
    AffinityTeacherRecipe,
    CSADRecipe,
    EdgeAttentionPretrainingRecipe,
    EdgeAttentionRecipe,
    RSANetRecipe,
    UMMKDRecipe,
    UNetRecipe,
    recipe_of,
)
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")

RECORD = TrainingRecord(
    recipe="x", date="2026-01-01", minutes=0, steps=0, device="", seed=1, settings={}
)
# 384 x 320 pixels of 0.5 mm in 20 slices of 3 mm.
FACTS = DataFacts(9, 9, 1, (0.5, 0.5, 3.0), (20, 320, 384), 8 * 2**30, False, {0: 0.9, 1: 0.1})
T2W, ADC = Channel("T2W"), Channel("ADC", units="10^-6 mm2/s")


def described(channels, labels=None):
    """A data set without cases."""
    return Dataset("demo", "Demo", channels, labels or {"lesion": 1}, [])


def cut(folder, name, images, label, size, slices, aside=0):
    """A case cut round its label: files of the images on the label's grid and of the label.

    `aside` moves the cut by so many columns from the middle of the label.
    """
    mask = read_image(label)
    k = np.argsort(-(mask.array > 0).sum(axis=(1, 2)))[0]
    _, j, i = np.argwhere(mask.array[k][None] > 0).mean(axis=0).round().astype(int)
    box = tuple(
        slice(max(middle - n // 2, 0), max(middle - n // 2, 0) + n)
        for middle, n in ((k, slices), (j, size), (i + aside, size))
    )
    files = {}
    for key, path in {**images, "label": label}.items():
        image = read_image(path)
        if image.grid.same_as(mask.grid):
            image = Image(np.ascontiguousarray(image.array[box]), image.grid.crop(box).affine)
        files[key] = folder / f"{name}_{key}.nii.gz"
        write_image(image, files[key])
    mask_file = files.pop("label")
    return Case(name, name, "site", files, mask_file)


@pytest.fixture(scope="module")
def paired(shared_data, tmp_path_factory):
    """T2W, ADC and both zones of the prostate: 80 mm of three slices of one patient."""
    case = shared_data / "prostate" / "prostatex" / "ProstateX-0000"
    if not case.is_dir():
        pytest.skip("the prostate data are not here")
    folder = tmp_path_factory.mktemp("paired")
    images = {key: case / f"{key}.nii.gz" for key in ("t2w", "adc")}
    one = cut(folder, "p", images, case / "zones.nii.gz", 160, 3)
    labels = {"peripheral_zone": 1, "transition_zone": 2}
    return Dataset("zones", "Zones", {"t2w": T2W, "adc": ADC}, labels, [one])


@pytest.fixture(scope="module")
def gland(shared_data, tmp_path_factory):
    """T2W and the border of the gland: 32 mm of four slices of one patient."""
    case = shared_data / "prostate" / "prostatex" / "ProstateX-0000"
    if not case.is_dir():
        pytest.skip("the prostate data are not here")
    folder = tmp_path_factory.mktemp("gland")
    one = cut(folder, "p", {"t2w": case / "t2w.nii.gz"}, case / "prostate.nii.gz", 64, 4, 60)
    return Dataset("gland", "Gland", {"t2w": T2W}, {"prostate": 1}, [one])


@pytest.fixture(scope="module")
def unpaired(shared_data, tmp_path_factory):
    """The tumour of one patient in CT and, unpaired, in T1: three slices of each."""
    case = shared_data / "sarcoma" / "sts" / "STS_003"
    if not case.is_dir():
        pytest.skip("the sarcoma data are not here")
    folder = tmp_path_factory.mktemp("unpaired")
    cases = [
        cut(folder, key, {key: case / f"{key}.nii.gz"}, case / f"tumor_on_{key}.nii.gz", 96, 3)
        for key in ("ct", "t1")
    ]
    channels = {"ct": Channel("CT", "CT", required=False), "t1": Channel("T1", required=False)}
    return Dataset("sarcoma", "Sarcoma", channels, {"tumor": 1}, cases)


def learnt(recipe, data, out, steps, seed=1):
    """The trained folder, and the mean Dice over the labels of each case, by the predictor."""
    plan = Plan(steps=steps, device="cpu", workers=0, seed=seed)
    run = train(recipe, data, out, plan)
    predictor = Predictor(run.folder, device="cpu")
    scores = []
    for case in data.cases:
        images = {key: read_image(path) for key, path in case.images.items()}
        result = predictor.predict(images, attention=False)
        label = resample(read_image(case.label), result.grid, "nearest").array
        values = data.labels.values()
        scores.append(np.mean([dice(result.labelmap == v, label == v) for v in values]))
        # So many labelled voxels that "everywhere" were an answer would prove nothing.
        assert all((label == v).mean() < 0.45 for v in values)
    return run, scores


def batch_of(data, recipe, count=2):
    """(configured recipe, description, batch) as the trainer makes them, and the objective."""
    setup = set_up(recipe, data, Plan(steps=1, device="cpu", workers=0))
    items = [setup.patches[n] for n in range(count)]
    return setup, torch.utils.data.default_collate(items)


def reached(objective):
    """Names of the parameters that got a gradient."""
    return {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}


def test_every_recipe_is_found_by_its_name():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
    assert {"csad", "edge_attention", "ummkd", "affinity", "rsanet"} <= set(RECIPES)


@pytest.mark.parametrize(
    ("name", "settings", "space"),
    [
        ("csad", {}, "ji"),
        ("csad", {"augment": "scanner"}, "ji"),
        ("affinity_teacher", {"augment": "scanner"}, "ji"),
        ("affinity_teacher", {"augment": "none"}, "ji"),
        ("ummkd", {"augment": "scanner"}, "ji"),
        ("ummkd", {"dimensions": 3}, "kji"),
        ("edge_attention", {}, "kji"),
        ("edge_attention", {"scanner": True}, "kji"),
        ("rsanet", {}, "kji"),
        ("unet", {"dimensions": 3, "patch": (32, 32, 32)}, "kji"),
        ("unet", {"dimensions": 2, "patch": (1, 64, 64)}, "ji"),
    ],
)
def test_careful_mirrors_along_the_axes_along_which_the_training_did(name, settings, space):
    channels = {"t1": Channel("T1"), "t2w": T2W, "adc": ADC, "flair": Channel("FLAIR")}
    if name == "ummkd":
        channels = {"ct": Channel("CT", "CT", required=False), "t1": Channel("T1", required=False)}
    recipe, _ = recipe_of(name, settings).configured(described(channels), FACTS)
    description = recipe.description(described(channels), RECORD)
    flips = {
        space[change.flipper.spatial_axis]
        for change in recipe.transforms(description).flatten().transforms
        if isinstance(change, RandFlipd)
    }
    assert {*description.grid.mirror} & {*space} == flips


# CSAD


def test_csad_has_the_settings_of_its_section_4a():
    recipe, notes = CSADRecipe().configured(described({"t2w": T2W, "adc": ADC}), FACTS)
    assert recipe.streams == ("t2w", "adc")
    assert recipe.batch_size == 2
    assert (recipe.alpha, recipe.beta, recipe.sigma, recipe.foreground_weight) == (1, 0.1, 1, 0.95)
    # The median slice is 192 mm wide and has 256 pixels.
    assert recipe.patch == (1, 256, 256)
    assert recipe.spacing == 0.75
    assert "0.75 mm" in notes[1]
    assert isinstance(recipe.optimizer([torch.nn.Parameter(torch.ones(1))]), torch.optim.SGD)
    assert recipe.learning_rate_at(0.5, 10) == pytest.approx(0.01 * 0.5**0.9)
    d = recipe.description(described({"t2w": T2W, "adc": ADC}), RECORD)
    assert d.grid.dimensionality == "2D"
    assert [s.key for s in d.inputs] == ["t2w", "adc"]
    assert (d.reference, d.missing_input) == ("t2w", "refuse")
    assert d.labels[0].name == "Prostate lesion"
    assert d.labels[0].terminology.region.meaning == "Prostate"


def test_csad_takes_any_two_channels_but_not_one():
    flair = {"t1": Channel("T1"), "flair": Channel("FLAIR")}
    assert CSADRecipe().configured(described(flair), FACTS)[0].streams == ("flair", "t1")
    other = {"x": Channel("X"), "y": Channel("Y")}
    assert CSADRecipe().configured(described(other), FACTS)[0].streams == ("x", "y")
    with pytest.raises(SettingError, match="channel t2w alone, CSAD takes two"):
        CSADRecipe().configured(described({"t2w": T2W}), FACTS)
    with pytest.raises(SettingError, match="no variant 'none'"):
        CSADRecipe(variant="none")
    named = CSADRecipe(streams=("t2w", "dwi")).configured(
        described({"t2w": T2W, "adc": ADC}), FACTS
    )
    with pytest.raises(MissingInputError, match="no channel 'dwi'"):
        named[0].description(described({"t2w": T2W, "adc": ADC}), RECORD)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_csad_has_its_network_and_its_terms(paired, variant):
    recipe = CSADRecipe(variant=variant, width=4, patch=(1, 32, 32))
    setup, batch = batch_of(paired, recipe)
    fusion, scheme = VARIANTS[variant]
    assert setup.description.network.config["fusion"] == fusion
    assert batch["image"].shape == (2, 2, 32, 32)
    objective = setup.objective.eval()
    logits, terms = objective(batch)
    with torch.no_grad():
        again, maps = objective.network(batch["image"], log_maps=True)
    torch.testing.assert_close(logits, again)
    expected = CSADLoss(scheme)(again, batch["label"], None if scheme == "nlc" else maps)
    torch.testing.assert_close(terms["total"], expected)
    assert ("distillation" in terms) == (scheme != "nlc")


def test_csad_learns_the_zones_of_a_real_prostate(paired, tmp_path):
    recipe = CSADRecipe(width=8, patch=(1, 32, 32), learning_rate=0.1, batch_size=4)
    run, (score,) = learnt(recipe, paired, tmp_path / "run", 60)
    assert score > 0.5
    d = run.folder.description
    assert [(x.value, x.name) for x in d.labels] == [
        (1, "Peripheral zone"), (2, "Transition zone")
    ]  # fmt: skip
    assert d.training.settings["variant"] == "proposed"
    assert "Self-Attention Distillation" in d.citation[0]


# Edge attention


def test_edge_attention_has_the_settings_of_its_section_3():
    data = described({"adc": ADC, "t2w": T2W}, {"prostate": 1})
    recipe = EdgeAttentionRecipe().configured(data, FACTS)[0]
    assert recipe.image == "t2w"
    assert recipe.batch_size == 16
    assert recipe.edge_weights == (0.5, 0.8, 1.0)
    optimizer = recipe.optimizer([torch.nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    rates = [recipe.learning_rate_at(0, step) for step in (0, 1999, 2000, 4000)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    d = recipe.description(data, RECORD)
    assert d.grid.spacing == (0.625, 0.625, 1.5)
    assert (d.grid.tile, d.grid.blend) == ((32, 96, 96), "constant")
    # Windows of 96 x 96 x 32 at strides of 24 x 24 x 8.
    assert [round(n * (1 - d.grid.overlap)) for n in d.grid.tile] == [8, 24, 24]
    assert d.network.config["depth"] == 101
    assert d.labels[0].terminology.type.meaning == "Prostate"
    assert d.labels[0].one_piece


def test_the_pre_training_has_the_settings_of_its_section_3():
    recipe = EdgeAttentionPretrainingRecipe()
    optimizer = recipe.optimizer([torch.nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    assert recipe.learning_rate_at(0, 0) == 0.01
    assert recipe.learning_rate_at(0, 1_000_000) == pytest.approx(0.005)


SMALL = {"depth": 10, "width": 4, "patch": (8, 32, 32), "batch_size": 2}


def test_edge_attention_adds_the_edges_of_three_levels_to_dice(gland):
    setup, batch = batch_of(gland, EdgeAttentionRecipe(**SMALL, decoder_width=4))
    assert batch["image"].shape == (2, 1, 8, 32, 32)
    objective = setup.objective.eval()
    _, terms = objective(batch)
    with torch.no_grad():
        again, attention = objective.network(batch["image"], with_attention=True)
    expected = EdgeAttentionLoss((0.5, 0.8, 1.0))(again, attention, batch["label"])
    torch.testing.assert_close(terms["total"], expected)
    weighted = 0.5 * terms["edge1"] + 0.8 * terms["edge2"] + terms["edge3"] + terms["dice"]
    torch.testing.assert_close(terms["total"], weighted)
    terms["edge1"].backward()
    assert any(name.startswith("network.edge.0.map") for name in reached(objective))
    assert not any(name.startswith("network.classify") for name in reached(objective))


def test_the_encoder_of_the_pre_training_starts_the_segmentation(gland, tmp_path):
    recipe = EdgeAttentionPretrainingRecipe(**SMALL, learning_rate=0.1)
    run = train(recipe, gland, tmp_path / "pre", Plan(steps=3, device="cpu", workers=0))
    weights = run.folder.weights_path
    second = EdgeAttentionRecipe(**SMALL, decoder_width=4, pretrained=str(weights), freeze=True)
    setup = set_up(second, gland, Plan(steps=1, device="cpu", workers=0))
    encoder = setup.objective.network.encoder
    pretrained = run.folder.load_network().encoder.state_dict()
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor.float(), pretrained[name].float(), msg=name)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert any(p.requires_grad for p in setup.objective.parameters())
    with pytest.raises(ModelWeightsError, match="do not fit"):
        set_up(replace(second, width=8), gland, Plan(steps=1, device="cpu", workers=0))


def test_edge_attention_learns_a_real_gland(gland, tmp_path):
    recipe = EdgeAttentionRecipe(**SMALL, decoder_width=8, learning_rate=5e-3, deform_mm=1.0)
    run, (score,) = learnt(recipe, gland, tmp_path / "run", 40)
    assert score > 0.85
    assert run.folder.description.training.settings["edge_weights"] == [0.5, 0.8, 1.0]


# UMMKD


def test_ummkd_has_the_settings_of_its_section_4a():
    channels = {"ct": Channel("CT", "CT", "HU"), "mr": Channel("MR")}
    data = described(channels, {"liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4})
    flat = UMMKDRecipe().configured(data, FACTS)[0]
    assert (flat.patch, flat.batch_size, flat.spacing) == ((1, 256, 256), 8, (1, 1, 1))
    deep = UMMKDRecipe(dimensions=3).configured(data, FACTS)[0]
    assert (deep.patch, deep.batch_size, deep.spacing) == ((8, 256, 256), 2, (1.5, 1.5, 8))
    assert [flat.learning_rate_at(0, s) for s in (999, 1000)] == pytest.approx([1e-4, 0.95e-4])
    assert [deep.learning_rate_at(0, s) for s in (499, 500)] == pytest.approx([1e-4, 0.95e-4])
    assert isinstance(flat.optimizer([torch.nn.Parameter(torch.ones(1))]), torch.optim.Adam)
    network = create_network("ummkd_2d", {"width": 2})
    loss = flat.objective(network, FACTS).loss
    assert (loss.alpha, loss.temperature, loss.eta) == (0.5, 2.0, 1e-4)
    # "Chilopod" is the same network without distillation.
    assert replace(flat, sharing="chilopod").objective(network, FACTS).loss.alpha == 0
    d = flat.description(data, RECORD)
    assert (d.missing_input, d.reference) == ("one_of", None)
    assert d.grid.neighbours == 1
    assert d.input("ct").normalisation.window == (-200, 400)
    assert d.input("mr").normalisation.window is None
    assert d.labels[2].terminology.modifier.meaning == "Right"
    assert deep.description(data, RECORD).network.name == "ummkd_3d"


def test_ummkd_refuses_what_has_not_one_of_two_modalities(unpaired):
    with pytest.raises(SettingError, match="has the channels t2w, UMMKD takes two"):
        UMMKDRecipe().configured(described({"t2w": T2W}), FACTS)
    both = Case("b", "b", "s", {"ct": "ct", "t1": "t1"}, None)
    with pytest.raises(SettingError, match="'b' has ct and t1 of the modalities"):
        UMMKDRecipe(modalities=("ct", "t1")).modality(both)
    for wrong in ({"dimensions": 4}, {"sharing": "z"}, {"augment": "plain", "dimensions": 3}):
        with pytest.raises(SettingError):
            UMMKDRecipe(**wrong)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_ummkd_starts_from_few_labels_wherever_its_features_say_nothing(dimensions):
    data = described({"ct": Channel("CT", "CT", "HU"), "t2": Channel("T2")}, {"a": 1, "b": 2})
    recipe = UMMKDRecipe(width=4, norm="group", norm_groups=2, dimensions=dimensions, prior=0.02)
    recipe, _ = recipe.configured(data, FACTS)
    network = recipe.network(recipe.description(data, RECORD)).eval()
    with torch.no_grad():
        for convolution in network.out.copies:
            convolution.weight.zero_()
        x = torch.randn(1, 3, 16, 16) if dimensions == 2 else torch.randn(1, 1, 8, 16, 16)
        for modality in (0, 1):
            probability = network(x, modality=modality).softmax(dim=1)[0]
            torch.testing.assert_close(probability[0], torch.full_like(probability[0], 0.98))
            torch.testing.assert_close(probability[1], probability[2])
    with pytest.raises(SettingError, match="prior is 0"):
        UMMKDRecipe(prior=0)


def test_a_window_of_ummkd_takes_the_place_of_that_of_all_soft_tissue():
    data = described({"ct": Channel("CT", "CT", "HU"), "t2": Channel("T2")}, {"tumour": 1})

    def windows(**settings):
        recipe, _ = UMMKDRecipe(**settings).configured(data, FACTS)
        inputs = recipe.description(data, RECORD).inputs
        return {spec.key: spec.normalisation.window for spec in inputs}

    assert windows() == {"ct": (-200.0, 400.0), "t2": None}
    assert windows(windows={"ct": [-50, 150]}) == {"ct": (-50, 150), "t2": None}
    with pytest.raises(SettingError, match="'mr', which is none of the modalities"):
        windows(windows={"mr": (0, 1)})
    with pytest.raises(SettingError, match=r"The window of 'ct' is \[150, -50\]"):
        UMMKDRecipe(windows={"ct": (150, -50)})


@pytest.mark.parametrize(
    ("dimensions", "patch", "shape"),
    [(2, (1, 32, 32), (2, 3, 32, 32)), (3, (8, 32, 32), (2, 1, 8, 32, 32))],
)
def test_ummkd_compares_a_batch_of_each_modality_and_keeps_both_matrices(
    unpaired, dimensions, patch, shape
):
    recipe = UMMKDRecipe(dimensions=dimensions, width=2, patch=patch, spacing=(1.0, 1.0, 1.0))
    setup, batch = batch_of(unpaired, recipe)
    assert set(batch) == {"ct", "t1"}
    assert batch["ct"]["image"].shape == shape
    objective = setup.objective.eval()
    logits, terms = objective(batch)
    with torch.no_grad():
        a, b = (objective.network(batch[key]["image"], modality=n)
                for n, key in enumerate(("ct", "t1")))  # fmt: skip
        expected = UMMKDLoss()(a, batch["ct"]["label"], b, batch["t1"]["label"], objective.network)
    torch.testing.assert_close(logits["t1"], b)
    torch.testing.assert_close(terms["total"], expected.total)
    torch.testing.assert_close(terms["distillation"], expected.distillation)
    torch.testing.assert_close(objective.knowledge["ct"], expected.knowledge_a.q)
    torch.testing.assert_close(objective.knowledge["t1"].sum(dim=1), torch.ones(2))
    # The norms of one modality get nothing from the other's segmentation.
    terms["segmentation_ct"].backward()
    assert any(".norm.copies.0." in name for name in reached(objective))
    assert not any(".norm.copies.1." in name for name in reached(objective))


def test_ummkd_learns_a_real_tumour_in_both_modalities(unpaired, tmp_path):
    recipe = UMMKDRecipe(
        width=4, learning_rate=5e-3, batch_size=4, patch=(1, 48, 48), spacing=(2.0, 2.0, 1.0)
    )
    run, scores = learnt(recipe, unpaired, tmp_path / "run", 40)
    assert min(scores) > 0.8
    assert run.folder.description.one_of


# Adaptive affinity


def test_rsanet_starts_from_few_lesions_wherever_its_features_say_nothing():
    recipe = RSANetRecipe(width=4, norm_groups=2, prior=0.02)
    channels = {key: Channel(key) for key in recipe.keys}
    network = recipe.network(recipe.description(described(channels), RECORD)).eval()
    x = torch.randn(1, 3, 16, 16, 16)
    with torch.no_grad():
        assert network(x).softmax(dim=1)[:, 1].mean() < 0.05
        for parameter in network.decoder[-1].level.layers[4].parameters():
            parameter.zero_()
        lesion = network(x).softmax(dim=1)[:, 1]
    torch.testing.assert_close(lesion, torch.full_like(lesion, 0.02))
    published = RSANetRecipe(width=4, norm_groups=2, head_bias=False)
    assert (
        published.network(published.description(described(channels), RECORD)).head[1].bias is None
    )
    for wrong in (0.0, 1.0):
        with pytest.raises(SettingError, match="prior is"):
            RSANetRecipe(prior=wrong)


def test_affinity_has_the_settings_of_its_section_3():
    recipe = AffinityRecipe()
    assert (recipe.logits_weight, recipe.kernel_weight, recipe.affinity_weight) == (0.2, 0.9, 0.9)
    assert recipe.batch_size == 16
    assert isinstance(recipe.optimizer([torch.nn.Parameter(torch.ones(1))]), torch.optim.Adam)
    # CyclicLR of step size 2000 from 0.01 down to 1e-6, with lower and lower tops.
    rates = [recipe.learning_rate_at(0, step) for step in (0, 1000, 2000, 4000, 6000, 8000)]
    assert rates == pytest.approx([0.01, 0.0050005, 1e-6, 0.005, 1e-6, 0.0025])


@pytest.fixture(scope="module")
def teacher(gland, tmp_path_factory):
    """A small UNet++ that has learnt the gland, and its Dice."""
    recipe = AffinityTeacherRecipe(
        config={"width": 4}, patch=(1, 32, 32), batch_size=4, learning_rate=3e-3
    )
    run, (score,) = learnt(recipe, gland, tmp_path_factory.mktemp("teacher") / "run", 40)
    return run.folder, score


def test_a_teacher_learns_and_a_student_learns_from_it(gland, teacher, tmp_path):
    folder, score = teacher
    assert score > 0.85
    # At the paper's weight the affinity term keeps one training in two from learning so soon.
    recipe = AffinityRecipe(
        teachers=(str(folder.path),), config={"width": 4, "dropout": 0.0}, patch=(1, 32, 32),
        batch_size=4, learning_rate=1e-2, affinity_weight=0.03,
    )  # fmt: skip
    run, (own,) = learnt(recipe, gland, tmp_path / "run", 80)
    # "Everywhere" would be below 0.63.
    assert own > 0.8
    d = run.folder.description
    assert d.network.name == "enet"
    assert (d.grid, d.inputs, d.reference) == (
        folder.description.grid, folder.description.inputs, "t2w"
    )  # fmt: skip
    # What was learnt is the student alone.
    assert run.folder.weights_path.stat().st_size < 500_000
    assert {a.key for a in d.attention} == {"low", "high"}


def test_the_student_learns_by_equation_8_and_the_teacher_never_changes(gland, teacher):
    recipe = AffinityRecipe(
        teachers=(str(teacher[0].path),), config={"width": 4}, patch=(1, 32, 32)
    )
    setup, batch = batch_of(gland, recipe)
    objective = setup.objective.train()
    torch.manual_seed(1)
    _, terms = objective(batch)
    assert set(terms) == {"total", "segmentation", "logits", "kernel", "affinity"}
    weighted = terms["segmentation"] + 0.2 * terms["logits"]
    weighted = weighted + 0.9 * terms["kernel"] + 0.9 * terms["affinity"]
    torch.testing.assert_close(terms["total"], weighted)
    terms["total"].backward()
    names = reached(objective)
    assert any(name.startswith("network.") for name in names)
    assert any("adapters" in name for name in names)
    assert not any("teacher" in name for name in names)
    loss = AffinityDistillationLoss(AffinityLossConfig(kernel_weight=0, affinity_weight=0))
    with torch.no_grad():
        objective.eval()
        student = objective.network(batch["image"])
        taught = teacher[0].load_network()(batch["image"])
        expected = loss(student, taught, [], batch["label"])
        _, terms = objective(batch)
    torch.testing.assert_close(terms["logits"], expected["logits"])
    torch.testing.assert_close(terms["segmentation"], expected["segmentation"])


def test_terms_of_the_distillation_can_be_left_out(gland, teacher):
    recipe = AffinityRecipe(
        teachers=(str(teacher[0].path),), config={"width": 4}, patch=(1, 32, 32), kernel_weight=0,
        affinity_weight=0,
    )  # fmt: skip
    setup, batch = batch_of(gland, recipe)
    assert set(setup.objective(batch)[1]) == {"total", "segmentation", "logits"}
    assert not list(setup.objective.distillation.adapters)


def test_a_student_without_a_fitting_teacher_is_refused(gland, teacher):
    with pytest.raises(SettingError, match="There is no teacher"):
        AffinityRecipe().configured(gland, FACTS)
    recipe = AffinityRecipe(teachers=(str(teacher[0].path),))
    with pytest.raises(MissingInputError, match="The teacher sees 't2w'"):
        recipe.configured(described({"adc": ADC}), FACTS)
    other = replace(gland, labels={"peripheral zone": 1})
    configured = recipe.configured(other, FACTS)[0]
    with pytest.raises(SettingError, match="labels are 1 Prostate, the data set's 1 Peripheral"):
        configured.description(other, RECORD)


def test_a_trained_folder_stands_alone(teacher):
    assert ModelFolder.read(teacher[0].path).load_network()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch": "64,64,64"}, "patch is '64,64,64': input should be a valid tuple"),
        ({"patch": [64, 64]}, "patch is"),
        ({"patch": [0, 64, 64]}, "patch is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"ema_decay": 2}, "ema_decay is 2"),
        ({"augment": "wild"}, "augment is 'wild'"),
        ({"wdith": 8}, "no setting 'wdith'"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_refused(settings, words):
    with pytest.raises(SettingError, match=words):
        recipe_of("csad", settings, strict=True)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("unet", {"drop": 3}, "drop is 3"),
        ("unet", {"transplant": 2}, "transplant is 2. Give 0 to 1"),
        ("unet", {"ghosting": -1}, "ghosting is -1"),
        ("unet", {"neighbours": -1}, "neighbours is -1"),
        ("unet", {"spacing": [0, 1, 1]}, "spacing is 0"),
        ("unet", {"width": True}, "width is True. Give a number"),
        ("unet", {"patch": [True, 64, 64]}, "patch is .True, 64, 64.. Give a number"),
        ("rsanet", {"drop": {"t2": 3}}, "drop is 3"),
        ("rsanet", {"drop": {"t9": 0.3}}, "drop names 't9', which is no input"),
        ("rsanet", {"transplant": -0.1}, "transplant is -0.1"),
        ("rsanet", {"ghosting": 1.1}, "ghosting is 1.1"),
    ],
)
def test_what_is_no_number_or_no_probability_is_refused(name, settings, words):
    with pytest.raises(SettingError, match=words):
        recipe_of(name, settings)


def test_what_always_happens_is_a_probability_and_true_is_a_switch():
    assert recipe_of("unet", {"transplant": 1, "ghosting": 0}).transplant == 1
    assert recipe_of("edge_attention", {"scanner": True}).scanner is True


def test_slices_have_neighbours_and_3d_patches_have_none():
    data = described({"t2w": T2W})
    flat, _ = UNetRecipe(neighbours=1).configured(data, FACTS)
    assert (flat.dimensions, flat.neighbours) == (2, 1)
    solid = replace(FACTS, spacing=(1.0, 1.0, 1.0), shape=(160, 192, 192))
    with pytest.raises(SettingError, match="neighbours is 3, but these images are seen in 3D"):
        UNetRecipe(neighbours=3).configured(data, solid)


def test_values_come_from_json_as_the_settings_kinds():
    recipe = recipe_of("csad", {"patch": [1, 64, 64], "streams": ["flair", "t1"], "spacing": None})
    assert (recipe.patch, recipe.streams) == ((1, 64, 64), ("flair", "t1"))
    assert recipe_of("unet", {"spacing": [1, 1, None]}).spacing == (1.0, 1.0, None)
    windows = recipe_of("ummkd", {"windows": {"ct": [-50, 150]}}).windows
    assert windows == {"ct": (-50.0, 150.0)}


def test_a_patch_that_the_network_cannot_take_is_refused(ms_cases):
    recipe = CSADRecipe(patch=(1, 100, 100), streams=("flair", "t1"), width=2)
    with pytest.raises(SettingError, match="multiple of"):
        set_up(recipe, ms_cases, Plan(steps=1, device="cpu", workers=0))
