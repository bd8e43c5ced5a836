"""Files that appear as a whole or not at all."""

import os
from pathlib import Path

from medsegcore.errors import OutputError


def write_file(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to a temporary name in the same folder, then rename.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror}.",
            "Check the free space and the permissions.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
