"""The longest scenario in real windows, on an X server without a screen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = Path(__file__).resolve().parent / "test_scenarios.py"
PROBE = "from PySide6.QtWidgets import QApplication; QApplication([])"


def onXServer(arguments, timeout):
    environment = {**os.environ, "QT_QPA_PLATFORM": "xcb"}
    command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1200x24", sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout
    )  # fmt: skip


@pytest.mark.slow
def test_a_radiologists_ten_minutes_pass_in_windows_too():
    if shutil.which("xvfb-run") is None:
        pytest.skip("there is no Xvfb: apt-get install xvfb")
    if onXServer(["-c", PROBE], 60).returncode != 0:
        pytest.skip("Qt finds no xcb libraries: `make system` names them")
    done = onXServer(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(SCENARIOS), "-k", "TenMinutes"], 250
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "1 passed" in done.stdout
