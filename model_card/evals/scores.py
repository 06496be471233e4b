"""Scores of answers: accuracy with its interval through the metric beside this file, mean tokens, throughput, valid
tool calls.

What is right is judged by `model_card.demo_recipe.tasks.judge`. Must not know: models, files of results.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import evaluate

from model_card.demo_recipe.tasks.judge import correct

METRIC = Path(__file__).with_name("wilson_accuracy.py")
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def summary(rows: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, mean tokens, and tokens per second of all together."""
    new, seconds = sum(one["new_tokens"] for one in given), sum(one["seconds"] for one in given)
    return share([correct(row, one["message"]) for row, one in zip(rows, given, strict=True)]) | {
        "prompt_tokens": round(sum(one["prompt_tokens"] for one in given) / len(given), 1),
        "thinking_tokens": round(sum(one["thinking_tokens"] for one in given) / len(given), 1),
        "new_tokens": round(new / len(given), 1),
        "tokens_per_second": round(new / seconds, 1),
    }


def share(verdicts: Sequence[bool]) -> dict[str, Any]:
    """`rows`, `accuracy` and `interval_95` of yes-or-no verdicts."""
    score = metric().compute(predictions=[str(verdict) for verdict in verdicts], references=["True"] * len(verdicts))
    interval = [round(bound, 4) for bound in score["interval_95"]]
    return {"rows": score["rows"], "accuracy": round(score["accuracy"], 4), "interval_95": interval}


@cache
def metric() -> Any:
    """The metric, loaded from disk by `evaluate`; nothing is asked of a network."""
    return evaluate.load(str(METRIC), keep_in_memory=True)


def valid_calls(row: dict[str, Any], message: dict[str, Any]) -> bool:
    """Whether a message calls tools, only ones that the row offers, with arguments that their schemas allow."""
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in json.loads(row["tools"] or "[]")}
    calls = [call["function"] for call in message["tool_calls"]]
    return bool(calls) and all(
        call["name"] in offered and _fits(call["arguments"], offered[call["name"]]) for call in calls
    )


def _fits(arguments: object, schema: dict[str, Any]) -> bool:
    properties = schema["properties"]
    if not isinstance(arguments, dict) or set(arguments) - set(properties) or set(schema["required"]) - set(arguments):
        return False
    return all(
        isinstance(value, TYPES[properties[name]["type"]])
        and not (isinstance(value, bool) and properties[name]["type"] == "integer")
        for name, value in arguments.items()
    )
