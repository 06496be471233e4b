"""Answers in JSON, `{"answer": 42}`: because the question or the system prompt asks for it, or because a grammar will
leave no choice.

Numbers and lists keep their types. Knows nothing of tokens or models.
"""

import json
import random
import re
from typing import Any

from model_card.demo_recipe.tasks.reworded.grammar import part

KEYS = (
    "answer",
    "answer",
    "answer",
    "result",
    "value",
    "output",
    "reply",
    "total",
    "solution",
    "text",
    "response",
    "x",
)
ASK = (
    'Please answer in JSON ("{key}").', 'Answer as JSON: {{"{key}": ...}}.', 'Answer in JSON with the key "{key}".', "Return JSON with the key {key}.",
    'Reply with a JSON object that has the field "{key}".', 'Give the answer as {{"{key}": ...}}.',
    "Respond in JSON, with the key {key}.", 'Output only JSON: {{"{key}": ...}}', 'Format: {{"{key}": ...}}',
    'Use JSON like {{"{key}": ...}}.', 'I need JSON with one key, "{key}".',
    'Write the answer as a JSON object, with "{key}" as its key.', 'Put the answer into the JSON field "{key}".',
)  # fmt: skip
ASK_SHORT = ("As JSON.", "Answer as JSON.", "In JSON, please.", "Answer in JSON.", "Return JSON.", "Reply in JSON.")
NUMBER = re.compile(r"-?\d+")


def asked(question: str, answer: str, rng: random.Random, unseen: bool = False) -> tuple[str, str | None, str]:
    """The question as one for JSON, the system prompt if that asks for it, and the answer."""
    short = rng.random() < 0.3
    key = "answer" if short else rng.choice(KEYS)
    ask = part(ASK_SHORT if short else ASK, rng, unseen).format(key=key)
    if rng.random() < 0.3:
        return question, ask, text(key, answer)
    return (f"{question} {ask}" if rng.random() < 0.8 else f"{ask} {question}"), None, text(key, answer)


def unasked(answer: str, rng: random.Random) -> tuple[str, int]:
    """The answer as a grammar will want it, and how many letters of it the grammar gives: `{"answer":`."""
    key = rng.choice(KEYS)
    return text(key, answer), text(key, "").index(":") + 1


def text(key: str, answer: str) -> str:
    """`answer` under `key`."""
    return json.dumps({key: value(answer)})


def value(answer: str) -> int | str | list[int] | list[str]:
    """A number, a list of numbers or of words, or a text."""
    parts = answer.split(", ")
    if all(NUMBER.fullmatch(one) for one in parts):
        numbers = [int(one) for one in parts]
        return numbers if len(numbers) > 1 else numbers[0]
    return parts if len(parts) > 1 and all(one.isalpha() for one in parts) else answer


def schema(answer: str) -> dict[str, Any]:
    """The JSON schema of an answer in JSON: its key, and a value of its type."""
    ((key, found),) = json.loads(answer).items()
    kind: dict[str, Any] = {"type": _TYPES[type(found)]}
    if isinstance(found, list):
        kind["items"] = {"type": _TYPES[type(found[0])]}
    return {"type": "object", "properties": {key: kind}, "required": [key], "additionalProperties": False}


_TYPES = {int: "integer", str: "string", list: "array"}
