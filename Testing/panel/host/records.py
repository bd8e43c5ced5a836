"""What went wrong without anything being raised to the caller: the host fails the test on it."""

import sys
import traceback

recorded: list[str] = []


def record(text: str) -> None:
    """Print what went wrong and keep it for the test to fail on."""
    print(text, file=sys.stderr)
    recorded.append(text)


def recordException() -> None:
    """The exception at hand is printed and does not go on, as with slots in the application."""
    record(traceback.format_exc())
