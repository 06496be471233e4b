"""Loading of quantized checkpoints: modules that hold weights as stored take the place of plain ones, or weights are
expanded while loading.

How a weight is stored is read from the headers of the files; every scale is accounted for, and one that is missing or
misshapen is an error by name. Must not know: how products are computed.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from safetensors import safe_open
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

from .loading_layouts import refuse_other_layouts
from .loading_names import published_names
from .moe import Small4Experts
from .stored_config import METHOD, Small4StoredConfig, refuse_unknown
from .stored_layers import (
    CODES,
    INPUT_SCALES,
    SCALES,
    Part,
    Small4StoredExperts,
    Small4StoredLinear,
    StoredModule,
    expanded,
)
from .stored_weights import BLOCK, GROUP

logger = logging.get_logger(__name__)

FUSED = ("gate_up_proj", "down_proj")
_DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32,
}  # fmt: skip
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
Shape = tuple[int, ...]


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

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse by name what is not read."""
        if self.pre_quantized:
            refuse_unknown(self.quantization_config)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self.pre_quantized or self.quantization_config.dequantize:
            return model
        files = kwargs.get("checkpoint_files")
        if not files or not all(file.endswith(".safetensors") for file in files):
            raise ValueError(
                "Quantized weights are read from safetensors files; name a checkpoint folder that holds them."
            )
        refuse_other_layouts(files, model.config._name_or_path)
        if not hold(model, read_headers(files)):
            raise ValueError(
                "config.json has a quantization_config, but none of the model's weights is stored as quantized."
            )
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, StoredModule):
                for name, parameter in module.named_parameters():
                    parameter.requires_grad_(name == "bias")
        if not self.pre_quantized:  # `dequantize` asked for of a checkpoint that is not quantized
            self.remove_quantization_config(model)
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return expand(model, dtype or model.dtype)

    def is_serializable(self) -> bool:
        """What is held is what is saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Stored weights are not trained themselves, adapters beside them are."""
        return True


def computes_fp8(config: Small4StoredConfig) -> bool:
    """Whether transformers' FP8 modules are used instead: the GPU has instructions for it, and the package of their
    kernels is here.
    """
    if config.method != "fp8" or config.dequantize or not torch.cuda.is_available() or not is_kernels_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 9)


def read_headers(files: list[str]) -> dict[str, Part]:
    """Every tensor of the files by our name, of the dtypes that matter here; nothing but headers is read."""
    renamings, found = published_names(), {}
    for file in files:
        with safe_open(file, framework="pt", backend="pread") as opened:
            for name in opened.keys():  # noqa: SIM118
                header = opened.get_slice(name)
                if header.get_dtype() in _DTYPES:
                    part = Part(tuple(header.get_shape()), _DTYPES[header.get_dtype()])
                    found[apply_renamings(name, renamings)] = part
    return found


def hold(model: nn.Module, stored: Mapping[str, Part]) -> int:
    """Put modules for stored weights, without values yet, where `stored` has codes. Returns how many there are.

    Raises:
        ValueError: A scale is missing, or a tensor has a shape or dtype that no form has.
    """
    count = 0
    for path, module in list(model.named_modules()):
        made: StoredModule | None = None
        if isinstance(module, nn.Linear):
            parts = _found(stored, path, "weight", tuple(module.weight.shape), 1)
            if parts:
                made = Small4StoredLinear(module.in_features, module.out_features, parts, module.bias)
        elif isinstance(module, Small4Experts):
            each = {
                stem: _found(stored, path, stem, tuple(getattr(module, stem).shape), 2 - n)
                for n, stem in enumerate(FUSED)
            }
            if any(each.values()) and not all(each.values()):
                raise ValueError(
                    f"{path}: one of {' and '.join(FUSED)} is quantized, the other is not; both or neither can be held."
                )
            if all(each.values()):
                made = Small4StoredExperts(module.num_experts, module.act_fn, each[FUSED[0]] | each[FUSED[1]])
        if made is not None:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
            count += 1
    return count


