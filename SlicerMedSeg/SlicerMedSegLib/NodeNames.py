"""What the nodes of a run are marked with."""

# Attributes by which the nodes of a run are found again, also after the scene was saved.
RUN = "MedSeg.Run"
ROLE = "MedSeg.Role"
KEY = "MedSeg.Key"
CHECKSUM = "MedSeg.Sha256"
INPUTS = "MedSeg.Input"
TITLE = "MedSeg.Title"
KIND = "MedSeg.Kind"
AXIS = "MedSeg.Axis"
