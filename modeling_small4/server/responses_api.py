"""`/v1/responses`: its answers, whole or as a stream of events, as OpenAI's own types. Nothing is stored. Knows nothing
of HTTP.
"""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from openai.types.responses import Response

from ..tokenization_small4 import Small4Tokenizer
from .answering import Listener, Usage, line, token_report
from .asking import Asker
from .conversation import from_input
from .fields import ResponsesFields
from .jobs import Event, Finish, Job
from .reading import ARGUMENTS, THINKING, Delta
from .sampling import Reported


def response_jobs(asker: Asker, fields: ResponsesFields, listener: Listener) -> list[Job]:
    """The one job of a request.

    Raises:
        ApiError: What is wrong with it.
    """
    return [
        asker.chat_job(
            fields, from_input(fields.input, fields.instructions), "input", fields.max_output_tokens,
            partial(listener.tell, 0), None if fields.text is None else fields.text.format,
            logprobs=(fields.top_logprobs or 0) if wants_logprobs(fields) else None,
        )
    ]  # fmt: skip


def wants_logprobs(fields: ResponsesFields) -> bool:
    return fields.top_logprobs is not None or "message.output_text.logprobs" in (fields.include or ())


@dataclass
class _Item:
    """An item of the output that is being generated, its index, and its content so far."""

    kind: str
    index: int
    body: dict[str, Any]
    text: str
    reports: list[Reported]


class ResponseAnswers:
    """Builds the answer to one request."""

    def __init__(self, model: str, tokenizer: Small4Tokenizer, fields: ResponsesFields, body: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.fields = model, tokenizer, fields
        self.head = self._head(body)
        self.items: list[dict[str, Any]] = []
        self._open: _Item | None = None
        self._number = -1

    async def whole(self, listener: Listener, jobs: list[Job]) -> dict[str, Any]:
        finish: Finish | None = None
        async for _, event in listener.events(1):
            for _ in self._events(event):
                pass
            finish = event.finish
        assert finish is not None
        return self._response(jobs, finish)

    async def stream(self, listener: Listener, jobs: list[Job]) -> AsyncIterator[bytes]:
        begun = self._valid(self.head | {"status": "in_progress", "output": []})
        yield self._line("response.created", {"response": begun})
        yield self._line("response.in_progress", {"response": begun})
        async for _, event in listener.events(1):
            for each in self._events(event):
                yield each
            if event.finish is not None:
                response = self._response(jobs, event.finish)
                yield self._line(f"response.{response['status']}", {"response": response})
        yield line("[DONE]")

    def _events(self, event: Event) -> Iterator[bytes]:
        for delta in event.deltas:
            yield from self._delta(delta)
        if event.finish is None:
            return
        if self._open is None and not self.items:
            yield from self._begin("message")  # an empty answer
        if self._open is not None:
            whole = self._open.kind != "function_call" or event.finish.reader.calls[-1].whole
            yield from self._end("incomplete" if event.finish.reason == "length" else "completed")
            if not whole:
                self.items.pop()

    def _delta(self, delta: Delta) -> Iterator[bytes]:
        kind = {THINKING: "reasoning", ARGUMENTS: "function_call"}.get(delta.channel, "message")
        if self._open is not None and (kind != self._open.kind or delta.begins is not None):
            yield from self._end("completed")
        if delta.begins is not None:
            call = {"call_id": delta.begins.id, "name": delta.begins.name, "arguments": ""}
            yield from self._begin(kind, call)
            return
        if self._open is None:
            yield from self._begin(kind)
        item = self._open
        assert item is not None
        item.text += delta.text
        item.reports += delta.reports
        place = self._place(item)
        if kind == "function_call":
            yield self._line("response.function_call_arguments.delta", place | {"delta": delta.text})
        elif kind == "reasoning":
            yield self._line("response.reasoning_text.delta", place | {"content_index": 0, "delta": delta.text})
        else:
            logprobs = [token_report(self.tokenizer, report) for report in delta.reports]
            yield self._line(
                "response.output_text.delta", place | {"content_index": 0, "delta": delta.text, "logprobs": logprobs}
            )

    def _begin(self, kind: str, more: dict[str, Any] | None = None) -> Iterator[bytes]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        body: dict[str, Any] = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress"} | (
            more or {}
        )
        if kind == "message":
            body |= {"role": "assistant", "content": []}
        if kind == "reasoning":
            body |= {"summary": [], "content": []}
        item = self._open = _Item(kind, len(self.items), body, "", [])
        yield self._line("response.output_item.added", {"output_index": item.index, "item": body})
        if kind != "function_call":
            place = self._place(item) | {"content_index": 0, "part": self._part(item)}
            yield self._line("response.content_part.added", place)

    def _end(self, status: str) -> Iterator[bytes]:
        item = self._open
        assert item is not None
        place, self._open = self._place(item), None
        item.body = item.body | {"status": status}
        if item.kind == "function_call":
            item.body["arguments"] = item.text
            done = {"arguments": item.text, "name": item.body["name"]}
            yield self._line("response.function_call_arguments.done", place | done)
        else:
            part = self._part(item)
            item.body["content"] = [part]
            name, extra = (
                ("output_text", {"logprobs": part.get("logprobs", [])})
                if item.kind == "message"
                else ("reasoning_text", {})
            )
            yield self._line(f"response.{name}.done", place | {"content_index": 0, "text": item.text} | extra)
            yield self._line("response.content_part.done", place | {"content_index": 0, "part": part})
        self.items.append(item.body)
        yield self._line("response.output_item.done", {"output_index": item.index, "item": item.body})

    def _part(self, item: _Item) -> dict[str, Any]:
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": item.text}
        part: dict[str, Any] = {"type": "output_text", "text": item.text, "annotations": []}
        if wants_logprobs(self.fields):
            part["logprobs"] = [token_report(self.tokenizer, report) for report in item.reports]
        return part

    def _place(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.body["id"], "output_index": item.index}

    def _response(self, jobs: list[Job], finish: Finish) -> dict[str, Any]:
        cut = finish.reason == "length"
        end: dict[str, Any] = {"status": "incomplete" if cut else "completed", "output": self.items}
        end["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        if not cut:
            end["completed_at"] = int(time.time())
        return self._valid(self.head | end | {"usage": Usage.of(jobs, [finish]).as_response()})

    def _head(self, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of the response that repeat the request."""
        head: dict[str, Any] = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time())}
        head |= {"model": self.model, "error": None, "incomplete_details": None, "usage": None}
        echoed = (
            "instructions",
            "max_output_tokens",
            "temperature",
            "top_p",
            "truncation",
            "reasoning",
            "top_logprobs",
        )
        head |= {name: body.get(name) for name in echoed}
        metadata = body.get("metadata")
        head["metadata"] = metadata if isinstance(metadata, dict) else {}
        head["tools"] = [{"strict": None, "parameters": None} | tool for tool in body.get("tools") or []]
        head["tool_choice"] = body.get("tool_choice") or "auto"
        head["parallel_tool_calls"] = body.get("parallel_tool_calls") is not False
        head["text"] = body.get("text") or {"format": {"type": "text"}}
        return head | {"previous_response_id": None, "background": False}

    @staticmethod
    def _valid(response: dict[str, Any]) -> dict[str, Any]:
        return Response.model_construct(**response).model_dump(exclude_unset=True, warnings=False)

    def _line(self, kind: str, data: dict[str, Any]) -> bytes:
        self._number += 1
        return line({"type": kind, "sequence_number": self._number} | data, kind)
