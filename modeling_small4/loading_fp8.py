"""FP8 computed by transformers' own modules, on GPUs that have instructions for it: its fused experts want other shapes
of scales.

Two layouts of FP8 exist: the published one with one scale per expert, `gate_up_proj_scale_inv` [E, 1, 1], and ours with
one each for gate and up rows, [E, 2, 1]. Knows nothing of the model's computation; `loading_stored` does everything
else.
"""

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer


def scale_spreaders(quantizer: HfQuantizer | None) -> list[WeightConverter]:
    """transformers' fused experts want gate and up scales [E, 2, 1] and one activation scale, [E]."""
    gate_up = r"\.experts\.gate_up_proj"
    return [
        WeightConverter([f"{gate_up}_scale_inv"], f"{gate_up}_scale_inv", [SpreadScales(quantizer)]),
        WeightConverter(
            [f"{gate_up}_activation_scale"], f"{gate_up}_activation_scale", [JoinActivationScales(quantizer)]
        ),
    ]


class _LoadOnly(ConversionOps):
    """A step that only loading takes. `hf_quantizer` tells transformers to hand the tensors over as they are stored."""

    def __init__(self, hf_quantizer: HfQuantizer | None) -> None:
        self.hf_quantizer = hf_quantizer


class SpreadScales(_LoadOnly):
    """[E, 1, 1] to [E, 2, 1]; [E, 2, 1] stays."""

    def convert(
        self, input_dict: dict[str, Any], *args: Any, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, Any]:
        """One parameter."""
        return {full_layer_name: _single(input_dict).float().expand(-1, 2, -1).contiguous()}


class JoinActivationScales(_LoadOnly):
    """[E, 2] to the larger of both, [E]; [E] stays. Static scales only bound the input, which gate and up share."""

    def convert(
        self, input_dict: dict[str, Any], *args: Any, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, Any]:
        """One parameter."""
        scale = _single(input_dict)
        return {full_layer_name: scale.float() if scale.ndim == 1 else scale.float().amax(dim=1)}


def _single(tensors: dict[str, Any]) -> torch.Tensor:
    (found,) = tensors.values()
    return found[0] if isinstance(found, list) else found
