"""The engine: requests are batched, clients that leave free it within a token, the queue has an end, beginnings are
read once.

Nothing here is decided by the clock: the model's forward is held and counted by events.
"""

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from server_cases import GUARD, QUESTION, Service
from test_serve import data_url
from tiny_checkpoint import write_tiny_checkpoint

torch.set_num_threads(1)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny"), waiting=2, rows=4)
    yield running
    running.close()


class Gate:
    """Holds the model before each forward until it is let through, and counts its tokens."""

    def __init__(self, service: Service) -> None:
        self.service, self.let, self.at = service, threading.Semaphore(0), threading.Semaphore(0)
        self.steps: list[int] = []
        self.open = False

    def __enter__(self) -> "Gate":
        self.handle = self.service.model.lm_head.register_forward_pre_hook(self._hold)
        return self

    def _hold(self, module: Any, arguments: Any) -> None:
        self.steps.append(arguments[0].shape[1])
        self.at.release()
        if not self.open:
            assert self.let.acquire(timeout=GUARD)

    def arrive(self) -> None:
        """Waits until a forward is held."""
        assert self.at.acquire(timeout=GUARD)

    def free(self) -> None:
        self.open = True
        self.let.release(1000)

    def __exit__(self, *error: Any) -> None:
        self.free()
        self.handle.remove()


