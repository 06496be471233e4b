"""LoRA through PEFT on weights that are held as stored: FP8, NVFP4 and 4 bits.

PEFT asks a configuration for the adapter layers of modules that it does not know; `stored_lora` names ours there.
Adapters have the shapes, names and files that PEFT gives them on a plain base. Imports PEFT (extra `train`), so this
module is imported only on demand. Must not know: how stored weights are multiplied.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import layer as peft_layer
from torch import nn
from transformers import PreTrainedModel

from ..configuration_small4 import Small4TextConfig
from ..experts_offloaded import expert_store
from ..loading_cuts import refuse_zero3
from ..loading_stored import expanded_module
from ..stored_experts import LowRank, Small4StoredExperts, adapted
from ..stored_layers import Small4StoredLinear, StoredModule
from .lora import EXPERTS
from .shared_lora import SharedSide, by_expert
from .stored_lora_config import Config, find_stored, refuse_settings


def stored_lora(config: Config, model: PreTrainedModel | PeftModel) -> Config:
    """Prepare a `LoraConfig` for a model whose weights are held as stored. Changes and returns `config`.

        get_peft_model(model, stored_lora(LoraConfig(r=16, **lora_targets("all+experts")), model))
        PeftModel.from_pretrained(model, folder, config=stored_lora(LoraConfig.from_pretrained(folder), model))

    A model without such weights needs nothing of this, and it does no harm there. Adapters are then what PEFT trains
    and saves; they load on a bfloat16 base and the other way around. Merging expands the weights that are merged to the
    model's dtype; all others stay as they are held.

    In several processes (DDP, FSDP2, or a model that was loaded with `fsdp_size` and `ep_size`), call it in each of
    them as torchrun or `accelerate launch` starts it. Adapters of a model that was loaded in parts are whole in each.

    Raises:
        ValueError: Adapters other than LoRA; settings that read or train the weights themselves (DoRA, PiSSA and their
            like, `modules_to_save`); FSDP1 or DeepSpeed ZeRO-3; a model that was loaded with `tp_size` or
            `pp_size`; or adapters of routed experts that are read from disk.
    """
    if isinstance(model, PeftModel):
        model = cast(PreTrainedModel, model.get_base_model())
    _refuse_experts_on_disk(config, model)
    held = [module for module in model.modules() if isinstance(module, StoredModule)]
    if not held:
        return config
    refuse_settings(config, model)
    refuse_zero3()
    _refuse_fsdp1()
    _refuse_cut_layers(model)
    if getattr(model, "_tp_size", None) is not None:
        model._tp_size = None  # 1 here; PEFT would gather the whole base in each process to save what each has whole
    if _processes() > 1:
        for module in held:
            module.hold_bytes()
    text = model.config.get_text_config()
    layers: Any = {  # PEFT only calls them
        Small4StoredLinear: partial(StoredLoraLinear, text_config=text, dtype=model.dtype),
        Small4StoredExperts: partial(
            ParamWrapper, text_config=text, dtype=model.dtype, expert_rank=_expert_rank(model)
        ),
    }
    config._register_custom_module(layers)
    find_stored(config, model)
    return config


def _refuse_experts_on_disk(config: LoraConfig, model: PreTrainedModel) -> None:
    if getattr(config, "target_parameters", None) and expert_store(model) is not None:
        raise ValueError(
            "The adapter is for routed experts, and this model reads them from disk, where PEFT would leave that part "
            "of the adapter out; load the model with expert_memory=False, or merge the adapter into the checkpoint "
            "(merge_adapter)."
        )


def _refuse_fsdp1() -> None:
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and os.environ.get("FSDP_VERSION") == "1":
        raise ValueError(
            "FSDP1 cannot cut weights that are held as stored; set fsdp_version: 2 in the configuration of accelerate."
        )


def _refuse_cut_layers(model: PreTrainedModel) -> None:
    config = getattr(model.config, "distributed_config", None)
    for name in ("tp_size", "pp_size"):
        if (getattr(config, name, 1) or 1) > 1:
            raise ValueError(
                f"The model was loaded with {name}={getattr(config, name)}, which cuts layers that would be adapted; "
                "load it with fsdp_size, and ep_size to keep whole experts apart."
            )


def _expert_rank(model: PreTrainedModel) -> int:
    """Which of the equal parts of each layer's experts this process holds."""
    config = getattr(model.config, "distributed_config", None)
    if (getattr(config, "ep_size", 1) or 1) == 1:
        return 0
    mesh: Any = model._mesh_manager
    return mesh.get_mesh("ep").get_local_rank()


