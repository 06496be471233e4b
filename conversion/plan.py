"""What a conversion writes: every output tensor as a list of pieces, each made by a step that reads one weight of the
source.

A plan is made from headers alone (and the FP8 scales, a few bytes each), so that everything that cannot work is refused
before tensor data are read. Carrying it out needs a few megabytes of memory. Knows no folders and no configuration
files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch

from .checkpoint import CheckpointError, Reader, as_bytes, width
from .formats.fp8 import Fp8
from .formats.values import BLOCK, Held, Part, Values
from .naming import Leaf, Place, leaves, place_fused, place_raw, to_transformers
from .quantize import PRECISIONS, Quantizer
from .source import Checkpoint
from .steps import Cast, Copy, Encode, Literal, Step
from .transforms import halves_to_interleaved, interleaved_to_halves

_TARGET = {"bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of an output tensor: the `nbytes` that `step` makes under the name `role`."""

    step: Step
    nbytes: int
    role: str = ""


@dataclass(frozen=True)
class Output:
    """One tensor to write; its bytes are those of its pieces in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the body."""
        return math.prod(self.shape) * width(self.dtype)


@dataclass
class Plan:
    """What is written of `source`. layout: "small4", "mistral" or "transformers". dtype: "keep", "bfloat16", "float32"
    or one of `quantize.PRECISIONS`.

    quantizer: where weights are quantized. outputs: in writing order. remarks: what the user should know. held: the
    weights that are written as codes, by their raw names. kept: whether the layout can hold the source's codes.
    """

    source: Checkpoint
    layout: str
    dtype: str
    quantizer: Quantizer | None = None
    outputs: list[Output] = field(default_factory=list)
    remarks: set[str] = field(default_factory=set)
    held: dict[str, Held] = field(default_factory=dict)
    kept: bool = True

    def plain_dtype(self) -> str:
        """The dtype of what is written as numbers, in safetensors' spelling."""
        return _TARGET.get(self.dtype) or self.source.plain_dtype()


def plan(source: Checkpoint, layout: str, dtype: str, reader: Reader) -> Plan:
    """The tensors of `source` in another layout and precision.

    Raises:
        CheckpointError: Experts of one layer that are stored in different formats and so do not fit into one tensor.
    """
    out = Plan(source, layout, dtype, kept=layout != "transformers" or _transformers_reads(source))
    if dtype in PRECISIONS:
        out.quantizer = Quantizer.for_leaves(dtype, list(leaves(source.config)), layout)
    experts = source.config.text_config.n_routed_experts
    for place, group in groupby(leaves(source.config), key=lambda leaf: _place(leaf, layout, experts)):
        members = list(group)
        held = [_kept(out, leaf) for leaf in members]
        _one_kind(out, members, held)
        if held[0] is not None:
            everything = [value for value in held if value is not None]
            out.held |= {leaf.raw: value for leaf, value in zip(members, everything, strict=True)}
            out.outputs += _held_outputs(out, everything, place, reader)
        else:
            out.outputs.append(_plain_output(out, members, place))
    if layout == "transformers" and source.config.vision_config is None:
        out.outputs = [Output(to_transformers(o.name, True), o.dtype, o.shape, o.pieces) for o in out.outputs]
    return out


def _place(leaf: Leaf, layout: str, experts: int) -> Place:
    """The place of the output tensor that holds `leaf`; equal for all leaves of a fused tensor."""
    if layout == "mistral":
        return place_raw(leaf)
    place = place_fused(leaf, experts)
    return Place(place.weight, (0,) * place.matrices, place.experts)


def _kept(out: Plan, leaf: Leaf) -> Held | None:
    """The codes of a weight as they are written; None if it is written as numbers."""
    value = out.source.values[leaf.raw]
    if out.quantizer is not None:
        partner = out.source.values.get(_partner(leaf.raw))
        return out.quantizer.quantized(value, leaf, partner) if out.quantizer.takes(leaf) else None
    held = value.held() if out.dtype == "keep" and leaf.linear else None
    if held is None and out.dtype == "keep" and value.quantized:
        forms = sorted({part.form for part in value.inner() if part.quantized})
        out.remarks.add(f"{', '.join(forms)} weights are expanded: our layout does not hold this form of them")
    if held is None or out.kept:
        return held
    out.remarks.add(
        f"{held.form} weights are expanded: transformers (up to 5.24) reads them of this model wrongly or not at all"
    )
    return None


def _partner(raw: str) -> str:
    """The raw name of the up projection for a gate projection and the other way round; empty for other weights."""
    if ".w1." in raw:
        return raw.replace(".w1.", ".w3.")
    return raw.replace(".w3.", ".w1.") if ".w3." in raw else ""


def _transformers_reads(source: Checkpoint) -> bool:
    """Whether transformers reads the codes of a checkpoint: FP8 of all text linears in one arrangement, and no block
    that holds rows of two matrices of a fused tensor.
    """
    linears = [leaf for leaf in leaves(source.config) if leaf.linear]
    held = [source.values[leaf.raw].held() for leaf in linears]
    arrangements = {value.arrangement if isinstance(value, Fp8) else "" for value in held}
    whole = all(not leaf.index or leaf.shape[0] % BLOCK == 0 for leaf in linears)
    return arrangements == {"tensor"} or (arrangements == {"block"} and whole)


