"""What a conversion writes: every output tensor as a list of pieces of the source, and how each piece becomes bytes.

A plan is made from headers alone (and the FP8 scales, a few bytes each), so that everything that cannot work is refused before a
body is read. Carrying it out holds a few megabytes at a time. Knows no folders and no configuration files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

from .checkpoint import CHUNK, DTYPES, CheckpointError, Reader, Stored, as_bytes, width
from .naming import Leaf, fused_shape, leaves, scale_names, to_transformers
from .source import Checkpoint, Values
from .transforms import NVFP4_BLOCK, dequantize_fp8, dequantize_nvfp4, halves_to_interleaved, interleaved_to_halves

_STEP = CHUNK // 4  # values held at a time while computing, a multiple of NVFP4_BLOCK
_TARGET = {"bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Piece:
    """Consecutive values of an output tensor: those of `values.body`, as `dtype`."""

    values: Values
    dtype: str
    heads: int = 0  # above 0: rows change between interleaved and half-split rotary pairs
    to_raw: bool = False
    literal: bytes | None = None  # stands in place of the stored bytes


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
        count = 1
        for n in self.shape:
            count *= n
        return count * width(self.dtype)


def plan(source: Checkpoint, layout: str, dtype: str, reader: Reader) -> tuple[list[Output], list[str]]:
    """The tensors of `source` in another layout and precision, in writing order, and remarks for the user.

    layout: "small4", "mistral" or "transformers". dtype: "keep", "bfloat16" or "float32".

    Raises:
        CheckpointError: Experts of one layer that are stored in different dtypes and so do not fit into one tensor.
    """
    out: list[Output] = []
    remarks: set[str] = set()
    text_only = source.config.vision_config is None
    for name, group in groupby(leaves(source.config), key=lambda leaf: leaf.raw if layout == "mistral" else leaf.name):
        members = list(group)
        values = [source.values[leaf.raw] for leaf in members]
        kept = values[0].scale is not None and dtype == "keep"
        pieces = [_piece(source, leaf, layout, dtype) for leaf in members]
        _one_dtype(members, values, [piece.dtype for piece in pieces])
        final = to_transformers(name, text_only) if layout == "transformers" else name
        first = members[0]
        shape = first.shape if layout == "mistral" else fused_shape(first, source.config.text_config.n_routed_experts)
        out.append(Output(final, pieces[0].dtype, shape, tuple(pieces)))
        if kept:
            scales = _scales(members, values, layout, reader, remarks, _scalar_shape(source))
            rename = layout == "transformers" and text_only
            out += [Output(to_transformers(s.name, rename), s.dtype, s.shape, s.pieces) for s in scales]
    return out, sorted(remarks)


def _piece(source: Checkpoint, leaf: Leaf, layout: str, dtype: str) -> Piece:
    values = source.values[leaf.raw]
    target = _TARGET[dtype] if dtype != "keep" else source.plain_dtype() if values.nvfp4 else values.body.dtype
    moves = (source.layout == "mistral") != (layout == "mistral")
    return Piece(values, target, leaf.rotary_heads if moves else 0, to_raw=layout == "mistral")


def _one_dtype(members: list[Leaf], values: list[Values], dtypes: list[str]) -> None:
    for leaf, value, dtype in zip(members, values, dtypes, strict=True):
        if dtype != dtypes[0] or (value.scale is None) != (values[0].scale is None):
            body = value.body
            raise CheckpointError(
                f"{body.file}: tensor {leaf.raw} is {body.dtype}, but {members[0].raw} is {values[0].body.dtype}"
            )


def _scalar_shape(source: Checkpoint) -> tuple[int, ...]:
    """Shape that a single scale has in this checkpoint, () or (1,): as where it is not fused."""
    return next((v.scale.shape for v in source.values.values() if v.scale and v.scale.shape in ((), (1,))), ())


def _scales(
    members: list[Leaf], values: list[Values], layout: str, reader: Reader, remarks: set[str], scalar: tuple[int, ...]
) -> list[Output]:
    """The weight and activation scales that go with an output tensor which stays FP8."""
    leaf, out = members[0], []
    split, experts = len(leaf.index) == 2, len(members) // max(1, len(leaf.index))
    for kind, name in zip(("scale", "activation"), scale_names(leaf, raw=layout == "mistral"), strict=True):
        stored = [getattr(v, kind) for v in values]
        if any(s is None for s in stored):
            continue
        dtypes = [s.dtype for s in stored]
        if len(set(dtypes)) > 1:
            raise CheckpointError(
                f"{stored[0].file}: the scales of tensor {name} differ in dtype ({', '.join(sorted(set(dtypes)))})"
            )
        pieces = [Piece(Values(s), s.dtype) for s in stored]
        if layout == "mistral" or not leaf.index:
            shape = scalar if layout == "mistral" else stored[0].shape
        elif split and layout == "transformers":
            pieces, shape = _shared_scales(kind, stored, pieces, reader, remarks)
        else:
            shape = (experts, 2) if split else (experts,)
            shape += (1,) * (3 - len(shape)) if kind == "scale" else ()
        out.append(Output(name, dtypes[0], shape, tuple(pieces)))
    return out


def _shared_scales(
    kind: str, stored: list[Stored], pieces: list[Piece], reader: Reader, remarks: set[str]
) -> tuple[list[Piece], tuple[int, ...]]:
    """transformers keeps one scale per expert for gate and up together: [E, 1, 1], and one activation scale [E].

    Where the two weight scales differ both are written, [E, 2, 1], the shape of transformers' own FP8 experts; activation
    scales, which only bound the common input, become the larger of the two.
    """
    numbers = [reader.tensor(s).reshape(()) for s in stored]
    gates, ups, experts = numbers[::2], numbers[1::2], len(stored) // 2
    same = all(torch.equal(gate, up) for gate, up in zip(gates, ups, strict=True))
    if kind == "scale":
        if same:
            return pieces[::2], (experts, 1, 1)
        remarks.add(
            "gate and up weight scales differ: both are written, [experts, 2, 1] as transformers' FP8 experts hold them"
        )
        return pieces, (experts, 2, 1)
    if not same:
        remarks.add("gate and up activation scales differ: this layout holds one per expert, the larger is written")
    larger = [torch.maximum(gate, up) for gate, up in zip(gates, ups, strict=True)]
    chosen = [Piece(Values(s), s.dtype, literal=bytes(as_bytes(n))) for s, n in zip(stored[::2], larger, strict=True)]
    return chosen, (experts,)


def emit(reader: Reader, piece: Piece) -> Iterator[memoryview | bytes]:
    """The bytes of a piece, a few megabytes at a time; each is valid until the next is asked for."""
    body = piece.values.body
    if piece.literal is not None:
        yield piece.literal
    elif piece.heads:
        change = halves_to_interleaved if piece.to_raw else interleaved_to_halves
        yield as_bytes(change(reader.tensor(body), piece.heads).to(DTYPES[piece.dtype]).contiguous())
    elif body.dtype == piece.dtype:
        yield from reader.stream(body)
    else:
        for numbers in numbers_of(reader, piece.values):
            yield as_bytes(numbers.to(DTYPES[piece.dtype]))


def numbers_of(reader: Reader, values: Values, rounded: bool = True) -> Iterator[torch.Tensor]:
    """The real values of a leaf, flat, in row-major order and in pieces.

    Plain tensors come in their own dtype; quantised ones in bfloat16, which is what a model computes with after loading them, or
    with `rounded` off in float32 as the product itself.
    """
    scale = None if values.scale is None else reader.tensor(values.scale).reshape(())
    divisor = None if values.nvfp4 is None else reader.tensor(values.nvfp4[1]).reshape(())
    count = values.body.count * (2 if values.nvfp4 else 1)
    for first in range(0, count, _STEP):
        step = min(_STEP, count - first)
        if values.nvfp4:
            assert divisor is not None
            packed = reader.tensor(values.body, first // 2, step // 2)
            blocks = reader.tensor(values.nvfp4[0], first // NVFP4_BLOCK, step // NVFP4_BLOCK)
            numbers = dequantize_nvfp4(packed, blocks, divisor)
            yield numbers.to(torch.bfloat16) if rounded else numbers
        elif scale is not None:
            codes = reader.tensor(values.body, first, step)
            yield dequantize_fp8(codes, scale) if rounded else codes.float() * scale.float()
        else:
            yield reader.tensor(values.body, first, step)
