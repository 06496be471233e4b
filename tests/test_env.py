"""`small4 env` and `--version`: every part is there, on any system. `test_cli.py` tests that no optional library is
imported for it.
"""

import json
import re
import sys
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from modeling_small4.commands import cli, env


def small4(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_json_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(small4(capsys, "env", "--json"))
    assert found["modeling-small4"] == version("modeling-small4")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["torch"] == version("torch")
    assert found["packages"]["transformers"] == version("transformers")
    assert {"peft", "trl", "torchao", "fastapi", "flash-attn"} <= found["packages"].keys()
    assert not {"pytest", "ruff"} & found["packages"].keys()
    assert found["memory"]["total_bytes"] > found["memory"]["available_bytes"] > 0
    assert found["cpu"]["cores"] >= 1
    assert not [part for part in found.values() if str(part).startswith("unknown")]


def test_text_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = small4(capsys, "env").splitlines()
    names = [line[:24].strip() for line in lines]
    assert (
        names[:7] == ["modeling-small4", "commit", "python", "system", "cpu", "memory", "devices"] or "device" in names
    )
    assert any(re.fullmatch(r"torch\s+" + re.escape(version("torch")), line) for line in lines)


def test_instruction_sets_are_those_of_the_system() -> None:
    """Linux says the same in /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("no flags in /proc/cpuinfo")
    found = env.cpu()["instructions"]
    for flag, shown in {"avx2": "avx2", "avx512f": "avx512", "avx512_bf16": "avx512_bf16", "amx_tile": "amx"}.items():
        assert (shown in found) == (flag in flags), flag


class Broken:
    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("the driver is gone")


def test_parts_that_cannot_be_found_out_say_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner, name in (
        (torch.cpu, "get_capabilities"),
        (psutil, "virtual_memory"),
        (torch.accelerator, "is_available"),
    ):
        monkeypatch.setattr(owner, name, Broken())
    found = json.loads(small4(capsys, "env", "--json"))
    assert {name for name, part in found.items() if "the driver is gone" in str(part)} == {"cpu", "memory", "devices"}
    assert small4(capsys, "env").count("the driver is gone") == 3


def test_without_git_and_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(env, "PACKAGE", "no-such-package")
    found = env.report()
    assert found["no-such-package"] is None
    assert found["commit"] is None
    assert found["packages"]["torch"] == version("torch")


@pytest.mark.parametrize(
    ("kind", "module", "said"),
    [
        (
            "cuda",
            SimpleNamespace(
                get_device_properties=lambda index: SimpleNamespace(
                    name="NVIDIA H100", total_memory=85_000_000_000, major=9, minor=0
                )
            ),
            "cuda:1, NVIDIA H100, 85.0 GB memory, capability 9.0",
        ),
        (
            "xpu",
            SimpleNamespace(
                get_device_properties=lambda index: SimpleNamespace(name="Arc", total_memory=16_000_000_000)
            ),
            "xpu:1, Arc, 16.0 GB memory",
        ),
        ("mps", SimpleNamespace(recommended_max_memory=lambda: 50_000_000_000), "50.0 GB memory"),
        ("npu", SimpleNamespace(), "npu:1"),
    ],
)
def test_accelerators(
    kind: str, module: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type=kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda name: module)
    assert [device["device"] for device in env.devices()] == [f"{kind}:0", f"{kind}:1"]
    lines = [line for line in small4(capsys, "env").splitlines() if line.startswith("device ")]
    assert len(lines) == 2
    assert said in lines[1]


def test_variables_are_those_of_a_list_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = env.report()
    assert found["variables"]["OMP_NUM_THREADS"] == "3"
    assert "hf_secret" not in json.dumps(found)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert small4(capsys, "--version") == f"small4 {version('modeling-small4')}\n"
