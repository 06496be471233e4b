"""Text linears and fused experts in 4 bits on a CPU, through torch's own packed kernel. Knows how numbers are packed,
not what they mean.

Values of a row go in groups; each group has a scale and a zero in the model's dtype: value = (code - 8) * scale + zero,
codes 0 to 15. `kv_b_proj` stays whole, because decoding on the latents reads its weight.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..moe import Small4Experts

METHOD = "small4_int4"
GROUPS = (128, 64, 32)


def kernel_group(path: str, shape: tuple[int, ...]) -> int | None:
    """How many values of a row share a scale: the most that divide it. None where the kernel has no form for the shape,
    and for `kv_b_proj`, whose weight decoding on the latents needs whole."""
    if path.endswith("kv_b_proj") or shape[-2] % 16:
        return None
    return next((group for group in GROUPS if shape[-1] % group == 0), None)


def pack(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`[rows, columns]` to codes as the kernel reads them, uint8 `[rows, columns / 2]`, and scales and zeros
    `[columns / group, rows, 2]` in the weight's dtype. Each group reaches from its least to its largest value."""
    grouped = weight.float().unflatten(1, (-1, group))
    least, most = grouped.amin(-1), grouped.amax(-1)
    scale = ((most - least) / 15).clamp(min=1e-9)
    both = torch.stack((scale, least + 8 * scale), dim=-1).to(weight.dtype)
    scale, zero = both.float().unbind(-1)  # codes are chosen for what is stored
    codes = ((grouped - zero[..., None]) / scale[..., None] + 8).round().clamp(0, 15).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1)
    return packed, both.transpose(0, 1).contiguous()


def multiply(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`x @ weight.T` for a packed weight. x: `[..., columns]`."""
    group = x.shape[-1] // scales.shape[0]
    out = torch.ops.aten._weight_int4pack_mm_for_cpu(x.flatten(0, -2).contiguous(), packed, group, scales.to(x.dtype))
    return out.unflatten(0, x.shape[:-1])


class Int4Linear(nn.Module):
    """A linear layer without bias, or with one, held in 4 bits."""

    def __init__(self, linear: nn.Linear, group: int) -> None:
        super().__init__()
        packed, scales = pack(linear.weight.data, group)
        self.packed, self.scales = nn.Parameter(packed, requires_grad=False), nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = multiply(x, self.packed, self.scales)
        return out if self.bias is None else out + self.bias


class Int4Experts(nn.Module):
    """All routed experts of a layer, held in 4 bits; one expert after the other."""

    def __init__(self, experts: Small4Experts, groups: list[int]) -> None:
        super().__init__()
        self.num_experts, self.act_fn = experts.num_experts, experts.act_fn
        self.gate_up_packed, self.gate_up_scales = _stacked(experts.gate_up_proj, groups[0])
        self.down_packed, self.down_scales = _stacked(experts.down_proj, groups[1])

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `Small4Experts.forward`."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, slot = torch.where(top_k_index == expert)
            first = self.gate_up_packed[expert], self.gate_up_scales[expert]
            gate, up = multiply(hidden_states[token], *first).chunk(2, dim=-1)
            out = multiply(self.act_fn(gate) * up, self.down_packed[expert], self.down_scales[expert])
            output.index_add_(0, token, (out * top_k_weights[token, slot, None]).to(output.dtype))
        return output


def _stacked(weights: torch.Tensor, group: int) -> tuple[nn.Parameter, nn.Parameter]:
    parts = zip(*(pack(weight, group) for weight in weights.data), strict=True)
    packed, scales = (nn.Parameter(torch.stack(part), requires_grad=False) for part in parts)
    return packed, scales


def hold_in_int4(model: nn.Module) -> None:
    """Replace the text model's linears and experts, one after the other. What cannot be packed stays as it is (see
    `kernel_group`).

    Raises:
        ValueError: The weights are not in main memory, where the kernel is.
    """
    for path, module in list(model.named_modules()):
        if "language_model.layers." not in path or not isinstance(module, nn.Linear | Small4Experts):
            continue
        if next(module.parameters()).device.type != "cpu":
            raise ValueError(f"int4 weights run on a CPU only; {path} is on {next(module.parameters()).device}.")
        weights = [module.weight] if isinstance(module, nn.Linear) else [module.gate_up_proj, module.down_proj]
        groups = [group for weight in weights if (group := kernel_group(path, tuple(weight.shape)))]
        if len(groups) < len(weights):
            continue
        new = Int4Linear(module, groups[0]) if isinstance(module, nn.Linear) else Int4Experts(module, groups)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)


class Int4Config(QuantizationConfigMixin):
    """What `from_pretrained` is given."""

    def __init__(self, quant_method: str = METHOD, **kwargs: Any) -> None:
        self.quant_method = quant_method


class Int4Quantizer(HfQuantizer):
    """Packs after loading; until then weights are read from their files as they are needed, so both are never in memory
    whole.
    """

    requires_calibration = False

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        hold_in_int4(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Packed weights belong to this machine's kernel: save the model that they were made from."""
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Register the method with transformers, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(Int4Quantizer)
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(Int4Config)
