"""Observers that are taken off again, also when the scene goes."""

from collections.abc import Callable

import slicer


class Observers:
    """Keeps what was observed, so that one call ends all of it."""

    def __init__(self) -> None:
        self._tags: list[tuple] = []

    def add(self, subject, event, callback: Callable) -> None:
        """Call `callback(caller, event)` on each event of a VTK object."""
        self._tags.append((subject, subject.AddObserver(event, callback)))

    def clear(self) -> None:
        """Take all of them off."""
        tags, self._tags = self._tags, []
        for subject, tag in tags:
            subject.RemoveObserver(tag)

    def __len__(self) -> int:
        return len(self._tags)


def onSceneClose(observers: Observers, scene, callback: Callable[[], None]) -> None:
    """Call `callback` before a scene lets go of its nodes."""
    observers.add(scene, slicer.vtkMRMLScene.StartCloseEvent, lambda *_: callback())
