"""A label's segment follows a threshold slider while it is dragged."""

from .RunSegments import RunSegments
from .SegmentRule import LOWEST


class LiveThreshold:
    """Moves the thresholds of a run's segments; a drag of the slider is one step of undo.

    Args:
        segments: of the run.

    Attributes:
        lowest, highest: the slider's range.
    """

    lowest, highest = LOWEST, 1.0

    def __init__(self, segments: RunSegments) -> None:
        self.segments = segments

    @property
    def labels(self) -> list[str]:
        """The labels that have a segment."""
        return list(self.segments.labels)

    def threshold(self, label: str) -> float:
        """Where the segment is cut now, also after undo and after the scene was loaded."""
        return self.segments.threshold(label)

    def edited(self, label: str) -> bool:
        """Whether the user edited the segment, so that it no longer follows."""
        return self.segments.edited(label)

    def setThreshold(self, label: str, value: float) -> int:
        """Cut at another threshold; only voxels between the old and the new one are touched.

        Returns:
            How many voxels of the segment changed.

        Raises:
            EditedSegmentError: the user edited the segment since; it stays as it is.
            SettingError: outside of `lowest` to `highest`.
        """
        if value == self.threshold(label) and not self.edited(label):
            return 0
        # Refused before the state is saved: an undo step that undoes nothing would be left.
        self.segments.checkCut(label, value)
        self.segments.begin()
        return self.segments.recut(label, value)

    def finishDrag(self) -> None:
        """The slider was let go: the next change is a new step of undo."""
        self.segments.finish()
