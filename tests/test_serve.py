"""`small4 serve` through the real openai client on 127.0.0.1: answers, streams, thoughts apart, tools, pictures, refusals."""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4 import Small4ForCausalLM, Small4Processor
from modeling_small4.commands.server import make_server
from tests.chat_options import PROMPT

torch.set_num_threads(1)
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


class Service:
    """A running server, its model and a client."""

    def __init__(self, folder: Path, **options: Any) -> None:
        port = free_port()
        self.server = make_server(str(folder), port=port, device="cpu", **options)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        self.processor = Small4Processor.from_pretrained(folder)

    def ask(self, messages: list[Any] = QUESTION, tokens: int = 12, **options: Any) -> Any:
        options = {"model": "tiny", "temperature": 0, "max_tokens": tokens} | options
        return self.client.chat.completions.create(messages=messages, **options)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder)
    yield running
    running.close()


def expected(
    folder: Path, mode: str, budget: int | None, tokens: int = 12, content: Any = QUESTION[0]["content"]
) -> dict[str, Any]:
    """What the library itself answers."""
    model, processor = Small4ForCausalLM.from_pretrained(folder), Small4Processor.from_pretrained(folder)
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], reasoning_mode=mode, **PROMPT)
    out = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, reasoning_mode=mode, max_thinking_tokens=budget
    )
    return processor.parse_response(out[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize(("mode", "budget"), [("none", None), ("high", None), ("high", 3)])
def test_answers_are_those_of_generate(service: Service, folder: Path, mode: str, budget: int | None) -> None:
    extra = {} if budget is None else {"extra_body": {"max_thinking_tokens": budget}}
    answer = service.ask(reasoning_effort=mode, **extra)
    want, message = expected(folder, mode, budget), answer.choices[0].message
    assert message.content == want["content"]
    assert getattr(message, "reasoning_content", None) == want["reasoning_content"]
    assert (want["reasoning_content"] is not None) == (mode == "high")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12


def test_stream_tells_thoughts_from_content(service: Service, folder: Path) -> None:
    chunks = list(service.ask(reasoning_effort="high", extra_body={"max_thinking_tokens": 3}, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    want = expected(folder, "high", 3)
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == want["reasoning_content"]
    assert "".join(delta.content or "" for delta in deltas) == want["content"]
    assert sum(bool(delta.content) for delta in deltas) > 1
    assert chunks[-1].choices[0].finish_reason == "length"


def data_url(color: tuple[int, int, int]) -> str:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_pictures_are_seen(service: Service, folder: Path) -> None:
    texts = []
    for color in ((200, 30, 30), (30, 30, 200)):
        url = data_url(color)
        content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        answer = service.ask([{"role": "user", "content": content}], reasoning_effort="none")
        ours = [content[0], {"type": "image", "url": url}]
        assert answer.choices[0].message.content == expected(folder, "none", None, content=ours)["content"]
        texts.append(answer.choices[0].message.content)
    assert texts[0] != texts[1]


@pytest.fixture
def says(service: Service) -> Iterator[Any]:
    """Makes the served model say given text, token by token, whatever it is asked."""
    state: dict[str, Any] = {}

    def force(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(output, -1e4)
        forced[..., state["ids"][min(state["step"], len(state["ids"]) - 1)]] = 1e4
        state["step"] += 1
        return forced

    def script(*pieces: str) -> None:
        tokenizer = service.processor.tokenizer
        ids = [tokenizer.convert_tokens_to_ids(p) if p.startswith("[") or p == "</s>" else p for p in pieces]
        flat = [[i] if isinstance(i, int) else tokenizer(i, add_special_tokens=False)["input_ids"] for i in ids]
        state.update(ids=[i for part in flat for i in part], step=0)

    (model,) = [timed.model for timed in service.server.manager.loaded_models.values()]
    handle = model.lm_head.register_forward_hook(force)
    yield script
    handle.remove()


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(service: Service, says: Any, stream: bool) -> None:
    says("[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 3}', "</s>")
    answer = service.ask(tools=[TOOL], tokens=60, stream=stream)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        reason = chunks[-1].choices[0].finish_reason
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("add", {"a": 2}),
        ("add", {"a": 3}),
    ]
    assert len({call.id for call in calls}) == 2
    assert reason == "tool_calls"


@pytest.mark.parametrize("stop", ["lo", ["nowhere", "lo"]])
def test_stop_words_end_an_answer(service: Service, says: Any, stop: Any) -> None:
    says("Hel", "lo", "there", "again", "</s>")
    choice = service.ask(stop=stop).choices[0]
    assert choice.message.content == "Hello"
    assert choice.finish_reason == "stop"


def test_a_whole_round_with_a_tool(service: Service, says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call and its result go back in; the prompt is then the one that the processor makes of the same messages."""
    says("[THINK]", "hm", "[/THINK]", "Adding", "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "</s>")
    first = service.ask(tools=[TOOL], tokens=60, reasoning_effort="high").choices[0].message
    assert (first.reasoning_content, first.content) == ("hm", "Adding")
    prompts = []
    original = Small4ForCausalLM.generate

    def spy(self: Any, **kwargs: Any) -> Any:
        prompts.append(kwargs["input_ids"][0].tolist())
        return original(self, **kwargs)

    monkeypatch.setattr(Small4ForCausalLM, "generate", spy)
    says("5", "</s>")
    call = first.tool_calls[0]
    messages = [
        *QUESTION,
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "5"},
    ]
    assert service.ask(messages, tools=[TOOL], tokens=60).choices[0].message.content == "5"
    spoken = {"role": "assistant", "reasoning_content": "hm", "content": "Adding"}
    spoken["tool_calls"] = [{"id": call.id, "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    want = service.processor.apply_chat_template([*QUESTION, spoken, messages[-1]], tools=[TOOL], **PROMPT)
    assert prompts == [want["input_ids"][0].tolist()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reasoning_effort": "medium"}, "'medium'"),
        ({"reasoning_effort": "high", "extra_body": {"chat_template_kwargs": {"reasoning_effort": "none"}}}, "two reasoning modes"),
        ({"extra_body": {"max_thinking_tokens": -1}}, "max_thinking_tokens=-1"),
        ({"extra_body": {"max_thinking_tokenz": 1}}, "max_thinking_tokenz"),
        ({"model": "other"}, "other"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/hostname"}}]}]}, "hostname"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]}, "127.0.0.1"),
    ],
)  # fmt: skip
def test_refusals_say_why(service: Service, options: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        service.ask(**options)
    assert 400 <= refused.value.status_code < 500
    assert words in str(refused.value)


def test_models_and_other_endpoints(service: Service, folder: Path) -> None:
    assert [model.id for model in service.client.models.list()] == ["tiny"]
    answer = service.client.responses.create(
        model="tiny", input=QUESTION[0]["content"], reasoning={"effort": "high"}, max_output_tokens=12, temperature=0,
        extra_body={"max_thinking_tokens": 3},
    )  # fmt: skip
    assert answer.output_text == expected(folder, "high", 3)["content"]
    assert service.client.completions.create(model="tiny", prompt="Once", max_tokens=4, temperature=0).choices[0].text


def test_the_servers_default_mode(folder: Path) -> None:
    running = Service(folder, mode="high")
    try:
        assert running.ask(tokens=4).choices[0].message.reasoning_content
        assert not hasattr(running.ask(tokens=4, reasoning_effort="none").choices[0].message, "reasoning_content")
    finally:
        running.close()


@pytest.mark.slow
def test_the_command_serves_until_interrupted(folder: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "modeling_small4",
        "serve",
        "--model",
        str(folder),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        first = next(
            line for line in running.stderr if "serving" in line
        )  # libraries may have lines of their own before it
        assert f"serving tiny at http://127.0.0.1:{port}/v1" in first
        while running.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                time.sleep(0.05)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        assert (
            client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3).usage.completion_tokens == 3
        )
        running.send_signal(signal.SIGINT)
        assert running.wait(600) == 0
        assert "Traceback" not in running.stderr.read()
