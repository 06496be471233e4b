"""Loading of quantized checkpoints: modules that hold weights as stored take the place of plain ones, or weights are
expanded while loading.

How a weight is stored is read from the headers of the files; every scale is accounted for, and one that is missing or
misshapen is an error by name. Must not know: how products are computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter, apply_renamings
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.utils import is_kernels_available, logging
from transformers.utils.quantization_config import FineGrainedFP8Config

from .configuration_small4 import Small4TextConfig
from .loading_cuts import refuse_zero3
from .loading_layouts import refuse_other_layouts
from .loading_names import published_names
from .loading_unfused import DTYPES, Tensor, tensors_of
from .moe import Small4Experts
from .stored_checks import Shape, check_inputs, check_parts, wrong_scales
from .stored_config import METHOD, Small4StoredConfig, refuse_unknown
from .stored_experts import Small4StoredExperts
from .stored_layers import CODES, INPUT_SCALES, SCALES, Part, Small4StoredLinear, StoredModule, expanded

logger = logging.get_logger(__name__)

FUSED = ("gate_up_proj", "down_proj")
_PLAIN = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def register() -> None:
    """Make this way of loading known to transformers, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(Small4StoredQuantizer)
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(Small4StoredConfig)


class Small4StoredQuantizer(HfQuantizer):
    """transformers' hook into loading. FP8 on a GPU that computes in it is left to transformers' own, if its kernels
    are installed.
    """

    requires_calibration = False
    quantization_config: Small4StoredConfig

    def __new__(cls, quantization_config: Small4StoredConfig | None = None, **kwargs: Any) -> Any:
        if quantization_config is not None and computes_fp8(quantization_config):
            return FineGrainedFP8HfQuantizer(FineGrainedFP8Config(**quantization_config.entry), **kwargs)
        return super().__new__(cls)

    def __init__(self, quantization_config: Small4StoredConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.wrong_scales: list[str] = []  # found while loading, where transformers would make a report of an error
        self.held: list[str] = []  # the modules that hold stored weights after loading

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse by name what is not read, or not held."""
        if self.pre_quantized:
            refuse_unknown(self.quantization_config)
            if not self.quantization_config.dequantize:
                refuse_zero3()

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self.pre_quantized:
            return model
        files = kwargs.get("checkpoint_files")
        if not files or not all(file.endswith(".safetensors") for file in files):
            raise ValueError(
                "Quantized weights are read from safetensors files; name a checkpoint folder that holds them."
            )
        refuse_other_layouts(files, model.config._name_or_path)
        with about(model.config._name_or_path):
            stored = parts_of(tensors_of(files)[0])
            _check_integers(stored, self.quantization_config.integers())
            taken = hold(model, stored, in_place=not self.quantization_config.dequantize)
            _refuse_leftovers(model, stored, taken)
            if not taken:
                raise ValueError(
                    "config.json has a quantization_config, but none of the model's weights is stored as quantized."
                )
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        with about(model.config._name_or_path):
            for path, module in model.named_modules():
                if isinstance(module, StoredModule):
                    self.held.append(path)
                    self.wrong_scales += wrong_scales(path, module._parameters)
                    for name, parameter in module.named_parameters():
                        parameter.requires_grad_(name == "bias")
            if self.wrong_scales:
                raise ValueError(self.wrong_scales[0])
        if self.quantization_config.entry.get("kv_cache_scheme"):
            self.quantization_config.entry["kv_cache_scheme"] = None  # its scales are not held
        if not self.pre_quantized:  # `dequantize` asked for of a checkpoint that is not quantized
            self.remove_quantization_config(model)
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return expand(model, dtype or model.dtype)

    def announce(self, model: Any) -> None:
        """Let the configuration say what is still held, before it is saved: merging adapters expands weights."""
        modules = dict(model.named_modules())
        expanded_since = [path for path in self.held if not _holds(modules[path])]
        if expanded_since and len(expanded_since) == len(self.held):
            self.remove_quantization_config(model)
        elif expanded_since:
            model.config.quantization_config = self.quantization_config.without(expanded_since)

    def is_serializable(self) -> bool:
        """What is held is what is saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Stored weights are not trained themselves, adapters beside them are."""
        return True


def _holds(module: Any) -> bool:
    """Whether weights are held in a module, or under an adapter around it."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return isinstance(module, StoredModule)


def computes_fp8(config: Small4StoredConfig) -> bool:
    """Whether transformers' FP8 modules are used instead: the GPU has instructions for it, and the package of their
    kernels is here.
    """
    if config.method != "fp8" or config.dequantize or not torch.cuda.is_available() or not is_kernels_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 9)


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Shape and dtype of every tensor by our name."""
    return {
        name: Part(tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()]) for name, tensor in _ours(tensors).items()
    }


def _ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By our names. Raises ValueError if a tensor is there under two spellings of one name."""
    renamings, out = published_names(), {}
    for name, tensor in tensors.items():
        ours = apply_renamings(name, renamings)
        if ours in out:
            raise ValueError(f"{ours} is in the checkpoint under two names, {name} and another spelling of it.")
        out[ours] = tensor
    return out


