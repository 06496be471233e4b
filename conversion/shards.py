"""Planned tensors to safetensors shards of a chosen size, with the index beside them. Knows bytes and file names
only.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .checkpoint import Reader, header_bytes, width, write_at
from .plan import Output
from .steps import Step


class Shard(NamedTuple):
    """One file to write."""

    name: str
    outputs: list[Output]


class Written(NamedTuple):
    """The result of writing."""

    tensors: int
    bytes: int


def split(outputs: list[Output], limit: int, stem: str) -> list[Shard]:
    """Fill shards in order up to `limit` bytes each; a tensor above the limit gets a shard of its own.

    Tensors that are computed together stay together. Within a shard wider dtypes come first, so that the data of every
    tensor start at a multiple of the dtype's width.
    """
    groups: list[list[Output]] = [[]]
    size = 0
    for together in _computed_together(outputs):
        added = sum(output.nbytes for output in together)
        if groups[-1] and size + added > limit:
            groups.append([])
            size = 0
        groups[-1] += together
        size += added
    ordered = [sorted(group, key=lambda o: -width(o.dtype)) for group in groups]
    if len(ordered) == 1:
        return [Shard(f"{stem}.safetensors", ordered[0])]
    total = len(ordered)
    return [Shard(f"{stem}-{i:05d}-of-{total:05d}.safetensors", group) for i, group in enumerate(ordered, 1)]


def _computed_together(outputs: list[Output]) -> list[list[Output]]:
    """Groups of tensors that share a step and therefore go into one file."""
    runs: list[list[Output]] = []
    for output in outputs:
        if runs and runs[-1][-1].pieces[0].step is output.pieces[0].step:
            runs[-1].append(output)
        else:
            runs.append([output])
    return runs


def write(folder: Path, shards: list[Shard], stem: str, reader: Reader, progress: Callable[[int], None]) -> Written:
    """Write all shards, and an index if there are several. progress: called with the bytes written so far.

    Raises:
        OSError: The disk is full or fails.
    """
    done = 0
    for shard in shards:
        descriptor = os.open(folder / shard.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for written in _write_shard(descriptor, shard.outputs, reader):
                done += written
                progress(done)
            os.fsync(descriptor)
        except OSError as error:
            error.filename = error.filename or str(folder / shard.name)
            raise
        finally:
            os.close(descriptor)
    if len(shards) > 1:
        mapping = {output.name: shard.name for shard in shards for output in shard.outputs}
        index = {"metadata": {"total_size": done}, "weight_map": dict(sorted(mapping.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return Written(sum(len(shard.outputs) for shard in shards), done)


def _write_shard(descriptor: int, outputs: list[Output], reader: Reader) -> Iterator[int]:
    """Write one file, step after step, each piece at its place; yields bytes of bodies written."""
    header = header_bytes([(o.name, o.dtype, o.shape) for o in outputs])
    write_at(descriptor, header, 0)
    position = len(header)
    places: dict[Step, dict[str, tuple[int, int]]] = {}  # where the bytes of each role begin and end
    for output in outputs:
        for piece in output.pieces:
            places.setdefault(piece.step, {})[piece.role] = (position, position + piece.nbytes)
            position += piece.nbytes
    for step, roles in places.items():
        done = {role: begin for role, (begin, _) in roles.items()}
        for role, data in step.run(reader):
            write_at(descriptor, data, done[role])
            done[role] += len(data)
            yield len(data)
        ends = {role: end for role, (_, end) in roles.items()}
        assert done == ends, f"bytes written up to {done}, expected {ends}"
