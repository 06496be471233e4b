"""The benchmark of the server, on a short prompt."""

import json
import sys
from types import SimpleNamespace

import pytest
from forked import Python

from model_card.bench import server


class Served:
    """In place of `subprocess.Popen`: a server that does not wait for imports."""

    def __init__(self, command: list[str]) -> None:
        self.running = Python(*command[1:])

    def poll(self) -> int | None:
        return self.running.process.exitcode

    def terminate(self) -> None:
        self.running.process.terminate()

    def wait(self) -> None:
        self.running.done()


@pytest.mark.slow
def test_a_kept_prefix_is_read_once_and_requests_are_answered_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "subprocess", SimpleNamespace(Popen=Served))
    words = ["--runs", "1", "--prefix", "300", "--tokens", "4", "--clients", "3"]
    monkeypatch.setattr(sys, "argv", ["server", *words])
    server.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows["prefix"]["prompt_tokens"] - rows["prefix"]["cached_tokens"] < 30
    assert rows["prefix"]["cached_tokens"] > 300
    assert rows["together"]["same_answers"] == 3
