"""8-bit integers times scales: compressed-tensors' W8A8 (`weight_scale`) and bitsandbytes' LLM.int8 (`SCB`, in 127ths).
Expanded only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..checkpoint import Reader, Stored
from ..naming import Place
from .finder import Finder
from .values import PLAIN, Values, row_steps


@dataclass(frozen=True)
class Int8(Values):
    """Codes -128 to 127. scale: one, or one a row. Value = code * scale / divisor."""

    scale: Stored
    divisor: float

    form = "int8"
    error = 0.02

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        columns, scale = self.shape[1], reader.tensor(self.scale).float().view(-1, 1)
        for first, count in row_steps(self.shape):
            codes = reader.tensor(self.body, first * columns, count * columns).view(count, columns)
            each = scale if scale.numel() == 1 else scale[first : first + count]
            yield codes.float() * (each / self.divisor)


def take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Int8 | None:
    """The weight at `place`, whose codes are bytes with a sign."""
    body = finder.find(place.weight, [shape], ("I8",))
    if finder.has(place.beside("SCB")):
        scale = finder.find(place.beside("SCB"), [(shape[0],)], PLAIN)
        finder.leave(place.beside("weight_format"))
    else:
        scale = finder.find(place.on("scale"), [(shape[0], 1), (1,), (), (1, 1)], PLAIN)
    if body is None or scale is None:
        return None
    return Int8(shape, body, scale, 127.0 if finder.has(place.beside("SCB")) else 1.0)
