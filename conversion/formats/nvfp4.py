"""NVFP4: pairs of e2m1 codes in a byte, an E4M3 scale for 16 neighbors of a row, and one divisor for the tensor.

The layout of the NVFP4 release and of compressed-tensors (`nvfp4-pack-quantized`). Value = e2m1 * scale / global in
float32, rounded once. `input_global_scale`, where there is one, concerns engines that quantize the input as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..checkpoint import Reader, Stored
from ..naming import Place
from .finder import Finder
from .values import PLAIN, Held, Part, Values, check_finite, row_steps, whole

GROUP = 16
_LARGEST = 448.0 * 6.0  # the largest E4M3 scale times the largest e2m1 number
# e2m1: sign, two exponent bits, one mantissa bit (OCP Microscaling formats 1.0, section 5.3.3).
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def dequantize(packed: torch.Tensor, scales: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns / 2] (low nibble = even column), E4M3 [rows, columns / 16] and a divisor -> float32 [rows,
    columns].

    Inverse up to rounding: `quantize`.
    """
    rows, half = packed.shape
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).view(rows, -1, GROUP)
    values = _E2M1[nibbles.int()]
    return (values * scales.float().unsqueeze(-1) / divisor.float()).view(rows, half * 2)


def quantize(numbers: torch.Tensor, largest: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers [rows, columns] -> packed codes, E4M3 scales and the divisor [1]. Inverse up to rounding: `dequantize`.

    largest: that of a weight with which this one shares its divisor.
    Each group takes the scale with the least squared error of those that put its largest number on 6 or on 4.
    """
    rows = numbers.shape[0]
    groups = numbers.float().view(rows, -1, GROUP)
    most = groups.abs().amax(-1)
    divisor = (_LARGEST / most.amax().clamp(min=max(largest, 1e-30))).reshape(1)
    best: tuple[torch.Tensor, ...] | None = None
    for top in (6.0, 4.0):
        scales = (most / top * divisor).clamp(max=448.0).to(torch.float8_e4m3fn)
        codes = _nearest(groups * (divisor / scales.float().clamp(min=2.0**-9)).unsqueeze(-1))
        error = (_E2M1[codes] * scales.float().unsqueeze(-1) / divisor - groups).square().sum(-1)
        if best is None:
            best = (codes, scales.view(torch.uint8), error)
            continue
        better = error < best[2]
        best = (
            codes.where(better.unsqueeze(-1), best[0]),
            scales.view(torch.uint8).where(better, best[1]),
            error.minimum(best[2]),
        )
    assert best is not None
    nibbles = best[0].to(torch.uint8).view(rows, -1, 2)
    return nibbles[..., 0] | (nibbles[..., 1] << 4), best[1].view(torch.float8_e4m3fn), divisor


def _nearest(values: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest e2m1 numbers, halfway ones to the even code, as int32."""
    middles = (_E2M1[:7] + _E2M1[1:8]) / 2
    middles[1::2] = torch.nextafter(middles[1::2], torch.zeros(()))  # from here up, not above
    return torch.bucketize(values.abs(), middles, out_int32=True) + 8 * values.signbit()


@dataclass(frozen=True)
class Nvfp4(Held):
    """A weight in NVFP4."""

    packed: Part
    scale: Part
    divisor: Part
    input_divisor: Part | None = None

    form = "nvfp4"
    error = 0.12

    @classmethod
    def of_numbers(cls, source: Values, partner: Values | None = None) -> "Nvfp4":
        """A weight that is quantized while it is written. partner: the weight with which engines multiply at once (gate
        and up), for which they know one divisor."""
        rows, columns = source.shape

        def encode(reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
            largest = 0.0 if partner is None else float(whole(partner, reader).abs().amax())
            yield from zip(("packed", "scale", "global_scale"), quantize(whole(source, reader), largest), strict=True)

        parts = (
            Part("U8", (rows, columns // 2), None),
            Part("F8_E4M3", (rows, columns // GROUP), None),
            Part("F32", (1,), None),
        )
        return cls(source.shape, source.body, *parts, encode=encode)

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        assert self.scale.stored is not None
        assert self.divisor.stored is not None
        divisor = reader.tensor(self.divisor.stored).reshape(())
        check_finite(1 / divisor.float() * divisor.float(), self.divisor.stored)
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


@dataclass(frozen=True)
class ModelOpt(Values):
    """NVFP4 as NVIDIA's ModelOpt stores it: the same codes and scales, but a factor in place of the divisor. Expanded
    only.
    """

    scale: Stored
    factor: Stored

    form = "modelopt"
    error = 0.12

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        half, groups = self.shape[1] // 2, self.shape[1] // GROUP
        factor, one = reader.tensor(self.factor).float().reshape(()), torch.ones(())
        for first, count in row_steps(self.shape):
            packed = reader.tensor(self.body, first * half, count * half).view(count, half)
            scales = reader.tensor(self.scale, first * groups, count * groups).view(count, groups)
            yield dequantize(packed, scales, one) * factor


def take_modelopt(finder: Finder, place: Place, shape: tuple[int, ...]) -> ModelOpt | None:
    """The weight at `place`, beside which a `weight_scale_2` lies."""
    rows, columns = shape
    body = finder.matrix(place.weight, place, (rows, columns // 2), ("U8",))
    scale = finder.matrix(place.on("scale"), place, (rows, columns // GROUP), ("F8_E4M3",))
    factor = finder.scalar(place.on("scale_2"), place, [], PLAIN)
    finder.scalar(place.beside("input_scale"), place, [], PLAIN, optional=True)
    return ModelOpt(shape, body, scale, factor) if body and scale and factor else None


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
