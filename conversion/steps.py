"""The steps of a conversion: each reads one weight of the source and makes the bytes of one or several parts of the
output.

Knows values and bytes, not names.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .checkpoint import DTYPES, Reader, Stored, as_bytes
from .formats.values import Held, Plain, Values, check_finite

Bytes = memoryview | bytes


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """One step. Steps compare by identity, so a step can be a dictionary key."""

    @abstractmethod
    def run(self, reader: Reader) -> Iterator[tuple[str, Bytes]]:
        """(role of the part, its next bytes), a few megabytes at a time; each is valid until the next is requested."""


@dataclass(frozen=True, eq=False)
class Copy(Step):
    """Stored bytes as they are. scales: they are scales, all of which must be finite."""

    stored: Stored
    scales: bool = False

    def run(self, reader: Reader) -> Iterator[tuple[str, Bytes]]:
        """See `Step.run`."""
        for data in reader.stream(self.stored):
            if self.scales:
                check_finite(torch.frombuffer(data, dtype=DTYPES[self.stored.dtype]), self.stored)
            yield "", data


@dataclass(frozen=True, eq=False)
class Literal(Step):
    """Bytes known beforehand."""

    data: bytes

    def run(self, reader: Reader) -> Iterator[tuple[str, Bytes]]:
        """See `Step.run`."""
        yield "", self.data


@dataclass(frozen=True, eq=False)
class Cast(Step):
    """The numbers of a weight in a plain dtype (quantized ones are rounded to bfloat16 first, unless they become
    float16), with rows reordered by `turn`, a function of all rows [out, in], if it is given.
    """

    values: Values
    dtype: str
    turn: Callable[[torch.Tensor], torch.Tensor] | None = None

    def run(self, reader: Reader) -> Iterator[tuple[str, Bytes]]:
        """See `Step.run`."""
        rounded = torch.float16 if self.dtype == "F16" else torch.bfloat16
        if self.turn is not None:
            rows = torch.cat(list(self.values.numbers(reader, rounded)))
            yield "", as_bytes(self.turn(rows).to(DTYPES[self.dtype]).contiguous())
        elif isinstance(self.values, Plain) and self.values.body.dtype == self.dtype:
            for data in reader.stream(self.values.body):
                yield "", data
        else:
            for numbers in self.values.numbers(reader, rounded):
                yield "", as_bytes(numbers.to(DTYPES[self.dtype]).contiguous())


@dataclass(frozen=True, eq=False)
class Encode(Step):
    """The parts of a held weight that are computed rather than stored."""

    held: Held

    def run(self, reader: Reader) -> Iterator[tuple[str, Bytes]]:
        """See `Step.run`."""
        assert self.held.encode is not None
        for role, tensor in self.held.encode(reader):
            yield role, as_bytes(tensor.contiguous())
