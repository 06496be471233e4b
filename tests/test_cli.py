"""`small4` as a user types it: answers, turns, pictures, `--json`, exit statuses and one-line errors."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from modeling_small4 import Small4ForCausalLM, demo_checkpoint
from modeling_small4.commands import cli
from modeling_small4.commands.session import Session
from modeling_small4.processing_small4 import Small4Processor
from tests.chat_options import PROMPT

torch.set_num_threads(1)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


class Run:
    """One command, in this process: exit status, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *argv: Any) -> tuple[int, str, str]:
        self.capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out = self.capsys.readouterr()
        return status, out.out, out.err


@pytest.fixture
def small4(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


def by_hand(
    folder: Path, mode: str, content: Any, new: int, budget: int | None
) -> tuple[dict[str, Any], list[int], int]:
    """The message, the new ids and the prompt's length, from the library itself."""
    model, processor = Small4ForCausalLM.from_pretrained(folder), Small4Processor.from_pretrained(folder)
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], reasoning_mode=mode, **PROMPT)
    out = model.generate(**inputs, max_new_tokens=new, reasoning_mode=mode, max_thinking_tokens=budget)
    length = inputs["input_ids"].shape[1]
    ids = out[0, length:].tolist()
    return processor.parse_response(ids), ids, length


@pytest.mark.parametrize(("mode", "budget"), [("none", None), ("high", 6), ("high", 0)])
def test_json_is_the_parsed_message_with_counts(small4: Run, folder: Path, mode: str, budget: int | None) -> None:
    extra = [] if budget is None else ["--max-thinking-tokens", budget]
    status, out, _ = small4(
        "generate",
        "What is 2 + 3?",
        "--model",
        folder,
        "--reasoning-mode",
        mode,
        "--max-new-tokens",
        24,
        *extra,
        "--json",
    )
    assert status == 0
    found = json.loads(out)
    message, ids, length = by_hand(folder, mode, "What is 2 + 3?", 24, budget)
    assert {name: found.pop(name) for name in message} == message
    assert found.pop("seconds") > 0
    thinking = ids.index(35) - 1 if mode == "high" else 0
    assert found == {"prompt_tokens": length, "thinking_tokens": thinking, "new_tokens": len(ids)}


def test_plain_output_shows_thinking_apart(small4: Run, folder: Path) -> None:
    common = ["--model", folder, "--max-new-tokens", 24, "--max-thinking-tokens", 6]
    message, _, _ = by_hand(folder, "high", "Hello", 24, 6)
    status, out, _ = small4("generate", "Hello", *common, "--reasoning-mode", "high")
    assert (status, out) == (0, f"[THINK]\n{message['reasoning_content']}\n[/THINK]\n\n{message['content']}\n")
    message, _, _ = by_hand(folder, "none", "Hello", 24, 6)
    assert small4("generate", "Hello", *common)[1] == message["content"] + "\n"


def test_thinking_is_dim_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    printer = cli.Printer(terminal=True)
    for channel, text in [("thinking", "2+"), ("thinking", "3"), ("content", "\n5"), ("tool_calls", "f{}")]:
        printer.show(channel, text)
    printer.end()
    assert capsys.readouterr().out == "\033[2m2+3\033[0m\n\n5\n\nf{}\n"


