"""Packages for Slicer's Python: PyTorch by its extension, the few others by Slicer's own means.

Nothing is installed, and nothing reaches for the network, before one of the methods is called.
What Slicer itself brings (numpy, scipy, SimpleITK) is never replaced.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import slicer

from medsegcore.errors import PackagesError

from .Preflight import (
    AGAIN,
    INTERPRETER,
    RESTART,
    TORCH_REQUIREMENT,
    WHEELS,
    Facts,
    Problem,
    blocker,
    installedVersion,
    readRequirements,
    unmetRequirements,
)
from .Translation import _
from .Wheels import missingWheels

OWN_OF_SLICER = ("numpy", "scipy", "SimpleITK")
REQUESTER = "MedSeg"
EXTENSION = "PyTorch"
RESTART_SETTING = "MedSeg/AfterRestart"
INSTALLED_SETTING = "MedSeg/InstalledPackages"
LONGEST = 400


class Packages(Protocol):
    """How packages get into Slicer's Python; what pip says is printed."""

    def ensure(self, requirements: Path, interactive: bool) -> None:
        """Install what a requirements file names and is not there."""

    def install(self, arguments: list[str], interactive: bool) -> None:
        """Run pip install with these arguments."""

    def uninstall(self, names: list[str]) -> None:
        """Remove packages."""


class PyTorch(Protocol):
    """Slicer's extension PyTorch."""

    def there(self) -> bool:
        """Whether the extension is installed."""

    def addExtension(self) -> None:
        """Install the extension; it is there after a restart."""

    def install(self) -> None:
        """Install the build of PyTorch that suits this computer."""

    def uninstall(self) -> None:
        """Remove PyTorch."""


class SlicerPackages:
    """`Packages` by `slicer.packaging`, before Slicer 5.11 by `slicer.util`.

    The user has clicked on a button that names the packages, so that nothing asks again.
    """

    def ensure(self, requirements: Path, interactive: bool) -> None:
        packaging = _slicerPackaging()
        if packaging is None:
            self.install(unmetRequirements(readRequirements(requirements)), interactive)
            return
        packaging.pip_ensure(
            packaging.load_requirements(str(requirements)), requester=REQUESTER,
            prompt_install=False, prompt_restart=False, show_progress=interactive,
        )  # fmt: skip

    def install(self, arguments: list[str], interactive: bool) -> None:
        packaging = _slicerPackaging()
        if packaging is None:
            slicer.util.pip_install(arguments)
        else:
            packaging.pip_install(arguments, show_progress=interactive, requester=REQUESTER)

    def uninstall(self, names: list[str]) -> None:
        slicer.util.pip_uninstall(names)


def _slicerPackaging() -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module("slicer.packaging")
    return None


class PyTorchExtension:
    """`PyTorch` by the extension's module PyTorchUtils."""

    def there(self) -> bool:
        return "PyTorchUtils" in sys.modules or importlib.util.find_spec("PyTorchUtils") is not None

    def addExtension(self) -> None:
        manager = slicer.app.extensionsManagerModel()
        interactive, manager.interactive = manager.interactive, False
        try:
            # Without its restart, which asks nobody whether the scene is saved.
            added = manager.installExtensionFromServer(EXTENSION, False)
        finally:
            manager.interactive = interactive
        if not added:
            raise RuntimeError(
                _("The extension PyTorch could not be installed from the Extensions Catalog.")
            )

    def install(self) -> None:
        """As above; the extension itself imports torch this once, to see that it works."""
        requirement = TORCH_REQUIREMENT.removeprefix("torch")
        _pyTorchLogic().installTorch(askConfirmation=False, torchVersionRequirement=requirement)

    def uninstall(self) -> None:
        _pyTorchLogic().uninstallTorch()


def _pyTorchLogic() -> Any:
    return importlib.import_module("PyTorchUtils").PyTorchUtilsLogic()


