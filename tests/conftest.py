"""Fixtures that many test files share. A file that needs others under these names defines its own."""

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

# Before torch is imported: the threads of several test processes would fight for the cores.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

from checked_releases import FORMS, release, write_manifest
from conversion_cases import run
from generation_cases import tiny_model
from tiny_checkpoint import write_tiny_checkpoint
from transformers import masking_utils
from transformers.integrations import flex_attention

from modeling_small4 import Small4ForCausalLM, demo_checkpoint
from modeling_small4.processing_small4 import Small4Processor


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would begin with the files of most tests; the order of `pytest_collection_modifyitems` is kept."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those with many: at the end, one process would wait for another."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    all_of_file = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -all_of_file[item.path]))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end. What libraries call the garbage collector for would take most of a second each
    time if it looked at these too.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk: a test sees what was written in any case. Descriptors are still looked at."""
    with patch.object(os, "fsync", os.fstat):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny random checkpoint with tower, tokenizer and processor. Not to be written into."""
    made = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    before = _changes(made)
    yield made
    assert _changes(made) == before, "a test wrote into the folder that all share"


@pytest.fixture(scope="session")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a tower."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("blind"), vision=False)


def _changes(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def processor(folder: Path) -> Small4Processor:
    """The processor of `folder`."""
    return Small4Processor.from_pretrained(folder)


@pytest.fixture
def uncompiled_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention as it is defined, for tests of what is seen: compiling takes seconds for each shape and mask."""
    monkeypatch.setattr(flex_attention, "WrappedFlexAttention", lambda training: lambda: flex_attention.flex_attention)
    made = masking_utils.create_block_mask
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, **k: made(*a, **k | {"_compile": False}))


@pytest.fixture(scope="module")
def repeating() -> Small4ForCausalLM:
    """A model so eager to repeat itself that drafts are found and accepted."""
    return tiny_model(0)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint."""
    try:
        folder = demo_checkpoint()
    except FileNotFoundError:
        pytest.skip("the demo checkpoint is not there")
    return Path(shutil.copytree(folder, tmp_path / "demo"))


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release of each form with its manifest. Not to be written into."""
    made = {form: release(tmp_path_factory.mktemp(form) / form, form, seed) for seed, form in enumerate(FORMS)}
    for folder in made.values():
        write_manifest(folder)
    return made


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release in the fused layouts. Not to be written into."""
    folder = tmp_path_factory.mktemp("fused")
    raw = release(folder / "raw", "bf16", 5)
    for layout in ("small4", "transformers"):
        run(raw, folder / layout, to=layout)
    return {layout: folder / layout for layout in ("small4", "transformers")}
