"""What all commands share on the terminal: quiet imports, one line for what went wrong, bytes in words. Must not know:
what a command does.

With `--debug`, or SMALL4_DEBUG=1 in the environment, nothing is hidden and an error shows its traceback.
"""

import argparse
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

# Errors whose message explains them. Any other is probably a bug here, and the message says so.
EXPECTED = (ValueError, OSError, MemoryError, ImportError, RuntimeError)


def debugging(words: Sequence[str]) -> bool:
    """Whether these arguments, or the environment, ask for tracebacks and all output."""
    return "--debug" in words or os.environ.get("SMALL4_DEBUG", "0") not in ("", "0")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """For the imports of the command line: what libraries print while they are imported, also from C code, is shown
    only if an import fails.

    Nothing happens in other programs. While `python -m` looks for the module to run, `sys.argv[0]` is "-m".
    """
    program = Path(sys.argv[0] if sys.argv else "")
    converter = program.name == "__main__.py" and program.parent.name in ("conversion", "small4_conversion")
    if not (program.stem in ("small4", "-m") or converter) or debugging(sys.argv[1:]):
        yield
        return
    with tempfile.TemporaryFile() as held:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in kept:
            os.dup2(held.fileno(), number)
        failed = True
        try:
            yield
            failed = False
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
            if failed:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))


def run_command(name: str, body: Callable[[], Any], debug: bool = False) -> int:
    """Run a command; an error becomes one line on standard error and status 1, a warning one line.

    Returns:
        The status: what `body` returns where that is a number, else 0.
    """
    try:
        with nullcontext() if debug else _warnings_in_one_line(name):
            status = body()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:  # the reader of the output has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\nsmall4 {name}: interrupted", file=sys.stderr)
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"small4 {name}: {_sentence(error)}", file=sys.stderr)
    return 1


@contextmanager
def _warnings_in_one_line(name: str) -> Iterator[None]:
    """Warnings for the user of a command, without the place in the code. Deprecations are for those who write code, and
    are hidden.
    """

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            print(f"small4 {name}: warning: {_one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = _one_line(error) or type(error).__name__
    return text if isinstance(error, EXPECTED) else f"unexpected {type(error).__name__}: {text}; --debug shows where"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def describe_bytes(count: float) -> str:
    """1234567 -> "1.2 MB"; units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 999.95:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


DRAFT = (
    "what drafts tokens, for several to be checked in one step: a folder or Hub repository of an EAGLE draft, "
    "a DFlash draft or a small model, or prompt_lookup; answers stay the same"
)


def add_expert_memory(parser: argparse.ArgumentParser) -> None:
    """Declare `--expert-memory`, of all commands that run a model."""
    parser.add_argument(
        "--expert-memory",
        metavar="SIZE",
        help="memory for routed experts, such as 48GiB or gpu=16GiB,cpu=48GiB; the others are read from disk as they "
        "are needed (default: all of them, or what fits). With gpu=16GiB,cpu=48GiB,compute=fastest the CPU computes "
        "experts in main memory where that is quicker than copying them",
    )
