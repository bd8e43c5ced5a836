"""Augmentation where the batch lies: the same patches, and no tensor of another device in it."""

import contextlib

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.data import default_collate

from medsegcore.training.augmentation import (
    RandBSplineDeformd,
    slice_transforms,
    training_transforms,
)
from medsegcore.training.patches import STATE, MixedPatches, PatchDataset
from medsegcore.training.recipes import EdgeAttentionRecipe, UMMKDRecipe
from medsegcore.training.slices import plain_slice_transforms

# A device that exists in every build, so that nothing asks for a driver. That its tensors hold
# values is `Elsewhere`'s doing.
DEVICE = torch.device("meta")
aten = torch.ops.aten


class Elsewhere(torch.Tensor):
    """A tensor with values that says it lies on `DEVICE`, as strict as one on a GPU.

    It does not mix with tensors of the CPU, but for those without axes and for indices, and has
    no NumPy array.
    """

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return elsewhere(function, args, kwargs or {})


def elsewhere(function, args, kwargs):
    """Run on the CPU what is asked of `DEVICE`; RuntimeError where a GPU would raise one."""
    given = []
    tree_map_only(torch.Tensor, given.append, (args, kwargs))
    target = kwargs.get("device")
    there = any(isinstance(tensor, Elsewhere) for tensor in given)
    moved = function in (aten._to_copy.default, aten.copy_.default)
    if there and not moved:
        allowed = args[1] if function in (aten.index.Tensor, aten.index_put_.default) else ()
        for tensor in given:
            here = not isinstance(tensor, Elsewhere) and tensor.dim()
            if here and not any(tensor is index for index in allowed):
                raise RuntimeError(f"{function} mixes devices.")
    inner = {}

    def unwrapped(tensor):
        inner[id(tensor.inner)] = tensor
        return tensor.inner

    args, kwargs = tree_map_only(Elsewhere, unwrapped, (args, kwargs))
    if target == DEVICE:
        kwargs["device"] = torch.device("cpu")
    out = function(*args, **kwargs)
    if target == DEVICE or (there and target is None):
        # What was changed in place is still the same tensor.
        return tree_map_only(
            torch.Tensor, lambda t: inner[id(t)] if id(t) in inner else Elsewhere(t), out
        )
    return out


class Operations(TorchDispatchMode):
    """Every operation goes through `elsewhere`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return elsewhere(function, args, kwargs or {})


class Makers(TorchFunctionMode):
    """Tensors of numbers are made on the CPU and moved: the real device forgets the numbers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


@contextlib.contextmanager
def device():
    """Meanwhile tensors can be made on `DEVICE` and moved there."""
    # A module that moves gets new parameters: what the old ones hold is no `Elsewhere`.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Makers(), Operations():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.fixture(scope="module")
def cases():
    """Two cases of three inputs, 0 outside of a ball, with a label."""
    made = []
    for seed in (1, 2):
        state = np.random.RandomState(seed)
        k, j, i = np.indices((40, 44, 48)) - np.array([20, 22, 24]).reshape(3, 1, 1, 1)
        ball = k**2 + j**2 + i**2 < 18**2
        case = {
            key: torch.from_numpy((state.normal(0, 1, ball.shape) * ball)[None]).float()
            for key in ("t1", "t2", "flair")
        }
        label = (k - 4) ** 2 + j**2 + (i + 3 * seed) ** 2 < 6**2
        case["label"] = torch.from_numpy(label[None]).float()
        made.append(case)
    return made


KEYS = ["t1", "t2", "flair"]


def pipelines():
    """Every kind of transforms that the recipes have."""
    drop = {"t1": 0.5, "t2": 0.5}
    edge = EdgeAttentionRecipe(image="flair", patch=(16, 24, 24), scanner=True, deform_mm=2.0)

    class Description:
        inputs = [type("Input", (), {"key": "flair"})]

    return {
        "patches": training_transforms(KEYS, (32, 32, 32), drop, ghosting=1.0),
        "slices": slice_transforms(KEYS, (32, 32), 1, drop, "flair", 0.5),
        "slices as in the papers": plain_slice_transforms(KEYS, (1, 32, 32)),
        "slices of other scanners": plain_slice_transforms(KEYS, (1, 32, 32), augment="scanner"),
        "deformed": edge.transforms(Description),
        "unpaired": UMMKDRecipe(dimensions=3, patch=(8, 32, 32)).transforms(None),
    }


