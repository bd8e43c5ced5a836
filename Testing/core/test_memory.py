"""What a step of training takes is told before it takes it, and refused where it does not fit."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from medsegcore.cli import main
from medsegcore.errors import OutOfMemoryError
from medsegcore.models import ModelFolder, TrainingRecord
from medsegcore.training import rehearsal, setup
from medsegcore.training.datasets import Channel, Dataset, read_dataset
from medsegcore.training.facts import DataFacts, free_memory, memory_at_hand
from medsegcore.training.finetune import FineTuningRecipe, fine_tune
from medsegcore.training.memory import check_memory, step_bytes
from medsegcore.training.module import in_layout
from medsegcore.training.recipes import DistillRecipe, UNetRecipe, recipe_of
from medsegcore.training.rehearsal import rehearse
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import train

GIGABYTE = 10**9
CPU = {"device": "cpu", "workers": 0}
FACTS = DataFacts(9, 9, 1, (0.5, 0.5, 3.0), (20, 320, 384), 8 * 2**30, False, {0: 0.9, 1: 0.1})
RECORD = TrainingRecord(
    recipe="x", date="2026-01-01", minutes=0, steps=0, device="", seed=1, settings={}
)
PAPERS = {
    "edge_attention": ["t2w"], "edge_attention_pretraining": ["t2w"], "affinity_teacher": ["t2w"],
    "csad": ["t2w", "adc"], "ummkd": ["ct", "mr"], "rsanet": ["t1", "t2", "flair"],
    "unet": ["t1", "flair"],
}  # fmt: skip


def configured(name, settings=None):
    """A recipe for data that it takes, and the description of its model."""
    channels = {key: Channel(key.upper()) for key in PAPERS[name]}
    data = Dataset("demo", "Demo", channels, {"lesion": 1}, [])
    recipe, _ = recipe_of(name, settings or {}).configured(data, FACTS)
    return recipe, recipe.description(data, RECORD)


def estimate(name, settings=None):
    recipe, description = configured(name, settings)
    fixed, each = step_bytes(recipe, description, recipe.patch)
    return fixed + recipe.batch_size * each


def measured(name, settings):
    """Bytes that two real steps take at their peak beside what the process had before."""
    torch.set_num_threads(1)
    recipe, description = configured(name, settings)
    objective = recipe.objective(recipe.network(description), FACTS)
    flat = description.grid.flat
    layout = torch.channels_last if flat else torch.channels_last_3d
    objective.network.to(memory_format=layout)
    optimizer = recipe.optimizer(objective.parameters())
    space = recipe.patch[1:] if flat else recipe.patch
    before = psutil.Process().memory_info().rss
    for _ in range(2):
        image = torch.randn(recipe.batch_size, len(description.inputs), *space)
        label = (torch.rand(recipe.batch_size, 1, *space) > 0.8).float()
        _, terms = objective({"image": in_layout(image), "label": label})
        terms["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    # getrusage would tell of the process that started this one, if that was larger.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    highest = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(highest.split()[1]) - before


@pytest.mark.skipif(sys.platform != "linux", reason="the highest mark is read from Linux")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("edge_attention", {"depth": 10, "width": 16, "patch": [16, 64, 64], "batch_size": 2}),
        ("csad", {"width": 16, "patch": [1, 128, 128], "batch_size": 4}),
    ],
)
def test_the_estimate_is_within_half_and_twice_the_peak_of_real_steps(name, settings):
    command = [sys.executable, __file__, name, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.5 < estimate(name, settings) / int(done.stdout) < 2


@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_is_estimated_without_anything_being_computed(name):
    recipe, description = configured(name)
    state = torch.get_rng_state()
    before = psutil.Process().memory_info().rss
    fixed, each = step_bytes(recipe, description, recipe.patch)
    assert 0.1 * GIGABYTE < fixed + recipe.batch_size * each < 100 * GIGABYTE
    assert psutil.Process().memory_info().rss - before < 0.5 * GIGABYTE
    # A seed goes on to give the weights that it gave.
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["edge_attention", "affinity_teacher"])
def test_the_papers_settings_are_refused_with_a_batch_that_fits(name):
    recipe, description = configured(name)
    with pytest.raises(OutOfMemoryError, match=r"takes about [45][0-9]") as refused:
        check_memory(recipe, description, 20 * GIGABYTE)
    assert "20.0 GB are free" in refused.value.message
    batch = int(re.search(r"--set batch_size=(\d+)\.", refused.value.action)[1])
    assert 2 <= batch < 16
    told = check_memory(replace(recipe, batch_size=batch), description, 20 * GIGABYTE)
    assert "may not be enough" not in told
    assert check_memory(recipe, description, 100 * GIGABYTE).startswith("A step takes about")


def test_where_no_batch_fits_the_patch_is_made_smaller_too():
    recipe, description = configured("edge_attention", {"depth": 10, "width": 16})
    with pytest.raises(OutOfMemoryError, match=r"0\.5 GB are free") as refused:
        check_memory(recipe, description, GIGABYTE // 2)
    patch = re.search(r"batch_size=2 --set patch=(\[[\d,]+\])", refused.value.action)[1]
    smaller = replace(recipe, batch_size=2, patch=tuple(json.loads(patch)))
    assert all(own % 8 == 0 for own in smaller.patch)
    check_memory(smaller, description, GIGABYTE // 2)
    whole, description = configured("edge_attention")
    with pytest.raises(OutOfMemoryError, match="narrower"):
        check_memory(whole, description, GIGABYTE)


def test_what_may_fit_is_told_and_not_refused():
    recipe, description = configured("csad")
    fixed, each = step_bytes(recipe, description, recipe.patch)
    needed = fixed + recipe.batch_size * each
    assert "which may not be enough" in check_memory(recipe, description, int(needed / 1.4))
    with pytest.raises(OutOfMemoryError):
        check_memory(recipe, description, int(needed / 1.6))
    assert step_bytes(recipe, description, recipe.patch, half=True)[1] < each


def test_an_encoder_that_does_not_learn_takes_less():
    recipe, description = configured("edge_attention")
    frozen = replace(recipe, pretrained="encoder.pth", freeze=True)
    own, less = (step_bytes(r, description, recipe.patch)[1] for r in (recipe, frozen))
    assert less < own / 2


def test_the_computer_has_twice_what_a_recipe_plans_with(monkeypatch):
    found = psutil.virtual_memory()._replace(available=10 * GIGABYTE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)
    device = torch.device("cpu")
    assert free_memory(device) == 2 * memory_at_hand(device) == 10 * GIGABYTE


def no_case(*arguments):
    raise AssertionError("a case was loaded")


def test_a_training_that_does_not_fit_ends_before_its_cases_are_loaded(
    ms_cases, tmp_path, monkeypatch
):
    monkeypatch.setattr(setup, "free_memory", lambda device, share: 8 * GIGABYTE)
    monkeypatch.setattr(setup, "load_cases", no_case)
    recipe, plan = recipe_of("edge_attention", {"image": "flair"}), Plan(steps=1, **CPU)
    with pytest.raises(OutOfMemoryError, match="--set batch_size="):
        train(recipe, ms_cases, tmp_path / "run", plan)
    with pytest.raises(OutOfMemoryError, match=r"8\.0 GB are free"):
        rehearse(recipe, ms_cases, plan)
    code = main(["train", "--recipe", "edge_attention", "--data", str(ms_cases), "--steps", "2",
                 "--device", "cpu", "--dry-run"])  # fmt: skip
    assert code == OutOfMemoryError.exit_code
    with pytest.raises(AssertionError, match="a case was loaded"):
        set_up(replace(recipe, batch_size=2), ms_cases, plan)


def test_a_rehearsal_says_what_it_knows_before_its_first_step(ms_cases, monkeypatch):
    said = []

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal, "fit", killed)
    recipe = UNetRecipe(dimensions=2, width=2, patch=(1, 48, 48), batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        rehearse(recipe, ms_cases, Plan(steps=5, **CPU), said.append)
    assert said[0].startswith("Data: ")
    assert any(line.startswith("A step takes about 0.0 GB of memory") for line in said)
    assert said[-1].startswith("Batch: 2 of 1 x 48 x 48 voxels (k, j, i), on 1 x CPU")


@pytest.fixture
def folder(ms_cases, tmp_path):
    """A model that has learnt nothing."""
    recipe = UNetRecipe(dimensions=2, width=8, patch=(1, 64, 64), batch_size=4)
    made = set_up(recipe, read_dataset(ms_cases), Plan(steps=1, **CPU), most=1)
    return ModelFolder.write(tmp_path / "model", made.description, made.objective.network)


def test_teachers_and_old_models_count_too(folder, ms_cases, tmp_path, monkeypatch):
    data = read_dataset(ms_cases)
    alone = DistillRecipe(teachers=(str(folder.path),))
    student, _ = alone.configured(data, FACTS)
    description = student.description(data, RECORD)
    fixed, each = step_bytes(student, description, student.patch)
    two = replace(student, teachers=2 * student.teachers)
    parameters = sum(p.numel() for p in folder.load_network().parameters())
    assert step_bytes(two, description, two.patch) == (fixed + 4 * parameters, each)
    # Nobody can choose the batch of a model that goes on.
    monkeypatch.setattr(setup, "free_memory", lambda device, share: GIGABYTE // 1000)
    monkeypatch.setattr(setup, "load_cases", no_case)
    recipe = FineTuningRecipe(model=str(folder.path))
    with pytest.raises(OutOfMemoryError, match="or use a computer with more") as refused:
        fine_tune(recipe, data, tmp_path / "tuned", Plan(steps=1, **CPU))
    assert "--set" not in refused.value.action


if __name__ == "__main__":
    print(measured(sys.argv[1], json.loads(sys.argv[2])))
