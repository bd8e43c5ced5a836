"""One training: from a data set and a recipe to a model folder."""

import logging
import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from medsegcore.errors import OutputError, SettingError, is_out_of_memory
from medsegcore.models import ModelFolder, TrainingRecord
from medsegcore.training.budget import Budget, BudgetedLearningRate
from medsegcore.training.checkpoints import WholeCheckpoints, read_checkpoint
from medsegcore.training.datasets import Case, Dataset
from medsegcore.training.module import RunningMean, SegmentationModule
from medsegcore.training.patches import PatchLoader
from medsegcore.training.provenance import (
    data_use,
    patients_held_out,
    seen_before,
    size_of,
    weights_terms,
)
from medsegcore.training.recipes.base import Recipe
from medsegcore.training.runfile import (
    as_before,
    check_cases,
    ended_early,
    mark_ended_early,
    write_run,
)
from medsegcore.training.setup import Plan, Setup, set_up
from medsegcore.training.validation import MONITOR, PatchPictures, Validation

Progress = Callable[[int, float, float, float | None], None]
LAST, BEST, MODEL, CACHE = "last.ckpt", "best.ckpt", "model", "cache"
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}
# Where a budget in minutes does not say how many steps a validation comes after.
VALIDATE_EVERY = 200
# Lightning announces devices and products; the caller has `progress`.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@dataclass(frozen=True)
class TrainingRun:
    """What a finished training left.

    Attributes:
        folder: the model folder, without figures.
        training, validation, test: the cases that were trained on, chosen by, and neither.
        last_loss: mean of the last 50 steps; not a number where no step was left to do.
        best_dice: of the validation; None without one, or where no step was left to do.
        notes: a sentence for each setting that the data and the machine decided.
    """

    folder: ModelFolder
    training: list[Case]
    validation: list[Case]
    test: list[Case]
    last_loss: float
    best_dice: float | None
    notes: list[str]


class _Report(Callback):
    """Tells the caller: step, smoothed loss, share of the budget (0..1), seconds left."""

    def __init__(self, budget: Budget, progress: Progress | None):
        self.budget = budget
        self.progress = progress
        self.losses: list[float] = []

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses[-50:])) if self.losses else float("nan")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        if self.progress is not None and trainer.is_global_zero:
            step = trainer.global_step
            self.progress(step, self.loss, self.budget.done, self.budget.seconds_left(step))


class _LastStep(Callback):
    """Keeps the state of the last step, which is seldom one of those that are kept anyway."""

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        # Before the end of the training, when the running mean takes the weights' place.
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.checkpoint)

    def on_validation_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.should_stop:
            trainer.save_checkpoint(self.checkpoint)


