"""Estimated tokens per second of a plan: the bytes that a token reads from each memory, divided by the bandwidth of
that memory.

Bandwidths come from a table of data sheets, or from `measuring`. Must not know: the command line.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..configuration_small4 import Small4Config
from ..experts_profile import ExpertProfile
from ..experts_speed import WeightRates, hit_rate, seconds_per_token
from .hardware import Machine
from .layout import CHUNK, Plan, plan
from .sizes import cache_bytes, tensors

# name -> (memory bandwidth in GB/s, dense bfloat16 TFLOP/s), by the makers' data sheets
SHEETS: dict[str, tuple[float, float]] = {
    "A100": (2039, 312), "A100-40GB": (1555, 312), "L40S": (864, 362), "H100": (3350, 989), "H200": (4800, 989),
    "B200": (8000, 2250), "RTX3090": (936, 71), "RTX4090": (1008, 165), "RTX5090": (1792, 209),
    "RTX6000-ADA": (960, 182),
    "RTX-PRO-6000": (1792, 252), "MI300X": (5300, 1307), "DGX-SPARK": (273, 62), "STRIX-HALO": (256, 59),
}  # fmt: skip
OTHER_GPU, OTHER_UNIFIED = (900, 80), (400, 15)
REACHED = 0.7  # of a GPU's data sheet, in practice


@dataclass(frozen=True)
class Rates:
    """Bytes per second: weights in a GPU's memory that it multiplies with one token, copies to it from main memory,
    weights in main memory that the CPU multiplies with one token, reads from disk. `gpu_others` and `host_others`: of
    weights other than routed experts', with all that a token waits for besides; None: as of experts. Multiplications
    and additions per second of a GPU and of the CPU. source: where they come from."""

    gpu: float = OTHER_GPU[0] * 1e9
    link: float = 25e9
    host: float = 60e9
    disk: float = 7e9
    gpu_others: float | None = None
    host_others: float | None = None
    gpu_flops: float = OTHER_GPU[1] * 1e12
    cpu_flops: float = 1e12
    source: str = "data sheets (PCIe 4 x16, two channels of DDR5, NVMe of 7 GB/s)"


@dataclass(frozen=True)
class Speed:
    """The estimate.

    seconds: of one decoded token, by what it waits for. experts: their share in each memory. hit_rates: how their uses
    are spread over it. fastest_tokens_per_second: where the CPU computes those in main memory, if that is quicker.
    prompt_chunk: tokens to read at once so that computing takes as long as moving weights.
    """

    tokens_per_second: float
    prompt_tokens_per_second: float
    bound: str
    prompt_bound: str
    seconds: dict[str, float]
    experts: dict[str, float]
    rates: Rates
    hit_rates: str
    prompt_chunk: int
    fastest_tokens_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def rates_of(machine: Machine) -> Rates:
    """Rates from data sheets; the slowest of several GPUs counts."""
    if not machine.gpus:
        return Rates()
    sheets = [SHEETS.get(gpu.model, OTHER_UNIFIED if gpu.unified else OTHER_GPU) for gpu in machine.gpus]
    memory, flops = min(sheet[0] for sheet in sheets), min(sheet[1] for sheet in sheets)
    return Rates(gpu=memory * 1e9 * REACHED, gpu_flops=flops * 1e12 * REACHED)


def speed(
    config: Small4Config, made: Plan, rates: Rates | None = None, profile: ExpertProfile | None = None
) -> Speed | None:
    """Estimate the decoding of one sequence at half the plan's context, and the reading of a prompt in chunks; None if
    the plan does not fit.

    Experts that do not fit are copied or read as they are chosen (`expert_memory`): from main memory to the first GPU,
    and from disk; `profile` says which are chosen.
    """
    found = _speed(config, made, rates, profile)
    if found is None or not found.experts:
        return found
    asked = {name: value for name, value in asdict(made.request).items() if name != "precision"}
    for chunk in range(found.prompt_chunk, CHUNK, -CHUNK):  # the largest that there is memory for
        larger = plan(config, made.machine, made.request.precision, layout=made.layout, **(asked | {"chunk": chunk}))
        if _speed(config, larger, rates, profile) is not None:
            return replace(found, prompt_chunk=chunk)
    return replace(found, prompt_chunk=CHUNK)


def _speed(config: Small4Config, made: Plan, rates: Rates | None, profile: ExpertProfile | None) -> Speed | None:
    hit: Hit = hit_rate if profile is None else lambda share: profile.hit_rate(round(share * profile.uses.size))
    rates = rates or rates_of(made.machine)
    precision, text = made.request.precision, config.text_config
    used = text.num_experts_per_tok / text.n_routed_experts
    sizes, active = dict[str, int](), 0.0
    for tensor in tensors(config):
        sizes[tensor.part] = sizes.get(tensor.part, 0) + tensor.nbytes(precision)
        active += tensor.count * (used if tensor.part == "routed experts" else 1) * (tensor.part in _ACTIVE)
    experts = sizes.pop("routed experts", 0)
    others = sum(size for name, size in sizes.items() if name not in ("embedding", "vision", "projector"))
    cache = cache_bytes(config, made.request.context // 2, 1, made.request.cache_bits // 8)
    tiers: dict[str, float] = {}
    fastest: float | None = None
    if made.machine.gpus and made.fits and not made.offloads:
        ranks = len(made.machine.gpus) if made.distributed else 1
        here, all_here = sum(sum(load.weights.values()) for load in made.loads), (1.0, 1.0)
        rest = (others + cache) / (rates.gpu_others or rates.gpu)
        times = seconds_per_token(rest, used * experts, all_here, WeightRates(rates.gpu))
        found: Times | None = {"gpu memory": times["product"] / ranks}, {"gpu memory": here / rates.gpu / ranks}
        flops = rates.gpu_flops * ranks
    elif made.machine.gpus:
        tiers = _gpu_tiers(made, experts, sum(sizes.values()) + cache)
        found, flops = _from_tiers(tiers, rates, others + cache, experts, used, hit), rates.gpu_flops
        shared = _from_tiers(tiers, rates, others + cache, experts, used, hit, rates.host)
        fastest = 1 / sum(shared[0].values()) if shared and "cpu" in shared[0] else None
    else:
        whole = sum(sizes.values())
        found, tiers = _on_cpu(made, rates, (whole, others, cache), experts, used, hit), _tiers(made, experts, whole)
        flops = rates.cpu_flops
    if found is None:
        return None
    decode, chunk = found
    prompt = chunk | {"compute": 2 * active * made.request.chunk / flops}
    bound, prompt_bound = (max(times, key=lambda name: times[name]) for times in (decode, prompt))
    per_chunk = max(prompt.values())
    source = "assumed: the square root of the experts' share" if profile is None else "by expert_profile.json"
    balanced = max(chunk.values()) / prompt["compute"] * made.request.chunk
    tokens = min(max(CHUNK, -(-round(balanced) // CHUNK) * CHUNK), made.request.context)
    return Speed(
        1 / sum(decode.values()),
        made.request.chunk / per_chunk,
        bound,
        prompt_bound,
        decode,
        tiers,
        rates,
        source,
        tokens,
        fastest,
    )


Hit = Callable[[float], float]
Times = tuple[dict[str, float], dict[str, float]]
_ACTIVE = ("attention", "shared experts", "routed experts", "dense layers", "router")


def _gpu_tiers(made: Plan, experts: int, others: int) -> dict[str, float]:
    """Share of the experts on the first GPU, which holds all `others`, in main memory and on disk; empty where that GPU
    has no room, or no memory of its own.
    """
    gpu, ram = made.machine.gpus[0], made.machine.ram
    room = gpu.usable - others - max(load.activations for load in made.loads)
    if gpu.unified or ram is None or not experts or room <= 0:
        return {}
    here = min(1.0, room / experts)
    waiting = min(1 - here, ram.usable / experts)
    return {"gpu": here, "memory": waiting, "disk": 1 - here - waiting}


def _from_tiers(
    tiers: dict[str, float], rates: Rates, others: float, experts: int, used: float, hit: Hit, host: float = 0.0
) -> Times | None:
    """Seconds of a decoded token, and those of a chunk's weights, by what they wait for. host: Bytes of experts in main
    memory per second that the CPU is to multiply with one token.
    """
    if not tiers:
        return None
    hits = hit(tiers["gpu"]), hit(tiers["gpu"] + tiers["memory"])
    rest, rate = others / (rates.gpu_others or rates.gpu), WeightRates(rates.gpu, rates.link, rates.disk, host)
    times = seconds_per_token(rest, used * experts, hits, rate)
    chunk = {"gpu memory": (others + experts) / rates.gpu, "link": (1 - tiers["gpu"]) * experts / rates.link}
    if tiers["disk"] > 0:
        chunk["disk"] = tiers["disk"] * experts / rates.disk
    names = [name for name in ("link", "disk") if name in chunk] + ["cpu"] * (times["cpu"] > 0)
    return {"gpu memory": times["product"]} | {name: times[name] for name in names}, chunk


def _tiers(made: Plan, experts: int, others: int) -> dict[str, float]:
    """Share of the experts in main memory and on disk."""
    room = (
        made.machine.ram.usable - others - sum(load.cache + load.activations for load in made.loads)
        if made.machine.ram
        else 0
    )
    share = max(0.0, min(1.0, room / experts)) if experts else 1.0
    return {"memory": share, "disk": 1 - share}


def _on_cpu(made: Plan, rates: Rates, sizes: tuple[int, int, int], experts: int, used: float, hit: Hit) -> Times | None:
    whole, others, cache = sizes
    share = _tiers(made, experts, whole)["memory"]
    if share * experts < used * experts / 36:  # not even one layer's choice
        return None
    rate = WeightRates(rates.host, disk=rates.disk)
    rest = (others + cache) / (rates.host_others or rates.host)
    times = seconds_per_token(rest, used * experts, (hit(share), hit(share)), rate)
    decode = {"main memory": times["product"]} | ({"disk": times["disk"]} if share < 1 else {})
    chunk = {"main memory": (others + experts) / rates.host}
    return decode, chunk | ({"disk": (1 - share) * experts / rates.disk} if share < 1 else {})
