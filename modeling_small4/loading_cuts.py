"""How weights that are held as stored are cut over processes: for each of their tensors one of transformers' styles.

Whole experts can always be cut apart; rows and columns only where no scale, block or packed word is cut in two. Must
not know: what a product computes, how processes talk.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import lcm
from typing import Any

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from .stored_experts import Small4StoredExperts
from .stored_layers import INPUT_SCALES, Small4StoredLinear, StoredModule
from .stored_weights import BLOCK, GROUP

WHOLE = "replicate"
# transformers' style of a module: those of its weights' tensors, by what stands before their endings
_LINEAR = {"colwise": "colwise", "colwise_gather_output": "colwise", "colwise_rep": "colwise", "rowwise": "rowwise"}
_EXPERTS = {"gate_up_proj": "packed_colwise", "down_proj": "rowwise"}


def with_stored(model: nn.Module, plan: Mapping[str, str], size: int) -> dict[str, str]:
    """transformers' plan with a rule for every tensor of a stored weight.

    Args:
        plan: A style for each module or parameter by its full name: tensor parallel or expert parallel.
        size: Processes that share a weight.

    Raises:
        ValueError: A weight cannot be cut so; the message names it.
    """
    modules = {path: module for path, module in model.named_modules() if isinstance(module, StoredModule)}
    names = {f"{path}.{name}" for path, module in modules.items() for name, _ in module.named_parameters()}
    rules: dict[str, str] = {}
    for path, module in modules.items():
        if path in plan:
            rules |= {f"{path}.{name}": rule for name, rule in _rules(path, module, plan[path], size).items()}
    return rules | {name: style for name, style in plan.items() if name not in names}


@contextmanager
def scalars_aside(model: nn.Module, layout: Any) -> Iterator[None]:
    """Take the stored tensors that are one number out of a model while FSDP2, which takes no scalars, cuts it. Each
    process then holds them all.

    layout: A `DistributedConfig` or None.

    Raises:
        ValueError: There are such tensors, and layers would be cut as well, by a plan that names them.
    """
    sizes = {name: getattr(layout, name, 1) or 1 for name in ("fsdp_size", "dp_replicate_size", "tp_size")}
    tensor = sizes.pop("tp_size") > 1
    held = [module for module in model.modules() if isinstance(module, StoredModule)] if max(sizes.values()) > 1 else []
    scalars = [(m, name, p) for m in held for name, p in m._parameters.items() if p is not None and p.ndim == 0]
    if scalars and tensor:
        raise ValueError(
            "tp_size and fsdp_size together cannot cut weights in FP8 with one scale for a whole matrix; give one of "
            "them, with ep_size if you like."
        )
    for module, name, _ in scalars:
        del module._parameters[name]
    try:
        yield
    finally:
        for module, name, parameter in scalars:
            module._parameters[name] = parameter


def refuse_zero3() -> None:
    """Raise ValueError where DeepSpeed would cut the parameters of a model whose weights are held as stored."""
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO-3 cannot cut weights that are held as stored. Train with FSDP2 (fsdp_version: 2 in the "
            "configuration of accelerate), or expand the checkpoint first: small4 convert SRC DST --dtype bfloat16."
        )


def gathered(gather: Callable[[dict[str, Any]], dict[str, Any]], tensors: dict[str, Any]) -> dict[str, Any]:
    """What `gather` makes of tensors that are cut over processes. Floats of 8 bits go as bytes, because gloo (torch
    2.13) sends no such numbers.
    """
    if not torch.distributed.is_available():
        return gather(tensors)
    from torch.distributed.tensor import DTensor

    narrow = {n: t for n, t in tensors.items() if isinstance(t, DTensor) and t.dtype == torch.float8_e4m3fn}
    bytes_of = {
        name: DTensor.from_local(
            tensor.to_local().view(torch.uint8),
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
        for name, tensor in narrow.items()
    }
    out = gather(tensors | bytes_of)
    return {name: tensor.view(torch.float8_e4m3fn) if name in narrow else tensor for name, tensor in out.items()}


def _rules(path: str, module: StoredModule, style: str, size: int) -> dict[str, str]:
    tensors = {name: parameter for name, parameter in module.named_parameters() if name != "bias"}
    if isinstance(module, Small4StoredExperts) and style == "ep_dispatch_experts":
        return dict.fromkeys(tensors, "grouped_gemm")
    if isinstance(module, Small4StoredExperts) and style == "moe_tp_experts":
        stems = _EXPERTS
    elif isinstance(module, Small4StoredLinear) and style in _LINEAR:
        stems = {"weight": _LINEAR[style]}
    elif style in (WHOLE, "mla_kv_a_proj"):
        return dict.fromkeys(tensors, WHOLE)
    else:
        raise ValueError(
            f"{path} is held as stored and cannot be cut in the style {style!r}; load with dequantize=True, which cuts "
            "expanded weights."
        )
    rules: dict[str, str] = {}
    for stem, rule in stems.items():
        parts = {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem) and not _of_input(n)}
        if reason := _obstacle(parts, rule, size):
            raise ValueError(
                f"{path}.{stem} is held as stored and cannot be cut for {size} processes: {reason}. Load with "
                "dequantize=True to cut expanded weights, or use ep_size or pp_size."
            )
        rules |= {stem + end: rule if _is_cut(end, tensor, parts, rule) else WHOLE for end, tensor in parts.items()}
    if module._parameters.get("bias") is not None:
        rules["bias"] = stems["weight"]
    return rules | {name: WHOLE for name in tensors if _of_input(name)}


def _of_input(name: str) -> bool:
    return name.endswith(INPUT_SCALES)


def _is_cut(end: str, tensor: torch.Tensor, parts: Mapping[str, torch.Tensor], rule: str) -> bool:
    """Whether a tensor has a number for each row, or each column, that is cut."""
    if end in ("", "_packed"):
        return True
    if end == "_scale_inv":
        codes, dim = parts[""], -1 if rule == "rowwise" else -2
        blocks = _has_blocks(codes, tensor, rule)
        return blocks or (dim == -2 and tensor.ndim > 1 and tensor.shape[-2] == codes.shape[-2] > 1)
    return end != "_global_scale"


def _has_blocks(codes: torch.Tensor, scale: torch.Tensor, rule: str) -> bool:
    halves = 2 if rule == "packed_colwise" else 1
    return scale.ndim > 1 and tuple(scale.shape[-2:]) not in ((1, 1), (halves, 1), (codes.shape[-2], 1))


def _obstacle(parts: Mapping[str, torch.Tensor], rule: str, size: int) -> str | None:
    """Why a weight cannot be cut into `size` equal pieces, or None."""
    codes = parts["" if "" in parts else "_packed"]
    rows = codes.shape[-2] // (2 if rule == "packed_colwise" else 1)
    columns = codes.shape[-1] * (1 if "" in parts else 2 if codes.dtype == torch.uint8 else 8)
    length, unit, what = rows, 1, "rows"
    if rule == "rowwise":
        length, what = columns, "columns"
        unit = _columns_together(parts, columns, rule)
    elif "_zero_point" in parts:
        unit = 8
    elif "" in parts and _has_blocks(codes, parts["_scale_inv"], rule):
        unit = BLOCK
    if length % (size * unit):
        together = f", of which {unit} belong together" if unit > 1 else ""
        return f"it has {length} {what}{together}"
    return None


def _columns_together(parts: Mapping[str, torch.Tensor], columns: int, rule: str) -> int:
    """Columns that share a scale or a packed word."""
    if "" in parts:
        return BLOCK if _has_blocks(parts[""], parts["_scale_inv"], rule) else 1
    if parts["_packed"].dtype == torch.uint8:
        return GROUP
    return lcm(8, columns // parts["_scale"].shape[-1])
