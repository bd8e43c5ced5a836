"""The parts of the SlicerMedSeg module."""