def _check_integers(stored: Mapping[str, Part], announced: list[dict[str, Any]]) -> None:
    """Raise ValueError for packed integers without the tensors that the configuration promises for all of them."""
    promises = {
        "_zero_point": "symmetric: false" if announced and all(w.get("symmetric") is False for w in announced) else "",
        "_g_idx": "actorder: group" if announced and all(w.get("actorder") == "group" for w in announced) else "",
    }
    for name, part in stored.items():
        stem = name.removesuffix("_packed")
        if stem == name or part.dtype != torch.int32:
            continue
        for end, says in promises.items():
            if says and stem + end not in stored:
                raise ValueError(f"{stem}{end} is missing, but quantization_config says {says!r}.")


def hold(model: nn.Module, stored: Mapping[str, Part], in_place: bool = True) -> set[str]:
    """Put modules for stored weights, without values yet, where `stored` has codes. Returns the names of the tensors
    that they take.

    in_place: False only checks.

    Raises:
        ValueError: A scale is missing, or a tensor has a shape or dtype that no form has.
    """
    taken: set[str] = set()
    for path, module in list(model.named_modules()):
        made: StoredModule | None = None
        if isinstance(module, nn.Linear):
            parts, names = _found(stored, path, "weight", tuple(module.weight.shape), 1)
            if parts:
                made = Small4StoredLinear(module.in_features, module.out_features, parts, module.bias)
        elif isinstance(module, Small4Experts):
            each = [_found(stored, path, s, tuple(getattr(module, s).shape), 2 - n) for n, s in enumerate(FUSED)]
            if any(parts for parts, _ in each) and not all(parts for parts, _ in each):
                raise ValueError(
                    f"{path}: one of {' and '.join(FUSED)} is quantized, the other is not; both or neither can be "
                    "held. small4 convert SRC DST --dtype bfloat16 expands them."
                )
            parts, names = each[0][0] | each[1][0], each[0][1] | each[1][1]
            if parts:
                made = Small4StoredExperts(module.num_experts, module.act_fn, parts)
        if made is None:
            continue
        taken |= names
        if in_place:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
    return taken


def _refuse_leftovers(model: Any, stored: Mapping[str, Part], taken: set[str]) -> None:
    """Raise ValueError for codes and scales that no weight has taken, and for a head that is tied and has codes."""
    ends = ("_packed", *SCALES, *INPUT_SCALES)
    for name, part in stored.items():
        if name.startswith("lm_head.") and name in taken and model.config.tie_word_embeddings:
            raise ValueError(f"{name}: the head is quantized, but config.json ties it to the embeddings.")
        if name in taken or (name.startswith("lm_head.") and not hasattr(model, "lm_head")):
            continue
        if name.endswith(ends) or part.dtype not in _PLAIN:
            raise ValueError(
                f"{name} is {str(part.dtype).removeprefix('torch.')} {list(part.shape)} and belongs to no weight that "
                "can be held; small4 convert SRC DST expands what it reads."
            )


def _found(
    stored: Mapping[str, Part], path: str, stem: str, shape: Shape, halves: int
) -> tuple[dict[str, Part], set[str]]:
    """The stored tensors of one weight by their names in its module, and their names in `stored`; empty if it is not
    quantized.
    """
    for prefix in (f"{path}.", f"model.{path}.", f"{path.removeprefix('model.')}."):
        ends = {end: stored[prefix + stem + end] for end in CODES + SCALES if prefix + stem + end in stored}
        plain = "_packed" not in ends and ends.get("", Part((), torch.bfloat16)).dtype != torch.float8_e4m3fn
        if not ends or plain:
            continue
        if (order := f"{prefix}{stem}_g_idx") in stored:
            raise ValueError(
                f"{order}: the columns are in another order, in which they cannot be held; small4 convert SRC DST "
                "expands them."
            )
        check_parts(path, stem, ends, shape, halves)
        begin = "" if stem == "weight" else f"{stem}_"
        inputs = {
            begin + name: stored[prefix + begin + name] for name in INPUT_SCALES if prefix + begin + name in stored
        }
        check_inputs(path, inputs, shape, halves)
        parts = {stem + end: part for end, part in ends.items()} | inputs
        return parts, {prefix + name for name in parts}
    return {}, set()


