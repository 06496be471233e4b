"""Faults planted in safetensors files, byte by byte, without the project's readers."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def files(folder: Path) -> list[Path]:
    """The folder's weight files."""
    return sorted(folder.glob("*.safetensors"))


def header(file: Path) -> tuple[dict[str, Any], int]:
    """A file's header, and where the bodies begin."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), 8 + length


def holding(folder: Path, tensor: str) -> Path:
    """The file that holds a tensor."""
    return next(file for file in files(folder) if tensor in header(file)[0])


def load(folder: Path) -> Tensors:
    """All tensors of a folder."""
    out: Tensors = {}
    for file in files(folder):
        out |= load_file(file)
    return out


def change(folder: Path, changed: Tensors) -> None:
    """Put other tensors in place of those of these names, in the files that hold them."""
    for file in files(folder):
        tensors = load_file(file)
        if tensors.keys() & changed.keys():
            kept = {name: changed.get(name, tensor).contiguous() for name, tensor in tensors.items()}
            save_file(kept, file, metadata={"format": "pt"})


def drop(folder: Path, name: str) -> None:
    """Remove a tensor."""
    file = holding(folder, name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


def add(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Add a tensor to the first file."""
    file = files(folder)[0]
    save_file(load_file(file) | {name: tensor}, file, metadata={"format": "pt"})


def flip_bit(folder: Path, tensor: str, draw: random.Random) -> int:
    """Flip one bit of a tensor's body; returns its number."""
    file = holding(folder, tensor)
    entries, base = header(file)
    begin, end = entries[tensor]["data_offsets"]
    bit = draw.randrange(8 * (end - begin))
    data = bytearray(file.read_bytes())
    data[base + begin + bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return bit


def swap_offsets(folder: Path, one: str, other: str) -> None:
    """Let the header of a file give each of two tensors the place of the other."""
    file = holding(folder, one)
    entries, base = header(file)
    entries[one]["data_offsets"], entries[other]["data_offsets"] = (
        entries[other]["data_offsets"],
        entries[one]["data_offsets"],
    )
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = file.read_bytes()[base:]
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
