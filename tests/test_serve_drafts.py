"""The server with a draft: the same answers, alone and beside others, and how many drafted tokens were chosen."""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import cycle
from typing import Any

import pytest
from dflash_checkpoint import write
from server_cases import Service

from modeling_small4 import Small4Config, demo_checkpoint, demo_draft

QUESTIONS = ["What is 482 + 759?", "Reverse the word dolphin.", "What is 91 - 38?", "Hello!"]


@pytest.fixture(scope="module")
def plain() -> Iterator[Service]:
    running = Service(demo_checkpoint(), "demo")
    yield running
    running.close()


@pytest.fixture(scope="module", params=["eagle", "prompt_lookup", "dflash"])
def drafted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    draft = str(demo_draft()) if request.param == "eagle" else request.param
    if draft == "dflash":
        text = Small4Config.from_pretrained(demo_checkpoint()).text_config
        draft = str(write(tmp_path_factory.mktemp("draft"), "speculators", text.hidden_size, text.vocab_size))
    running = Service(demo_checkpoint(), "demo", draft=draft)
    yield running
    running.close()


def ask(service: Service, question: str, **fields: Any) -> Any:
    body = {"model": "demo", "messages": [{"role": "user", "content": question}], "reasoning_effort": "high"} | fields
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        said = json.loads(answer.read())
    return said["choices"], said["usage"]["completion_tokens"]


@pytest.fixture(scope="module")
def expected(plain: Service) -> Callable[..., Any]:
    """What the server answers without a draft, asked once."""
    found = cache(lambda question, fields: ask(plain, question, **json.loads(fields)))
    return lambda question, **fields: found(question, json.dumps(fields))


def test_answers_are_those_without_a_draft(expected: Callable[..., Any], drafted: Service) -> None:
    asked = ({}, {"temperature": 1.0, "seed": 3}, {"max_tokens": 6}, {"stop": ["+1="]}, {"n": 2, "seed": 1})
    for question, fields in zip(cycle(QUESTIONS), asked, strict=False):
        assert expected(question, **fields) == ask(drafted, question, **fields)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda question: ask(drafted, question), QUESTIONS))
    assert together == [expected(question) for question in QUESTIONS]


def test_metrics_count_drafted_tokens(drafted: Service) -> None:
    ask(drafted, QUESTIONS[0])
    with urllib.request.urlopen(f"http://127.0.0.1:{drafted.port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r"^small4_(drafted|accepted)_tokens_total (\d+)$", text, re.MULTILINE)
    counts = {name: int(count) for name, count in found}
    assert counts["drafted"] >= counts["accepted"] >= 0
    if drafted.engine.decoder.draft == str(demo_draft()):
        assert counts["accepted"] > 0
