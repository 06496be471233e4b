"""Products of few tokens with weights as they are stored, on a GPU: a Triton kernel that decodes on the way.

All weights of a call, as the experts of a token, are multiplied by one launch. Numbers are those of
`StoredWeight.expand`, sums are float32. Without Triton there is no kernel. Checked by Triton's interpreter; before its
first use on a GPU it is tried there, and left alone if it is wrong. Must not know: modules, files.
"""

# mypy: disable-error-code="no-untyped-def"
from collections.abc import Sequence
from functools import cache

import torch
from transformers.utils import logging

from .stored_weights import BLOCK, GROUP, Fp8Weight, Int4Weight, Nvfp4Weight, StoredWeight

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

logger = logging.get_logger(__name__)

MOST_TOKENS = 4  # for more, decoding once and multiplying is taken to be better; not measured
ROWS, COLUMNS = 8, 256  # of a weight that a program takes at a time
FP8, NVFP4, INT4 = range(3)
FORMS: dict[type[StoredWeight], int] = {Fp8Weight: FP8, Nvfp4Weight: NVFP4, Int4Weight: INT4}
SCALES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3}
FIELDS = 13  # of a row of the table that the kernel reads, see `_fields`
ALL = 62  # log2 of a number of rows or columns that is never reached


def triton_takes(weights: Sequence[StoredWeight], inputs: Sequence[torch.Tensor]) -> bool:
    """Whether the kernel takes these products: on a GPU, few tokens, weights of one form."""
    if triton is None or any(x.device.type != "cuda" or len(x) > MOST_TOKENS for x in inputs):
        return False
    if not all(_is_known(weight) for weight in weights):
        return False
    kinds = {(type(weight), _scale(weight).dtype) for weight in weights}
    adjoin = all(tensor.stride(1) == 1 for weight in weights for tensor in (weight.codes, _scale(weight)))
    uniform = len(kinds) == 1 and next(iter(kinds))[1] in SCALES and len({x.dtype for x in inputs}) == 1
    return uniform and adjoin and _is_right(type(weights[0]), inputs[0].device)


