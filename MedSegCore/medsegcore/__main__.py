"""`python -m medsegcore` is `medseg`."""

from medsegcore.cli import run

run()
