"""Inference: from images and a model folder to a Result.

`Result` and its parts load without torch; the predictors bring torch in when first asked for.
"""

from typing import TYPE_CHECKING

from medsegcore.inference.attention import (
    Attention,
    CorrelationAttention,
    SliceAttention,
    SpatialAttention,
)
from medsegcore.inference.lesions import Lesion
from medsegcore.inference.preprocess import Prepared, prepare
from medsegcore.inference.result import Result

if TYPE_CHECKING:
    from medsegcore.inference.ensemble import EnsemblePredictor
    from medsegcore.inference.predictor import Predictor

__all__ = [
    "Attention",
    "CorrelationAttention",
    "EnsemblePredictor",
    "Lesion",
    "Predictor",
    "Prepared",
    "Result",
    "SliceAttention",
    "SpatialAttention",
    "prepare",
]


def __getattr__(name: str) -> object:
    if name == "Predictor":
        from medsegcore.inference.predictor import Predictor

        return Predictor
    if name == "EnsemblePredictor":
        from medsegcore.inference.ensemble import EnsemblePredictor

        return EnsemblePredictor
    raise AttributeError(f"module 'medsegcore.inference' has no attribute '{name}'")
