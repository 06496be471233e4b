"""Teach the demo checkpoint an operation it cannot do (`lunar`), wholly and with LoRA, and see what it keeps of what it
could.

    python -m model_card.bench.finetune --out model_card/results/finetune.json [--steps 400] [--ways full lora] [--threads 2]

from the repository root; extra `train`. What it could: the kinds of questions of the demo's data that it answers
rightly at least half the time. Training mixes the new operation with rows of those kinds. Held-out accuracy of both,
greedy, before and after, on the same rows, and the seconds of each training. Prints a table, and one JSON line last.
"""  # noqa: E501

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoProcessor, Trainer, TrainingArguments, set_seed

from model_card.bench import lunar
from model_card.demo_recipe.batches import chat, tools
from model_card.demo_recipe.tasks import data
from model_card.demo_recipe.tasks.judge import correct
from model_card.evals.record import provenance, write
from model_card.evals.scores import share
from modeling_small4 import Small4DataCollator, demo_checkpoint, lora_targets
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.training.evaluation import parsed_answers

RATES = {"full": 1.5e-4, "lora": 2e-3}
RANK = 16
LONGEST = 320  # tokens of a training row; the demo's longer ones are left out
NEW = "lunar/high"
HELD_OUT_SEED = 2000
MODES = {"retrieval": "none", "picture": "none"}  # the others are thought over


def own_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the demo's data as the collator takes it."""
    return {"messages": chat(row), "tools": tools(row), "reasoning_mode": row["mode"], "asked": row}


def training_rows(
    collator: Small4DataCollator, args: argparse.Namespace, kinds: set[str], seed: int
) -> list[dict[str, Any]]:
    """Encoded rows in the order of training: each step has the part `share` of the new operation, sorted by length to
    be cut in two.
    """
    count = args.steps * args.batch
    new = round(count * args.share)
    mixed = [
        *itertools.islice(lunar.rows("train", seed), new),
        *itertools.islice(own_rows(collator, kinds, seed), count - new),
    ]
    random.Random(seed).shuffle(mixed)
    encoded = [collator.encode(row) for row in mixed]
    steps = [encoded[start : start + args.batch] for start in range(0, len(encoded), args.batch)]
    return [row for step in steps for row in sorted(step, key=lambda row: len(row["input_ids"]))]


def own_rows(collator: Small4DataCollator, kinds: set[str], seed: int) -> Iterator[dict[str, Any]]:
    """The demo's training rows of these kinds, without cut thoughts and gaps."""
    for row in data.rows("train", seed, in_small_steps=True):
        if row["kind"] in kinds and row["budget"] < 0 and not row["gap"] and collator.fits(own := own_row(row)):
            yield own


def train(
    model: Small4ForCausalLM,
    collator: Small4DataCollator,
    rows: list[dict[str, Any]],
    batch: int,
    rate: float,
    folder: str,
) -> float:
    """Train in place, each step in two halves, shorter rows and longer ones; returns the seconds it took."""
    text = model.config.get_text_config()
    text.output_router_logits = text.router_aux_loss_per_layer = True  # the balance loss is on
    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch // 2, gradient_accumulation_steps=2,
            learning_rate=rate,
        warmup_steps=20, lr_scheduler_type="cosine", weight_decay=0.01, max_grad_norm=1.0, adam_beta2=0.98,
            logging_steps=20, save_strategy="no",
        train_sampling_strategy="sequential", remove_unused_columns=False, report_to=[], use_cpu=True,
            disable_tqdm=True,
    )  # fmt: skip
    started = time.perf_counter()
    Trainer(model=model, args=arguments, data_collator=collator, train_dataset=rows).train()
    text.output_router_logits = False
    return time.perf_counter() - started


def verdicts(model: Small4ForCausalLM, collator: Small4DataCollator, rows: list[dict[str, Any]]) -> list[bool]:
    """Which rows the model answers rightly; rows of the new operation carry their answer, others the row they are made
    of.
    """
    answers = parsed_answers(model, collator, rows, 25, do_sample=False, max_new_tokens=256)
    return [
        correct(row["asked"], said) if "asked" in row else lunar.is_right(row, said)
        for row, said in zip(rows, answers, strict=True)
    ]


