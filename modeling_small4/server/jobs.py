"""The engine's input and output: prompts, jobs, events, counts.

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
        ids: its tokens.
        key: the same, but an image's tokens are replaced by hashes of its content.
        begun: how many of the last ids belong to the answer.
        images: where the tokens of each image begin and end.
        pixel_values, image_sizes: as the processor makes them.
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
    """Progress of one answer of a job: new pieces, its end, or (for the whole job) a failure."""

    answer: int = 0
    deltas: list[Delta] = field(default_factory=list)
    finish: Finish | None = None
    failure: str | None = None


@dataclass
class Job:
    """One request.

    Attributes:
        tell: called in the engine's thread with each event.
        mode: "none", "high", or None if the model decides.
        budget: limit of thinking tokens.
        calls: whether tool calls are allowed.
        raw: the prompt is plain text, not a chat.
        cached: tokens of the prompt that did not have to be read, known after it was read.
        cancelled: set it to stop the job within a token.
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
    """The queue is full."""


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
        """Tokens per second, over the last ten seconds."""
        now = time.monotonic()
        return sum(tokens for when, tokens in list(self.recent) if now - when <= 10) / 10
