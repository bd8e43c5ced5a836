"""Training: cases, patches, the budget, resuming, and that it learns."""

import dataclasses
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from medsegcore.errors import DeviceError, MissingInputError, OutputError, SettingError
from medsegcore.losses import LesionLoss
from medsegcore.models import Metric, ModelFolder, TrainingRecord
from medsegcore.training.augmentation import (
    KeepOutsideZerod,
    RandBSplineDeformd,
    RandDropInputsd,
    scanner_transforms,
    training_transforms,
)
from medsegcore.training.cases import load_case, split_cases
from medsegcore.training.datasets import read_dataset
from medsegcore.training.module import in_layout, ramped_average
from medsegcore.training.patches import CountingSampler, PatchDataset
from medsegcore.training.provenance import weights_terms
from medsegcore.training.recipes import RSANetRecipe
from medsegcore.training.recipes.base import warm_cosine
from medsegcore.training.setup import Plan
from medsegcore.training.trainer import train

SMALL = RSANetRecipe(
    width=4, norm_groups=2, patch=(32, 32, 32), batch_size=2, warmup_steps=2, ema_decay=0.9
)
RECORD = TrainingRecord(
    recipe="rsanet", date="2026-01-01", minutes=0, steps=0, device="", seed=1, settings={}
)


@pytest.fixture(scope="module")
def data(ms_cases):
    return read_dataset(ms_cases, keys=SMALL.keys)


@pytest.fixture(scope="module")
def description(data):
    return SMALL.description(data, RECORD)


@pytest.fixture(scope="module")
def prepared(data, description):
    return [load_case(case, description) for case in data.cases]


@pytest.fixture
def transforms(description):
    return SMALL.transforms(description)


def test_all_visits_of_a_patient_have_one_use(data):
    split = split_cases(data, test=["a"])
    assert [[c.id for c in part] for part in split] == [["b"], [], ["a_1", "a_2"]]
    split = split_cases(data, validation=["a"])
    assert [[c.id for c in part] for part in split] == [["b"], ["a_1", "a_2"], []]
    with pytest.raises(MissingInputError, match="test patient 'c' has no case"):
        split_cases(data, ["c"])
    with pytest.raises(MissingInputError, match="No case is left"):
        split_cases(data, ["a"], ["b"])
    with pytest.raises(SettingError, match="'a' is named for testing and for validation"):
        split_cases(data, ["a"], ["a"])


def test_test_cases_of_the_data_set_are_tested_on_unless_their_patient_is_trained_on(data):
    kept = dataclasses.replace(data, cases=data.cases[:1], test=data.cases[1:])
    assert [c.id for c in split_cases(kept).test] == ["b"]


def test_patches_are_the_same_whenever_they_are_made(prepared, transforms):
    first = PatchDataset(prepared, ["a", "a", "b"], transforms, seed=3)
    second = PatchDataset(prepared, ["a", "a", "b"], transforms, seed=3)
    for n in (4, 0, 9):
        a, b = first[n], second[n]
        assert a["image"].shape == (3, 32, 32, 32)
        assert a["label"].shape == (1, 32, 32, 32)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
        assert set(a["label"].unique().tolist()) <= {0.0, 1.0}
    other = PatchDataset(prepared, ["a", "a", "b"], transforms, seed=4)
    assert not torch.equal(other[0]["image"], first[0]["image"])
    assert first_numbers(CountingSampler(7, 1), 3) == [7, 8, 9]


def first_numbers(sampler, count):
    return [n for n, _ in zip(sampler, range(count), strict=False)]


def test_processes_that_train_together_share_the_patches_of_each_step():
    alone = first_numbers(CountingSampler(5, 4), 8)
    ranks = [first_numbers(CountingSampler(5, 2, rank, 2), 4) for rank in (0, 1)]
    assert ranks == [[20, 21, 24, 25], [22, 23, 26, 27]]
    assert sorted(ranks[0] + ranks[1]) == alone


def test_augmentation_uses_the_whole_range_of_each_setting(prepared, transforms):
    from monai.transforms import RandAdjustContrastd

    contrast = next(
        t for outer in transforms.transforms for t in getattr(
            getattr(outer, "transform", None), "transforms", [])
        if isinstance(t, RandAdjustContrastd)
    )  # fmt: skip
    patches = PatchDataset(prepared, ["a", "a", "b"], transforms, seed=1)
    gammas = []
    for n in range(60):
        patches[n]
        if contrast._do_transform:
            gammas.append(contrast.adjuster.gamma_value)
    assert 15 <= len(gammas) <= 45
    assert min(gammas) < 0.75
    assert max(gammas) > 1.45


