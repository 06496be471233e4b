"""Measure again what the card shows: the commands of `card/measures.py`, one after another, so that results are of one
machine and one commit.

    python -m model_card.bench.retake [--only NAME ...] [--without NAME ...] [--set SOURCE=DIR VENV=DIR] [--logs DIR]

from the repository root of a checkout without changes, on a machine that does nothing else. Each command writes its own
result as soon as it has one; what it prints goes to a file of its own in `--logs`. A command that names a folder
(SOURCE, VENV) runs when the folder is given. Prints the seconds of each; the exit status is 1 if a command failed.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from model_card.card.measures import MEASURES
from model_card.evals.record import ROOT

PLACES = ("SOURCE", "VENV")


def commands(only: list[str], without: list[str], places: dict[str, str]) -> dict[str, list[str] | None]:
    """Name -> the command with this interpreter and the places filled in; None where a place is not given."""
    if unknown := {*only, *without} - MEASURES.keys():
        raise ValueError(f"No results of these names: {', '.join(sorted(unknown))}. There are {', '.join(MEASURES)}.")
    if unknown := places.keys() - set(PLACES):
        raise ValueError(f"No command names {', '.join(sorted(unknown))}. Places are {' and '.join(PLACES)}.")
    if empty := [place for place, folder in places.items() if not folder]:
        raise ValueError(f"No folder is given for {', '.join(empty)}. Write --set {empty[0]}=DIR.")
    chosen = [name for name in MEASURES if name in (only or MEASURES) and name not in without]
    return {name: _filled(MEASURES[name], places) for name in chosen}


def _filled(command: str, places: dict[str, str]) -> list[str] | None:
    words = shlex.split(command)
    for place in PLACES:
        if any(word.split("/")[0] == place for word in words):
            if place not in places:
                return None
            words = [f"{places[place]}{word[len(place) :]}" if word.split("/")[0] == place else word for word in words]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def retake(chosen: dict[str, list[str] | None], logs: Path) -> dict[str, str]:
    """Run them; name -> how it went, in words."""
    logs.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, command in chosen.items():
        if command is None:
            found[name] = "left out: a place is not given"
        else:
            began = time.perf_counter()
            with (logs / f"{name}.log").open("wb") as log:
                status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
            seconds = f"{time.perf_counter() - began:.0f} s"
            found[name] = f"failed after {seconds}, see {logs / f'{name}.log'}" if status else seconds
        print(f"{name:<24}{found[name]}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure again what the card shows.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--set", nargs="+", default=[], metavar="PLACE=DIR", dest="places")
    parser.add_argument("--logs", type=Path, default=Path("retake-logs"))
    args = parser.parse_args()
    places = dict(place.partition("=")[::2] for place in args.places)
    try:
        chosen = commands(args.only, args.without, places)
    except ValueError as error:
        parser.error(str(error))
    return int(any(how.startswith("failed") for how in retake(chosen, args.logs).values()))


if __name__ == "__main__":
    sys.exit(main())
