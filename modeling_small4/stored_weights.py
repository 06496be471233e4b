"""Weights as they are stored: the codes and scales of FP8, NVFP4 and 4-bit groups, and the numbers they stand for.

One class for each form, each of them one matrix `[rows, columns]`. Numbers are exactly those that
`small4 convert --dtype bfloat16` writes: code times scale in float32, rounded to bfloat16 once. Products with them are
in `stored_kernels`. Must not know: modules, files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from math import ceil
from typing import Self

import torch

PIECE = 2**20  # numbers expanded at a time
STEP = 128  # rows of a piece are a multiple of this: FP8 blocks are as high, and packed zeros hold 8 rows
BLOCK = 128  # rows and columns that share a scale in block-wise FP8
GROUP = 16  # columns that share a scale in NVFP4
CODES = tuple(map(float, range(16)))  # 4 bits as numbers
# e2m1: sign, two exponent bits, one mantissa bit (OCP Microscaling formats 1.0, section 5.3.3).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class StoredWeight(ABC):
    """One matrix of codes with their scales. All tensors are on one device and are views of what a module holds."""

    codes: torch.Tensor

    @property
    def rows(self) -> int:
        """Output features."""
        return self.codes.shape[0]

    @property
    @abstractmethod
    def columns(self) -> int:
        """Input features."""

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        parts = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return sum(part.nbytes for part in parts if part is not None)

    @abstractmethod
    def part(self, start: int, stop: int) -> Self:
        """Rows `start` to `stop` as a weight of their own, without a copy. `start` is a multiple of `STEP`."""

    @abstractmethod
    def expand(self) -> torch.Tensor:
        """All numbers, bfloat16 `[rows, columns]`. Takes about 10 bytes a number while it works."""

    def pieces(self) -> Iterator[tuple[slice, Self]]:
        """The rows in parts of about `PIECE` numbers, so that not much is expanded at a time."""
        step = max(STEP, PIECE // self.columns // STEP * STEP)
        for start in range(0, self.rows, step):
            stop = min(start + step, self.rows)
            yield slice(start, stop), self.part(start, stop)


@dataclass(frozen=True, eq=False)
class Fp8Weight(StoredWeight):
    """E4M3 codes `[rows, columns]`; value = code * scale.

    scale: `[1, 1]`, one for each row `[rows, 1]`, or for blocks of 128 x 128 `[ceil(rows / 128), ceil(columns / 128)]`;
    any float dtype.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    @property
    def columns(self) -> int:
        """See `StoredWeight`."""
        return self.codes.shape[1]

    @property
    def blocks(self) -> bool:
        """Whether scales belong to blocks rather than to rows or to the whole."""
        return self.scale.shape not in ((1, 1), (self.rows, 1))

    def part(self, start: int, stop: int) -> Self:
        """See `StoredWeight`."""
        if self.scale.shape[0] == 1:
            return replace(self, codes=self.codes[start:stop])
        rows = slice(start // BLOCK, ceil(stop / BLOCK)) if self.blocks else slice(start, stop)
        return replace(self, codes=self.codes[start:stop], scale=self.scale[rows])

    def expand(self) -> torch.Tensor:
        """See `StoredWeight`."""
        scale = self.scale.float()
        if self.blocks:
            scale = scale.repeat_interleave(BLOCK, 0)[: self.rows].repeat_interleave(BLOCK, 1)[:, : self.columns]
        return (self.codes.float() * scale).to(torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Nvfp4Weight(StoredWeight):
    """Pairs of e2m1 codes in bytes `[rows, columns / 2]`, the low half being the even column; value = e2m1 * scale /
    divisor.

    scale: E4M3 `[rows, columns / 16]`. divisor: one number `[]`.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    divisor: torch.Tensor

    @property
    def columns(self) -> int:
        """See `StoredWeight`."""
        return 2 * self.codes.shape[1]

    def part(self, start: int, stop: int) -> Self:
        """See `StoredWeight`."""
        return replace(self, codes=self.codes[start:stop], scale=self.scale[start:stop])

    def expand(self) -> torch.Tensor:
        """See `StoredWeight`."""
        numbers = _pairs(E2M1, self.codes.device)[self.codes.int()].view(self.rows, -1, GROUP)
        return numbers.mul_(self.scale.float()[..., None]).div_(self.divisor.float()).flatten(1).to(torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Int4Weight(StoredWeight):
    """Eight codes of 4 bits in an int32 `[rows, columns / 8]`, the lowest bits first; value = (code - zero) * scale.

    scale: float `[rows, columns / group]`. zeros: int32 `[ceil(rows / 8), columns / group]`, eight rows in one; None:
    all are 8.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor | None = None

    @property
    def columns(self) -> int:
        """See `StoredWeight`."""
        return 8 * self.codes.shape[1]

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scale.shape[1]

    def part(self, start: int, stop: int) -> Self:
        """See `StoredWeight`."""
        zeros = None if self.zeros is None else self.zeros[start // 8 : ceil(stop / 8)]
        return replace(self, codes=self.codes[start:stop], scale=self.scale[start:stop], zeros=zeros)

    def expand(self) -> torch.Tensor:
        """See `StoredWeight`."""
        numbers = _pairs(CODES, self.codes.device)[self.codes.view(torch.uint8).int()]
        numbers = numbers.view(self.rows, -1, self.group).sub_(self.unpacked_zeros()[..., None])
        return numbers.mul_(self.scale.float()[..., None]).flatten(1).to(torch.bfloat16)

    def unpacked_zeros(self) -> torch.Tensor:
        """float32 `[rows or 1, columns / group or 1]`."""
        if self.zeros is None:
            return torch.full((1, 1), 8.0, device=self.codes.device)
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=self.codes.device)
        return ((self.zeros[:, None] >> shifts[:, None]) & 15).flatten(0, 1)[: self.rows].float()


@cache
def _pairs(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """What a byte of two codes stands for, low half first, float32 `[256, 2]`."""
    return torch.tensor([[values[byte % 16], values[byte // 16]] for byte in range(256)], device=device)
