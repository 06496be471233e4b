"""NVFP4: pairs of e2m1 codes in a byte, an E4M3 scale for 16 neighbors of a row, and one divisor for the tensor.

The layout of the NVFP4 release and of compressed-tensors (`nvfp4-pack-quantized`). Value = e2m1 * scale / global in float32,
rounded once. `input_global_scale`, where there is one, concerns engines that quantize the input as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..checkpoint import Reader
from ..naming import Place
from .finder import Finder
from .values import PLAIN, Held, Part, row_steps

GROUP = 16
# e2m1: sign, two exponent bits, one mantissa bit (OCP Microscaling formats 1.0, section 5.3.3).
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def dequantize(packed: torch.Tensor, scales: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns / 2] (low nibble = even column), E4M3 [rows, columns / 16] and a divisor -> float32 [rows, columns].

    Inverse up to rounding: `quantize`.
    """
    rows, half = packed.shape
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).view(rows, -1, GROUP)
    values = _E2M1[nibbles.int()]
    return (values * scales.float().unsqueeze(-1) / divisor.float()).view(rows, half * 2)


@dataclass(frozen=True)
class Nvfp4(Held):
    """A weight in NVFP4."""

    packed: Part
    scale: Part
    divisor: Part
    input_divisor: Part | None = None

    form = "nvfp4"
    error = 0.12

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        assert self.scale.stored is not None
        assert self.divisor.stored is not None
        divisor = reader.tensor(self.divisor.stored).reshape(())
        half, groups = self.shape[1] // 2, self.shape[1] // GROUP
        for first, count in row_steps(self.shape):
            packed = reader.tensor(self.body, first * half, count * half).view(count, half)
            scales = reader.tensor(self.scale.stored, first * groups, count * groups).view(count, groups)
            yield dequantize(packed, scales, divisor)

    def parts(self) -> dict[str, Part]:
        """See `Held.parts`."""
        found = {"packed": self.packed, "scale": self.scale, "global_scale": self.divisor}
        return found | ({"input_global_scale": self.input_divisor} if self.input_divisor else {})

    def kind(self) -> tuple[object, ...]:
        """See `Held.kind`."""
        return (self.form, *((role, part.dtype) for role, part in self.parts().items()))

    def name(self, role: str, place: Place, layout: str) -> str:
        """See `Held.name`."""
        return place.beside(role) if role == "input_global_scale" else place.on(role)

    def stacked(self, role: str, place: Place) -> tuple[int, ...]:
        """See `Held.stacked`."""
        if role.endswith("global_scale"):
            return (place.experts, place.matrices)
        return place.stacked(self.parts()[role].shape)


def take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Nvfp4 | None:
    """The weight at `place`, whose packed codes are there as bytes."""
    rows, columns = shape
    if columns % GROUP:
        finder.problem(
            place.on("packed"),
            finder.headers[place.on("packed")].file,
            f"has rows of {columns}, no multiple of {GROUP}",
        )
        return None
    packed = finder.matrix(place.on("packed"), place, (rows, columns // 2), ("U8",))
    scale = finder.matrix(place.on("scale"), place, (rows, columns // GROUP), ("F8_E4M3",))
    each: list[tuple[int, ...]] = [(place.experts, place.matrices)]
    divisor = finder.scalar(place.on("global_scale"), place, each, PLAIN)
    given = finder.scalar(place.beside("input_global_scale"), place, each, PLAIN, optional=True)
    if packed is None or scale is None or divisor is None:
        return None
    parts = (Part.of(packed), Part.of(scale), Part.of(divisor), Part.of(given) if given else None)
    return Nvfp4(shape, packed, *parts)
