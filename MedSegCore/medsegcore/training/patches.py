"""Endless augmented patches, each of which depends on the seed and its number alone."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from monai.data import set_track_meta
from monai.transforms import Compose, RandCropByPosNegLabeld
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medsegcore.training.augmentation import share_random_state
from medsegcore.training.transplant import RandTransplantLesiond

# Where an item that is not finished keeps the state of its generator.
STATE = "state"


class DeviceChanges:
    """What is left to do of a batch of patches that were cut but not changed, wherever it lies.

    Patch for patch with the generator that each brings along, so that it becomes what it would
    have become in a `PatchDataset` alone.

    Args:
        transforms: from a patch, {key: tensor, "label": tensor}, to {"image", "label"}.
    """

    def __init__(self, transforms: Compose):
        self.transforms = transforms

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """{key: [B, ...], "state": [B, 627]}, or such by modality, to {"image", "label"}."""
        if STATE not in batch:
            return {name: self(part) for name, part in batch.items()}
        patches = []
        for n, packed in enumerate(batch[STATE].cpu().numpy()):
            share_random_state(self.transforms, _unpacked(packed))
            patch = {key: value[n] for key, value in batch.items() if key != STATE}
            patches.append(self.transforms(patch))
        return {name: torch.stack([p[name] for p in patches]) for name in ("image", "label")}


def _packed(state: np.random.RandomState) -> Tensor:
    """[627], float64, which holds the 32-bit words of the state as they are."""
    _, words, *rest = state.get_state(legacy=True)
    return torch.from_numpy(np.concatenate([np.asarray(words, np.float64), rest]))


def _unpacked(packed: np.ndarray) -> np.random.RandomState:
    state = np.random.RandomState()
    *words, place, has_gauss, gauss = packed
    state.set_state(("MT19937", np.array(words, np.uint32), int(place), int(has_gauss), gauss))
    return state


class PatchDataset(Dataset):
    """Augmented patches or slices; number n is the same whenever and wherever it is made.

    Args:
        cases: as `Recipe.load` gives them.
        patients: patient of each case; every patient is drawn equally often.
        transforms: from a case to a list of one patch.
        seed: of all random choices.
        modalities: of each case, see `Recipe.modality`; None where there is but one.
        cut_only: leave what comes behind the crop to `changes`, for a GPU to do it.

    Attributes:
        changes: what turns a batch of items that are only cut into one to train on, else None.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Tensor]],
        patients: Sequence[str],
        transforms: Compose,
        seed: int,
        modalities: Sequence[str] | None = None,
        cut_only: bool = False,
    ):
        self.cases = list(cases)
        self.changes: DeviceChanges | None = None
        if cut_only:
            transforms, rest = _behind_crop(transforms)
            self.changes = DeviceChanges(rest)
        self.transforms = transforms
        for transform in transforms.transforms:
            if isinstance(transform, RandTransplantLesiond):
                transform.see(self.cases)
        self.seed = seed
        groups = list(modalities or [""] * len(patients))
        self.shares = {group: _shares(patients, groups, group) for group in sorted({*groups})}
        # Plain tensors: MONAI's metadata tracking costs time and its affine is not used here.
        set_track_meta(False)

    def __getitem__(self, n: int) -> dict[str, Any]:
        if "" in self.shares:
            return self._draw([self.seed, n], self.shares[""])
        return {
            group: self._draw([self.seed, n, 2 + number], shares)
            for number, (group, shares) in enumerate(self.shares.items())
        }

    def _draw(self, seeds: list[int], shares: np.ndarray) -> dict[str, Tensor]:
        state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seeds)))
        case = state.choice(len(self.cases), p=shares)
        share_random_state(self.transforms, state)
        patch = self.transforms(dict(self.cases[case]))[0]
        if self.changes:
            cut = {key: value.contiguous() for key, value in patch.items()}
            return {**cut, STATE: _packed(state)}
        return {name: patch[name].contiguous() for name in ("image", "label")}


class MixedPatches(Dataset):
    """New patches, and old ones in their place with a given chance; number n is always the same.

    Args:
        share: of the old ones, 0..1.
        seed: of the choice.
    """

    def __init__(self, new: PatchDataset, old: PatchDataset, share: float, seed: int):
        self.new, self.old, self.share, self.seed = new, old, share, seed

    @property
    def changes(self) -> DeviceChanges | None:
        """Those of the new ones; the old ones have the same."""
        return self.new.changes

    def __getitem__(self, n: int) -> dict[str, Any]:
        # Not the generator of the patch itself, whose first draw would then hang on the choice.
        drawn = np.random.default_rng([self.seed, n, 1]).random()
        return (self.old if drawn < self.share else self.new)[n]


def _behind_crop(transforms: Compose) -> tuple[Compose, Compose]:
    """What needs the whole case, up to the crop, and what needs the patch alone."""
    parts = transforms.transforms
    crops = [n for n, part in enumerate(parts) if isinstance(part, RandCropByPosNegLabeld)]
    return Compose(parts[: crops[-1] + 1]), Compose(parts[crops[-1] + 1 :])


def _shares(patients: Sequence[str], groups: Sequence[str], group: str) -> np.ndarray:
    """How often each case is drawn for a group: the cases of a patient share what is his."""
    own = [patient for patient, of in zip(patients, groups, strict=True) if of == group]
    shares = np.array(
        [
            1 / own.count(patient) if of == group else 0.0
            for patient, of in zip(patients, groups, strict=True)
        ]
    )
    return shares / shares.sum()


class CountingSampler(Sampler[int]):
    """Numbers without end, from those of a step on: a resumed training goes on where it stopped.

    Of each step, every one of `world` processes has `batch_size` numbers of its own.
    """

    def __init__(self, step: int, batch_size: int, rank: int = 0, world: int = 1):
        self.step, self.batch_size, self.rank, self.world = step, batch_size, rank, world

    def __iter__(self) -> Iterator[int]:
        step = self.step
        while True:
            first = (step * self.world + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)
            step += 1


class PatchLoader(L.LightningDataModule):
    """Patches from where the trainer stands, and the numbers of the cases to validate on.

    Args:
        validation: how many cases there are.
    """

    def __init__(self, patches: Dataset, batch_size: int, workers: int, validation: int):
        super().__init__()
        self.patches, self.batch_size, self.workers = patches, batch_size, workers
        self.validation = validation

    def train_dataloader(self) -> DataLoader:
        step, rank, world = 0, 0, 1
        if self.trainer is not None:
            step = self.trainer.global_step
            rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(
            self.patches,
            batch_size=self.batch_size,
            sampler=CountingSampler(step, self.batch_size, rank, world),
            num_workers=self.workers,
            worker_init_fn=_start_worker,
            prefetch_factor=4 if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader | list:
        if self.trainer is None or not self.validation:
            return []
        rank, world = self.trainer.global_rank, self.trainer.world_size
        own = list(range(rank, self.validation, world))
        # All processes have to take part in each validation; -1 stands for no case.
        return DataLoader(own or [-1], batch_size=None)  # type: ignore[arg-type]


def _start_worker(worker: int) -> None:
    # A terminal sends Ctrl-C to all processes; the one that trains ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # Workers that are spawned, not forked, start with MONAI's default.
    set_track_meta(False)
