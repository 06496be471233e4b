"""Runs the Python code that the card shows, block by block in one session, and stores what each block prints.

    python -m model_card.evals.usage [--out model_card/results/usage.json]

from the repository root. The card shows stored output only beside the very code that was run.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from model_card.card.context import examples
from model_card.card.results import sha256
from model_card.evals.record import provenance, write
from modeling_small4 import demo_checkpoint

CARD = Path(__file__).resolve().parent.parent / "card.md"


def run(blocks: list[str]) -> list[dict[str, str]]:
    """For each block its `code` and what it `printed`."""
    session: dict[str, Any] = {}
    out = []
    for number, code in enumerate(blocks, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"card.md, example {number}", "exec"), session)
        out.append({"code": code, "printed": printed.getvalue()})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("model_card/results/usage.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = provenance(["python", "-m", "model_card.evals.usage"])
    record |= {"weights_sha256": sha256(demo_checkpoint() / "model.safetensors")}
    record["examples"] = run(examples(CARD.read_text("utf-8")))
    write(args.out, record)
    for example in record["examples"]:
        print(example["printed"])
    print(json.dumps(record))


if __name__ == "__main__":
    main()
