"""Whether MedSeg can run here, and if not, what is in the way: facts, and a sentence for each.

Nothing here imports what it looks for, opens a connection or changes anything, and no package is
needed that Slicer does not bring: this is what a bare Slicer shows.
"""

import importlib.metadata
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .Translation import _

RESTART, PACKAGES, TORCH, EXTENSION, WHEELS, INTERPRETER, AGAIN = (
    "restart", "packages", "torch", "extension", "wheels", "interpreter", "again"
)  # fmt: skip
TORCH_REQUIREMENT = "torch>=2.4"
MB = 1e6

# The rows of the card, from what has to be done first.
KEYS = ("restart", "failure", "packages", "torch", "wheels", "interpreter", "gpu", "memory", "disk")
# What the shipped model that needs most takes.
LEAST_FREE_MB = 1500.0
# Addresses that are kept for documents: nobody has them.
NOBODY = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


@dataclass(frozen=True)
class Problem:
    """One sentence and one button.

    Attributes:
        key: what it is about, one of `KEYS`.
        sentence: for the user.
        action: what the button does, one of the constants above.
        blocks: whether nothing can be segmented before it is solved.
    """

    key: str
    sentence: str
    action: str
    blocks: bool = True

    @property
    def button(self) -> str:
        """The button's text."""
        return {
            RESTART: _("Restart Slicer"),
            PACKAGES: _("Install packages"),
            TORCH: _("Install PyTorch"),
            EXTENSION: _("Install the extension"),
            WHEELS: _("Choose a wheel folder"),
            INTERPRETER: _("Choose another interpreter"),
            AGAIN: _("Check again"),
        }[self.action]


@dataclass(frozen=True)
class Disk:
    """A disk that MedSeg writes to.

    Attributes:
        purpose: what it is written for.
        path: the folder.
        freeMb, needMb: what is free and what one has to expect to need.
    """

    purpose: str
    path: Path
    freeMb: float
    needMb: float


@dataclass(frozen=True)
class Facts:
    """What is known of this machine; everything that the card shows follows from it.

    Attributes:
        python: interpreter or command of the worker, "" for Slicer's own Python.
        missing: requirements that Slicer's Python does not meet, e.g. "pydantic>=2.6,<3".
        torch: version in Slicer's Python, None without.
        extension: whether Slicer's extension PyTorch is there.
        worker: the worker's answer to hello, None before it.
        workerError: why the worker does not answer.
        disks: what MedSeg writes to.
        failure: of the last installation, None when it succeeded.
        stale: packages that were replaced while Slicer had the old ones loaded.
        offline: whether no network can be reached at all.
    """

    python: str = ""
    missing: tuple[str, ...] = ()
    torch: str | None = None
    extension: bool = True
    worker: Mapping[str, Any] | None = None
    workerError: str = ""
    disks: tuple[Disk, ...] = ()
    failure: Problem | None = None
    stale: tuple[str, ...] = ()
    offline: bool = False

    @property
    def machine(self) -> Mapping[str, Any]:
        """What the worker tells of its machine; empty before it does."""
        return (self.worker or {}).get("machine") or {}

    @property
    def device(self) -> Mapping[str, Any] | None:
        """Where the model will compute when the user chooses nothing."""
        devices = (self.worker or {}).get("devices") or []
        gpus = [device for device in devices if device["name"].startswith(("cuda", "mps"))]
        return next(iter(gpus or devices), None)


def gigabytes(mb: float, decimals: int = 1) -> str:
    """MB as GB for the user; here as in all of MedSeg 1 MB is 1e6 bytes and 1 GB is 1e9."""
    return f"{mb / 1000:.{decimals}f}"


def problems(facts: Facts) -> list[Problem]:
    """What is in the way, what has to be done first at the front."""
    return list(_installing(facts)) + list(_computing(facts))


def blocker(facts: Facts) -> str:
    """Why nothing can be segmented, "" when it can as far as is known."""
    return next((p.sentence for p in problems(facts) if p.blocks), "")


