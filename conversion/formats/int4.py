"""4-bit groups: codes 0 to 15 packed into int32, a scale and a zero for each group of neighbors of a row.

The layout of compressed-tensors (`pack-quantized`; W4A16, also what llm-compressor writes after AWQ and GPTQ). Value =
(code - zero) * scale in float32, rounded once; a symmetric weight stores no zeros, they are 8. Codes of other widths
(W8A16) are read too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..checkpoint import CheckpointError, Reader, Stored
from ..naming import Place
from .bits import pack, unpack
from .finder import Finder
from .values import PLAIN, Held, Part, Values, row_steps, whole

_SHARES = (
    1.0,
    0.9,
)  # of a group's largest number that its outermost code stands for; more of them gain 1 % of the error
_LEAST = torch.finfo(torch.bfloat16).smallest_normal  # of scales: smaller ones, and zero, have no reciprocal


def dequantize(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int) -> torch.Tensor:
    """Codes [rows, columns], scales and zeros [rows, groups] -> float32 [rows, columns]. Inverse up to rounding:
    `quantize`.
    """
    grouped = codes.float().unflatten(1, (scales.shape[1], -1))
    zeros = zeros.float().unsqueeze(-1) if isinstance(zeros, torch.Tensor) else zeros
    return ((grouped - zeros) * scales.float().unsqueeze(-1)).flatten(1)


def quantize(numbers: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [out, in] -> symmetric codes and bfloat16 scales [out, in / group]. Inverse up to rounding: `dequantize`
    with zeros of 8.

    Each group takes the scale with the least squared error of a few that cut off more or less of its largest number.
    """
    groups = numbers.float().unflatten(1, (-1, group))
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    ends = least.where(-least > most, most)  # its sign says which side needs the code without a partner
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for share in _SHARES:
        scales = (ends * (-share / 8)).to(torch.bfloat16)
        scales = scales.where(scales.abs() >= _LEAST, torch.ones((), dtype=torch.bfloat16))
        codes = (groups * scales.float().reciprocal()).round_().clamp_(-8, 7)
        error = (codes * scales.float()).sub_(groups).square_().sum(-1, keepdim=True)
        if best is None:
            best = (codes, scales, error)
            continue
        better = error < best[2]
        best = (codes.where(better, best[0]), scales.where(better, best[1]), error.minimum(best[2]))
    assert best is not None
    return (best[0] + 8).to(torch.uint8).flatten(1), best[1].squeeze(-1)


