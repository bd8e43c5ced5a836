"""A model folder as one .zip, to hand on: packing, and unpacking without trust."""

import contextlib
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from medsegcore.errors import ModelArchiveError, OutputError
from medsegcore.models.folder import CARD_FILE, DESCRIPTION_FILE, ModelFolder, new_folder

MAX_UNPACKED_BYTES = 2_000_000_000
MAX_RATIO = 200


def pack(folder: ModelFolder, zip_path: str | Path) -> Path:
    """Write the model into one .zip (stored under its id), after checking it.

    Raises:
        ModelError: the folder is not sound.
        OutputError: the .zip cannot be written.
    """
    folder.verify()
    zip_path = Path(zip_path)
    temporary = None
    try:
        zip_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=zip_path.parent, prefix=f".{zip_path.name}-", delete=False
        ) as file:
            temporary = Path(file.name)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in (DESCRIPTION_FILE, folder.description.weights.file, CARD_FILE):
                    if (folder.path / name).is_file():
                        archive.write(folder.path / name, f"{folder.description.id}/{name}")
        temporary.chmod(0o644)
        temporary.replace(zip_path)
    except OSError as error:
        raise OutputError(f"'{zip_path}' cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return zip_path


def unpack(zip_path: str | Path, into: str | Path, deep: bool = True) -> ModelFolder:
    """Unpack a model .zip to `into`/<its id>, checked before it appears there.

    Args:
        deep: as `ModelFolder.verify`.

    Raises:
        ModelArchiveError: no .zip, damaged, or unsafe (paths outside, links, unknown files,
            more than 2 GB).
        ModelError: what is in it is not a sound model.
        OutputError: the folder exists already or cannot be written.
    """
    zip_path, into = Path(zip_path), Path(into)
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(zip_path))
            members = _checked_members(archive, zip_path)
        except (zipfile.BadZipFile, FileNotFoundError, IsADirectoryError) as error:
            raise ModelArchiveError(f"'{zip_path}' is missing or no .zip file.") from error
        with tempfile.TemporaryDirectory(prefix="medseg-unpack-") as temporary:
            for name, info in members.items():
                try:
                    with archive.open(info) as source, (Path(temporary) / name).open("wb") as to:
                        shutil.copyfileobj(source, to)
                except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
                    raise ModelArchiveError(
                        f"'{name}' in '{zip_path}' cannot be unpacked: {error}.",
                        "Copy the .zip again from its source.",
                    ) from error
            model = ModelFolder.read(temporary)
            model.verify(deep)
            target = into / model.description.id
            with new_folder(target) as folder:
                for name in members:
                    shutil.copyfile(Path(temporary) / name, folder / name)
    return ModelFolder.read(target)


def _checked_members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files by their plain names; everything that a model .zip has no use for is refused."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    total = 0
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]):
            raise _unsafe(path, f"'{info.filename}' points outside of its folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _unsafe(path, f"'{info.filename}' is a link")
        if info.is_dir():
            continue
        total += info.file_size
        if total > MAX_UNPACKED_BYTES:
            raise _unsafe(path, "its content is larger than 2 GB")
        if info.file_size > 1_000_000 and info.file_size > MAX_RATIO * info.compress_size:
            raise _unsafe(path, f"'{info.filename}' is compressed beyond reason")
        known = parts[-1] in (DESCRIPTION_FILE, CARD_FILE) or parts[-1].endswith(".safetensors")
        if not known or len(parts) > 2 or parts[-1] in members:
            raise _unsafe(path, f"'{info.filename}' does not belong into a model")
        folders.add(parts[:-1])
        members[parts[-1]] = info
    if DESCRIPTION_FILE not in members or len(folders) != 1:
        raise ModelArchiveError(
            f"'{path}' holds no model.", f"One folder with a {DESCRIPTION_FILE} is wanted."
        )
    return members


def _unsafe(path: Path, why: str) -> ModelArchiveError:
    return ModelArchiveError(
        f"'{path}' is refused: {why}.", "Use a .zip that `medseg models pack` made."
    )
