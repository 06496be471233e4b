"""`/v1/completions`: continues a prompt without a chat format, whole or as a stream. Knows nothing of HTTP."""

import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from openai.types import Completion

from ..tokenization_small4 import Small4Tokenizer
from .answering import Listener, Usage, line, token_report, whole_answers
from .asking import Asker
from .errors import ApiError
from .fields import CompletionFields
from .jobs import Finish, Job
from .sampling import Reported


def completion_jobs(asker: Asker, fields: CompletionFields, listener: Listener) -> list[Job]:
    """One job for each prompt.

    Raises:
        ApiError: What is wrong with the request.
    """
    if fields.echo and fields.logprobs is not None:
        raise ApiError("echo together with logprobs is not supported.", "logprobs")
    if fields.best_of not in (None, fields.n or 1):
        raise ApiError("best_of must equal n; the server does not choose among more samples.", "best_of")
    if fields.stream_options is not None and not fields.stream:
        raise ApiError("stream_options needs stream to be true.", "stream_options")
    prompts: list[Any] = [fields.prompt] if isinstance(fields.prompt, str) else list(fields.prompt)
    if not prompts:
        raise ApiError("prompt is empty; give at least one.", "prompt")
    if isinstance(prompts[0], int):
        prompts = [prompts]
    if len(prompts) * (fields.n or 1) > asker.limits.answers:
        raise ApiError(f"At most {asker.limits.answers} answers, n for each prompt, are made at once.", "prompt")
    return [asker.text_job(fields, prompt, partial(listener.tell, number)) for number, prompt in enumerate(prompts)]


class CompletionAnswers:
    """Builds the answers to one request."""

    def __init__(self, model: str, tokenizer: Small4Tokenizer, fields: CompletionFields) -> None:
        self.model, self.tokenizer, self.fields = model, tokenizer, fields
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    async def whole(self, listener: Listener, jobs: list[Job]) -> dict[str, Any]:
        answers = await whole_answers(listener, jobs)
        choices = [
            self._choice(
                number * job.answers + index, self._echo(job) + each.finish.reader.content, each.finish, each.reports
            )
            for number, (job, group) in enumerate(zip(jobs, answers, strict=True))
            for index, each in enumerate(group)
        ]
        usage = Usage.of(jobs, [each.finish for group in answers for each in group])
        return self._valid({"choices": choices, "usage": usage.as_chat()})

    async def stream(self, listener: Listener, jobs: list[Job]) -> AsyncIterator[bytes]:
        finishes: list[Finish] = []
        begun: set[int] = set()
        async for number, event in listener.events(sum(job.answers for job in jobs)):
            index = number * jobs[number].answers + event.answer
            if index not in begun and self.fields.echo:
                yield line(self._valid({"choices": [self._choice(index, self._echo(jobs[number]), None, [])]}))
            begun.add(index)
            for delta in event.deltas:
                yield line(self._valid({"choices": [self._choice(index, delta.text, None, list(delta.reports))]}))
            if event.finish is not None:
                finishes.append(event.finish)
                yield line(self._valid({"choices": [self._choice(index, "", event.finish, [])]}))
        if self.fields.stream_options is not None and self.fields.stream_options.include_usage:
            yield line(self._valid({"choices": [], "usage": Usage.of(jobs, finishes).as_chat()}))
        yield line("[DONE]")

    def _echo(self, job: Job) -> str:
        return self.tokenizer.decode(job.prompt.ids, skip_special_tokens=True) if self.fields.echo else ""

    def _choice(self, index: int, text: str, finish: Finish | None, reports: list[Reported]) -> dict[str, Any]:
        logprobs = None
        if self.fields.logprobs is not None and reports:
            found = [token_report(self.tokenizer, report) for report in reports]
            offsets, at = [], 0
            for each in found:
                offsets.append(at)
                at += len(each["token"])
            logprobs = {
                "tokens": [each["token"] for each in found],
                "token_logprobs": [each["logprob"] for each in found],
                "top_logprobs": [{one["token"]: one["logprob"] for one in each["top_logprobs"]} for each in found],
                "text_offset": offsets,
            }
        reason = None if finish is None else "length" if finish.reason == "length" else "stop"
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}

    def _valid(self, rest: dict[str, Any]) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        made: Any = Completion.model_construct(None, **(head | rest))
        return made.model_dump(exclude_unset=True, warnings=False)
