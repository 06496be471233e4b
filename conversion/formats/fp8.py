"""FP8: E4M3 codes times scales, one for a tensor, for each row, or for each block of 128 x 128.

Written by Mistral (`qscale_weight`, `qscale_act`), transformers (`weight_scale_inv`, `activation_scale`) and
compressed-tensors (`weight_scale`, `input_scale`, formats float-quantized and naive-quantized). Value = code * scale in
float32, rounded once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..checkpoint import Reader, Stored
from ..naming import Place
from .finder import Finder
from .values import BLOCK, PLAIN, Held, Part, Values, row_steps, whole

MAX = 448.0
_CODES = "F8_E4M3"
_NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # by code
_WEIGHT_SCALES = ("scale_inv", "scale")
_INPUT_SCALES = ("activation_scale", "input_scale")


def dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 codes and their scale, of one shape or broadcast -> float32.

    Rounded to bfloat16 this is what the release's engines compute, bf16(code) * bf16(scale), wherever the scale is a
    bfloat16 number. Inverse up to rounding: `quantize`.
    """
    numbers = _NUMBERS.index_select(0, codes.view(torch.uint8).flatten().int())  # a table is faster than codes.float()
    return numbers.view(codes.shape) * scale.float()


def quantize(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [out, in] to E4M3 codes and one bfloat16 scale [], as the release stores them. Inverse up to rounding:
    `dequantize`.
    """
    scale = (numbers.abs().amax().float() / MAX).to(torch.bfloat16)
    scale = scale.where(scale > 0, torch.ones((), dtype=torch.bfloat16))  # also where it is too small for bfloat16
    return (numbers.float() / scale.float()).clamp(-MAX, MAX).to(torch.float8_e4m3fn), scale


@dataclass(frozen=True)
class Fp8(Held):
    """A weight in FP8. scale: [] or [1], [out, 1], or [ceil(out / 128), ceil(in / 128)]. activation: the static scale
    of the input.
    """

    codes: Part
    scale: Part
    activation: Part | None = None

    form = "fp8"
    error = 0.03

    @classmethod
    def of_numbers(cls, source: Values) -> "Fp8":
        """A weight that is quantized while it is written."""

        def encode(reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
            yield from zip(("codes", "scale"), quantize(whole(source, reader)), strict=True)

        return cls(source.shape, source.body, Part(_CODES, source.shape, None), Part("BF16", (), None), encode=encode)

    @property
    def arrangement(self) -> str:
        """What has a scale of its own: "tensor", "row" or "block"."""
        if self.scale.shape in ((), (1,)):
            return "tensor"
        return "row" if self.scale.shape == (self.shape[0], 1) else "block"

    def variant(self) -> tuple[object, ...]:
        """See `Values.variant`."""
        return (*super().variant(), self.arrangement)

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        assert self.scale.stored is not None
        scale = reader.tensor(self.scale.stored)
        columns = self.shape[1]
        for first, count in row_steps(self.shape):
            codes = reader.tensor(self.body, first * columns, count * columns).view(count, columns)
            yield dequantize(codes, self._scale_of_rows(scale, first, count))

    def _scale_of_rows(self, scale: torch.Tensor, first: int, count: int) -> torch.Tensor:
        if self.arrangement == "tensor":
            return scale.reshape(())
        if self.arrangement == "row":
            return scale[first : first + count]
        rows = torch.arange(first, first + count) // BLOCK
        return scale[rows].repeat_interleave(BLOCK, dim=1)[:, : self.shape[1]]

    def parts(self) -> dict[str, Part]:
        """See `Held.parts`."""
        found = {"codes": self.codes, "scale": self.scale, "activation": self.activation}
        return {role: part for role, part in found.items() if part is not None}

    def kind(self) -> tuple[object, ...]:
        """See `Held.kind`; one number has no shape that matters."""
        return (self.form, self.arrangement, *((role, part.dtype) for role, part in self.parts().items()))

    def name(self, role: str, place: Place, layout: str) -> str:
        """See `Held.name`. Where the release has no word for an arrangement, the raw layout uses that of
        compressed-tensors.
        """
        if role == "codes":
            return place.weight
        if layout != "mistral":
            return place.on("scale_inv") if role == "scale" else place.beside("activation_scale")
        if self.arrangement == "tensor":
            return place.beside("qscale_weight" if role == "scale" else "qscale_act")
        return place.on("scale") if role == "scale" else place.beside("input_scale")

    def stacked(self, role: str, place: Place) -> tuple[int, ...]:
        """See `Held.stacked`."""
        if role == "scale" and self.arrangement == "tensor":
            return (place.experts, place.matrices, 1)
        if role == "activation":
            return (place.experts, 2) if place.matrices == 2 else (place.experts,)
        return place.stacked(self.parts()[role].shape)


def take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Fp8 | None:
    """The weight at `place`, whose codes are E4M3."""
    codes = finder.matrix(place.weight, place, shape, (_CODES,))
    raw = finder.layout == "mistral"
    name = _first(finder, [place.on(word) for word in _WEIGHT_SCALES], place.beside("qscale_weight") if raw else None)
    scale = _scale(finder, name, place, shape)
    name = _first(finder, [place.beside(word) for word in _INPUT_SCALES], place.beside("qscale_act") if raw else None)
    activation = finder.scalar(name, place, _one_each(place, ()), PLAIN, optional=True)
    if codes is None or scale is None:
        return None
    return Fp8(shape, codes, Part.of(codes), Part.of(scale), Part.of(activation) if activation else None)


def _first(finder: Finder, names: list[str], raw: str | None) -> str:
    """The first of these names that is there; if none is, the one to be missed: the release's own in the raw layout."""
    usual = raw or names[0]
    return next((name for name in (usual, *names) if finder.has(name)), usual)


def _scale(finder: Finder, name: str, place: Place, shape: tuple[int, ...]) -> Stored | None:
    """The scale in whichever arrangement its shape tells. Of a small fused tensor one scale a matrix and one a block
    look alike.
    """
    rows, columns = shape
    found = finder.headers[name].shape if finder.has(name) else None
    one = _one_each(place, (1,)) if place.index else [(), (1,)]
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    if found in one and not (finder.said.blocks and found == place.stacked(blocks)):
        return finder.scalar(name, place, one, PLAIN)
    if found == place.stacked((rows, 1)):
        return finder.matrix(name, place, (rows, 1), PLAIN)
    if found != place.stacked(blocks):
        return finder.scalar(name, place, one, PLAIN)
    if finder.layout == "transformers" and place.matrices == 2 and rows % BLOCK:
        stored = finder.headers[name]
        finder.problem(
            stored.tensor, stored.file, f"has blocks of {BLOCK} rows across gate and up, which have {rows} each"
        )
    return finder.matrix(name, place, blocks, PLAIN)


def _one_each(place: Place, end: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of one number for each matrix of a fused tensor, or for each expert."""
    shared = (place.experts, 1, *end) if end else (place.experts,)
    return [(place.experts, 2, *end), shared] if place.matrices == 2 else [shared]
