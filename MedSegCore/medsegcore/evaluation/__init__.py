"""Evaluation: measures, and models against reference masks."""
