"""Quantizing while converting: which weights each precision quantizes (as the releases do), and the resulting error.

Rounds to nearest with well-chosen scales, one weight in memory at a time. How numbers become codes is in `formats/`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from .checkpoint import CheckpointError, Reader
from .formats import fp8, int4, nvfp4
from .formats.fp8 import Fp8
from .formats.int4 import Int4
from .formats.nvfp4 import Nvfp4
from .formats.values import Held, Values, check_finite, whole
from .naming import Leaf

PRECISIONS = ("fp8", "nvfp4", "int4")
_GROUPS = (128, 64, 32, 16)


@dataclass
class Quantizer:
    """How the weights of one checkpoint are quantized. errors: root-mean-square error by raw name, relative to the
    weight's own size.
    """

    dtype: str
    group: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def for_leaves(cls, dtype: str, leaves: list[Leaf], layout: str) -> "Quantizer":
        """The quantizer for these leaves. Raises CheckpointError if `layout` has no reader for the precision, or no
        weight fits it.
        """
        if layout == "transformers" and dtype != "fp8":
            raise CheckpointError(
                f"--dtype {dtype}: transformers (up to 5.24) reads no {dtype} experts of this model; use --to small4 "
                "or --to mistral"
            )
        columns = math.gcd(*(leaf.shape[1] for leaf in leaves if leaf.linear and ".experts." in leaf.raw))
        group = next((size for size in _GROUPS if columns % size == 0), 0)
        if dtype != "fp8" and not group:
            raise CheckpointError(f"--dtype {dtype}: the experts' rows are no multiples of 16 numbers")
        return cls(dtype, group)

    def takes(self, leaf: Leaf) -> bool:
        """Whether a weight is quantized: all text linears in FP8, routed and shared experts in 4 bits (their rows are
        multiples of `group`).
        """
        if not leaf.linear or self.dtype == "fp8":
            return leaf.linear
        return "experts." in leaf.raw

    def quantized(self, value: Values, leaf: Leaf, partner: Values | None) -> Held:
        """The weight in this precision: as it is stored if it already has it, otherwise quantized while it is written.

        partner: the up projection of a gate projection, and the reverse.
        """
        held = value.held()
        if (
            held is not None
            and held.form == self.dtype
            and not (isinstance(held, Fp8) and held.arrangement != "tensor")
        ):
            return held
        made: Held = {
            "fp8": lambda: Fp8.of_numbers(value),
            "nvfp4": lambda: Nvfp4.of_numbers(value, partner),
            "int4": lambda: Int4.of_numbers(value, self.group),
        }[self.dtype]()
        encode = made.encode
        assert encode is not None

        def measured(reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
            numbers = whole(value, reader)
            check_finite(numbers, value.body)
            parts = dict(encode(reader))
            self.errors[leaf.raw] = relative_error(self._numbers(parts), numbers)
            yield from parts.items()

        return replace(made, encode=measured)

    def _numbers(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.dtype == "fp8":
            return fp8.dequantize(parts["codes"], parts["scale"])
        if self.dtype == "nvfp4":
            return nvfp4.dequantize(parts["packed"], parts["scale"], parts["global_scale"])
        return int4.dequantize(int4.unpack(parts["packed"], 4), parts["scale"], 8)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root-mean-square difference divided by the root-mean-square of `wanted`; 0 for two zeros."""
    size = wanted.float().square().sum().double()
    return float(((found.float() - wanted.float()).square().sum().double() / size).sqrt()) if size > 0 else 0.0
