"""Checkpoints of a training: written as a whole or not at all, and read with a plain word."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from medsegcore.errors import ModelWeightsError, is_out_of_memory
from medsegcore.files import write_file


class WholeCheckpoints(TorchCheckpointIO):
    """Leaves the checkpoint that is there as it is until the new one is complete beside it.

    Lightning's own writes to the system's temporary folder; from another disk than the run's it
    is then copied over the old one, and a disk that fills up meanwhile leaves neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.getvalue())


def read_checkpoint(path: Path, action: str) -> dict[str, Any]:
    """A checkpoint, on the CPU; nothing in it is executed.

    Args:
        action: what to do about a damaged one.

    Raises:
        ModelWeightsError: it is cut off, empty, or no checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch has no error of its own for this, but EOFError, RuntimeError, KeyError and others.
        if is_out_of_memory(error):
            raise
        raise ModelWeightsError(f"The checkpoint '{path}' is damaged.", action) from error
