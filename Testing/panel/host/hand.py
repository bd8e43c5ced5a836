"""The scenarios' hand on the host: what QTest does instead of what Qt is sent."""

import slicer

from SlicerMedSegLib.Hand import Hand


class HostHand(Hand):
    """A `Hand` whose clicks, drags and keys are the host's.

    Args:
        host: `Host` with the panel.
        panel: the module's widget object.
    """

    def __init__(self, host, panel) -> None:
        super().__init__(panel)
        self._host = host

    def clickAt(self, widget, x, y) -> None:
        self._host.click(widget, (round(x), round(y)))

    def drag(self, name, value) -> None:
        self._host.dragSlider(self.reachable(name), value)

    def choose(self, name, text) -> None:
        self._host.choose(self.reachable(name), text)

    def type(self, name, text) -> None:
        self._host.type(self.reachable(name), text)

    def wait(self, milliseconds) -> None:
        self._host.wait(milliseconds)

    def saveScene(self, path) -> None:
        self._host.core.saveScene(path)

    def loadScene(self, path) -> None:
        slicer.mrmlScene.Clear()
        self._host.core.loadScene(path)
