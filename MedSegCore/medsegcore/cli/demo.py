"""`medseg demo`: the sample case through the shipped model, on the embedded Slicer core."""

import sys
from pathlib import Path

from medsegcore.cli.console import Console
from medsegcore.errors import MissingInputError


def run_demo(console: Console, out: Path) -> None:
    """Hand over to the extension's own demo, which lies beside this package in the project."""
    project = Path(__file__).resolve().parents[3]
    module, sample = project / "SlicerMedSeg", project / "Testing" / "data" / "ms_sample"
    if not module.is_dir() or not sample.is_dir():
        raise MissingInputError(
            "The demo needs the whole project, with its sample case and the Slicer module.",
            "Clone the project and run `make demo` there.",
        )
    sys.path.insert(0, str(module))
    from SlicerMedSegLib.Demo import runDemo

    runDemo(console, sample, out)
