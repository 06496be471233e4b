"""LoRA adapters of routed experts that share one side: the matrix that faces the hidden state is one for all experts.

PEFT (0.21) gives each expert of a layer two thin matrices of its own, A `[r, in]` and B `[out, r]`. Here A of
`gate_up_proj` and B of `down_proj` are one parameter, which everything in PEFT reads as the weight that it expects, and
which is saved as such. Imports PEFT (extra `train`), so this module is imported only on demand. Must not know: stored
weights.
"""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from peft import PeftType
from peft.tuners.lora import layer as peft_layer
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..files_reading import shown
from .lora import EXPERTS

logger = logging.get_logger(__name__)

SIDES = {EXPERTS[0].rpartition(".")[2]: "lora_A", EXPERTS[1].rpartition(".")[2]: "lora_B"}  # which one is shared
Adapted = TypeVar("Adapted", bound=nn.Module)


def share_expert_ranks(model: Adapted, adapter_name: str = "default") -> Adapted:
    """Let the routed experts of each layer share one side of their LoRA adapters. Changes and returns `model`.

        tuned = share_expert_ranks(get_peft_model(model, LoraConfig(r=16, **lora_targets("all+experts"))))

    A of `gate_up_proj` is then `[r, hidden]` and not `[experts * r, hidden]`, B of `down_proj` `[hidden, r]` and not
    `[hidden, r * experts]`; the other sides stay one for each expert, all other adapters as they are. What the adapter
    computes does not change. Its files are PEFT's own, with the shared side written once for each expert. Loading a
    file into such an adapter needs one like that.

    Call it on a new adapter, or on one of these files to go on training, before an optimizer is made and before DDP or
    FSDP2. A second call does nothing. PEFT's `hotswap_adapter` does not reach shared sides: load another adapter under
    a name of its own.

    Args:
        model: What `get_peft_model` or `PeftModel.from_pretrained` returned, or a transformers model with an adapter.
        adapter_name: Which of its adapters; others are not touched.

    Raises:
        ValueError: The adapter is missing, is not LoRA or adapts no routed experts; its experts differ where they
            would be shared, because it was trained without; it is cut by FSDP already; or FSDP1 or DeepSpeed ZeRO-3.
    """
    _check_adapter(model, adapter_name)
    _refuse_launchers()
    experts = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, peft_layer.ParamWrapper) and _stem(module) in SIDES and adapter_name in module.lora_A
    }
    if not experts:
        raise ValueError(
            f"The adapter {shown(adapter_name)} adapts no routed experts, which would share a side; "
            'give its LoraConfig **lora_targets("all+experts").'
        )
    made = {name: _shared(name, module, adapter_name) for name, module in experts.items()}
    for name, module in experts.items():
        getattr(module, SIDES[_stem(module)])[adapter_name] = made[name]
    return model


