"""Which settings of LoRA fit weights that are held as stored: names that PEFT finds there, and what is refused.

A configuration is changed so that it finds codes as it would find plain weights, and is saved as if it had not been.
Imports PEFT (extra `train`). Must not know: adapter layers, processes.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from peft import LoraConfig, PeftType
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ..stored_layers import Small4StoredLinear, StoredModule
from .lora import EXPERTS

STEMS = ["weight", *(name.rpartition(".")[2] for name in EXPERTS)]
ALL_LINEAR = "all-linear"
INITIAL = (True, False, "gaussian", "eva")  # PEFT needs no weight for them
NEEDS_WEIGHTS = ("use_dora", "kasa_config", "velora_config", "use_bdlora")
Config = TypeVar("Config", bound=LoraConfig)


class StoredLoraConfig(LoraConfig):
    """A `LoraConfig` that also finds packed codes, and is saved as if it did not, for readers of plain weights."""

    def to_dict(self) -> dict[str, Any]:
        """What is written to `adapter_config.json`."""
        saved = super().to_dict()
        if saved["target_parameters"]:
            saved["target_parameters"] = [name for name in saved["target_parameters"] if not name.endswith("_packed")]
        for name in ("rank_pattern", "alpha_pattern"):
            saved[name] = {_as_given(key): value for key, value in saved[name].items()}
        return saved


def find_stored(config: LoraConfig, model: PreTrainedModel) -> None:
    """Let a configuration find stored weights by the names of plain ones: parameters, patterns, "all-linear"."""
    named = config.target_parameters
    if named:
        packed = [f"{name}_packed" for stem in STEMS for name in named if name.rpartition(".")[2] == stem]
        config.target_parameters = [*named, *(name for name in packed if name not in named)]
        config.rank_pattern = {_or_packed(key): value for key, value in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {_or_packed(key): value for key, value in (config.alpha_pattern or {}).items()}
        if type(config) is LoraConfig:
            config.__class__ = StoredLoraConfig
    if isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR:
        config.target_modules = _all_linear(model)


def _all_linear(model: PreTrainedModel) -> list[str]:
    """All linear layers but the output head, adapted ones by the name that they had before."""
    linear, head = nn.Linear | Small4StoredLinear | LoraLinear, model.get_output_embeddings()
    adapters = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    found = (name for name, module in model.named_modules() if isinstance(module, linear) and module is not head)
    return [name for name in found if not name.startswith(adapters)]


_BEGIN, _END = "(?:", ")(?:_packed)?"


def _or_packed(pattern: str) -> str:
    return _BEGIN + _as_given(pattern) + _END


def _as_given(pattern: str) -> str:
    changed = pattern.startswith(_BEGIN) and pattern.endswith(_END)
    return pattern.removeprefix(_BEGIN).removesuffix(_END) if changed else pattern


def refuse_settings(config: LoraConfig, model: PreTrainedModel) -> None:
    """Raise ValueError for settings that read or train the weights themselves, which are held as codes."""
    advice = "or load the model with dequantize=True."
    if config.peft_type != PeftType.LORA:
        raise ValueError(
            f"{type(config).__name__} does not fit weights that are held as stored; give LoraConfig, {advice}"
        )
    for name in NEEDS_WEIGHTS:
        if getattr(config, name, None):
            raise ValueError(
                f"{name} computes with the weights, which are held as stored; give use_rslora=True or nothing, {advice}"
            )
    if (given := config.init_lora_weights) not in INITIAL:
        allowed = ", ".join(map(repr, INITIAL))
        raise ValueError(
            f"init_lora_weights={given!r} computes with the weights, which are held as stored; give one of {allowed}, "
            f"{advice}"
        )
    if taken := _trained_whole(config.modules_to_save or (), model):
        raise ValueError(
            f"modules_to_save trains {taken} itself, whose weights are held as stored and are not trained. Adapt it "
            f"with target_modules or target_parameters, {advice}"
        )


def _trained_whole(names: Iterable[str], model: PreTrainedModel) -> str | None:
    """A module that PEFT would copy and train, and that holds stored weights."""
    for path, module in model.named_modules():
        if any(path.endswith(name) for name in names) and any(isinstance(m, StoredModule) for m in module.modules()):
            return path
    return None
