"""What goes into the engine and comes out of it: prompts, jobs, events, counts.

Knows nothing of models, of threads, or of HTTP.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..grammar import Grammar
from .reading import Delta, Reader
from .sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        ids: its tokens. key: the same, but those of images stand for what they show.
        begun: how many of the last ids are the beginning of the answer.
        images: for each image where its tokens begin and end. pixel_values, image_sizes: as the processor makes them.
    """

    ids: list[int]
    key: list[int]
    begun: int = 0
    images: list[tuple[int, int]] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    image_sizes: torch.Tensor | None = None


@dataclass(frozen=True)
class Finish:
    """The end of one answer: `reason` is "stop", "length" or "tool_calls"."""

    reason: str
    reader: Reader
    tokens: int


@dataclass(frozen=True)
class Event:
    """What happened to one answer of a job: pieces of it, its end, or (for the job as a whole) that it failed."""

    answer: int = 0
    deltas: list[Delta] = field(default_factory=list)
    finish: Finish | None = None
    failure: str | None = None


@dataclass
class Job:
    """One request.

    Attributes:
        tell: called in the engine's thread with each event.
        mode: "none", "high", or None where the model is free to think. budget: most tokens of thought.
        calls: whether tool calls may be made. raw: for text that is no chat.
        cached: tokens of the prompt that did not have to be read, once it has been.
        cancelled: set it to have the job dropped within a token.
    """

    prompt: Prompt
    tell: Callable[[Event], None]
    sampling: Sampling
    most: int
    answers: int = 1
    stops: list[str] = field(default_factory=list)
    mode: str | None = None
    budget: int | None = None
    grammar: Grammar | None = None
    calls: bool = False
    raw: bool = False
    cached: int = 0
    cancelled: bool = False


class QueueFullError(Exception):
    """As many requests wait as are allowed to."""


@dataclass
class Counts:
    """For `/metrics`; written by the engine's thread alone."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def generated(self, tokens: int) -> None:
        self.generated_tokens += tokens
        now = time.monotonic()
        self.recent.append((now, tokens))
        while now - self.recent[0][0] > 10:
            self.recent.popleft()

    def rate(self) -> float:
        """Tokens a second, of the last ten."""
        now = time.monotonic()
        return sum(tokens for when, tokens in list(self.recent) if now - when <= 10) / 10
