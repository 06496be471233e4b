"""The command: runs every kind of case and the kills, prints what failed, and stores the counts.

    python -m model_card.evals.fuzz [--cheap 1000000] [--whole 10000] [--kills 300] [--processes 2]

Needs the extras `test` and `train`. A case is run again by its kind and seed: --only KIND --first SEED --cheap 1.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from model_card.evals.record import provenance, write

from . import kinds, pictures
from .cases import HOST, Kind, Tally
from .folders import write_sound
from .processes import run_blocks

RESULT = Path("model_card/results/fuzz.json")
SECONDS = 60  # of the processor, after which a case hangs
SHOWN = 100  # failures that are stored


def counts_of(kinds: dict[str, tuple[Kind, int]], total: int) -> dict[str, tuple[Kind, int]]:
    """So many cases of each kind that there are `total`, by the kinds' shares."""
    shares = sum(share for _, share in kinds.values())
    out = {name: (make, total * share // shares) for name, (make, share) in kinds.items()}
    first = next(iter(out))
    rest = total - sum(count for _, count in out.values())
    return out | {first: (out[first][0], out[first][1] + rest)}


def measure(
    kinds: dict[str, tuple[Kind, int]], sound: Path, first: int, processes: int, block: int, until: float
) -> dict[str, Any]:
    """Run the cases and count what came of them, for each kind."""
    found = {name: Tally() for name in kinds}
    began, shown = time.monotonic(), 0.0
    for name, tally in run_blocks(kinds, sound, first, processes, SECONDS, block, until):
        found[name].counts += tally.counts
        found[name].faults += tally.faults
        for fault in tally.faults:
            print(fault[:500], flush=True)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            done = sum(sum(each.counts.values()) for each in found.values())
            print(f"{done} cases, {shown - began:.0f} s", flush=True)
    rows = {name: _row(tally) for name, tally in found.items()}
    return {
        "cases": sum(row["cases"] for row in rows.values()),
        "failed": sum(row["failed"] for row in rows.values()),
        "kinds": rows,
        "failures": [fault[:500] for tally in found.values() for fault in tally.faults][:SHOWN],
    }


def _row(tally: Tally) -> dict[str, int]:
    counts = tally.counts
    return {
        "cases": sum(counts.values()), "refused": counts["refused"], "accepted": counts["accepted"],
        "refused_by_transformers": counts[HOST], "crashed": counts["crashed"], "failed": len(tally.faults),
    }  # fmt: skip


def quiet() -> None:
    """One thread for each process, and no words of libraries about damaged files."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()


def main() -> int:
    parser = argparse.ArgumentParser(description="Give damaged input to every reader, and count what comes of it.")
    parser.add_argument("--cheap", type=int, default=1_000_000, help="cases in which no model is built")
    parser.add_argument("--whole", type=int, default=10_000, help="cases that load, convert, verify or serve a model")
    parser.add_argument("--kills", type=int, default=300, help="runs that are killed at a random step")
    parser.add_argument("--only", help="one kind; nothing is stored then")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, help="begin no more cases after this; what ran is counted")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    quiet()
    origin = provenance(["python", "-m", "model_card.evals.fuzz", *sys.argv[1:]])
    result: dict[str, Any] = {"seeds_from": args.first, "processor_seconds_until_a_case_hangs": SECONDS}
    tables: list[tuple[str, dict[str, tuple[Kind, int]], int, int, float]] = [  # and until when, of the minutes
        ("kills", kinds.KILLS, args.kills, 10, 0.25),
        ("whole", kinds.WHOLE, args.whole, 50, 0.55),
        ("cheap", kinds.CHEAP, args.cheap, 2000, 1.0),
    ]
    began, minutes = time.monotonic(), float("inf") if args.minutes is None else args.minutes
    with tempfile.TemporaryDirectory() as name:
        sound = write_sound(Path(name) / "sound")
        pictures.sound()  # drawn once, for all processes that are forked from this one
        for table, each, total, block, share in tables:
            chosen = counts_of({kind: each[kind] for kind in each if args.only in (None, kind)} or each, total)
            if args.only is None or args.only in each:
                until = began + 60 * share * minutes
                result[table] = measure(chosen, sound, args.first, args.processes, block, until)
                print(table, {key: value for key, value in result[table].items() if key in ("cases", "failed")})
    if args.only is None:
        write(args.out, origin | result)
    return int(any(result[table]["failed"] for table in ("cheap", "whole", "kills") if table in result))


if __name__ == "__main__":
    sys.exit(main())
