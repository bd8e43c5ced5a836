"""The machine that the worker computes on, as far as it tells why a GPU is not used."""

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"
DISPLAY = "0x03"
SECONDS = 10


def describe_machine() -> dict[str, Any]:
    """What `hello` tells of the machine.

    Returns:
        python, torch: versions. cuda_build: CUDA version that torch was built for, None for a
        build without. cores: those that this process may use. nvidia: {name, driver} of the
        first NVIDIA card, driver None without a driver; None without a card. cuda_problem: why
        torch does not use that card, in its own words; empty when it does.
    """
    import torch

    card = nvidia_card()
    idle = card is not None and not torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda_build": torch.version.cuda,
        "cores": usable_cores(),
        "nvidia": card,
        "cuda_problem": _cuda_problem() if idle else "",
    }


def usable_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda_problem() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        # What follows the first sentence is advice on other programs.
        return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".") + "."
    return ""


@functools.cache
def nvidia_card() -> dict[str, str | None] | None:
    """Name and driver of the first NVIDIA card; the driver is None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        card = _ask_driver(program)
        if card is not None:
            return card
    # Linux lists a card by its maker whether it has a driver or not.
    for vendor in sorted(PCI_DEVICES.glob("*/vendor")):
        try:
            kind = (vendor.parent / "class").read_text()
            if vendor.read_text().strip() == NVIDIA and kind.startswith(DISPLAY):
                return {"name": "NVIDIA card", "driver": None}
        except OSError:
            continue
    return None


def _ask_driver(program: str) -> dict[str, str | None] | None:
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0), check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, comma, driver = answer.stdout.partition("\n")[0].rpartition(",")
    if answer.returncode != 0 or not comma:
        return None
    return {"name": name.strip(), "driver": driver.strip()}
