"""Loading a model whose routed experts are fetched as needed: modules without parameters take their places, all else is
loaded as usual.

Must not know: what is computed, which experts stay in memory.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import apply_renamings
from transformers.utils import logging

from .experts_files import LayerFiles, Stored, WatchedFile, folder_of, read_header
from .experts_memory import SPARE, affordable, free_memory
from .experts_offloaded import Disk, ExpertStore, Small4OffloadedExperts
from .experts_pool import Pool, Usage
from .experts_speed import measured_memory, seconds_per_token
from .loading_names import published_names
from .moe import Small4Experts
from .stored_config import METHOD
from .stored_layers import INPUT_SCALES, Small4StoredExperts

logger = logging.get_logger(__name__)
SAMPLE = 4  # experts that are read to measure the disk


@dataclass(frozen=True)
class Asked:
    """What a caller of `from_pretrained` said about experts. memory: bytes by tier; None: whole if they fit, else what
    there is room for.
    """

    memory: dict[str, int] | None


def offload_experts(
    model: PreTrainedModel, files: list[str] | None, load_config: Any, asked: Asked
) -> dict[str, Any] | None:
    """Put `Small4OffloadedExperts` into a model that has no weights yet.

    Returns:
        All other tensors of the files by name, each read when it is indexed; None if the experts are to be loaded as
        usual.

    Raises:
        ValueError: Experts cannot be offloaded from these files or into so little memory.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Small4Experts | Small4StoredExperts)
    }
    if reason := _obstacle(modules, files, load_config, asked):
        if asked.memory is None:
            return None
        raise ValueError(f"expert_memory cannot be used: {reason}.")
    assert files is not None
    if asked.memory is None and _fits(model, load_config.device_map):
        return None
    headers = {file: read_header(file) for file in files}
    ours = {apply_renamings(n, published_names()): (n, stored) for h in headers.values() for n, stored in h.items()}
    found = {path: _tensors(path, module, ours) for path, module in modules.items()}
    used = {name for tensors in found.values() for name, _ in tensors.values()}
    others = _others(model, modules)
    store = _store(found, modules, others, asked, model.config.get_text_config().num_experts_per_tok)
    for layer, (path, module) in enumerate(modules.items()):
        dtype = next(module.parameters()).dtype if isinstance(module, Small4Experts) else model.dtype
        parent, _, name = path.rpartition(".")
        made = Small4OffloadedExperts(store, layer, module.num_experts, module.act_fn, dtype)
        setattr(model.get_submodule(parent), name, made)
    if load_config.device_map:  # accelerate's, made for whole layers
        load_config.device_map.clear()
        load_config.device_map[""] = torch.device("cpu")
    chosen = model.config.get_text_config().num_experts_per_tok * len(modules)
    logger.warning(
        f"{store.describe()} They are read from {folder_of(files)} as needed: {_estimated(store, others, chosen)}."
    )
    return _Rest(files, used)


def _estimated(store: ExpertStore, others: int, chosen: int) -> str:
    """The estimated time of a token, from the current bandwidth of memory and disk. chosen: experts of a token in all
    layers.
    """
    layer, nbytes = store.layers[0], store.pool.memory.shape[1]
    slot, begin = torch.empty(nbytes, dtype=torch.uint8), time.perf_counter()
    read = sum(layer.read(expert, slot) for expert in range(min(SAMPLE, layer.count)))
    disk, host = read / (time.perf_counter() - begin), measured_memory()
    share = store.pool.count / sum(each.count for each in store.layers)
    seconds = seconds_per_token(others, chosen * nbytes, share, host, disk)
    return f"about {1 / seconds:.2g} tokens/s (memory {host / 1e9:.1f} GB/s, disk {disk / 1e9:.1f} GB/s)"


