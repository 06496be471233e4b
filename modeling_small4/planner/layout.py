"""What fits where: distributes a model's weights, latent cache and activations over a machine.

`plan(config, "2xH200", "fp8", context=262144)` answers; `small4 plan` prints it. The arithmetic is in `sizes`, the
machines in `hardware`, what to do if it does not fit in `alternatives`. Must not know: the command line, tensors.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

from ..configuration_small4 import Small4Config
from ..files_reading import shown
from .hardware import Device, Machine, parse_machine
from .sizes import LIBRARY_BYTES, LONG, PRECISIONS, Tensor, Work, activation_bytes, cache_bytes, expanded_bytes, tensors

CHUNK = 2048
LAYOUTS = ("auto", "device_map", "tensor", "expert")
WHOLE_LAYERS = ("int8",)  # what runs it, torchao, is not cut within a layer
_STEPS = 40  # how finely whole modules are balanced over GPUs


@dataclass(frozen=True)
class Request:
    """What has to fit. `context`: tokens per sequence, prompt and answer; `batch`: sequences at once; `chunk`: tokens
    read per forward pass; `images`: of the largest size, encoded at once; `cache_bits`: 16, or 8 for the quantized
    cache; `draft_bytes`: of a draft and its cache, which stands where the head is, or whole on each device.
    """

    precision: str = "fp8"
    context: int = 262144
    batch: int = 1
    chunk: int = CHUNK
    images: int = 1
    cache_bits: int = 16
    draft_bytes: int = 0


@dataclass(frozen=True)
class Load:
    """What one device holds, in bytes: weights by part, the cache, the largest activations and expanded weights.
    `streamed`: room for the largest module that is copied in from main memory or disk to be run.
    """

    device: Device
    weights: dict[str, int]
    cache: int = 0
    activations: int = 0
    streamed: int = 0

    @property
    def used(self) -> int:
        """All of it."""
        return sum(self.weights.values()) + self.cache + self.activations + self.streamed

    @property
    def free(self) -> int:
        """Usable bytes left; negative when it does not fit."""
        return self.device.usable - self.used


@dataclass(frozen=True)
class Plan:
    """An answer. `device_map`: for one process. `distributed`: arguments of
    transformers' `DistributedConfig`, for one process per GPU. `contexts`: how many sequences of the requested context
    fit at once.
    """

    machine: Machine
    request: Request
    layout: str
    loads: tuple[Load, ...]
    device_map: dict[str, int | str] | None = None
    distributed: dict[str, int] | None = None

    @property
    def fits(self) -> bool:
        """Whether every device has room for what it holds."""
        return all(load.free >= 0 for load in self.loads)

    @property
    def offloads(self) -> bool:
        """Whether some weights are kept in main memory or on disk and copied to a GPU when they are needed."""
        return any(load.streamed for load in self.loads)

    @property
    def contexts(self) -> int:
        """How many sequences of the requested context fit beside the weights while one of them is being read; 0 if not
        even one does.
        """
        if not self.fits:
            return 0
        one = [(load, load.cache // self.request.batch) for load in self.loads if load.cache]
        return min((load.free + load.cache) // each for load, each in one)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        devices = [
            {
                "device": load.device.name,
                "model": load.device.model,
                "capacity": load.device.capacity,
                "usable": load.device.usable,
            }
            | {"weights": load.weights, "cache": load.cache, "activations": load.activations, "streamed": load.streamed}
            | {"used": load.used, "free": load.free}
            for load in self.loads
        ]
        return {
            "machine": self.machine.name, "request": asdict(self.request), "fits": self.fits, "layout": self.layout,
            "contexts": self.contexts, "device_map": self.device_map, "distributed": self.distributed,
            "devices": devices,
        }  # fmt: skip


def plan(
    config: Small4Config, devices: str | Machine, precision: str = "fp8", *, layout: str = "auto", **asked: int
) -> Plan:
    """Distribute `Small4ForCausalLM(config)` over a machine.

    Args:
        config: A `Small4Config`; `Small4Config()` is the release.
        devices: `"4xH100"`, `"24GB+64GB-ram"`, ... (see `hardware.parse_machine`), or a `Machine`.
        precision: One of `sizes.PRECISIONS`. FP8, NVFP4 and 4 bits are held as stored on every device.
        layout: "device_map": whole layers on each device, one process. "tensor": heads and the width of each expert are
            cut; "expert": heads are cut and each rank has some experts; one process per GPU. "auto": "tensor" on
            several GPUs of one kind if that fits, else "device_map"; always "device_map" for `WHOLE_LAYERS`.
        asked: Fields of `Request`: context, batch, chunk, images, cache_bits.

    Raises:
        ValueError: An unknown device, precision or layout, a number that is not positive, or a layout the machine
            cannot have.
    """
    machine = parse_machine(devices) if isinstance(devices, str) else devices
    request = Request(precision, **asked)
    _check(request, layout)
    if layout in ("tensor", "expert"):
        if reason := undivided(config, machine, layout):
            raise ValueError(f"Layout {shown(layout)} is not possible on {machine.name}: {reason}.")
        return _sharded(config, machine, request, layout)
    if layout == "auto" and precision not in WHOLE_LAYERS and undivided(config, machine, "tensor") is None:
        cut = _sharded(config, machine, request, "tensor")
        mapped = cut if cut.fits else _mapped(config, machine, request)
        return mapped if mapped.fits else cut
    return _mapped(config, machine, request)


def _check(request: Request, layout: str) -> None:
    if request.precision not in PRECISIONS:
        raise ValueError(f"Precision {shown(request.precision)} is unknown; choose one of {', '.join(PRECISIONS)}.")
    if layout not in LAYOUTS:
        raise ValueError(f"Layout {shown(layout)} is unknown; choose one of {', '.join(LAYOUTS)}.")
    if request.cache_bits not in (8, 16):
        raise ValueError(f"cache_bits={request.cache_bits} is unknown; the cache has 16 or 8 bits.")
    for name in ("context", "batch", "chunk"):
        if getattr(request, name) < 1:
            raise ValueError(f"{name}={getattr(request, name)} cannot be planned; it must be 1 or more.")


def undivided(config: Small4Config, machine: Machine, layout: str) -> str | None:
    """Why heads or experts cannot be divided over this machine, or None."""
    text, ranks = config.text_config, len(machine.gpus)
    if not machine.alike:
        return "it needs several GPUs of one kind"
    experts = "n_routed_experts" if layout == "expert" else "moe_intermediate_size"
    cut = {name: getattr(text, name) for name in ("num_attention_heads", experts)}
    bad = next((name for name, size in cut.items() if size % ranks), None)
    return f"{bad}={cut[bad]} does not divide among {ranks} GPUs" if bad else None


def _sharded(config: Small4Config, machine: Machine, request: Request, layout: str) -> Plan:
    """All ranks are alike: each holds its share of heads and experts, a copy of everything small, and the whole latent
    cache, which the heads share.
    """
    ranks = len(machine.gpus)
    weights: dict[str, int] = {}
    for tensor in tensors(config):
        size = tensor.nbytes(request.precision)
        weights[tensor.part] = weights.get(tensor.part, 0) + (ceil(size / ranks) if _is_cut(config, tensor) else size)
    if request.draft_bytes:
        weights["draft"] = request.draft_bytes
    work = _activations(config, request, ranks, fused=False)
    loads = tuple(Load(gpu, dict(weights), _cache(config, request), work) for gpu in machine.gpus)
    distributed = {"tp_size": ranks} | ({"ep_size": ranks} if layout == "expert" else {})
    return Plan(machine, request, layout, loads, distributed=distributed)


def _is_cut(config: Small4Config, tensor: Tensor) -> bool:
    """Whether the model's own tensor-parallel plan cuts this tensor; embedding and head are cut along the
    vocabulary.
    """
    if tensor.part in ("embedding", "head"):
        return True
    name = tensor.name.removeprefix("model.language_model.").removesuffix(".weight")
    styles = (style for pattern, style in config.text_config.base_model_tp_plan.items() if fnmatchcase(name, pattern))
    return next(styles, None) in ("colwise", "rowwise", "packed_colwise")


def _mapped(config: Small4Config, machine: Machine, request: Request) -> Plan:
    """Whole modules in the order in which they run: balanced over the GPUs (or in main memory) if those suffice, else
    GPUs first, then main memory, then disk. Offloaded modules run on the first device, which also keeps their cache.
    """
    work = _activations(config, request, 1, fused=not machine.gpus)
    units = list(_units(config, request))
    residents = [*machine.gpus] or [d for d in (machine.ram,) if d]
    for step in range(1, _STEPS + 1):
        homes = _fill(units, [_Room(d, (d.usable - work) * step // _STEPS) for d in residents])
        if homes is not None:
            return _as_plan(machine, request, units, homes, work)
    stores = [d for d in (machine.ram, machine.disk) if d and d not in residents]
    if not stores:  # balanced, so that it shows how much each device lacks
        share = ceil(sum(unit.weights_bytes + unit.cache for unit in units) / len(residents))
        homes = _fill(units, [_Room(d, share) for d in residents], overflow=True)
        return _as_plan(machine, request, units, homes or [], work)
    visiting, cache = max(unit.weights_bytes for unit in units), sum(unit.cache for unit in units)
    rooms = [_Room(d, d.usable - work) for d in residents]
    rooms[0] = _Room(rooms[0].device, rooms[0].size - visiting - cache, with_cache=False)
    rooms += [_Room(d, d.usable, with_cache=False) for d in stores]
    homes = _fill(units, rooms, overflow=True)
    return _as_plan(machine, request, units, homes or [], work, visiting)


@dataclass(frozen=True)
class _Unit:
    """A module that is not split."""

    name: str
    weights: dict[str, int]
    cache: int

    @property
    def weights_bytes(self) -> int:
        return sum(self.weights.values())


@dataclass(frozen=True)
class _Room:
    """Bytes of a device for modules, with or without their caches."""

    device: Device
    size: int
    with_cache: bool = True


def _fill(units: list[_Unit], rooms: list[_Room], overflow: bool = False) -> list[Device] | None:
    """A device for each unit, filling one device after the other. The last device takes what is left over, or the
    result is None.
    """
    homes: list[Device] = []
    index = used = 0
    for unit in units:
        while True:
            size = used + unit.weights_bytes + (unit.cache if rooms[index].with_cache else 0)
            last = index == len(rooms) - 1
            if size <= rooms[index].size or (last and overflow):
                break
            if last:
                return None
            index, used = index + 1, 0
        used = size
        homes.append(rooms[index].device)
    return homes


def _as_plan(
    machine: Machine, request: Request, units: list[_Unit], homes: list[Device], work: int, visiting: int = 0
) -> Plan:
    """Add up what each device holds, and write the device_map."""
    # A tied head has no weights of its own and must be where the embedding is.
    embedding = next(home for unit, home in zip(units, homes, strict=True) if unit.name.endswith("embed_tokens"))
    homes = [home if unit.weights else embedding for unit, home in zip(units, homes, strict=True)]
    devices = [*machine.gpus, *(d for d in (machine.ram, machine.disk) if d and (d in homes or not machine.gpus))]
    runs = [d for d in devices if d.name not in ("cpu", "disk")] or devices[:1]
    loads = []
    for device in devices:
        mine = [unit for unit, home in zip(units, homes, strict=True) if home == device]
        weights: dict[str, int] = {}
        for part, size in (item for unit in mine for item in unit.weights.items()):
            weights[part] = weights.get(part, 0) + size
        cached = mine if device in runs else []
        if device == runs[0]:
            cached = [unit for unit, home in zip(units, homes, strict=True) if home == device or home not in runs]
        first = visiting if device == runs[0] else 0
        loads.append(Load(device, weights, sum(unit.cache for unit in cached), work if device in runs else 0, first))
    names: dict[str, int | str] = {unit.name: home.name for unit, home in zip(units, homes, strict=True)}
    return Plan(machine, request, "device_map", tuple(loads), device_map=names)


def _units(config: Small4Config, request: Request) -> Iterator[_Unit]:
    inner, layers = "model.language_model", config.text_config.num_hidden_layers
    names = ["model.vision_tower", "model.multi_modal_projector"] if config.vision_config is not None else []
    names += [f"{inner}.embed_tokens", *(f"{inner}.layers.{i}" for i in range(layers)), f"{inner}.norm", "lm_head"]
    weights: dict[str, dict[str, int]] = {name: {} for name in names}
    for tensor in tensors(config):
        words = tensor.name.split(".")
        home = next(weights[name] for n in (1, 2, 3, 4) if (name := ".".join(words[:n])) in weights)
        home[tensor.part] = home.get(tensor.part, 0) + tensor.nbytes(request.precision)
    if request.draft_bytes:
        weights["lm_head"]["draft"] = request.draft_bytes
    for name in names:
        yield _Unit(name, weights[name], _cache(config, request) // layers if ".layers." in name else 0)


def _cache(config: Small4Config, request: Request) -> int:
    """All layers. Eight bits also store two bfloat16 scales per token and layer."""
    if request.cache_bits == 16:
        return cache_bytes(config, request.context, request.batch)
    tokens = request.context * request.batch * config.text_config.num_hidden_layers
    return cache_bytes(config, request.context, request.batch, 1) + 4 * tokens


def _activations(config: Small4Config, request: Request, shards: int, fused: bool) -> int:
    """The peak while reading a prompt in chunks (at its end, or just before attention switches to blocks), generating
    and encoding images; the bytes of expanded weights; and on a CPU (`fused`), those of code that runs first then.
    """
    chunk = min(request.chunk, request.context)
    turn = min(request.context, max(chunk, (LONG - 1) // chunk))
    reading = Work(request.batch, chunk, request.context, request.images, shards, fused=fused)
    works = (reading, replace(reading, context=turn), replace(reading, chunk=1))
    most = max(max(activation_bytes(config, work).values()) for work in works)
    return most + expanded_bytes(config, request.precision) + (LIBRARY_BYTES if fused else 0)
