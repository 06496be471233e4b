"""Who may ask, what may be sent: hosts, origins, keys, bodies, images, and what stands at other paths."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from server_cases import QUESTION, Service
from tiny_checkpoint import write_tiny_checkpoint

torch.set_num_threads(1)
CHAT = "/v1/chat/completions"
ASK = {"messages": QUESTION, "max_tokens": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def service(folder: Any) -> Iterator[Service]:
    running = Service(folder, body=200_000, images=2)
    yield running
    running.close()


@pytest.fixture(scope="module")
def guarded(folder: Any) -> Iterator[Service]:
    running = Service(folder, key="sesame", hosts=("llm.example",), origins=("https://app.example",))
    yield running
    running.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "10.0.0.1"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
    ],
    ids=str,
)  # fmt: skip
def test_hosts_and_origins(service: Service, headers: dict[str, str], status: int) -> None:
    found, answer, got = service.post(CHAT, ASK, headers)
    assert found == status, answer
    assert "access-control-allow-origin" not in got
    if status != 200:
        assert answer["error"]["message"]


def test_the_page_itself_may_ask(service: Service) -> None:
    assert service.post(CHAT, ASK, {"origin": f"http://127.0.0.1:{service.port}"})[0] == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/metrics", "/v1/models/tiny"])
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "Basic sesame", "sesame", "Bearer sesame"])
def test_the_key(guarded: Service, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    status, answer, got = guarded.fetch(path, json.dumps(ASK).encode() if path == CHAT else None, headers)
    assert status == (200 if given == "Bearer sesame" else 401), answer
    if status == 401:
        assert answer["error"]["code"] == "invalid_api_key"
        assert got["www-authenticate"] == "Bearer"
        assert "sesame" not in json.dumps(answer)


def test_health_and_page_need_no_key(guarded: Service) -> None:
    assert guarded.fetch("/health")[0] == 200
    assert guarded.fetch("/")[0] == 200


def test_origins_that_are_allowed(guarded: Service) -> None:
    headers = {"authorization": "Bearer sesame", "origin": "https://app.example", "host": "llm.example"}
    status, _, got = guarded.post(CHAT, ASK, headers)
    assert (status, got["access-control-allow-origin"]) == (200, "https://app.example")
    assert guarded.post(CHAT, ASK, headers | {"origin": "https://other.example"})[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/load_model",
        "/reset",
        "/docs",
        "/openapi.json",
        "/v1/systemone",
        "/v1/audio/transcriptions",
        "/v1",
        "/../etc/passwd",
    ],
)
def test_nothing_else_is_there(service: Service, path: str) -> None:
    for data in (None, b"{}"):
        status, answer, _ = service.fetch(path, data)
        assert status in (404, 405)
        assert answer["error"]["message"]


def test_methods(service: Service) -> None:
    assert service.fetch(CHAT)[0] == 405


def deep(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b"{'a': 1}", deep(10_000), deep(90_000),
    b'{"messages": NaN}', b'{"messages": 1e400}',
     b'{"temperature": Infinity, "messages": []}', b'{"n": ' + b"9" * 5000 + b"}"],
    ids=lambda body: str(body[:24]),
)  # fmt: skip
def test_bodies_that_are_no_requests(service: Service, body: bytes) -> None:
    for path in (CHAT, "/v1/responses", "/v1/completions"):
        status, answer, _ = service.fetch(path, body)
        assert status == 400
        assert answer["error"]["message"]


def test_half_a_surrogate_pair_does_no_harm(service: Service) -> None:
    body = json.dumps({"model": "tiny", "input": "a\ud800b", "instructions": "\udfff", "max_output_tokens": 2}).encode()
    assert service.fetch("/v1/responses", body)[0] == 200
    assert service.fetch(CHAT, json.dumps({"messages": [{"role": "\ud800", "content": "x"}]}).encode())[0] == 400


def test_bodies_that_are_too_large(service: Service) -> None:
    status, answer, _ = service.fetch(CHAT, b" " * 200_001)
    assert (status, "200000" in answer["error"]["message"]) == (413, True)


@pytest.mark.parametrize(
    "url",
    [
        "/etc/hostname",
        "file:///etc/hostname",
        "http://127.0.0.1/x.png",
        "https://example.com/x.png",
        "data:image/png;base64,AAAA",
        "x",
    ],
)
def test_images_come_from_data_urls_only(service: Service, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    status, answer, _ = service.post(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert (status, answer["error"]["param"]) == (400, "messages")
    status, answer, _ = service.post(CHAT, {"messages": [{"role": "user", "content": content * 3}]})
    assert (status, "at most 2" in answer["error"]["message"]) == (400, True)
