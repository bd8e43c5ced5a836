"""Run the module's self-test in the real application, and exit with 0 when it passes.

Slicer --no-splash --no-main-window --python-script Testing/slicer/run.py
"""

import sys
import traceback
from pathlib import Path

import slicer


def run() -> int:
    """The exit code of the self-test."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "SlicerMedSeg"))
    try:
        import SlicerMedSeg

        SlicerMedSeg.addCoreToPath()
        SlicerMedSeg.SlicerMedSegTest().runTest()
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    slicer.util.exit(run())