def test_every_patient_is_drawn_equally_often(prepared, transforms):
    patches = PatchDataset(prepared, ["a", "a", "b"], transforms, seed=1)
    assert patches.shares[""].tolist() == [0.25, 0.25, 0.5]
    of_two = PatchDataset(prepared, ["a", "a", "b"], transforms, 1, ["ct", "mr", "mr"])
    assert {m: s.tolist() for m, s in of_two.shares.items()} == {
        "ct": [1, 0, 0], "mr": [0, 0.5, 0.5],
    }  # fmt: skip
    item = of_two[0]
    assert item["ct"]["image"].shape == item["mr"]["image"].shape == (3, 32, 32, 32)


def test_scanner_changes_stay_inside_the_foreground(prepared):
    whole = prepared[0]["flair"]
    k, j, i = (n // 2 - 16 for n in whole.shape[1:])
    patch = whole[:, k : k + 32, j : j + 32, i : i + 32].clone()
    patch[:, :, :8] = 0
    outside = patch == 0
    assert 0.2 < outside.float().mean() < 0.9
    change = KeepOutsideZerod(["flair"], scanner_transforms("flair", (32, 32, 32)))
    change.set_random_state(seed=1)
    for _ in range(10):
        changed = change({"flair": patch.clone()})["flair"]
        assert not changed[outside].any()
        assert torch.isfinite(changed).all()
        assert not torch.equal(changed, patch)
    absent = torch.zeros_like(patch)
    assert not change({"flair": absent})["flair"].any()
    # A recipe need not hide any input.
    assert training_transforms(SMALL.keys, (32, 32, 32), {})(dict(prepared[0]))


def test_dropped_inputs_are_zero_as_often_as_stated():
    drop = RandDropInputsd({"t2": 0.4})
    drop.set_random_state(seed=1)
    dropped = [not drop({"t2": torch.ones(1), "t1": torch.ones(1)})["t2"].any() for _ in range(500)]
    assert np.mean(dropped) == pytest.approx(0.4, abs=0.06)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    recipe = RSANetRecipe(learning_rate=1e-3, warmup_steps=10)
    assert recipe.learning_rate_at(0, 0) == pytest.approx(1e-4, rel=0.02)
    assert recipe.learning_rate_at(0.5, 500) == pytest.approx(1e-3 * 0.51)
    assert recipe.learning_rate_at(1, 1000) == pytest.approx(1e-5)


def test_a_short_training_warms_up_over_a_tenth_of_its_budget():
    def rates(steps):
        return [warm_cosine(1.0, 100, step / steps, step) for step in range(steps)]

    short = rates(40)
    assert short[0] == pytest.approx(0.01, rel=0.02)
    assert short[2] == pytest.approx(0.5, rel=0.02)
    assert max(short) == short[4] > 0.98
    # By the minute it is the same, whatever the number of steps.
    assert warm_cosine(1.0, 100, 0.1, 7) == pytest.approx(0.986, abs=1e-3)
    for step, rate in enumerate(rates(1000)):
        cosine = 0.5 * (1 + math.cos(math.pi * (step / 1000))) + 0.01
        assert rate == min(1.0, (step + 1) / 100) * cosine


def test_the_running_mean_is_its_formula_by_hand():
    mean = torch.tensor(2.0)
    # After 0 steps the memory is 1/10: 2 + (10 - 2) * 0.9 = 9.2; later it is the decay.
    assert ramped_average(0.999)(mean, torch.tensor(10.0), 0).item() == pytest.approx(9.2)
    assert ramped_average(0.5)(mean, torch.tensor(10.0), 999).item() == pytest.approx(6.0)


def test_a_bspline_deformation_moves_all_images_alike_by_a_smooth_field():
    # Images that hold their own coordinates in mm show from where each voxel was taken.
    spacing = (1.5, 0.625, 0.625)
    grids = np.meshgrid(*(s * np.arange(n) for s, n in zip(spacing, (16, 48, 48), strict=True)),
                        indexing="ij")  # fmt: skip
    data = {f"axis{n}": torch.from_numpy(g.astype(np.float32))[None] for n, g in enumerate(grids)}
    mask = (grids[1] > 12) & (grids[2] < 20)
    data["label"] = torch.from_numpy(mask.astype(np.float32))[None]
    deform = RandBSplineDeformd(list(data), mm=2.0, spacing=spacing)
    deform.set_random_state(3)
    out = deform(data)
    inside = (slice(3, -3), slice(8, -8), slice(8, -8))
    moved = np.stack([out[f"axis{n}"][0].numpy() - grids[n] for n in range(3)])
    assert 0.3 < moved[(slice(None), *inside)].std() < 3
    # Second differences of a field with so few control points are small beside the field.
    assert np.abs(np.diff(moved[(slice(None), *inside)], n=2, axis=2)).max() < 0.1
    # The mask is what lies at the places that the coordinate images were taken from.
    source = [out[f"axis{n}"][0].numpy()[inside] for n in range(3)]
    expected = (source[1] > 12) & (source[2] < 20)
    sure = (np.abs(source[1] - 12) > 0.7) & (np.abs(source[2] - 20) > 0.7)
    np.testing.assert_array_equal(out["label"][0].numpy()[inside][sure] > 0, expected[sure])
    again = RandBSplineDeformd(list(data), mm=2.0, spacing=spacing)
    again.set_random_state(3)
    torch.testing.assert_close(again(data)["axis1"], out["axis1"])
    again.prob = 0.0
    torch.testing.assert_close(again(data)["axis1"], data["axis1"])


def test_a_bspline_deformation_is_the_one_of_simpleitk():
    spacing = (1.5, 0.6, 0.7)
    rng = np.random.default_rng(1)
    smooth = sitk.DiscreteGaussian(sitk.GetImageFromArray(rng.normal(size=(18, 30, 34))), 4.0)
    image = torch.from_numpy(sitk.GetArrayFromImage(smooth).astype(np.float32))[None]
    deform = RandBSplineDeformd(["image"], mm=2.0, spacing=spacing, cells=(2, 3, 4))
    deform.set_random_state(5)
    ours = deform({"image": image})["image"][0].numpy()
    drawn = np.random.RandomState(5)
    drawn.random()
    coefficients = drawn.normal(0, 2.0, (3, 5, 6, 7))
    smooth.SetSpacing(spacing[::-1])
    # The cells span the image with its voxels' outer edges.
    transform = sitk.BSplineTransform(3, 3)
    transform.SetTransformDomainMeshSize((4, 3, 2))
    transform.SetTransformDomainOrigin([-mm / 2 for mm in spacing[::-1]])
    transform.SetTransformDomainPhysicalDimensions(
        [n * mm for n, mm in zip((34, 30, 18), spacing[::-1], strict=True)]
    )
    transform.SetParameters(coefficients[::-1].ravel())
    theirs = sitk.GetArrayFromImage(sitk.Resample(smooth, smooth, transform, sitk.sitkLinear))
    inside = (slice(4, -4), slice(9, -9), slice(8, -8))
    assert theirs[inside].std() > 0.01
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4)