def triton_products(weights: Sequence[StoredWeight], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`inputs @ weight.T` of each pair: float `[tokens, columns]` to `[tokens, rows]` of the same dtype.

    All on one device, weights of one form. `triton_takes` says whether they are.
    """
    wide = {id(x): x.float().contiguous() for x in inputs}
    sizes = [len(x) * weight.rows for weight, x in zip(weights, inputs, strict=True)]
    flat = torch.empty(sum(sizes), dtype=torch.float32, device=inputs[0].device)
    outputs = flat.split(sizes)
    fields = [_fields(w, wide[id(x)], out) for w, x, out in zip(weights, inputs, outputs, strict=True)]
    table = torch.tensor(fields, dtype=torch.int64).to(flat.device, non_blocking=True)
    most_rows, most_tokens = max(weight.rows for weight in weights), max(map(len, inputs))
    grid = (len(weights), -(-most_rows // ROWS), most_tokens)
    first = weights[0]
    _dot[grid](table, FORMS[type(first)], SCALES[_scale(first).dtype], FIELDS, ROWS, COLUMNS)
    done = flat.to(inputs[0].dtype).split(sizes)
    return [out.view(len(x), weight.rows) for out, x, weight in zip(done, inputs, weights, strict=True)]


@cache
def _is_right(form: type[StoredWeight], device: torch.device) -> bool:
    """Whether the kernel compiles for a GPU and multiplies a small weight as torch does there. Says so if not."""
    codes = torch.arange(2048, device=device).view(16, 128)
    scale = torch.ones(16, 8, device=device)
    examples: dict[type[StoredWeight], StoredWeight] = {
        Fp8Weight: Fp8Weight((codes % 127).to(torch.uint8).view(torch.float8_e4m3fn), 0.1 * scale[:, :1]),
        Nvfp4Weight: Nvfp4Weight(codes.to(torch.uint8)[:, :64], scale.to(torch.float8_e4m3fn), scale[0, 0]),
        Int4Weight: Int4Weight((codes[:, :16] * 19088743).int(), 0.1 * scale[:, :4]),
    }
    weight, inputs = examples[form], torch.ones(1, 128, device=device)
    try:
        (found,) = triton_products([weight], [inputs])
        right = torch.allclose(found, inputs @ weight.expand().float().T, rtol=1e-4, atol=1e-3)
    except Exception as error:  # whatever a compiler raises
        logger.warning(f"The Triton kernel for weights held as stored is not used, because it failed: {error}")
        return False
    if not right:
        logger.warning("The Triton kernel for weights held as stored is not used, because its results are wrong.")
    return right


def _is_known(weight: StoredWeight) -> bool:
    """Whether the kernel knows the dtypes and groups of a weight."""
    if isinstance(weight, Nvfp4Weight):
        return weight.divisor.dtype == torch.float32
    if isinstance(weight, Int4Weight):
        return weight.group == weight.columns or weight.group & (weight.group - 1) == 0
    return weight.codes.dtype == torch.float8_e4m3fn


def _scale(weight: StoredWeight) -> torch.Tensor:
    assert isinstance(weight, Fp8Weight | Nvfp4Weight | Int4Weight)
    return weight.scale


def _fields(weight: StoredWeight, inputs: torch.Tensor, output: torch.Tensor) -> list[int]:
    """Where everything stands: addresses, strides, sizes, log2 of the rows and columns that share a scale."""
    zeros = weight.zeros if isinstance(weight, Int4Weight) else None
    divisor = weight.divisor.data_ptr() if isinstance(weight, Nvfp4Weight) else 0
    scale, codes = _scale(weight), weight.codes
    return [
        codes.data_ptr(), codes.stride(0) * codes.element_size(), scale.data_ptr(), scale.stride(0),
        *((0, 0) if zeros is None else (zeros.data_ptr(), zeros.stride(0))),
        divisor, inputs.data_ptr(), output.data_ptr(), len(inputs), weight.rows, weight.columns, _shifts(weight),
    ]  # fmt: skip


def _shifts(weight: StoredWeight) -> int:
    """log2 of rows, and 64 times that of columns, which share a scale."""
    if isinstance(weight, Nvfp4Weight):
        return 64 * (GROUP.bit_length() - 1)
    if isinstance(weight, Int4Weight):
        return 64 * (weight.group.bit_length() - 1 if weight.group < weight.columns else ALL)
    assert isinstance(weight, Fp8Weight)
    log2 = BLOCK.bit_length() - 1
    return 65 * log2 if weight.blocks else 64 * ALL + (0 if len(weight.scale) > 1 else ALL)


if triton is not None:

    @triton.jit
    def _e4m3(code):
        """float32 of FP8 codes, read as float16 numbers, which are 256 times less."""
        rest = code & 127
        size = (rest.to(tl.uint16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        size = tl.where(rest == 127, float("nan"), size)
        return tl.where(code >= 128, -size, size)

    @triton.jit
    def _e2m1(code):
        """float32 of 4-bit codes, read as float16 numbers, which are 2 ** 14 times less."""
        size = ((code & 7).to(tl.uint16) << 9).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0
        return tl.where(code >= 8, -size, size)

    @triton.jit
    def _rounded(value):
        """To the nearest bfloat16 number, as float32."""
        bits = value.to(tl.uint32, bitcast=True)
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        return tl.where(value == value, bits.to(tl.float32, bitcast=True), value)

    @triton.jit
    def _scales(address, at, mask, SCALE: tl.constexpr):
        if SCALE == 3:
            return _e4m3(tl.load(address.to(tl.pointer_type(tl.uint8)) + at, mask, 0))
        if SCALE == 0:
            return tl.load(address.to(tl.pointer_type(tl.float32)) + at, mask, 0.0)
        halves = tl.load(address.to(tl.pointer_type(tl.uint16)) + at, mask, 0)
        if SCALE == 2:
            return halves.to(tl.float16, bitcast=True).to(tl.float32)
        return (halves.to(tl.uint32) << 16).to(tl.float32, bitcast=True)

    @triton.jit
    def _numbers(job, codes, row, column, mask, FORM: tl.constexpr, SCALE: tl.constexpr):
        """Numbers of a weight; codes: one for each row `[ROWS, 1]` and column `[1, COLUMNS]`."""
        shifts = tl.load(job + 12)
        group = column >> (shifts // 64)
        at = (row >> (shifts % 64)) * tl.load(job + 3) + group
        scale = _scales(tl.load(job + 2), at, mask, SCALE)
        if FORM == 0:
            return _rounded(_e4m3(codes) * scale)
        if FORM == 1:
            divisor = tl.load(tl.load(job + 6).to(tl.pointer_type(tl.float32)))
            return _rounded(tl.div_rn(_e2m1(codes) * scale, divisor + tl.zeros_like(scale)))
        zeros = tl.zeros_like(scale) + 8.0
        address = tl.load(job + 4)
        if address != 0:
            eights = address.to(tl.pointer_type(tl.int32)) + (row // 8) * tl.load(job + 5) + group
            zeros = ((tl.load(eights, mask, 0) >> (4 * (row % 8)).to(tl.int32)) & 15).to(tl.float32)
        return _rounded((codes.to(tl.float32) - zeros) * scale)

    @triton.jit
    def _dot(
        table,
        FORM: tl.constexpr,
        SCALE: tl.constexpr,
        FIELDS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        """Some rows of one weight times one token."""
        job, token = table + tl.program_id(0) * FIELDS, tl.program_id(2)
        rows, columns = tl.load(job + 10), tl.load(job + 11)
        row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        codes = tl.load(job).to(tl.pointer_type(tl.uint8)) + row * tl.load(job + 1)
        here = tl.where(token < tl.load(job + 9), rows, 0)  # rows, or none where there is no such token
        inputs = tl.load(job + 7).to(tl.pointer_type(tl.float32)) + token * columns
        total = tl.zeros([ROWS], tl.float32)
        for start in range(0, columns, COLUMNS):
            if FORM == 0:
                column = (start + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
                mask = (row < here) & (column < columns)
                code = tl.load(codes + column, mask, 0)
                number = _numbers(job, code, row, column, mask, FORM, SCALE)
                total += tl.sum(number * tl.load(inputs + column, column < columns, 0.0), 1)
            else:
                column = (start + 2 * tl.arange(0, COLUMNS // 2)).to(tl.int64)[None, :]
                mask = (row < here) & (column < columns)
                code = tl.load(codes + column // 2, mask, 0)
                even = _numbers(job, code & 15, row, column, mask, FORM, SCALE)
                odd = _numbers(job, code >> 4, row, column, mask, FORM, SCALE)
                total += tl.sum(even * tl.load(inputs + column, column < columns, 0.0), 1)
                total += tl.sum(odd * tl.load(inputs + column + 1, column < columns, 0.0), 1)
        row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        output = tl.load(job + 8).to(tl.pointer_type(tl.float32)) + token * rows + row
        tl.store(output, total, row < here)
