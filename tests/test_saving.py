"""Saving writes into the folder it is given, and through no link in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_small4 import Small4Config, Small4ForCausalLM, Small4Processor

PARTS: dict[str, Callable[[Path], Any]] = {
    "model": Small4ForCausalLM.from_pretrained,
    "processor": Small4Processor.from_pretrained,
    "configuration": Small4Config.from_pretrained,
    "tokenizer": lambda folder: Small4Processor.from_pretrained(folder).tokenizer,
    "image processor": lambda folder: Small4Processor.from_pretrained(folder).image_processor,
}


@pytest.mark.parametrize("kind", ["store", "nowhere"])
@pytest.mark.parametrize("part", PARTS)
def test_links_are_not_followed(folder: Path, tmp_path: Path, part: str, kind: str) -> None:
    """A snapshot in the Hub's cache consists of links to its store, which other snapshots share."""
    loaded = PARTS[part](folder)
    loaded.save_pretrained(tmp_path / "plain")
    names = sorted(entry.name for entry in (tmp_path / "plain").iterdir())
    assert names
    for name in names:
        work = tmp_path / name
        (work / "snapshot").mkdir(parents=True)
        if kind == "store":
            (work / "store").write_text("shared")
        (work / "snapshot" / name).symlink_to(work / "store")
        (work / "snapshot" / "notes").symlink_to(folder)
        with pytest.raises(ValueError, match="is a link to"):
            loaded.save_pretrained(work / "snapshot")
        assert sorted(os.listdir(work / "snapshot")) == sorted([name, "notes"])
        assert not (work / "store").exists() if kind == "nowhere" else (work / "store").read_text() == "shared"


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_that_is_a_link_and_one_with_files_is_saved_into(folder: Path, tmp_path: Path, part: str) -> None:
    loaded = PARTS[part](folder)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for _ in range(2):
        loaded.save_pretrained(tmp_path / "link")
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    assert len(os.listdir(tmp_path / "folder")) > 1
