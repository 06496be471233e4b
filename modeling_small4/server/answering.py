"""Shared by all endpoints: passes the events of a job from the engine's thread to the event loop, and counts tokens.

Knows nothing of the formats of the API.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ..tokenization_small4 import Small4Tokenizer
from .errors import ApiError
from .jobs import Event, Finish, Job
from .sampling import Reported


class Listener:
    """Receives the events of one or more jobs in the event loop in which it was made."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()

    def tell(self, job: int, event: Event) -> None:
        """Called in the engine's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (job, event))

    async def events(self, answers: int) -> AsyncIterator[tuple[int, Event]]:
        """(number of the job, event) until that many answers have ended.

        Raises:
            ApiError: The engine failed on one of the jobs.
        """
        while answers:
            number, event = await self._queue.get()
            if event.failure is not None:
                raise ApiError(event.failure, status=500, code="server_error")
            answers -= event.finish is not None
            yield number, event


@dataclass
class Whole:
    """One whole answer."""

    finish: Finish
    reports: list[Reported] = field(default_factory=list)


async def whole_answers(listener: Listener, jobs: list[Job]) -> list[list[Whole]]:
    """All answers of all jobs, in order."""
    count = sum(job.answers for job in jobs)
    found: dict[tuple[int, int], Whole] = {}
    reports: dict[tuple[int, int], list[Reported]] = {}
    async for number, event in listener.events(count):
        place = (number, event.answer)
        for delta in event.deltas:
            reports.setdefault(place, []).extend(delta.reports)
        if event.finish is not None:
            found[place] = Whole(event.finish, reports.get(place, []))
    return [[found[number, index] for index in range(job.answers)] for number, job in enumerate(jobs)]


@dataclass
class Usage:
    """Tokens of one request."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    thinking: int = 0

    @classmethod
    def of(cls, jobs: list[Job], finishes: list[Finish]) -> "Usage":
        return cls(
            sum(len(job.prompt.ids) for job in jobs),
            sum(job.cached for job in jobs),
            sum(finish.tokens for finish in finishes),
            sum(finish.reader.thinking_tokens for finish in finishes),
        )

    def as_chat(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.thinking, "audio_tokens": 0},
        }

    def as_response(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.generated,
            "output_tokens_details": {"reasoning_tokens": self.thinking},
            "total_tokens": self.prompt + self.generated,
        }


def token_report(tokenizer: Small4Tokenizer, report: Reported) -> dict[str, Any]:
    """A token's log probability in the format of the chat API."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token) or tokenizer.control_tokens.get(token, "").encode()
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    alternatives = [one(token, logprob) for token, logprob in report.alternatives]
    return one(report.token, report.logprob) | {"top_logprobs": alternatives}


def line(data: dict[str, Any] | str, event: str | None = None) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + b"data: " + text.encode() + b"\n\n"
