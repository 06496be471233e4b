"""Safetensors files read and written as streams: headers first and checked, bodies in small pieces, memory bounded.

A header is 8 bytes of length (little endian), JSON, then the bodies in the order of their offsets without a gap
(github.com/huggingface/safetensors, "Format"). Knows bytes and dtypes; it does not know what a tensor means.
"""

import json
import math
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_small4 import files_reading
from modeling_small4.files_reading import POINTED, is_pointer, one_line, parse_json, shown

from .systems import open_to_read, read_at

CHUNK = 8 << 20  # bytes held at a time while copying
_MAX_HEADER = 100 << 20
TRUNCATED, POINTER, MISSING = "truncated file", "Git LFS pointer", "missing file"  # kinds of `CheckpointError`

DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
}
_WIDTHS = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
}
_WIDTHS |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message is one line that names the file and, if it concerns one, the
    tensor.

    kind: one to three words for it in the table of `small4 check`; empty where the file that is named says enough.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(one_line(message, 600))  # names and values from a damaged file may have any length
        self.kind = kind


def wrong_tensor(file: Path, tensor: str, reason: str, kind: str = "damaged file") -> CheckpointError:
    """The error for a tensor of a file that cannot be used."""
    return CheckpointError(f"{file}: tensor {one_line(tensor, 120)} {reason}", kind)


@dataclass(frozen=True)
class Stored:
    """Where values are on disk: `shape` and `dtype` (safetensors' spelling), `nbytes` from byte `start` of `file`."""

    file: Path
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.count * _WIDTHS[self.dtype]

    def part(self, offset: int, shape: tuple[int, ...]) -> "Stored":
        """The `shape` values that begin `offset` values into this tensor (row-major)."""
        return Stored(self.file, self.tensor, self.dtype, shape, self.start + offset * _WIDTHS[self.dtype])


def width(dtype: str) -> int:
    """Bytes of one value of a dtype in safetensors' spelling."""
    return _WIDTHS[dtype]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError for anything else, including repeated keys."""
    try:
        return files_reading.read_json(file, strict=True)
    except ValueError as error:
        raise CheckpointError(str(error), POINTER if is_pointer(file) else "damaged file") from None


def read_headers(files: list[Path]) -> dict[str, Stored]:
    """Every tensor of several safetensors files, checked against the files' sizes. No body is read.

    Raises:
        CheckpointError: A damaged or truncated file, or a tensor that appears twice.
    """
    out: dict[str, Stored] = {}
    for file in files:
        for tensor, stored in _read_header(file).items():
            if tensor in out:
                raise wrong_tensor(file, tensor, f"is also in {out[tensor].file.name}")
            out[tensor] = stored
    return out


def _read_header(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            if is_pointer(file):
                raise CheckpointError(f"{file}: {POINTED}", POINTER)
            about = f"truncated or no safetensors file (header of {length} bytes in {size})"
            raise CheckpointError(f"{file}: {about}", TRUNCATED)
        raw = stream.read(length)
    try:
        header = parse_json(raw, strict=True)
    except ValueError as error:
        raise CheckpointError(f"{file}: the safetensors header is damaged ({one_line(error, 200)})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ of the header must map names to texts, but is {shown(metadata)}")
    out = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_extents(file, list(out.values()), 8 + length, size)
    return out


def _entry(file: Path, name: str, entry: Any, base: int) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        ok = (
            isinstance(entry["shape"], list)
            and isinstance(dtype, str)
            and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
            and all(n < 2**63 for n in accumulate(shape, operator.mul))
        )
    except (KeyError, TypeError, ValueError):
        ok = False
    if not ok:
        raise wrong_tensor(file, name, "has a damaged header entry")
    if dtype not in _WIDTHS:
        raise wrong_tensor(file, name, f"has the unknown dtype {shown(dtype)}")
    stored = Stored(file, name, dtype, shape, base + begin)
    if stored.nbytes != end - begin:
        raise wrong_tensor(file, name, f"is {dtype} {list(shape)}, but {end - begin} bytes are stored for it")
    return stored


def _check_extents(file: Path, entries: list[Stored], base: int, size: int) -> None:
    position, last = base, None
    for stored in sorted(entries, key=lambda s: (s.start, s.nbytes)):
        if stored.start != position:
            raise wrong_tensor(file, stored.tensor, "overlaps another or leaves a gap before it")
        position, last = stored.start + stored.nbytes, stored.tensor
        if position > size:
            raise wrong_tensor(file, stored.tensor, f"is truncated: it ends at byte {position} of {size}", TRUNCATED)
    if position != size:
        raise CheckpointError(f"{file}: {size - position} bytes too many after tensor {last}", "trailing bytes")


class Reader:
    """Reads pieces of many files, keeping them open. Use as a context manager."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def into(self, buffer: memoryview, stored: Stored, offset: int) -> None:
        """Fill `buffer` from byte `offset` of `stored`."""
        if stored.file not in self._open:
            self._open[stored.file] = open_to_read(stored.file)
        done = 0
        while done < len(buffer):
            got = read_at(self._open[stored.file], buffer[done:], stored.start + offset + done)
            if got == 0:
                raise wrong_tensor(stored.file, stored.tensor, "is truncated; was it changed meanwhile?")
            done += got

    def tensor(self, stored: Stored, first: int = 0, count: int | None = None) -> torch.Tensor:
        """`count` values from value `first` on, flat, or the whole in its shape."""
        shape = stored.shape if count is None else (count,)
        out = torch.empty(shape, dtype=DTYPES[stored.dtype])
        if out.numel():
            self.into(as_bytes(out), stored, first * width(stored.dtype))
        return out

    def stream(self, stored: Stored) -> Iterator[memoryview]:
        """The bytes of `stored` in pieces; each is valid until the next is asked for."""
        buffer = memoryview(bytearray(min(CHUNK, stored.nbytes)))
        for offset in range(0, stored.nbytes, CHUNK):
            piece = buffer[: min(CHUNK, stored.nbytes - offset)]
            self.into(piece, stored, offset)
            yield piece

    def same_bytes(self, one: Stored, other: Stored) -> bool:
        """Whether two pieces of equal dtype hold the same bytes."""
        if (one.dtype, one.count) != (other.dtype, other.count):
            return False
        pairs = zip(self.stream(one), self.stream(other), strict=True)
        return all(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def header_bytes(entries: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file with these (name, dtype, shape), whose bodies follow in the same order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in entries:
        end = position + math.prod(shape) * width(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # bodies begin at a multiple of 8, so that they can be mapped into memory
    return len(text).to_bytes(8, "little") + text


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write everything, starting at byte `position`; `os.write` may stop early."""
    os.lseek(descriptor, position, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
