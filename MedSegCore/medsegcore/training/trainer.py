"""One training: from a folder of cases and a recipe to a model folder."""

import datetime
import logging
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from medsegcore.errors import MissingInputError, OutputError, SettingError
from medsegcore.models import DatasetUse, ModelFolder, TrainingRecord
from medsegcore.training.cases import (
    SOURCES,
    Case,
    CountingSampler,
    PatchDataset,
    find_cases,
    load_case,
)
from medsegcore.training.module import (
    Budget,
    BudgetedLearningRate,
    RunningMean,
    SegmentationModule,
)
from medsegcore.training.recipes import RSANetRecipe

Progress = Callable[[int, float, float, float | None], None]
CHECKPOINT = "last.ckpt"
# Lightning announces devices and products; the caller has `progress`.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
MODEL = "model"


@dataclass(frozen=True)
class TrainingRun:
    """What a finished training left.

    Attributes:
        folder: the model folder, without figures.
        training, test: the cases that were and were not trained on.
        last_loss: mean of the last 50 steps.
    """

    folder: ModelFolder
    training: list[Case]
    test: list[Case]
    last_loss: float


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
        if self.progress is not None:
            step = trainer.global_step
            self.progress(
                step, self.loss, self.budget.share_done(step), self.budget.seconds_left(step)
            )


def train(
    recipe: RSANetRecipe,
    data: str | Path,
    out: str | Path,
    test_patients: list[str],
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    seed: int = 1,
    workers: int = 1,
    resume: bool = False,
    limits: Sequence[str] = (),
    model_id: str | None = None,
    progress: Progress | None = None,
) -> TrainingRun:
    """Train on every case of `data` but those of the test patients, and write a model folder.

    Args:
        recipe: settings.
        data: folder of cases (`find_cases`).
        out: folder of the run: TensorBoard curves, `last.ckpt`, and the model in `model/`.
        test_patients: never trained on.
        minutes, steps: the budget; at least one of them.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of the weights and of the patches.
        workers: processes that make patches; 0 makes them in this one.
        resume: go on from `last.ckpt` of `out`.
        limits: sentences that the card is to have beside the recipe's own.
        model_id: under which the model is to be found; the recipe's when None.
        progress: called after each step with (step, loss, share done 0..1, seconds left or None).

    Raises:
        SettingError: no budget or none left, an unknown device, or nothing to resume.
        MissingInputError: no case, or a test patient that is not there.
        OutputError: the model folder exists already.
    """
    out = Path(out)
    _check_start(out, minutes, steps, resume)
    training, test = split_cases(find_cases(data, recipe.keys), test_patients)
    L.seed_everything(seed, verbose=False)
    record = TrainingRecord(
        recipe=recipe.name, date=datetime.date.today().isoformat(), minutes=0, steps=0,
        device="", seed=seed, settings={k: _plain(v) for k, v in asdict(recipe).items()},
    )  # fmt: skip
    description = recipe.description(record)
    prepared = [load_case(case, description) for case in training]
    share = float(np.mean([case["label"].mean().item() for case in prepared]))
    module = SegmentationModule(
        recipe.network(),
        recipe.loss_function(share),
        recipe.learning_rate,
        recipe.weight_decay,
        seed,
    )
    budget = Budget(minutes, steps)
    report = _Report(budget, progress)
    trainer = _trainer(recipe, out, budget, report, device)
    patches = PatchDataset(prepared, [c.patient for c in training], recipe.transforms(), seed)
    loader = _Loader(patches, recipe.batch_size, workers)
    done = _steps_done(out / CHECKPOINT) if resume else -1
    with warnings.catch_warnings():
        # An endless loader without length, and one that runs its workers in this very process.
        warnings.filterwarnings("ignore", module="lightning.*")
        # Histogram shifts of patches without contrast; they are then left as they are.
        warnings.filterwarnings("ignore", message=".*same min and max.*")
        trainer.fit(
            module,
            datamodule=loader,
            ckpt_path=out / CHECKPOINT if resume else None,
            weights_only=True,
        )
    if trainer.global_step == done:
        # Without a step Lightning leaves the weights as they were, not their running mean.
        raise SettingError(
            f"The training in '{out}' has used up its budget.", "Give it more minutes or steps."
        )
    record = record.model_copy(
        update={
            "minutes": round(budget.time_elapsed() / 60, 1),
            "steps": trainer.global_step,
            "device": device_name(str(trainer.strategy.root_device)),
        }
    )
    description = description.model_copy(
        update={
            "training": record,
            "data": data_use(training, test),
            "limits": [_size_of(training), *description.limits, *limits],
            "weights": description.weights.model_copy(update=weights_terms(training)),
            **({"id": model_id} if model_id else {}),
        }
    )
    folder = ModelFolder.write(out / MODEL, description, module.network, replace=resume)
    return TrainingRun(folder, training, test, report.loss)