def readyLine(facts: Facts) -> str:
    """The one line that the card is when all is well; "" before the worker has answered."""
    device = facts.device
    if device is None:
        return ""
    if device["name"] == "cpu" and facts.machine:
        return _("Ready: CPU, {count} cores").format(count=facts.machine["cores"])
    title = _deviceTitle(device)
    if device["free_mb"] is None:
        return _("Ready: {device}").format(device=title)
    return _("Ready: {device}, {free} of {total} GB free").format(
        device=title, free=gigabytes(device["free_mb"]), total=gigabytes(device["total_mb"], 0),
    )  # fmt: skip


def _deviceTitle(device: Mapping[str, Any]) -> str:
    # What the system calls its CPU is often its architecture alone.
    return device["title"] if device["name"] != "cpu" else _("CPU")


def details(facts: Facts) -> list[str]:
    """What was found, a line each."""
    machine = facts.machine
    lines = [_("Computes with: {python}").format(python=facts.python or _("Slicer's own Python"))]
    if machine:
        cuda = machine["cuda_build"]
        build = _("built for CUDA {cuda}").format(cuda=cuda) if cuda else _("built without CUDA")
        lines.append(
            _("PyTorch {version}, {build}, Python {python}").format(
                version=machine["torch"], build=build, python=machine["python"]
            )
        )
        card = machine["nvidia"]
        if card:
            driver = card["driver"] or _("none")
            lines.append(_("{name}, driver {driver}").format(name=card["name"], driver=driver))
    elif facts.torch and not facts.python:
        lines.append(_("PyTorch {version}").format(version=facts.torch))
    for disk in facts.disks:
        lines.append(
            _("{purpose}: {free} GB free on the disk of {path}").format(
                purpose=disk.purpose, free=gigabytes(disk.freeMb), path=disk.path
            )
        )
    if facts.offline:
        lines.append(_("There is no network now."))
    lines.append(_("MedSeg connects to the network only when you click to install something."))
    return lines


# The checks.


def _installing(facts: Facts) -> Iterator[Problem]:
    if facts.stale:
        yield Problem(
            "restart",
            _("Slicer still has the old {names} loaded: restart it once.").format(
                names=", ".join(facts.stale)
            ),
            RESTART,
        )
    if facts.failure is not None:
        yield facts.failure
    if facts.missing:
        yield Problem(
            "packages",
            _("Slicer's Python lacks {names}, a small download that MedSeg needs.").format(
                names=", ".join(facts.missing)
            ),
            PACKAGES,
        )
    torch = _torchProblem(facts)
    if torch is not None:
        yield torch
    # Of wheels PyTorch is installed without its extension, too.
    fetched = bool(facts.missing) or torch is not None
    if fetched and (facts.failure is None or facts.failure.action != WHEELS):
        sentence = _("Without a network, install from a folder of wheels.")
        if facts.offline:
            sentence = _("This computer has no network now: install from a folder of wheels.")
        yield Problem("wheels", sentence, WHEELS, blocks=False)


def _torchProblem(facts: Facts) -> Problem | None:
    if facts.python:
        return None
    if facts.torch is None:
        sentence = _("Slicer's Python has no PyTorch, which computes the answer: a download of up "
                     "to 3 GB.")  # fmt: skip
    elif not meets(facts.torch, TORCH_REQUIREMENT):
        sentence = _("PyTorch {version} is too old: MedSeg needs {wanted}.").format(
            version=facts.torch, wanted=TORCH_REQUIREMENT.removeprefix("torch")
        )
    else:
        return None
    if not facts.extension:
        sentence = _("{problem} Slicer's extension PyTorch, which installs it, is not here."
                     ).format(problem=sentence)  # fmt: skip
        return Problem("torch", sentence, EXTENSION)
    return Problem("torch", sentence, TORCH)


