"""Several models of the same task as one: the mean of their answers, and how far they disagree."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsegcore.errors import ModelError
from medsegcore.imaging import Image
from medsegcore.inference.clock import Progress
from medsegcore.inference.predictor import Predictor
from medsegcore.inference.preprocess import check_same_task
from medsegcore.inference.result import Result
from medsegcore.inference.uncertainty import ENTROPY_KEY, ensemble_map, entropy_map
from medsegcore.models import ModelFolder, ModelStore


class EnsemblePredictor:
    """Predicts with each model and averages, e.g. the folds of a cross-validation.

    Args:
        models: two or more, as `Predictor` takes them.
        device, precision: as `Predictor`.

    Raises:
        ModelError: fewer than two, or not of the same inputs and labels.
    """

    def __init__(
        self,
        models: Sequence[str | Path | ModelFolder],
        device: str = "auto",
        precision: str = "auto",
    ):
        if len(models) < 2:
            raise ModelError(f"An ensemble of {len(models)} models is none.", "Give two or more.")
        folders = [m if isinstance(m, ModelFolder) else ModelStore().find(m) for m in models]
        check_same_task([folder.description for folder in folders])
        self.members = [Predictor(folder, device, precision) for folder in folders]
        self.description = self.members[0].description

    def predict(self, images: Mapping[str, Image], **settings: Any) -> Result:
        """Segment one case; `settings` as for `predict_in_turn`.

        Raises:
            MedSegError: as `Predictor.predict`.
        """
        return predict_in_turn(self.members, len(self.members), images, **settings)


def predict_in_turn(
    members: Iterable[Predictor],
    count: int,
    images: Mapping[str, Image],
    *,
    uncertainty: bool = False,
    thresholds: Mapping[str, float] | None = None,
    min_lesion_ml: float = 0.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    **settings: Any,
) -> Result:
    """Segment one case with one model after the other and average.

    The standard deviation over the models is always among the maps.

    Args:
        members: models of one task (`check_same_task`); each is asked for when it is its turn, so
            that they need not be in memory together.
        count: how many they are.
        images: Image by input key of the models.
        uncertainty: also give the entropy of the mean.
        thresholds: of the mean, by label name; the first model's own where none is given.
        min_lesion_ml, cancelled, settings: as `Predictor.predict`; the attention, and the
            uncertainty by mirroring and dropout, are the first model's.
        progress: as `Predictor.predict`, counting over all models.

    Raises:
        MedSegError: as `Predictor.predict`.
    """
    results: list[Result] = []
    for member in members:
        first = {"uncertainty": uncertainty}
        own = first if not results else {"attention": False, "dropout": 0}
        told = _as_part(progress, len(results), count)
        results.append(
            member.predict(images, progress=told, cancelled=cancelled, **{**settings, **own})
        )
        # Its memory is free before the next one is asked for.
        del member
    answers = [result.probabilities for result in results]
    mean = {
        name: np.mean([probabilities[name] for probabilities in answers], axis=0)
        for name in answers[0]
    }
    maps = [shown for shown in results[0].attention if shown.key != ENTROPY_KEY]
    maps.append(ensemble_map(answers))
    if uncertainty:
        maps.append(entropy_map(mean))
    timings = {
        stage: round(sum(result.timings[stage] for result in results), 3)
        for stage in results[0].timings
    }
    provenance = {
        **results[0].provenance,
        "models": [result.provenance["model"] for result in results],
    }
    together = replace(
        results[0], probabilities=mean, attention=maps, timings=timings, provenance=provenance
    )
    return together.relabel(thresholds or {}, min_lesion_ml, images)


def _as_part(progress: Progress | None, number: int, count: int) -> Progress | None:
    """The progress of model `number` (from 0) as that of all, as if each took as long."""
    if progress is None:
        return None

    def told(stage: str, done: int, total: int, left: float | None) -> None:
        whole, reached = count * total, number * total + done
        if left is not None and reached < whole:
            left = left * (whole - reached) / (total - done) if done < total else None
        progress(stage, reached, whole, left)

    return told
