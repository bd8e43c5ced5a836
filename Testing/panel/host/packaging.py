"""Slicer's module slicer.packaging, which slicer-core lacks: pip runs, in PythonSlicer.

Signatures, checks, prompts and dialogs are those of Slicer 5.13; only the progress dialog, which
asks nothing, is not shown, and nothing runs beside the interface.
"""

import importlib
import shlex
import types
from subprocess import CalledProcessError

import slicer


def load_requirements(path) -> list:
    from packaging.requirements import Requirement

    with open(path) as file:  # noqa: PTH123 as the original: paths and texts
        lines = [line.strip() for line in file]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def _requirements(given) -> list:
    from packaging.requirements import Requirement

    if isinstance(given, str):
        return [Requirement(text) for text in given.split()]
    if isinstance(given, Requirement):
        return [given]
    if isinstance(given, list):
        return [Requirement(one) if isinstance(one, str) else one for one in given]
    raise TypeError(f"Expected str, Requirement, or list, got {type(given).__name__}")


def pip_check(req) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    for one in _requirements(req):
        if one.marker is not None and not one.marker.evaluate():
            continue
        try:
            if version(one.name) not in one.specifier:
                return False
        except PackageNotFoundError:
            return False
    return True


def pip_ensure(
    requirements, constraints=None, skip_packages=None, prompt_install=True, prompt_restart=True,
    requester=None, skip_in_testing=True, show_progress=True,
):  # fmt: skip
    missing = [one for one in _requirements(requirements) if not pip_check(one)]
    if not missing or (skip_in_testing and slicer.app.testingEnabled()):
        return
    if prompt_install and not slicer.util.confirmOkCancelDisplay(
        f"{len(missing)} Python packages need to be installed.",
        f"{requester} - Install Python Packages",
    ):
        raise RuntimeError("User declined package installation")
    pip_install(
        [str(one) for one in missing], constraints=constraints, skip_packages=skip_packages,
        show_progress=show_progress, requester=requester,
    )  # fmt: skip
    importlib.invalidate_caches()


def pip_install(
    requirements, constraints=None, no_deps_requirements=None, skip_packages=None, blocking=True,
    show_progress=True, requester=None, parent=None, logCallback=None, completedCallback=None,
):  # fmt: skip
    if no_deps_requirements or skip_packages or not blocking:
        raise NotImplementedError("the host installs in the plain way alone")
    if isinstance(requirements, str):
        requirements = shlex.split(requirements)
    elif not isinstance(requirements, list):
        raise ValueError("pip_install requirement input must be string or list")
    arguments = ["install", *requirements]
    if constraints is not None:
        arguments += ["-c", str(constraints)]
    lines: list[str] = []
    try:
        slicer.util.executePythonModule("pip", arguments, logCallback=lines.append)
    except CalledProcessError as error:
        if show_progress:
            slicer.util.errorDisplay(
                "Package installation failed.",
                windowTitle=f"{requester} - Installation Failed",
                detailedText="\n".join(lines),
            )
        raise CalledProcessError(error.returncode, "pip install") from error


def pip_uninstall(requirements, blocking=True, logCallback=None, completedCallback=None) -> None:
    if isinstance(requirements, str):
        requirements = shlex.split(requirements)
    elif not isinstance(requirements, list):
        raise ValueError("pip_uninstall requirement input must be string or list")
    slicer.util.executePythonModule("pip", ["uninstall", *requirements, "--yes"])


def packagingModule() -> types.ModuleType:
    """`slicer.packaging`."""
    module = types.ModuleType("slicer.packaging")
    for function in (load_requirements, pip_check, pip_ensure, pip_install, pip_uninstall):
        setattr(module, function.__name__, function)
    return module
