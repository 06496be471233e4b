"""Loading that never guesses: a checkpoint whose tensors do not match the model is refused, with a list of the
differences.

transformers only warns and leaves missing weights random. This file knows names of tensors, not their meaning.
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import torch
from transformers import GenerationConfig
from transformers.core_model_loading import WeightConverter
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import FineGrainedFP8Config

from .experts_memory import parse_request
from .experts_offloaded import expert_store
from .files_reading import check_json, check_weights, folder_of, naming, read_json
from .files_saving import refuse_links, remove_manifest, without_index
from .loading_cuts import gathered, scalars_aside, with_stored
from .loading_experts import choose_experts_implementation
from .loading_fp8 import scale_spreaders
from .loading_layouts import refuse_other_layouts, refuse_unconverted
from .loading_names import published_names
from .loading_offloaded import Asked, begin, offload_experts
from .loading_stages import distribute
from .loading_stored import about, expanders, refuse_codes, register
from .loading_torchao import let_adapters_merge
from .loading_unfused import tensors_of
from .stored_config import METHOD, Small4StoredConfig
from .stored_layers import StoredModule

logger = logging.get_logger(__name__)

SHOWN, LETTERS = 4, 160
# What the current call of `from_pretrained` says about experts: transformers passes none of its arguments on to
# loading.
_asked: ContextVar[Asked | None] = ContextVar("small4_expert_memory", default=None)


class Small4LoadingMixin:
    """`from_pretrained` for all Small 4 models."""

    @classmethod
    def from_pretrained(
        cls,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        dequantize: bool = False,
        expert_memory: dict[str, str | int] | str | int | bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `from_pretrained`.

        A quantized checkpoint (FP8, NVFP4, 4-bit groups) is held as it is stored, on every device, and expanded piece
        by piece as it is computed with.

        Args:
            dequantize: Expand its weights to the model's dtype instead. Also meant by
                `quantization_config=FineGrainedFP8Config(dequantize=True)`.
            expert_memory: Keep the routed experts on disk and at most so much of them in memory, as `{"cpu": "48GiB"}`,
                or on one accelerator and in main memory, as `{"gpu": "18GiB", "cpu": "48GiB"}`; for inference only.
                There `"compute": "fastest"` lets the CPU compute experts in main memory where that is quicker than
                copying them; outputs are then not bit for bit those of the accelerator alone. None: only if the model
                does not fit and neither `device_map` (other than "auto") nor `max_memory` says what to do. False:
                never.

        Raises:
            ValueError: Tensors are missing from the checkpoint, have another shape than the model's (unless
                `ignore_mismatched_sizes`), or have no place in the model; or weights are quantized in a way that is not
                read; or a file is damaged, which is named.
        """
        register()
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        refuse_unconverted(source)
        if (folder := folder_of(source, kwargs.get("subfolder"))) is not None:
            if not (kwargs.get("config") is not None or os.path.lexists(folder / "adapter_config.json")):
                read_json(folder / "config.json")  # without one, transformers would take the default configuration
            check_json(folder, "config.json", "adapter_config.json")
            check_generation_config(folder / "generation_config.json")
            check_weights(folder, f"model.{kwargs['variant']}" if kwargs.get("variant") else "model")
        asked = kwargs.get("quantization_config")
        if dequantize or (isinstance(asked, FineGrainedFP8Config) and asked.dequantize):
            kwargs["quantization_config"] = Small4StoredConfig(dequantize=True)
        memory = _expert_memory(expert_memory, kwargs)
        if memory is not None and "gpu" in (memory.memory or {}):
            kwargs.setdefault("device_map", "auto")
        # Mismatched shapes are let through here, to be reported by name below.
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True} | kwargs
        token = _asked.set(memory)
        try:
            model, info = super().from_pretrained(*args, **options)  # type: ignore[misc]
        finally:
            _asked.reset(token)
        refuse_mismatch(model, info, ignore_mismatched_sizes)
        begin(model, fastest=memory is not None and memory.fastest)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers' `save_pretrained`. `auto_map` is written only with the code it names, quantization announced
        only where it is held. A manifest of former weights in the folder is removed.

        Raises:
            ValueError: The model does not hold its experts, or holds stored weights that FSDP has cut.
        """
        if expert_store(self) is not None:  # type: ignore[arg-type]
            raise ValueError(
                f"This model reads its experts from {self.config._name_or_path} as they are needed; copy that folder, "  # type: ignore[attr-defined]
                "or load the model whole to save it (expert_memory=False)."
            )
        refuse_links(save_directory)
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, StoredModule):
                module.hold_numbers()
        if not self.is_remote_code():  # type: ignore[attr-defined]
            self.config.auto_map = {}  # type: ignore[attr-defined]
        if _stored(self):
            self.hf_quantizer.announce(self)  # type: ignore[attr-defined]
        if getattr(self, "hf_quantizer", None) is None and hasattr(self.config, "quantization_config"):  # type: ignore[attr-defined]
            del self.config.quantization_config  # type: ignore[attr-defined]
        writes = args[0] if args else kwargs.get("is_main_process", True)
        with without_index(save_directory, kwargs.get("variant")) if writes else nullcontext():
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        remove_manifest(save_directory)

    def half(self) -> Self:
        """As `nn.Module.half`; stored weights stay as they are."""
        return self.to(torch.float16) if _stored(self) else super().half()  # type: ignore[attr-defined,misc]

    def float(self) -> Self:
        """As `nn.Module.float`; stored weights stay as they are."""
        return self.to(torch.float32) if _stored(self) else super().float()  # type: ignore[attr-defined,misc]

    @classmethod
    def maybe_distribute_model(
        cls, model: PreTrainedModel, distributed_config: object, mesh_manager: object
    ) -> PreTrainedModel:
        """transformers' cut of a model over processes, pipeline stages included.

        Raises:
            ValueError: A weight that is held as stored would have to be cut where scales, blocks or packed words do not
                end.
        """
        with scalars_aside(model, distributed_config):
            return distribute(super().maybe_distribute_model, model, distributed_config, mesh_manager)  # type: ignore[misc]

    def _resolve_parallel_plans(self, distributed_config: Any) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """transformers' plans for this model, with a rule for every tensor of a weight that is held as stored."""
        tensor, expert, data = super()._resolve_parallel_plans(distributed_config)  # type: ignore[misc]
        if _stored(self):
            tensor = with_stored(self, tensor, distributed_config.tp_size)  # type: ignore[arg-type]
            expert = with_stored(self, expert, distributed_config.ep_size)  # type: ignore[arg-type]
        return tensor, expert, data

    def gather_sharded_state_dict_for_save(
        self, model_to_save: PreTrainedModel, state_dict: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """transformers' collecting of what processes hold, for saving."""
        host = super().gather_sharded_state_dict_for_save  # type: ignore[misc]
        return gathered(lambda tensors: host(model_to_save, tensors, *args, **kwargs), state_dict)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: Mapping[str, Any] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """transformers' reading of the tensors, with the published names and stored forms added for this one load."""
        refuse_other_layouts(
            checkpoint_files, model.config._name_or_path, draft=model.config.model_type == "small4_eagle"
        )
        load_config.weight_mapping[:] = (
            published_names() + _converters(load_config.hf_quantizer) + load_config.weight_mapping
        )
        if state_dict is None and all(file.endswith(".safetensors") for file in checkpoint_files or ()):
            state_dict = _unfused(model, checkpoint_files or [], load_config, _asked.get())
        if (asked := _asked.get()) is not None and state_dict is None:
            with about(model.config._name_or_path):
                state_dict = offload_experts(model, checkpoint_files, load_config, asked)
        out = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        model._weight_conversions = []  # what is saved from now on are the model's own tensors under their own names
        choose_experts_implementation(model, load_config.hf_quantizer)
        let_adapters_merge(model, load_config.hf_quantizer)
        return out


def _unfused(model: PreTrainedModel, files: list[str], load_config: Any, asked: Asked | None) -> dict[str, Any] | None:
    """All tensors of the files by our names, where the files have other ones; each is read when it is indexed."""
    with about(model.config._name_or_path):
        tensors, changed, left_out = tensors_of(files)
        refuse_codes(model, tensors, load_config.hf_quantizer)
        if changed and asked is not None and asked.memory is not None:
            raise ValueError(
                "expert_memory cannot be used: the checkpoint has one tensor for each expert. Convert it first: "
                "small4 convert SRC DST"
            )
    if left_out:
        logger.warning(
            f"{model.config._name_or_path}: {len(left_out)} scales of keys and values in 8 bits are not used "
            f"({_listed(left_out)}): the KV cache of this model holds latents, to which they do not apply."
        )
    return dict(tensors) if changed else None


def _expert_memory(given: dict[str, str | int] | str | int | bool | None, kwargs: dict[str, Any]) -> Asked | None:
    """The `expert_memory` of `from_pretrained`; None: experts are loaded like all other weights."""
    if given is None or given is True:
        silent = kwargs.get("device_map") in (None, "auto") and kwargs.get("max_memory") is None
        return Asked(None) if silent else None
    return None if given is False else Asked(*parse_request(given))


def _stored(model: PreTrainedModel) -> bool:
    return getattr(model, "quantization_method", None) == METHOD


def _converters(quantizer: HfQuantizer | None) -> list[WeightConverter]:
    """How tensors are changed while they are loaded."""
    if quantizer is None or not quantizer.pre_quantized:
        return []
    method = quantizer.quantization_config.quant_method
    if method == METHOD:
        return expanders(quantizer) if quantizer.quantization_config.dequantize else []
    return scale_spreaders(quantizer) if method == "fp8" else []


def check_generation_config(file: Path) -> None:
    """Raise ValueError or OSError with the file's name for settings that would fail inside transformers, or that it
    would drop silently.
    """
    if file.exists():
        content = read_json(file)
        with naming(file):
            GenerationConfig.from_dict(content)


def refuse_mismatch(model: PreTrainedModel, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
    """Raise unless every tensor found its place. A new task head may start fresh, and a model without head ignores the
    head.
    """
    missing = sorted(info.get("missing_keys", ()))
    head = {name for name, _ in model.named_parameters() if name.startswith("score.")}
    if head and head <= set(missing):
        missing = [name for name in missing if name not in head]
    unexpected = sorted(info.get("unexpected_keys", ()))
    if head or not hasattr(model, "lm_head"):
        unexpected = [name for name in unexpected if name.split(".")[0] not in ("lm_head", "score")]
    shapes = [] if ignore_mismatched_sizes else sorted(info.get("mismatched_keys", ()))
    wrong = [f"{name} is {list(given)}, the model's is {list(wanted)}" for name, given, wanted in shapes]
    problems = {"missing": missing, "of another shape": wrong, "without a place in the model": unexpected}
    if any(problems.values()) and all(".lora_" in name for names in problems.values() for name in names):
        raise ValueError(
            f"The tensors of the adapter do not fit {type(model).__name__}; the base checkpoint does: "
            + "; ".join(f"{len(names)} {kind} ({_listed(names)})" for kind, names in problems.items() if names)
            + ". transformers does not load every kind of adapter (not DoRA's); load the base model, and then "
            "peft.PeftModel.from_pretrained(model, ADAPTER)."
        )
    if any(problems.values()):
        raise ValueError(
            f"{model.config._name_or_path or 'The checkpoint'} does not match {type(model).__name__}: "
            + "; ".join(f"{len(names)} tensors {kind} ({_listed(names)})" for kind, names in problems.items() if names)
            + ". Check that config.json belongs to these weights and that no file is incomplete."
        )


def _listed(names: list[str]) -> str:
    """At most `SHOWN` of the sorted names, fewer of long ones, from all over the list, so that each part of the model
    shows.
    """
    count = min(len(names), SHOWN)
    some = [names[index * len(names) // count] for index in range(count)]
    while len(some) > 1 and sum(map(len, some)) > LETTERS:
        some.pop()
    left = len(names) - len(some)
    return ", ".join(some) + (f" and {left} more" if left else "")