def _found(stored: Mapping[str, Part], path: str, stem: str, shape: Shape, halves: int) -> dict[str, Part]:
    """The stored tensors of one weight by their names in its module; empty if it is not quantized."""
    for prefix in (f"{path}.", f"model.{path}.", f"{path.removeprefix('model.')}."):
        ends = {end: stored[prefix + stem + end] for end in CODES + SCALES if prefix + stem + end in stored}
        plain = "_packed" not in ends and ends.get("", Part((), torch.bfloat16)).dtype != torch.float8_e4m3fn
        if not ends or plain:
            continue
        _check(path, stem, ends, shape, halves)
        begin = "" if stem == "weight" else f"{stem}_"
        inputs = {
            begin + name: stored[prefix + begin + name] for name in INPUT_SCALES if prefix + begin + name in stored
        }
        return {stem + end: part for end, part in ends.items()} | inputs
    return {}


def _check(path: str, stem: str, parts: Mapping[str, Part], shape: Shape, halves: int) -> None:
    """Raise ValueError unless the tensors are exactly those of one form, in shapes and dtypes."""
    *experts, rows, columns = shape
    forms = {"": _fp8, "_packed": _nvfp4 if parts.get("_packed", Part((), torch.int32)).dtype == torch.uint8 else _int4}
    wanted = forms["" if "" in parts else "_packed"](tuple(experts), rows // halves, columns, halves)
    for end, (shapes, dtypes, optional) in wanted.items():
        name = f"{path}.{stem}{end}"
        if end not in parts:
            if optional:
                continue
            raise ValueError(
                f"{name} is missing, without which {path}.{stem}{'' if '' in parts else '_packed'} has no value."
            )
        part = parts[end]
        if part.shape not in shapes or part.dtype not in dtypes:
            allowed = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(
                f"{name} is {_word(part.dtype)} {list(part.shape)}; it must be {' or '.join(map(_word, dtypes))} "
                f"{allowed}."
            )
    if extra := parts.keys() - wanted.keys():
        raise ValueError(f"{path}.{stem}{min(extra)} does not belong to weights that are stored so.")


_Wanted = dict[str, tuple[list[Shape], tuple[torch.dtype, ...], bool]]


def _fp8(experts: Shape, rows: int, columns: int, halves: int) -> _Wanted:
    blocks = (halves * ceil(rows / BLOCK), ceil(columns / BLOCK))
    scales = [(*experts, 1, 1), (*experts, halves, 1), (*experts, halves * rows, 1), (*experts, *blocks)]
    scales += [] if experts else [(), (1,)]
    return {
        "": ([(*experts, halves * rows, columns)], (torch.float8_e4m3fn,), False),
        "_scale_inv": (scales, _FLOATS, False),
    }


def _nvfp4(experts: Shape, rows: int, columns: int, halves: int) -> _Wanted:
    whole = (*experts, halves * rows)
    return {
        "_packed": ([(*whole, columns // 2)], (torch.uint8,), False),
        "_scale": ([(*whole, columns // GROUP)] if columns % GROUP == 0 else [], (torch.float8_e4m3fn,), False),
        "_global_scale": ([(*experts, halves)] if experts else [(), (1,)], _FLOATS, False),
    }


def _int4(experts: Shape, rows: int, columns: int, halves: int) -> _Wanted:
    whole, groups = (*experts, halves * rows), [n for n in range(1, columns + 1) if columns % n == 0]
    return {
        "_packed": ([(*whole, columns // 8)] if columns % 8 == 0 else [], (torch.int32,), False),
        "_scale": ([(*whole, n) for n in groups], _FLOATS, False),
        "_zero_point": ([(*experts, halves * ceil(rows / 8), n) for n in groups], (torch.int32,), True),
    }


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        _check(path, name, ends, tuple(parameter.shape), halves)
        return {full_layer_name: expanded({end: parts[end] for end in ends}, halves, parameter.dtype)}


def _single(tensors: Any) -> torch.Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors


def expand(model: Any, dtype: torch.dtype) -> Any:
    """Put plain modules with the expanded weights in place of those that hold stored ones."""
    for path, module in list(model.named_modules()):
        if not isinstance(module, StoredModule):
            continue
        with torch.device("meta"):
            plain: nn.Module = (
                nn.Linear(module.in_features, module.out_features, bias=False)
                if isinstance(module, Small4StoredLinear)
                else Small4Experts(model.config.get_text_config())
            )
        for name in plain._parameters.keys() - {"bias"}:
            plain.register_parameter(name, nn.Parameter(module.numbers(name, dtype)))
        if isinstance(module, Small4StoredLinear):
            plain.register_parameter("bias", module.bias)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)
    return model
