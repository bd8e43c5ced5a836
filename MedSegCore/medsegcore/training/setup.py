"""From a data set and a recipe to all that a training needs, before it starts."""

import datetime
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import psutil
import torch
from pydantic import ValidationError
from torch import Tensor

from medsegcore.errors import DatasetError, MissingInputError, SettingError
from medsegcore.inference.devices import choose_device, choose_precision
from medsegcore.models import ModelDescription, TrainingRecord
from medsegcore.models.store import check_id
from medsegcore.training.cases import Split, split_cases
from medsegcore.training.datasets import Case, Dataset, read_dataset
from medsegcore.training.datasets.cache import cache_key, load_cached
from medsegcore.training.datasets.visits import visits_as_patients
from medsegcore.training.facts import DataFacts, data_facts, free_memory, label_shares
from medsegcore.training.memory import check_memory
from medsegcore.training.patches import MixedPatches, PatchDataset
from medsegcore.training.recipes.base import Objective, Recipe


@dataclass(frozen=True)
class Plan:
    """What a training is to do beside its recipe.

    Attributes:
        test: patients that are never trained on and measured at the end.
        validation: patients that are never trained on and tell which weights are the best.
        minutes, steps: the budget; at least one of them.
        validate_every: steps; about a twentieth of the budget when None.
        early_stop: end after so many validations without a better one; None for never.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        devices: how many of them on each computer; each has batches of its own.
        nodes: computers, started by Slurm or torchrun.
        precision: of the convolutions: "auto" (bf16 on a GPU), "fp32", "bf16" or "fp16".
        seed: of the weights and of the patches.
        workers: processes that make patches, for each device; 0 makes them in this one.
        resume: go on from the last checkpoint.
        label: name of the masks in a folder of cases.
        limits: sentences that the card is to have beside the recipe's own.
        model_id: under which the model is to be found; the recipe's when None.
    """

    test: Sequence[str] = ()
    validation: Sequence[str] = ()
    minutes: float | None = None
    steps: int | None = None
    validate_every: int | None = None
    early_stop: int | None = None
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "auto"
    seed: int = 1
    workers: int = 1
    resume: bool = False
    label: str = "lesion"
    limits: Sequence[str] = ()
    model_id: str | None = None

    def check(self) -> None:
        """Raise SettingError for what cannot end well, ModelSchemaError for an id that is none."""
        if self.minutes is None and self.steps is None:
            raise SettingError("The training has no budget.", "Give it minutes or steps.")
        for name in ("minutes", "steps", "validate_every", "early_stop", "devices", "nodes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingError(f"{name} is {value}.", "Give more than 0.")
        if self.model_id is not None:
            check_id(self.model_id)
        if self.early_stop is not None and not self.validation:
            raise SettingError(
                "Without validation patients nothing says when to stop early.",
                "Name some, or leave early stopping out.",
            )


@dataclass(frozen=True)
class Setup:
    """All that a training needs.

    Attributes:
        recipe: with every setting filled in.
        notes: a sentence for each setting that the data and the machine decided.
        record: without time and device.
    """

    data: Dataset
    split: Split
    recipe: Recipe
    notes: list[str]
    facts: DataFacts
    record: TrainingRecord
    description: ModelDescription
    objective: Objective
    patches: PatchDataset | MixedPatches
    device: torch.device
    precision: str


def set_up(
    recipe: Recipe,
    data: str | Path | Dataset,
    plan: Plan,
    cache: Path | None = None,
    most: int | None = None,
) -> Setup:
    """Read, split, choose what the recipe leaves open, prepare the cases, make the objective.

    Args:
        cache: folder for prepared cases that do not fit into memory; None keeps all in memory.
        most: prepare only so many cases, of all modalities.

    Raises:
        SettingError, MissingInputError, DatasetError, DeviceError, OutOfMemoryError: see `Plan`,
            `split_cases`, `read_dataset`, `choose_device`, `check_memory`.
    """
    plan.check()
    device = choose_device(plan.device)
    dtype = choose_precision(plan.precision, device)
    if not isinstance(data, Dataset):
        data = read_dataset(data, plan.label, recipe.keys)
    split = split_cases(data, plan.test, plan.validation)
    facts = data_facts(data, split.training, device, plan.devices)
    recipe, notes = recipe.configured(data, facts)
    notes = [*notes, *filter(None, [visits_as_patients(data)])]
    L.seed_everything(plan.seed, verbose=False)
    settings: dict[str, Any] = {k: _plain(v) for k, v in asdict(recipe).items()}
    record = TrainingRecord(
        recipe=recipe.name, date=datetime.date.today().isoformat(), minutes=0, steps=0,
        device="", seed=plan.seed, settings={**settings, **({"chosen": notes} if notes else {})},
    )  # fmt: skip
    description = _described(recipe, data, record)
    split, left_out = with_images(split, description)
    notes = [*notes, *left_out]
    _check_inputs(split, description)
    # Before the cases, whose preparation takes minutes.
    half = dtype != torch.float32
    notes = [*notes, check_memory(recipe, description, free_memory(device, plan.devices), half)]
    used = split.training if most is None else _few(recipe, split.training, most)
    prepared = load_cases(recipe, used, description, cache)
    facts = replace(
        facts, label_share=label_shares(prepared, [label.value for label in description.labels])
    )
    if len(used) == len(split.training):
        notes += _absent(description, facts.label_share)
    objective = recipe.objective(recipe.network(description), facts)
    patches = PatchDataset(
        prepared,
        [case.patient for case in used],
        recipe.transforms(description),
        plan.seed,
        [recipe.modality(case) for case in used],
        changed_on(device),
    )
    return Setup(
        data, split, recipe, notes, facts, record, description, objective, patches, device,
        {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype],
    )  # fmt: skip


def _few(recipe: Recipe, cases: Sequence[Case], most: int) -> list[Case]:
    """So many cases; the modalities take turns, as a step needs a batch of each."""
    by_modality: dict[str, list[Case]] = {}
    for case in cases:
        by_modality.setdefault(recipe.modality(case), []).append(case)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_modality.values()))
    return [case for case in turns if case is not None][: max(most, len(by_modality))]


