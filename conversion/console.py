"""What both commands share on the terminal: one-line errors, `--json`, a progress bar, bytes in words."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")


def run_command(name: str, body: Callable[[], int]) -> int:
    """Run `body`; what the user can do something about becomes one line on standard error and status 1."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            status = body()
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"small4 {name}: warning: {' '.join(message.split())}", file=sys.stderr)
        return status
    except (ValueError, OSError, MemoryError, ImportError, HfHubHTTPError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"small4 {name}: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"small4 {name}: interrupted; nothing was written", file=sys.stderr)
        return 1


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows bytes done of bytes in all on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    shown = [-1]

    def show(done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != shown[0]:
            shown[0] = percent
            print(f"\r{label}: {percent:3d} % of {describe_bytes(total)}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def describe_bytes(count: float) -> str:
    """1234567 -> "1.23 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
