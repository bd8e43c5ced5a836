"""Ghosts, transplanted lesions, and slices as the papers on slices change them."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsegcore.imaging import read_image
from medsegcore.training.artefacts import RandGhostingd, ghosted
from medsegcore.training.patches import PatchDataset
from medsegcore.training.recipes import RSANetRecipe
from medsegcore.training.slices import plain_slice_transforms
from medsegcore.training.transplant import RandTransplantLesiond

BOX = (slice(40, 88), slice(40, 120), slice(30, 100))


@pytest.fixture(scope="module")
def case(ms_case_dir):
    """A part of the sample, z-scored inside the brain, 0 outside."""
    data = {}
    for key in ("t1", "flair"):
        array = read_image(ms_case_dir / f"{key}.nii.gz").array[BOX].astype(np.float32)
        inside = array > 20
        scaled = (array - array[inside].mean()) / array[inside].std()
        data[key] = torch.from_numpy(np.where(inside, scaled, 0))[None]
    label = read_image(ms_case_dir / "lesion.nii.gz").array[BOX] > 0
    return {**data, "label": torch.from_numpy(label.astype(np.float32))[None]}


@pytest.mark.parametrize("period", [2, 5])
def test_ghosts_are_faint_copies_at_even_distances(case, period):
    image = case["flair"][:, :, :, :60] + 3
    share = 0.3
    changed = ghosted(image, 3, period, share)
    # Weakening every n-th line takes share / n of the sum of the n shifted copies away.
    step = 60 // period
    copies = sum(torch.roll(image, n * step, dims=3) for n in range(period)) / period
    plain = image - share * copies
    # But the middle of k-space keeps the brightness of each row.
    expected = plain + share * image.mean(dim=3, keepdim=True)
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)


def test_ghosting_draws_axis_period_and_strength_for_each_input(case):
    transform = RandGhostingd(["t1", "flair"], prob=0.5)
    transform.set_random_state(seed=2)
    changed = {"t1": 0, "flair": 0}
    for _ in range(40):
        out = transform(dict(case))
        for key in changed:
            changed[key] += not torch.equal(out[key], case[key])
        assert torch.equal(out["label"], case["label"])
    assert all(10 <= n <= 30 for n in changed.values())


def test_slices_are_turned_zoomed_shifted_and_blurred_with_their_labels(case):
    keys = ["t1", "flair"]
    plain = plain_slice_transforms(keys, (1, 64, 64), augment="none")
    plain.set_random_state(seed=1)
    item = plain(dict(case))[0]
    assert item["image"].shape == (2, 64, 64)
    assert item["label"].shape == (1, 64, 64)
    whole = plain_slice_transforms(["flair"], (1, 96, 96), neighbours=1, augment="none")
    whole.set_random_state(seed=3)
    item = whole(dict(case))[0]
    # Smaller slices lie in the middle of zeros; the middle of three is the labelled one.
    assert item["image"].shape == (3, 96, 96)
    seen = item["image"][:, 8:88, 13:83]
    k = next(k for k in range(48) if torch.equal(case["flair"][0, k], seen[1]))
    torch.testing.assert_close(seen[0], case["flair"][0, k - 1])
    torch.testing.assert_close(item["label"][0, 8:88, 13:83], case["label"][0, k])
    changing = plain_slice_transforms(["mask"], (1, 96, 96))
    changing.set_random_state(seed=4)
    moved = 0
    for _ in range(8):
        # The image here is the brain, and so is the label: both move alike.
        brain = (case["flair"] != 0).float()
        item = changing({"mask": brain, "label": brain})[0]
        assert ((item["image"] > 0.5) != (item["label"] > 0)).float().mean() < 0.02
        moved += not any(torch.equal(item["label"][:, 8:88, 13:83], b[None]) for b in brain[0])
    assert moved >= 5


def transplant(case, prob=1.0):
    transform = RandTransplantLesiond(["t1", "flair"], "flair", prob)
    transform.see([case])
    return transform


def test_a_lesion_is_carried_into_healthy_tissue_and_nothing_else_changes(case):
    transform = transplant(case)
    old = case["label"][0].numpy() > 0
    grown = 0
    for seed in range(12):
        transform.set_random_state(seed=seed)
        out = transform(dict(case))
        new = out["label"][0].numpy() > 0
        assert new[old].all()
        added = new & ~old
        changed = (out["flair"] != case["flair"])[0].numpy()
        if not changed.any():
            continue
        grown += added.any()
        # It lies wholly in the brain, beside the lesions that were there, in one place.
        assert (case["flair"][0].numpy()[changed] != 0).all()
        assert not (changed & old).any()
        assert not (added & ~changed).any()
        assert ndimage.label(ndimage.binary_closing(changed, iterations=3))[1] == 1
    assert grown >= 6


def test_a_lesion_is_as_bright_beside_its_new_surroundings_as_beside_the_old(case):
    bright = {**case, "flair": torch.where(case["flair"] != 0, case["flair"] + 5, 0.0)}
    transform = transplant(case)
    contrasts = []
    for seed in range(12):
        transform.set_random_state(seed=seed)
        out = transform(dict(bright))
        added = ((out["label"] > 0) & (case["label"] == 0))[0].numpy()
        if added.sum() < 5:
            continue
        ring = (
            ndimage.binary_dilation(added, iterations=4) & ~added & (case["label"][0].numpy() == 0)
        )
        flair = out["flair"][0].numpy()
        contrasts.append(flair[added].mean() - flair[ring & (flair != 0)].mean())
    lesion = case["label"][0].numpy() > 0
    ring = ndimage.binary_dilation(lesion, iterations=4) & ~lesion
    flair = case["flair"][0].numpy()
    own = flair[lesion].mean() - flair[ring & (flair != 0)].mean()
    # A recipient that is brighter by 5 does not make it darker than its surroundings.
    assert len(contrasts) >= 4
    assert np.mean(contrasts) == pytest.approx(own, abs=0.8)


def test_a_recipe_transplants_and_ghosts_when_it_is_told_to(case):
    recipe = RSANetRecipe(patch=(32, 32, 32), drop={}, transplant=1.0, ghosting=0.5)
    full = {**case, "t2": case["t1"]}
    patches = PatchDataset([full], ["a"], recipe.transforms(None), seed=1)
    assert isinstance(patches.transforms.transforms[0], RandTransplantLesiond)
    assert patches.transforms.transforms[0].cases is patches.cases
    assert patches[0]["image"].shape == (3, 32, 32, 32)
    plain = RSANetRecipe(patch=(32, 32, 32)).transforms(None)
    assert not isinstance(plain.transforms[0], RandTransplantLesiond)


def test_without_donors_or_without_the_same_inputs_the_case_stays_as_it_is(case):
    alone = RandTransplantLesiond(["t1", "flair"], "flair", 1.0)
    alone.set_random_state(seed=1)
    assert alone(dict(case))["flair"] is case["flair"]
    donor = {**case, "t1": torch.zeros_like(case["t1"])}
    transform = transplant(donor)
    transform.set_random_state(seed=1)
    assert torch.equal(transform(dict(case))["label"], case["label"])
    # A recipient without T1 keeps it empty.
    transform = transplant(case)
    out = []
    for seed in range(6):
        transform.set_random_state(seed=seed)
        out.append(transform(dict(donor)))
    assert not any(one["t1"].any() for one in out)
    assert any((one["label"] != case["label"]).any() for one in out)
