"""The tags by which a segment tells how it came about."""

import vtk

LABEL = "MedSeg.Label"
THRESHOLD = "MedSeg.Threshold"
MIN_ML = "MedSeg.MinLesionMl"
ONE_PIECE = "MedSeg.OnePiece"
DROPPED = "MedSeg.Dropped"
CHECKSUM = "MedSeg.Checksum"
# Of the first segment: the last step of the panel, and checksum of all segments as it left them.
LEFT = "MedSeg.Left"


def readTag(segment, name: str) -> str:
    """The tag's text; empty when there is none."""
    text = vtk.reference("")
    return str(text) if segment.GetTag(name, text) else ""
