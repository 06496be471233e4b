"""Requests to the server, in process: bytes of a body to jobs, no token decoded. What is right: jobs whose prompt and
settings the model can do, or a status of 4xx whose error names the field.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from modeling_small4.commands.session import load
from modeling_small4.server.answering import Listener
from modeling_small4.server.app import Api, Options
from modeling_small4.server.chat_api import chat_jobs
from modeling_small4.server.completions_api import completion_jobs
from modeling_small4.server.errors import ApiError
from modeling_small4.server.fields import ChatFields, CompletionFields, ResponsesFields, read_body, read_fields
from modeling_small4.server.jobs import Job
from modeling_small4.server.responses_api import response_jobs

from .cases import Bench, Case
from .chats import CALL, CONVERSATIONS, PIXEL, TOOL
from .damage import VALUES, changed, damaged, dump

SETTINGS: dict[str, Any] = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": -0.5,
    "repetition_penalty": 1.1, "logit_bias": {"100": -5, "101": 5.5}, "seed": 3, "stop": ["x", "yy"], "stream": False,
}  # fmt: skip
CHAT: dict[str, Any] = {
    "model": "tiny", "messages": [], "max_tokens": 3, "n": 2, "logprobs": True, "top_logprobs": 2,
    "reasoning_effort": "high", "response_format": {"type": "json_object"}, "stream_options": None,
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "enum": ["x", "y"]}}}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        *({**CHAT, "messages": messages, **SETTINGS} for messages in CONVERSATIONS),
        {"model": "tiny", "messages": CONVERSATIONS[2], "max_tokens": 3, "tools": [TOOL], "tool_choice": "auto"},
        {"messages": CONVERSATIONS[0], "max_completion_tokens": 3, "tools": [TOOL], "parallel_tool_calls": False,
         "tool_choice": {"type": "function", "function": {"name": "add"}}, "chat_template_kwargs": {"thinking": False}},
        {"messages": CONVERSATIONS[0], "max_tokens": 3, "thinking": {"type": "enabled", "budget_tokens": 5},
         "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ],
    "/v1/responses": [
        {"model": "tiny", "input": "What is 2 + 3?", "max_output_tokens": 3, "instructions": "Be short.", **SETTINGS},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"},
                                                {"type": "input_image", "image_url": PIXEL}]},
                   {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                   {"type": "function_call", "call_id": CALL["id"], **CALL["function"]},
                   {"type": "function_call_output", "call_id": CALL["id"], "output": "5"}],
         "max_output_tokens": 3, "tools": [{"type": "function", **TOOL["function"]}], "reasoning": {"effort": "low"}},
        {"input": "x", "max_output_tokens": 3,
         "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
         "include": ["message.output_text.logprobs"], "top_logprobs": 1, "truncation": "auto"},
    ],
    "/v1/completions": [
        {"model": "tiny", "prompt": "2 + 3 =", "max_tokens": 3, "n": 2, "best_of": 2, "echo": False, **SETTINGS},
        {"prompt": [100, 101, 102], "max_tokens": 3, "logprobs": 2},
        {"prompt": ["a", "b"], "max_tokens": 3, "echo": True},
        {"prompt": [[100], [101, 102]], "max_tokens": 3},
    ],
}  # fmt: skip
JOBS: dict[str, tuple[Any, Callable[..., list[Job]]]] = {
    "/v1/chat/completions": (ChatFields, chat_jobs),
    "/v1/responses": (ResponsesFields, response_jobs),
    "/v1/completions": (CompletionFields, completion_jobs),
}


class _Nobody:
    """Stands for the listener of a request that is not decoded."""

    def tell(self, job: int, event: object) -> None:
        raise AssertionError("nothing is decoded")


@cache
def api(folder: Path) -> Api:
    model, processor = load(str(folder), "cpu")
    return Api(model, processor, Options("tiny", images=4))


def body(draw: random.Random) -> tuple[str, bytes, str]:
    """Path, body and, in words, what is wrong with it."""
    path = draw.choice(sorted(BODIES))
    tree: Any = draw.choice(BODIES[path])
    if draw.random() < 0.1:
        change = damaged("body", json.dumps(tree).encode(), draw)
        return path, change.data or b"", f"{path}: {change.what}"
    what = []
    for _ in range(draw.choice((1, 1, 2))):
        tree, how, place = changed(tree, draw, VALUES)
        what.append(how)
        if place and isinstance(tree, dict) and draw.random() < 0.1 and place[0] in tree:
            tree[f"{place[0]}_"] = tree.pop(str(place[0]))
            what.append("renamed")
    return path, dump(tree).encode(), f"{path}: {', '.join(what)}"


def refused(error: BaseException) -> str | None:
    """What is wrong with the error of a request."""
    if not isinstance(error, ApiError):
        return "another kind of error"
    if not 400 <= error.status < 500:
        return f"status {error.status}"
    if error.param is None and error.code not in ("invalid_json", "model_not_found"):
        return "no param"
    if error.param is not None and len(error.param) > 200:
        return f"a param of {len(error.param)} letters"
    return None


def request(bench: Bench, draw: random.Random) -> Case:
    path, data, what = body(draw)
    served = api(bench.sound / "ours")

    def read() -> list[Job]:
        model, jobs_of = JOBS[path]
        content = read_body(data)
        return jobs_of(served.asker, read_fields(model, content), cast(Listener, _Nobody()))

    def check(jobs: object) -> str | None:
        assert isinstance(jobs, list)
        for job in jobs:
            if not job.prompt.ids or not all(0 <= token < len(served.tokenizer) for token in job.prompt.ids):
                return "a prompt that the model cannot read"
            if job.most < 1 or job.most + len(job.prompt.ids) > served.asker.limits.context or job.answers > 16:
                return "more tokens or answers than there may be"
            if not (0 <= job.sampling.temperature <= 2 and 0 <= job.sampling.top_p <= 1 and job.sampling.top_k >= 0):
                return "settings that cannot be sampled with"
        return None

    return Case(what, read, check, kind=refused)
