"""Safetensors headers, bodies and indices. What is right: what safetensors' own reader, or a plain reading of the JSON,
makes of the same file.
"""

import json
import random
from pathlib import Path

import torch
from safetensors import safe_open
from small4_conversion.checkpoint import DTYPES, Reader, read_headers
from small4_conversion.files import INDEX, PATTERN, RAW_INDEX, RAW_PATTERN, weight_files

from modeling_small4.files_reading import check_weights

from .cases import Bench, Case
from .damage import damaged, write


def header_converted(bench: Bench, draw: random.Random) -> Case:
    """One file, read as conversion reads it: headers by our own reader, then every body."""
    file, what = _one_file(bench, draw)

    def read() -> dict[str, torch.Tensor]:
        stored = read_headers([file])
        with Reader() as reader:
            return {name: reader.tensor(each) for name, each in stored.items() if each.dtype in DTYPES}

    return Case(what, read, lambda got: _differs(file, got), (str(file),))


def header_loaded(bench: Bench, draw: random.Random) -> Case:
    """One file, looked at before a model is loaded from it."""
    file, what = _one_file(bench, draw)

    def read() -> None:
        check_weights(bench.work)

    def check(_: object) -> str | None:
        if file.exists():
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    opened.get_tensor(name)
        return None

    return Case(what, read, check, (str(file),))


def _one_file(bench: Bench, draw: random.Random) -> tuple[Path, str]:
    file = bench.work / "model.safetensors"
    change = damaged(file.name, bench.text("parts/model.safetensors"), draw)
    write(file, change)
    return file, change.what


def _differs(file: Path, got: object) -> str | None:
    """What conversion read and safetensors' own reader does not."""
    assert isinstance(got, dict)
    try:
        with safe_open(file, "pt") as opened:
            wanted = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:
        return f"safetensors refuses it ({error})"
    for name, tensor in got.items():
        if name not in wanted or (wanted[name].dtype, wanted[name].shape) != (tensor.dtype, tensor.shape):
            return f"{name} is not what safetensors reads"
        if not torch.equal(_bits(wanted[name]), _bits(tensor)):
            return f"{name} has other values than safetensors reads"
    return None


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def index_loaded(bench: Bench, draw: random.Random) -> Case:
    """An index with its shards, looked at before a model is loaded."""
    what = _shards(bench, draw, "ours", INDEX)
    return Case(what, lambda: check_weights(bench.work), lambda _: _named(bench.work / INDEX), (str(bench.work),))


def index_converted(bench: Bench, draw: random.Random) -> Case:
    """An index with its shards, as conversion finds the files of a checkpoint."""
    layout, index, pattern = draw.choice((("ours", INDEX, PATTERN), ("raw", RAW_INDEX, RAW_PATTERN)))
    what = _shards(bench, draw, layout, index)
    everything = {file.name for file in (bench.sound / layout).glob("*.safetensors")}

    def check(files: list[Path]) -> str | None:
        file = bench.work / index
        wanted = set(json.loads(file.read_bytes())["weight_map"].values()) if file.exists() else everything
        return None if {each.name for each in files} == wanted else "other files than the index names"

    return Case(what, lambda: weight_files(bench.work, index, pattern), check, (str(bench.work),))


def _shards(bench: Bench, draw: random.Random, layout: str, index: str) -> str:
    for file in (bench.sound / layout).glob("*.safetensors"):
        (bench.work / file.name).hardlink_to(file)
    change = damaged(index, bench.text(f"{layout}/{index}"), draw)
    write(bench.work / index, change)
    return change.what


def _named(index: Path) -> str | None:
    """What is wrong with an index that was accepted; None without one."""
    if not index.exists():
        return None
    names = set(json.loads(index.read_bytes())["weight_map"].values())
    missing = [name for name in names if not (index.parent / name).is_file() or "/" in name]
    return f"it names {missing[0]!r}, which is no file of the folder" if missing else None
