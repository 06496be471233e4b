"""Which tensors a stored weight consists of: their names, shapes and dtypes, and what scales may not be.

Must not know: modules, files.
"""

from collections.abc import Mapping
from math import ceil

import torch

from .stored_layers import INPUT_SCALES, SCALES, Part
from .stored_weights import BLOCK, GROUP

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
Shape = tuple[int, ...]


def check_parts(path: str, stem: str, parts: Mapping[str, Part], shape: Shape, halves: int) -> None:
    """Raise ValueError unless the tensors are exactly those of one form, in shapes and dtypes."""
    *experts, rows, columns = shape
    forms = {"": _fp8, "_packed": _nvfp4 if parts.get("_packed", Part((), torch.int32)).dtype == torch.uint8 else _int4}
    wanted = forms["" if "" in parts else "_packed"](tuple(experts), rows // halves, columns, halves)
    for end, (shapes, dtypes, optional) in wanted.items():
        name = f"{path}.{stem}{end}"
        if end not in parts:
            if optional:
                continue
            raise ValueError(
                f"{name} is missing, without which {path}.{stem}{'' if '' in parts else '_packed'} has no value."
            )
        part = parts[end]
        if part.shape not in shapes or part.dtype not in dtypes:
            allowed = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(
                f"{name} is {_word(part.dtype)} {list(part.shape)}; it must be {' or '.join(map(_word, dtypes))} "
                f"{allowed}."
            )
    if extra := parts.keys() - wanted.keys():
        raise ValueError(f"{path}.{stem}{min(extra)} does not belong to weights that are stored so.")


def check_inputs(path: str, parts: Mapping[str, Part], shape: Shape, halves: int) -> None:
    """Raise ValueError unless each scale of inputs is one number, for a linear layer or for each expert or matrix."""
    shapes = [(), (1,)] if len(shape) == 2 else [(shape[0],), (shape[0], halves)]
    for name, part in parts.items():
        if part.shape not in shapes or part.dtype not in _FLOATS:
            raise ValueError(
                f"{path}.{name} is {_word(part.dtype)} {list(part.shape)}; it must be "
                f"{' or '.join(map(_word, _FLOATS))} {' or '.join(str(list(each)) for each in shapes)}."
            )


_Wanted = dict[str, tuple[list[Shape], tuple[torch.dtype, ...], bool]]


def _fp8(experts: Shape, rows: int, columns: int, halves: int) -> _Wanted:
    blocks = (halves * ceil(rows / BLOCK), ceil(columns / BLOCK))
    scales = [(*experts, 1, 1), (*experts, halves, 1), (*experts, halves * rows, 1), (*experts, *blocks)]
    scales += [] if experts else [(), (1,)]
    return {
        "": ([(*experts, halves * rows, columns)], (torch.float8_e4m3fn,), False),
        "_scale_inv": (scales, _FLOATS, False),
    }


def _nvfp4(experts: Shape, rows: int, columns: int, halves: int) -> _Wanted:
    whole = (*experts, halves * rows)
    return {
        "_packed": ([(*whole, columns // 2)], (torch.uint8,), False),
        "_scale": ([(*whole, columns // GROUP)] if columns % GROUP == 0 else [], (torch.float8_e4m3fn,), False),
        "_global_scale": ([(*experts, halves)] if experts else [(), (1,)], _FLOATS, False),
    }


def _int4(experts: Shape, rows: int, columns: int, halves: int) -> _Wanted:
    whole, groups = (*experts, halves * rows), [n for n in range(1, columns + 1) if columns % n == 0]
    return {
        "_packed": ([(*whole, columns // 8)] if columns % 8 == 0 else [], (torch.int32,), False),
        "_scale": ([(*whole, n) for n in groups], _FLOATS, False),
        "_zero_point": ([(*experts, halves * ceil(rows / 8), n) for n in groups], (torch.int32,), True),
    }


def wrong_scales(path: str, tensors: Mapping[str, torch.Tensor | None]) -> list[str]:
    """What is wrong with the scales among the tensors of a module, a sentence each."""
    out = []
    for name, tensor in tensors.items():
        if tensor is not None and hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
        if tensor is None or tensor.is_meta or not name.endswith((*SCALES[:3], *INPUT_SCALES)):
            continue
        if not all(_finite(part) for part in (tensor if tensor.ndim == 3 else [tensor])):
            out.append(f"{path}.{name} has scales that are not finite numbers.")
        elif name.endswith("_global_scale") and not tensor.all():
            out.append(f"{path}.{name} has a zero, which cannot divide.")
    return out


def _finite(tensor: torch.Tensor) -> bool:
    if tensor.dtype == torch.float8_e4m3fn:
        return not bool((tensor.view(torch.uint8) & 127 == 127).any())
    return bool(tensor.isfinite().all())


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
