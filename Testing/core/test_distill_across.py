"""Teachers in 3D teach students on slices, and teachers of CT or MR students of either."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsegcore.errors import MissingInputError, SettingError
from medsegcore.evaluation.metrics import dice
from medsegcore.imaging import Image, read_image, write_image
from medsegcore.inference import Predictor
from medsegcore.losses.affinity import AffinityDistillationLoss, AffinityLossConfig
from medsegcore.models import ModelFolder
from medsegcore.networks import create_network
from medsegcore.training.crossvalidation import cross_validate
from medsegcore.training.datasets import Case, Channel, Dataset, read_dataset
from medsegcore.training.facts import data_facts, training_bytes
from medsegcore.training.finetune import FineTuningRecipe, read_cases
from medsegcore.training.memory import step_bytes
from medsegcore.training.provenance import how_unseen
from medsegcore.training.recipes import (
    DistillRecipe,
    EdgeAttentionRecipe,
    RSANetRecipe,
    UMMKDRecipe,
)
from medsegcore.training.recipes.base import Supervised
from medsegcore.training.rehearsal import rehearse
from medsegcore.training.report import measure
from medsegcore.training.running import slices_of, stacked
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_cost")

CPU = {"device": "cpu", "workers": 0}
ENET = {"width": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def brain_teachers(ms_cases, tmp_path_factory):
    """Two 3D networks of three inputs, one of which may be absent; hardly trained."""
    recipe = RSANetRecipe(width=4, patch=(16, 32, 32), batch_size=2)
    return [
        train(
            recipe, ms_cases, tmp_path_factory.mktemp("brain") / "run",
            Plan(steps=2, seed=seed, **CPU),
        ).folder
        for seed in (1, 2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tumours(shared_data, tmp_path_factory):
    """The tumour of one patient in CT and, unpaired, in T1: three slices of each."""
    source = shared_data / "sarcoma" / "sts" / "STS_003"
    if not source.is_dir():
        pytest.skip("the sarcoma data are not here")
    folder, cases = tmp_path_factory.mktemp("tumours"), []
    for key in ("ct", "t1"):
        mask = read_image(source / f"tumor_on_{key}.nii.gz")
        k = int((mask.array > 0).sum(axis=(1, 2)).argmax())
        j, i = np.argwhere(mask.array[k] > 0).mean(axis=0).round().astype(int)
        box = tuple(slice(max(m - n, 0), m + n + 1) for m, n in ((k, 1), (j, 40), (i, 40)))
        files = {key: source / f"{key}.nii.gz", "mask": source / f"tumor_on_{key}.nii.gz"}
        for what, path in files.items():
            image = read_image(path)
            cut = Image(np.ascontiguousarray(image.array[box]), image.grid.crop(box).affine)
            files[what] = folder / f"{key}_{what}.nii.gz"
            write_image(cut, files[what])
        cases.append(Case(key, key, "sts", {key: files[key]}, files["mask"]))
    channels = {"ct": Channel("CT", "CT", required=False), "t1": Channel("T1", required=False)}
    return Dataset("sarcoma", "Sarcoma", channels, {"tumor": 1}, cases)


@pytest.fixture(scope="module")
def tumour_teacher(tumours, tmp_path_factory):
    """UMMKD, which has learnt a little of both images."""
    recipe = UMMKDRecipe(
        width=4, norm="group", norm_groups=2, patch=(1, 64, 64), batch_size=2,
        spacing=(1.5, 1.5, 3.0), learning_rate=5e-3,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("tumour") / "run"
    return train(recipe, tumours, out, Plan(steps=20, **CPU)).folder


def student_of(*teachers, **settings):
    return DistillRecipe(teachers=tuple(str(folder.path) for folder in teachers), **settings)


def batch_of(recipe, data, count=2):
    setup = set_up(recipe, data, Plan(steps=1, **CPU))
    return setup, torch.utils.data.default_collate([setup.patches[n] for n in range(count)])


def answered(folder, case):
    """The answer to a case, which has to lie on the grid of its image."""
    images = {key: read_image(path) for key, path in case.images.items()}
    result = Predictor(folder, "cpu").predict(images)
    reference = images[folder.description.reference_of(images)]
    assert result.grid.same_as(reference.grid)
    assert [a.key for a in result.attention] == [a.key for a in folder.description.attention]
    return result


def test_slices_are_taken_apart_and_put_together_again():
    patches = torch.randn(2, 3, 5, 4, 6)
    slices = slices_of(patches)
    assert slices.shape == (10, 3, 4, 6)
    torch.testing.assert_close(slices[7], patches[1, :, 2], rtol=0, atol=0)
    torch.testing.assert_close(stacked(slices, 2), patches, rtol=0, atol=0)
    # As layouts go they are the same memory.
    last = patches.contiguous(memory_format=torch.channels_last_3d)
    assert slices_of(last).data_ptr() == last.data_ptr()
    assert slices_of(last).is_contiguous(memory_format=torch.channels_last)


def test_a_3d_teacher_teaches_a_model_of_slices_that_answers_whole_cases(
    brain_teachers, ms_cases, tmp_path
):
    teacher = brain_teachers[0]
    recipe = student_of(teacher, config=ENET)
    run = train(recipe, ms_cases, tmp_path / "run", Plan(steps=2, test=["b"], **CPU))
    d, taught = run.folder.description, teacher.description
    run.folder.verify()
    assert (d.grid.dimensionality, d.grid.mirror) == ("2D", ("j", "i"))
    assert d.grid.tile == (8, *taught.grid.tile[1:])
    assert d.grid.multiple == 16
    for what in ("spacing", "orientation", "axes", "crop", "margin_mm"):
        assert getattr(d.grid, what) == getattr(taught.grid, what)
    assert (d.inputs, d.labels, d.missing_input) == (taught.inputs, taught.labels, "zero")
    assert [a.key for a in d.attention] == ["low", "high"]
    assert d.network.config == {"norm": "group", "in_channels": 3, "out_channels": 2, **ENET}
    assert d.training.settings["kernel_weight"] == 0.9
    # The case of the test patient has no T2.
    result = answered(run.folder, run.test[0])
    assert all(np.isfinite(p).all() for p in result.probabilities.values())


def test_all_that_a_student_of_slices_minimises_falls(brain_teachers, ms_cases):
    recipe = student_of(brain_teachers[0], config=ENET, learning_rate=1e-2)
    setup, batch = batch_of(recipe, ms_cases)
    assert batch["image"].shape == (2, 3, 16, 32, 32)
    assert batch["label"].any()
    assert "it sees the 16 slices of each one" in setup.notes[1]
    objective, totals = setup.objective.train(), []
    optimizer = setup.recipe.optimizer([p for p in objective.parameters() if p.requires_grad])
    for _ in range(30):
        terms = objective(batch)[1]
        totals.append({name: float(term.detach()) for name, term in terms.items()})
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    assert totals[-1]["segmentation"] < 0.8 * totals[0]["segmentation"]
    assert totals[-1]["total"] < 0.8 * totals[0]["total"]


def test_the_mean_of_3d_teachers_is_compared_on_slices(brain_teachers, ms_cases):
    recipe = student_of(*brain_teachers, config=ENET, affinity_weight=0.9)
    setup, batch = batch_of(recipe, ms_cases)
    assert any("2 teachers have no common features" in note for note in setup.notes)
    objective = setup.objective.eval()
    with torch.no_grad():
        logits, terms = objective(batch)
        single = [torch.softmax(f.load_network()(batch["image"]), 1) for f in brain_teachers]
        student = objective.network(slices_of(batch["image"]))
        told = slices_of((single[0] + single[1]) / 2).log()
        expected = AffinityDistillationLoss(AffinityLossConfig(kernel_weight=0))(
            student, told, [], slices_of(batch["label"])
        )
    assert (single[0] - single[1]).abs().max() > 1e-3
    torch.testing.assert_close(logits, stacked(student, 2))
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("student", ["espnet", "erfnet", "unet"])
def test_a_finished_student_of_slices_learns_on_and_teaches(
    student, brain_teachers, ms_cases, tmp_path
):
    config = {"dimensions": 2} if student == "unet" else {"width": 4}
    recipe = student_of(brain_teachers[0], architecture=student, config=config)
    run = train(recipe, ms_cases, tmp_path / "run", Plan(steps=1, **CPU))
    assert run.folder.description.network.name == student
    # Without its teacher, with the old answers in the loss.
    tuning = FineTuningRecipe(model=str(run.folder.path))
    setup, batch = batch_of(tuning, ms_cases)
    assert isinstance(setup.objective.objective, Supervised)
    with torch.no_grad():
        logits, terms = setup.objective.eval()(batch)
        own = setup.objective.network(slices_of(batch["image"]))
    torch.testing.assert_close(logits, stacked(own, 2))
    assert terms["forgetting"] == pytest.approx(0, abs=1e-6)
    # Slices that have learnt from patches teach slices.
    setup, batch = batch_of(student_of(run.folder, config=ENET), ms_cases)
    assert setup.description.network.config["norm"] == "group"
    logits, terms = setup.objective(batch)
    assert logits.shape == (2, 2, 16, 32, 32)
    assert "kernel" in terms
    terms["total"].backward()


def test_what_a_teachers_teacher_was_trained_on_is_not_forgotten(
    brain_teachers, ms_cases, tmp_path
):
    plan = Plan(steps=1, test=["b"], **CPU)
    recipe = student_of(brain_teachers[0], config=ENET)
    first = train(recipe, ms_cases, tmp_path / "first", plan).folder
    second = train(student_of(first, config=ENET), ms_cases, tmp_path / "second", plan)
    d = second.folder.description
    known = f"'{first.description.id}', from which it comes, was trained on it: it flatters"
    assert how_unseen(d.training.parents, second.test[0]) == f"never trained on here, but {known}"
    assert f"'{first.description.id}' was trained on the patients b. Their figures flatter." in (
        d.limits
    )
    with pytest.raises(SettingError, match="one that it comes from, was trained on the test"):
        read_cases(FineTuningRecipe(model=str(first.path)), ms_cases, plan)
    chosen = train(recipe, ms_cases, tmp_path / "chosen", Plan(steps=1, validation=["b"], **CPU))
    measured = {m.case: m.how for m in measure(chosen, "cpu").description.metrics}
    assert measured["b"] == (
        "not trained on, but the weights were chosen by these cases, and 'ms-lesion-rsanet', "
        "from which it comes, was trained on it: it flatters"
    )


def test_a_cross_validation_of_students_says_whom_the_teacher_knew(
    brain_teachers, ms_cases, tmp_path
):
    recipe, out = student_of(brain_teachers[0], config=ENET), tmp_path / "folds"
    data = read_dataset(ms_cases)
    cross_validate(recipe, data, "patient", Plan(steps=1, **CPU), out)
    flatters = "never trained on here, but 'ms-lesion-rsanet', from which it comes, was trained"
    for fold in ("fold_0", "fold_1"):
        metrics = ModelFolder.read(out / fold / "model").description.metrics
        assert {m.case for m in metrics} == {case.id for case in data.cases}
        assert all(flatters in m.how for m in metrics)
    told = (out / "summary.md").read_text(encoding="utf-8")
    assert "The figures flatter: 'ms-lesion-rsanet'" in told


def test_the_memory_of_a_step_counts_all_slices_and_the_3d_teacher(brain_teachers, ms_cases):
    data = read_dataset(ms_cases)
    facts = data_facts(data, data.cases, torch.device("cpu"))
    recipe, _ = student_of(brain_teachers[0], config=ENET).configured(data, facts)
    setup = set_up(recipe, data, Plan(steps=1, **CPU), most=1)
    own = {"in_channels": 3, "out_channels": 2, "norm": "group", **ENET}
    _, each = training_bytes(lambda: create_network("enet", own), (3, 32, 32))
    parameters = sum(p.numel() for p in brain_teachers[0].load_network().parameters())
    fixed, whole = step_bytes(recipe, setup.description, recipe.patch)
    assert whole == pytest.approx(16 * each, rel=0.05)
    ours = sum(p.numel() for p in setup.objective.network.parameters())
    assert fixed == 4 * (5 * ours + parameters)


def test_a_dry_run_of_slices_tells_what_would_be_done(brain_teachers, ms_cases):
    said = []
    found = rehearse(
        student_of(brain_teachers[0], config=ENET), ms_cases, Plan(steps=9, **CPU), said.append
    )
    assert found.seconds_per_step > 0
    assert any("it sees the 16 slices of each one by one" in line for line in said)
    assert any("Batch: 2 of 16 x 32 x 32 voxels" in line for line in said)


def test_thick_slices_and_mirrors_of_a_3d_teacher_are_kept(brain_teachers, tmp_path):
    """Edge attention flips along i alone, and its tiles are multiples of 8."""
    folder = brain_teachers[0]
    grid = folder.description.grid.model_copy(
        update={"tile": (32, 96, 120), "multiple": 8, "mirror": ("k", "i"),
                "axes": "reference", "spacing": (0.625, 0.625, 1.5)}
    )  # fmt: skip
    record = folder.description.training.model_copy(
        update={"recipe": "edge_attention", "settings": {"patch": [32, 96, 96], "batch_size": 2}}
    )
    update = {"grid": grid, "training": record}
    other = ModelFolder.write(
        tmp_path / "edge", folder.description.model_copy(update=update), folder.load_network()
    )
    data = Dataset(
        "x", "X", {key: Channel(key) for key in ("t1", "t2", "flair")}, {"MS lesion": 1}, []
    )
    recipe, _ = student_of(other, architecture="unet", config={"dimensions": 2}).configured(
        data, None
    )
    assert (recipe.patch, recipe.batch_size) == ((32, 96, 96), 2)
    assert isinstance(recipe._base(), EdgeAttentionRecipe)
    d = recipe.description(data, record)
    assert (d.grid.tile, d.grid.multiple, d.grid.mirror) == ((8, 96, 128), 16, ("i",))
    assert d.grid.spacing == (0.625, 0.625, 1.5)


def test_a_teacher_of_either_image_teaches_in_each(tumour_teacher, tumours):
    recipe = student_of(tumour_teacher, config=ENET, affinity_weight=0.9)
    setup, batch = batch_of(recipe, tumours)
    assert setup.recipe.modalities == ("ct", "t1")
    assert any("One network learns ct and t1 alike" in note for note in setup.notes)
    objective, teacher = setup.objective.eval(), tumour_teacher.load_network()
    loss = AffinityDistillationLoss(AffinityLossConfig(kernel_weight=0))
    with torch.no_grad():
        logits, terms = objective(batch)
        parts = []
        for n, key in enumerate(("ct", "t1")):
            part = batch[key]
            told = teacher(part["image"], modality=n)
            torch.testing.assert_close(logits[key], objective.network(part["image"]))
            parts.append(loss(logits[key], told, [], part["label"]))
    for name, term in terms.items():
        torch.testing.assert_close(term, (parts[0][name] + parts[1][name]) / 2, msg=name)


@pytest.mark.slow
def test_one_student_learns_either_image(tumour_teacher, tumours, tmp_path):
    recipe = student_of(tumour_teacher, config=ENET, learning_rate=1e-2)
    run = train(recipe, tumours, tmp_path / "run", Plan(steps=60, **CPU))
    d = run.folder.description
    run.folder.verify()
    assert d.one_of
    assert d.network.config["in_channels"] == 3
    assert d.title == "Tumour from CT or T1-weighted MR (enet taught by sarcoma-ummkd)"
    for case in tumours.cases:
        result = answered(run.folder, case)
        label = read_image(case.label).array > 0
        assert label.mean() < 0.4
        assert dice(result.labelmap > 0, label) > 0.6, case.id
    # It goes on, and teaches, in both.
    setup, batch = batch_of(FineTuningRecipe(model=str(run.folder.path)), tumours)
    with torch.no_grad():
        logits, terms = setup.objective.eval()(batch)
    assert set(logits) == {"ct", "t1"}
    assert terms["forgetting"] == pytest.approx(0, abs=1e-6)
    setup, batch = batch_of(student_of(tumour_teacher, run.folder, config=ENET), tumours)
    assert set(setup.objective(batch)[0]) == {"ct", "t1"}


def test_a_student_of_ummkd_may_tell_the_images_apart(tumour_teacher, tumours):
    recipe = student_of(tumour_teacher, architecture="ummkd_2d", config={"width": 2})
    setup, batch = batch_of(recipe, tumours)
    assert not any("alike" in note for note in setup.notes)
    objective = setup.objective.eval()
    with torch.no_grad():
        logits, _ = objective(batch)
        for n, key in enumerate(("ct", "t1")):
            own = objective.network(batch[key]["image"], modality=n)
            torch.testing.assert_close(logits[key], own)


def test_a_student_of_either_needs_cases_of_both(tumour_teacher, tumours, tmp_path):
    without = replace(tumours, channels={"ct": tumours.channels["ct"]})
    with pytest.raises(MissingInputError, match="The teacher sees 't1', which the data set"):
        set_up(student_of(tumour_teacher), without, Plan(steps=1, **CPU))
    with pytest.raises(SettingError, match="No case to train on has the modality 't1'"):
        train(student_of(tumour_teacher), tumours, tmp_path / "run",
              Plan(steps=1, test=["t1"], **CPU))  # fmt: skip