def _computing(facts: Facts) -> Iterator[Problem]:
    if facts.workerError:
        yield Problem("interpreter", facts.workerError, INTERPRETER)
    gpu = _gpuProblem(facts)
    if gpu is not None:
        yield gpu
    device = facts.device
    if device is not None and device["free_mb"] is not None and device["free_mb"] < LEAST_FREE_MB:
        yield Problem(
            "memory",
            _(
                "Only {free} GB of memory are free on {device}, {need} GB should be: close other "
                "programs."
            ).format(
                free=gigabytes(device["free_mb"]), device=_deviceTitle(device),
                need=gigabytes(LEAST_FREE_MB),
            ),
            AGAIN,
            blocks=False,
        )  # fmt: skip
    low = [disk for disk in facts.disks if disk.freeMb < disk.needMb]
    if low:
        yield Problem(
            "disk",
            _(
                "{purpose}: only {free} GB are free on the disk of {path}, {need} GB should be."
            ).format(
                purpose=low[0].purpose,
                path=low[0].path,
                free=gigabytes(low[0].freeMb),
                need=gigabytes(low[0].needMb, 0),
            ),
            AGAIN,
            blocks=False,
        )


def _gpuProblem(facts: Facts) -> Problem | None:
    """An NVIDIA card that lies idle; the CPU computes meanwhile."""
    card, device = facts.machine.get("nvidia"), facts.device
    if not card or device is None or device["name"].startswith("cuda"):
        return None
    if card["driver"] is None:
        sentence = _("There is an NVIDIA card but no driver of NVIDIA's: install the driver and "
                     "restart the computer; the CPU computes until then.")  # fmt: skip
        return Problem("gpu", sentence, AGAIN, blocks=False)
    if facts.machine["cuda_build"] is None:
        sentence = _("PyTorch {version} computes on the CPU alone: the {name} needs a build for "
                     "CUDA.").format(version=facts.machine["torch"], name=card["name"])  # fmt: skip
        action = TORCH if facts.extension else EXTENSION
        return Problem("gpu", sentence, INTERPRETER if facts.python else action, blocks=False)
    sentence = _("PyTorch cannot use the {name} with its driver {driver}: {problem} Update the "
                 "driver; the CPU computes until then.")  # fmt: skip
    sentence = sentence.format(
        name=card["name"], driver=card["driver"], problem=facts.machine["cuda_problem"]
    )
    return Problem("gpu", sentence, AGAIN, blocks=False)


# How facts are found.


def installedVersion(name: str) -> str | None:
    """Version of a package of this Python, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def meets(version: str | None, requirement: str) -> bool:
    """Whether a version is what a requirement asks for, e.g. "torch>=2.4"."""
    from packaging.requirements import Requirement

    return version is not None and Requirement(requirement).specifier.contains(
        version, prereleases=True
    )


def readRequirements(path: str | Path) -> list[str]:
    """The requirements of a file, without its comments."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def unmetRequirements(requirements: list[str]) -> list[str]:
    """Those that this Python does not meet."""
    from packaging.requirements import Requirement

    return [r for r in requirements if not meets(installedVersion(Requirement(r).name), r)]


def measureDisks(models: Path | None, installing: bool) -> tuple[Disk, ...]:
    """The disks that MedSeg writes to, as far as they can be measured.

    Args:
        models: the user's models, None while that is not known.
        installing: whether PyTorch is to be installed.
    """
    # Four inputs of 512 x 512 x 300 voxels and their probabilities pass through the first; a
    # PyTorch for CUDA is 3 GB packed and 6 GB unpacked.
    wanted = [(_("Temporary files"), Path(tempfile.gettempdir()), 2000.0)]
    if models is not None:
        wanted.append((_("Models"), models, 500.0))
    if installing:
        wanted.append((_("PyTorch"), Path(sys.prefix), 9000.0))
    measured = ((purpose, path, freeMb(path), need) for purpose, path, need in wanted)
    return tuple(Disk(p, path, free, need) for p, path, free, need in measured if free is not None)


def isOffline() -> bool:
    """Whether this machine knows no way to any network; nothing is sent to find that out."""
    for family, address in NOBODY:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as way:
                # Of a datagram's socket this looks up the route alone.
                way.connect((address, 9))
            return False
        except OSError:
            continue
    return True


def freeMb(path: Path) -> float | None:
    """What is free on the disk of a folder that need not exist; None where it is not known."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free / MB
    except OSError:
        return None