def _absent(description: ModelDescription, shares: Mapping[int, float]) -> list[str]:
    """A sentence for each label that no case has; DatasetError where none has any."""
    names = [label.name for label in description.labels if not shares[label.value]]
    if len(names) == len(description.labels):
        raise DatasetError(
            f"No mask of the cases to train on has a voxel of {' or '.join(names)}.",
            "Check the masks with `medseg dataset check`, and the values of the labels.",
        )
    return [f"No case to train on has a voxel of '{name}': it is not learnt." for name in names]


def _described(recipe: Recipe, data: Dataset, record: TrainingRecord) -> ModelDescription:
    """The recipe's description; SettingError where its settings make none."""
    try:
        return recipe.description(data, record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingError(
            f"The settings make no model: {where or 'description'}: {first['msg']}.",
            "Change what it names: a tile is a training patch.",
        ) from error


def changed_on(device: torch.device) -> bool:
    """Whether the device augments its own batches: a GPU does, so that it need not wait.

    Not Apple's, which has no double precision.
    """
    return device.type == "cuda"


def load_cases(
    recipe: Recipe, cases: Sequence[Case], description: ModelDescription, cache: Path | None
) -> list[dict[str, Tensor]]:
    """Every case as the recipe prepares it, from the cache where memory holds too few."""
    first = recipe.load(cases[0], description)
    size = sum(tensor.nbytes for tensor in first.values()) * len(cases)
    if cache is None or size < psutil.virtual_memory().available // 2:
        return [first, *(recipe.load(case, description) for case in cases[1:])]
    return [
        load_cached(
            cache, cache_key(description, case), functools.partial(recipe.load, case, description)
        )
        for case in cases
    ]


def with_images(split: Split, description: ModelDescription) -> tuple[Split, list[str]]:
    """The split without cases that have none of the images of which the model takes one."""
    if not description.one_of:
        return split, []
    keys = [spec.key for spec in description.inputs]

    def kept(cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if any(key in case.images for key in keys)]

    own = Split(kept(split.training), kept(split.validation), kept(split.test))
    if not own.training:
        raise MissingInputError(
            f"No case to train on has {' or '.join(keys)}.", "Name other modalities."
        )
    parts = (split.training, split.validation, split.test)
    lacking = sum(map(len, parts)) - len([*own.training, *own.validation, *own.test])
    note = f"{lacking} cases have neither {' nor '.join(keys)} and are left out."
    return own, [note] if lacking else []


def _check_inputs(split: Split, description: ModelDescription) -> None:
    """Raise MissingInputError for a case that lacks what the model cannot do without."""
    needed = [spec.key for spec in description.inputs if description.needs(spec)]
    for case in (*split.training, *split.validation, *split.test):
        for key in needed:
            if key not in case.images:
                raise MissingInputError(
                    f"The case '{case.id}' has no '{key}', which the recipe needs.",
                    "Take the case out of the data set or choose another recipe.",
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
