"""Loading of other spellings: published tensor names, and FP8 weights that are expanded where FP8 cannot be computed with.

Two layouts of FP8 exist: the published one with one scale per expert, `gate_up_proj_scale_inv` [E, 1, 1], and ours with one each for
gate and up rows, [E, 2, 1]. transformers 5.23 applies neither to fused experts, casts some tensors only, and would quantise again
on saving; so its conversions are replaced here, for one load at a time. Knows nothing of the model's computation.
"""

import os
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.utils import logging

logger = logging.get_logger(__name__)

_FUSED = ("gate_up_proj", "down_proj")


def prepare_loading(model: Any, checkpoint_files: list[str] | None, load_config: Any) -> None:
    """Put the conversions of Small 4 into `load_config` (transformers' `LoadStateDictConfig`), before tensors are read."""
    quantizer, mapping = load_config.hf_quantizer, load_config.weight_mapping
    renamings = _published_names()
    if quantizer is None or quantizer.quantization_config.quant_method != "fp8" or not quantizer.pre_quantized:
        mapping[:] = renamings + mapping
    elif getattr(quantizer.quantization_config, "dequantize", False):
        _announce(model, checkpoint_files)
        others = [entry for entry in mapping if not _dequantizes(entry)]
        mapping[:] = renamings + others + _dequantizers(quantizer)
    else:
        mapping[:] = renamings + _scale_spreaders(quantizer) + mapping


def finish_loading(model: Any) -> None:
    """Forget all conversions after loading: what is saved from now on are the model's own tensors under their own names."""
    model._weight_conversions = []


def _published_names() -> list[WeightRenaming]:
    """The prefixes of the published files, and those of a text-only `mistral4` model."""
    pairs = {
        r"^language_model\.lm_head": "lm_head",
        r"^language_model\.model": "model.language_model",
        r"^vision_tower": "model.vision_tower",
        r"^multi_modal_projector": "model.multi_modal_projector",
        r"^model\.embed_tokens": "model.language_model.embed_tokens",
        r"^model\.layers": "model.language_model.layers",
        r"^model\.norm": "model.language_model.norm",
    }
    return [WeightRenaming(theirs, ours) for theirs, ours in pairs.items()]


def _dequantizes(entry: Any) -> bool:
    return any(getattr(op, "hf_quantizer", None) is not None for op in getattr(entry, "operations", ()))


def _announce(model: Any, checkpoint_files: list[str] | None) -> None:
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    stored = sum(os.path.getsize(file) for file in checkpoint_files or ())
    instead = f" instead of the {stored / 1e9:.3g} GB on disk" if stored else ""
    logger.warning(
        f"The FP8 weights are expanded to {dtype} while loading, for this device does not compute in FP8: "
        f"they take {needed / 1e9:.3g} GB of memory{instead}."
    )


def _dequantizers(quantizer: Any) -> list[WeightConverter]:
    """Weights with their scales to plain weights. Fused experts first: the general pattern would match their scales too."""
    out = []
    for name in _FUSED:
        sources = [rf"\.experts\.{name}{suffix}" for suffix in ("", "_scale_inv", "_activation_scale")]
        out.append(WeightConverter(sources, rf"\.experts\.{name}", [Dequantize(quantizer)]))
    out.append(WeightConverter(["weight", "weight_scale_inv", "activation_scale"], "weight", [Dequantize(quantizer)]))
    return out


def _scale_spreaders(quantizer: Any) -> list[WeightConverter]:
    """For FP8 computed natively: transformers' fused experts want gate and up scales [E, 2, 1] and one activation scale, [E]."""
    gate_up = r"\.experts\.gate_up_proj"
    return [
        WeightConverter([f"{gate_up}_scale_inv"], f"{gate_up}_scale_inv", [SpreadScales(quantizer)]),
        WeightConverter(
            [f"{gate_up}_activation_scale"], f"{gate_up}_activation_scale", [JoinActivationScales(quantizer)]
        ),
    ]


class _LoadOnly(ConversionOps):
    """A step that only loading takes. `hf_quantizer` tells transformers to hand the tensors over as they are stored."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer


class Dequantize(_LoadOnly):
    """FP8 codes times their scale, rounded to bfloat16 once, then in the parameter's dtype; plain weights are cast only.

    The bfloat16 step is what the release's engines compute with, so float32 models give the same numbers.
    """

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """One parameter: `{pattern: [tensor]}` to `{full name: tensor}`. Raises ValueError for FP8 without a scale."""
        weight, scale = (_single(input_dict.get(pattern)) for pattern in source_patterns[:2])
        if weight is None:
            raise ValueError(f"{full_layer_name}: a scale is stored, but no weight")
        if weight.dtype == torch.float8_e4m3fn:
            if scale is None:
                raise ValueError(f"{full_layer_name}: stored as FP8, but its scale is missing")
            weight = apply_scale(weight, scale)
        return {full_layer_name: weight.to(model.get_parameter_or_buffer(full_layer_name).dtype)}


def apply_scale(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 codes times their scale, in bfloat16.

    codes: [out, in] with a scale of one value, or [E, rows, in] with scales [E, 1, 1], or [E, 2, 1]: gate rows, then up rows.
    """
    scale = scale.to(torch.bfloat16)
    if codes.ndim < 3:
        return codes.to(torch.bfloat16) * scale.reshape(())
    out = codes.to(torch.bfloat16)
    halves = scale.reshape(codes.shape[0], -1, 1, 1)
    out.view(codes.shape[0], halves.shape[1], -1, codes.shape[-1]).mul_(halves)
    return out


class SpreadScales(_LoadOnly):
    """[E, 1, 1] to [E, 2, 1]; [E, 2, 1] stays."""

    def convert(
        self, input_dict: dict[str, Any], *args: Any, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, Any]:
        """One parameter."""
        scale = _single(next(iter(input_dict.values())))
        assert scale is not None
        return {full_layer_name: scale.float().expand(-1, 2, -1).contiguous()}


class JoinActivationScales(_LoadOnly):
    """[E, 2] to the larger of both, [E]; [E] stays. Static scales only bound the input, which gate and up share."""

    def convert(
        self, input_dict: dict[str, Any], *args: Any, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, Any]:
        """One parameter."""
        scale = _single(next(iter(input_dict.values())))
        assert scale is not None
        return {full_layer_name: scale.float() if scale.ndim == 1 else scale.float().amax(dim=1)}


def _single(tensors: Any) -> torch.Tensor | None:
    return tensors[0] if isinstance(tensors, list) else tensors
