"""Conversations and tools, as callers give them to `apply_chat_template`. What is right: the ids that mistral-common
makes of the same messages, where it takes them, and the same ids in two steps as in one.
"""

import copy
import random
from functools import cache
from pathlib import Path
from typing import Any

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import BatchFeature

from modeling_small4 import Small4Processor

from .cases import Bench, Case
from .damage import PLAIN, Path_, at, changed, places, put

WORDS = (
    *("Hello", " ", "  ", "\n", "\n\n", "\t", "\0", "naïve", "日本", "\U0001f642", "e\u0301", "\ufeff", "\u2028"),
    *("[INST]", "[/INST]", "</s>", "<s>", "[IMG]", "[IMG_END]", "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"),
    *("[\\INST]", "\\", "[", "]", "[INST", "INST]", "{}", '{"a": 1}', "{{ x }}", "{% raw %}", "\ud800", "x" * 300),
)
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJg"
    "gg=="
)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"],
        },
    },
}  # fmt: skip
CALL: dict[str, Any] = {
    "id": "a1b2c3d4e",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'},
}
USER, ANSWER = {"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [USER],
    [{"role": "system", "content": "Be short."}, USER, ANSWER, {"role": "user", "content": "And 4 + 4?"}],
    [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "5"}],
    [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image", "url": PIXEL}]}],
    [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "2 + 3"}, {"type": "text", "text": "5"}]},
     {"role": "user", "content": [{"type": "text", "text": "Sure?"}]}],
    [USER, {"role": "assistant", "reasoning_content": "2 + 3 = 5", "content": "It is"}],
)  # fmt: skip
HOSTILE: dict[str, Any] = PLAIN | {
    "a control token": "[INST] </s><s>[IMG]",
    "a thought's mark": "[THINK]x[/THINK]",
    "half a surrogate pair": "\ud800",
    "24 digits": 10**24,
    "5000 digits": 10**5000,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "bytes": b"\xff",
    "a set": {1},
    "a number as key": {1: 2},
    "an object": object(),
    "a tuple": ("user", "x"),
    "a function": len,
    "a broken picture": "data:image/png;base64,AAAA",
    "a path": "/etc/passwd",
    "an address": "http://127.0.0.1/x.png",
    "a message": USER,
    "an answer": ANSWER,
    "a call": CALL,
}


@cache
def _ours(folder: Path) -> Small4Processor:
    return Small4Processor.from_pretrained(folder)


@cache
def _theirs(folder: Path, finished: bool) -> MistralTokenizer:
    mode = ValidationMode.finetuning if finished else ValidationMode.test
    return MistralTokenizer.from_file(folder / "tekken.json", mode=mode)


def conversation(bench: Bench, draw: random.Random) -> Case:
    """A conversation with tools, something in it changed, and how it is asked for."""
    given: dict[str, Any] = {"conversation": draw.choice(CONVERSATIONS), "tools": draw.choice((None, None, [TOOL]))}
    what = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        given, how, _ = (_worded if draw.random() < 0.5 else changed)(given, draw, HOSTILE)
        what.append(how)
        if not isinstance(given, dict) or given.keys() != {"conversation", "tools"}:
            given = {"conversation": given, "tools": None}
    mode, finished = draw.choice((None, "none", "high")), draw.random() < 0.5
    before = copy.deepcopy(given) if _copies(given) else None
    processor = _ours(bench.sound / "ours")
    options: dict[str, Any] = {"tools": given["tools"], "reasoning_mode": mode, "add_generation_prompt": not finished}

    def read() -> BatchFeature:
        return processor.apply_chat_template(
            given["conversation"], tokenize=True, return_dict=True, return_tensors="pt", **options
        )

    def check(found: BatchFeature) -> str | None:
        ids = found["input_ids"].tolist()
        if before is not None and repr(given) != repr(before):
            return "the messages were changed"
        if len(ids) > 1:
            return None  # a batch
        text = processor.apply_chat_template(given["conversation"], tokenize=False, **options)
        texts = [str(each) for each in text] if isinstance(text, list) else [str(text)]
        if "pixel_values" not in found and processor(text=texts)["input_ids"] != ids:
            return "other ids in two steps"
        wanted = _wanted(_theirs(bench.sound / "ours", finished), given, mode)
        return None if wanted is None or [wanted] == ids else "other ids than mistral-common's"

    return Case(", ".join(what), read, check)


def _worded(given: Any, draw: random.Random, values: dict[str, Any]) -> tuple[Any, str, Path_]:
    """The same with other words where a person's or the model's stand: the structure stays sound."""
    found = [
        place
        for place in places(given)
        if place and place[-1] in ("content", "text", "thinking", "reasoning_content", "description", "arguments")
    ]
    found = [place for place in found if isinstance(at(given, place), str)]
    if not found:
        return changed(given, draw, values)
    place, text = draw.choice(found), "".join(draw.choice(WORDS) for _ in range(draw.randrange(6)))
    return put(copy.deepcopy(given), place, text), f"{text[:40]!r} at {'/'.join(map(str, place))}", place


def _copies(tree: object) -> bool:
    try:
        copy.deepcopy(tree)
    except TypeError:
        return False
    return True


def _wanted(theirs: MistralTokenizer, given: dict[str, Any], mode: str | None) -> list[int] | None:
    """mistral-common's ids; None if it refuses the messages."""
    try:
        request: Any = ChatCompletionRequest.from_openai(
            copy.deepcopy(given["conversation"]), tools=copy.deepcopy(given["tools"]), reasoning_effort=mode or "none"
        )
        return list(theirs.encode_chat_completion(request).tokens)
    except Exception:
        return None
