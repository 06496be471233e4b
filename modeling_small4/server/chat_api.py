"""`/v1/chat/completions`: its answers, whole or as a stream of chunks, as OpenAI's own types. Knows nothing of HTTP."""

import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ..tokenization_small4 import Small4Tokenizer
from .answering import Listener, Usage, Whole, line, token_report, whole_answers
from .asking import Asker
from .conversation import from_messages
from .errors import ApiError
from .fields import ChatFields
from .jobs import Finish, Job
from .reading import ARGUMENTS, THINKING, Call, Delta


def chat_jobs(asker: Asker, fields: ChatFields, listener: Listener) -> list[Job]:
    """The one job of a request.

    Raises:
        ApiError: What is wrong with it.
    """
    if fields.max_tokens is not None and fields.max_completion_tokens not in (None, fields.max_tokens):
        raise ApiError("max_tokens and max_completion_tokens are two names of one field and differ.", "max_tokens")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise ApiError("top_logprobs needs logprobs to be true.", "top_logprobs")
    if fields.stream_options is not None and not fields.stream:
        raise ApiError("stream_options needs stream to be true.", "stream_options")
    job = asker.chat_job(
        fields, from_messages(fields.messages), "messages", fields.max_completion_tokens or fields.max_tokens,
        partial(listener.tell, 0), fields.response_format, fields.reasoning_effort, fields.n or 1,
        (fields.top_logprobs or 0) if fields.logprobs else None,
    )  # fmt: skip
    return [job]


class ChatAnswers:
    """Builds the answers to one request."""

    def __init__(self, model: str, tokenizer: Small4Tokenizer, fields: ChatFields) -> None:
        self.model, self.tokenizer, self.fields = model, tokenizer, fields
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    async def whole(self, listener: Listener, jobs: list[Job]) -> dict[str, Any]:
        (answers,) = await whole_answers(listener, jobs)
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = Usage.of(jobs, [answer.finish for answer in answers]).as_chat()
        head = {"id": self.id, "object": "chat.completion", "created": self.created, "model": self.model}
        return ChatCompletion.model_validate(head | {"choices": choices, "usage": usage}).model_dump(exclude_unset=True)

    async def stream(self, listener: Listener, jobs: list[Job]) -> AsyncIterator[bytes]:
        finishes: list[Finish] = []
        begun: set[int] = set()
        async for _, event in listener.events(jobs[0].answers):
            if event.answer not in begun:
                begun.add(event.answer)
                yield self._chunk(event.answer, {"role": "assistant", "content": ""})
            for delta in event.deltas:
                yield self._chunk(event.answer, self._delta(delta), logprobs=self._logprobs(delta))
            if event.finish is not None:
                finishes.append(event.finish)
                yield self._chunk(event.answer, {}, event.finish.reason)
        if self.fields.stream_options is not None and self.fields.stream_options.include_usage:
            yield self._line({"choices": [], "usage": Usage.of(jobs, finishes).as_chat()})
        yield line("[DONE]")

    def _choice(self, index: int, answer: Whole) -> dict[str, Any]:
        reader, calls = answer.finish.reader, [call for call in answer.finish.reader.calls if call.whole]
        message: dict[str, Any] = {"role": "assistant", "content": reader.content, "refusal": None}
        if calls:
            message["content"] = reader.content or None
            message["tool_calls"] = [
                _call(call) | {"function": {"name": call.name, "arguments": call.arguments}} for call in calls
            ]
        if reader.thinking is not None:
            message["reasoning_content"] = reader.thinking
        logprobs = None
        if self.fields.logprobs:
            content = [token_report(self.tokenizer, report) for report in answer.reports]
            logprobs = {"content": content, "refusal": None}
        return {"index": index, "message": message, "finish_reason": answer.finish.reason, "logprobs": logprobs}

    def _delta(self, delta: Delta) -> dict[str, Any]:
        if delta.channel == ARGUMENTS:
            if delta.begins is not None:
                call = _call(delta.begins) | {"function": {"name": delta.begins.name, "arguments": ""}}
            else:
                call = {"function": {"arguments": delta.text}}
            return {"tool_calls": [{"index": delta.call} | call]}
        return {"reasoning_content" if delta.channel == THINKING else "content": delta.text}

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self.fields.logprobs or not delta.reports:
            return None
        return {"content": [token_report(self.tokenizer, report) for report in delta.reports], "refusal": None}

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        return self._line(
            {"choices": [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]}
        )

    def _line(self, rest: dict[str, Any]) -> bytes:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return line(ChatCompletionChunk.model_validate(head | rest).model_dump(exclude_unset=True))


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function"}
