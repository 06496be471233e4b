"""Measuring again: every stored result names the command that the card says, and the commands run as they are given."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from model_card.bench import retake
from model_card.card.measures import MEASURES
from model_card.card.results import RESULTS


def bare(command: str) -> list[str]:
    """The words without where the result goes, how long it may take, which seeds, what is shown, the interpreter's
    options, and folders.
    """
    words = shlex.split(command)
    for option in {"--out", "--minutes", "--first"}.intersection(words):
        del words[(at := words.index(option)) : at + 2]
    if words[1:3] == ["-W", "ignore"]:
        del words[1:3]
    return [word.split("/")[-1] if "/" in word else word for word in words if word != "--show"]


@pytest.mark.parametrize("name", [name for name in MEASURES if (RESULTS / f"{name}.json").exists()])
def test_a_stored_result_is_of_the_command_that_is_named(name: str) -> None:
    assert bare(json.loads((RESULTS / f"{name}.json").read_bytes())["command"]) == bare(MEASURES[name])


def test_places_are_filled_in_and_commands_without_theirs_left_out() -> None:
    chosen = retake.commands(["grammar", "engines", "load"], ["load"], {"SOURCE": "/data dir"})
    assert chosen.keys() == {"grammar", "engines"}
    assert chosen["engines"] is None
    command = chosen["grammar"]
    assert command is not None
    assert command[0] == sys.executable
    assert "/data dir/maskbench/data" in command
    both = retake.commands(["engines"], [], {"SOURCE": "/s", "VENV": "/v"})["engines"]
    assert both is not None
    assert {"/v/bin/vllm", "/v/bin/python", "/s/vendor/llama.cpp"} <= set(both)


@pytest.mark.parametrize(
    ("only", "without", "places", "named"),
    [
        (["lod"], [], {}, "lod"),
        ([], ["lod"], {}, "lod"),
        ([], [], {"HERE": "x"}, "HERE"),
        ([], [], {"VENV": ""}, "VENV=DIR"),
    ],
)
def test_unknown_names_are_refused(only: list[str], without: list[str], places: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        retake.commands(only, without, places)


def test_a_command_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    says = [sys.executable, "-c", "print('said')"]
    fails = [sys.executable, "-c", "import sys; sys.exit('it failed')"]
    found = retake.retake({"first": fails, "second": None, "third": says}, tmp_path / "logs")
    assert found["first"].startswith("failed")
    assert found["second"].startswith("left out")
    assert found["third"].endswith(" s")
    assert "it failed" in (tmp_path / "logs" / "first.log").read_text()
    assert (tmp_path / "logs" / "third.log").read_text().strip() == "said"
