"""A case: something damaged, who reads it, and what would be right. Judges what a reader does; knows no format."""

import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import small4_conversion

import modeling_small4

LONGEST = 600  # letters of an error, the names of folders not counted
REFUSED, ACCEPTED = "refused", "accepted"
HOST = "refused by transformers before this package is asked"
_OURS = tuple(str(Path(module.__file__ or "").parent) for module in (modeling_small4, small4_conversion))
Check = Callable[..., str | None]


def _is_clear(error: BaseException) -> str | None:
    ok = isinstance(error, (ValueError, OSError)) and not isinstance(error, UnicodeError)
    return None if ok else "another kind of error"


@dataclass
class Case:
    """One damaged thing.

    Attributes:
        what: the damage, in words.
        read: what is called.
        check: what is wrong with its result, None if nothing is.
        names: one of them stands in every error.
        kind: what is wrong with the kind of an error, None if nothing is.
        auto: it is read by an Auto class of transformers, which reads some files before it knows whose they are.
    """

    what: str
    read: Callable[[], object]
    check: Check = field(default=lambda result: None)
    names: tuple[str, ...] = ()
    kind: Callable[[BaseException], str | None] = _is_clear
    auto: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a case: whether the reader refused or accepted it, and what is wrong with that, if anything."""

    kind: str
    seed: int
    how: str
    fault: str | None = None


@dataclass
class Tally:
    """Cases of one kind, counted."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.how] += 1
        if outcome.fault is not None:
            self.faults.append(f"{outcome.kind}, seed {outcome.seed}: {outcome.fault}")


class Bench:
    """Where the cases of a process work: the sound folders, which stay as they are, and an empty one for each case."""

    def __init__(self, sound: Path, work: Path) -> None:
        self.sound, self.work = sound, work
        self._texts: dict[str, bytes] = {}

    def clear(self) -> Path:
        """The empty folder of the next case."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        return self.work

    def text(self, name: str) -> bytes:
        """The contents of a sound file, `folder/name`."""
        if name not in self._texts:
            self._texts[name] = (self.sound / name).read_bytes()
        return self._texts[name]

    def copy(self, name: str) -> Path:
        """A copy of a sound folder that may be damaged."""
        return shutil.copytree(self.sound / name, self.work / name)


Kind = Callable[[Bench, random.Random], Case]


def run(kind: str, make: Kind, seed: int, bench: Bench) -> Outcome:
    """Make the case of a seed, let it be read, and judge."""
    bench.clear()
    case = make(bench, random.Random(f"{kind} {seed}"))
    try:
        result = case.read()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not _is_ours(error) and case.auto:
            return Outcome(kind, seed, HOST)
        reason = wrong_with(error, case, bench)
        text = str(error)[:300]
        return Outcome(kind, seed, REFUSED, reason and f"{case.what}: {reason}: {type(error).__name__}: {text}")
    try:
        reason = case.check(result)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # Rust's panics are no Exception
        reason = f"{type(error).__name__} afterwards: {str(error)[:300]}"
    return Outcome(kind, seed, ACCEPTED, reason and f"{case.what}: accepted: {reason}")


def _is_ours(error: BaseException) -> bool:
    """Whether a function of the package was running when it was raised."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith(_OURS) for name in frames)


def wrong_with(error: BaseException, case: Case, bench: Bench) -> str | None:
    """What is wrong with an error, None if it is as it has to be."""
    if (reason := case.kind(error)) is not None:
        return reason
    message = str(error)
    if reason := unreadable(message.replace(str(bench.work), "")):
        return reason
    if case.names and not any(name in message for name in case.names):
        return f"names none of {', '.join(case.names)}"
    return None


def unreadable(message: str) -> str | None:
    """What is wrong with a message, None if it is one line of readable length."""
    if not message.strip():
        return "no message"
    if len(message.splitlines()) != 1:
        return "several lines"
    if not message.isprintable():
        return "letters that cannot be printed"
    return f"{len(message)} letters" if len(message) > LONGEST else None


__all__ = [
    "ACCEPTED",
    "HOST",
    "REFUSED",
    "Bench",
    "Case",
    "Kind",
    "Outcome",
    "Tally",
    "run",
    "unreadable",
    "wrong_with",
]
