"""Any trained folders teach a small student by one command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medsegcore.cli import main
from medsegcore.errors import MissingInputError, SettingError
from medsegcore.evaluation.metrics import dice
from medsegcore.imaging import read_image
from medsegcore.inference import Predictor
from medsegcore.losses.affinity import AffinityDistillationLoss, AffinityLossConfig
from medsegcore.models import ModelFolder, model_card
from medsegcore.training.datasets import Channel, read_dataset
from medsegcore.training.facts import data_facts
from medsegcore.training.finetune import FineTuningRecipe
from medsegcore.training.recipes import DistillRecipe, RSANetRecipe, UNetRecipe
from medsegcore.training.recipes.base import Supervised
from medsegcore.training.recipes.distill import Ensemble
from medsegcore.training.running import run_with_taps
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_cost")

CPU = {"device": "cpu", "workers": 0}
SMALL = UNetRecipe(
    dimensions=2, width=4, patch=(1, 64, 64), batch_size=4, spacing=(1.25, 1.25, None),
    learning_rate=1e-2, warmup_steps=5, ema_decay=0.9,
)  # fmt: skip


@pytest.fixture(scope="module")
def zones(zones_set):
    """Two real patients with two labels."""
    return zones_set("zones", "prostatex/ProstateX-0000", "prostatex/ProstateX-0001")


@pytest.fixture(scope="module")
def teachers(zones, tmp_path_factory):
    """Two small U-Nets, each trained on the patient that the other leaves out."""
    folders = []
    for n, patient in enumerate(("ProstateX-0000", "ProstateX-0001")):
        out = tmp_path_factory.mktemp("teachers") / "run"
        plan = Plan(test=[patient], steps=60, seed=n, **CPU)
        folders.append(train(SMALL, zones, out, plan).folder)
    return folders


@pytest.fixture(scope="module")
def brain_teacher(ms_cases, tmp_path_factory):
    """A 3D network of three inputs, one of which may be absent; hardly trained."""
    recipe = RSANetRecipe(width=4, patch=(32, 32, 32), batch_size=2)
    out = tmp_path_factory.mktemp("brain") / "run"
    return train(recipe, ms_cases, out, Plan(steps=2, **CPU)).folder


def contents(*folders):
    return {file: file.read_bytes() for folder in folders for file in folder.path.iterdir()}


def batch_of(recipe, data, count=3):
    setup = set_up(recipe, data, Plan(steps=1, **CPU))
    return setup, torch.utils.data.default_collate([setup.patches[n] for n in range(count)])


def student_of(*teachers, **settings):
    return DistillRecipe(teachers=tuple(str(folder.path) for folder in teachers), **settings)


def answer_dice(folder, case):
    images = {key: read_image(path) for key, path in case.images.items()}
    result = Predictor(folder, "cpu").predict(images, attention=False)
    label = read_image(case.label).array
    return np.mean([dice(result.labelmap == x.value, label == x.value) for x in result.labels])


def test_the_loss_of_one_teacher_is_equation_8_of_what_both_networks_give(teachers, zones):
    recipe = student_of(teachers[0], config={"width": 4}, affinity_weight=0.9)
    setup, batch = batch_of(recipe, zones)
    assert (setup.recipe.patch, setup.recipe.batch_size) == ((1, 64, 64), 4)
    objective = setup.objective.eval()
    logits, terms = objective(batch)
    pair = objective.distillation.pairs[0]
    assert pair == ("layers.down_4", "high")
    with torch.no_grad():
        taught, theirs = run_with_taps(
            teachers[0].load_network(), batch["image"], ["layers.down_4"]
        )
        student, ours = run_with_taps(objective.network, batch["image"], ["high"])
        adapted = objective.distillation.adapters[0](ours["high"])
        size = theirs["layers.down_4"].shape[2:]
        adapted = F.interpolate(adapted, size, mode="bilinear", align_corners=False)
        expected = AffinityDistillationLoss(AffinityLossConfig(kernel_form="unit"))(
            student, taught, [(adapted, theirs["layers.down_4"])], batch["label"]
        )
    torch.testing.assert_close(logits, student)
    assert set(terms) == {"total", "segmentation", "logits", "kernel", "affinity"}
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, msg=name)


def test_several_teachers_teach_the_mean_of_their_probabilities(teachers, zones):
    networks = [folder.load_network() for folder in teachers]
    recipe = student_of(*teachers, config={"width": 4}, affinity_weight=0.9)
    setup, batch = batch_of(recipe, zones)
    with torch.no_grad():
        single = [torch.softmax(network(batch["image"]), dim=1) for network in networks]
        mean = torch.softmax(Ensemble(networks)(batch["image"]), dim=1)
        torch.testing.assert_close(mean, (single[0] + single[1]) / 2)
        assert (single[0] - single[1]).abs().max() > 0.1
        objective = setup.objective.eval()
        logits, terms = objective(batch)
        config = AffinityLossConfig(kernel_weight=0)
        expected = AffinityDistillationLoss(config)(logits, mean.log(), [], batch["label"])
    assert "2 teachers have no common features" in setup.notes[1]
    assert setup.record.settings["kernel_weight"] == 0
    assert set(terms) == set(expected)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_one_command_makes_a_student_of_two_folds(teachers, zones, tmp_path, capsys):
    before = contents(*teachers)
    out = tmp_path / "run"
    arguments = ["--data", str(zones), "--student", "enet", "--test", "ProstateX-0001"]
    arguments += ["--steps", "60", "--out", str(out), "--device", "cpu", "--workers", "0"]
    arguments += ["--set", 'config={"width": 8, "dropout": 0.0}', "--set", "learning_rate=0.01"]
    for folder in teachers:
        arguments += ["--teacher", str(folder.path)]
    assert main(["distill", *arguments]) == 0, capsys.readouterr().err
    assert contents(*teachers) == before
    student = ModelFolder.read(out / "model")
    student.verify()
    d, taught = student.description, teachers[0].description
    assert (d.id, d.network.name) == ("zones-unet-enet", "enet")
    assert (d.inputs, d.grid, d.labels) == (taught.inputs, taught.grid, taught.labels)
    parents = [(p.id, p.version, p.sha256, p.role) for p in d.training.parents]
    assert parents == [
        ("zones-unet", "1.0.0", f.description.weights.sha256, "teacher") for f in teachers
    ]
    assert f"Taught by `zones-unet` 1.0.0 (SHA-256 `{parents[0][2]}`)" in model_card(d)
    # The second fold's teacher has seen the patient that the first one is tested on.
    assert any("was trained on the patients ProstateX-0001" in limit for limit in d.limits)
    assert str(tmp_path) not in (out / "model" / "model.json").read_text(encoding="utf-8")
    assert "/teachers" not in json.dumps(d.training.settings)
    seen = read_dataset(zones).cases[0]
    assert answer_dice(student, seen) > 0.35
    how = {m.case: m.how for m in d.metrics}
    assert set(how) == {"ProstateX-0000", "ProstateX-0001"}
    knew = "never trained on here, but 'zones-unet', from which it comes, was trained on it"
    assert how["ProstateX-0001"].startswith(knew)
    # It teaches, and learns on, without its teachers.
    again, _ = batch_of(student_of(student, config={"width": 4}), zones)
    assert again.recipe.patch == (1, 64, 64)
    recipe = FineTuningRecipe(model=str(student.path), guard=0.0)
    setup = set_up(recipe, zones, Plan(steps=1, **CPU))
    assert isinstance(setup.objective, Supervised)


def test_a_3d_teacher_with_an_optional_input_teaches_a_narrower_unet(
    brain_teacher, ms_cases, tmp_path
):
    recipe = student_of(brain_teacher, architecture="unet")
    run = train(recipe, ms_cases, tmp_path / "run", Plan(steps=2, test=["b"], **CPU))
    d = run.folder.description
    assert d.network.config == {
        "width": 2, "in_channels": 3, "out_channels": 2, "dimensions": 3,
    }  # fmt: skip
    assert d.training.settings["kernel_weight"] == 0.9
    assert d.missing_input == "zero"
    assert d.training.settings["patch"] == [32, 32, 32]
    run.folder.verify()
    # The case of the test patient has no T2.
    assert 0 <= answer_dice(run.folder, run.test[0]) <= 1
    assert d.weights.license == brain_teacher.description.weights.license == "CC BY"


def test_a_student_may_do_no_more_than_its_teachers_allow(teachers, zones, tmp_path):
    limited = copy_with(
        teachers[0], tmp_path / "limited",
        weights=teachers[0].description.weights.model_copy(
            update={"license": "CC BY-NC 4.0", "commercial_use": False}
        ),
    )  # fmt: skip
    recipe = student_of(limited, config={"width": 4})
    run = train(recipe, zones, tmp_path / "run", Plan(steps=1, **CPU))
    weights = run.folder.description.weights
    assert weights.license == "CC BY-NC 4.0, CC BY 4.0"
    assert not weights.commercial_use


def copy_with(folder, path, **update):
    """A copy of a model folder whose description says something else."""
    description = folder.description.model_copy(update=update)
    return ModelFolder.write(path, description, folder.load_network())


def test_teachers_that_differ_are_refused(teachers, zones, tmp_path):
    data = read_dataset(zones)
    facts = data_facts(data, data.cases, torch.device("cpu"))
    d = teachers[0].description
    for what, update in (
        ("inputs", {"inputs": [d.inputs[0].model_copy(update={"units": "HU"})]}),
        ("grid", {"grid": d.grid.model_copy(update={"spacing": (1.0, 1.0, None)})}),
        ("labels", {"labels": [d.labels[0], d.labels[1].model_copy(update={"name": "x"})]}),
    ):
        other = copy_with(teachers[1], tmp_path / what, **update)
        with pytest.raises(SettingError, match=f"differ in their {what}"):
            student_of(teachers[0], other).configured(data, facts)
    # Tiles are the machine's matter.
    tiles = copy_with(
        teachers[1], tmp_path / "tiles", grid=d.grid.model_copy(update={"tile": (1, 32, 32)})
    )
    student_of(teachers[0], tiles).configured(data, facts)


def test_what_cannot_teach_or_learn_is_refused(teachers, brain_teacher, zones, tmp_path):
    data = read_dataset(zones)
    facts = data_facts(data, data.cases, torch.device("cpu"))
    with pytest.raises(SettingError, match="no teacher"):
        DistillRecipe().configured(data, facts)
    with pytest.raises(MissingInputError, match="The teacher sees 't1'"):
        student_of(brain_teacher).configured(data, facts)
    other = replace(data, channels={"adc": Channel("ADC")})
    with pytest.raises(MissingInputError, match="The teacher sees 't2w'"):
        student_of(teachers[0]).configured(other, facts)
    with pytest.raises(SettingError, match="1 peripheral zone, 2 transition zone, the data set's"):
        set_up(student_of(teachers[0]), replace(data, labels={"prostate": 1}), Plan(steps=1, **CPU))
    with pytest.raises(SettingError, match="'rsanet' works in 3D, the teacher in 2D"):
        student_of(teachers[0], architecture="rsanet").configured(data, facts)
    with pytest.raises(SettingError, match="'ummkd_2d' takes one of several inputs, the teacher"):
        student_of(teachers[0], architecture="ummkd_2d").configured(data, facts)
    unknown = teachers[0].description.training.model_copy(update={"recipe": "theirs"})
    foreign = copy_with(teachers[0], tmp_path / "foreign", training=unknown)
    with pytest.raises(SettingError, match="no recipe 'theirs'"):
        student_of(foreign).configured(data, facts)