class Stopped(Exception):
    """Stands for a power cut."""


@pytest.mark.slow
def test_a_training_goes_on_after_a_break_with_the_same_losses(ms_cases, tmp_path):
    def losses_into(seen, stop=None):
        def progress(step, loss, done, left):
            seen[step] = loss
            assert 0 < done <= 1
            if step == stop:
                raise Stopped

        return progress

    whole, broken, resumed = {}, {}, {}
    plan = Plan(test=["b"], steps=12, device="cpu", workers=0, seed=5)
    again = dataclasses.replace(plan, resume=True)
    train(SMALL, ms_cases, tmp_path / "whole", plan, losses_into(whole))
    with pytest.raises(Stopped):
        train(SMALL, ms_cases, tmp_path / "broken", plan, losses_into(broken, 6))
    with pytest.raises(SettingError, match="holds a training already"):
        train(SMALL, ms_cases, tmp_path / "broken", plan)
    run = train(SMALL, ms_cases, tmp_path / "broken", again, losses_into(resumed))
    assert sorted(resumed) == list(range(7, 13))
    # It was not measured, as when that is cancelled, and is given to be measured once more.
    weights = run.folder.description.weights.sha256
    run = train(SMALL, ms_cases, tmp_path / "broken", again)
    assert run.folder.description.weights.sha256 == weights
    measured = run.folder.description.model_copy(
        update={"metrics": [Metric(name="Dice", value=0.5, unit="", case="b", n=1, how="test")]}
    )
    run.folder.with_description(measured)
    with pytest.raises(SettingError, match="has used up its budget"):
        train(SMALL, ms_cases, tmp_path / "broken", again)
    # The reported loss is the mean since the start of the process: undo it to compare steps.
    own = {step: step * whole[step] - (step - 1) * whole.get(step - 1, 0) for step in whole}
    later = {
        step: (step - 6) * resumed[step] - (step - 7) * resumed.get(step - 1, 0) for step in resumed
    }
    for step, loss in later.items():
        assert loss == pytest.approx(own[step], abs=1e-4)
    assert run.folder.description.training.steps == 12
    a, b = (ModelFolder.read(tmp_path / n / "model").load_network() for n in ("whole", "broken"))
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=1e-2, msg=name)
    assert any((tmp_path / "whole" / "curves").glob("events.out.tfevents*"))
    (tmp_path / "broken" / "last.ckpt").unlink()
    with pytest.raises(OutputError, match="exists already"):
        train(SMALL, ms_cases, tmp_path / "broken", plan)


