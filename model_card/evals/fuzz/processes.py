"""Many cases in processes of their own, so that a crash, a hang or a flood of memory is one failed case and no more."""

import faulthandler
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

from .cases import Bench, Kind, Outcome, Tally, run

MEMORY = 3 << 30  # bytes that a process may map beyond what it has when it starts
ASLEEP = 15  # times the seconds of the processor that a case may take, on the clock: for one that only waits


@dataclass(order=True)
class _Block:
    """Cases of one kind, from seed `first` up to `last`."""

    kind: str
    first: int
    last: int


def fork() -> int:
    """`os.fork` with one thread of torch in the child: it would wait forever for OpenMP's other threads, which stay
    behind in its parent.
    """
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
    return child


def run_blocks(
    kinds: dict[str, tuple[Kind, int]],
    sound: Path,
    first: int,
    processes: int,
    seconds: int,
    block: int,
    until: float = float("inf"),
) -> Iterator[tuple[str, Tally]]:
    """Run all cases of all kinds, `processes` blocks at a time; yields the tally of each block as it is ready.

    Args:
        kinds: name -> (what makes a case, how many cases).
        first: seed of the first case of each kind.
        seconds: of the processor, after which a case counts as hanging; or `ASLEEP` times as long on the clock.
        block: cases of one process.
        until: when no more blocks are begun, on the monotonic clock. Blocks of all kinds take turns.
    """
    shares = sorted(
        ((begin + block - first) / count, number, _Block(name, begin, min(begin + block, first + count)))
        for number, (name, (_, count)) in enumerate(kinds.items())
        for begin in range(first, first + count, block)
    )
    waiting = deque(part for _, _, part in shares)
    running: dict[Connection, tuple[ForkProcess, _Block, Synchronized[int]]] = {}
    context = multiprocessing.get_context("fork")
    while waiting or running:
        if time.monotonic() > until:
            waiting.clear()
        while waiting and len(running) < processes:
            part = waiting.popleft()
            ours, theirs = context.Pipe(duplex=False)
            current: Synchronized[int] = context.Value("q", part.first)
            process = context.Process(target=_work, args=(part, kinds[part.kind][0], sound, seconds, theirs, current))
            process.start()
            theirs.close()
            running[ours] = (process, part, current)
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            process, part, current = running.pop(ready)
            tally, ended, why = Tally(), False, ""
            try:
                while True:
                    line = json.loads(ready.recv_bytes())
                    if ended := line is None:
                        break
                    if isinstance(line, str):
                        why = f": {line}"
                        continue
                    tally.add(Outcome(part.kind, *line))
            except EOFError:
                pass
            process.join()
            ready.close()
            if not ended:  # it died on this case; the others go on
                how = f"ended by {_signal(process.exitcode)}{why}"
                tally.add(Outcome(part.kind, current.value, "crashed", how))
                if current.value + 1 < part.last:
                    waiting.appendleft(_Block(part.kind, current.value + 1, part.last))
            yield part.kind, tally


def _signal(status: int | None) -> str:
    if status is None or status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}: no end within the time" if name in ("SIGALRM", "SIGPROF") else name


def _work(part: _Block, make: Kind, sound: Path, seconds: int, out: Connection, current: "Synchronized[int]") -> None:
    torch.set_num_threads(1)  # as `fork` says
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what libraries print about damaged files
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for limit in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(limit, signal.SIG_DFL)
    try:
        with tempfile.TemporaryDirectory() as name:
            bench = Bench(sound, Path(name) / "work")
            for seed in range(part.first, part.last):
                current.value = seed
                signal.setitimer(signal.ITIMER_PROF, seconds)
                signal.alarm(ASLEEP * seconds)
                outcome = run(part.kind, make, seed, bench)
                out.send_bytes(json.dumps([seed, outcome.how, outcome.fault]).encode())
    except Exception as error:  # between cases: the parent says which one it was
        out.send_bytes(json.dumps(f"{type(error).__name__}: {error}"[:300]).encode())
        raise
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    out.send_bytes(b"null")
