"""The one trainer: what it chooses by itself, validation, several processes, any objective."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from medsegcore.cli import main
from medsegcore.errors import DatasetError, MissingInputError, OutputError
from medsegcore.imaging import Image, read_grid, read_image, write_image
from medsegcore.inference import Predictor
from medsegcore.inference.preprocess import with_neighbours
from medsegcore.models import Label, ModelFolder, TrainingRecord
from medsegcore.networks import create_network
from medsegcore.training.augmentation import RandSliced, Stackd
from medsegcore.training.cases import class_numbers, load_case
from medsegcore.training.datasets import read_dataset
from medsegcore.training.facts import data_facts, fitting_size, is_flat, training_bytes
from medsegcore.training.recipes import RSANetRecipe, UNetRecipe
from medsegcore.training.recipes.base import Objective
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import train
from medsegcore.training.validation import outlined_slice

FLAT = UNetRecipe(
    dimensions=2, width=2, patch=(1, 48, 48), batch_size=2, warmup_steps=2, ema_decay=0.9
)
RECORD = TrainingRecord(
    recipe="unet", date="2026-01-01", minutes=0, steps=0, device="", seed=1, settings={}
)
CPU = {"device": "cpu", "workers": 0}
GIGABYTE = 10**9


@pytest.fixture(scope="module")
def data(ms_cases):
    return read_dataset(ms_cases, keys=["t1", "t2", "flair"])


@pytest.fixture(scope="module")
def glioma(shared_data, tmp_path_factory):
    """Two real patients with three labels, cut small, as nnU-Net's raw form has them."""
    source = shared_data / "glioma" / "brats_gli"
    if not source.is_dir():
        pytest.skip("the glioma data are not here")
    root = tmp_path_factory.mktemp("glioma") / "Dataset501_Glioma"
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    for n, folder in enumerate(sorted(source.iterdir())):
        seg = read_image(folder / "seg.nii.gz")
        middle = [int(np.median(where)) for where in np.nonzero(seg.array > 0)]
        k, j, i = (slice(max(m - 24, 0), m + 24) for m in middle)
        for name, target in (
            ("t1ce", root / "imagesTr" / f"case{n}_0000.nii.gz"),
            ("flair", root / "imagesTr" / f"case{n}_0001.nii.gz"),
            ("seg", root / "labelsTr" / f"case{n}.nii.gz"),
        ):
            image = read_image(folder / f"{name}.nii.gz")
            write_image(Image(image.array[k, j, i], image.grid.crop((k, j, i)).affine), target)
    content = {
        "channel_names": {"0": "T1CE", "1": "FLAIR"},
        "labels": {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_a_header_says_the_same_of_a_grid_as_the_whole_image(ms_case_dir, shared_data):
    files = [ms_case_dir / "flair.nii.gz", *sorted(shared_data.glob("ms/open_ms_native/*/*.gz"))]
    for file in files:
        assert read_grid(file).same_as(read_image(file).grid), file.name


def test_facts_are_those_of_the_headers(data):
    facts = data_facts(data, data.cases, torch.device("cpu"))
    assert (facts.cases, facts.patients, facts.sites) == (3, 2, 1)
    assert facts.spacing == (1.0, 1.0, 1.0)
    assert facts.shape == (50, 80, 70)
    assert GIGABYTE / 4 < facts.memory < 10**13
    assert not facts.on_gpu
    # What is free differs from one process to the next, what there is does not.
    halves = data_facts(data, data.cases, torch.device("cpu"), share=2)
    assert halves.memory == psutil.virtual_memory().total // 4


def test_the_memory_of_a_step_is_counted_as_a_real_step_keeps_it():
    config = {"in_channels": 2, "width": 4, "dimensions": 3}
    network = create_network("unet", config)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = network(torch.zeros(3, 2, 32, 32, 32))
    del logits
    own = {p.data_ptr() for p in network.parameters()}
    real = sum(s.nbytes() for address, s in kept.items() if address not in own)
    parameters = 4 * sum(p.numel() for p in network.parameters())
    fixed, each = training_bytes(lambda: create_network("unet", config), (2, 32, 32, 32))
    assert fixed == 5 * parameters
    assert 3 * each == pytest.approx(1.5 * real, rel=0.02)


def test_a_patch_is_cut_where_it_is_longest():
    assert fitting_size((50, 80, 70), 16, 10**9) == (64, 80, 80)
    assert fitting_size((50, 80, 70), 16, 64**3) == (64, 64, 64)
    assert fitting_size((20, 300, 300), 16, 128**3) == (32, 256, 256)


def configured(data, recipe, **facts):
    own = data_facts(data, data.cases, torch.device("cpu"))
    return recipe.configured(data, dataclasses.replace(own, **facts))


def test_the_unet_chooses_by_the_data_and_the_memory_and_says_why(data):
    small, notes = configured(data, UNetRecipe(), memory=8 * GIGABYTE)
    assert (small.dimensions, small.width, small.batch_size) == (3, 8, 2)
    assert small.patch == (64, 64, 64)
    assert len(notes) == 3
    assert "kept small because there is no GPU" in notes[2]
    large, notes = configured(
        data, UNetRecipe(), memory=24 * GIGABYTE, on_gpu=True, shape=(180, 220, 190)
    )
    assert (large.width, large.batch_size) == (32, 4)
    assert np.prod(large.patch) <= 128**3 < 2 * np.prod(large.patch)
    tight, notes = configured(
        data, UNetRecipe(), memory=2 * GIGABYTE, on_gpu=True, shape=(180, 220, 190)
    )
    assert np.prod(tight.patch) < np.prod(large.patch)
    assert tight.batch_size >= 2
    thick = {"spacing": (0.5, 0.5, 3.0), "shape": (24, 384, 384)}
    flat, notes = configured(data, UNetRecipe(), memory=8 * GIGABYTE, on_gpu=True, **thick)
    assert (flat.dimensions, flat.spacing, flat.patch) == (2, (0.5, 0.5, None), (1, 384, 384))
    assert flat.batch_size > 8
    own, notes = configured(data, dataclasses.replace(FLAT, spacing=(1.0, 1.0, None)))
    assert (own.width, own.patch, own.batch_size) == (2, (1, 48, 48), 2)
    assert len(notes) == 1
    assert is_flat(dataclasses.replace(data_facts(data, data.cases, torch.device("cpu")), **thick))


def test_a_data_set_without_a_common_channel_is_refused(data):
    optional = {k: dataclasses.replace(c, required=False) for k, c in data.channels.items()}
    with pytest.raises(DatasetError, match="no channel that every case has"):
        set_up(FLAT, dataclasses.replace(data, channels=optional), Plan(steps=1, **CPU))
    required = {k: dataclasses.replace(c, required=True) for k, c in data.channels.items()}
    with pytest.raises(MissingInputError, match="'b' has no 't2'"):
        set_up(FLAT, dataclasses.replace(data, channels=required), Plan(steps=1, **CPU))


def test_a_drawn_slice_is_the_one_that_the_network_sees_at_inference(data):
    description = RSANetRecipe().description(data, RECORD)
    case = load_case(data.cases[0], description)
    keys = ["t1", "flair"]
    whole = with_neighbours(np.concatenate([case[key].numpy() for key in keys]), 1)
    sliced, stacked = RandSliced(keys, 1), Stackd(keys)
    sliced.set_random_state(1)
    labelled, seen = 0, set()
    for _ in range(200):
        item = stacked(sliced(case))
        k = next(k for k in range(whole.shape[1])
                 if np.array_equal(whole[:, k], item["image"].numpy()))  # fmt: skip
        assert torch.equal(item["label"], case["label"][:, k])
        labelled += bool(item["label"].any())
        seen.add(k)
    with_label = float(case["label"][0].flatten(1).any(dim=1).float().mean())
    assert labelled / 200 == pytest.approx(0.5 + with_label / 2, abs=0.1)
    assert {0, whole.shape[1] - 1} <= seen


def test_label_maps_become_class_numbers():
    array = np.array([0, 1, 2, 2.999, 7])
    several = [Label(value=v, name=str(v), color=(0, 0, 0)) for v in (1, 3)]
    assert class_numbers(array, several).tolist() == [0, 1, 0, 3, 0]
    assert class_numbers(array, several[:1]).tolist() == [0, 1, 1, 1, 1]


def test_outlines_of_answer_and_reference_are_drawn_on_the_fullest_slice(ms_images, ms_reference):
    label = Label(value=1, name="MS lesion", color=(230, 85, 13))
    reference = ms_reference.array.astype(np.uint8)
    answer = np.zeros_like(reference)
    k = int(reference.sum(axis=(1, 2)).argmax())
    answer[k, 10:20, 10:20] = 1
    picture = outlined_slice(ms_images["flair"], answer, reference, [label])
    assert picture.shape == (*reference.shape[1:], 3)
    orange = (picture == (230, 85, 13)).all(axis=2)
    assert orange.sum() == 36
    assert orange[10, 10:20].all()
    white = (picture == 255).all(axis=2)
    outline = white & (reference[k] > 0)
    assert 0 < outline.sum() <= reference[k].sum()


def scalars(out, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "curves")).Reload()
    if tag is None:
        return events.Tags()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.slow
def test_the_weights_that_validate_best_are_exported(data, tmp_path):
    out = tmp_path / "r"
    plan = Plan(validation=["b"], steps=6, validate_every=2, seed=3, **CPU)
    run = train(FLAT, data, out, plan)
    curve = scalars(out, "validation_dice")
    assert len(curve) == 3
    assert run.best_dice == pytest.approx(max(curve.values()), abs=1e-6)
    best = torch.load(out / "best.ckpt", weights_only=True)
    exported = run.folder.load_network().state_dict()
    for name, tensor in exported.items():
        expected = best["state_dict"][f"objective.network.{name}"]
        torch.testing.assert_close(tensor, expected.to(tensor), atol=1e-3, rtol=1e-3, msg=name)
    # What is logged is what the finished model answers, but for the weights' rounding.
    case = next(c for c in data.cases if c.patient == "b")
    images = {key: read_image(path) for key, path in case.images.items()}
    answer = Predictor(run.folder, "cpu").predict(images, attention=False)
    reference = read_image(case.label).array > 0
    both = 2 * ((answer.labelmap > 0) & reference).sum()
    dice = both / ((answer.labelmap > 0).sum() + reference.sum())
    assert dice == pytest.approx(run.best_dice, abs=0.01)
    assert scalars(out, None)["images"] == ["validation (reference white)"]
    uses = {use.split: use.patients for use in run.folder.description.data}
    assert uses == {"training": ["a"], "validation": ["b"]}


@pytest.mark.slow
def test_training_stops_when_validation_no_longer_improves(data, tmp_path):
    # Without learning, and without running statistics, nothing can improve.
    still = RSANetRecipe(
        width=2, norm="group", norm_groups=1, patch=(16, 16, 16), batch_size=1,
        learning_rate=0.0, ema_decay=0.0,
    )  # fmt: skip
    plan = Plan(validation=["b"], steps=50, validate_every=1, early_stop=2, **CPU)
    run = train(still, data, tmp_path / "r", plan)
    assert run.folder.description.training.steps == 3
    # Stopped before it was measured: nothing is left but that.
    again = train(still, data, tmp_path / "r", dataclasses.replace(plan, resume=True))
    assert again.folder.description.training.steps == 3


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        train(UNetRecipe(), data, tmp_path / "file" / "run", Plan(steps=1))


def test_several_labels_are_learnt_and_described(glioma, tmp_path):
    plan = Plan(test=["case1"], steps=2, **CPU)
    run = train(dataclasses.replace(FLAT, neighbours=1), glioma, tmp_path / "r", plan)
    description = run.folder.description
    assert [(label.value, label.name) for label in description.labels] == [
        (1, "necrosis"), (2, "edema"), (3, "enhancing"),
    ]  # fmt: skip
    assert description.labels[1].terminology.type.value == "79654002"
    assert description.labels[2].terminology is None
    assert description.network.config["in_channels"] == 6
    assert description.network.config["out_channels"] == 4
    assert description.training.settings["spacing"] == [1.0, 1.0, None]
    assert description.training.settings["chosen"][0].startswith("Spacing 1 x 1 mm")
    images = {key: read_image(path) for key, path in run.test[0].images.items()}
    result = Predictor(run.folder, "cpu").predict(images, attention=False)
    assert set(result.probabilities) == {"necrosis", "edema", "enhancing"}
    setup = set_up(dataclasses.replace(FLAT, neighbours=1), glioma, plan)
    assert sum(setup.facts.label_share.values()) == pytest.approx(1)
    seen = {v for n in range(10) for v in setup.patches[n]["label"].unique().tolist()}
    assert seen == {0, 1, 2, 3}


class TwoModalities(Objective):
    """Unpaired batches and a module beside the network."""

    def __init__(self, network):
        super().__init__(network)
        self.adapter = nn.Conv2d(2, 2, 1)

    def forward(self, batch):
        logits = {name: self.network(part["image"]) for name, part in batch.items()}
        terms = {
            name: nn.functional.cross_entropy(
                self.adapter(logits[name].float()), part["label"][:, 0].long()
            )
            for name, part in batch.items()
        }
        return logits, {"total": sum(terms.values()), **terms}


@dataclass(frozen=True)
class TwoModalitiesRecipe(UNetRecipe):
    name: ClassVar[str] = "two"

    def objective(self, network, facts):
        return TwoModalities(network)

    def modality(self, case):
        return "ct" if case.patient == "a" else "mr"


@pytest.mark.slow
def test_an_objective_of_more_than_a_network_goes_on_after_a_break_as_if_there_was_none(
    data, tmp_path
):
    recipe = TwoModalitiesRecipe(**dataclasses.asdict(FLAT))
    plan = Plan(steps=10, seed=4, **CPU)

    class Stopped(Exception):
        """Stands for a power cut."""

    def stop(step, loss, done, left):
        if step == 4:
            raise Stopped

    train(recipe, data, tmp_path / "whole", plan)
    with pytest.raises(Stopped):
        train(recipe, data, tmp_path / "broken", plan, stop)
    train(recipe, data, tmp_path / "broken", dataclasses.replace(plan, resume=True))
    a, b = (
        ModelFolder.read(tmp_path / name / "model").load_network().state_dict()
        for name in ("whole", "broken")
    )
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=2e-3, rtol=1e-2, msg=name)
    tags = scalars(tmp_path / "whole", None)["scalars"]
    assert {"loss_ct", "loss_mr", "batch_dice_ct", "batch_dice_mr"} <= {*tags}


