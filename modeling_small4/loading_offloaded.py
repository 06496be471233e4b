"""Loading a model whose routed experts are fetched as needed: modules without parameters take their places, all else is
loaded as usual; then it is measured how fast that will be.

Must not know: what is computed, which experts stay in memory.
"""

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
from .experts_link import Link, link_to
from .experts_measuring import measured_rates, token_seconds
from .experts_memory import SPARE, affordable, free_memory
from .experts_offloaded import ExpertStore, Small4OffloadedExperts, expert_store
from .experts_pool import Pool, Usage
from .experts_profile import read_profile
from .experts_speed import WeightRates, rounded, seconds_per_token
from .experts_tiers import Disk, MainMemory
from .files_reading import one_line
from .loading_names import published_names
from .moe import Small4Experts
from .stored_config import METHOD
from .stored_experts import Small4StoredExperts
from .stored_layers import INPUT_SCALES

logger = logging.get_logger(__name__)
TRANSIT = 8  # slots in main memory through which experts pass on their way to an accelerator


@dataclass(frozen=True)
class Asked:
    """What a caller of `from_pretrained` said about experts. memory: bytes by tier; None: whole if they fit, else what
    there is room for. fastest: the CPU may compute those in main memory.
    """

    memory: dict[str, int] | None
    fastest: bool = False


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
    link = accelerator(load_config.device_map, asked)
    if asked.memory is None and _fits(model, load_config.device_map, link):
        return None
    headers = {file: read_header(file) for file in files}
    ours = {apply_renamings(n, published_names()): (n, stored) for h in headers.values() for n, stored in h.items()}
    found = {path: _tensors(path, module, ours) for path, module in modules.items()}
    used = {name for tensors in found.values() for name, _ in tensors.values()}
    others = _others(model, modules)
    store = _store(found, modules, others, asked, model.config.get_text_config().num_experts_per_tok, link)
    experts = max(module.num_experts for module in modules.values())
    store.profile = read_profile(folder_of(files), len(modules), experts)
    for layer, (path, module) in enumerate(modules.items()):
        dtype = next(module.parameters()).dtype if isinstance(module, Small4Experts) else model.dtype
        parent, _, name = path.rpartition(".")
        made = Small4OffloadedExperts(store, layer, module.num_experts, module.act_fn, dtype)
        setattr(model.get_submodule(parent), name, made)
    if load_config.device_map:  # accelerate's, made for whole layers
        load_config.device_map.clear()
        load_config.device_map[""] = store.pool.device
    return _Rest(files, used)


def begin(model: PreTrainedModel, fastest: bool) -> None:
    """After loading, if experts are read as they are needed: measure, say what is kept where and how fast a token is
    likely to be decoded, and let experts be read beside what comes.

    Args:
        model: All its other weights are there, its pools of experts still empty.
        fastest: As of `Asked`.

    Raises:
        OSError: An expert cannot be read.
    """
    store = expert_store(model)
    if store is None:
        return
    modules = [module for module in model.modules() if isinstance(module, Small4OffloadedExperts)]
    text = model.config.get_text_config()
    store.rates, filled = measured_rates(store, modules[0], text.hidden_size, text.num_experts_per_tok, fastest)
    chosen = text.num_experts_per_tok * len(modules)
    try:
        seconds = token_seconds(model, store, filled)
    except Exception as error:  # of any kind: whoever uses the model meets it again, and loading it does not need this
        said = f"how fast is not known, because no token could be timed ({one_line(error)})"
    else:
        store.others = max(0.0, seconds - chosen * store.pool.memory.shape[1] / store.rates.product)
        said = estimate(store, store.rates, store.others, chosen).said
    logger.warning(f"{store.describe()} They are read from {store.folder} as needed: {said}.")
    store.start()


@dataclass(frozen=True)
class Estimate:
    """Seconds of a decoded token, and the same in words with the bandwidths that say so."""

    seconds: float
    said: str


def estimate(store: ExpertStore, rates: WeightRates, others: float, chosen: int) -> Estimate:
    """How fast a token is likely to be decoded.

    Args:
        store: The experts of a model.
        rates: What was measured of it.
        others: Seconds of all that a token takes besides its experts.
        chosen: Experts of a token, in all layers.
    """
    hits = store.hit_rates()
    seconds = sum(seconds_per_token(others, chosen * store.pool.memory.shape[1], hits, rates).values())
    copied = "" if store.below is None else f"copied to {store.pool.device} {rounded(rates.link / 1e9)} GB/s, "
    copied += f"multiplied in main memory {rounded(rates.host / 1e9)} GB/s, " if rates.host else ""
    known = "by expert_profile.json" if store.profile else "assumed"
    return Estimate(
        seconds,
        f"about {rounded(1 / seconds)} tokens/s (all but experts {rounded(1e3 * others)} ms, experts multiplied "
        f"with a token {rounded(rates.product / 1e9)} GB/s, {copied}read from disk {rounded(rates.disk / 1e9)} GB/s; "
        f"{hits[0]:.0%} of the chosen experts in their place, {known})",
    )


