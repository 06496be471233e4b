"""The Hub through its real client: push, load, revisions, subfolders, a download that breaks, and no network at all."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_user
import pytest
from hub_client import hub_client
from oracle import TEXT
from tiny_checkpoint import write_tiny_checkpoint

from model_card.evals.fuzz.small_hub import Hub
from modeling_small4 import Small4Config, Small4ForCausalLM

pytestmark = pytest.mark.slow


class World:
    """Two checkpoints, a Hub, and one user's cache."""

    without_network: Callable[[bool], None]

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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("hub"))
    with hub_client(made.hub, made.folder / "home") as made.without_network:
        hub_user.push(made.folder)
        yield made
    made.hub.close()


@pytest.fixture(scope="module")
def loaded(world: World) -> tuple[dict[str, Any], list[str]]:
    """What a user finds who loads everything once, and the files that were downloaded for it."""
    before = len(world.hub.downloads)
    return hub_user.load(world.folder), [name for name, _ in world.hub.downloads[before:]]


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
    assert hub_user.broken(world.folder) == {"whole": True}
    ranges = [asked for name, asked in world.hub.downloads[before:] if name == "model.safetensors"]
    assert ranges == [None, f"bytes={10 * 2**20}-"]  # the client writes in pieces of 10 MiB


@pytest.mark.usefixtures("loaded")
def test_without_a_network(world: World) -> None:
    """After loading once, everything is there; what was never loaded is an error that says so."""
    before = len(world.hub.downloads)
    world.without_network(True)
    try:
        found = hub_user.offline(world.folder)
    finally:
        world.without_network(False)
    assert found["main"]
    assert "offline mode" in found["error"]
    assert "cached files" in found["error"]
    assert len(world.hub.downloads) == before
