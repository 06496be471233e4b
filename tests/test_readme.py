"""README and the guides, run as a reader would: Python blocks in order, `console` blocks with the answers they show,
commands parsed.

`python tests/test_readme.py` puts the answers of the commands into the `console` blocks, for the shipped weights.
"""

import ast
import contextlib
import io
import json
import re
import shlex
import tempfile
from pathlib import Path
from statistics import median

import pytest
import torch
from documents import CONTRIBUTING, DOCUMENTS, FOR_CONTRIBUTORS, GUIDES, NAMES, ROOT, blocks, commands, text_of

from modeling_small4 import demo_checkpoint
from modeling_small4.commands import cli

CONSOLE = re.compile(r"(?<=```console\n).*?(?=\n```)", re.DOTALL)
PATHS = re.compile(r"(?:modeling_small4|conversion|model_card|tests|\.github|\.ci)/[\w./*-]*\w")


def run_examples(name: str) -> list[str]:
    """What each Python block of a document prints; they share one session and the current folder."""
    session: dict[str, object] = {}
    printed = []
    for number, example in enumerate(blocks(text_of(name), "python")):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example, f"{name}, example {number + 1}", "exec"), session)
        printed.append(out.getvalue())
    return printed


def answered(text: str) -> str:
    """The text with its `console` blocks run: after each line `$ small4 ...` what the command prints, an empty line
    between commands.
    """

    def run(block: re.Match[str]) -> str:
        shown = []
        for line in re.findall(r"^\$ (.*)$", block[0], re.MULTILINE):
            program, *words = shlex.split(line)
            assert program == "small4", line
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert cli.main(words) == 0, line
            shown.append(f"$ {line}\n{out.getvalue().rstrip()}")
        return "\n\n".join(shown)

    return CONSOLE.sub(run, text)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's empty folder, with the demo checkpoint at hand."""
    try:
        demo_checkpoint()
    except FileNotFoundError:
        pytest.skip("the demo checkpoint is not there")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


WANTED = {  # document -> number of its block -> what it prints
    "README.md": {0: "624", 1: "red", 2: "84", 3: "15"},
    "chat-and-reasoning.md": {0: "624", 1: "42", 3: "42", 4: "content", 5: "15"},
    "checking.md": {1: "1 of 1 right"},
    "images.md": {0: "red", 1: "red", 2: "red"},
    "tools.md": {0: "168", 1: "'multiply'"},
    "what-fits-where.md": {0: "expert_profile.json", 1: "True 7"},
}


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(text_of(name), "python")])
def test_examples_run(name: str, reader: None) -> None:
    printed = run_examples(name)
    for number, wanted in WANTED.get(name, {}).items():
        assert wanted in printed[number], (number, printed[number])
    if name == "chat-and-reasoning.md":
        direct, thought = ast.literal_eval(printed[2])
        assert direct["reasoning_content"] is None
        assert thought["reasoning_content"]
        assert thought["content"]


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(text_of(name), "console")])
def test_commands_answer_as_shown(name: str, reader: None) -> None:
    run_examples(name)  # they may write what the commands read
    assert answered(text_of(name)) == text_of(name)


def test_blocks_are_filled_command_by_command() -> None:
    text = (
        "a\n```console\n$ small4 plan --devices 4xH100 --json\nold\n\n$ small4 plan --devices 2xH100 --json\n```\nb\n"
    )
    first, second = (block.split("\n") for block in CONSOLE.search(answered(text))[0].split("\n\n"))
    assert first[0] == "$ small4 plan --devices 4xH100 --json"
    assert '"machine": "4xH100"' in first[1]
    assert '"machine": "2xH100"' in second[1]
    assert len(first) == len(second) == 2


@pytest.mark.parametrize(
    ("name", "command"), [(name, line) for name in NAMES for line in commands(name)], ids=lambda part: part[:40]
)
def test_commands_are_spelled_right(name: str, command: str) -> None:
    words = shlex.split(command)[1:]
    assert callable(cli._parser(words[0]).parse_args(words).run), command


