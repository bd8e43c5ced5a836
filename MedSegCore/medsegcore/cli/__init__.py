"""The command line `medseg`.

Exit codes: 0 done, 1 a defect of MedSeg, 2 wrong usage, 3 an input, 4 a model, 5 the run
(device, memory), 6 an output, 130 cancelled.
"""

import os
import shlex
import signal
import sys
import traceback

from medsegcore.cli.console import Console
from medsegcore.errors import CancelledError, MedSegError


def main(arguments: list[str] | None = None) -> int:
    """Run `medseg` with these arguments (those of the process when None); gives the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Both belong to every command and may stand anywhere.
    console = Console(
        machine="--json" in arguments, debug="--debug" in arguments,
        command=shlex.join(["medseg", *arguments]),
    )  # fmt: skip
    arguments = [a for a in arguments if a not in ("--json", "--debug")]
    before = {s: signal.signal(s, _cancel) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        from medsegcore.cli.app import build_app

        build_app(console)(args=arguments, prog_name="medseg")
    except MedSegError as error:
        if console.debug:
            traceback.print_exc()
        return console.fail(error)
    except BrokenPipeError:
        # The reader, e.g. `head`, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as leaving:
        console.stop()
        return leaving.code if isinstance(leaving.code, int) else 1
    except Exception as error:
        if console.debug:
            traceback.print_exc()
        return console.fail(
            MedSegError(
                f"MedSeg failed unexpectedly: {type(error).__name__}: {error}.",
                "Run the command again with --debug and report what it says.",
            )
        )
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    return 0


def _cancel(signal_number: int, frame: object) -> None:
    # An exception, not an exit: what is half written gets removed on the way out.
    raise CancelledError("The command was cancelled.")


def run() -> None:
    """The entry point of the installed command."""
    sys.exit(main())
