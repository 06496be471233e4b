"""`small4 card`: measures the requested results again, then renders the model card. Both are in `model_card/`, which
only a clone has.

Must not know: what the card says, how anything is measured.
"""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 card`."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("build/card"),
        help="where README.md and charts go (default: build/card)",
    )
    parser.add_argument(
        "--measure", metavar="NAME", nargs="+", default=[],
        help="results to measure again first, by the names of their files (decode, demo_eval, ...); all measures "
            "every one, which takes long",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Measure, render, and print which files were written.

    Raises:
        ValueError: No clone is here, a result is unknown, or a number that the card states is not stored.
        RuntimeError: A measurement failed.
    """
    root = clone()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    measures = importlib.import_module("model_card.card.measures").MEASURES
    for name in chosen(args.measure, measures):
        measure(name, measures[name], root)
    written = importlib.import_module("model_card.card.render").render(args.out)
    if args.json:
        print(json.dumps({"card": str(written[0]), "files": [str(file) for file in written]}))
    else:
        print("\n".join(map(str, written)))


def clone() -> Path:
    """The repository: where this package lies in one, or the current directory.

    Raises:
        ValueError: Neither is a clone; a wheel carries no results.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "model_card" / "card" / "render.py").is_file() and (root / "modeling_small4").is_dir():
            return root
    raise ValueError(
        "The card's template and results are in the repository, not in the installed package; run small4 card inside "
        "a clone of it."
    )


def chosen(asked: list[str], measures: dict[str, str]) -> list[str]:
    """The results to measure, each once; "all" leaves out those that need other programs or files (their path stands as
    VENV or SOURCE in the command).

    Raises:
        ValueError: A name that is not in `measures`, or one that needs other programs.
    """
    unknown = [name for name in asked if name not in measures and name != "all"]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such result; known are all, {', '.join(measures)}.")
    elsewhere = [name for name, command in measures.items() if "VENV/" in command or "SOURCE/" in command]
    for name in elsewhere:
        if name in asked:
            raise ValueError(
                f"{name} needs other programs or files; say where they are, and run it yourself: {measures[name]}"
            )
    return [name for name in measures if name not in elsewhere] if "all" in asked else list(dict.fromkeys(asked))


def measure(name: str, command: str, root: Path) -> None:
    """Runs a result's command in the clone; its prints go to standard error."""
    program, *words = shlex.split(command)
    line: list[Any] = [sys.executable if program == "python" else program, *words]
    print(f"{name}: {command}", file=sys.stderr)
    done = subprocess.run(line, cwd=root, stdout=sys.stderr, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} was not measured: {command} ended with status {done.returncode}.")
