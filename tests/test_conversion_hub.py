"""Sources on the Hub, through the real client: only what is needed is downloaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import raw_checkpoint as rc
from hub_server import serve
from small4_conversion.convert import Options, convert
from small4_conversion.verify import compare
from test_conversion_damage import refused

from model_card.evals.fuzz.small_hub import Files, Hub, client_environment


def command(endpoint: str, home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the converter with its own Hub cache and endpoint."""
    environment = client_environment(endpoint, home) | settings
    line = [sys.executable, "-m", "small4_conversion", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=3600)


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refusal is; libraries may have lines of their own before it."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("small4 ")]
    return line


@pytest.mark.slow
def test_repository_with_both_layouts(tmp_path: Path) -> None:
    """As the main release: two whole layouts side by side, of which one is fetched."""
    p = rc.params(vision=False)
    repository = rc.write_raw(tmp_path / "repository", p, rc.weights(p))
    convert(repository, tmp_path / "hf", Options(to="transformers"))
    for file in (tmp_path / "hf").iterdir():
        if not (repository / file.name).exists():
            shutil.copy(file, repository)
    (repository / "consolidated.00.pth").write_bytes(b"pickle")
    with serve("lab/small", repository) as (endpoint, downloaded):
        done = command(endpoint, tmp_path / "home", "lab/small", str(tmp_path / "dst"))
        assert done.returncode == 0, done.stderr
        assert "small4 convert" not in done.stderr
    wanted = {
        "params.json",
        "small4_manifest.json",
        "tekken.json",
        "SYSTEM_PROMPT.txt",
        *(f"consolidated-0000{i}-of-00002.safetensors" for i in (1, 2)),
    }
    assert sorted(downloaded) == sorted(wanted)
    assert not compare(repository, tmp_path / "dst")[1]


@pytest.mark.slow
def test_repository_in_our_layout_and_none_at_all(tmp_path: Path) -> None:
    p = rc.params(vision=False)
    convert(
        rc.write_raw(tmp_path / "raw", p, rc.weights(p)), tmp_path / "ours", Options(shard_size=100_000, with_code=True)
    )
    with serve("lab/ours", tmp_path / "ours") as (endpoint, downloaded):
        done = command(endpoint, tmp_path / "home", "lab/ours", str(tmp_path / "dst"), "--to", "mistral")
        assert done.returncode == 0, done.stderr
        assert not any(name.endswith(".py") for name in downloaded)
        done = command(endpoint, tmp_path / "home", "lab/other", str(tmp_path / "none"))
        assert "lab/other" in error(done)
        assert "no such repository" in error(done)
    rc.same_bits(rc.read_all(tmp_path / "dst"), rc.weights(p))


def test_a_network_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("[Errno 111]\nConnection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fails)
    refused(["lab/ours", str(tmp_path / "none")], capsys, "lab/ours", "[Errno 111] Connection refused")
    assert not (tmp_path / "none").exists()


def files_of(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_revisions_and_offline_mode(tmp_path: Path) -> None:
    """A branch is asked for by name; what was downloaded once converts without a network, what was not is one line."""
    p = rc.params(vision=False)
    hub = Hub()
    for seed, branch in ((0, "main"), (1, "trial")):
        raw = rc.write_raw(tmp_path / branch, p, rc.weights(p, seed=seed))
        hub.commit("lab/small", branch, files_of(raw))
    home = tmp_path / "home"

    def convert_at(name: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return command(hub.endpoint, home, "lab/small", str(tmp_path / name), *arguments, **settings)

    for name, branch in (("a", "main"), ("b", "trial")):
        arguments = () if branch == "main" else ("--revision", branch)
        done = convert_at(name, *arguments)
        assert done.returncode == 0, done.stderr
        assert not compare(tmp_path / branch, tmp_path / name)[1]
        offline = convert_at(f"{name} offline", *arguments, HF_HUB_OFFLINE="1")
        assert offline.returncode == 0, offline.stderr
        assert not compare(tmp_path / branch, tmp_path / f"{name} offline")[1]
    assert compare(tmp_path / "main", tmp_path / "b")[1]
    for arguments, settings, words in (
        (("--revision", "nowhere"), {}, "no branch, tag or commit 'nowhere'"),
        (("--revision", "nowhere"), {"HF_HUB_OFFLINE": "1"}, "not among the cached downloads"),
    ):
        assert words in error(convert_at("none", *arguments, **settings))
    hub.close()


def test_a_folder_has_no_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    refused([str(tmp_path / "folder"), str(tmp_path / "none"), "--revision", "main"], capsys, "is a folder here")


def test_only_files_of_the_top_folder_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the client's patterns a star also stands for folders, which a repository may have any number of."""
    p = rc.params(vision=False)
    source = rc.write_raw(tmp_path / "source", p, rc.weights(p), shards=2)
    files: Files = {file.name: file.read_bytes() for file in source.iterdir()}
    others = (
        "consolidated/copy.safetensors",
        "consolidated-x/../../../outside.safetensors",
        "consolidated\\x.safetensors",
    )
    hub = Hub()
    try:
        hub.commit("lab/small", "main", files | dict.fromkeys(others, b"no weights"))
        done = command(hub.endpoint, tmp_path / "home", "lab/small", str(tmp_path / "dst"))
    finally:
        hub.close()
    assert done.returncode == 0, done.stderr
    asked = {path for path, _ in hub.downloads}
    assert asked
    assert not any(other in path for path in asked for other in others)
    assert not list(tmp_path.rglob("*outside*"))