@pytest.mark.slow
def test_a_training_ends_with_its_minutes_and_writes_a_sound_model(ms_cases, tmp_path):
    plan = Plan(test=["a"], minutes=0.1, device="cpu", workers=0)
    run = train(SMALL, ms_cases, tmp_path / "r", plan)
    assert run.folder.description.training.minutes < 0.6
    run.folder.verify()
    content = json.loads((run.folder.path / "model.json").read_text(encoding="utf-8"))
    assert [u["split"] for u in content["data"]] == ["training", "test"]
    assert content["data"][0]["patients"] == ["b"]
    assert content["training"]["settings"]["width"] == 4
    assert content["weights"]["license"] == "CC BY"
    assert content["weights"]["commercial_use"] is True


def test_weights_from_data_of_unknown_licence_allow_nothing(data):
    unknown = dataclasses.replace(data.cases[0], site="our_hospital")
    assert weights_terms(data, data.cases) == {"license": "CC BY", "commercial_use": True}
    mixed = dataclasses.replace(
        data, cases=[*data.cases, unknown], license="not stated", commercial_use=False
    )
    assert weights_terms(mixed, mixed.cases) == {"license": "not stated", "commercial_use": False}


@pytest.mark.slow
def test_it_learns_a_real_patch_by_heart(prepared, data):
    torch.manual_seed(1)
    case = prepared[0]
    lesion = case["label"][0].nonzero()
    middle = lesion[(lesion - lesion.float().median(dim=0).values).norm(dim=1).argmin()]
    starts = [
        min(max(int(m) - 12, 0), n - 24)
        for m, n in zip(middle, case["label"].shape[1:], strict=True)
    ]
    box = (slice(None), *(slice(start, start + 24) for start in starts))
    # Twice: convolutions of a batch of one small patch take a slow way.
    x = torch.cat([case[key][box] for key in SMALL.keys])[None].repeat(2, 1, 1, 1, 1)
    y = case["label"][box][None].repeat(2, 1, 1, 1, 1)
    assert y.sum() > 200
    recipe = RSANetRecipe(width=8, norm_groups=4)
    network = recipe.network(recipe.description(data, RECORD))
    loss = LesionLoss(0.02, "swapped")
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    best = 0.0
    for _ in range(300):
        optimizer.zero_grad()
        logits = network(in_layout(x))
        loss(logits, y).backward()
        optimizer.step()
        answer = logits.argmax(dim=1, keepdim=True)
        best = (2 * (answer * y).sum() / (answer.sum() + y.sum())).item()
        if best > 0.95:
            break
    assert best > 0.95


def test_a_training_without_budget_or_checkpoint_is_refused(ms_cases, tmp_path):
    def started(**options):
        train(SMALL, ms_cases, tmp_path / "r", Plan(**options))

    with pytest.raises(SettingError, match="no budget"):
        started()
    with pytest.raises(SettingError, match="steps is 0"):
        started(steps=0)
    with pytest.raises(SettingError, match="nothing says when to stop early"):
        started(steps=2, early_stop=1)
    with pytest.raises(SettingError, match="to resume from"):
        started(steps=2, resume=True)
    with pytest.raises(DeviceError, match="no device 'tpu'"):
        started(steps=2, device="tpu")
