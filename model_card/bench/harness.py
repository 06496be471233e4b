"""What every benchmark shares: options, interleaved timing, peak memory, a check before anything is timed, and how a
result is stored.

Knows nothing of models. A benchmark prints a table for people and one JSON line last.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small4_conversion.memory import peak_rss_bytes

from model_card.evals.record import provenance, write

Run = Callable[[], Any]


def options(doc: str, runs: int = 5, dtype: str = "bfloat16") -> argparse.ArgumentParser:
    """The options that all benchmarks of models take; `doc` is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=dtype)
    parser.add_argument(
        "--runs", type=int, default=runs, help="interleaved runs of each row, fewer where they are long"
    )
    parser.add_argument("--budget", type=float, default=60, help="seconds after which a row takes no further runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--out", type=Path, help="where to store the result")
    return parser


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parsed arguments, `device` and `dtype` as torch's objects, number of threads set."""
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.device, args.dtype = torch.device(args.device), getattr(torch, args.dtype)
    return args


def seconds(run: Run, device: torch.device) -> float:
    """How long one call takes, a GPU's work included."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def interleaved(args: argparse.Namespace, ours: Run, **others: Run) -> dict[str, Any]:
    """Medians of runs taken in turns, after a first round that warms up (and is all there is, should it exceed the
    budget). Each round begins with another one, so that none always runs after the same.

    Returns:
        `{"ours_ms", "<other>_ms", "speedup_<other>", "runs"}`; a speed-up is the median ratio within a round, above 1
        where ours is faster.
    """
    ways = {"ours": ours} | others
    rounds: list[dict[str, float]] = []
    while len(rounds) <= args.runs and sum(sum(r.values()) for r in rounds) < args.budget:
        first = len(rounds) % len(ways)
        turns = [*list(ways)[first:], *list(ways)[:first]]
        rounds.append({name: seconds(ways[name], args.device) for name in turns})
    kept = rounds[1:] or rounds
    row: dict[str, Any] = {f"{name}_ms": statistics.median(r[name] for r in kept) * 1e3 for name in ways}
    row |= {f"speedup_{name}": statistics.median(r[name] / r["ours"] for r in kept) for name in others}
    return row | {"runs": len(kept)}


def relative_error(mine: torch.Tensor, theirs: torch.Tensor, what: str, allowed: float = 0.02) -> float:
    """Median difference relative to the median size; ends the benchmark if it is more than allowed.

    The median, since in bfloat16 a token whose experts are close to a tie may choose others on either side.
    """
    error = ((mine - theirs).float().abs().median() / theirs.float().abs().median()).item()
    if not error <= allowed:
        raise SystemExit(f"Outputs differ by {error:.2g} of their size in {what}; nothing was timed.")
    return error


def peak_bytes(run: Run, device: torch.device) -> int:
    """Most memory held at once during a run beyond what was held before it, in bytes: of the GPU, or resident in this
    process.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed goes back, or this one could use it unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident
    before = peak_rss_bytes()
    run()
    return peak_rss_bytes() - before


def child(module: str, *arguments: Any) -> dict[str, Any]:
    """Run `python -m module arguments` in a process of its own; what its last line says."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(args: argparse.Namespace, result: dict[str, Any], columns: dict[str, str]) -> None:
    """Print `result["rows"]`, store and print all of it with where it comes from.

    Args:
        columns: Format of each column, by the key in a row: `{"ours_ms": "10.1f"}`. A row without the key shows a dash.
    """
    widths = {key: max(len(key), int(form.split(".")[0])) for key, form in columns.items()}
    first = max(map(len, result["rows"])) if result["rows"] else 1
    print(" " * first, *(f"{key:>{width}}" for key, width in widths.items()))
    for name, row in result["rows"].items():
        cells = (f"{row[key]:{form}}" if key in row else "-" for key, form in columns.items())
        print(f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths.values(), strict=True)))
    settings = {key: _plain(value) for key, value in vars(args).items() if key != "out" and value is not None}
    store(args.out, result | {"settings": settings, "device": _device(args)})


def store(out: Path | None, result: dict[str, Any]) -> None:
    """Write a result and where it comes from to `out`, if given, and print it as one line."""
    stored = result | provenance(["python", *sys.orig_argv[1:]])
    stored["versions"] |= result.get("versions", {})
    if out:
        write(out, stored, indent=2)
    print(json.dumps(stored))


def _plain(value: object) -> Any:
    return value if isinstance(value, (bool, int, float, str, list)) else str(value).removeprefix("torch.")


def _device(args: argparse.Namespace) -> str:
    return torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "cpu"
