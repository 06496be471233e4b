"""Held-out accuracy of the demo checkpoint: arithmetic and pictures, by mode, and by thinking budget.

    python -m model_card.evals.demo_checkpoint [--model DIR] [--rows 400] [--out model_card/results/demo_eval.json]

from the repository root. Problems and pictures come from the held-out side of `small4_conversion.demo.data`, which no training run
can draw. Greedy, in the weights' own dtype. Prints a table, and one JSON line last; the stored result carries the command, commit,
date, machine and versions. It must not know how the checkpoint was trained.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from small4_conversion.demo.batches import chat
from small4_conversion.demo.data import dataset
from transformers import AutoModelForCausalLM, AutoProcessor

from model_card.evals.record import provenance
from model_card.evals.scores import is_correct, wilson
from modeling_small4 import demo_checkpoint

BUDGETS: tuple[int | None, ...] = (0, 8, 16, 32, 64, None)
HELD_OUT_SEED = 1000


def evaluate(model: Any, processor: Any, count: int, batch: int) -> dict[str, Any]:
    """Scores by task and mode, scores by kind of problem, and arithmetic by thinking budget."""
    by_task, by_kind = {}, {}
    for task in ("arithmetic", "picture"):
        for mode in ("none", "high"):
            rows = held_out(task, mode, count)
            answers = answer(model, processor, rows, batch, mode, None)
            by_task[f"{task}/{mode}"] = summary(rows, answers)
            groups: dict[str, list[int]] = defaultdict(list)
            for i, row in enumerate(rows):
                groups[f"{task}: {row['kind']}"].append(i)
            for kind, members in sorted(groups.items()):
                by_kind[f"{kind}/{mode}"] = summary([rows[i] for i in members], [answers[i] for i in members])
    rows = held_out("arithmetic", "high", count)
    by_budget = {
        str(budget).lower(): summary(rows, answer(model, processor, rows, batch, "high", budget)) for budget in BUDGETS
    }
    return {"by_task": by_task, "by_kind": by_kind, "arithmetic_by_thinking_budget": by_budget}


def held_out(task: str, mode: str, count: int) -> list[dict[str, Any]]:
    """The same `count` held-out problems for either mode."""
    return list(dataset("held_out", count, HELD_OUT_SEED, tasks={task: 1.0}, modes={mode: 1.0}))


def answer(
    model: Any, processor: Any, rows: list[dict[str, Any]], batch: int, mode: str, budget: int | None
) -> list[dict[str, Any]]:
    """For each row `content`, `thinking_tokens`, `new_tokens`, and its share of the batch's `seconds`."""
    out = []
    for start in range(0, len(rows), batch):
        chats = [chat(row)[:-1] for row in rows[start : start + batch]]
        inputs = processor.apply_chat_template(
            chats, reasoning_mode=mode, tokenize=True, return_dict=True, return_tensors="pt", padding=True, add_generation_prompt=True
        )  # fmt: skip
        begin = time.perf_counter()
        with torch.inference_mode():
            tokens = model.generate(**inputs, reasoning_mode=mode, max_thinking_tokens=budget)
        seconds = (time.perf_counter() - begin) / len(chats)
        for row in tokens[:, inputs["input_ids"].shape[1] :].tolist():
            out.append(read(row, processor, model.generation_config) | {"seconds": seconds})
    return out


def read(ids: list[int], processor: Any, settings: Any) -> dict[str, Any]:
    """The answer, the tokens of its thought (between the marks) and all tokens up to the end of the turn."""
    marks = settings.reasoning_token_ids
    ids = ids[: ids.index(settings.eos_token_id) + 1] if settings.eos_token_id in ids else ids
    start = ids.index(marks["think"]) + 1 if marks["think"] in ids else 0
    stop = ids.index(marks["end_think"]) if marks["end_think"] in ids else (len(ids) if start else 0)
    content = processor.parse_response(ids)["content"]
    return {"content": content, "thinking_tokens": stop - start, "new_tokens": len(ids)}


def summary(rows: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, mean tokens and throughput."""
    right = sum(is_correct(row, given["content"]) for row, given in zip(rows, answers, strict=True))
    low, high = wilson(right, len(rows))
    new, seconds = sum(given["new_tokens"] for given in answers), sum(given["seconds"] for given in answers)
    return {
        "rows": len(rows),
        "accuracy": round(right / len(rows), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "thinking_tokens": round(sum(given["thinking_tokens"] for given in answers) / len(rows), 1),
        "new_tokens": round(new / len(rows), 1),
        "tokens_per_second": round(new / seconds, 1),
    }


def table(result: dict[str, dict[str, Any]]) -> Iterable[str]:
    for part, scores in result.items():
        yield f"\n{part:<50}{'rows':>6}{'accuracy':>10}{'95 % interval':>17}{'thinking':>10}{'tokens/s':>10}"
        for name, score in scores.items():
            low, high = score["interval_95"]
            interval = f"{low:.3f}-{high:.3f}"
            cells = f"{score['rows']:>6}{score['accuracy']:>10.3f}{interval:>17}"
            yield f"  {name:<48}{cells}{score['thinking_tokens']:>10.1f}{score['tokens_per_second']:>10.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the demo checkpoint on held-out problems.")
    parser.add_argument("--model", type=Path, default=None, help="a checkpoint folder; default: the shipped one")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("model_card/results/demo_eval.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.model or demo_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    result = evaluate(model, processor, args.rows, args.batch)
    print("\n".join(table(result)))
    record = provenance(["python", "-m", "model_card.evals.demo_checkpoint", *sys.argv[1:]]) | {
        "dtype": str(model.dtype).removeprefix("torch."), "threads": args.threads, "batch": args.batch, **result
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
