"""What a written configuration says about quantization: the counterpart of `formats/announced.py`. Knows no tensor
data.
"""

from typing import Any

from .formats.fp8 import Fp8
from .formats.int4 import Int4
from .formats.nvfp4 import GROUP
from .formats.values import BLOCK, Held
from .plan import Plan

_FP8 = {"quant_method": "fp8", "weight_block_size": None, "dequantize": False}
_NUMBERS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "dynamic": False,
    "observer": "minmax",
    "symmetric": True,
}
_SKIPPED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
_IGNORED = ["lm_head", "re:.*vision.*", "re:.*multi_modal_projector.*", "re:.*patch_merger.*", r"re:.*\.gate$"]
_ATTENTION = ["re:.*self_attn.*", "re:.*attention.*"]


def quantization_entry(out: Plan) -> dict[str, Any] | None:
    """`quantization_config` of the config.json that goes with a plan; None where no codes are written."""
    if not out.held:
        return None
    values = list(out.held.values())
    arrangements = {value.arrangement for value in values if isinstance(value, Fp8)}
    mixed = out.layout == "small4" and len(arrangements) > 1 and "block" in arrangements  # `fp8` cannot say so
    if mixed or not all(isinstance(value, Fp8) for value in values):
        return _told(out) or _compressed(out)
    scheme = "static" if _static(values) else "dynamic"
    blocks = {"weight_block_size": [BLOCK, BLOCK]} if arrangements == {"block"} else {}
    return {**_FP8, **blocks, "activation_scheme": scheme, "modules_to_not_convert": _SKIPPED}


def params_entry(out: Plan) -> dict[str, Any]:
    """The keys of params.json that announce what a plan writes; empty if no codes are written.

    FP8 with one scale per tensor is announced as the FP8 release does it, everything else as the NVFP4 release does.
    """
    values = list(out.held.values())
    if not values:
        return {}
    if not all(isinstance(value, Fp8) and value.arrangement == "tensor" for value in values):
        return _original(out) or {"quantization_config": _told(out) or _compressed(out)}
    entry = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR" if _static(values) else "NO_SCALES"}
    told = (out.source.params or {}).get("quantization")
    if isinstance(told, dict) and told.items() >= entry.items():
        entry = told
    return {"quantization": entry}


def _static(values: list[Held]) -> bool:
    return any(isinstance(value, Fp8) and value.activation for value in values)


def _told(out: Plan) -> dict[str, Any] | None:
    """The source's announcement in compressed-tensors' terms, if all weights are kept as they were."""
    entry, quantized = out.source.announced.entry, [raw for raw, v in out.source.values.items() if v.quantized]
    same = all(raw in out.held and not out.held[raw].encode for raw in quantized) and len(quantized) == len(out.held)
    return _spelled(entry) if same and "config_groups" in entry else None


def _spelled(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with its method in the one spelling that all readers know."""
    return entry | {"quant_method": "compressed-tensors"}


def _original(out: Plan) -> dict[str, Any] | None:
    """The key and entry of the checkpoint's original params.json, if they mean the same."""
    for key in ("quantization_config", "quantization"):
        entry = (out.source.params or {}).get(key)
        if isinstance(entry, dict) and "config_groups" in entry and _spelled(entry) == _told(out):
            return {key: entry}
    return None


def _compressed(out: Plan) -> dict[str, Any]:
    """An entry in compressed-tensors' terms, made from what is written. One scheme for all weights."""
    first = next(iter(out.held.values()))
    word, weights = _scheme(first)
    if all(isinstance(value, Int4) and value.group == value.shape[1] for value in out.held.values()):
        weights |= {"group_size": None, "strategy": "channel"}  # rows of several lengths
    group = {
        "format": word,
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    attention = any(".attention." in raw for raw in out.held)
    return {
        "config_groups": {"group_0": group},
        "format": word,
        "global_compression_ratio": None,
        "ignore": _IGNORED + ([] if attention else _ATTENTION),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _scheme(value: Held) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Int4):
        sizes = {
            "group_size": value.group,
            "num_bits": 4,
            "strategy": "group",
            "type": "int",
            "symmetric": value.zeros is None,
        }
        return "pack-quantized", {**_NUMBERS, **sizes}
    if isinstance(value, Fp8):
        strategy = {"tensor": "tensor", "row": "channel", "block": "block"}[value.arrangement]
        block = {"block_structure": [BLOCK, BLOCK]} if strategy == "block" else {}
        return "float-quantized", {
            **_NUMBERS,
            "group_size": None,
            "num_bits": 8,
            "strategy": strategy,
            "type": "float",
            **block,
        }
    return "nvfp4-pack-quantized", {
        **_NUMBERS,
        "group_size": GROUP,
        "num_bits": 4,
        "strategy": "tensor_group",
        "type": "float",
    }
