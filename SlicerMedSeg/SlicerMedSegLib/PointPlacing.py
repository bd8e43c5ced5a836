"""The application's own placing of a markups point, for one click."""

from collections.abc import Callable

import slicer

from .Observing import Observers


class PointPlacing:
    """Lets the user put the one point of a markups node somewhere else by a click in a view.

    Args:
        scene: MRML scene.
        changed: called with whether the user is placing now.
    """

    def __init__(self, scene, changed: Callable[[bool], None]) -> None:
        self.scene, self._changed = scene, changed
        self._observers = Observers()

    def start(self, pointNode) -> None:
        """The next click in a view places the node's point; the one before goes."""
        self.stop()
        interaction = self._node("vtkMRMLInteractionNodeSingleton")
        selection = self._node("vtkMRMLSelectionNodeSingleton")
        if interaction is None or selection is None:
            self._changed(False)
            return
        pointNode.RemoveAllControlPoints()
        selection.SetReferenceActivePlaceNodeClassName(pointNode.GetClassName())
        selection.SetActivePlaceNodeID(pointNode.GetID())
        interaction.SetPlaceModePersistence(0)
        interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.Place)
        self._observers.add(
            interaction,
            slicer.vtkMRMLInteractionNode.InteractionModeChangedEvent,
            lambda *_a: self._modeChanged(interaction),
        )
        self._changed(True)

    def stop(self) -> None:
        """Place no more; harmless when nothing is placed."""
        if not len(self._observers):
            return
        self._observers.clear()
        interaction = self._node("vtkMRMLInteractionNodeSingleton")
        if interaction is not None and _placing(interaction):
            interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
        self._changed(False)

    def _modeChanged(self, interaction) -> None:
        if not _placing(interaction):
            self.stop()

    def _node(self, nodeId: str):
        return self.scene.GetNodeByID(nodeId)


def _placing(interaction) -> bool:
    return interaction.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place
