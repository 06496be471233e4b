"""Planned tensors to safetensors shards of a chosen size, with the index beside them. Knows bytes and file names only."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .checkpoint import Reader, header_bytes, width, write_all
from .plan import Output, emit


class Shard(NamedTuple):
    """One file to write."""

    name: str
    outputs: list[Output]


class Written(NamedTuple):
    """What a run of writing came to."""

    tensors: int
    bytes: int


def split(outputs: list[Output], limit: int, stem: str) -> list[Shard]:
    """Fill shards in order up to `limit` bytes each; a tensor above the limit gets a shard of its own.

    Within a shard wider dtypes come first, so that every body starts at a multiple of its own width.
    """
    groups: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if groups[-1] and size + output.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(output)
        size += output.nbytes
    ordered = [sorted(group, key=lambda o: -width(o.dtype)) for group in groups]
    if len(ordered) == 1:
        return [Shard(f"{stem}.safetensors", ordered[0])]
    total = len(ordered)
    return [Shard(f"{stem}-{i:05d}-of-{total:05d}.safetensors", group) for i, group in enumerate(ordered, 1)]


def write(folder: Path, shards: list[Shard], stem: str, reader: Reader, progress: Callable[[int], None]) -> Written:
    """Write all shards, and an index if there are several. progress: called with the bytes written so far.

    Raises:
        OSError: The disk is full or fails.
    """
    done = 0
    for shard in shards:
        descriptor = os.open(folder / shard.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_all(descriptor, header_bytes([(o.name, o.dtype, o.shape) for o in shard.outputs]))
            for output in shard.outputs:
                done += _write_tensor(descriptor, output, reader)
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


def _write_tensor(descriptor: int, output: Output, reader: Reader) -> int:
    written = 0
    for piece in output.pieces:
        for data in emit(reader, piece):
            write_all(descriptor, data)
            written += len(data)
    assert written == output.nbytes, f"{output.name}: {written} bytes written of {output.nbytes}"
    return written