def accelerator(device_map: dict[str, Any] | None, asked: Asked) -> Link | None:
    """The link to the accelerator that is to compute: the first one that `device_map` names; None: the CPU computes."""
    homes = [torch.device(home) for home in (device_map or {}).values() if home != "disk"]
    found = sorted({(home.type, home.index or 0) for home in homes if home.type != "cpu"})
    return link_to(torch.device(*found[0])) if found and (asked.memory is None or "gpu" in asked.memory) else None


def _obstacle(modules: Mapping[str, nn.Module], files: list[str] | None, load_config: Any, asked: Asked) -> str | None:
    """Why experts of this model cannot be offloaded, or None."""
    quantizer = load_config.hf_quantizer
    config: Any = getattr(quantizer, "quantization_config", None)
    homes = {torch.device(home).type for home in (load_config.device_map or {}).values() if home != "disk"}
    if asked.memory is not None and homes - {"cpu"} and "gpu" not in asked.memory:
        return (
            "device_map names an accelerator, but expert_memory does not; add 'gpu': '18GiB', or leave device_map out"
        )
    if asked.memory is not None and "gpu" in asked.memory and accelerator(load_config.device_map, asked) is None:
        return "it names 'gpu', and there is no CUDA, ROCm or XPU device here; give main memory alone, {'cpu': '48GiB'}"
    if not modules:
        return "the model has no routed experts"
    if load_config.device_mesh is not None:
        return "the model is distributed over processes; leave distributed_config out"
    if not files or not all(file.endswith(".safetensors") for file in files):
        return "experts are read from safetensors files only"
    if quantizer is not None and (config.quant_method != METHOD or not quantizer.pre_quantized or config.dequantize):
        return "weights that are quantized or expanded while loading have to be loaded whole"
    return None


def _fits(model: nn.Module, device_map: dict[str, Any] | None, link: Link | None) -> bool:
    """Whether the model is to be loaded as usual: because it fits in main memory, or because part of it runs
    elsewhere.
    """
    homes = {str(home) for home in (device_map or {"": "cpu"}).values()}
    if homes - {"cpu", "disk"}:
        return link is None or not homes & {"cpu", "disk"}  # accelerate would move whole layers
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
    link: Link | None,
) -> ExpertStore:
    opened: dict[str, WatchedFile] = {}
    layers = [
        LayerFiles({name: stored for name, (_, stored) in tensors.items() if not name.endswith(INPUT_SCALES)}, opened)
        for tensors in found.values()
    ]
    experts = max(module.num_experts for module in modules.values())
    nbytes, total = max(layer.nbytes for layer in layers), sum(module.num_experts for module in modules.values())
    usage, disk, given = Usage(len(layers), experts), Disk(layers), asked.memory or {}
    main = given.get("cpu", affordable(free_memory(), 0 if link else others))
    if link is None:
        count = _slots("cpu", main, nbytes, total, top_k, automatic=asked.memory is None)
        return ExpertStore(layers, disk, usage, Pool(count, nbytes, disk, usage, torch.device("cpu")))
    limit = given.get("gpu", affordable(link.free(), others))
    count = _slots("gpu", limit, nbytes, total, top_k, automatic=asked.memory is None)
    waiting = max(TRANSIT, min(main // nbytes, total - count + TRANSIT))
    if "cpu" in given:
        waiting = _slots("cpu", main, nbytes, waiting, 1, automatic=False)
    host = Pool(waiting, nbytes, disk, usage, torch.device("cpu"), pinned=link.device.type != "cpu")
    below = MainMemory(host, link)
    host.above = Pool(count, nbytes, below, usage, link.device, mark=link.mark)
    return ExpertStore(layers, disk, usage, host.above, below)


def _slots(tier: str, limit: int, nbytes: int, most: int, least: int, *, automatic: bool) -> int:
    """How many experts a tier of `limit` bytes holds, up to `most`."""
    if automatic and tier == "gpu":  # where memory that is not there is an error, see `Pool`
        return max(least, min(limit // nbytes, most))
    if automatic and limit // nbytes < least:  # where the process may be ended for it
        raise ValueError(
            f"Too little memory is left: a token needs {least} experts of {nbytes:,} bytes at a time, beside the other "
            f"weights and {SPARE:,} bytes for threads and buffers. Free memory, raise the limit of the process, or "
            f"say in expert_memory={{'cpu': ...}} how much experts may take all the same."
        )
    if limit // nbytes < least:
        raise ValueError(
            f"{limit:,} bytes hold {limit // nbytes} experts of {nbytes:,} bytes, and one token needs {least} of them "
            f"at a time; give at least {least * nbytes:,} bytes in expert_memory={{'{tier}': ...}}."
        )
    return min(limit // nbytes, most)


class _Rest(dict[str, Any]):
    """Tensors by their names in the files, except those of experts. Files are not mapped: a mapping counts as memory
    under `ulimit -d`.
    """

    def __init__(self, files: list[str], without: set[str]) -> None:
        super().__init__()
        self._opened = [safe_open(file, framework="pt", backend="pread") for file in files]
        for opened in self._opened:
            self.update({name: opened.get_slice(name) for name in opened.keys() if name not in without})  # noqa: SIM118
