"""A server on 127.0.0.1 in a thread of the test, clients for it, and a model that says what it is told to. Knows no
test.
"""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import torch

from modeling_small4 import Small4Processor
from modeling_small4.server.app import make_server

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add", "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}  # fmt: skip
GUARD = 120  # seconds after which a test that waits for an event gives up


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """A running server, and ways to ask it."""

    def __init__(self, folder: Path, name: str = "tiny", **options: Any) -> None:
        self.port, self.name = free_port(), name
        self.server = make_server(str(folder), port=self.port, device="cpu", name=name, **options)
        self.api, self.engine, self.model = (
            self.server.api,
            self.server.api.engine,
            self.server.api.engine.decoder.model,
        )
        started = threading.Event()
        self.server.config.callback_notify = None
        startup = self.server.startup

        async def tell(*args: Any, **kwargs: Any) -> None:
            await startup(*args, **kwargs)
            started.set()

        self.server.startup = tell  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        assert started.wait(GUARD)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=self.url, api_key=options.get("key") or "none", max_retries=0)
        self.processor = Small4Processor.from_pretrained(folder)

    def ask(self, messages: Any = QUESTION, tokens: int | None = 12, **options: Any) -> Any:
        options = {"model": self.name, "temperature": 0} | ({} if tokens is None else {"max_tokens": tokens}) | options
        return self.client.chat.completions.create(messages=messages, **options)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        """Status, answer (read as JSON where it is) and headers; a body that is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.fetch(path, data, headers)

    def fetch(
        self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        base = self.url.removesuffix("/v1")
        request = urllib.request.Request(base + path, data, {"content-type": "application/json"} | (headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=GUARD) as answer:
                status, text, got = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, text, got = error.code, error.read(), error.headers
        try:
            return status, json.loads(text), got
        except ValueError:
            return status, text.decode(), got

    def chunks(self, path: str, body: dict[str, Any]) -> list[str]:
        """The data of each event of a stream."""
        status, text, headers = self.post(path, body | {"stream": True})
        assert status == 200, text
        assert headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]

    def prompt_tokens(self, messages: Any, **options: Any) -> list[int]:
        """What the library makes of the same messages."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        return inputs["input_ids"][0].tolist()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@contextmanager
def spoken(service: Service) -> Iterator[Any]:
    """Makes the served model say given text, token by token, whatever it is asked; a special token is an item of its
    own.
    """
    state: dict[str, Any] = {}

    def force(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(output, -1e4)
        forced[..., state["ids"][min(state["step"], len(state["ids"]) - 1)]] = 1e4
        state["step"] += 1
        return forced

    def script(*pieces: str) -> int:
        tokenizer = service.processor.tokenizer
        ids: list[int] = []
        for piece in pieces:
            ids += (
                [tokenizer.control_ids[piece]] if piece in tokenizer.control_ids else tokenizer.encode_texts([piece])[0]
            )
        state.update(ids=ids, step=0)
        return len(ids)

    handle = service.model.lm_head.register_forward_hook(force)
    try:
        yield script
    finally:
        handle.remove()


@contextmanager
def prompts_read(service: Service) -> Iterator[list[list[int]]]:
    """The prompts that the engine is given meanwhile."""
    found: list[list[int]] = []
    submit = service.engine.submit

    def spy(job: Any) -> None:
        found.append(job.prompt.ids)
        submit(job)

    service.engine.submit = spy  # type: ignore[method-assign]
    try:
        yield found
    finally:
        service.engine.submit = submit  # type: ignore[method-assign]
