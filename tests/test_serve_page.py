"""The page at `/`: one file that loads nothing from elsewhere, and the requests that it makes are answered."""

import json
import re
from collections.abc import Iterator

import pytest
import torch
from server_cases import Service
from test_serve import data_url
from tiny_checkpoint import write_tiny_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(write_tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny"))
    yield running
    running.close()


def test_it_is_one_file(service: Service) -> None:
    status, page, headers = service.fetch("/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']|@import|url\(|https?://""", page)
    assert "innerHTML" not in page  # what the model writes is text
    names = set(re.findall(r'\bat\("(\w+)"\)', page))
    assert names == set(re.findall(r'\bid="(\w+)"', page))


def test_its_requests_are_answered(service: Service) -> None:
    """As the page sends them, with an image, a thought, and the answer in the next turn."""
    _, page, _ = service.fetch("/")
    path = re.search(r'fetch\("([^"]+)"', page)
    assert path is not None
    headers = {"origin": f"http://127.0.0.1:{service.port}", "authorization": "Bearer unused"}
    parts = [{"type": "image_url", "image_url": {"url": data_url((1, 2, 3))}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]
    body = {"messages": messages, "stream": True, "reasoning_effort": "high", "max_thinking_tokens": 3, "max_tokens": 9}
    status, text, _ = service.post(path.group(1), body, headers)
    assert status == 200
    events = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    said = {"role": "assistant", "content": "".join(delta.get("content") or "" for delta in deltas)}
    said["reasoning_content"] = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert said["content"]
    assert said["reasoning_content"]
    body["messages"] = [*messages, said, {"role": "user", "content": "And?"}]
    assert service.post(path.group(1), body, headers)[0] == 200
