"""The Hub through its real client: push, load, revisions, subfolders, a download that breaks, and no network at all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import TEXT
from tiny_checkpoint import write_tiny_checkpoint

from model_card.evals.fuzz.small_hub import Hub, client_environment
from modeling_small4 import Small4Config, Small4ForCausalLM

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.slow


class World:
    """Two checkpoints, a Hub, and one user's cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hub = folder, Hub()
        for seed, name in enumerate(("first", "second")):
            write_tiny_checkpoint(folder / name, seed=seed)
        files = {file.name: file.read_bytes() for file in (folder / "first").iterdir()}
        config = Small4Config(text_config=TEXT | {"vocab_size": 60_000}, vision_config=None, tie_word_embeddings=True)
        Small4ForCausalLM(config).save_pretrained(folder / "large")
        self.hub.commit("lab/large", "main", {file.name: file.read_bytes() for file in (folder / "large").iterdir()})
        self.hub.commit(
            "lab/nested", "main", {f"inner/{name}": data for name, data in files.items()} | {"README.md": b"x"}
        )
        self.user("push")

    def user(self, step: str, **settings: str) -> dict[str, Any]:
        environment = client_environment(self.hub.endpoint, self.folder / "home")
        environment |= {"OMP_NUM_THREADS": "1"} | settings
        line = [sys.executable, str(TESTS / "hub_user.py"), step, str(self.folder)]
        done = subprocess.run(
            line, capture_output=True, text=True, env=environment, cwd=TESTS, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("hub"))
    yield made
    made.hub.close()


@pytest.fixture(scope="module")
def loaded(world: World) -> tuple[dict[str, Any], list[str]]:
    """What a user finds who loads everything once, and the files that were downloaded for it."""
    before = len(world.hub.downloads)
    return world.user("load"), [name for name, _ in world.hub.downloads[before:]]


def test_pushed_repositories_hold_a_whole_checkpoint(world: World) -> None:
    _, files = world.hub.at("lab/tiny", "main") or ("", {})
    wanted = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    }
    assert wanted <= files.keys()
    assert not any(name.endswith(".py") for name in files)
    assert "auto_map" not in json.loads(files["config.json"])


def test_loading_by_name_revision_and_subfolder(loaded: tuple[dict[str, Any], list[str]]) -> None:
    found, fetched = loaded
    assert found["class"] == "Small4ForCausalLM"
    assert all(found.values()), found
    assert fetched.count("model.safetensors") == 2  # main and its commit are one file; the other is the branch `second`
    assert "README.md" not in fetched


def test_a_broken_download_goes_on_where_it_stopped(world: World) -> None:
    size = (world.folder / "large" / "model.safetensors").stat().st_size
    assert size > 12 * 2**20
    world.hub.drop["model.safetensors"] = 12 * 2**20
    before = len(world.hub.downloads)
    assert world.user("broken") == {"whole": True}
    ranges = [asked for name, asked in world.hub.downloads[before:] if name == "model.safetensors"]
    assert ranges == [None, f"bytes={10 * 2**20}-"]  # the client writes in pieces of 10 MiB


@pytest.mark.usefixtures("loaded")
def test_without_a_network(world: World) -> None:
    """After loading once, everything is there; what was never loaded is an error that says so."""
    before = len(world.hub.downloads)
    found = world.user("offline", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert found["main"]
    assert "offline mode" in found["error"]
    assert "cached files" in found["error"]
    assert len(world.hub.downloads) == before