def _check_start(out: Path, minutes: float | None, steps: int | None, resume: bool) -> None:
    """Refuse what cannot end well before anything is loaded."""
    if minutes is None and steps is None:
        raise SettingError("The training has no budget.", "Give it minutes or steps.")
    checkpoint = out / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise SettingError(
            f"There is no '{checkpoint}' to resume from.", "Start the training without resuming."
        )
    if not resume and checkpoint.exists():
        raise SettingError(
            f"'{out}' holds a training already.", "Resume it or choose another folder."
        )
    if not resume and (out / MODEL).exists():
        raise OutputError(f"'{out / MODEL}' exists already.", "Choose another folder.")


def _steps_done(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])


class _Loader(L.LightningDataModule):
    """Patches from where the trainer stands."""

    def __init__(self, patches: PatchDataset, batch_size: int, workers: int):
        super().__init__()
        self.patches, self.batch_size, self.workers = patches, batch_size, workers

    def train_dataloader(self) -> DataLoader:
        done = self.trainer.global_step if self.trainer is not None else 0
        return DataLoader(
            self.patches,
            batch_size=self.batch_size,
            sampler=CountingSampler(done * self.batch_size),
            num_workers=self.workers,
            worker_init_fn=_one_thread,
            prefetch_factor=4 if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _trainer(
    recipe: RSANetRecipe, out: Path, budget: Budget, report: _Report, device: str
) -> L.Trainer:
    accelerators = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}
    if device not in accelerators:
        raise SettingError(f"There is no device '{device}'.", "Use auto, cpu, cuda or mps.")
    keep = ModelCheckpoint(
        dirpath=out, filename=CHECKPOINT.removesuffix(".ckpt"), every_n_train_steps=50,
        save_on_exception=True, enable_version_counter=False,
    )  # fmt: skip
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    return L.Trainer(
        accelerator=accelerators[device],
        devices=1,
        precision="bf16-mixed" if on_gpu else "32-true",
        max_steps=budget.steps if budget.steps is not None else -1,
        gradient_clip_val=recipe.gradient_clip,
        logger=TensorBoardLogger(out, name="", version="curves"),
        callbacks=[
            budget,
            BudgetedLearningRate(budget, recipe.learning_rate, recipe.warmup_steps),
            RunningMean(recipe.ema_decay),
            keep,
            report,
        ],
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def split_cases(cases: list[Case], test_patients: list[str]) -> tuple[list[Case], list[Case]]:
    """(training, test) cases; all visits of a patient go to one side.

    Raises:
        MissingInputError: a test patient has no case, or none is left to train on.
    """
    patients = {case.patient for case in cases}
    for patient in test_patients:
        if patient not in patients:
            raise MissingInputError(
                f"The test patient '{patient}' has no case.",
                f"Patients: {', '.join(sorted(patients))}.",
            )
    training = [case for case in cases if case.patient not in test_patients]
    if not training:
        raise MissingInputError("No case is left to train on.", "Name fewer test patients.")
    return training, [case for case in cases if case.patient in test_patients]


def _size_of(training: list[Case]) -> str:
    """What the card says first of a model's limits."""
    patients = len({case.patient for case in training})
    sources = len({case.source for case in training})
    return (
        f"Trained on {len(training)} cases of {patients} patients from {sources} "
        f"data set{'s' if sources > 1 else ''}: how it does on other scanners and protocols is "
        "not known."
    )


def weights_terms(training: list[Case]) -> dict[str, str | bool]:
    """The weights' licence: that of the training data when it is known, else nothing is allowed."""
    licences = sorted({SOURCES[c.source][0] if c.source in SOURCES else "" for c in training})
    if "" in licences:
        return {"license": "not stated", "commercial_use": False}
    return {"license": ", ".join(licences), "commercial_use": True}


def data_use(training: list[Case], test: list[Case]) -> list[DatasetUse]:
    """Which data sets were used for what, for the card."""
    uses = []
    splits: list[tuple[Literal["training", "test"], list[Case]]] = [
        ("training", training),
        ("test", test),
    ]
    for split, cases in splits:
        for source in sorted({case.source for case in cases}):
            of_source = [case for case in cases if case.source == source]
            license_, citation = SOURCES.get(source, ("not stated", "not stated"))
            uses.append(
                DatasetUse(
                    name=source,
                    split=split,
                    patients=sorted({case.patient for case in of_source}),
                    cases=len(of_source),
                    license=license_,
                    citation=citation,
                )
            )
    return uses


def device_name(device: str) -> str:
    """What the figures were measured on, e.g. "CPU, 2 threads (x86_64)"."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device.startswith("mps"):
        return f"Apple GPU ({platform.machine()})"
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    return f"CPU, {threads} threads ({platform.machine()})"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
