"""Named sets of weights for LoRA through PEFT, each hitting what its name says and nothing else.

Modules are matched by the whole path, so that the vision tower's layers, which share the names of their projections,
stay out. Routed experts are tensors, not modules, and go by `target_parameters`. Must not know: PEFT itself, which only
the caller needs.
"""

from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..files_reading import shown
from ..stored_experts import Small4StoredExperts

logger = logging.get_logger(__name__)

_LAYER = r"(?:.*\.)?layers\.\d+\."
_ATTENTION = _LAYER + r"self_attn\.(?:q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)"
_SHARED = _LAYER + r"mlp\.shared_experts\.(?:gate|up|down)_proj"
_DENSE = _LAYER + r"mlp\.(?:gate|up|down)_proj"
_TOWER = r"(?:.*\.)?vision_tower\.transformer\.layers\.\d+\.(?:attention\.[qkvo]|feed_forward\.(?:gate|up|down))_proj"
_PROJECTOR = r"(?:.*\.)?multi_modal_projector\.(?:patch_merger\.merging_layer|linear_1|linear_2)"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

LORA_TARGETS = {
    "attention": (_ATTENTION,),
    "attention+shared": (_ATTENTION, _SHARED),
    "all+experts": (_ATTENTION, _SHARED, _DENSE),
}


def lora_targets(name: str = "attention", vision: bool = False, model: PreTrainedModel = None) -> dict[str, Any]:
    """Arguments for `peft.LoraConfig`: `LoraConfig(r=16, lora_alpha=32, **lora_targets("all+experts"))`.

    Args:
        name: "attention": all projections of latent attention. "attention+shared": and the shared expert.
            "all+experts": and every routed expert and dense feed-forward layer; PEFT then takes no `lora_dropout`, and
            `r` holds per expert (see `share_expert_ranks`). Weights that are held as stored also need `stored_lora`.
            Routers, embeddings, norms and the output head are never hit.
        vision: also the linear layers of vision tower and projector.
        model: the model to be adapted, to learn now, not at the first step, that its experts cannot be.

    Returns:
        `target_modules`, a regular expression, and for "all+experts" `target_parameters`. They fit transformers' own
        `mistral3` and `mistral4` classes as well.

    Raises:
        ValueError: an unknown name; or experts that are held in a quantized form, which no library adapts.
    """
    if not isinstance(name, str) or name not in LORA_TARGETS:
        given = shown(name) if isinstance(name, str) else f"a {type(name).__name__} for a name"
        raise ValueError(f"There is no set of LoRA targets {given}; choose one of {', '.join(LORA_TARGETS)}.")
    patterns = LORA_TARGETS[name] + ((_TOWER, _PROJECTOR) if vision else ())
    targets: dict[str, Any] = {"target_modules": "|".join(patterns)}
    if name == "all+experts":
        if model is not None:
            _check_experts(model)
        targets["target_parameters"] = list(EXPERTS)
    return targets


def _check_experts(model: PreTrainedModel) -> None:
    if any(isinstance(module, Small4StoredExperts) for module in model.modules()):
        return  # as `stored_lora` tells PEFT
    named = ((name.replace(".base_layer", ""), p) for name, p in model.named_parameters())  # adapted ones too
    held = {type(p.data).__name__ for name, p in named if name.endswith(tuple(EXPERTS))}
    if not held:
        raise ValueError(
            "This model has no routed experts that PEFT could adapt: it has none, or quantizes them to 4 bits while "
            "loading, or reads them from disk. Load it without quantization_config and expert_memory, or load a "
            "checkpoint that is stored in FP8, NVFP4 or 4 bits."
        )
    quantized = held - {"Tensor", "Parameter", "DTensor", "Int8Tensor"}  # the last: see loading_torchao
    if quantized:
        raise ValueError(
            f"The routed experts are held as {', '.join(sorted(quantized))}, which PEFT cannot adapt: it adds the "
            'adapter to the weight at each step. Adapt "attention+shared", or load the experts in bfloat16 or with '
            'weight_only("int8").'
        )
