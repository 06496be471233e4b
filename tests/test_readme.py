"""README's examples, run as a reader would: the Python ones in order in one session, the `console` ones with the answers they show.

`python tests/test_readme.py` puts the answers of the commands into README's `console` blocks, for the shipped weights.
"""

import ast
import contextlib
import io
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modeling_small4 import demo_checkpoint
from modeling_small4.commands import cli

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CONSOLE = re.compile(r"(?<=```console\n).*?(?=\n```)", re.DOTALL)


def run_examples() -> list[str]:
    """What each Python example prints."""
    session: dict[str, object] = {}
    printed = []
    for number, example in enumerate(EXAMPLES):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example, f"README.md, example {number + 1}", "exec"), session)
        printed.append(out.getvalue())
    return printed


def answered(text: str) -> str:
    """The text with its `console` blocks run: after each line `$ small4 ...` what the command prints, an empty line between commands."""

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


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The examples' prints; what they write, such as a drawing, is there for the commands after them."""
    try:
        demo_checkpoint()
    except FileNotFoundError:
        pytest.skip("the demo checkpoint is not there")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as place:
        place.chdir(tmp_path_factory.mktemp("reader"))
        yield run_examples()


def test_examples_run(printed: list[str]) -> None:
    assert "624" in printed[0]
    direct, thought = ast.literal_eval(printed[1])
    assert direct["reasoning_content"] is None
    assert thought["reasoning_content"]
    assert thought["content"]
    assert "red" in printed[2]
    assert printed[-2:] == ["168\n", "True\n"]


def test_commands_answer_as_shown(printed: list[str]) -> None:
    assert answered(TEXT) == TEXT


def test_blocks_are_filled_command_by_command() -> None:
    text = (
        "a\n```console\n$ small4 plan --devices 4xH100 --json\nold\n\n$ small4 plan --devices 2xH100 --json\n```\nb\n"
    )
    first, second = (block.split("\n") for block in CONSOLE.search(answered(text))[0].split("\n\n"))
    assert first[0] == "$ small4 plan --devices 4xH100 --json"
    assert '"machine": "4xH100"' in first[1]
    assert '"machine": "2xH100"' in second[1]
    assert len(first) == len(second) == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run_examples()
        README.write_text(answered(TEXT), encoding="utf-8")
