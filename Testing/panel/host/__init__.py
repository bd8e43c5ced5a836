"""A host that runs Slicer's scripted modules on a real Qt and the real MRML; see README.md."""

from .application import application
from .qtmodule import qt
from .run import Host

__all__ = ["Host", "application", "qt"]
