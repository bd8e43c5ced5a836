"""Losses: one file per paper."""

from medsegcore.losses.rsanet import (
    ExponentiallyWeightedCrossEntropy,
    LesionLoss,
    exponential_weights,
)

__all__ = ["ExponentiallyWeightedCrossEntropy", "LesionLoss", "exponential_weights"]
