"""The figures of a finished training, written into its model folder."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from medsegcore.errors import RunError
from medsegcore.evaluation.evaluate import card_metrics, evaluate_model
from medsegcore.inference.predictor import Predictor
from medsegcore.models import ModelFolder, Timing
from medsegcore.training.datasets import Case
from medsegcore.training.provenance import how_unseen, inherited
from medsegcore.training.trainer import TrainingRun, device_name

CHOSEN_BY = "not trained on, but the weights were chosen by these cases"
FITTED = "trained on: says how well the model fits, not how well it works"


def measure(
    run: TrainingRun,
    device: str = "auto",
    progress: Callable[[int, int, float | None], None] | None = None,
) -> ModelFolder:
    """Evaluate on the cases of each use; fill in figures, memory and timings.

    Args:
        progress: called with (steps done, steps, seconds left or None); each case is a step, and
            so is what measures memory and time.
    """
    predictor = Predictor(run.folder, device)
    baseline = run.folder.description.reference
    parents = run.folder.description.training.parents
    by_use: dict[str, list[Case]] = {}
    for case in run.test:
        by_use.setdefault(how_unseen(parents, case), []).append(case)
    for case in run.validation:
        known = inherited(parents, case)
        how = f"{CHOSEN_BY}, and {known}" if known else CHOSEN_BY
        by_use.setdefault(how, []).append(case)
    by_use[FITTED] = run.training
    uses = [(case_files(run.folder, cases), how) for how, cases in by_use.items()]
    total = sum(len(files) for files, _ in uses) + 1
    before, started = 0, time.monotonic()

    def tell(_: str, of_use: int, __: int) -> None:
        done = before + of_use
        if progress is not None:
            passed = time.monotonic() - started
            progress(done, total, passed / done * (total - done) if done else None)

    metrics = []
    for files, how in uses:
        if files:
            rows = evaluate_model(predictor, files, baseline, progress=tell)
            metrics += card_metrics(rows, how)
            before += len(files)
    case = (run.test or run.validation or run.training)[0]
    update = {"metrics": metrics, **cost(run.folder, case, str(predictor.device))}
    if progress is not None:
        progress(total, total, 0.0)
    return run.folder.with_description(run.folder.description.model_copy(update=update))


def case_files(folder: ModelFolder, cases: list[Case]) -> list[tuple[str, dict[str, Path], Path]]:
    """(case, the model's inputs by key, mask), as `evaluate_model` takes them."""
    return [(c.id, _inputs(folder, c), c.label) for c in cases if c.label is not None]


def _inputs(folder: ModelFolder, case: Case) -> dict[str, Path]:
    """Without channels of the data set that the model does not take."""
    keys = [spec.key for spec in folder.description.inputs]
    return {key: path for key, path in case.images.items() if key in keys}


def cost(folder: ModelFolder, case: Case, device: str) -> dict[str, Any]:
    """Fields of a description: what one `medseg predict` in a process of its own needs."""
    with tempfile.TemporaryDirectory(prefix="medseg-cost-") as out:
        command = [sys.executable, "-m", "medsegcore", "predict", "--model", str(folder.path)]
        for key, path in _inputs(folder, case).items():
            command += [f"--{key}", str(path)]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--out", out, "--device", device, "--json"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.05)
        _, complaint = process.communicate()
        if process.returncode != 0:
            raise RunError(f"The trained model does not run: {complaint.strip()}")
    timing = Timing(
        what="one case with start-up", device=device_name(device),
        seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
    return {"memory_mb": round(peak / 1e6), "timings": [timing]}
