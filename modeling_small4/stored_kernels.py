"""Products with weights as they are stored: which way is taken, and the call of the compiled kernels. Knows the forms
of `stored_weights`, no modules.

Numbers of a weight are those of `StoredWeight.expand` in every way, sums are float32.
"""

import struct
import sys
from collections.abc import Sequence
from functools import cache

import torch
from torch.nn.functional import linear, pad

from .stored_native import Library, library
from .stored_triton import triton_products, triton_takes
from .stored_weights import BLOCK, GROUP, Fp8Weight, Int4Weight, Nvfp4Weight, StoredWeight

JOB = struct.Struct("18qd2q")  # `Job` of the C text
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ALL = 62  # log2 of a number of rows or columns that is never reached
SHARE = 2**16  # bytes of codes from which one more thread pays


@cache
def fused_tokens(narrow: bool, dtype: torch.dtype) -> int:
    """Up to so many tokens the codes are decoded on the way into the product; for more, a piece is expanded and torch
    multiplies it.

    narrow: the kernels multiply bfloat16 directly. Measured by `model_card.bench.stored_products` on an EPYC with
    `avx512_bf16` but no AMX, and there with AVX2 alone: the kernels take less time up to 512 tokens, the most that was
    tried. The bound for AMX is not measured.
    """
    if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16"):
        return 16 if narrow else 256
    return sys.maxsize


def product(weight: StoredWeight, inputs: torch.Tensor) -> torch.Tensor:
    """`inputs @ weight.T` as with the expanded weight in the dtype of the inputs.

    inputs: float `[tokens, columns]`, on the weight's device. Returns `[tokens, rows]` in the dtype of the inputs.
    """
    return products([weight], [inputs])[0]


