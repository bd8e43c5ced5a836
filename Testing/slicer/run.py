"""Run the module's self-test in the real application, and exit with 0 when it passes.

Slicer --no-splash --no-main-window --python-script Testing/slicer/run.py
"""

import sys
import traceback
from pathlib import Path

import slicer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "SlicerMedSeg"))

try:
    import SlicerMedSeg

    SlicerMedSeg.addCoreToPath()
    SlicerMedSeg.SlicerMedSegTest().runTest()
except Exception:
    traceback.print_exc()
    slicer.util.exit(1)
else:
    slicer.util.exit(0)