def held_out(tasks: list[str], count: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by "task/mode", those of like length next to one another."""
    out = {NEW: list(itertools.islice(lunar.rows("held_out", HELD_OUT_SEED), count))}
    for task in tasks:
        mode = MODES.get(task, "high")
        rows = data.rows("held_out", HELD_OUT_SEED, tasks={task: 1.0}, modes={mode: 1.0})
        out[f"{task}/{mode}"] = sorted(
            (own_row(row) for row in itertools.islice(rows, count)), key=lambda row: len(str(row["messages"][:-1]))
        )
    return out


def known_kinds(asked: dict[str, list[dict[str, Any]]], right: dict[str, list[bool]]) -> set[str]:
    """Kinds of the demo's questions, asked at least ten times, that are answered rightly at least half the time."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for name in asked:
        for row, verdict in zip(asked[name], right[name], strict=True):
            if "asked" in row:
                seen[row["asked"]["kind"]].append(verdict)
    return {kind for kind, all_of in seen.items() if len(all_of) >= 10 and 2 * sum(all_of) >= len(all_of)}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    collator = Small4DataCollator(AutoProcessor.from_pretrained(args.model), max_length=LONGEST)
    asked = held_out(args.tasks, args.rows)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    right = {name: verdicts(base, collator, rows) for name, rows in asked.items()}
    kinds = known_kinds(asked, right)
    kept = {
        name: [i for i, row in enumerate(rows) if name == NEW or row["asked"]["kind"] in kinds]
        for name, rows in asked.items()
    }
    asked = {name: [asked[name][i] for i in places] for name, places in kept.items() if places}
    before = {name: share([right[name][i] for i in places]) for name, places in kept.items() if places}
    rows = training_rows(collator, args, kinds, seed=0)
    found: dict[str, Any] = {
        "steps": args.steps, "batch": args.batch, "share_of_new_rows": args.share, "threads": args.threads,
        "kinds": sorted(kinds), "before": before,
    }  # fmt: skip
    for way in args.ways:
        found[way] = taught(args, way, collator, rows, asked, before)
        print(f"{way}: {json.dumps(found[way])}", flush=True)
    return found


def taught(
    args: argparse.Namespace, way: str, collator: Small4DataCollator, rows: list[dict[str, Any]],
    asked: dict[str, list[dict[str, Any]]], before: dict[str, dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Train one way, then ask again."""
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if way == "lora":
        model = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=2 * RANK, **lora_targets("all+experts", model=model))
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(model, collator, rows, args.batch, RATES[way], folder)
    if way == "lora":
        model = model.merge_and_unload()  # answers the same, faster
    after = {name: share(verdicts(model, collator, of_task)) for name, of_task in asked.items()}
    lost = [before[name]["accuracy"] - after[name]["accuracy"] for name in after if name != NEW]
    return {
        "trained_parameters": trained, "learning_rate": RATES[way], "seconds": round(seconds, 1),
        "largest_loss_on_other_tasks": round(max(lost, default=0.0), 4), "after": after,
    }  # fmt: skip


def table(found: dict[str, Any], ways: list[str]) -> str:
    lines = [f"{'held out':<24}{'before':>9}" + "".join(f"{way:>9}" for way in ways)]
    for name, before in found["before"].items():
        lines.append(
            f"{name:<24}{before['accuracy']:>9.3f}"
            + "".join(f"{found[way]['after'][name]['accuracy']:>9.3f}" for way in ways)
        )
    lines.append(f"{'seconds of training':<33}" + "".join(f"{found[way]['seconds']:>9.0f}" for way in ways))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=demo_checkpoint())
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.25, help="part of the rows that is of the new operation")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows of each task")
    parser.add_argument("--tasks", nargs="*", default=[task for task in data.TASKS if task != "talk"])
    parser.add_argument("--ways", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measured(args)
    stored = provenance(["python", "-m", "model_card.bench.finetune", *sys.argv[1:]]) | found
    if args.out:
        write(args.out, stored)
    print(table(found, args.ways))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