@contextmanager
def about(folder: str) -> Iterator[None]:
    """Let a ValueError begin with the checkpoint's name, and commands in it be those for this checkpoint."""
    try:
        yield
    except ValueError as error:
        text = str(error).replace("convert SRC", f"convert {folder}")
        raise ValueError(text if text.startswith(f"{folder}: ") else f"{folder}: {text}") from error


def refuse_codes(model: Any, tensors: Mapping[str, Tensor], quantizer: HfQuantizer | None) -> None:
    """Raise ValueError for codes in a checkpoint that is said not to be quantized: they would be cast as if they were
    numbers.
    """
    if quantizer is not None and quantizer.pre_quantized:
        return
    wanted = model.state_dict()
    for name, tensor in _ours(tensors).items():
        dtype = DTYPES[tensor.get_dtype()]
        places = [wanted[n] for n in (name, f"model.{name}", name.removeprefix("model.")) if n in wanted]
        if dtype not in _PLAIN and all(place.dtype != dtype for place in places):
            raise ValueError(
                f"{name} is {tensor.get_dtype()}, codes of a quantized weight, but config.json has no "
                "quantization_config; take the one that belongs to these files."
            )


def expanders(quantizer: HfQuantizer) -> list[WeightConverter]:
    """Stored weights to plain weights while loading. Fused experts first: the general pattern would match their scales
    too.
    """
    ends = [*CODES, *SCALES]
    out = []
    for name in FUSED:
        sources = [rf"\.experts\.{name}{end}" for end in ends + [f"_{scale}" for scale in INPUT_SCALES]]
        out.append(WeightConverter(sources, rf"\.experts\.{name}", [Expand(quantizer)]))
    out.append(WeightConverter([f"weight{end}" for end in ends] + list(INPUT_SCALES), "weight", [Expand(quantizer)]))
    return out


class Expand(ConversionOps):
    """Codes times scales, rounded to bfloat16 once, then in the parameter's dtype; plain weights are cast only.

    The bfloat16 step is what the release's engines compute with, so float32 models give the same numbers.
    `hf_quantizer` tells transformers to hand the tensors over as they are stored.
    """

    def __init__(self, hf_quantizer: HfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Expand":
        """transformers copies a converter for every tensor; this one has no state of its own."""
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """One parameter: `{pattern: [tensor]}` to `{full name: tensor}`. Raises ValueError for codes without a
        scale.
        """
        parameter = model.get_parameter_or_buffer(full_layer_name)
        path, _, name = full_layer_name.rpartition(".")
        parts = {pattern.rpartition(name)[2]: _single(tensors) for pattern, tensors in input_dict.items()}
        if "" in parts and parts[""].dtype != torch.float8_e4m3fn:
            return {full_layer_name: parts[""].to(parameter.dtype)}
        ends = {end: Part(tuple(tensor.shape), tensor.dtype) for end, tensor in parts.items() if end in CODES + SCALES}
        halves = 2 if name == "gate_up_proj" else 1
        check_parts(path, name, ends, tuple(parameter.shape), halves)
        self.hf_quantizer.wrong_scales += wrong_scales(path, {name + end: parts[end] for end in ends})
        return {full_layer_name: expanded({end: parts[end] for end in ends}, halves, parameter.dtype)}


def _single(tensors: Any) -> torch.Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors


def expand(model: Any, dtype: torch.dtype) -> Any:
    """Put plain modules with the expanded weights in place of those that hold stored ones."""
    for path, module in list(model.named_modules()):
        if isinstance(module, StoredModule):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, expanded_module(module, model.config.get_text_config(), dtype))
    return model


def expanded_module(module: StoredModule, text_config: Small4TextConfig, dtype: torch.dtype) -> nn.Module:
    """A plain module with the expanded weights of one that holds stored ones."""
    with torch.device("meta"):
        plain: nn.Module = (
            nn.Linear(module.in_features, module.out_features, bias=False)
            if isinstance(module, Small4StoredLinear)
            else Small4Experts(text_config)
        )
    for name in plain._parameters.keys() - {"bias"}:
        plain.register_parameter(name, nn.Parameter(module.numbers(name, dtype)))
    if isinstance(module, Small4StoredLinear):
        plain.register_parameter("bias", module.bias)
    return plain