@pytest.mark.parametrize("document", [*DOCUMENTS, *FOR_CONTRIBUTORS], ids=lambda path: path.name)
def test_what_it_names_exists(document: Path) -> None:
    """Files, folders, links, modules to run, and tests."""
    text = document.read_text("utf-8")
    for path in PATHS.findall(text):
        assert list(ROOT.glob(path)), path
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
        assert (document.parent / link).exists(), link
    for module in re.findall(r"python -m ((?:model_card|modeling_small4)[\w.]*)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    for file, word in re.findall(r"pytest (tests/\w+\.py)(?: -k (\w+))?", text):
        assert re.search(rf"def test_\w*{word}", (ROOT / file).read_text("utf-8")), (file, word)
    tests = "".join(file.read_text("utf-8") for file in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name


def test_the_map_leads_to_what_it_names() -> None:
    """Each row of the map in CONTRIBUTING: the file has what to look for."""
    rows = re.findall(r"^\| .+ \| `([\w./]+)`.* \| (`.+`) \|$", CONTRIBUTING.read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 30
    for file, symbols in rows:
        text = (ROOT / file).read_text("utf-8")
        for symbol in re.findall(r"`([^`]+)`", symbols):
            place = rf"(def|class) {symbol}\b|^{symbol}\b.* =" if file.endswith(".py") else re.escape(symbol)
            assert re.search(place, text, re.MULTILINE), f"{file} has no {symbol}; update the map"


def test_hooks_run_what_the_tests_run() -> None:
    """The tests of the package run the same three programs."""
    hooks = re.findall(r"entry: python -m (.*)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert hooks == ["ruff check .", "ruff format --check .", "mypy"]
    checks = (ROOT / "tests" / "test_package.py").read_text("utf-8")
    assert '(["check"], ["format", "--check"])' in checks
    assert 'python("-m", "mypy")' in checks


def test_readme_is_short_and_leads_to_every_guide() -> None:
    text = text_of("README.md")
    assert len(text.encode()) < 11_000
    for guide in GUIDES:
        assert f"(model_card/guides/{guide.name})" in text, guide.name


def test_extras_are_installed_from_a_clone() -> None:
    """The package is not on PyPI, so its name in a `pip install` would fail."""
    wrong = re.compile(r"pip install \S*modeling[-_]small4")
    sources = [
        *DOCUMENTS,
        *(file for top in ("modeling_small4", "conversion", "model_card") for file in (ROOT / top).rglob("*.py")),
    ]
    assert [file.name for file in sources if wrong.search(file.read_text("utf-8"))] == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for document in DOCUMENTS:
            if blocks(document.read_text("utf-8"), "console"):
                run_examples(document.name)
                document.write_text(answered(document.read_text("utf-8")), encoding="utf-8")


def test_the_guide_says_what_was_counted_of_experts() -> None:
    found = json.loads((ROOT / "model_card" / "results" / "routing.json").read_text("utf-8"))
    text = " ".join((ROOT / "model_card" / "guides" / "what-fits-where.md").read_text("utf-8").split())
    half, quarter = (found["rows"][f"{share}% of the experts"] for share in (50, 25))
    assert f"serve {half['decayed']:.0%} of".replace("%", " %") in text
    assert f"(least recently used: {half['recency']:.0%})".replace("%", " %") in text
    assert f"a quarter {quarter['decayed']:.0%} ({quarter['recency']:.0%})".replace("%", " %") in text
    assert f"this layer: {found['recall']['K']:.0%} of them".replace("%", " %") in text


def test_the_guide_says_what_was_measured_of_drafts() -> None:
    rows = json.loads((ROOT / "model_card" / "results" / "drafts.json").read_text("utf-8"))["rows"]
    text = " ".join((ROOT / "model_card" / "guides" / "speed-and-memory.md").read_text("utf-8").split())
    speeds = {task: row["speedup_eagle"] for task, row in rows.items()}
    assert min(speeds, key=lambda task: speeds[task]) == "tools"
    assert max(speeds, key=lambda task: speeds[task]) == "talk"
    assert f"Decoding was {median(speeds.values()):.1f} times as fast on the median task" in text
    assert f"({speeds['tools']:.2f} for tools, {speeds['talk']:.1f} for small talk)" in text
    assert all(row["equal_eagle"] == row["answers"] for row in rows.values())
