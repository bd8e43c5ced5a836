"""Model folders: their schema, reading, writing, checking, packing and finding. No torch here."""

from medsegcore.models.archive import pack, unpack
from medsegcore.models.card import model_card
from medsegcore.models.folder import ModelFolder
from medsegcore.models.matching import Match, Score, VolumeFacts, match_inputs, score_input
from medsegcore.models.schema import (
    AttentionSpec,
    Code,
    DatasetUse,
    GridSpec,
    InputMatch,
    InputSpec,
    Label,
    Metric,
    ModelDescription,
    NetworkSpec,
    Normalisation,
    Parent,
    Terminology,
    Timing,
    TrainingRecord,
    WeightsSpec,
)
from medsegcore.models.store import ModelStore, StoredModel, user_folder

__all__ = [
    "AttentionSpec",
    "Code",
    "DatasetUse",
    "GridSpec",
    "InputMatch",
    "InputSpec",
    "Label",
    "Match",
    "Metric",
    "ModelDescription",
    "ModelFolder",
    "ModelStore",
    "NetworkSpec",
    "Normalisation",
    "Parent",
    "Score",
    "StoredModel",
    "Terminology",
    "Timing",
    "TrainingRecord",
    "VolumeFacts",
    "WeightsSpec",
    "match_inputs",
    "model_card",
    "pack",
    "score_input",
    "unpack",
    "user_folder",
]
