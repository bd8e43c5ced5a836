"""MedSegCore: lesion segmentation with PyTorch, from training to an explained result."""

__version__ = "0.1.0"
