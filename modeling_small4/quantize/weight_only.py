"""Weights held in 8 bits, linears and fused experts, through torchao (optional), or in 4 bits (`int4`). Knows tensors'
names, not what they compute.

Of torchao 0.18, Int4WeightOnlyConfig needs CUDA or mslk, and IntxWeightOnlyConfig "only works for 2-d and 4-d Tensors",
so it cannot hold fused experts in 4 bits. Computing with experts in 8 bits needs the `eager` implementation, which
takes
one expert after the other: torchao's tensors cannot be transposed in three dimensions, as the grouped kernels want.
"""

import importlib.util
from typing import Any

from ..files_reading import shown

_LAYER = r"re:model\.language_model\.layers\.\d+\."
_LINEARS, _EXPERTS = (
    _LAYER + r"(self_attn|mlp|mlp\.shared_experts)\.\w+_proj(_with_mqa)?",
    _LAYER + r"mlp\.experts\.(gate_up|down)_proj",
)


def weight_only(kind: str = "int8") -> dict[str, Any]:
    """Arguments for `from_pretrained` that hold all text linears and experts in `kind`:
    `from_pretrained(MODEL, **weight_only("int8"))`.

    "int8": a float32 scale and an int8 zero point per output row. Embedding, head, router, norms and vision stay as
    they are.

    "int4": 4 bits and, for each group of 128 values (64 or 32 where rows are short), a scale and a zero; on CPUs,
    through torch itself; `kv_b_proj` stays too. The checkpoint must be unquantized, is read piece by piece, and the
    model cannot be saved.

    Raises:
        ValueError: torchao is missing, or no library can hold fused experts in `kind`.
    """
    if kind == "int4":
        from .int4 import Int4Config, register

        register()
        return {"quantization_config": Int4Config()}
    if kind != "int8":
        raise ValueError(
            f"Weights cannot be held as {shown(kind)}; int8 and int4 are possible (fp8 checkpoints load as they are)."
        )
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("int8 weights need torchao: pip install torchao")
    from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    eight = Int8WeightOnlyConfig(version=2)
    return {
        "quantization_config": TorchAoConfig(FqnToConfig({_LINEARS: eight, _EXPERTS: eight})),
        "experts_implementation": "eager",
    }
