"""The server through the openai client on 127.0.0.1: answers are the library's, images are seen, calls go round, the
command serves.
"""

import base64
import io
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from PIL import Image
from server_cases import GUARD, QUESTION, TOOL, Service, free_port, prompts_read, spoken
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4 import Small4ForCausalLM, Small4Processor

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder)
    yield running
    running.close()


def expected(
    folder: Path, mode: str, budget: int | None, tokens: int = 12, content: Any = QUESTION[0]["content"]
) -> dict[str, Any]:
    """What the library itself answers."""
    model, processor = Small4ForCausalLM.from_pretrained(folder).eval(), Small4Processor.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], reasoning_mode=mode, add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
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
    assert answer.usage.prompt_tokens == len(service.prompt_tokens(QUESTION, reasoning_mode=mode))


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


def test_images_are_seen(service: Service, folder: Path) -> None:
    texts = []
    for color in ((200, 30, 30), (30, 30, 200)):
        url = data_url(color)
        content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        answer = service.ask([{"role": "user", "content": content}], reasoning_effort="none")
        ours = [content[0], {"type": "image", "url": url}]
        assert answer.choices[0].message.content == expected(folder, "none", None, content=ours)["content"]
        texts.append(answer.choices[0].message.content)
        item = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url}]
        answer = service.client.responses.create(
            model="tiny", input=[{"role": "user", "content": item}], max_output_tokens=12, temperature=0
        )
        assert answer.output_text == texts[-1]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(service: Service, stream: bool) -> None:
    with spoken(service) as says:
        says("[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 3}', "</s>")
        answer = service.ask(tools=[TOOL], tokens=60, stream=stream)
        if stream:
            calls: dict[int, list[str]] = {}
            deltas = []
            for chunk in answer:
                reason = chunk.choices[0].finish_reason
                for call in chunk.choices[0].delta.tool_calls or []:
                    deltas.append(call)
                    part = calls.setdefault(call.index, ["", "", ""])
                    for place, text in enumerate((call.id, call.function.name, call.function.arguments)):
                        part[place] += text or ""
            assert (deltas[0].function.name, deltas[0].function.arguments) == ("add", "")
            assert len(deltas) > 6
            found = list(calls.values())
        else:
            message, reason = answer.choices[0].message, answer.choices[0].finish_reason
            found = [[call.id, call.function.name, call.function.arguments] for call in message.tool_calls]
            assert message.content is None
    assert [(name, json.loads(arguments)) for _, name, arguments in found] == [("add", {"a": 2}), ("add", {"a": 3})]
    assert len({call_id for call_id, _, _ in found}) == 2
    assert reason == "tool_calls"


def test_a_whole_round_with_a_tool(service: Service) -> None:
    """The call and its result go back in; the prompt is then the one that the processor makes of the same messages."""
    with spoken(service) as says:
        says("[THINK]", "hm", "[/THINK]", "Adding", "[TOOL_CALLS]", "add", "[ARGS]", '{"a": 2}', "</s>")
        first = service.ask(tools=[TOOL], tokens=60, reasoning_effort="high").choices[0].message
        assert (first.reasoning_content, first.content) == ("hm", "Adding")
        says("5", "</s>")
        call = first.tool_calls[0]
        messages = [*QUESTION, first.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "5"}]
        with prompts_read(service) as prompts:
            assert service.ask(messages, tools=[TOOL], tokens=60).choices[0].message.content == "5"
    said = {"role": "assistant", "reasoning_content": "hm", "content": "Adding"}
    said["tool_calls"] = [{"id": call.id, "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    assert prompts == [service.prompt_tokens([*QUESTION, said, messages[-1]], tools=[TOOL])]


def test_models_and_other_endpoints(service: Service, folder: Path) -> None:
    assert [model.id for model in service.client.models.list()] == ["tiny"]
    assert service.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other'"):
        service.client.models.retrieve("other")
    answer = service.client.responses.create(
        model="tiny", input=QUESTION[0]["content"], reasoning={"effort": "high"}, max_output_tokens=12, temperature=0,
        extra_body={"max_thinking_tokens": 3},
    )  # fmt: skip
    assert answer.output_text == expected(folder, "high", 3)["content"]
    assert service.client.completions.create(model="tiny", prompt="Once", max_tokens=4, temperature=0).choices[0].text
    assert service.fetch("/health")[:2] == (200, {"status": "ok"})
    metrics = service.fetch("/metrics")[1]
    figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert int(figures["small4_generated_tokens_total"]) >= 12
    assert int(figures["small4_queue"]) == 0
    assert {"small4_running", "small4_tokens_per_second", "small4_cached_tokens_total", "small4_cache_bytes"} <= set(
        figures
    )


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
    command = [sys.executable, "-m", "modeling_small4", "serve", "--model", str(folder), "--port", str(port)]
    with subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True) as running:
        try:
            _ask_and_interrupt(running, port)
        finally:
            running.kill()


def _ask_and_interrupt(running: "subprocess.Popen[str]", port: int) -> None:
    assert running.stderr is not None
    first = next(
        line for line in running.stderr if "serving" in line
    )  # libraries may have lines of their own before it
    assert f"serving tiny at http://127.0.0.1:{port}/v1" in first
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20, timeout=GUARD)
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3)
    assert answer.usage.completion_tokens == 3
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
    assert "<html" in page
    running.send_signal(signal.SIGINT)
    assert running.wait(GUARD) == 0
    assert "Traceback" not in running.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-batch", "0"], "--max-batch must be 1 or more"),
        (["--model", "/nowhere"], "no such folder"),
        (["--port", "x"], "invalid int"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    from modeling_small4.commands.cli import main

    assert main(["serve", *arguments]) in (1, 2)
    assert words in capfd.readouterr().err