class Installation:
    """Installs on request, says in one sentence why it failed, and remembers over a restart.

    Args:
        requirements: file with the packages that are needed beside PyTorch.
        settings: of the application: `value(key)`, `setValue(key, text)`, `remove(key)`.
        packages: how packages are installed; Slicer's own means when None.
        pyTorch: how PyTorch is; its extension when None.

    Attributes:
        failure: of the last installation, None when it succeeded.
        stale: packages that were replaced while the old ones are loaded: only a restart helps.
        resumed: whether the application was restarted for an installation that is not complete.
    """

    def __init__(
        self,
        requirements: Path,
        settings,
        packages: Packages | None = None,
        pyTorch: PyTorch | None = None,
    ) -> None:
        self.requirements = requirements
        self.failure: Problem | None = None
        self.stale: tuple[str, ...] = ()
        self.resumed = False
        self._settings = settings
        self._packages = packages or SlicerPackages()
        self.pyTorch = pyTorch or PyTorchExtension()
        self._resume()

    # What the user can have done.

    def missing(self) -> tuple[str, ...]:
        """Requirements that are not met now."""
        return tuple(unmetRequirements(readRequirements(self.requirements)))

    def installPackages(self, interactive: bool = True) -> Problem | None:
        """Install what the requirements name; gives `failure`.

        Args:
            interactive: show Slicer's own progress; without it no window opens.
        """
        return self._do(lambda: self._packages.ensure(self.requirements, interactive))

    def installTorch(self) -> Problem | None:
        """Install PyTorch for this computer, in place of one that does not suit; gives `failure`.

        The worker must have ended: on Windows its files cannot be replaced while it runs.
        """

        def install() -> None:
            if installedVersion("torch") is not None:
                self.pyTorch.uninstall()
            self.pyTorch.install()

        return self._do(install)

    def installExtension(self) -> Problem | None:
        """Install Slicer's extension PyTorch; gives `failure`."""
        failure = self._do(self.pyTorch.addExtension)
        if failure is None:
            self._markStale((_("list of extensions"),))
        return failure

    def installWheels(self, folder: Path, torch: bool, interactive: bool = True) -> Problem | None:
        """Install what is missing from a folder of wheels, without a network; gives `failure`.

        Args:
            folder: holds the .whl files.
            torch: whether PyTorch is wanted too.
            interactive: as for `installPackages`.
        """
        wanted = [*self.missing(), *([TORCH_REQUIREMENT] if torch else [])]
        lacking = missingWheels(folder, wanted)
        if lacking:
            sentence = _(
                "The folder {folder} lacks wheels for Python {python} on this computer: {names}. "
                "Put them there, or choose another folder."
            ).format(
                folder=folder, python="{}.{}".format(*sys.version_info), names=", ".join(lacking)
            )
            self.failure = Problem("failure", sentence, WHEELS, blocks=False)
            return self.failure
        arguments = ["--no-index", "--find-links", str(folder), *wanted]
        return self._do(lambda: self._packages.install(arguments, interactive))

    def installed(self) -> list[str]:
        """The packages that MedSeg has installed and that are still there."""
        names = json.loads(self._settings.value(INSTALLED_SETTING) or "[]")
        return [name for name in names if installedVersion(name) is not None]

    def removeInstalled(self) -> Problem | None:
        """Remove all that MedSeg has installed; gives `failure`."""
        names = self.installed()
        if not names:
            return None
        failure = self._do(lambda: self._packages.uninstall(names))
        if failure is None:
            self._settings.remove(INSTALLED_SETTING)
        return failure

    # How it is done.

    def _do(self, action: Callable[[], None]) -> Problem | None:
        self.failure = None
        before, loaded = installedVersions(), set(sys.modules)
        with _listening() as said, _protected():
            try:
                action()
            # Whatever the extension, pip or Slicer raise is for the user to read.
            except Exception as error:
                self.failure = explain(said.getvalue(), str(error))
        importlib.invalidate_caches()
        self._remember(before, installedVersions(), loaded)
        return self.failure

    def _remember(self, before: Mapping[str, str], after: Mapping[str, str], loaded: set) -> None:
        names = {*self.installed(), *(name for name in after if name not in before)}
        if names:
            self._settings.setValue(INSTALLED_SETTING, json.dumps(sorted(names)))
        changed = tuple(n for n in before if n in after and before[n] != after[n])
        self._markStale(tuple(name for name in changed if _modules(name) & loaded))

    def _markStale(self, names: tuple[str, ...]) -> None:
        if names:
            self.stale = tuple(sorted({*self.stale, *names}))
            record = {"process": os.getpid(), "names": self.stale}
            self._settings.setValue(RESTART_SETTING, json.dumps(record))

    def _resume(self) -> None:
        text = self._settings.value(RESTART_SETTING)
        if not text:
            return
        record = json.loads(text)
        if record["process"] == os.getpid():
            # The panel was made anew, not the application.
            self.stale = tuple(record["names"])
            return
        self._settings.remove(RESTART_SETTING)
        self.resumed = True


