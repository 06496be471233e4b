"""Where a routed expert is on disk, and how to read it: byte ranges of safetensors files, found in their headers.

A layer's experts are stored in a few tensors whose first dimension counts experts, so one expert is one range of each
of them. Ranges are read with `preadv` straight into their place, and the system is told to drop them from its file
cache. Must not know: what stays in memory.
"""

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

ALIGN = 64  # bytes; every tensor of an expert begins at a multiple of it
DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. begin: its first byte, counted from the beginning of the file."""

    file: str
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(file: str) -> dict[str, Stored]:
    """Tensors of a safetensors file by name, those of a dtype of `DTYPES`.

    Raises:
        ValueError: The file has no such header.
    """
    try:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(size) if size < 10**8 else b"")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {
            name: Stored(file, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
            for name, entry in entries.items()
            if entry["dtype"] in DTYPES
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a safetensors file, or it is damaged ({error}); copy or download it again."
        ) from error


class WatchedFile:
    """A file that is read for as long as a model is used. It must stay as it was when it was opened."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)  # the caller may change the working directory
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        if hasattr(os, "posix_fadvise"):  # or it reads ahead, up to megabytes behind each expert
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        weakref.finalize(self, self._file.close)
        self._state = self._look()

    def read(self, begin: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `begin` on.

        Raises:
            OSError: The disk does not give them.
        """
        done, descriptor = 0, self._file.fileno()
        while done < len(into):
            count = _read_at(descriptor, into[done:], begin + done, self.path)
            if not count:
                raise OSError(f"{self.path} ends too early: it was cut off while the model was in use. Load it again.")
            done += count
        self.forget(begin, len(into))  # experts are cached in our own memory, not in the file cache

    def forget(self, begin: int, nbytes: int) -> None:
        """Tell the system to drop a range from its file cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), begin, nbytes, os.POSIX_FADV_DONTNEED)

    def check(self) -> None:
        """Raise OSError if the file was replaced or written to."""
        if self._look() != self._state:
            raise OSError(f"{self.path} was changed while the model was in use. Load the model again.")

    def _look(self) -> tuple[int, ...]:
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise OSError(
                f"{self.path} can no longer be read ({error.strerror}). Put it back or load the model again."
            ) from error
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _read_at(descriptor: int, into: memoryview, begin: int, path: str) -> int:
    try:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [into], begin)
        with open(path, "rb", buffering=0) as alone:  # on other systems, with its own file position
            alone.seek(begin)
            return alone.readinto(into) or 0
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror or error}).") from error


@dataclass(frozen=True)
class Piece:
    """One tensor of an expert. begin: where the first expert's begins in its file; at: where it lies in a slot."""

    file: WatchedFile
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    at: int

    @property
    def nbytes(self) -> int:
        """Bytes of one expert's."""
        return prod(self.shape) * self.dtype.itemsize


class LayerFiles:
    """The experts of one layer on disk.

    Args:
        tensors: By their names in a module; the first dimension of each counts experts.
        files: Those that are open already, by path; more are added.
    """

    def __init__(self, tensors: Mapping[str, Stored], files: dict[str, WatchedFile]) -> None:
        self.pieces: dict[str, Piece] = {}
        self.nbytes = 0
        self.count = next(iter(tensors.values())).shape[0]
        for name, stored in tensors.items():
            if stored.file not in files:
                files[stored.file] = WatchedFile(stored.file)
            piece = Piece(files[stored.file], stored.begin, stored.shape[1:], stored.dtype, self.nbytes)
            self.pieces[name] = piece
            self.nbytes += -(-piece.nbytes // ALIGN) * ALIGN

    def read(self, expert: int, slot: torch.Tensor) -> int:
        """Read one expert into `slot`, uint8 `[at least nbytes]` in host memory. Returns the bytes read.

        Raises:
            OSError: The disk does not give them, or a file is not what it was.
        """
        view = slot.numpy().data
        for piece in self.pieces.values():
            piece.file.read(piece.begin + expert * piece.nbytes, view[piece.at : piece.at + piece.nbytes])
        for file in {id(piece.file): piece.file for piece in self.pieces.values()}.values():
            file.check()
        return sum(piece.nbytes for piece in self.pieces.values())

    def forget(self, expert: int) -> None:
        """Tell the system to drop an expert from its file cache."""
        for piece in self.pieces.values():
            piece.file.forget(piece.begin + expert * piece.nbytes, piece.nbytes)

    def parts(self, slot: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of the expert that lies in `slot`, without a copy."""
        return {
            name: slot[piece.at : piece.at + piece.nbytes].view(piece.dtype).view(piece.shape)
            for name, piece in self.pieces.items()
        }


def folder_of(files: Sequence[str]) -> str:
    """Where the files lie, for messages."""
    return str(Path(files[0]).parent)
