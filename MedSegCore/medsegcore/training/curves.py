"""Learning curves of finished trainings, from the TensorBoard files that they left."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from medsegcore.evaluation.plots import STYLE, look, svg

# Value by step.
Curve = dict[int, float]
PANELS = {"loss": "loss", "batch_dice": "Dice of the batch"}


def read_curve(run: Path, tag: str) -> Curve:
    """A scalar of a training; of several whose names begin so (one per modality) the mean.

    Steps that were repeated after a break count once, as they were repeated.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "curves"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    chosen = [tag] if tag in tags else [name for name in tags if name.startswith(f"{tag}_")]
    curves = [{event.step: event.value for event in events.Scalars(name)} for name in chosen]
    return {
        step: float(np.mean([curve[step] for curve in curves]))
        for step in sorted(curves[0] if curves else ())
        if all(step in curve for curve in curves)
    }


def draw_curves(runs: Mapping[str, Sequence[Path]]) -> str | None:
    """SVG of loss and Dice over the steps: a line for each name, the mean of its runs.

    Several runs of one name are thin lines behind it. None when no training was long enough to
    have a curve.

    Args:
        runs: folders of trainings by name.
    """
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(9.6, 4.2), layout="constrained")
        drawn = False
        for axes, (tag, title) in zip(canvas.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for n, (name, folders) in enumerate(runs.items()):
                curves = [curve for folder in folders if (curve := read_curve(folder, tag))]
                if not curves:
                    continue
                drawn = True
                color, marker = look(n)
                for curve in curves if len(curves) > 1 else []:
                    axes.plot(*zip(*curve.items(), strict=True), color=color, lw=0.6, alpha=0.4)
                steps = sorted(set.intersection(*(set(curve) for curve in curves)))
                means = [np.mean([curve[step] for curve in curves]) for step in steps]
                axes.plot(steps, means, color=color, marker=marker, markevery=0.2, ms=5, label=name)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("step")
        if not drawn:
            return None
        handles, names = canvas.axes[0].get_legend_handles_labels()
        canvas.legend(handles, names, loc="outside lower center", ncols=min(len(names), 3))
        return svg(canvas)
