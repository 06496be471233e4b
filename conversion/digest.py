"""One weight reduced to hashes and a few statistics, a few megabytes at a time.

The hash of the real value is that of the numbers a model computes with after loading, in the raw layout's order: the
same for every layout and for every way to store the same numbers. The hashes of the parts are those of the codes and
scales of a quantized weight, so that no bit is left out. Knows values and bytes, not what a weight is for.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch

from .checkpoint import Reader, Stored, as_bytes
from .formats.values import INPUT_ROLES, Values, row_steps
from .naming import Leaf
from .transforms import halves_to_interleaved

Rows = Callable[[torch.Tensor], torch.Tensor]  # all numbers [out, in] -> the same, reordered


class Hash(Protocol):
    """What is used of hashlib's objects."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The hash of all bytes."""


@dataclass
class ValueHash:
    """SHA-256 of numbers as little-endian bfloat16 if all of them are bfloat16 numbers, else as float32. The sign of
    zero counts.
    """

    _narrow: Hash | None = field(default_factory=hashlib.sha256)
    _wide: Hash = field(default_factory=hashlib.sha256)

    def update(self, numbers: torch.Tensor) -> None:
        """Add the next numbers; of one weight all are of one dtype."""
        if numbers.dtype == torch.bfloat16:
            assert self._narrow is not None
            self._narrow.update(as_bytes(numbers.contiguous()))
            return
        wide = numbers.float().contiguous()
        if self._narrow is not None:
            narrow = wide.bfloat16()
            if torch.equal(narrow.float().view(torch.int32), wide.view(torch.int32)):
                self._narrow.update(as_bytes(narrow))
            else:
                self._narrow = None
        self._wide.update(as_bytes(wide))

    def digest(self) -> tuple[str, str]:
        """The dtype whose bytes were hashed, "bfloat16" or "float32", and the hash."""
        if self._narrow is not None:
            return "bfloat16", self._narrow.hexdigest()
        return "float32", self._wide.hexdigest()


@dataclass(frozen=True)
class Scales:
    """The scales or divisors of one weight: how many are not finite, negative or zero, and the largest and smallest."""

    broken: int
    negative: int
    zero: int
    least: float
    most: float


@dataclass(frozen=True)
class Measured:
    """What is known of one weight after it was read once.

    Args:
        dtype, value: Of `ValueHash`.
        parts: Hashes of what a quantized weight is made of, by role; empty for plain numbers.
        rms, least, most, mean: Of the finite numbers.
        broken: Numbers that are not finite.
        zeros: Share of numbers that are zero.
        rows: The first 8 digits of each row's hash, where asked for.
        scales: Of quantized weights, by role.
        input_scale: The static scale of the layer's input, where there is one.
        hole: The largest number of rows one after another that are zero; 0 for vectors.
        alike: Whether all rows are equal, or all columns; never for vectors.
    """

    shape: tuple[int, ...]
    dtype: str
    value: str
    parts: dict[str, str]
    rms: float
    least: float
    most: float
    mean: float
    broken: int
    zeros: float
    rows: tuple[str, ...] = ()
    scales: dict[str, Scales] = field(default_factory=dict)
    input_scale: float | None = None
    hole: int = 0
    alike: bool = False


def canonical(value: Values, leaf: Leaf | None, interleaved: bool, reader: Reader) -> Iterator[torch.Tensor]:
    """The numbers of a weight, `rows_at_once` rows at a time, as a model computes with them: quantized ones in
    bfloat16, plain ones in their dtype. Rotary rows are interleaved pairs, as in the raw layout.

    interleaved: whether the checkpoint stores them so. Numbers that are not finite are passed on.
    """
    pieces = (piece.bfloat16() if value.quantized else piece for piece in value.pieces(reader))
    if leaf is None or not leaf.rotary_heads or interleaved:
        yield from pieces
        return
    whole = halves_to_interleaved(torch.cat(list(pieces)), leaf.rotary_heads)
    for first, count in row_steps(value.shape):
        yield whole[first : first + count]


def measure(value: Values, leaf: Leaf | None, interleaved: bool, reader: Reader, rows: bool = False) -> Measured:
    """Read a weight once.

    rows: hash each row too.

    Raises:
        CheckpointError: The file has become shorter, or a scale from which numbers are made is not finite.
    """
    total, seen, hashed = _Numbers(), _Rows(), ValueHash()
    row_hashes: list[str] = []
    for numbers in canonical(value, leaf, interleaved, reader):
        hashed.update(numbers)
        total.add(numbers)
        if len(value.shape) > 1:
            seen.add(numbers)
        if rows:
            wide = numbers.float().contiguous()
            row_hashes += [hashlib.sha256(as_bytes(row)).hexdigest()[:8] for row in wide]
    dtype, digest = hashed.digest()
    parts, scales, given = _parts(value, reader)
    return Measured(
        value.shape,
        dtype,
        digest,
        parts,
        total.rms,
        total.least,
        total.most,
        total.mean,
        total.broken,
        total.zeros / max(1, total.count),
        tuple(row_hashes),
        scales,
        given,
        seen.hole,
        seen.alike,
    )


