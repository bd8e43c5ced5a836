"""Which wheels a folder lacks, told before pip stops at the first."""

import zipfile
from email.parser import BytesHeaderParser
from pathlib import Path

from .Preflight import installedVersion, meets


def missingWheels(folder: Path, requirements: list[str]) -> list[str]:
    """What is neither installed nor in a folder, of requirements and all that they need.

    Args:
        folder: holds .whl files; those for another Python or system do not count.
        requirements: e.g. ["pydantic>=2.6"].
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wheels = _wheelsOf(folder)
    waiting = [Requirement(text) for text in requirements]
    seen, missing = set(), []
    while waiting:
        wanted = waiting.pop(0)
        name = canonicalize_name(wanted.name)
        needless = wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})
        if name in seen or needless or meets(installedVersion(wanted.name), str(wanted)):
            continue
        seen.add(name)
        fitting = {v: p for v, p in wheels.get(name, {}).items() if v in wanted.specifier}
        if fitting:
            waiting += [Requirement(text) for text in _needsOf(fitting[max(fitting)])]
        else:
            missing.append(f"{wanted.name}{wanted.specifier}")
    return missing


def _wheelsOf(folder: Path) -> dict:
    """{package: {version: wheel}} of those that this Python can use."""
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    usable = set(sys_tags())
    found: dict = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _build, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if tags & usable:
            found.setdefault(name, {})[version] = path
    return found


def _needsOf(wheel: Path) -> list[str]:
    """What the wheel's metadata says that it needs; nothing when it is damaged, as pip tells."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            return BytesHeaderParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])
    except (OSError, zipfile.BadZipFile, StopIteration):
        return []
