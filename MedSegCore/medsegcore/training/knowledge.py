"""The confusion matrices q_a, q_b of UMMKD while it learns (figure 8 of the paper)."""

import io
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import matplotlib
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure as Canvas

from medsegcore.evaluation.plots import STYLE, svg
from medsegcore.files import write_file

FOLDER = "knowledge"
SHOWN = 5


class KnowledgeRecorder(Callback):
    """Writes q of both modalities, of the step's own batch, at intervals: one .npz each.

    A file is `step_00000100.npz` with an array [C, C] for each modality: row c tells how what the
    network says about the voxels of class c is spread over all classes.

    Args:
        folder: to write to.
        steps: of the whole training, which gets twenty files; every 100th step when None.
    """

    def __init__(self, folder: Path, steps: int | None):
        self.folder = folder
        self.every = 100 if steps is None else math.ceil(steps / 20)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (step > 1 and step % self.every):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        arrays = {key: q.float().cpu().numpy() for key, q in pl_module.objective.knowledge.items()}
        np.savez(content, **arrays)  # type: ignore[arg-type]
        write_file(self.folder / f"step_{step:08}.npz", content.getvalue())


def read_knowledge(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """By step, then by modality: [C, C]."""
    found = {}
    for file in sorted(folder.glob("step_*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            found[int(file.stem.removeprefix("step_"))] = dict(arrays)
    return found


def draw_knowledge(folder: Path, classes: list[str]) -> str:
    """SVG of heat maps: a row for each modality, a column for each of a few steps.

    Args:
        classes: names by class number, with the background.
    """
    found = read_knowledge(folder)
    every = list(found)
    chosen = sorted({every[n] for n in np.linspace(0, len(every) - 1, SHOWN).round().astype(int)})
    modalities = list(found[chosen[0]])
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        size = (2 * len(chosen) + 1.5, 2 * len(modalities) + 0.8)
        canvas = Canvas(figsize=size, layout="constrained")
        grid = canvas.subplots(
            len(modalities), len(chosen), squeeze=False, sharex=True, sharey=True
        )
        for axes_row, modality in zip(grid, modalities, strict=True):
            for axes, step in zip(axes_row, chosen, strict=True):
                shown = axes.imshow(found[step][modality], vmin=0, vmax=1, cmap="viridis")
                axes.set_title(f"{modality}, step {step}", fontsize=9)
                axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
                axes.set_yticks(range(len(classes)), classes, fontsize=7)
        canvas.colorbar(shown, ax=grid, label="share (rows sum to 1)")
        return svg(canvas)
