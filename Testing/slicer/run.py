"""Run the module's self-test in the real application, and exit with 0 when it passes.

Slicer --no-splash --ignore-slicerrc --python-script Testing/slicer/run.py
"""

import traceback
from pathlib import Path

import qt
import slicer

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"


def run() -> int:
    """The exit code of the self-test."""
    try:
        if not hasattr(slicer.modules, "slicermedseg"):
            factory = slicer.app.moduleManager().factoryManager()
            factory.registerModule(qt.QFileInfo(str(MODULE)))
            factory.loadModules([MODULE.stem])
        slicer.selfTests[MODULE.stem]()
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    slicer.util.exit(run())
