"""GPTQ and AWQ: codes packed along the inputs (GPTQ) or along the outputs in a shuffled order (AWQ, "gemm"), one column
a weight row.

Written by AutoGPTQ, GPTQModel and AutoAWQ as `qweight`, `qzeros`, `scales`, `g_idx`. Value = (code - zero) * scale.
Both are 4-bit groups in other words, so our layout holds them unless GPTQ has reordered the columns (act-order) or has
other than 4 bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from modeling_small4.files_reading import shown

from ..checkpoint import CheckpointError, Reader, Stored
from ..naming import Place
from . import int4
from .bits import unpack
from .finder import Finder
from .int4 import Int4
from .values import PLAIN, Held, Values, row_steps

_AWQ_COLUMNS = (
    0,
    4,
    1,
    5,
    2,
    6,
    3,
    7,
)  # where the columns 0 to 7 lie in a word (awq/utils/packing_utils.py, AWQ_REVERSE_ORDER)
_GPTQ_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Transposed(Values):
    """What GPTQ and AWQ share. scale: [groups, out]; zeros: packed [groups, out * bits / 32], None where all are the
    middle code.

    order: the group of each input where columns may not follow each other; sorted: whether the configuration says that
    they do.
    """

    scale: Stored
    zeros: Stored | None
    bits: int

    error: ClassVar[float] = 0.15

    def expected_error(self) -> float:
        """See `Values.expected_error`; each bit less doubles it."""
        return min(1.0, self.error * 2.0 ** (4 - self.bits))

    def codes(self, reader: Reader) -> torch.Tensor:
        """All codes [out, in]."""
        raise NotImplementedError

    def offsets(self, reader: Reader) -> torch.Tensor:
        """All zeros [out, groups]."""
        raise NotImplementedError

    def groups(self, reader: Reader) -> torch.Tensor | None:
        """The group of each column, None where they follow each other."""
        return None

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`. The whole weight is unpacked at a time, as its rows do not follow each other in the
        file.
        """
        codes, scales, zeros = self.codes(reader), reader.tensor(self.scale).T, self.offsets(reader)
        order = self.groups(reader)
        if order is not None:
            scales, zeros = scales[:, order], zeros[:, order]
        for first, count in row_steps(self.shape):
            rows = slice(first, first + count)
            yield int4.dequantize(codes[rows], scales[rows], zeros[rows])

    def as_int4(self) -> Held:
        """The same in the layout of 4-bit groups, repacked while it is written."""
        symmetric = self.zeros is None
        return Int4.computed(self.shape, self.body, self.scale.dtype, self.scale.shape[0], symmetric, self._repacked)

    def _repacked(self, reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
        order = self.groups(reader)
        if order is not None and not torch.equal(
            order, torch.arange(self.shape[1]) // (self.shape[1] // self.scale.shape[0])
        ):
            raise CheckpointError(
                f"{self.body.file}: {self.body.tensor} has columns in another order, against its configuration; use "
                "--dtype bfloat16"
            )
        zeros = None if self.zeros is None else self.offsets(reader)
        yield from int4.encoded(self.codes(reader), reader.tensor(self.scale).T, zeros)


@dataclass(frozen=True)
class Gptq(Transposed):
    """GPTQ. Version 1 of its files stores zeros less one."""

    order: Stored | None
    sorted: bool
    version: int

    form = "gptq"

    def codes(self, reader: Reader) -> torch.Tensor:
        """See `Transposed`."""
        return unpack(reader.tensor(self.body).T, self.bits)[:, : self.shape[1]]

    def offsets(self, reader: Reader) -> torch.Tensor:
        """See `Transposed`."""
        assert self.zeros is not None
        stored = unpack(reader.tensor(self.zeros), self.bits)[:, : self.shape[0]].T
        return (stored + 1) & (2**self.bits - 1) if self.version == 1 else stored

    def groups(self, reader: Reader) -> torch.Tensor | None:
        """See `Transposed`."""
        return None if self.order is None else int4.group_of_columns(reader, self.order, self.scale.shape[0])

    def held(self) -> Held | None:
        """See `Values.held`."""
        return self.as_int4() if self.bits == 4 and self.sorted and self.shape[1] % 8 == 0 else None


@dataclass(frozen=True)
class Awq(Transposed):
    """AWQ in the packing "gemm"."""

    form = "awq"

    def codes(self, reader: Reader) -> torch.Tensor:
        """See `Transposed`."""
        return _in_order(unpack(reader.tensor(self.body), 4)).T

    def offsets(self, reader: Reader) -> torch.Tensor:
        """See `Transposed`."""
        if self.zeros is None:
            return torch.full((self.shape[0], self.scale.shape[0]), 8, dtype=torch.uint8)
        return _in_order(unpack(reader.tensor(self.zeros), 4)).T

    def held(self) -> Held | None:
        """See `Values.held`."""
        return self.as_int4() if self.shape[1] % 8 == 0 else None


def _in_order(codes: torch.Tensor) -> torch.Tensor:
    return codes.unflatten(1, (-1, 8))[:, :, list(_AWQ_COLUMNS)].flatten(1)


def take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Values | None:
    """The weight at `place`, of which there is a `qweight`."""
    return (_take_awq if "awq" in finder.said.forms else _take_gptq)(finder, place, shape)


def _take_gptq(finder: Finder, place: Place, shape: tuple[int, ...]) -> Values | None:
    entry, (rows, columns) = finder.said.entry, shape
    bits = entry.get("bits")
    if bits not in _GPTQ_BITS:
        stored = finder.headers[place.beside("qweight")]
        finder.problem(
            stored.tensor, stored.file, f"is GPTQ of {shown(bits)} bits; read are {', '.join(map(str, _GPTQ_BITS))}"
        )
        return None
    body = finder.find(place.beside("qweight"), [(-(-columns * bits // 32), rows)], ("I32",))
    groups = _groups(finder, place, shape)
    scale = finder.find(place.beside("scales"), [(groups, rows)], PLAIN)
    zeros = finder.find(place.beside("qzeros"), [(groups, -(-rows * bits // 32))], ("I32",))
    order = finder.find(place.beside("g_idx"), [(columns,)], ("I32", "I64"), optional=True)
    if body is None or scale is None or zeros is None:
        return None
    version = 2 if entry.get("checkpoint_format", entry.get("format")) == "gptq_v2" else 1
    return Gptq(shape, body, scale, zeros, bits, order, not entry.get("desc_act", order is not None), version)


def _take_awq(finder: Finder, place: Place, shape: tuple[int, ...]) -> Values | None:
    rows, columns = shape
    body = finder.find(place.beside("qweight"), [(columns, -(-rows // 8))], ("I32",))
    groups = _groups(finder, place, shape)
    scale = finder.find(place.beside("scales"), [(groups, rows)], PLAIN)
    needed = finder.said.entry.get("zero_point", True)
    zeros = finder.find(place.beside("qzeros"), [(groups, -(-rows // 8))], ("I32",), optional=not needed)
    if body is None or scale is None or (needed and zeros is None):
        return None
    return Awq(shape, body, scale, zeros, 4)


def _groups(finder: Finder, place: Place, shape: tuple[int, ...]) -> int:
    """Groups of a row by the configuration; -1 is one for the whole row."""
    size = finder.said.entry.get("group_size", 128)
    return -(-shape[1] // size) if type(size) is int and size > 0 else 1