def _obstacle(modules: Mapping[str, nn.Module], files: list[str] | None, load_config: Any, asked: Asked) -> str | None:
    """Why experts of this model cannot be offloaded, or None."""
    quantizer = load_config.hf_quantizer
    config: Any = getattr(quantizer, "quantization_config", None)
    homes = {torch.device(home).type for home in (load_config.device_map or {}).values() if home != "disk"}
    if asked.memory is not None and ("gpu" in asked.memory or homes - {"cpu"}):
        return (
            "such experts are computed on the CPU so far; give main memory alone, {'cpu': '48GiB'}, and no other device"
        )
    if not modules:
        return "the model has no routed experts"
    if load_config.device_mesh is not None:
        return "the model is distributed over processes; leave distributed_config out"
    if not files or not all(file.endswith(".safetensors") for file in files):
        return "experts are read from safetensors files only"
    if quantizer is not None and (config.quant_method != METHOD or not quantizer.pre_quantized or config.dequantize):
        return "weights that are quantized or expanded while loading have to be loaded whole"
    return None


def _fits(model: PreTrainedModel, device_map: dict[str, Any] | None) -> bool:
    """Whether the model is to be loaded as usual: because it fits in main memory, or because part of it runs
    elsewhere.
    """
    homes = {str(home) for home in (device_map or {"": "cpu"}).values()}
    if homes - {"cpu", "disk"}:
        return True  # with an accelerator, accelerate moves whole layers: experts are computed on the CPU only
    return sum(p.numel() * p.element_size() for p in model.parameters()) + SPARE <= free_memory()


def _others(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> int:
    """Bytes of all weights but the experts'."""
    experts = {id(p) for module in modules.values() for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in experts)


def _tensors(path: str, module: nn.Module, ours: Mapping[str, tuple[str, Stored]]) -> dict[str, tuple[str, Stored]]:
    """The stored tensors of a layer's experts, by their names in the module."""
    out = {}
    for name, parameter in module.named_parameters():
        places = (f"{path}.{name}", f"model.{path}.{name}", f"{path.removeprefix('model.')}.{name}")
        place = next((place for place in places if place in ours), None)
        if place is None:
            raise ValueError(f"The checkpoint has no tensor {path}.{name}. Check that no file is incomplete.")
        out[name] = ours[place]
        if out[name][1].shape != tuple(parameter.shape):
            raise ValueError(
                f"{path}.{name} is {list(out[name][1].shape)} in the checkpoint, {list(parameter.shape)} in the model. "
                "Check that config.json belongs to these weights."
            )
    return out


def _store(
    found: Mapping[str, Mapping[str, tuple[str, Stored]]],
    modules: Mapping[str, Any],
    others: int,
    asked: Asked,
    top_k: int,
) -> ExpertStore:
    opened: dict[str, WatchedFile] = {}
    layers = [
        LayerFiles({name: stored for name, (_, stored) in tensors.items() if not name.endswith(INPUT_SCALES)}, opened)
        for tensors in found.values()
    ]
    experts = max(module.num_experts for module in modules.values())
    nbytes = max(layer.nbytes for layer in layers)
    least = top_k * nbytes
    limit = max(least, affordable(free_memory(), others)) if asked.memory is None else asked.memory.get("cpu", 0)
    count = min(limit // nbytes, sum(module.num_experts for module in modules.values()))
    if count < top_k:
        raise ValueError(
            f"{limit:,} bytes hold {count} experts of {nbytes:,} bytes, and one token needs {top_k} of them at a time; "
            f"give at least {least:,} bytes in expert_memory={{'cpu': ...}}."
        )
    usage, disk = Usage(len(layers), experts), Disk(layers)
    return ExpertStore(layers, disk, usage, Pool(count, nbytes, disk, usage, torch.device("cpu")))


def expert_store(model: nn.Module) -> ExpertStore | None:
    """The experts of a model that are read as they are needed; None if it holds them whole."""
    found = (module.store for module in model.modules() if isinstance(module, Small4OffloadedExperts))
    return next(found, None)


class _Rest(dict[str, Any]):
    """Tensors by their names in the files, except those of experts. Files are not mapped: a mapping counts as memory
    under `ulimit -d`.
    """

    def __init__(self, files: list[str], without: set[str]) -> None:
        super().__init__()
        self._opened = [safe_open(file, framework="pt", backend="pread") for file in files]
        for opened in self._opened:
            self.update({name: opened.get_slice(name) for name in opened.keys() if name not in without})  # noqa: SIM118
