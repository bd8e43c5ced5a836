"""How sure a model is of its answer, as maps beside its attention. No torch here."""

from collections.abc import Mapping, Sequence

import numpy as np

from medsegcore.inference.attention import BIT, DEVIATION, SpatialAttention
from medsegcore.models import AttentionSpec

# How far the mirrored views of a tile disagree; the predictor collects it tile by tile.
SPREAD = AttentionSpec(
    key="uncertainty_mirroring",
    kind="spatial",
    title="Uncertainty: standard deviation over mirrorings",
)
# How far the passes with dropout disagree (Gal and Ghahramani, ICML 2016, section 4).
DROPOUT = AttentionSpec(
    key="uncertainty_dropout",
    kind="spatial",
    title="Uncertainty: standard deviation over dropout",
)
ENSEMBLE_KEY = "uncertainty_ensemble"
ENSEMBLE_TITLE = "Uncertainty: standard deviation over models"
ENTROPY_KEY = "uncertainty_entropy"
ENTROPY_TITLE = "Uncertainty: entropy of the answer (bit)"


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy in bits, 0..1, of lesion against background; highest where the probability is 0.5."""
    p = np.clip(probability.astype(np.float64), 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return np.nan_to_num(entropy).astype(np.float32)


def entropy_map(probabilities: Mapping[str, np.ndarray]) -> SpatialAttention:
    """The entropy of "some label" against background, from the probabilities of all labels.

    Args:
        probabilities: float32 [k, j, i] by label name, on the reference grid.
    """
    together = np.sum(list(probabilities.values()), axis=0)
    return SpatialAttention(ENTROPY_KEY, ENTROPY_TITLE, binary_entropy(together), 1.0, BIT)


def ensemble_map(members: Sequence[Mapping[str, np.ndarray]]) -> SpatialAttention:
    """Standard deviation over the models of the probability of "some label".

    Args:
        members: each model's probabilities, float32 [k, j, i] by label name, on one grid.
    """
    together = [np.sum(list(probabilities.values()), axis=0) for probabilities in members]
    deviation = np.std(together, axis=0).astype(np.float32)
    return SpatialAttention(ENSEMBLE_KEY, ENSEMBLE_TITLE, deviation, 1.0, DEVIATION)