def encoded(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Codes [out, in], scales and zeros [out, groups] -> the parts of a held weight."""
    yield "packed", pack(codes, 4)
    yield "scale", scales
    if zeros is not None:
        yield "zero_point", pack(zeros.T, 4).T


@dataclass(frozen=True)
class Int4(Held):
    """A weight in 4-bit groups. zeros: packed along the rows, int32 [ceil(out / 8), groups]."""

    packed: Part
    scale: Part
    zeros: Part | None = None

    form = "int4"
    error = 0.15

    @classmethod
    def computed(
        cls,
        shape: tuple[int, ...],
        body: Stored,
        dtype: str,
        groups: int,
        symmetric: bool,
        encode: Callable[[Reader], Iterator[tuple[str, torch.Tensor]]],
    ) -> "Int4":
        """A weight whose parts `encode` makes; its scales are of `dtype`, its groups `groups` in a row."""
        rows, columns = shape
        packed, scale = Part("I32", (rows, columns // 8), None), Part(dtype, (rows, groups), None)
        zeros = None if symmetric else Part("I32", (-(-rows // 8), groups), None)
        return cls(shape, body, packed, scale, zeros, encode=encode)

    @classmethod
    def of_numbers(cls, source: Values, group: int) -> "Int4":
        """A weight that is quantized while it is written."""

        def encode(reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
            codes, scales = quantize(whole(source, reader), group)
            yield from encoded(codes, scales, None)

        return cls.computed(source.shape, source.body, "BF16", source.shape[1] // group, True, encode)

    @property
    def group(self) -> int:
        """Neighbors that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def variant(self) -> tuple[object, ...]:
        """See `Values.variant`."""
        return (*super().variant(), self.group, self.zeros is None)

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        assert self.scale.stored is not None
        zeros = reader.tensor(self.zeros.stored) if self.zeros and self.zeros.stored else None
        yield from _pieces(reader, self.shape, self.body, self.scale.stored, zeros, 4)

    def parts(self) -> dict[str, Part]:
        """See `Held.parts`."""
        return {"packed": self.packed, "scale": self.scale} | ({"zero_point": self.zeros} if self.zeros else {})

    def kind(self) -> tuple[object, ...]:
        """See `Held.kind`."""
        return (self.form, self.group, *((role, part.dtype) for role, part in self.parts().items()))

    def name(self, role: str, place: Place, layout: str) -> str:
        """See `Held.name`."""
        return place.on(role)

    def stacked(self, role: str, place: Place) -> tuple[int, ...]:
        """See `Held.stacked`."""
        return place.stacked(self.parts()[role].shape)


@dataclass(frozen=True)
class Packed(Values):
    """A weight as `Int4`, but with codes of another width or with columns in another order, which our layout does not
    hold.

    groups: the group of each column, int32 [in] (`weight_g_idx`, what activation order leaves), or None where they
    follow each other.
    """

    scale: Stored
    zeros: Stored | None
    groups: Stored | None
    bits: int

    form = "int4"
    error = 0.15

    def expected_error(self) -> float:
        """See `Values.expected_error`; each bit less doubles it."""
        return min(1.0, self.error * 2.0 ** (4 - self.bits))

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        zeros = reader.tensor(self.zeros) if self.zeros else None
        order = group_of_columns(reader, self.groups, self.scale.shape[1]) if self.groups else None
        yield from _pieces(reader, self.shape, self.body, self.scale, zeros, self.bits, order)


def group_of_columns(reader: Reader, stored: Stored, groups: int) -> torch.Tensor:
    """The group of each column [in]. Raises CheckpointError for one that is not among `groups`."""
    order = reader.tensor(stored).long()
    if not 0 <= int(order.min()) <= int(order.max()) < groups:
        raise CheckpointError(
            f"{stored.file}: tensor {stored.tensor} names groups from {int(order.min())} to {int(order.max())}, but "
            f"there are {groups}"
        )
    return order


def _pieces(
    reader: Reader,
    shape: tuple[int, ...],
    body: Stored,
    scale: Stored,
    zeros: torch.Tensor | None,
    bits: int,
    order: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    words, groups = body.shape[1], scale.shape[1]
    offsets: torch.Tensor | int = 2 ** (bits - 1) if zeros is None else unpack(zeros.T, bits).T[: shape[0]]
    for first, count in row_steps(shape):
        packed = reader.tensor(body, first * words, count * words).view(count, words)
        scales = reader.tensor(scale, first * groups, count * groups).view(count, groups)
        zero = offsets[first : first + count] if isinstance(offsets, torch.Tensor) else offsets
        if order is not None:
            scales = scales[:, order]
            zero = zero[:, order] if isinstance(zero, torch.Tensor) else zero
        yield dequantize(unpack(packed, bits)[:, : shape[1]], scales, zero)


def take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Values | None:
    """The weight at `place`, whose packed codes are there as int32."""
    rows, columns = shape
    stored = finder.headers[place.on("packed")]
    widths = {place.stacked((rows, -(-columns * b // 32))): b for b in (7, 6, 5, 3, 2, 8, 4)}
    bits = widths.get(stored.shape)
    if bits is None:
        finder.problem(
            stored.tensor,
            stored.file,
            f"has shape {list(stored.shape)}: not codes of 2 to 8 bits for [{rows}, {columns}]",
        )
        return None
    body = finder.matrix(place.on("packed"), place, (rows, -(-columns * bits // 32)), ("I32",))
    groups = _groups(finder, place, columns)
    scale = groups and finder.matrix(place.on("scale"), place, (rows, groups), PLAIN)
    zero_shape = (-(-rows * bits // 32), groups or 0)
    zeros = finder.matrix(place.on("zero_point"), place, zero_shape, ("I32",), optional=not finder.said.asymmetric)
    order = finder.matrix(place.on("g_idx"), place, (columns,), ("I32", "I64"), optional=not finder.said.reordered)
    finder.leave(place.on("shape"))
    if body is None or not scale:
        return None
    if bits != 4 or order or columns % 8:
        return Packed(shape, body, scale, zeros, order, bits)
    return Int4(shape, body, Part.of(body), Part.of(scale), Part.of(zeros) if zeros else None)


def _groups(finder: Finder, place: Place, columns: int) -> int | None:
    """Groups in a row, told by the columns of the scale."""
    stored = finder.headers.get(place.on("scale"))
    if stored is None:
        finder.problem(place.on("scale"), finder.config_file, "is missing")
        return None
    groups = stored.shape[-1] if stored.shape else 0
    if groups < 1 or columns % groups:
        finder.problem(
            stored.tensor,
            stored.file,
            f"has shape {list(stored.shape)}, which does not part rows of {columns} into groups",
        )
        return None
    return groups