def checkInstalled(requirements: Path, python: str | Sequence[str] | None) -> None:
    """Refuse to run without the packages of Slicer's Python, for what runs without the card.

    Args:
        requirements: as for `Installation`.
        python: of the worker; Slicer's own when empty.

    Raises:
        PackagesError: what is missing, and how to get it.
    """
    facts = Facts(
        python=str(python or ""),
        missing=tuple(unmetRequirements(readRequirements(requirements))),
        torch=installedVersion("torch"),
    )
    if sentence := blocker(facts):
        raise PackagesError(sentence, _("Open the module MedSeg, whose first card installs it."))


def installedVersions() -> dict[str, str]:
    """Version by name of all that this Python has."""
    found = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        # The first on the path is the one that is imported.
        if name and name.lower() not in found:
            found[name.lower()] = package.version
    return found


def _modules(name: str) -> set[str]:
    """The top-level modules of a package."""
    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if name in {n.lower() for n in names}}


@contextlib.contextmanager
def _protected() -> Iterator[None]:
    """pip and what runs it keep to the versions that Slicer brings, and ask nothing."""
    versions = {name: installedVersion(name) for name in OWN_OF_SLICER}
    # One that pip does not know of is not to be installed beside Slicer's.
    lines = [f"{n}=={v}" if v else f"{n}<0" for n, v in versions.items()]
    handle, name = tempfile.mkstemp(prefix="medseg-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    # As an address, because pip splits this variable at blanks.
    constraint = " ".join(filter(None, [os.environ.get("PIP_CONSTRAINT"), Path(name).as_uri()]))
    wanted = {"PIP_CONSTRAINT": constraint, "PIP_NO_INPUT": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        Path(name).unlink()


class _Listener(io.StringIO):
    """Keeps what is printed, and hands it on."""

    def __init__(self, shown) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.write(text)
        return super().write(text)


@contextlib.contextmanager
def _listening() -> Iterator[io.StringIO]:
    """Slicer prints each line of pip's, and hands it to nobody."""
    listener = _Listener(sys.stdout)
    with contextlib.redirect_stdout(listener):
        yield listener


def explain(log: str, error: str) -> Problem:
    """Why an installation failed, in pip's own words, and what to do.

    Args:
        log: all that pip said.
        error: what was raised.
    """
    said = f"{log}\n{error}"
    advice, action = next((a, act) for pattern, a, act in _advices() if re.search(pattern, said))
    sentence = _("The installation failed: '{words}' {advice}").format(
        words=_lastWords(log, error), advice=advice
    )
    return Problem("failure", sentence, action, blocks=False)


def _lastWords(log: str, error: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # What pip retried says why; its last line often only that nothing was found.
    tried = re.findall(r"connection broken by '(.+)': \S+$", log, re.MULTILINE)
    told = [line for line in lines if line.startswith("ERROR:")]
    words = " ".join([*tried[-1:], *told[-1:]] or lines[-2:] or [error])
    return words if len(words) <= LONGEST else words[:LONGEST] + "..."


def _advices() -> tuple[tuple[str, str, str], ...]:
    """What to do, and by which button, by what pip and Python say; the last fits everything."""
    network = _(
        "Check the network and the proxy (HTTPS_PROXY), or install from a folder of wheels."
    )
    return (
        # Older pips call this a ProxyError as well.
        (r"Cannot connect to proxy.*NewConnectionError", network, WHEELS),
        (r"ProxyError|Tunnel connection failed|\b407\b",
         _("Set HTTPS_PROXY to your proxy before Slicer starts, or install from a folder of "
           "wheels."), WHEELS),
        (r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
         _("Set PIP_CERT to your network's certificate file before Slicer starts, or install from "
           "a folder of wheels."), WHEELS),
        (r"Failed to establish a new connection|NameResolutionError|name resolution|getaddrinfo|"
         r"NewConnectionError|Network is unreachable|Connection refused|timed out|Max retries",
         network, WHEELS),
        (r"No space left on device|\[Errno 28\]|not enough space",
         _("Free some space on that disk and install again."), AGAIN),
        (r"ResolutionImpossible|conflicting dependencies",
         _("It would replace what Slicer itself needs, which MedSeg does not do: choose another "
           "interpreter."), INTERPRETER),
        (r"being used by another process|WinError 32|WinError 5",
         _("Restart Slicer and install again before anything is run."), RESTART),
        (r"Permission denied|\[Errno 13\]",
         _("Slicer's folder cannot be written: install Slicer into a folder of your own."), AGAIN),
        (r"No matching distribution found",
         _("There is none for this Python: take the current Slicer, or choose another "
           "interpreter."), INTERPRETER),
        ("", _("Slicer's error log has all of it (Ctrl+0)."), AGAIN),
    )  # fmt: skip
