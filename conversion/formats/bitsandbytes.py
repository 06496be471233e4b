"""bitsandbytes in 4 bits: NF4 and FP4 codes, two in a byte, with one scale for a block of neighbors in row-major order.

Beside `X.weight` lie `.absmax`, `.quant_map` (what the 16 codes stand for), `.quant_state.bitsandbytes__nf4` (JSON as
bytes), and with double quantization `.nested_absmax` and `.nested_quant_map`. Value = map[code] * absmax. Expanded
only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint import CheckpointError, Reader, Stored, parse_json
from ..naming import Place
from .finder import Finder
from .values import PLAIN, Values, row_steps

KINDS = ("nf4", "fp4")


@dataclass(frozen=True)
class Bits4(Values):
    """A weight in NF4 or FP4. nested: scale and map of the scales, where those are stored in 8 bits."""

    state: Stored
    absmax: Stored
    map: Stored
    nested: tuple[Stored, Stored] | None

    form = "bitsandbytes"
    error = 0.12

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        said, columns = self._said(reader), self.shape[1]
        scales, values, block = self._scales(reader, said), reader.tensor(self.map).float(), said["blocksize"]
        for first, count in row_steps(self.shape):
            begin, end = first * columns, (first + count) * columns
            data = reader.tensor(self.body, begin // 2, -(-end // 2) - begin // 2)
            codes = torch.stack((data >> 4, data & 15), dim=-1).view(-1)[begin % 2 :][: end - begin]
            yield (values[codes.int()] * scales[torch.arange(begin, end) // block]).view(count, columns)

    def _said(self, reader: Reader) -> dict[str, Any]:
        """What the quantizer wrote down. Raises CheckpointError where it is not about this weight."""
        try:
            said = parse_json(bytes(reader.tensor(self.state).tolist()))
            fits = tuple(said["shape"]) == self.shape
            fits = fits and _in_blocks(math.prod(self.shape), said["blocksize"], self.absmax)
            if self.nested is not None:
                fits = fits and _in_blocks(self.absmax.count, said["nested_blocksize"], self.nested[0])
                fits = fits and type(said["nested_offset"]) in (int, float)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise CheckpointError(
                f"{self.state.file}: tensor {self.state.tensor} is no description of a weight {list(self.shape)}"
            )
        return said

    def _scales(self, reader: Reader, said: dict[str, Any]) -> torch.Tensor:
        absmax = reader.tensor(self.absmax)
        if self.nested is None:
            return absmax.float()
        scale, table = (reader.tensor(part).float() for part in self.nested)
        blocks = torch.arange(len(absmax)) // said["nested_blocksize"]
        return table[absmax.int()] * scale[blocks] + said["nested_offset"]


def _in_blocks(count: int, size: object, scales: Stored) -> bool:
    """Whether there is a scale for each `size` of so many numbers."""
    return type(size) is int and size > 0 and -(-count // size) == scales.count


def take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Bits4 | None:
    """The weight at `place`, beside which a `quant_state` of bitsandbytes lies."""
    name = f"{place.weight}.quant_state.bitsandbytes__"
    state = next(finder.headers[name + kind] for kind in KINDS if finder.has(name + kind))
    finder.leave(name + next(kind for kind in KINDS if finder.has(name + kind)))
    count = math.prod(shape)
    body = finder.find(place.weight, [(-(-count // 2), 1), (1, -(-count // 2))], ("U8",))
    double = finder.has(f"{place.weight}.nested_absmax")
    absmax = finder.vector(f"{place.weight}.absmax", ("U8",) if double else PLAIN)
    table = finder.find(f"{place.weight}.quant_map", [(16,)], PLAIN)
    nested = None
    if double:
        scale = finder.vector(f"{place.weight}.nested_absmax", PLAIN)
        nested_map = finder.find(f"{place.weight}.nested_quant_map", [(256,)], PLAIN)
        nested = (scale, nested_map) if scale and nested_map else None
    if body is None or absmax is None or table is None or (double and nested is None):
        return None
    return Bits4(shape, body, state, absmax, table, nested)


def stands(finder: Finder, place: Place) -> bool:
    """Whether a weight of bitsandbytes in 4 bits lies at `place`."""
    return any(finder.has(f"{place.weight}.quant_state.bitsandbytes__{kind}") for kind in KINDS)