def value_hash(pieces: Iterator[torch.Tensor]) -> str:
    """The hash alone, of numbers that come in any pieces."""
    hashed = ValueHash()
    for numbers in pieces:
        hashed.update(numbers)
    return hashed.digest()[1]


@dataclass
class _Numbers:
    """Running statistics."""

    count: int = 0
    broken: int = 0
    zeros: int = 0
    least: float = math.inf
    most: float = -math.inf
    _sum: float = 0.0
    _squares: float = 0.0

    def add(self, numbers: torch.Tensor) -> None:
        self.count += numbers.numel()
        if not numbers.numel():
            return
        wide = numbers.float()
        least, most = wide.aminmax()  # NaN in both if there is one
        if not (math.isfinite(least) and math.isfinite(most)):
            wide = wide[wide.isfinite()]
            self.broken += numbers.numel() - wide.numel()
            if not wide.numel():
                return
            least, most = wide.aminmax()
        self.least, self.most = min(self.least, float(least)), max(self.most, float(most))
        self.zeros += wide.numel() - int(wide.count_nonzero())
        exact = wide.flatten().double()
        self._sum += float(exact.sum())
        self._squares += float(exact.dot(exact))

    @property
    def rms(self) -> float:
        return math.sqrt(self._squares / max(1, self.count - self.broken))

    @property
    def mean(self) -> float:
        return self._sum / max(1, self.count - self.broken)


@dataclass
class _Rows:
    """What the rows of a matrix show, as far as it was read."""

    hole: int = 0
    _zero: int = 0  # rows at the end that are zero
    _first: torch.Tensor | None = None
    _equal_rows: bool = True
    _equal_columns: bool = True

    def add(self, numbers: torch.Tensor) -> None:
        if self._first is None:
            self._first = numbers[:1].clone()
        # one row is looked at before all: mostly it differs already
        for some in (numbers[-1:], numbers):
            self._equal_rows = self._equal_rows and torch.equal(some, self._first.expand_as(some))
            self._equal_columns = self._equal_columns and torch.equal(some, some[:, :1].expand_as(some))
        zero = numbers[:, 0] == 0
        zero[zero.clone()] = (numbers[zero] == 0).all(dim=1)  # whole rows of the few that begin so
        if not bool(zero.any()):
            self._zero = 0
            return
        for empty in zero.tolist():
            self._zero = self._zero + 1 if empty else 0
            self.hole = max(self.hole, self._zero)

    @property
    def alike(self) -> bool:
        return self._equal_rows or self._equal_columns


def _parts(value: Values, reader: Reader) -> tuple[dict[str, str], dict[str, Scales], float | None]:
    """Hashes of the parts of a quantized weight, statistics of its scales, and its input scale."""
    hashes: dict[str, Hash] = {}
    scales: dict[str, Scales] = {}
    given: float | None = None
    for role, data in _contents(value, reader) if value.quantized else ():
        if role in INPUT_ROLES:
            given = float(_tensor(data, reader).reshape(-1)[0])
            continue
        if "scale" in role:
            scales[role] = _scales(_tensor(data, reader))
        hashed = hashes.setdefault(role, hashlib.sha256())
        for piece in reader.stream(data) if isinstance(data, Stored) else (as_bytes(data.contiguous()),):
            hashed.update(piece)
    return {role: hashed.hexdigest() for role, hashed in hashes.items()}, scales, given


def _contents(value: Values, reader: Reader) -> Iterator[tuple[str, Stored | torch.Tensor]]:
    """Every part of a quantized weight by its role, as it is stored, or as conversion makes it of another tool's
    form.
    """
    held = value.held()
    if held is not None and held.encode:
        yield from held.encode(reader)
    elif held is not None:
        yield from ((role, part.stored) for role, part in held.parts().items() if part.stored is not None)
    else:
        for number, inner in enumerate(value.inner()):
            for each in fields(inner):
                found = getattr(inner, each.name)
                if isinstance(found, Stored):
                    yield f"{each.name}{number or ''}", found


def _tensor(data: Stored | torch.Tensor, reader: Reader) -> torch.Tensor:
    return reader.tensor(data) if isinstance(data, Stored) else data


def _scales(tensor: torch.Tensor) -> Scales:
    numbers = tensor.float().flatten()
    good = numbers[numbers.isfinite()]
    least, most = (float(end) for end in good.aminmax()) if good.numel() else (math.nan, math.nan)
    return Scales(
        numbers.numel() - good.numel(),
        int((good < 0).sum()),
        int((good == 0).sum()),
        least,
        most,
    )
