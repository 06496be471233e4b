"""Held-out results of the demo checkpoint: every task in both modes, retrieval by length, tool calls, thinking budgets,
photographed pictures, answers in JSON, use of experts.

    python -m model_card.evals.demo_checkpoint [--rows 200] [--tasks arithmetic ...] [--out model_card/results/demo_eval.json]

from the repository root, offline. Rows come from the held-out side of `model_card.demo_recipe.tasks.data`, which no
training run can draw. Greedy, in the weights' own dtype. Prints tables, and one JSON line last. Must not know how the
checkpoint was trained.
"""  # noqa: E501

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from model_card.card.results import sha256
from model_card.demo_recipe.tasks.data import IN_JSON, TASKS, dataset
from model_card.demo_recipe.tasks.reworded import as_json
from model_card.evals.answers import measured_answers
from model_card.evals.expert_use import expert_use
from model_card.evals.record import provenance, write
from model_card.evals.scores import share, summary, valid_calls
from modeling_small4 import demo_checkpoint
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import REASONING_MODES

BUDGETS: tuple[int | None, ...] = (0, 8, 16, 32, 64, 128, None)
LENGTHS = (512, 1024, 2048, 4096, 8192)
THOUGHTFUL = ("arithmetic", "word_problem", "puzzle", "program")  # where thinking should help
HELD_OUT_SEED = 1000


def held_out(task: str, mode: str, count: int, **draw: Any) -> list[dict[str, Any]]:
    """The same `count` held-out problems for either mode."""
    return list(dataset("held_out", count, HELD_OUT_SEED, tasks={task: 1.0}, modes={mode: 1.0}, **draw))


def by_task(model: Small4ForCausalLM, processor: Small4Processor, args: argparse.Namespace) -> dict[str, Any]:
    """`tasks`: scores by task and mode; `kinds`: the same by kind of problem within a task; `tool_calls`: by mode, of
    the answers that should call tools, how many are `valid` (allowed by the schemas) and `right` (the calls that were
    wanted)."""
    tasks: dict[str, Any] = defaultdict(dict)
    kinds: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    calls: dict[str, Any] = {}
    for task in args.tasks:
        for mode in REASONING_MODES:
            rows = held_out(task, mode, args.rows)
            given = measured_answers(model, processor, rows, args.batch, mode)
            tasks[task][mode] = summary(rows, given)
            for kind, score in by_kind(rows, given).items():
                kinds[task][kind][mode] = score
            calling = [i for i, row in enumerate(rows) if row["messages"][-1]["tool_calls"]]
            if calling:
                valid = share([valid_calls(rows[i], given[i]["message"]) for i in calling])
                calls[mode] = {
                    "valid": valid,
                    "right": summary([rows[i] for i in calling], [given[i] for i in calling]),
                }
            progress(f"{task}, {mode}: {tasks[task][mode]['accuracy']:.3f}")
    return {"tasks": tasks, "kinds": kinds, "tool_calls": calls}