@pytest.mark.slow
def test_a_rehearsal_says_what_would_be_done_and_writes_nothing(
    ms_cases, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code = main(["train", "--recipe", "unet", "--data", str(ms_cases), "--test", "b", "--dry-run",
                 "--steps", "600", "--set", "width=2", "--set", "patch=[32,32,32]", "--device",
                 "cpu", "--workers", "0"])  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0
    assert "2 of 1 patients to train on, 0 of 0 patients to validate on, 1 of 1" in said
    assert "Spacing 1 x 1 x 1 mm" in said
    assert "2 of 32 x 32 x 32 voxels" in said
    assert "steps per minute" in said
    assert "about 600 steps" in said
    assert "Measuring the model on 3 cases comes on top." in said
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_train_one_model(ms_cases, tmp_path):
    out = tmp_path / "r"
    command = [sys.executable, "-m", "medsegcore", "train", "--recipe", "unet", "--data",
               str(ms_cases), "--out", str(out), "--validate", "b", "--steps", "2",
               "--validate-every", "1", "--devices", "2", "--device", "cpu", "--workers", "0",
               "--set", "dimensions=2", "--set", "width=2", "--set", "patch=[1,48,48]",
               "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [line for line in done.stdout.splitlines() if '"result"' in line]
    assert len(results) == 1
    folder = ModelFolder.read(out / "model")
    folder.verify()
    assert folder.description.training.device.startswith("2 x CPU")
    assert folder.description.training.steps == 2
    assert len(scalars(out, "validation_dice")) == 2