def products(weights: Sequence[StoredWeight], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`product` of each weight with its inputs; threads are started once for all of them, as for the experts of a
    token.
    """
    if triton_takes(weights, inputs):
        return triton_products(weights, inputs)
    kernels = library() if all(_usable(*pair) for pair in zip(weights, inputs, strict=True)) else None
    if kernels is None or any(len(x) > fused_tokens(kernels.variant.narrow, x.dtype) for x in inputs):
        return [_by_pieces(weight, x, kernels) for weight, x in zip(weights, inputs, strict=True)]
    return _fused(kernels, weights, inputs)


def product_transposed(weight: StoredWeight, grad: torch.Tensor) -> torch.Tensor:
    """`grad @ weight`, for gradients of inputs: float `[tokens, rows]` to `[tokens, columns]`, summed over pieces in
    float32 or wider.
    """
    kernels = library() if _usable(weight, grad) else None
    tokens = padded(grad)
    total = tokens.new_zeros(len(tokens), weight.columns, dtype=torch.promote_types(grad.dtype, torch.float32))
    for rows, piece in weight.pieces():
        total += tokens[:, rows] @ _expanded(piece, kernels).to(grad.dtype)
    return total[: len(grad)].to(grad.dtype)


def _by_pieces(weight: StoredWeight, inputs: torch.Tensor, kernels: Library | None) -> torch.Tensor:
    tokens = padded(inputs)
    outputs = tokens.new_empty(len(tokens), weight.rows)
    for rows, piece in weight.pieces():
        outputs[:, rows] = linear(tokens, _expanded(piece, kernels).to(inputs.dtype))
    return outputs[: len(inputs)]


def padded(inputs: torch.Tensor) -> torch.Tensor:
    """Zeros behind the tokens `[tokens, columns]`, so that there are four counts between a power of two and the next,
    and none but multiples of 16.

    For half precision on a CPU oneDNN compiles a kernel for each count and keeps a thousand of them, 0.6 MB each; and
    experts get any number of tokens.
    """
    tokens = len(inputs)
    if inputs.device.type != "cpu" or inputs.dtype.itemsize > 2:
        return inputs
    step = max(16, 1 << max(0, tokens.bit_length() - 3))
    more = -tokens % step
    return pad(inputs, (0, 0, 0, more)) if more else inputs


def _fused(kernels: Library, weights: Sequence[StoredWeight], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    ready = {id(x): _ready(x) for x in inputs}  # equal tensors stay one
    outputs = [ready[id(x)].new_empty(len(x), weight.rows) for weight, x in zip(weights, inputs, strict=True)]
    jobs = [_job(weight, ready[id(x)], out, len(x)) for weight, x, out in zip(weights, inputs, outputs, strict=True)]
    if not kernels.run(jobs, _threads(weights)):
        return [_by_pieces(weight, x, None) for weight, x in zip(weights, inputs, strict=True)]
    return [out.to(x.dtype) for out, x in zip(outputs, inputs, strict=True)]


def _ready(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs as kernels read them: bfloat16 or float32, rows of adjacent numbers."""
    inputs = inputs.float() if inputs.dtype == torch.float16 else inputs
    return inputs if inputs.stride(-1) == 1 else inputs.contiguous()


def _expanded(weight: StoredWeight, kernels: Library | None) -> torch.Tensor:
    if kernels is None:
        return weight.expand()
    out = torch.empty(weight.rows, weight.columns, dtype=torch.bfloat16)
    return out if kernels.run([_job(weight, None, out, -1)], _threads([weight])) else weight.expand()


def _threads(weights: Sequence[StoredWeight]) -> int:
    codes = sum(weight.codes.nbytes for weight in weights)
    return max(1, min(torch.get_num_threads(), codes // SHARE))


def _usable(weight: StoredWeight, inputs: torch.Tensor) -> bool:
    """Whether kernels know the form of a weight and the dtype of its inputs."""
    if weight.codes.device.type != "cpu" or inputs.dtype not in TYPES or not weight.codes.numel():
        return False
    if isinstance(weight, Nvfp4Weight):
        return weight.scale.dtype == torch.float8_e4m3fn and _rows_adjoin(weight.codes, weight.scale)
    if isinstance(weight, Fp8Weight):
        known = weight.codes.dtype == torch.float8_e4m3fn and weight.scale.dtype in TYPES
        return known and _rows_adjoin(weight.codes, weight.scale)
    assert isinstance(weight, Int4Weight)
    powers = weight.group >= 32 and weight.group & (weight.group - 1) == 0
    known = (powers or weight.group == weight.columns) and weight.scale.dtype in TYPES
    return known and _rows_adjoin(weight.codes, weight.scale) and (weight.zeros is None or _rows_adjoin(weight.zeros))


def _rows_adjoin(*tensors: torch.Tensor) -> bool:
    """Whether the numbers of a row stand side by side."""
    return all(tensor.stride(1) == 1 for tensor in tensors)


def _job(weight: StoredWeight, inputs: torch.Tensor | None, outputs: torch.Tensor, tokens: int) -> bytes:
    """One `Job`: a product, or, for -1 tokens, the weight expanded into `outputs`."""
    form, scale, scale_type, zeros, row_shift, column_shift, divisor = _form(weight)
    codes = weight.codes
    return JOB.pack(
        codes.data_ptr(), codes.stride(0) * codes.element_size(),
        scale.data_ptr(), scale.stride(0), scale_type,
        *((0, 0) if zeros is None else (zeros.data_ptr(), zeros.stride(0))),
        *((0, 0) if inputs is None else (inputs.data_ptr(), inputs.stride(0))),
        outputs.data_ptr(), outputs.stride(0),
        form, TYPES[outputs.dtype], weight.rows, weight.columns, tokens,
        row_shift, column_shift, divisor, 0, 0,
    )  # fmt: skip


def _form(weight: StoredWeight) -> tuple[int, torch.Tensor, int, torch.Tensor | None, int, int, float]:
    """What `Job` says of a form: its number, scales, their dtype, zeros, log2 of rows and columns to a scale,
    divisor.
    """
    if isinstance(weight, Fp8Weight):
        rows, columns = (BLOCK, BLOCK) if weight.blocks else (1 if len(weight.scale) > 1 else None, None)
        return 0, weight.scale, TYPES[weight.scale.dtype], None, _log2(rows), _log2(columns), 1.0
    if isinstance(weight, Nvfp4Weight):
        return 1, weight.scale, 0, None, 0, _log2(GROUP), float(weight.divisor)
    assert isinstance(weight, Int4Weight)
    return (
        2,
        weight.scale,
        TYPES[weight.scale.dtype],
        weight.zeros,
        0,
        _log2(weight.group if weight.group < weight.columns else None),
        1.0,
    )


@cache
def _log2(count: int | None) -> int:
    return ALL if count is None else count.bit_length() - 1
