"""What all stored formats share: where the numbers of one weight lie, and that they can be read a few rows at a time.

Knows headers and numbers; it knows no names.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..checkpoint import CHUNK, Reader, Stored, wrong_tensor
from ..naming import Place

STEP = CHUNK // 4  # numbers held at a time
BLOCK = 128  # rows and columns of a block of FP8 scales
PLAIN = ("BF16", "F16", "F32")
INPUT_ROLES = ("activation", "input_global_scale")  # parts of a held weight that concern the layer's input


@dataclass(frozen=True)
class Values(ABC):
    """Where the numbers of one weight lie, and how they are made of what is stored. `shape` is that of the numbers."""

    shape: tuple[int, ...]
    body: Stored  # what messages name: the numbers, or their codes

    form: ClassVar[str]  # name of the format; "plain" for numbers stored as they are
    error: ClassVar[float] = 0.0  # see `expected_error`

    @property
    def quantized(self) -> bool:
        """Whether codes are stored rather than numbers."""
        return any(part.form != "plain" for part in self.inner())

    def inner(self) -> tuple["Values", ...]:
        """The weights that it is put together of, itself mostly."""
        return (self,)

    def variant(self) -> tuple[object, ...]:
        """What two weights of one format may differ in: the tool's way, the width of codes. Numbers that two variants
        stand for are equal only if one was made of the other without rounding.
        """
        return (type(self).__name__, self.form, getattr(self, "bits", None))

    def expected_error(self) -> float:
        """The root-mean-square error, relative to the numbers' size, up to which a quantization of other numbers is
        believed.
        """
        return self.error

    @abstractmethod
    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """The numbers in row-major order, `rows_at_once(shape)` rows at a time: plain ones in their dtype, others in
        float32.
        """

    def numbers(self, reader: Reader, rounded: torch.dtype | None = torch.bfloat16) -> Iterator[torch.Tensor]:
        """As `pieces`, quantized numbers rounded to a dtype: bfloat16 is what a model computes with after loading.

        Raises:
            CheckpointError: Codes and scales that stand for no finite numbers.
        """
        for piece in self.pieces(reader):
            if self.quantized:
                check_finite(piece, self.body)
            yield piece.to(rounded) if rounded and self.quantized else piece

    def held(self) -> "Held | None":
        """The same numbers, bit for bit, in a format that our layout holds; None if there is none."""
        return None


@dataclass(frozen=True)
class Plain(Values):
    """Numbers stored as they are, in one of `PLAIN`."""

    form = "plain"

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        width = math.prod(self.shape[1:])
        for first, count in row_steps(self.shape):
            yield reader.tensor(self.body, first * width, count * width).view(count, width)


@dataclass(frozen=True)
class Held(Values):
    """A format whose codes and scales a folder of ours keeps. How it is named and shaped there: see the package's
    docstring.

    encode: where the parts are not stored so, makes them: (role, next numbers of that part). `body` is then what they
    are made of.
    """

    encode: Callable[[Reader], Iterator[tuple[str, torch.Tensor]]] | None = field(default=None, kw_only=True)

    @abstractmethod
    def parts(self) -> dict[str, "Part"]:
        """What is stored, by its role; the same roles for all weights of a fused tensor."""

    @abstractmethod
    def name(self, role: str, place: Place, layout: str) -> str:
        """What `layout` calls a part of the weight at `place`."""

    @abstractmethod
    def stacked(self, role: str, place: Place) -> tuple[int, ...]:
        """Shape of a part of all experts in the fused tensor at `place`."""

    def kind(self) -> tuple[object, ...]:
        """What must be equal for weights to share one fused tensor: format, roles, dtypes, shapes."""
        return (self.form, *((role, part.dtype, part.shape) for role, part in self.parts().items()))

    def held(self) -> "Held | None":
        """Itself."""
        return self


@dataclass(frozen=True)
class Part:
    """One part of a held weight: stored bytes that are copied, or None where `Held.encode` computes it."""

    dtype: str
    shape: tuple[int, ...]
    stored: Stored | None

    @classmethod
    def of(cls, stored: Stored) -> "Part":
        """A part that is copied."""
        return cls(stored.dtype, stored.shape, stored)


def check_finite(tensor: torch.Tensor, stored: Stored) -> None:
    """Raise CheckpointError, which names `stored`, if there is a number that is not finite. FP8 is checked as it is."""
    narrow = tensor.dtype == torch.float8_e4m3fn
    if bool((tensor.view(torch.uint8) & 127 == 127).any()) if narrow else not bool(tensor.isfinite().all()):
        raise wrong_tensor(
            stored.file,
            stored.tensor,
            "stands for numbers that are not finite; the file is damaged, or was when it was quantized",
        )


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows of a tensor that are read together: about `STEP` numbers."""
    return max(1, STEP // math.prod(shape[1:]))


def row_steps(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the pieces in which a tensor is read."""
    step = rows_at_once(shape)
    for first in range(0, shape[0], step):
        yield first, min(step, shape[0] - first)


def whole(values: Values, reader: Reader) -> torch.Tensor:
    """All numbers of a weight, [out, in], as a model computes with them."""
    return torch.cat(list(values.numbers(reader)))
