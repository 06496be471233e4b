"""A conversation's beginning on disk: read once, the same answers, and refused where it does not belong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4.commands.cli import main
from modeling_small4.commands.session import Session, load

torch.set_num_threads(1)
LONG = "A long text that comes again and again. " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("prefix") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load(str(folder), "cpu")


def test_what_is_on_disk_is_not_read_again_and_changes_nothing(loaded: Any, tmp_path: Path) -> None:
    first = Session(*loaded, max_new_tokens=8)
    first.ask(LONG + "What?")
    first.save_prefix(tmp_path / "prefix")
    assert [path.name for path in tmp_path.iterdir()] == ["prefix"]
    for text in (LONG + "What?", LONG + "Who, then?", "Something else."):
        fresh, again = Session(*loaded, max_new_tokens=8), Session(*loaded, max_new_tokens=8)
        again.load_prefix(tmp_path / "prefix")
        want, found = fresh.ask(text), again.ask(text)
        assert found.message == want.message
        assert (found.cached_tokens > 200) == text.startswith(LONG)
        assert found.prompt_tokens - found.cached_tokens < 20 or not text.startswith(LONG)


def test_images_are_told_apart(loaded: Any, tmp_path: Path) -> None:
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{color}.png")
    first = Session(*loaded, max_new_tokens=8)
    first.ask("What is it?", [tmp_path / "red.png"])
    first.save_prefix(tmp_path / "prefix")
    for color in ("red", "blue"):
        fresh, again = Session(*loaded, max_new_tokens=8), Session(*loaded, max_new_tokens=8)
        again.load_prefix(tmp_path / "prefix")
        want, found = (session.ask("What is it?", [tmp_path / f"{color}.png"]) for session in (fresh, again))
        assert found.message == want.message
        assert (found.cached_tokens > 0) == (color == "red")


def test_the_commands(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--model", str(folder), "--max-new-tokens", "6", "--json"]
    assert main(["generate", LONG, *common, "--save-prefix", str(tmp_path / "p")]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main(["generate", LONG, *common, "--load-prefix", str(tmp_path / "p")]) == 0
    two = json.loads(capsys.readouterr().out)
    assert (one["content"], one["prompt_tokens"]) == (two["content"], two["prompt_tokens"])
    lines = iter([LONG, "And?"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert main(["chat", *common, "--load-prefix", str(tmp_path / "p"), "--save-prefix", str(tmp_path / "p")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["content"] == one["content"]


def test_files_that_do_not_belong_are_refused(
    folder: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(*loaded, max_new_tokens=2)
    with pytest.raises(ValueError, match="nothing to save"):
        session.save_prefix(tmp_path / "x")
    session.ask("Hello there")
    session.save_prefix(tmp_path / "prefix")
    other = load(str(write_tiny_checkpoint(tmp_path / "other", seed=1)), "cpu")
    with pytest.raises(ValueError, match="another model"):
        Session(*other).load_prefix(tmp_path / "prefix")
    whole = (tmp_path / "prefix").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"damaged|no file of"):
            session.load_prefix(tmp_path / name)
    save_file({"key": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="was not written by"):
        session.load_prefix(tmp_path / "foreign")
    assert main(["generate", "x", "--model", str(folder), "--load-prefix", str(tmp_path / "nowhere")]) == 1
    assert "no such file" in capsys.readouterr().err
