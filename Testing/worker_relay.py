"""Stands for `ssh host`: a worker on the other side of a pipe that cannot see the client's folder.

    python worker_relay.py COMMAND ...

Everything passes through unchanged, except the folder in the client's first line: on another
computer there is nothing of that name.
"""

import os
import subprocess
import sys
import threading


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def back() -> None:
        while data := os.read(child.stdout.fileno(), 1 << 16):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    threading.Thread(target=back, daemon=True).start()
    first = sys.stdin.buffer.readline()
    child.stdin.write(first.replace(b'"folder":"/', b'"folder":"/elsewhere/'))
    while data := sys.stdin.buffer.read1(1 << 16):
        view = memoryview(data)
        while view:
            view = view[child.stdin.write(view) :]
    child.stdin.close()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
