"""LoRA on the demo checkpoint held in FP8, NVFP4 and 4 bits, on all experts, beside LoRA on it in bfloat16: how well
each learns an operation that the demo cannot do (`lunar`), and at which memory. In FP8 also with experts' adapters that
share a side (`share_expert_ranks`).

    python -m model_card.bench.lora_held [--steps 400] [--rows 300] [--out model_card/results/lora_held.json]

from the repository root; extra `train`. Each precision is converted with `small4 convert` and trained in a process of
its own, on the same rows in the same order: lunar sums mixed with sums and differences, which the demo knows. Held-out
accuracy is that of greedy answers before and after, with the adapter on the weights as they are held. Prints a table,
and one JSON line last.
"""

import argparse
import itertools
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from small4_conversion.convert import Options, convert
from transformers import AutoModelForCausalLM, AutoProcessor, set_seed

from model_card.bench import lunar
from model_card.bench.finetune import (
    HELD_OUT_SEED,
    LONGEST,
    NEW,
    RANK,
    RATES,
    own_row,
    train,
    training_rows,
    verdicts,
)
from model_card.bench.harness import child, peak_bytes, store
from model_card.demo_recipe.tasks import data
from model_card.evals.scores import share
from modeling_small4 import Small4DataCollator, demo_checkpoint, lora_targets, share_expert_ranks, stored_lora

SHARED = "_shared"
FORMS = ("bfloat16", "fp8", "nvfp4", "int4", "fp8" + SHARED)
KNOWN, KINDS = "arithmetic/high", {"sum", "difference"}  # what the demo can do, and should still do afterwards


def held_out(count: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by "task/mode"."""
    known = data.rows("held_out", HELD_OUT_SEED, tasks={"arithmetic": 1.0}, modes={"high": 1.0})
    return {
        NEW: list(itertools.islice(lunar.rows("held_out", HELD_OUT_SEED), count)),
        KNOWN: [own_row(row) for row in itertools.islice((row for row in known if row["kind"] in KINDS), count)],
    }


def one(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Convert, ask, train and ask again, in this process. `stored_bytes` are what the weights take after training."""
    convert(args.model, folder / args.one, Options(dtype=args.one.removesuffix(SHARED)))
    collator = Small4DataCollator(AutoProcessor.from_pretrained(folder / args.one), max_length=LONGEST)
    rows, asked = training_rows(collator, args, KINDS, seed=0), held_out(args.rows)
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / args.one, dtype=torch.bfloat16)
    before = {name: share(verdicts(model, collator, of_task)) for name, of_task in asked.items()}
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, **lora_targets("all+experts", model=model))
    tuned = get_peft_model(model, stored_lora(config, model))
    if args.one.endswith(SHARED):
        share_expert_ranks(tuned)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    seconds: list[float] = []

    def training() -> None:
        seconds.append(train(tuned, collator, rows, args.batch, RATES["lora"], str(folder / "trainer")))

    peak = peak_bytes(training, torch.device("cpu"))
    return {
        "stored_bytes": sum(parameter.nbytes for parameter in tuned.parameters() if not parameter.requires_grad),
        "before": before,
        "peak_bytes": peak,
        "seconds": round(seconds[0], 1),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "adapter_bytes": sum(parameter.nbytes for parameter in trained),
        "after": {name: share(verdicts(tuned, collator, of_task)) for name, of_task in asked.items()},
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Each precision in a process of its own."""
    given = [f"--{name}={getattr(args, name)}" for name in ("model", "steps", "batch", "share", "rows", "threads")]
    with ThreadPoolExecutor(args.at_once) as pool:
        found = pool.map(lambda form: child("model_card.bench.lora_held", "--one", form, *given), args.forms)
        rows = dict(zip(args.forms, found, strict=True))
    if "bfloat16" in rows:
        best = rows["bfloat16"]["after"][NEW]["accuracy"]
        for row in rows.values():
            row["points_below_bfloat16"] = round(100 * (best - row["after"][NEW]["accuracy"]), 2)
    settings = {name: getattr(args, name) for name in ("steps", "batch", "share", "rows", "threads", "at_once")}
    return {"rows": rows, "settings": settings | {"rank": RANK, "learning_rate": RATES["lora"]}}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Accuracy of both tasks before and after, bytes and seconds."""
    lines = [f"{'':<12}{'lunar before':>14}{'after':>8}{'known before':>14}{'after':>8}{'stored':>12}{'seconds':>9}"]
    for form, row in rows.items():
        cells = [row[when][task]["accuracy"] for task in (NEW, KNOWN) for when in ("before", "after")]
        lines.append(
            f"{form:<12}{cells[0]:>14.3f}{cells[1]:>8.3f}{cells[2]:>14.3f}{cells[3]:>8.3f}"
            f"{row['stored_bytes']:>12,}{row['seconds']:>9.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=demo_checkpoint())
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.5, help="part of the rows that is of the new operation")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows of each task")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=1, help="processes; with several, seconds say little")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        with tempfile.TemporaryDirectory(prefix="small4-bench-") as folder:
            print(json.dumps(one(args, Path(folder))))
        return
    found = measured(args)
    print(table(found["rows"]))
    store(args.out, found)


if __name__ == "__main__":
    main()
