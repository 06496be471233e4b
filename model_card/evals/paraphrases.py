"""Results of the demo checkpoint on questions in nobody's generator's words: `paraphrases.jsonl` beside this file.

    python -m model_card.evals.paraphrases [--show] [--out model_card/results/paraphrases.json]

from the repository root, offline. The questions were written by hand, as different people would type them, over all
tasks but pictures; they ask for what the demo was trained on, and only their wording is new. Nothing may be trained on
them. Greedy, in the weights' own dtype, judged as the tasks' own rows are. Must not know how the checkpoint was
trained.

A line of the file has task, kind, messages, answer (a text, or a list of tool calls), the names of the tools offered
if any, and, where the answer can be worked out, `check`: a Python expression that gives it, or the program that prints
it.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_card.demo_recipe.tasks.data import MESSAGE
from model_card.demo_recipe.tasks.judge import correct
from model_card.demo_recipe.tasks.tool_use import LOOKUPS, calculator_schema, lookup_schema, operation_schema
from model_card.evals.answers import measured_answers
from model_card.evals.demo_checkpoint import by_kind, flat, load, progress, store, table
from model_card.evals.scores import summary
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import REASONING_MODES

DATA = Path(__file__).with_suffix(".jsonl")


def items() -> list[dict[str, Any]]:
    """The lines of the file."""
    return [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]


def row(item: dict[str, Any], mode: str) -> dict[str, Any]:
    """An item as a row of `model_card.demo_recipe.tasks.data.dataset`: the last message is the answer to be found."""
    answer = item["answer"]
    calls = [] if isinstance(answer, str) else [{"id": f"call{i:05d}", "function": one} for i, one in enumerate(answer)]
    last = {"role": "assistant", "content": "" if calls else answer, "tool_calls": calls}
    return {
        "task": item["task"], "kind": item["kind"], "mode": mode, "budget": -1, "gap": 0,
        "answer": json.dumps(answer) if calls else answer, "images": [], "image_last": False,
        "tools": json.dumps([schema(name) for name in item["tools"]]) if "tools" in item else "",
        "messages": [_message(message) for message in [*item["messages"], last]],
    }  # fmt: skip


def _message(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return dict.fromkeys(MESSAGE) | message | {"tool_calls": json.dumps(calls) if calls else ""}


def schema(name: str) -> dict[str, Any]:
    """The tool of this name, as the demo knows it."""
    if name in LOOKUPS:
        return lookup_schema(name)
    return calculator_schema() if name == "calculator" else operation_schema(name)


def measured(
    model: Small4ForCausalLM, processor: Small4Processor, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """`all`: scores by mode; `tasks`: by task and mode; `kinds`: by kind within a task, and mode."""
    out: dict[str, dict[str, Any]] = {"all": {}, "tasks": defaultdict(dict), "kinds": defaultdict(dict)}
    for mode in REASONING_MODES:
        rows = [row(item, mode) for item in items()]
        given = measured_answers(model, processor, rows, args.batch, mode)
        out["all"][mode] = summary(rows, given)
        for task in dict.fromkeys(one["task"] for one in rows):
            members = [i for i, one in enumerate(rows) if one["task"] == task]
            asked, said = [rows[i] for i in members], [given[i] for i in members]
            out["tasks"][task][mode] = summary(asked, said)
            for kind, score in by_kind(asked, said).items():
                out["kinds"][task].setdefault(kind, {})[mode] = score
        if args.show:
            progress("\n\n".join(wrong(rows, given)))
    return out


def wrong(rows: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]]) -> list[str]:
    """Each question that was answered wrongly, with the thought, the answer and the right one."""
    return [
        f"{asked['mode']}, {asked['task']}, {asked['kind']}: {asked['messages'][-2]['content']}\n"
        f"  thought {said['message'].get('reasoning_content')!r}\n"
        f"  said {said['content']!r} {said['message'].get('tool_calls') or ''}\n  right {asked['answer']!r}"
        for asked, said in zip(rows, given, strict=True)
        if not correct(asked, said["message"])
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate the demo checkpoint on questions in other words.")
    parser.add_argument("--model", type=Path, default=None, help="a checkpoint folder; default: the shipped one")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="every wrong answer, on standard error")
    parser.add_argument("--out", type=Path, default=Path("model_card/results/paraphrases.json"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    begin, (model, processor) = time.perf_counter(), load(args)
    result = measured(model, processor, args)
    for title, scores in result.items():
        print("\n".join(table(title, flat(scores))))
    store("model_card.evals.paraphrases", model, args, begin, result)


if __name__ == "__main__":
    main()