def leave(service: Service, body: dict[str, Any], gate: Gate) -> None:
    """Asks, waits until the engine is at the first token, and hangs up."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=GUARD)
    connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
    gate.arrive()
    connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine_within_a_token(service: Service, stream: bool) -> None:
    cancelled = threading.Event()
    cancel = service.engine.cancel

    def spy(job: Any) -> None:
        cancel(job)
        cancelled.set()

    service.engine.cancel = spy  # type: ignore[method-assign]
    before = service.engine.counts.finished.get("cancelled", 0)
    try:
        with Gate(service) as gate:
            leave(
                service, {"messages": QUESTION, "max_tokens": 3000, "stream": stream, "logit_bias": {"2": -100}}, gate
            )
            if stream:  # the server notices when it has something to say or hears that the client is gone
                gate.let.release()
                gate.arrive()
            assert cancelled.wait(GUARD)
            held = len(gate.steps)
            gate.free()
            answer = service.ask(tokens=1)
            assert answer.usage.completion_tokens == 1
            assert len(gate.steps) <= held + 2  # the step it was at, and the one of the other request
    finally:
        service.engine.cancel = cancel  # type: ignore[method-assign]
    assert service.engine.counts.finished["cancelled"] == before + 1
    assert service.engine.running == 0


def test_requests_that_wait_are_decoded_together_and_answered_as_alone(service: Service) -> None:
    chats = [
        {"messages": [{"role": "user", "content": "Hello, number one"}], "reasoning_effort": "none"},
        {"messages": [{"role": "user", "content": "And " * 40}], "reasoning_effort": "high", "max_thinking_tokens": 4},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url((9, 99, 9))}},
        {"type": "text", "text": "?"}]}]},
    ]  # fmt: skip
    bodies = [{"max_tokens": 20, "temperature": 0} | each for each in chats]
    alone = [service.post(CHAT, body)[1]["choices"][0]["message"] for body in bodies]
    with Gate(service) as gate, ThreadPoolExecutor(4) as pool:
        first = pool.submit(service.ask, tokens=30)
        gate.arrive()
        made = [pool.submit(service.post, CHAT, bodies[0])]
        made += [pool.submit(service.post, CHAT, bodies[1])]
        wait_for(lambda: service.engine.queued == 2)
        gate.free()
        wait_for(lambda: service.engine.queued < 2)  # no more may wait
        made.append(pool.submit(service.post, CHAT, bodies[2]))
        assert [each.result(GUARD)[1]["choices"][0]["message"] for each in made] == alone
        first.result(GUARD)
    assert max(gate.steps) >= 3


def wait_for(condition: Any) -> None:
    turn = threading.Event()
    for _ in range(GUARD * 100):
        if condition():
            return
        turn.wait(0.01)
    pytest.fail("it never came about")


def test_a_full_queue_says_when_to_come_back(service: Service) -> None:
    with Gate(service) as gate, ThreadPoolExecutor(4) as pool:
        made = [pool.submit(service.ask, tokens=2)]
        gate.arrive()
        made += [pool.submit(service.ask, tokens=2) for _ in range(2)]
        wait_for(lambda: service.engine.queued == 2)
        status, answer, headers = service.post(CHAT, {"messages": QUESTION})
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["retry-after"]) >= 1
        gate.free()
        assert all(each.result(GUARD).usage.completion_tokens == 2 for each in made)


def test_a_beginning_is_read_once(service: Service) -> None:
    long = "A long text that comes again and again. " * 30
    first = [{"role": "user", "content": long + "What?"}]
    read: list[int] = []
    handle = service.model.model.language_model.register_forward_pre_hook(
        lambda module, arguments, named: read.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        one = service.ask(first, tokens=20)
        for text in (long + "What?", long + "Who is it, then?"):
            read.clear()
            again = service.ask([{"role": "user", "content": text}], tokens=20)
            cached = again.usage.prompt_tokens_details.cached_tokens
            assert cached > 250
            assert read[0] == again.usage.prompt_tokens - cached < 30
            if text == first[0]["content"]:
                assert again.choices[0].message.content == one.choices[0].message.content
        said = {"role": "assistant", "content": one.choices[0].message.content}
        turn = service.ask([*first, said, {"role": "user", "content": "And?"}], tokens=5)
        assert turn.usage.prompt_tokens_details.cached_tokens >= one.usage.prompt_tokens
    finally:
        handle.remove()


def test_what_was_read_before_changes_no_answer(service: Service) -> None:
    texts = ["The beginning that all of them share, word by word. " * 8 + end for end in ("one", "two?", "three!", "")]
    fresh = []
    for text in texts:
        service.engine.prefixes.__init__(2**31)  # type: ignore[misc]
        fresh.append(service.ask([{"role": "user", "content": text}], tokens=16).choices[0].message.content)
    service.engine.prefixes.__init__(2**31)  # type: ignore[misc]
    assert [
        service.ask([{"role": "user", "content": text}], tokens=16).choices[0].message.content for text in texts
    ] == fresh


def test_images_in_a_beginning_are_told_apart(service: Service) -> None:
    def chat(color: tuple[int, int, int], text: str) -> list[Any]:
        lead = {"type": "text", "text": "Look at this very carefully. " * 20}
        image = {"type": "image_url", "image_url": {"url": data_url(color)}}
        return [{"role": "user", "content": [lead, image, {"type": "text", "text": text}]}]

    service.engine.prefixes.__init__(2**31)  # type: ignore[misc]
    red, green = (service.ask(chat(color, "What is it?"), tokens=8) for color in ((250, 0, 0), (0, 250, 0)))
    again = service.ask(chat((250, 0, 0), "What is it?"), tokens=8)
    assert again.choices[0].message.content == red.choices[0].message.content
    assert green.usage.prompt_tokens_details.cached_tokens < again.usage.prompt_tokens_details.cached_tokens
    other = service.ask(chat((250, 0, 0), "Why?"), tokens=8)
    assert other.usage.prompt_tokens_details.cached_tokens > green.usage.prompt_tokens_details.cached_tokens


def test_what_is_kept_is_bounded(service: Service) -> None:
    service.engine.prefixes.__init__(200_000)  # type: ignore[misc]
    try:
        for number in range(12):
            service.ask([{"role": "user", "content": f"{number} is the number " * 40}], tokens=2)
            assert service.engine.prefixes.nbytes <= 200_000
        assert 0 < len(service.engine.prefixes) < 12
    finally:
        service.engine.prefixes.__init__(2**31)  # type: ignore[misc]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_told_in_json_and_ends_only_that_request(service: Service, stream: bool) -> None:
    class Broken(Exception):
        pass

    def fail(module: Any, arguments: Any) -> None:
        raise Broken("a secret of the server: /home/somebody")

    handle = service.model.lm_head.register_forward_pre_hook(fail)
    try:
        with pytest.raises(openai.APIError) as raised:
            list(service.ask(stream=stream))  # the chunks of a stream; an answer that is none has already failed
    finally:
        handle.remove()
    assert "secret" not in str(raised.value)
    assert "failed" in str(raised.value)
    assert service.ask(tokens=1).usage.completion_tokens == 1
