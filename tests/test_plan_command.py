"""The command `small4 plan`."""

import json
from pathlib import Path

import pytest
from documents import text_of
from tiny_checkpoint import write_tiny_checkpoint

from modeling_small4 import Small4Config, demo_checkpoint
from modeling_small4.commands import cli
from modeling_small4.planner.sizes import (
    weight_bytes,
)


def small4(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["plan", *words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_command_prints_and_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = small4(capsys, "--devices", "2x24GB+128GB-ram", "--dtype", "int8", "--context", "32768")
    assert status == 0
    device_map = eval(text.split("DEVICE_MAP = ")[1].splitlines()[0])
    status, text, _ = small4(capsys, "--devices", "2x24GB+128GB-ram", "--dtype", "int8", "--context", "32768", "--json")
    found = json.loads(text)
    assert status == 0
    assert found["fits"]
    assert found["device_map"] == device_map
    assert [device["device"] for device in found["devices"]] == [0, 1, "cpu"]
    assert {"weights", "cache", "activations", "free"} <= found["devices"][0].keys()


def test_command_without_devices_plans_for_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = small4(capsys, "--model", str(demo_checkpoint()), "--context", "512")
    assert status == 0
    assert "this machine" in text
    assert "fits" in text


def test_command_knows_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    told = [small4(capsys, "--devices", "4xH100", "--dtype", name, "--json") for name in ("bf16", "BF16", "bfloat16")]
    assert told[0] == told[1] == told[2]
    assert json.loads(told[0][1])["request"]["precision"] == "bfloat16"
    assert small4(capsys, "--dtype", "fp4")[0] == 2


def test_command_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = small4(capsys, "--table")
    assert "| minimum | 4xH100 |" in text
    assert "| 2xH100 | no |" in text


def test_the_guide_has_the_planners_table(capsys: pytest.CaptureFixture[str]) -> None:
    told = text_of("what-fits-where.md").split("## The full model")[1].split("\n## ")[0].replace(", no GPU |", " |")
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    printed = small4(capsys, "--table")[1].splitlines()
    assert len(rows) > 15
    assert set(rows) <= set(printed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "4xH900"], "4xH900"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--devices", "3xH100", "--layout", "tensor"], "does not divide"),
    ],
)
def test_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    status, out, err = small4(capsys, *words)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_command_reads_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", vision=False)
    status, text, _ = small4(
        capsys, "--model", str(folder), "--devices", "24GB", "--dtype", "float32", "--context", "100", "--json"
    )
    size = sum(weight_bytes(Small4Config.from_pretrained(folder), "float32").values())
    assert status == 0
    assert sum(json.loads(text)["weights"].values()) == size


def test_speed_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(small4(capsys, "--devices", "64GB-ram", "--dtype", "nvfp4", "--context", "8192", "--json")[1])
    assert found["tokens_per_second"] > 1
    assert found["prompt_tokens_per_second"] > 1
    assert found["speed"]["bound"] == "main memory"
    assert sum(found["speed"]["experts"].values()) == pytest.approx(1)
