"""What the nodes of a run are marked with."""

# Attributes by which the nodes of a run are found again, also after the scene was saved.
RUN = "MedSeg.Run"
ROLE = "MedSeg.Role"
KEY = "MedSeg.Key"
CHECKSUM = "MedSeg.Sha256"
INPUTS = "MedSeg.Input"
INPUT_FRAMES = "MedSeg.InputFrames"
INPUT_PLACES = "MedSeg.InputPlaces"
TITLE = "MedSeg.Title"
KIND = "MedSeg.Kind"
# What the values of a map are; see MapUnits.
UNIT = "MedSeg.Unit"
AXIS = "MedSeg.Axis"
# Of what holds places in the world: a reference to the run's segmentation, and what took the world
# of that time to the segmentation's own coordinates.
PLACED_WITH = "MedSeg.PlacedWith"
TO_LOCAL = "MedSeg.ToLocal"
# Of a segmentation that is one of several frames: its number, the series, and what has the frames.
FRAME = "MedSeg.Frame"
SERIES = "MedSeg.Series"
FRAMES_OF = "MedSeg.FramesOf"
# Random: by which a run that is saved as a training case again, and the volume of a patient of whom
# there is another case, are known.
TRAINING_RUN = "MedSeg.TrainingRun"
TRAINING_SUBJECT = "MedSeg.TrainingSubject"