class SharedSide(nn.Module):
    """In the place of the linear layer that PEFT makes for one side of an adapter of `experts` experts.

    Its parameter `shared` is that side of one expert: A `[r, in]`, or B `[out, r]`.
    """

    bias = None

    def __init__(self, shared: nn.Parameter, experts: int, side: str) -> None:
        super().__init__()
        self.shared, self.experts, self.side = shared, experts, side

    @property
    def weight(self) -> torch.Tensor:
        """As PEFT lays it out: A `[experts * r, in]` by expert, B `[out, r * experts]` by rank first."""
        if self.side == "lora_A":
            return _cut_across(self.shared).expand(self.experts, -1, -1).flatten(0, 1)
        return self.shared.unsqueeze(-1).expand(-1, -1, self.experts).flatten(1, 2)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As PEFT's layer does, so that others read it."""
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *args: Any
    ) -> None:
        """One expert's side of the weight that is loaded; the others have to be equal."""
        if f"{prefix}shared" in state_dict:
            raise ValueError(
                "torch's set_model_state_dict does not load adapters that share a side, since it looks for parameters "
                "by their own names; load them with PEFT's set_peft_model_state_dict."
            )
        if (weight := state_dict.pop(f"{prefix}weight", None)) is not None:
            state_dict[f"{prefix}shared"] = _cut_as(self.shared, self._one(f"{prefix}weight", weight))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        missing[:] = [f"{prefix}weight" if name == f"{prefix}shared" else name for name in missing]

    def _one(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        if whole.ndim != 2 or whole.shape[self.side == "lora_B"] % self.experts:
            return whole  # torch names the shapes
        each = by_expert(whole, self.experts, self.side)
        if not _alike(each):
            raise ValueError(
                f"{name} differs between experts, and share_expert_ranks made it one for all of them. Load the "
                "adapter without share_expert_ranks, or one that was trained with it."
            )
        return each[0]

    def extra_repr(self) -> str:
        """Shapes."""
        return f"shared={tuple(self.shared.shape)}, experts={self.experts}"


def _shared(name: str, module: peft_layer.ParamWrapper, adapter: str) -> nn.Module:
    """What takes the place of one side of this adapter of a stack of experts."""
    side = SIDES[_stem(module)]
    layer: Any = module.lora_A[adapter]
    other: Any = module.lora_B[adapter]
    if side == "lora_B":
        layer, other = other, layer
    if isinstance(layer, SharedSide) or module.num_experts == 1:
        return layer
    weight = layer.weight
    if hasattr(weight, "full_tensor"):
        raise ValueError("FSDP has already cut this adapter; call share_expert_ranks before the model is given to it.")
    each = by_expert(weight.detach(), module.num_experts, side)
    if not _alike(each) and other.weight.any():  # where that is zero, so is the product with any of them
        raise ValueError(
            f"The experts' {side} of {_stem(module)} in {name} differ, and what was trained for each expert cannot be "
            "shared. Call share_expert_ranks right after get_peft_model, with init_lora_weights=True, or train this "
            "adapter as it is."
        )
    shared = nn.Parameter(each[0].clone(), requires_grad=weight.requires_grad)
    return SharedSide(shared, module.num_experts, side).train(layer.training)


def by_expert(weight: torch.Tensor, experts: int, side: str) -> torch.Tensor:
    """A weight as PEFT lays it out, as `[experts, r, in]` or `[experts, out, r]`."""
    if side == "lora_A":
        return weight.unflatten(0, (experts, -1))
    return weight.unflatten(1, (-1, experts)).movedim(2, 0)


def _alike(each: torch.Tensor) -> bool:
    """Whether all experts' matrices are equal; nobody knows on the meta device."""
    return each.is_meta or torch.equal(each, each[:1].expand_as(each))


def _cut_across(matrix: torch.Tensor) -> torch.Tensor:
    """By columns and not by rows where FSDP2 cuts it, since rows that are repeated would no longer be one part."""
    if not hasattr(matrix, "full_tensor"):
        return matrix
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(matrix, DTensor)
    return matrix.redistribute(placements=[Shard(1) if cut.is_shard() else cut for cut in matrix.placements])


def _cut_as(held: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Cut over processes where the parameter that it is loaded into is."""
    if not hasattr(held, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor  # some builds of torch have none

    assert isinstance(held, DTensor)
    return distribute_tensor(whole, held.device_mesh, held.placements)


def _stem(module: peft_layer.ParamWrapper) -> str:
    return module.parameter_name.removesuffix("_packed")


def _check_adapter(model: nn.Module, adapter: str) -> None:
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if adapter not in configs:
        known = ", ".join(configs) or "none: call get_peft_model first"
        raise ValueError(f"The model has no adapter {shown(adapter)}; it has {known}.")
    if (kind := configs[adapter].peft_type) != PeftType.LORA:
        raise ValueError(f"The adapter {shown(adapter)} is of PEFT's kind {kind.value}; only LORA has sides to share.")


def _refuse_launchers() -> None:
    """Both save parameters under their own names and shapes, and would write files that no one reads."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if is_deepspeed_zero3_enabled() or (asked and os.environ.get("FSDP_VERSION") == "1"):
        raise ValueError(
            "share_expert_ranks does not work with FSDP1 and DeepSpeed ZeRO-3, which save parameters as they are held; "
            "train with DDP or FSDP2 (fsdp_version: 2 in the configuration of accelerate)."
        )
    if asked and os.environ.get("FSDP_STATE_DICT_TYPE") == "FULL_STATE_DICT":
        logger.warning(
            "With fsdp_state_dict_type: FULL_STATE_DICT, adapters that share a side are trained and saved, but such a "
            "run cannot be resumed from its checkpoints; SHARDED_STATE_DICT can be."
        )
