"""A registration in a process of its own: python -m medsegcore.imaging.registration_process FOLDER.

The folder holds request.json (affines of both images, kind), fixed.npy and moving.npy. Events go
to stdout as JSON lines: progress {share}, result {before, after}, error {code, message, action}.
The transform is in transform.h5 once the result was told. The process ends when its stdin closes,
so that none is left behind when the one who started it dies.
"""

import json
import os
import sys
import threading
from pathlib import Path

import numpy as np

from medsegcore.errors import MedSegError
from medsegcore.imaging.image import Image
from medsegcore.imaging.registration import register

REQUEST, TRANSFORM = "request.json", "transform.h5"


def main(folder: Path) -> int:
    """Register what lies in the folder; gives the exit code."""
    import SimpleITK as sitk

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        fixed, moving = (
            Image(np.load(folder / f"{name}.npy"), np.array(request[name]))
            for name in ("fixed", "moving")
        )
        found = register(
            fixed, moving, request["kind"], progress=lambda share: _say("progress", share=share)
        )
        # Files hold no transforms within transforms.
        flat = sitk.CompositeTransform(found.transform)
        flat.FlattenTransform()
        sitk.WriteTransform(flat, str(folder / TRANSFORM))
        _say("result", before=found.quality_before, after=found.quality_after)
    except MedSegError as error:
        _say("error", code=error.code, message=error.message, action=error.action)
        return error.exit_code
    return 0


def _say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held here, would end the interpreter by a crash.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
