"""Systems without POSIX's modules and calls: everything imports, and conversion writes, replaces and compares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small4_conversion import memory, systems

# What Windows lacks, hidden before anything else runs.
HIDE = """
import os, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource"):
            raise ImportError(name)
sys.meta_path.insert(0, Hidden())
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
for name in ("preadv", "pread", "geteuid", "getuid", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "sysconf", "fork"):
    if hasattr(os, name):
        delattr(os, name)
"""
IMPORT_ALL = """
import importlib, pkgutil
import modeling_small4, small4_conversion
for package in (modeling_small4, small4_conversion):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__") and ".demo" not in found.name:
            importlib.import_module(found.name)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "hide.py").write_text(HIDE)
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), os.getcwd()))}


def run(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    # torch itself is imported before: it is not what is tried here
    code = (
        "import torch, torch._dynamo, multiprocessing, subprocess, tempfile, shutil, psutil, pathlib\nimport "
        f"hide\n{code}"
    )
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_converts_replaces_compares_and_plans_and_everything_imports(
    environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("fastapi")
    demo = Path(__file__).resolve().parent.parent / "model_card" / "demo"
    lines = [
        ["convert", str(demo), str(tmp_path / "a"), "--json"],
        ["convert", str(demo), str(tmp_path / "a"), "--overwrite", "--json"],
        ["verify", str(demo), str(tmp_path / "a"), "--json"],
        ["plan", "--json"],
    ]
    code = f"from modeling_small4.commands.cli import main\nfor line in {lines!r}: assert main(line) == 0, line"
    done = run(environment, code + IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    written, _, compared, plan = map(json.loads, done.stdout.strip().splitlines())
    assert written["peak_rss_bytes"] > 2**26
    assert compared["equal"]
    assert plan
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_reading_at_a_place_without_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    descriptor = systems.open_to_read(tmp_path / "file")
    found = []
    for lacks in (False, True):
        if lacks:
            monkeypatch.delattr(os, "preadv", raising=False)
        buffer = memoryview(bytearray(10))
        found.append([(systems.read_at(descriptor, buffer, place), bytes(buffer)) for place in (95, 0, 40)])
    os.close(descriptor)
    assert found[0] == found[1]
    assert found[0][2] == (10, bytes(range(40, 50)))


def test_peak_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    if memory.resource is None:
        pytest.skip("needs resource")
    monkeypatch.setattr(memory.Path, "exists", lambda path: False)
    peak = memory.peak_rss_bytes()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert peak // 1024 <= memory.peak_rss_bytes() <= peak // 1024 * 1.5
    monkeypatch.setattr(memory, "resource", None)
    assert peak / 4 < memory.peak_rss_bytes() < peak * 2
