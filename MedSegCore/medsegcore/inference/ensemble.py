"""Several models of the same task as one: the mean of their answers, and how far they disagree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsegcore.errors import ModelError
from medsegcore.imaging import Image
from medsegcore.inference.predictor import Predictor, Progress
from medsegcore.inference.result import Result
from medsegcore.inference.uncertainty import ensemble_map, entropy_map
from medsegcore.models import ModelFolder


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
        self.members = [Predictor(model, device, precision) for model in models]
        self.description = self.members[0].description
        for member in self.members[1:]:
            if _task(member) != _task(self.members[0]):
                raise ModelError(
                    f"'{member.description.id}' has other inputs or labels than "
                    f"'{self.description.id}'.",
                    "Take models of the same inputs and labels together.",
                )

    def predict(
        self,
        images: Mapping[str, Image],
        *,
        uncertainty: bool = True,
        thresholds: Mapping[str, float] | None = None,
        min_lesion_ml: float = 0.0,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> Result:
        """Segment one case.

        Args:
            images: Image by input key of the models.
            uncertainty: also give the standard deviation over the models and the entropy of the
                mean, as spatial maps.
            thresholds: of the mean, by label name; the first model's own where none is given.
            min_lesion_ml, progress, cancelled, settings: as `Predictor.predict`; the attention is
                the first model's.

        Raises:
            MedSegError: as `Predictor.predict`.
        """
        results = []
        for n, member in enumerate(self.members):
            attention = settings.get("attention", True) and n == 0
            results.append(
                member.predict(
                    images, progress=progress, cancelled=cancelled,
                    **{**settings, "attention": attention},
                )
            )  # fmt: skip
        members = [result.probabilities for result in results]
        mean = {
            name: np.mean([probabilities[name] for probabilities in members], axis=0)
            for name in members[0]
        }
        maps = list(results[0].attention)
        if uncertainty:
            maps += [ensemble_map(members), entropy_map(mean)]
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


def _task(predictor: Predictor) -> tuple:
    """What has to be the same in all models of an ensemble."""
    d = predictor.description
    inputs = sorted((spec.key, spec.required) for spec in d.inputs)
    return inputs, d.reference, [(label.value, label.name) for label in d.labels]
