"""Data sets for training: reading, splitting, checking, and converting public ones."""

from medsegcore.training.datasets.dataset import Case, Channel, Dataset, read_dataset
from medsegcore.training.datasets.folds import (
    leave_one_patient_out,
    leave_one_site_out,
    split_folds,
)

__all__ = [
    "Case",
    "Channel",
    "Dataset",
    "leave_one_patient_out",
    "leave_one_site_out",
    "read_dataset",
    "split_folds",
]
