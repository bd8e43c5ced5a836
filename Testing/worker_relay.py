"""Stands for `ssh host`: a worker on the other side of a pipe that cannot see the client's folder.

    python worker_relay.py COMMAND ...

Everything passes through unchanged, except the folders that the client names, its own and those of
models: on another computer there is nothing of that name.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def back() -> None:
        while data := os.read(child.stdout.fileno(), 1 << 16):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    threading.Thread(target=back, daemon=True).start()
    while line := sys.stdin.buffer.readline():
        message = json.loads(line)
        options = message.get("options", {})
        for named, key in ((message.get("share", {}), "folder"), (message, "model")):
            if key in named:
                named[key] = elsewhere(named[key])
        if "ensemble" in options:
            options["ensemble"] = [elsewhere(model) for model in options["ensemble"]]
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        view = memoryview(data + sys.stdin.buffer.read(message.get("bytes", 0)))
        while view:
            view = view[child.stdin.write(view) :]
    child.stdin.close()
    return child.wait()


def elsewhere(name: str) -> str:
    """A folder's name as it means nothing there; an id stays."""
    return f"/elsewhere{name}" if Path(name).is_absolute() else name


if __name__ == "__main__":
    sys.exit(main())
