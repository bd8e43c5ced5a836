"""Prepared cases on disk, for data sets that do not fit into memory.

One safetensors file per case, which is mapped into memory: a patch that is cut out of it reads no
more of the file than the patch. Nothing is unpickled.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsegcore.errors import OutputError
from medsegcore.imaging import file_and_volume
from medsegcore.models import ModelDescription
from medsegcore.training.datasets.dataset import Case

# To be raised when the same description and files come to give other tensors.
FORMAT = 1


def cache_key(description: ModelDescription, case: Case) -> str:
    """A hash of all that decides what a case looks like to the network.

    That is how the inputs are prepared (grid, inputs, reference), the versions of the case's
    files (path, size and time of change), and `FORMAT`.
    """
    prepared = description.model_dump(
        mode="json", include={"grid", "inputs", "reference", "missing_input", "labels"}
    )
    files: list[tuple[str, str, int, int]] = []
    for name, path in [*case.images.items(), ("label", case.label)]:
        if path is not None:
            stat = Path(file_and_volume(path)[0]).stat()
            files.append((name, str(path.absolute()), stat.st_size, stat.st_mtime_ns))
    text = json.dumps([FORMAT, prepared, sorted(files)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_cached(
    folder: str | Path, key: str, build: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of `key`, built and written when they are not there, then mapped into memory.

    Changing them in place changes nothing on disk. Several processes may ask for one key: each
    that finds nothing builds it, and the last one's file stays.

    Args:
        folder: of the cache; made when absent.
        key: `cache_key`.
        build: makes the tensors, on the CPU.

    Raises:
        OutputError: the file cannot be written.
    """
    file = Path(folder) / f"{key}.safetensors"
    if file.is_file():
        try:
            return load_file(file)
        except SafetensorError:
            # Cut by a full disk or a crash of the machine: made again.
            pass
    _write(file, build())
    return load_file(file)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=file.parent)
        os.close(handle)
        # Copies, because the format takes no two tensors that share memory.
        save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"The cache file '{file}' cannot be written: {error}.",
            "Check the free space and the permissions, or train without a cache.",
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