def by_kind(rows: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores of each kind of problem among `rows`, in order of the kinds' names."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[row["kind"]].append(i)
    return {
        kind: summary([rows[i] for i in chosen], [given[i] for i in chosen]) for kind, chosen in sorted(members.items())
    }


def by_length(model: Small4ForCausalLM, processor: Small4Processor, args: argparse.Namespace) -> dict[str, Any]:
    """Retrieval by length of the text in tokens, and mode. Longer texts have fewer rows: `args.long_tokens` tokens in
    all.
    """
    out: dict[str, Any] = defaultdict(dict)
    for length in args.lengths:
        for mode in REASONING_MODES:
            rows = held_out("retrieval", mode, min(args.rows, max(1, args.long_tokens // length)), context=length)
            out[str(length)][mode] = summary(rows, measured_answers(model, processor, rows, args.batch, mode))
            progress(f"retrieval at {length}, {mode}: {out[str(length)][mode]['accuracy']:.3f}")
    return out


def by_budget(model: Small4ForCausalLM, processor: Small4Processor, args: argparse.Namespace) -> dict[str, Any]:
    """Scores by task and `max_thinking_tokens` ("none" for no limit), in mode `high`."""
    out: dict[str, Any] = defaultdict(dict)
    for task in args.budget_tasks:
        rows = held_out(task, "high", (args.rows + 1) // 2)
        for budget in BUDGETS:
            given = measured_answers(model, processor, rows, args.batch, "high", budget)
            out[task][str(budget).lower()] = summary(rows, given)
        progress(f"{task}, budgets: {[score['accuracy'] for score in out[task].values()]}")
    return out


def by_form(model: Small4ForCausalLM, processor: Small4Processor, args: argparse.Namespace) -> dict[str, Any]:
    """Scores by mode of what is asked or answered in another form: pictures turned and in low light; answers in JSON,
    because the question asks for it, or because a grammar leaves no choice and the question says nothing of it.
    """
    out: dict[str, Any] = defaultdict(dict)
    questions = {task: share for task, share in TASKS.items() if task in IN_JSON}
    for mode in REASONING_MODES:
        shots = held_out("picture", mode, args.rows, reworded=1.0)
        out["photographs"][mode] = summary(shots, measured_answers(model, processor, shots, args.batch, mode))
        draw = {"tasks": questions, "modes": {mode: 1.0}}
        asked = list(dataset("held_out", args.rows, HELD_OUT_SEED, in_json=1.0, **draw))
        out["JSON, asked for"][mode] = summary(asked, measured_answers(model, processor, asked, args.batch, mode))
        plain = list(dataset("held_out", args.rows, HELD_OUT_SEED, **draw))
        forced = [row | {"answer": as_json.text("answer", row["answer"])} for row in plain]
        schemas = [as_json.schema(row["answer"]) for row in forced]
        given = measured_answers(model, processor, forced, args.batch, mode, grammars=schemas)
        out["JSON under a grammar"][mode] = summary(forced, given)
        progress(f"other forms, {mode}: {[scores[mode]['accuracy'] for scores in out.values()]}")
    return out


def table(title: str, scores: dict[str, dict[str, Any]]) -> Iterable[str]:
    yield f"\n{title:<50}{'rows':>6}{'accuracy':>10}{'95 % interval':>17}{'thinking':>10}{'tokens/s':>10}"
    for name, score in scores.items():
        low, high = score["interval_95"]
        interval = f"{low:.3f}-{high:.3f}"
        tokens, speed = score.get("thinking_tokens", 0), score.get("tokens_per_second", 0)
        yield f"  {name:<48}{score['rows']:>6}{score['accuracy']:>10.3f}{interval:>17}{tokens:>10.1f}{speed:>10.0f}"


def flat(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Nested groups of scores as one table."""
    if "accuracy" in scores:
        return {"": scores}
    return {
        " / ".join(filter(None, (name, inner))): score
        for name, group in scores.items()
        for inner, score in flat(group).items()
    }


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate the demo checkpoint on held-out problems.")
    parser.add_argument("--model", type=Path, default=None, help="a checkpoint folder; default: the shipped one")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--budget-tasks", nargs="*", choices=list(TASKS), default=list(THOUGHTFUL))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS), help="of retrieval, in tokens")
    parser.add_argument("--long-tokens", type=int, default=300_000, help="most tokens to read for each length and mode")
    parser.add_argument("--rows", type=int, default=200, help="of each task; half as many for each budget")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("model_card/results/demo_eval.json"))
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[Small4ForCausalLM, Small4Processor]:
    """The checkpoint of `args.model`, with `args.threads` threads."""
    torch.set_num_threads(args.threads)
    args.model = args.model or demo_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    return model, AutoProcessor.from_pretrained(args.model)


def store(
    module: str, model: Small4ForCausalLM, args: argparse.Namespace, begin: float, result: dict[str, Any]
) -> None:
    """Write `args.out` with where the result comes from, and print it as one JSON line."""
    settings = {"threads": args.threads, "batch": args.batch, "dtype": str(model.dtype).removeprefix("torch.")}
    weights = sha256(args.model / "model.safetensors")
    settings |= {"weights_sha256": weights, "seconds": round(time.perf_counter() - begin)}
    record = provenance(["python", "-m", module, *sys.argv[1:]]) | settings | result
    write(args.out, record)
    print(json.dumps(record))


def main() -> None:
    args = arguments()
    begin, (model, processor) = time.perf_counter(), load(args)
    result = by_task(model, processor, args)
    result |= {"retrieval": by_length(model, processor, args), "budgets": by_budget(model, processor, args)}
    result["forms"] = by_form(model, processor, args)
    result["expert_use"] = {task: expert_use(model, processor, held_out(task, "high", 32)) for task in args.tasks}
    for title in ("tasks", "kinds", "tool_calls", "retrieval", "budgets", "forms"):
        print("\n".join(table(title, flat(result[title]))))
    store("model_card.evals.demo_checkpoint", model, args, begin, result)


if __name__ == "__main__":
    main()
