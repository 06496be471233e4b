"""Many requests at once, many broken ones, and clients that leave: the server goes on answering, and keeps nothing of
them.
"""

import gc
import http.client
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from server_cases import GUARD, QUESTION, TOOL, Service
from tiny_checkpoint import write_tiny_checkpoint

torch.set_num_threads(1)
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
WHOLE = {
    "model": "tiny", "messages": QUESTION, "input": "x", "prompt": "x", "max_tokens": 2, "max_output_tokens": 2,
    "tools": [TOOL], "n": 1,
    "tool_choice": "auto", "response_format": {"type": "text"}, "stop": ["x"], "logit_bias": {"1000": 1},
    "stream_options": {}, "seed": 1,
    "reasoning_effort": "none", "reasoning": {"effort": "none"}, "text": {"format": {"type": "text"}},
    "temperature": 0.5, "logprobs": True,
}  # fmt: skip
STRANGE = (
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "x",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    [None],
    {},
    {"type": 5},
    {"a": {"b": []}},
    [{"role": []}],
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny"), prefix_bytes=0)
    yield running
    running.close()


def mutated(value: Any, chance: random.Random) -> Any:
    """The value with some part of it replaced by something strange, left out or doubled."""
    if chance.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return chance.choice(STRANGE)
    if isinstance(value, list):
        index = chance.randrange(len(value))
        return [*value[:index], mutated(value[index], chance), *value[index + chance.randint(0, 1) :]]
    key = chance.choice(sorted(value))
    if chance.random() < 0.2:
        return {name: each for name, each in value.items() if name != key} | {
            chance.choice(("", "x", key + "s")): value[key]
        }
    return value | {key: mutated(value[key], chance)}


def malformed(seed: int) -> tuple[str, bytes]:
    chance = random.Random(seed)
    path = chance.choice(PATHS)
    own = {"/v1/chat/completions": {"input", "prompt", "max_output_tokens", "text", "stream_options"},
        "/v1/responses": {"messages", "prompt", "max_tokens", "n", "response_format", "reasoning_effort", "logprobs",
        "stream_options", "tools"}}  # fmt: skip
    body = {
        key: value
        for key, value in WHOLE.items()
        if key not in own.get(path, set(WHOLE) - {"model", "prompt", "max_tokens", "n", "stop", "seed"})
    }
    for _ in range(chance.randint(1, 3)):
        body = mutated(body, chance)
        if not isinstance(body, dict):
            break
    data = json.dumps(body).encode()
    return path, data[: chance.randrange(len(data))] if chance.random() < 0.1 else data


def resident() -> int:
    """Bytes of this process, server included, that lie in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def broken(service: Service, seeds: range) -> dict[int, int]:
    counts: dict[int, int] = {}
    for seed in seeds:
        status, answer, _ = service.fetch(malformed(seed)[0], malformed(seed)[1])
        counts[status] = counts.get(status, 0) + 1
        assert status in (200, 400, 404, 413), (seed, malformed(seed), answer)
        if status != 200:
            assert set(answer["error"]) == {"message", "type", "param", "code"}
    return counts


def crowd(service: Service, count: int) -> None:
    bodies: list[dict[str, Any]] = [
        {"max_tokens": 5}, {"max_tokens": 5, "stream": True},
        {"max_tokens": 30, "tools": [TOOL], "tool_choice": "required"},
        {"max_tokens": 5, "n": 2}, {"max_tokens": 8, "reasoning_effort": "high", "max_thinking_tokens": 3},
    ]  # fmt: skip

    def ask(number: int) -> int:
        messages = [{"role": "user", "content": f"Number {number}"}]
        return service.post(PATHS[0], {"messages": messages} | bodies[number % len(bodies)])[0]

    with ThreadPoolExecutor(count) as pool:
        assert set(pool.map(ask, range(count))) == {200}


def leaving(service: Service, count: int) -> None:
    for number in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=GUARD)
        body = {"messages": QUESTION, "max_tokens": 3000, "stream": number % 2 == 0, "logit_bias": {"2": -100}}
        connection.request("POST", PATHS[0], json.dumps(body), {"content-type": "application/json"})
        connection.close()


@pytest.mark.slow
def test_the_server_survives(service: Service) -> None:
    """A first round warms up; what a second one like it adds to memory is little, however many requests it was."""
    for round_ in range(2):
        before = resident()
        counts = broken(service, range(round_ * 300, round_ * 300 + 300))
        assert counts[400] > 150
        crowd(service, 60)
        leaving(service, 20)
        assert service.ask(tokens=3).usage.completion_tokens == 3
    assert resident() - before < 40 * 2**20
    assert service.fetch("/health")[0] == 200
    assert service.engine.queued == 0