def train(
    recipe: Recipe,
    data: str | Path | Dataset,
    out: str | Path,
    plan: Plan,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingRun | None:
    """Train on every case but those of the test and validation patients; write a model folder.

    It holds the weights that were the best in validation, or the last ones without validation.

    Args:
        data: a data set, or a folder that `read_dataset` reads.
        out: folder of the run: TensorBoard curves, checkpoints, and the model in `model/`.
        progress: called after each step with (step, loss, share done 0..1, seconds left or None).
        callbacks: of Lightning, beside the trainer's own.

    Returns:
        None in every process but the first, when several train together.

    Raises:
        SettingError: no budget or none left, or nothing to resume.
        MissingInputError: no case, or a patient that is not there.
        DeviceError: a device or precision that cannot be had.
        OutputError: the model folder exists already, or a file cannot be written.
        ModelWeightsError: the checkpoint to go on from is damaged.
    """
    out = Path(out)
    plan.check()
    check_start(out, plan.resume)
    chosen = as_before(out, recipe, plan) if plan.resume else recipe
    setup = set_up(chosen, data, plan, out / CACHE)
    return train_setup(recipe, setup, out, plan, progress, callbacks)


def train_setup(
    asked: Recipe,
    setup: Setup,
    out: Path,
    plan: Plan,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingRun | None:
    """`train` from where everything is set up.

    Args:
        asked: the recipe before anything was filled in.
    """
    if plan.resume:
        check_cases(out, setup)
    if plan.resume and (out / MODEL).exists():
        made = ModelFolder.read(out / MODEL)
        measured = bool(made.description.metrics)
        spent = _has_spent(made.description.training, plan)
        if spent or (ended_early(out) and not measured):
            if measured:
                raise _used_up(out)
            if rank_zero_only.rank:  # type: ignore[attr-defined]
                return None
            # It was stopped while it was measured.
            return TrainingRun(made, *setup.split, math.nan, None, setup.notes)
    if not plan.resume and not rank_zero_only.rank:  # type: ignore[attr-defined]
        write_run(out, asked, setup, plan)
    budget = Budget(plan.minutes, plan.steps)
    report = _Report(budget, progress)
    module = SegmentationModule(
        setup.objective, setup.recipe.optimizer, plan.seed, setup.patches.changes
    )
    more = [report, *callbacks, *_keepers(setup, plan, out)]
    trainer = make_trainer(setup, plan, budget, more, out)
    done = int(_read_last(out)["global_step"]) if plan.resume else -1
    fit(trainer, module, setup, plan, out / LAST if plan.resume else None)
    if not trainer.is_global_zero:
        return None
    if budget.done < 1:
        mark_ended_early(out)
    if trainer.global_step == done:
        if (out / MODEL).exists():
            raise _used_up(out)
        # It was stopped before it wrote its model. Without a step Lightning leaves the weights as
        # they were, not their running mean, which is what the checkpoint calls its state.
        last = _read_last(out)
        module.load_state_dict(last["state_dict"])
    best = None
    if setup.split.validation and (out / BEST).is_file():
        best = read_checkpoint(
            out / BEST, "Delete it and resume: the last weights then take the place of the best."
        )
        module.load_state_dict(best["state_dict"])
    folder = _export(setup, plan, out, module, budget, trainer)
    return TrainingRun(
        folder, *setup.split, report.loss, None if best is None else _best_dice(best), setup.notes
    )


def _has_spent(record: TrainingRecord, plan: Plan) -> bool:
    by_steps = plan.steps is not None and record.steps >= plan.steps
    # The record's minutes have one decimal.
    by_time = plan.minutes is not None and record.minutes >= round(plan.minutes, 1)
    return by_steps or by_time


def _used_up(out: Path) -> SettingError:
    return SettingError(
        f"The training in '{out}' has used up its budget.", "Give it more minutes or steps."
    )


def fit(
    trainer: L.Trainer,
    module: SegmentationModule,
    setup: Setup,
    plan: Plan,
    checkpoint: Path | None = None,
) -> None:
    """Run Lightning's loop, without the warnings that are none here.

    Raises:
        OutputError: a file of the run cannot be written.
    """
    assert setup.recipe.batch_size is not None
    loader = PatchLoader(
        setup.patches, setup.recipe.batch_size, plan.workers, len(setup.split.validation)
    )
    with warnings.catch_warnings():
        # An endless loader without length, and one that runs its workers in this very process.
        warnings.filterwarnings("ignore", module="lightning.*")
        # Histogram shifts of patches without contrast; they are then left as they are.
        warnings.filterwarnings("ignore", message=".*same min and max.*")
        # A slice without a label.
        warnings.filterwarnings("ignore", message=".*unable to generate class balanced.*")
        try:
            trainer.fit(module, datamodule=loader, ckpt_path=checkpoint, weights_only=True)
        except OSError as error:
            # A pipe whose reader has gone is the command's to judge.
            if isinstance(error, BrokenPipeError) or is_out_of_memory(error):
                raise
            raise OutputError(
                f"The training cannot write to its folder: {error.strerror or error}.",
                "Check the free space and the permissions.",
            ) from error


def make_trainer(
    setup: Setup, plan: Plan, budget: Budget, more: list[Callback], out: Path | None
) -> L.Trainer:
    """Lightning's trainer; it writes nothing when `out` is None."""
    recipe, device = setup.recipe, setup.device
    several = plan.devices * plan.nodes > 1
    averaging = [RunningMean(recipe.ema_decay)] if recipe.ema_decay else []
    return L.Trainer(
        accelerator=ACCELERATORS[device.type],
        devices=plan.devices if device.index is None else [device.index],
        num_nodes=plan.nodes,
        # An objective need not use all its parameters in each step.
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        sync_batchnorm=several and device.type == "cuda",
        use_distributed_sampler=False,
        precision=PRECISIONS[setup.precision],  # type: ignore[arg-type]
        max_steps=plan.steps if plan.steps is not None else -1,
        gradient_clip_val=recipe.gradient_clip,
        logger=TensorBoardLogger(out, name="", version="curves") if out else False,
        callbacks=[
            budget,
            BudgetedLearningRate(budget, recipe.learning_rate_at),
            *averaging,
            *more,
        ],
        enable_checkpointing=out is not None,
        plugins=[WholeCheckpoints()],
        val_check_interval=_interval(plan) if setup.split.validation else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if setup.split.validation else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _interval(plan: Plan) -> int | timedelta:
    """What lies between two validations."""
    if plan.validate_every is not None:
        return plan.validate_every
    # Clocks differ between processes, and all have to validate at the same step.
    if plan.steps is not None or plan.minutes is None or plan.devices * plan.nodes > 1:
        return _steps_between(plan)
    return timedelta(minutes=plan.minutes / 20)


def _steps_between(plan: Plan) -> int:
    """A twentieth of the budget, where that is in steps."""
    return VALIDATE_EVERY if plan.steps is None else math.ceil(plan.steps / 20)


def _keepers(setup: Setup, plan: Plan, out: Path) -> list[Callback]:
    """Callbacks for validation and checkpoints."""
    keepers: list[Callback] = []
    if setup.split.validation:
        keepers.append(Validation(setup.description, setup.split.validation, setup.precision))
        if plan.early_stop is not None:
            keepers.append(EarlyStopping(MONITOR, mode="max", patience=plan.early_stop))
        keepers.append(
            ModelCheckpoint(
                dirpath=out, filename=BEST.removesuffix(".ckpt"), monitor=MONITOR, mode="max",
                enable_version_counter=False, save_on_train_epoch_end=False,
            )
        )  # fmt: skip
    else:
        keepers.append(PatchPictures(setup.description, _steps_between(plan)))
    last = ModelCheckpoint(
        dirpath=out, filename=LAST.removesuffix(".ckpt"), every_n_train_steps=50,
        # All processes have to take part in saving, which one that failed alone cannot.
        save_on_exception=plan.devices * plan.nodes == 1, enable_version_counter=False,
    )  # fmt: skip
    return [*keepers, _LastStep(out / LAST), last]


def check_start(out: Path, resume: bool) -> None:
    """Refuse what cannot end well before anything is loaded."""
    checkpoint = out / LAST
    if resume and not checkpoint.is_file():
        raise SettingError(
            f"There is no '{checkpoint}' to resume from.", "Start the training without resuming."
        )
    if resume:
        _read_last(out)
    begun, made = checkpoint.exists(), (out / MODEL).exists()
    if not resume and begun and not (made and ModelFolder.read(out / MODEL).description.metrics):
        raise SettingError(
            f"'{out}' holds a training already.", "Resume it or choose another folder."
        )
    if not resume and made:
        raise OutputError(f"'{out / MODEL}' exists already.", "Choose another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{out}' cannot be made: {error.strerror}.", "Choose another folder."
        ) from error


def _read_last(out: Path) -> dict[str, Any]:
    return read_checkpoint(out / LAST, "Train anew in another folder.")


def _best_dice(checkpoint: dict[str, Any]) -> float:
    states = checkpoint["callbacks"].items()
    return next(
        float(state["best_model_score"])
        for name, state in states
        if name.startswith("ModelCheckpoint") and state["monitor"] == MONITOR
    )


def _export(
    setup: Setup,
    plan: Plan,
    out: Path,
    module: SegmentationModule,
    budget: Budget,
    trainer: L.Trainer,
) -> ModelFolder:
    name = device_name(str(trainer.strategy.root_device))
    record = setup.record.model_copy(
        update={
            "minutes": round(budget.time_elapsed() / 60, 1),
            "steps": trainer.global_step,
            "device": name if trainer.world_size == 1 else f"{trainer.world_size} x {name}",
        }
    )
    description, split = setup.description, setup.split
    description = description.model_copy(
        update={
            "training": record,
            "data": data_use(setup.data, split),
            "limits": [
                size_of(split.training),
                *filter(None, [setup.data.masks]),
                *description.limits,
                *plan.limits,
            ],
            "weights": description.weights.model_copy(
                update=weights_terms(setup.data, split.training)
            ),
            **({"id": plan.model_id} if plan.model_id else {}),
        }
    )
    held_out = patients_held_out(description)
    description = setup.recipe.finished(description)
    known = [
        f"{told} Their figures flatter."
        for parent in description.training.parents
        for told in seen_before(parent, held_out)
    ]
    limits = list(dict.fromkeys([*description.limits, *known]))
    description = description.model_copy(update={"limits": limits})
    network = module.objective.network
    return ModelFolder.write(out / MODEL, description, network, replace=plan.resume)


def device_name(device: str) -> str:
    """What the figures were measured on, e.g. "CPU, 2 threads (x86_64)"."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device.startswith("mps"):
        return f"Apple GPU ({platform.machine()})"
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    return f"CPU, {threads} threads ({platform.machine()})"