def _one_kind(out: Plan, members: list[Leaf], held: Sequence[Held | None]) -> None:
    """Write all weights of a fused tensor in one form."""
    values = [out.source.values[leaf.raw] for leaf in members]
    kinds = [
        h.kind() if h else (v.body.dtype if out.dtype == "keep" and not v.quantized else out.plain_dtype())
        for h, v in zip(held, values, strict=True)
    ]
    for leaf, value, kind in zip(members, values, kinds, strict=True):
        if kind != kinds[0]:
            _refuse_mixture(leaf, value, members[0], values[0])


def _refuse_mixture(leaf: Leaf, value: Values, first: Leaf, other: Values) -> None:
    mine, theirs = value.held(), other.held()
    if mine and theirs and mine.form == theirs.form:
        for role, part in mine.parts().items():
            match = theirs.parts().get(role)
            if match is None or part.dtype != match.dtype:
                what = f"the {role} parts (scales) of {leaf.raw} and {first.raw} differ in dtype"
                raise CheckpointError(f"{value.body.file}: {what} ({part.dtype}, {match.dtype if match else 'none'})")
    stored = [f"{v.body.dtype}{f' ({v.form})' if v.quantized else ''}" for v in (value, other)]
    raise CheckpointError(
        f"{value.body.file}: tensor {leaf.raw} is {stored[0]}, but {first.raw} is {stored[1]}; use --dtype bfloat16"
    )


def _plain_output(out: Plan, members: list[Leaf], place: Place) -> Output:
    """A tensor whose numbers are written."""
    values = [out.source.values[leaf.raw] for leaf in members]
    dtype = out.plain_dtype()
    pieces = []
    for leaf, value in zip(members, values, strict=True):
        step = Cast(value, dtype, _turn(out, leaf))
        pieces.append(Piece(step, math.prod(leaf.shape) * width(dtype)))
    return Output(place.weight, dtype, place.stacked(members[0].shape), tuple(pieces))


def _turn(out: Plan, leaf: Leaf) -> partial[torch.Tensor] | None:
    """How rows are reordered between interleaved rotary pairs (raw, GGUF) and pairs in two halves (all others)."""
    if not leaf.rotary_heads or out.source.interleaved == (out.layout == "mistral"):
        return None
    return partial(halves_to_interleaved if out.layout == "mistral" else interleaved_to_halves, heads=leaf.rotary_heads)


def _held_outputs(out: Plan, held: list[Held], place: Place, reader: Reader) -> list[Output]:
    """The output tensors of a weight, or of all weights of a fused tensor, that is written as codes."""
    first, outputs = held[0], []
    encoders = [Encode(value) if value.encode else None for value in held]
    for role, part in first.parts().items():
        shape = first.stacked(role, place) if place.index else _own_shape(out, part)
        parts = [value.parts()[role] for value in held]
        shared = out.layout == "transformers" and place.matrices == 2 and part.stored and part.shape in ((), (1,))
        if shared:
            pieces, shape = _shared_scales(out, role, parts, reader, shape)
        else:
            pieces = [_piece(p, encoder, role) for p, encoder in zip(parts, encoders, strict=True)]
        outputs.append(Output(first.name(role, place, out.layout), part.dtype, shape, tuple(pieces)))
    if first.form == "int4" and out.layout == "mistral":  # compressed-tensors asks for it beside packed integers
        told = Literal(bytes(as_bytes(torch.tensor(first.shape))))
        outputs.append(Output(place.on("shape"), "I64", (2,), (Piece(told, 16),)))
    return outputs


def _piece(part: Part, encoder: Encode | None, role: str) -> Piece:
    nbytes = math.prod(part.shape) * width(part.dtype)
    if encoder is not None:
        return Piece(encoder, nbytes, role)
    assert part.stored is not None
    return Piece(Copy(part.stored, scales="scale" in role or role == "activation"), nbytes)


def _own_shape(out: Plan, part: Part) -> tuple[int, ...]:
    """Shape of a part of a tensor that is not fused. One number is [] or [1], as in this checkpoint where it is not
    fused.
    """
    if part.shape not in ((), (1,)):
        return part.shape
    return out.source.scalar_shape()


def _shared_scales(
    out: Plan, role: str, parts: list[Part], reader: Reader, both: tuple[int, ...]
) -> tuple[list[Piece], tuple[int, ...]]:
    """transformers keeps one scale per expert for gate and up together: [E, 1, 1], and one activation scale [E].

    Where the two weight scales differ both are written, [E, 2, 1], the shape of transformers' own FP8 experts;
    activation scales, which only bound the common input, become the larger of the two.
    """
    numbers = [reader.tensor(part.stored).reshape(()) for part in parts if part.stored is not None]
    assert len(numbers) == len(parts), "computed scales are written one for each matrix"
    pieces = [_piece(part, None, role) for part in parts]
    gates, ups, experts = numbers[::2], numbers[1::2], len(parts) // 2
    same = all(torch.equal(gate, up) for gate, up in zip(gates, ups, strict=True))
    if role == "scale":
        if same:
            return pieces[::2], (experts, 1, 1)
        out.remarks.add(
            "gate and up weight scales differ: both are written, [experts, 2, 1] as transformers' FP8 experts hold them"
        )
        return pieces, both
    if not same:
        out.remarks.add("gate and up activation scales differ: this layout holds one per expert, the larger is written")
    larger = [torch.maximum(gate, up) for gate, up in zip(gates, ups, strict=True)]
    return [Piece(Literal(bytes(as_bytes(n))), width(parts[0].dtype)) for n in larger], (experts,)
