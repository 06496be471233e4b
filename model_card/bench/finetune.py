"""Teach the demo checkpoint an operation it cannot do (`lunar`), wholly and with LoRA, and see what it keeps of what it could.

    python -m model_card.bench.finetune --out model_card/results/finetune.json [--steps 400] [--ways full lora] [--threads 2]

from the repository root; extra `train`. Batches mix the new operation with rows of the demo's own training data. Held-out accuracy of
both, greedy, before and after, and the seconds of each training. Prints a table, and one JSON line last.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from small4_conversion.demo.batches import chat, tools
from small4_conversion.demo.data import TASKS, dataset
from small4_conversion.demo.judge import correct
from transformers import AutoModelForCausalLM, AutoProcessor, Trainer, TrainingArguments, set_seed

from model_card.bench import lunar
from model_card.evals.record import provenance
from model_card.evals.scores import share
from modeling_small4 import Small4DataCollator, demo_checkpoint, lora_targets
from modeling_small4.answer_evaluation import answer

RATES = {"full": 1e-3, "lora": 4e-3}
RANK = 16
LONGEST = 320  # tokens of a training row; the demo's longer ones are left out
HELD_OUT_SEED = 2000
MODES = {"retrieval": "none", "picture": "none"}  # the others are thought over


def own_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the demo's data as the collator takes it."""
    return {"messages": chat(row), "tools": tools(row), "reasoning_mode": row["mode"], "asked": row}


def training_rows(collator: Small4DataCollator, args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Encoded rows in the order of training: each step has the part `share` of the new operation, sorted by length to be cut in two."""
    count = args.steps * args.batch
    new = round(count * args.share)
    tasks = {task: TASKS[task] for task in args.replay}
    drawn = dataset("train", 2 * (count - new), seed, tasks=tasks)
    own = map(own_row, (row for row in drawn if row["budget"] < 0 and not row.get("gap")))
    mixed = [
        *itertools.islice(lunar.rows("train", seed), new),
        *itertools.islice(filter(collator.fits, own), count - new),
    ]
    random.Random(seed).shuffle(mixed)
    rows = [collator.encode(row) for row in mixed]
    steps = [rows[start : start + args.batch] for start in range(0, len(rows), args.batch)]
    return [row for step in steps for row in sorted(step, key=lambda row: len(row["input_ids"]))]


def train(
    model: Any, collator: Small4DataCollator, rows: list[dict[str, Any]], batch: int, rate: float, folder: str
) -> float:
    """Train in place, each step in two halves, shorter rows and longer ones; returns the seconds it took."""
    text = model.config.get_text_config()
    text.output_router_logits = text.router_aux_loss_per_layer = True  # the balance loss is on
    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch // 2, gradient_accumulation_steps=2, learning_rate=rate,
        warmup_steps=20, lr_scheduler_type="cosine", weight_decay=0.01, max_grad_norm=1.0, adam_beta2=0.98, logging_steps=20, save_strategy="no",
        train_sampling_strategy="sequential", remove_unused_columns=False, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    started = time.perf_counter()
    Trainer(model=model, args=arguments, data_collator=collator, train_dataset=rows).train()
    text.output_router_logits = False
    return time.perf_counter() - started


def score(model: Any, collator: Small4DataCollator, count: int, tasks: list[str]) -> dict[str, dict[str, Any]]:
    """Held-out accuracy of the new operation and of each of the demo's tasks, always on the same rows."""
    new = list(itertools.islice(lunar.rows("held_out", HELD_OUT_SEED), count))
    answers = answer(model, collator, new, 50, do_sample=False, max_new_tokens=96)
    out = {"lunar/high": share([lunar.is_right(*pair) for pair in zip(new, answers, strict=True)])}
    for task in tasks:
        mode = MODES.get(task, "high")
        rows = [own_row(row) for row in dataset("held_out", count, HELD_OUT_SEED, tasks={task: 1.0}, modes={mode: 1.0})]
        rows.sort(key=lambda row: sum(len(str(message["content"])) for message in row["messages"]))
        answers = answer(model, collator, rows, 25, do_sample=False, max_new_tokens=256)
        out[f"{task}/{mode}"] = share([correct(row["asked"], a) for row, a in zip(rows, answers, strict=True)])
    return out


def measured(args: argparse.Namespace) -> dict[str, Any]:
    processor = AutoProcessor.from_pretrained(args.model)
    collator = Small4DataCollator(processor, max_length=LONGEST)
    rows = training_rows(collator, args, seed=0)
    found: dict[str, Any] = {
        "steps": args.steps,
        "batch": args.batch,
        "share_of_new_rows": args.share,
        "threads": args.threads,
    }
    found["before"] = score(
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), collator, args.rows, args.tasks
    )
    for way in args.ways:
        set_seed(0)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        if way == "lora":
            targets = lora_targets("all+experts", model=model)
            model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, **targets))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with tempfile.TemporaryDirectory() as folder:
            seconds = train(model, collator, rows, args.batch, RATES[way], folder)
        if way == "lora":
            model = model.merge_and_unload()  # answers the same, faster
        after = score(model, collator, args.rows, args.tasks)
        print(f"{way}: {seconds:.0f} s of training, {json.dumps(after)}", flush=True)
        lost = max(
            [found["before"][name]["accuracy"] - after[name]["accuracy"] for name in after if name != "lunar/high"],
            default=0.0,
        )
        found[way] = {
            "trained_parameters": trained, "learning_rate": RATES[way], "seconds": round(seconds, 1),
            "largest_loss_on_other_tasks": round(lost, 4), "after": after,
        }  # fmt: skip
    return found


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
    parser.add_argument("--share", type=float, default=0.5, help="part of the rows that is of the new operation")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows of each task")
    parser.add_argument("--tasks", nargs="*", default=[task for task in TASKS if task != "talk"])
    parser.add_argument(
        "--replay", nargs="*", default=list(TASKS), help="the demo's tasks that training rows are mixed from"
    )
    parser.add_argument("--ways", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measured(args)
    stored = provenance(["python", "-m", "model_card.bench.finetune"]) | found
    if args.out:
        args.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(table(found, args.ways))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
