"""Sources on the Hub, through the real client: only what is needed is downloaded."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import raw_checkpoint as rc
from hub_client import hub_client
from small4_conversion.__main__ import main
from small4_conversion.convert import Options, convert
from small4_conversion.verify import compare
from test_conversion_damage import refused

from model_card.evals.fuzz.small_hub import Files, Hub, client_environment
from modeling_small4.commands import cli


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def offline(hub: Hub, tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    with hub_client(hub, tmp_path / "home") as switch:
        yield switch


def files_of(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_repository_with_both_layouts(hub: Hub, tmp_path: Path) -> None:
    """As the main release: two whole layouts side by side, of which one is fetched. In a process, as users run it."""
    p = rc.params(vision=False)
    repository = rc.write_raw(tmp_path / "repository", p, rc.weights(p))
    convert(repository, tmp_path / "hf", Options(to="transformers"))
    files = files_of(tmp_path / "hf") | files_of(repository) | {"consolidated.00.pth": b"pickle"}
    hub.commit("lab/small", "main", files)
    line = [sys.executable, "-m", "small4_conversion", "lab/small", str(tmp_path / "dst")]
    environment = client_environment(hub.endpoint, tmp_path / "home")
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert "small4 convert" not in done.stderr
    wanted = {
        "params.json",
        "small4_manifest.json",
        "tekken.json",
        "SYSTEM_PROMPT.txt",
        *(f"consolidated-0000{i}-of-00002.safetensors" for i in (1, 2)),
    }
    assert sorted(name for name, _ in hub.downloads) == sorted(wanted)
    assert not compare(repository, tmp_path / "dst")[1]


@pytest.mark.usefixtures("offline")
def test_of_a_repository_with_both_the_loaded_one_is_checked(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    p = rc.params(vision=False)
    repository = rc.write_raw(tmp_path / "repository", p, rc.weights(p))
    convert(repository, tmp_path / "hf", Options(to="transformers"))
    hub.commit("lab/small", "main", files_of(tmp_path / "hf") | files_of(repository))
    assert cli.main(["check", "lab/small", "--quick"]) == 0
    assert "its weights in the raw layout are not read" in capsys.readouterr().out
    asked = {name for name, _ in hub.downloads}
    assert "model.safetensors" in asked
    assert not any(name.startswith("consolidated") for name in asked)


@pytest.mark.usefixtures("offline")
def test_repository_in_our_layout_and_none_at_all(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p = rc.params(vision=False)
    convert(
        rc.write_raw(tmp_path / "raw", p, rc.weights(p)), tmp_path / "ours", Options(shard_size=100_000, with_code=True)
    )
    hub.commit("lab/ours", "main", files_of(tmp_path / "ours"))
    assert main(["lab/ours", str(tmp_path / "dst"), "--to", "mistral"]) == 0
    assert hub.downloads
    assert not any(name.endswith(".py") for name, _ in hub.downloads)
    capsys.readouterr()
    refused(["lab/other", str(tmp_path / "none")], capsys, "lab/other", "no such repository")
    rc.same_bits(rc.read_all(tmp_path / "dst"), rc.weights(p))


def test_a_network_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("[Errno 111]\nConnection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fails)
    refused(["lab/ours", str(tmp_path / "none")], capsys, "lab/ours", "[Errno 111] Connection refused")
    assert not (tmp_path / "none").exists()


def test_revisions_and_offline_mode(
    hub: Hub, offline: Callable[[bool], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A branch is asked for by name; what was downloaded once converts without a network, what was not is one line."""
    p = rc.params(vision=False)
    for seed, branch in ((0, "main"), (1, "trial")):
        raw = rc.write_raw(tmp_path / branch, p, rc.weights(p, seed=seed))
        hub.commit("lab/small", branch, files_of(raw))
    for name, branch in (("a", "main"), ("b", "trial")):
        arguments = [] if branch == "main" else ["--revision", branch]
        for without, target in ((False, name), (True, f"{name} offline")):
            offline(without)
            asked = len(hub.downloads)
            assert main(["lab/small", str(tmp_path / target), *arguments]) == 0
            assert (len(hub.downloads) == asked) == without
            assert not compare(tmp_path / branch, tmp_path / target)[1]
    assert compare(tmp_path / "main", tmp_path / "b")[1]
    capsys.readouterr()
    unknown = ["lab/small", str(tmp_path / "none"), "--revision", "nowhere"]
    for without, words in ((False, "no branch, tag or commit 'nowhere'"), (True, "not among the cached downloads")):
        offline(without)
        refused(unknown, capsys, words)


def test_a_folder_has_no_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    refused([str(tmp_path / "folder"), str(tmp_path / "none"), "--revision", "main"], capsys, "is a folder here")


@pytest.mark.usefixtures("offline")
def test_only_files_of_the_top_folder_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    """In the client's patterns a star also stands for folders, which a repository may have any number of."""
    p = rc.params(vision=False)
    source = rc.write_raw(tmp_path / "source", p, rc.weights(p), shards=2)
    others = (
        "consolidated/copy.safetensors",
        "consolidated-x/../../../outside.safetensors",
        "consolidated\\x.safetensors",
    )
    hub.commit("lab/small", "main", files_of(source) | dict.fromkeys(others, b"no weights"))
    assert main(["lab/small", str(tmp_path / "dst")]) == 0
    asked = {path for path, _ in hub.downloads}
    assert asked
    assert not any(other in path for path in asked for other in others)
    assert not list(tmp_path.rglob("*outside*"))
