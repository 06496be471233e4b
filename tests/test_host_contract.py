"""transformers still is what `host_contract` says, and the table leaves nothing out. A failure says in a sentence what
moved.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from host_contract import IMPORTED, OVERRIDDEN, TABLE, Row
from oracle import Case

import modeling_small4
from modeling_small4 import Small4ForCausalLM
from modeling_small4.cache import LatentLayer

ROOT = Path(__file__).resolve().parent.parent
HOST = ("transformers.", "huggingface_hub.", "tokenizers.")


def found(name: str) -> Any:
    module, _, path = name.partition(":")
    thing: Any = importlib.import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name.rpartition(":")[2])
def test_it_is_there_and_is_called_as_before(row: Row) -> None:
    version = f"In transformers {transformers.__version__}"
    try:
        thing = found(row.name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{version} there is no {row.name} any more ({error}). We need it because: {row.reason}.")
    if row.parameters is not None:
        plain = inspect.unwrap(getattr(thing, "__func__", thing))
        now = " ".join(inspect.signature(plain).parameters)
        assert now == row.parameters, (
            f"{version} {row.name} takes ({now}), not ({row.parameters}). It matters: {row.reason}."
        )
    for words in row.words:
        source = inspect.getsource(inspect.unwrap(thing) if callable(thing) else thing)
        source += inspect.getsource(inspect.getmodule(thing)) if inspect.isclass(thing) or "capture" in row.name else ""
        assert words in source, f"{version} {row.name} no longer says {words!r}. It matters: {row.reason}."


def imported() -> Iterator[tuple[str, str]]:
    """Every name that we import from transformers and that it does not export itself, and the file."""
    for folder in ("modeling_small4", "conversion"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if (
                    isinstance(node, ast.ImportFrom)
                    and node.level == 0
                    and (node.module or "").startswith("transformers.")
                ):
                    for alias in node.names:
                        if not hasattr(transformers, alias.name):
                            yield f"{node.module}:{alias.name}", f"{folder}/{file.name}"


def overridden() -> Iterator[tuple[str, str]]:
    """Every private name of transformers' classes that a class of ours has too, and that class."""
    for info in pkgutil.walk_packages(modeling_small4.__path__, "modeling_small4."):
        if ".demo" in info.name or info.name.endswith("__main__"):
            continue
        for thing in vars(importlib.import_module(info.name)).values():
            if not inspect.isclass(thing) or not thing.__module__.startswith("modeling_small4"):
                continue
            hosts = [base for base in thing.__mro__ if base.__module__.startswith(HOST)]
            for base in thing.__mro__:
                if not base.__module__.startswith("modeling_small4"):
                    continue
                for name in vars(base):
                    if name.startswith("_") and not name.startswith("__") and name != "_abc_impl":
                        for host in hosts:
                            if name in vars(host):
                                yield f"{host.__module__}:{host.__qualname__}.{name}", base.__qualname__
                                break


def test_all_that_we_import_beyond_the_public_names_is_in_the_table() -> None:
    known = {row.name for row in IMPORTED}
    missing = {name: file for name, file in imported() if name not in known}
    assert not missing, f"Add a row with the reason to tests/host_contract.py, or use a public name: {missing}."
    left = known - dict(imported()).keys()
    assert not left, f"Nothing imports these any more; take their rows out: {left}."


def test_all_private_names_that_we_override_are_in_the_table() -> None:
    pytest.importorskip("fastapi")
    known = {row.name for row in OVERRIDDEN}
    missing = {name: ours for name, ours in overridden() if name not in known}
    assert not missing, f"Add a row with the reason to tests/host_contract.py, or use a public hook: {missing}."


def test_every_part_of_a_layers_cache_is_ours() -> None:
    """A part that is new in transformers would work on what our layers do not have."""
    parts = {
        name
        for name, part in vars(transformers.cache_utils.CacheLayerMixin).items()
        if callable(part) and name[0] != "_"
    }
    assert parts <= set(vars(LatentLayer)) | {"activate_past_recording"}, parts - set(vars(LatentLayer))


def test_every_linear_layer_is_one_that_transformers_replaces() -> None:
    model = Small4ForCausalLM(Case().config())
    assert {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)} == {torch.nn.Linear}