@pytest.fixture(params=list(pipelines()))
def transforms(request):
    return request.param, lambda: pipelines()[request.param]


def ready(cases, name):
    """What the pipeline takes: that of the unpaired modalities names its input "image"."""
    if name != "unpaired":
        return cases
    return [{"image": case["flair"], "label": case["label"]} for case in cases]


def batch_of(patches, count):
    return default_collate([patches[n] for n in range(count)])


def test_what_is_changed_behind_the_loader_is_what_it_would_have_been(cases, transforms):
    name, make = transforms
    cases = ready(cases, name)
    whole = batch_of(PatchDataset(cases, ["a", "b"], make(), seed=3), 6)
    cut = PatchDataset(cases, ["a", "b"], make(), seed=3, cut_only=True)
    batch = batch_of(cut, 6)
    assert batch[STATE].shape == (6, 627)
    assert "image" not in batch or name == "unpaired"
    changed = cut.changes(batch)
    assert changed.keys() == whole.keys() == {"image", "label"}
    for key in whole:
        torch.testing.assert_close(changed[key], whole[key], rtol=0, atol=0)


def test_no_change_mixes_devices(cases, transforms):
    name, make = transforms
    cases = ready(cases, name)
    cut = PatchDataset(cases, ["a", "b"], make(), seed=5, cut_only=True)
    batch = batch_of(cut, 12)
    here = cut.changes(batch)
    with device():
        there = cut.changes({key: value.to(DEVICE) for key, value in batch.items()})
    for key in here:
        assert isinstance(there[key], Elsewhere)
        torch.testing.assert_close(there[key].inner, here[key], rtol=1e-6, atol=1e-6)


def test_the_device_of_these_tests_is_strict():
    with device():
        tensor = torch.ones(3).to(DEVICE)
        assert tensor.device == DEVICE
        assert (tensor * 2 + torch.tensor(1.0)).sum().item() == 9
        assert torch.zeros(2, device=DEVICE).cpu().tolist() == [0, 0]
        with pytest.raises(RuntimeError, match="mixes devices"):
            tensor + torch.ones(3)
        with pytest.raises(RuntimeError):
            tensor.numpy()
        # A field made on the CPU, as the deformation would have it without a thought.
        deform = RandBSplineDeformd(["image"], 1.0, (1.0, 1.0, 1.0), cells=(1, 1, 1))
        deform.set_random_state(1)
        moved = deform({"image": torch.ones(1, 4, 4, 4).to(DEVICE)})
        assert moved["image"].device == DEVICE


def test_modalities_and_old_cases_are_changed_too(cases):
    def make():
        return training_transforms(KEYS, (32, 32, 32), {})

    def dataset(seed, cut_only):
        return PatchDataset(cases, ["a", "b"], make(), seed, ["ct", "mr"], cut_only)

    whole = batch_of(MixedPatches(dataset(1, False), dataset(2, False), 0.5, seed=1), 4)
    cut = MixedPatches(dataset(1, True), dataset(2, True), 0.5, seed=1)
    changed = cut.changes(batch_of(cut, 4))
    assert changed.keys() == {"ct", "mr"}
    for modality in whole:
        for key in ("image", "label"):
            assert torch.equal(changed[modality][key], whole[modality][key])
    assert MixedPatches(dataset(1, False), dataset(2, False), 0.5, seed=1).changes is None


def test_a_slice_that_shows_nothing_is_never_drawn(cases):
    transforms = slice_transforms(KEYS, (32, 32), 0, {}, "flair")
    case = {key: value.clone() for key, value in cases[0].items()}
    case["flair"][:, :16] = case["flair"][:, 32:] = 0
    patches = PatchDataset([case], ["a"], transforms, seed=1)
    assert all(patches[n]["image"][2].any() for n in range(40))
