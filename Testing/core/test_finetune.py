"""A model learns a corrected case as a new version, and the guards keep what it knew."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsegcore.cli import main
from medsegcore.errors import OutputError, SettingError
from medsegcore.evaluation.metrics import dice
from medsegcore.imaging import read_image
from medsegcore.inference import Predictor
from medsegcore.models import ModelFolder, model_card
from medsegcore.training.datasets import Case, Channel, Dataset, read_dataset
from medsegcore.training.finetune import (
    FineTuningRecipe,
    Remembering,
    fine_tune,
    forgetting_loss,
    next_version,
)
from medsegcore.training.patches import MixedPatches
from medsegcore.training.recipes import RSANetRecipe, UMMKDRecipe, UNetRecipe, recipe_of
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_cost")

CPU = {"device": "cpu", "workers": 0}
SMALL = UNetRecipe(
    dimensions=2, width=4, patch=(1, 64, 64), batch_size=4, spacing=(1.25, 1.25, None),
    learning_rate=1e-2, warmup_steps=5, ema_decay=0.9,
)  # fmt: skip


@pytest.fixture(scope="module")
def known(zones_set):
    """What the model has learnt: two patients, the second of whom it is tested on."""
    return zones_set("known", "prostatex/ProstateX-0000", "prostatex/ProstateX-0001")


@pytest.fixture(scope="module")
def corrected(zones_set):
    """Two patients of another hospital."""
    return zones_set("corrected", "picai/10021_1000021", "picai/10000_1000000")


@pytest.fixture(scope="module")
def model(known, tmp_path_factory):
    """A small U-Net that has learnt one patient."""
    out = tmp_path_factory.mktemp("model") / "run"
    plan = Plan(test=["ProstateX-0001"], steps=80, **CPU)
    return train(SMALL, known, out, plan).folder


def answer(folder, case):
    """Probabilities [label, k, j, i] of a case, and the mean Dice over its labels."""
    images = {key: read_image(path) for key, path in case.images.items()}
    result = Predictor(folder, "cpu").predict(images, attention=False)
    label = read_image(case.label).array
    scores = [dice(result.labelmap == x.value, label == x.value) for x in result.labels]
    return np.stack([*result.probabilities.values()]), float(np.mean(scores))


@pytest.fixture(scope="module")
def tuned(model, corrected, tmp_path_factory):
    """Makes runs on the first corrected patient, with the second held out."""

    def make(**settings):
        recipe = FineTuningRecipe(model=str(model.path), **settings)
        plan = Plan(test=["10000_1000000"], steps=40, **CPU)
        return fine_tune(recipe, corrected, tmp_path_factory.mktemp("tuned") / "run", plan)

    return make


@pytest.fixture(scope="module")
def guarded(tuned):
    """With the old answers in the loss."""
    return tuned()


def test_the_guard_is_the_divergence_from_the_old_models_softened_answers():
    torch.manual_seed(1)
    new, old = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    p, q = (torch.softmax(x.double() / 2, dim=1) for x in (old, new))
    expected = (p * (p / q).log()).sum(dim=1).mean()
    assert forgetting_loss(new, old).item() == pytest.approx(expected.item(), rel=1e-5)
    assert forgetting_loss(old, old).item() == pytest.approx(0, abs=1e-7)
    # Eq. 2 but for a constant: the gradient is that of the cross-entropy.
    new.requires_grad_(True)
    (gradient,) = torch.autograd.grad(forgetting_loss(new, old), new)
    cross_entropy = -(p.float() * torch.log_softmax(new / 2, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(cross_entropy, new)[0])


def test_the_guard_keeps_the_answers_for_each_modality(ct_or_mr_model):
    torch.manual_seed(1)
    network, old = ct_or_mr_model.load_network(), ct_or_mr_model.load_network()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    own = UMMKDRecipe(modalities=("ct", "mr"), width=2).objective(network, None)
    objective = Remembering(own, old, ["ct", "mr"], 2.0, 2.0).eval()
    batch = {
        key: {"image": torch.randn(2, 3, 32, 32), "label": torch.randint(0, 3, (2, 1, 32, 32))}
        for key in ("ct", "mr")
    }
    with torch.no_grad():
        logits, terms = objective(batch)
        kept = [
            forgetting_loss(logits[key], old(batch[key]["image"], modality=n))
            for n, key in enumerate(("ct", "mr"))
        ]
        expected = own(batch)[1]["total"] + kept[0] + kept[1]
    assert kept[0] != kept[1]
    torch.testing.assert_close(terms["total"], expected)


def test_the_recipe_goes_on_with_its_own_loss_and_patches_at_a_tenth_of_the_rate(model, corrected):
    recipe = FineTuningRecipe(model=str(model.path))
    setup = set_up(recipe, corrected, Plan(steps=1, **CPU))
    assert (setup.recipe.patch, setup.recipe.batch_size) == (SMALL.patch, SMALL.batch_size)
    assert setup.recipe.ema_decay == SMALL.ema_decay
    for share, step in ((0, 0), (0.3, 20), (0.9, 90)):
        rate = SMALL.learning_rate_at(share, step)
        assert setup.recipe.learning_rate_at(share, step) == pytest.approx(0.1 * rate)
    batch = torch.utils.data.default_collate([setup.patches[n] for n in range(2)])
    objective = setup.objective.eval()
    assert isinstance(objective, Remembering)
    with torch.no_grad():
        logits, terms = objective(batch)
        torch.testing.assert_close(logits, model.load_network()(batch["image"]))
        own = SMALL.objective(objective.network, setup.facts).eval()
        torch.testing.assert_close(terms["total"], own(batch)[1]["total"])
        assert terms["forgetting"].item() == pytest.approx(0, abs=1e-6)
        for parameter in objective.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        logits, terms = objective(batch)
        kept = forgetting_loss(logits, model.load_network()(batch["image"]))
        expected = own(batch)[1]["total"] + 10 * kept
    assert kept > 1e-3
    torch.testing.assert_close(terms["total"], expected)
    objective.train()
    assert not any(module.training for module in objective.old.modules())
    assert not any(p.requires_grad for p in objective.old.parameters())


@pytest.mark.slow
def test_a_corrected_case_is_learnt_and_the_guard_keeps_the_old_answers(
    model, known, corrected, guarded, tuned
):
    old_case, new_case = read_dataset(known).cases[0], guarded.training[0]
    assert new_case.patient == "10021_1000021"
    unguarded = tuned(guard=0.0)
    before, _ = answer(model, old_case)
    drift = {
        name: float(np.abs(answer(run.folder, old_case)[0] - before).mean())
        for name, run in (("guarded", guarded), ("unguarded", unguarded))
    }
    assert drift["guarded"] < 0.6 * drift["unguarded"]
    was = answer(model, new_case)[1]
    assert answer(unguarded.folder, new_case)[1] > was + 0.05
    assert answer(guarded.folder, new_case)[1] > was + 0.04


def test_the_new_version_says_what_it_comes_from(model, known, guarded):
    old, new = model.description, guarded.folder.description
    assert (new.id, new.version) == (old.id, "1.1.0")
    assert [p.model_dump(exclude={"data"}) for p in new.training.parents] == [
        {"id": "known-unet", "version": "1.0.0", "sha256": old.weights.sha256, "role": "start"}
    ]
    assert new.training.parents[0].data == [use for use in old.data if use.split == "training"]
    uses = [(use.name, use.split, use.patients) for use in new.data]
    assert uses == [
        ("known", "training", ["ProstateX-0000"]), ("known", "test", ["ProstateX-0001"]),
        ("corrected", "training", ["10021_1000021"]), ("corrected", "test", ["10000_1000000"]),
    ]  # fmt: skip
    assert (new.inputs, new.grid, new.labels) == (old.inputs, old.grid, old.labels)
    assert new.weights.sha256 != old.weights.sha256
    assert any("Learning without Forgetting" in text for text in new.citation)
    card = model_card(new)
    assert f"Continued from `known-unet` 1.0.0 (SHA-256 `{old.weights.sha256}`)" in card
    assert "Since version 1.0.0: Trained on 1 cases" in card
    guarded.folder.verify()
    assert str(model.path) not in (guarded.folder.path / "model.json").read_text(encoding="utf-8")


def test_the_new_version_can_be_tuned_again(guarded, known):
    recipe = FineTuningRecipe(model=str(guarded.folder.path))
    assert isinstance(recipe.base, UNetRecipe)
    assert recipe.base.spacing == SMALL.spacing
    setup = set_up(recipe, known, Plan(steps=1, **CPU))
    assert setup.description.version == "1.2.0"
    assert next_version("2.9.7") == "2.10.0"


def test_old_cases_are_mixed_in_at_their_share_but_those_held_out(model, known, corrected):
    recipe = FineTuningRecipe(model=str(model.path), old_cases=str(known), old_share=0.3)
    split = recipe.old[1]
    assert [case.patient for case in split.training] == ["ProstateX-0000"]
    assert [case.patient for case in split.test] == ["ProstateX-0001"]
    setup = set_up(recipe, corrected, Plan(steps=1, **CPU))
    assert setup.recipe.guard == 0
    assert not isinstance(setup.objective, Remembering)
    new = [("new", n) for n in range(2000)]
    mixed = MixedPatches(new, [("old", n) for n in range(2000)], 0.3, seed=1)
    drawn = [mixed[n] for n in range(2000)]
    assert [n for _, n in drawn] == list(range(2000))
    assert sum(kind == "old" for kind, _ in drawn) / 2000 == pytest.approx(0.3, abs=0.04)
    assert drawn[:50] == [mixed[n] for n in range(50)]


@pytest.mark.slow
def test_one_command_writes_a_version_and_compares_it_with_the_old_one(
    model, known, corrected, tmp_path, capsys
):
    before = {file.name: file.read_bytes() for file in model.path.iterdir()}
    out = tmp_path / "run"
    arguments = ["--model", str(model.path), "--cases", str(corrected), "--out", str(out)]
    arguments += ["--old-cases", str(known), "--test", "10000_1000000", "--steps", "3"]
    arguments += ["--device", "cpu", "--workers", "0"]
    assert main(["fine-tune", *arguments, "--dry-run"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "Continued from 'known-unet' 1.0.0; 1 old cases are 50% of what" in said
    assert "1 of 1 patients to train on, 0 of 0 patients to validate on, 1 of 1" in said
    assert not out.exists()
    assert main(["fine-tune", *arguments]) == 0, capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in model.path.iterdir()} == before
    for report, case in (("new_cases", "10000_1000000"), ("old_cases", "ProstateX-0001")):
        html = (out / f"{report}.html").read_text(encoding="utf-8")
        assert "known-unet 1.0.0" in html
        assert "known-unet 1.1.0" in html
        assert case in html
    d = ModelFolder.read(out / "model").description
    assert d.training.settings["fine_tuning"] == {"rate": 0.1, "old_share": 0.5}
    assert [use.name for use in d.data].count("known") == 2
    held = {
        m.how: m.value for m in d.metrics if (m.case, m.name) == ("10000_1000000", "mean: Dice")
    }
    assert set(held) == {"never trained on", "by version 1.0.0, never trained on"}
    case = next(c for c in read_dataset(corrected).cases if c.patient == "10000_1000000")
    assert held["by version 1.0.0, never trained on"] == pytest.approx(
        answer(model, case)[1], abs=0.001
    )
    # The run is there already: nothing is written over.
    assert main(["fine-tune", *arguments]) == 6


def test_a_break_costs_nothing(model, known, corrected, tmp_path):
    def until(last, seen):
        def progress(step, loss, done, left):
            seen.append(step)
            if step == last:
                raise KeyboardInterrupt

        return progress

    first, second = [], []
    recipe = FineTuningRecipe(model=str(model.path), old_cases=str(known))
    plan = Plan(test=["10000_1000000"], steps=6, **CPU)
    # Lightning answers an interrupt by ending the process.
    with pytest.raises(SystemExit):
        fine_tune(recipe, corrected, tmp_path / "run", plan, until(3, first))
    assert not (tmp_path / "run" / "model").exists()
    again = replace(plan, resume=True)
    run = fine_tune(recipe, corrected, tmp_path / "run", again, until(None, second))
    assert (first, second) == ([1, 2, 3], [4, 5, 6])
    assert run.folder.description.training.steps == 6
    assert run.folder.description.version == "1.1.0"


def test_what_cannot_be_tuned_is_refused(model, known, corrected, ct_or_mr_model, tmp_path):
    recipe = FineTuningRecipe(model=str(model.path))
    plan = Plan(steps=1, **CPU)
    with pytest.raises(SettingError, match="trained on the test patient 'ProstateX-0000'"):
        fine_tune(recipe, known, tmp_path / "a", replace(plan, test=["ProstateX-0000"]))
    other = replace(read_dataset(corrected), labels={"peripheral zone": 1, "urethra": 2})
    with pytest.raises(SettingError, match="data set's 1 Peripheral zone, 2 Urethra"):
        fine_tune(recipe, other, tmp_path / "b", plan)
    copy = shutil.copytree(model.path, tmp_path / "c" / "model")
    with pytest.raises(OutputError, match="exists already"):
        fine_tune(recipe, corrected, copy.parent, plan)
    ct = Case("c", "c", "s", {"ct": tmp_path / "ct.nii.gz"}, tmp_path / "label.nii.gz")
    channels = {key: Channel(key, required=False) for key in ("ct", "mr")}
    organs = Dataset("organs", "Organs", channels, {"liver": 1, "spleen": 2}, [ct])
    trained = ct_or_mr_model.description.training.model_copy(
        update={"recipe": "ummkd", "settings": {"modalities": ["ct", "mr"], "width": 2}}
    )
    description = ct_or_mr_model.description.model_copy(update={"training": trained})
    one_of = ModelFolder.write(tmp_path / "one_of", description, ct_or_mr_model.load_network())
    with pytest.raises(SettingError, match="no case to train on with 'mr'"):
        fine_tune(FineTuningRecipe(model=str(one_of.path)), organs, tmp_path / "d", plan)
    for wrong in ({"old_share": 1.0}, {"rate": 0}, {"guard": -1.0}, {"temperature": 0.0}):
        with pytest.raises(SettingError):
            FineTuningRecipe(**wrong)
    with pytest.raises(SettingError, match="no recipe 'theirs'"):
        recipe_of("theirs", {})


def test_a_record_gives_back_its_recipe(model, shipped_model):
    record = model.description.training
    assert recipe_of(record.recipe, record.settings) == SMALL
    shipped = shipped_model.description.training.model_copy(deep=True)
    own = RSANetRecipe()
    assert recipe_of(shipped.recipe, shipped.settings) == own
    # Trained before some of today's settings were there.
    del shipped.settings["ghosting"]
    assert recipe_of(shipped.recipe, shipped.settings) == own