def _processes() -> int:
    """How many there are, also before they are connected."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE") or 1)


class _OnStored(peft_layer.LoraLayer):
    """What both adapter layers share. The base becomes a plain module once something is merged into it."""

    _text_config: Small4TextConfig
    _dtype: torch.dtype

    def _stored(self) -> StoredModule | None:
        base = self.get_base_layer()
        return base if isinstance(base, StoredModule) else None

    def _expand_base(self) -> None:
        """Put the expanded module, in the model's dtype, in place of the stored one."""
        if (stored := self._stored()) is None:
            return
        holder: peft_layer.LoraLayer = self
        while isinstance(holder.base_layer, peft_layer.LoraLayer):
            holder = holder.base_layer
        holder.base_layer = expanded_module(stored, self._text_config, self._dtype).requires_grad_(False)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's takes the dtype of the weight, which is one of codes here."""
        device = device or next(self.get_base_layer().parameters()).device
        for name in ("lora_A", "lora_B", "lora_magnitude_vector"):
            layers: Any = getattr(self, name)
            if adapter_name in layers and not any(p.is_meta for p in layers[adapter_name].parameters()):
                layers[adapter_name] = layers[adapter_name].to(device, dtype=self._dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Expand the base and merge into it."""
        self._expand_base()
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


class StoredLoraLinear(_OnStored, peft_layer.Linear):
    """PEFT's adapter of a linear layer. The base multiplies with its codes."""

    def __init__(
        self, base_layer: nn.Module, *args: Any, text_config: Small4TextConfig, dtype: torch.dtype, **kwargs: Any
    ) -> None:
        self._text_config, self._dtype = text_config, dtype
        super().__init__(base_layer, *args, **kwargs)

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features


class ParamWrapper(_OnStored, peft_layer.ParamWrapper):
    """PEFT's adapter of one stack of experts; it recognizes its class by this name.

    Where PEFT adds the adapters' product to the whole stack of weights, here each expert multiplies its tokens with its
    two thin matrices.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        *args: Any,
        text_config: Small4TextConfig,
        dtype: torch.dtype,
        expert_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        if kwargs["parameter_name"] is None:
            raise ValueError(
                "target_modules matches the routed experts, which are tensors of a module; name these in "
                f"target_parameters={EXPERTS}, as lora_targets('all+experts') does."
            )
        self._text_config, self._dtype, self._expert_rank = text_config, dtype, expert_rank
        self._stem = kwargs["parameter_name"].removesuffix("_packed")
        super().__init__(base_layer, *args, **kwargs)

    def get_param(self) -> torch.Tensor:
        """The plain parameter, or while it is held as stored something of its shape and of the model's dtype."""
        stored = self._stored()
        if stored is None:
            return getattr(self.get_base_layer(), self._stem)
        assert isinstance(stored, Small4StoredExperts)
        return torch.empty(stored.shape(self._stem), dtype=self._dtype, device="meta")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """See `_OnStored`. The expanded base has parameters of plain names only."""
        self.parameter_name = self._stem
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def get_delta_weight(self, adapter_name: str, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See PEFT's; only merging asks for it, which expands the base before."""
        assert self._stored() is None
        return super().get_delta_weight(adapter_name, *args, **kwargs)

    def forward(
        self, x: torch.Tensor, *args: Any, low_rank: Mapping[str, list[LowRank]] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """As PEFT's. low_rank: what wrappers around this one add, by the name of the weight."""
        if (stored := self._stored()) is None:
            return super().forward(x, *args, **kwargs)
        self._check_forward_args(x, *args, **kwargs)
        assert isinstance(stored, Small4StoredExperts)
        mine = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lora_A]
        added = {self._stem: [self._factors(name, x.dtype, stored.num_experts) for name in mine]} if mine else {}
        low_rank = {**(low_rank or {}), **added}
        if self.base_layer is not stored:
            return self.base_layer(x, *args, low_rank=low_rank, **kwargs)
        with adapted(low_rank):
            return self.base_layer(x, *args, **kwargs)

    def _factors(self, adapter: str, dtype: torch.dtype, count: int) -> LowRank:
        """Those of this process's `count` experts, in the dtype of the tokens, as PEFT takes that of the weight."""
        here = slice(self._expert_rank * count, (self._expert_rank + 1) * count)

        def factor(side: str) -> torch.Tensor | tuple[torch.Tensor, ...]:
            layer: Any = getattr(self, side)[adapter]
            if isinstance(layer, SharedSide):
                return layer.shared.to(dtype)
            return by_expert(layer.weight.to(dtype), self.num_experts, side)[here].contiguous().unbind()

        return LowRank(factor("lora_A"), factor("lora_B"), self.scaling[adapter])

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """See PEFT's, which returns the base it has seen before merging."""
        super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        return self.get_base_layer()
