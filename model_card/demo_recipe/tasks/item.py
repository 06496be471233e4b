"""What every task family hands over: one problem with its question, thought and answer, and the side of the split it is
on.

Plain data; knows nothing of tokens, chats' layout or models.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        key: What the problem is, without its phrasing: its hash decides between training and held-out.
        turns: Messages (dicts with role, content, and for the assistant reasoning_content and perhaps tool_calls), the
            last one being what is judged.
        answer: What the judge compares with: the last message's text, or the JSON of its tool calls.
        system: A system prompt that the answer depends on.
        tools: JSON schemas offered.
        images: Draws the pictures that stand in the first question.
    """

    kind: str
    key: object
    turns: list[dict[str, Any]]
    answer: str
    system: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    images: Callable[[], list[Any]] | None = None
    never_held_out: bool = False

    @property
    def held_out(self) -> bool:
        return not self.never_held_out and is_held_out(self.key)


def is_held_out(key: object) -> bool:
    """A twentieth of all problems, by the hash of their `repr`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def question_and_answer(question: str, answer: str, thought: str | None) -> list[dict[str, Any]]:
    return [user(question), assistant(answer, thought)]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, thought: str | None = None, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": thought, "tool_calls": calls or []}


def vary(question: str, rng: random.Random) -> str:
    """The question as people also type it: sometimes without a capital or without its last mark."""
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question.rstrip(".?") if rng.random() < 0.1 else question