def test_mode_left_out_is_the_checkpoints(small4: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thinker").mkdir()
    for file in folder.iterdir():
        (tmp_path / "thinker" / file.name).symlink_to(file)
    settings = json.loads((folder / "generation_config.json").read_text())
    (tmp_path / "thinker" / "generation_config.json").unlink()
    (tmp_path / "thinker" / "generation_config.json").write_text(json.dumps(settings | {"reasoning_mode": "high"}))
    common = ["generate", "Hello", "--max-new-tokens", 12, "--json"]
    assert json.loads(small4(*common, "--model", folder)[1])["reasoning_content"] is None
    assert json.loads(small4(*common, "--model", tmp_path / "thinker")[1])["reasoning_content"] is not None


def test_pictures(small4: Run, folder: Path, picture: Path) -> None:
    common = ["generate", "What is it?", "--model", folder, "--max-new-tokens", 12, "--json"]
    status, out, _ = small4(*common, "--image", picture, "--image", picture)
    assert status == 0
    image = {"type": "image", "image": Image.open(picture)}
    content = [image, image, {"type": "text", "text": "What is it?"}]
    message, _, length = by_hand(folder, "none", content, 12, None)
    found = json.loads(out)
    assert (found["content"], found["prompt_tokens"]) == (message["content"], length)


def test_seed_repeats_sampling(small4: Run, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((folder / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True, "temperature": 2.0}))
    answers = [
        small4("generate", "Hello", "--model", tmp_path, "--max-new-tokens", 16, "--seed", seed)[1]
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_chat_equals_one_long_conversation(
    small4: Run, folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Look\n\nAnd now?\nThanks\n"))
    common = ["--model", folder, "--max-new-tokens", 9, "--reasoning-mode", "high", "--max-thinking-tokens", 3]
    status, out, _ = small4("chat", *common, "--image", picture, "--json")
    assert status == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 3
    model, processor = Small4ForCausalLM.from_pretrained(folder), Small4Processor.from_pretrained(folder)
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Look"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for answer, following in zip(answers, ("And now?", "Thanks", ""), strict=True):
        inputs = processor.apply_chat_template(messages, reasoning_mode="high", **PROMPT)
        sequences = model.generate(**inputs, reasoning_mode="high", max_thinking_tokens=3, max_new_tokens=9)
        message = processor.parse_response(sequences[0, inputs["input_ids"].shape[1] :])
        assert {name: answer[name] for name in message} == message
        messages += [message, {"role": "user", "content": following}]


def test_chat_computes_only_what_is_new(folder: Path) -> None:
    model, processor = Small4ForCausalLM.from_pretrained(folder), Small4Processor.from_pretrained(folder)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    session = Session(model, processor, max_new_tokens=4)
    first = session.ask("A long question " * 20)
    del lengths[:]
    second = session.ask("And?")
    assert lengths[0] <= second.prompt_tokens - first.prompt_tokens
    assert session.messages[-1] == second.message


def test_a_failed_turn_leaves_the_conversation_as_it_was(blind: Path, picture: Path) -> None:
    session = Session(
        Small4ForCausalLM.from_pretrained(blind), Small4Processor.from_pretrained(blind), max_new_tokens=5
    )
    session.ask("Hello")
    said = list(session.messages)
    with pytest.raises(ValueError, match="no images"):
        session.ask("Look", [picture])
    session.show = None  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        session.ask("Go on", show=lambda channel, text: (_ for _ in ()).throw(KeyboardInterrupt))
    assert session.messages == said
    fresh = Session(session.model, session.processor, max_new_tokens=5)
    fresh.messages = list(said)
    assert session.ask("Again").message == fresh.ask("Again").message


WRONG_USAGE = {
    "no command": [],
    "unknown command": ["train"],
    "no prompt": ["generate"],
    "bad mode": ["generate", "x", "--reasoning-mode", "low"],
    "no number": ["generate", "x", "--max-new-tokens", "many"],
    "nothing to generate": ["generate", "x", "--max-new-tokens", "0"],
    "negative budget": ["generate", "x", "--max-thinking-tokens", "-1"],
    "unknown option": ["chat", "--temperature", "1"],
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_is_status_2(small4: Run, case: str) -> None:
    status, out, err = small4(*WRONG_USAGE[case])
    assert (status, out) == (2, "")
    assert err.startswith("usage: small4")


def test_what_cannot_be_done_is_status_1_and_one_line(small4: Run, folder: Path, blind: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no picture")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "params.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    Image.new("RGB", (30, 30)).save(tmp_path / "black.png")
    for name in ("damaged", "dumb"):
        shutil.copytree(folder, tmp_path / name)
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "dumb" / "tokenizer.json").unlink()
    cases = {
        "no such folder": ["--model", tmp_path / "nowhere"],
        "owner/name": ["--model", "nowhere"],
        "no config.json; name": ["--model", tmp_path],
        "small4 convert": ["--model", tmp_path / "raw"],
        "": ["--model", tmp_path / "broken"],
        "is damaged": ["--model", tmp_path / "damaged"],
        "tokenizer.json": ["--model", tmp_path / "dumb"],
        "note.txt": ["--model", folder, "--image", tmp_path / "note.txt"],
        "gone.png": ["--model", folder, "--image", tmp_path / "gone.png"],
        "vision tower": ["--model", blind, "--image", tmp_path / "black.png"],
    }
    for expected, extra in cases.items():
        for flags in ([], ["--json"]):
            status, out, err = small4("generate", "Hello", "--max-new-tokens", 3, *extra, *flags)
            assert (status, out) == (1, "")
            assert err.startswith("small4 generate: ")
            assert err.count("\n") == 1
            assert expected in err


def test_cut_off_answers_say_so(small4: Run, folder: Path) -> None:
    status, _, err = small4("generate", "Hello", "--model", folder, "--max-new-tokens", 1)
    assert status == 0
    assert "cut off after 1 tokens" in err


def test_help_lists_the_commands_there_are(small4: Run) -> None:
    status, out, _ = small4("--help")
    assert status == 0
    assert "generate" in out
    assert "chat" in out
    for name in cli.CONVERSION:
        there = importlib.util.find_spec(f"small4_conversion.{name}") is not None
        assert (f"    {name} " in out) == there
        if there:
            assert "--json" in small4(name, "--help")[1]
            assert small4(name)[0] == 2


def test_commands_of_conversion_are_run(small4: Run, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("small4_conversion.verify")
    status, out, _ = small4("verify", folder, folder, "--json")
    assert (status, json.loads(out)["equal"]) == (0, True)
    assert small4("verify", folder, tmp_path / "nowhere")[0] == 1


def test_an_error_nobody_foresaw_is_one_line_too(small4: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: Any) -> None:
        raise KeyError("layers")

    monkeypatch.setattr(cli, "_generate", broken)
    line = "small4 generate: unexpected KeyError: 'layers'; --debug shows where\n"
    assert small4("generate", "x") == (1, "", line)
    monkeypatch.setenv("SMALL4_DEBUG", "1")
    status, _, err = small4("generate", "x")
    assert status == 1
    assert err.startswith("Traceback")
    assert err.endswith(line)


@pytest.mark.filterwarnings("default")
def test_warnings_of_a_command_are_lines(small4: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def careful(args: Any) -> None:
        warnings.warn("this field\nis not read", UserWarning, stacklevel=1)
        warnings.warn("an old name", FutureWarning, stacklevel=1)

    monkeypatch.setattr(cli, "_generate", careful)
    assert small4("generate", "x") == (0, "", "small4 generate: warning: this field is not read\n")


NOISE = """
import os, sys
class Noise:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.modeling_utils":
            os.write(2, b"noise of a library\\n"), print("and more")
            if os.environ.get("BROKEN"):
                raise ImportError("broken library")
sys.meta_path.insert(0, Noise())
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "debug", "broken"])
def test_what_libraries_print_at_import_is_held_back(tmp_path: Path, case: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    environment |= {"debug": {"SMALL4_DEBUG": "1"}, "broken": {"BROKEN": "1"}}.get(case, {})
    command = [sys.executable, "-m", "modeling_small4", "plan", "--devices", "4xH100", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if case == "plain":
        assert (done.returncode, done.stderr) == (0, "")
        json.loads(done.stdout)
    else:
        assert "noise of a library" in done.stderr
        assert ("and more" in done.stdout) == (case == "debug")
        assert ("ImportError: broken library" in done.stderr) == (case == "broken")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_nothing_of_torchaos_is_shown(tmp_path: Path) -> None:
    """transformers imports it, and it reports which of its kernels do not fit this machine. Of `python -m
    modeling_small4`, which imports in the same place for all commands, the test above sees that nothing is shown.
    """
    command = [sys.executable, "-m", "small4_conversion", "x", "y"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if not line.startswith("small4 ")] == []


IMPORTED = """
import atexit, sys
@atexit.register
def report():
    found = sorted({"peft", "trl", "datasets", "transformers.trainer_callback", "transformers.trainer_utils"} & set(sys.modules))
    before = set(sys.modules)
    from modeling_small4.commands import env
    env.report()
    optional = {"datasets", "peft", "trl", "torchao", "matplotlib", "openai", "fastapi", "mistral_common", "small4_conversion"}
    print(found, sorted(optional & {name.split(".")[0] for name in set(sys.modules) - before}))
"""  # noqa: E501


@pytest.mark.slow
def test_as_a_module_in_another_process(folder: Path, tmp_path: Path) -> None:
    """An answer imports nothing that only training needs, and `small4 env` nothing optional."""
    (tmp_path / "sitecustomize.py").write_text(IMPORTED)
    command = [sys.executable, "-m", "modeling_small4", "generate", "Hi", "--model", str(folder), "--json"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "5", "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, imported = done.stdout.splitlines()
    assert json.loads(answer)["new_tokens"] <= 5
    assert imported == "[] []"
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1  # that the answer was cut off


def _demo() -> Path | None:
    try:
        return demo_checkpoint()
    except FileNotFoundError:
        return None


@pytest.mark.skipif(_demo() is None, reason="the demo checkpoint is not there")
def test_the_demo_checkpoint_answers_and_thinks(small4: Run) -> None:
    status, out, _ = small4("generate", "What is 348 + 276?", "--reasoning-mode", "high", "--json")
    found = json.loads(out)
    assert status == 0
    assert "624" in found["content"]
    assert found["thinking_tokens"] > 0
    short = json.loads(
        small4("generate", "What is 348 + 276?", "--reasoning-mode", "high", "--max-thinking-tokens", 8, "--json")[1]
    )
    assert short["thinking_tokens"] <= 8
    assert short["content"]
    assert json.loads(small4("generate", "What is 2 + 3?", "--json")[1])["reasoning_content"] is None
