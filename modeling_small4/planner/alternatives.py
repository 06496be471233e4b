"""What to do with a plan: the command that runs it, what fits instead when it does not, what is cheaper when it does,
and the release's own table.

Everything here calls `layout.plan` again with something changed. Must not know: the command line, tensors.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..configuration_small4 import Small4Config
from .hardware import GPUS, Device, Machine, parse_machine
from .layout import Plan, Request, plan
from .sizes import BITS

CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096)
COUNTS = (1, 2, 4, 8, 16)
RAM_SIZES_GB = (32, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Alternative:
    """Another plan that fits. `change`: how it differs from the request, in words."""

    change: str
    devices: str
    request: Request
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"change": self.change, "devices": self.devices, "layout": self.plan.layout} | asdict(self.request)


def alternatives(config: Small4Config, made: Plan) -> list[Alternative]:
    """If `made` does not fit: what does. If it fits: what is cheaper. The smallest change comes first."""
    found = _cheaper(config, made) if made.fits else _smaller(config, made)
    return [a for a in found if a.plan.fits]


def _try(config: Small4Config, machine: Machine, request: Request, change: str) -> Alternative:
    fields = asdict(request)
    return Alternative(change, machine.name, request, plan(config, machine, fields.pop("precision"), **fields))


def _cheaper(config: Small4Config, made: Plan) -> Iterator[Alternative]:
    """Fewer GPUs of the kind, then still fewer with a lower precision."""
    most = len(made.machine.gpus)
    for precision in (made.request.precision, *_lower(made)):
        change = "fewer GPUs" if precision == made.request.precision else f"fewer GPUs, {precision}"
        request = replace(made.request, precision=precision)
        for found in _first(_try(config, machine, request, change) for machine in _counts(made.machine, below=most)):
            most = len(found.plan.machine.gpus)
            yield found


def _smaller(config: Small4Config, made: Plan) -> Iterator[Alternative]:
    """One change at a time: precision, cache, batch, context, then more hardware."""
    machine, request = made.machine, made.request
    for precision in _lower(made):
        yield _try(config, machine, replace(request, precision=precision), f"{precision} weights")
    if request.cache_bits == 16:
        yield _try(config, machine, replace(request, cache_bits=8), "8-bit cache")
    for change in _reduced(request):
        tried = _try(config, machine, change, _said(request, change))
        if tried.plan.fits:
            yield tried
            break
    else:  # both at once: the lowest precision with a shorter context
        lowest = min(_lower(made), key=lambda precision: BITS[precision], default=request.precision)
        low = replace(request, precision=lowest)
        fitting = (_try(config, machine, change, f"{lowest} weights, {_said(low, change)}") for change in _reduced(low))
        yield from list(a for a in fitting if a.plan.fits)[:1]
    yield from _more(config, made)


def _more(config: Small4Config, made: Plan) -> Iterator[Alternative]:
    """More main memory for the same GPUs, or more GPUs of the same kind; then the fewest GPUs that suffice with the
    lowest precision.
    """
    machine, request = made.machine, made.request
    have, count = machine.ram.capacity if machine.ram else 0, len(machine.gpus)
    lowest = min(_lower(made), key=lambda precision: BITS[precision], default=None)
    ram, most = 1 << 60, 1 << 30
    for precision in (request.precision, *([lowest] if lowest else [])):
        asked = replace(request, precision=precision)
        told = "" if precision == request.precision else f"{precision} weights, "
        where = ", weights copied to the GPU" if machine.gpus and precision != "int4" else ""
        larger = [size for size in RAM_SIZES_GB if have < size * 10**9 < ram]
        memory = (_try(config, _with_ram(machine, size), asked, f"{told}more main memory{where}") for size in larger)
        for found in _first(memory):
            ram = found.plan.machine.ram.capacity if found.plan.machine.ram else ram
            yield found
        cards = (_try(config, m, asked, f"{told}more GPUs") for m in _counts(machine, below=most, above=count))
        for found in _first(cards):
            most = len(found.plan.machine.gpus)
            yield found


def _first(tried: Iterator[Alternative]) -> Iterator[Alternative]:
    found = next((a for a in tried if a.plan.fits), None)
    if found:
        yield found


def _lower(made: Plan) -> list[str]:
    """Precisions with fewer bits."""
    return [p for p in ("bfloat16", "fp8", "int8", "nvfp4", "int4") if BITS[p] < BITS[made.request.precision]]


def _counts(machine: Machine, below: int = 1 << 30, above: int = 0) -> Iterator[Machine]:
    """The same machine with other numbers of GPUs, if they are all of one kind."""
    kinds = {(gpu.model, gpu.capacity, gpu.capability) for gpu in machine.gpus}
    if len(kinds) != 1:
        return
    model, capacity, capability = kinds.pop()
    rest = "".join(f"+{d.capacity / 1e9:.0f}GB-{d.model}" for d in (machine.ram, machine.disk) if d)
    for count in COUNTS:
        if above < count < below:
            gpus = tuple(Device(index, model, capacity, capability) for index in range(count))
            yield replace(machine, name=f"{count}x{model}{rest}", gpus=gpus)


def _with_ram(machine: Machine, size_gb: int) -> Machine:
    gpus = machine.name.split("+")[0] if machine.gpus else ""
    parts = [p for p in machine.name.split("+") if not p.strip().lower().endswith("ram")] if gpus else []
    return replace(machine, name="+".join([*parts, f"{size_gb}GB-ram"]), ram=Device("cpu", "ram", size_gb * 10**9))


def _reduced(request: Request) -> Iterator[Request]:
    """The same request with a smaller batch, then with one sequence and a shorter context."""
    batch = request.batch
    while batch > 1:
        batch //= 2
        yield replace(request, batch=batch)
    for context in CONTEXTS:
        if context < request.context:
            yield replace(request, batch=1, context=context)


def _said(old: Request, new: Request) -> str:
    words = [f"context {new.context:,}"] if new.context != old.context else []
    words += [f"batch {new.batch}"] if new.batch != old.batch else []
    return ", ".join(words)


def notes(made: Plan) -> list[str]:
    """Notes on what the numbers do not show: missing instructions, other engines, offloaded weights, the cache that
    every rank holds.
    """
    out, precision = [], made.request.precision
    if precision in ("fp8", "nvfp4") and not (made.machine.gpus and made.machine.computes(precision)):
        out.append(
            f"These devices have no instructions for {precision.upper()}: weights stay as stored and are expanded "
            "piece by piece as they are used."
        )
    if precision == "nvfp4":
        out.append(
            "NVFP4: routed and shared experts, as released. vLLM and SGLang also run it, on Ampere and Hopper as W4A16."
        )
    if precision == "int4":
        out.append(
            "4 bits: a checkpoint of small4 convert --dtype int4, or one quantized elsewhere in "
            f"groups.{_exported(made)}"
        )
    if made.offloads and not _exported(made):
        out.append(
            "Weights in main memory or on disk are copied to the GPU for every token, and that copy limits the speed "
            "of generation."
        )
    if made.distributed:
        out.append(
            "All heads share the latents, so every rank holds the whole cache. More ranks save memory only on weights; "
            "replicas on fewer GPUs each serve more sequences."
        )
    return out


def _exported(made: Plan) -> str:
    """What to do if 4 bits do not fit the GPUs: llama.cpp runs the layers in main memory on the CPU."""
    if made.request.precision != "int4" or not made.machine.gpus or not made.offloads:
        return ""
    return (
        " Where they do not fit the GPU: llama.cpp with an exported model, whose layers in main memory run on the CPU."
    )


def replicas(config: Small4Config, made: Plan) -> tuple[int, int]:
    """How to serve the most sequences of this context: `(copies of the model, sequences of all copies together)`, with
    the GPUs divided evenly.
    """
    count, options = len(made.machine.gpus), [(1, made.contexts)]
    for each in _counts(made.machine, below=count) if made.distributed else ():
        if count % len(each.gpus) == 0:
            fields = asdict(made.request)
            copies = count // len(each.gpus)
            options.append((copies, copies * plan(config, each, fields.pop("precision"), **fields).contexts))
    return max(options, key=lambda option: option[1])


def release_table(config: Small4Config, context: int = 262144) -> list[dict[str, Any]]:
    """The release's table of infrastructure, with the planner's numbers for each row.

    Minimum: 4x H100 or 1x DGX B200. Recommended: 4x H200 or 2x DGX B200.

    Returns:
        One row per machine: "role", "devices", for each of bfloat16 and fp8 "contexts" (sequences of `context` at once,
            in the best
        number of replicas) and "replicas", and "reason".
    """
    rows = []
    for role, devices in (
        ("minimum", "4xH100"),
        ("minimum", "1xDGX-B200"),
        ("recommended", "4xH200"),
        ("recommended", "2xDGX-B200"),
    ):
        row: dict[str, Any] = {"role": role, "devices": devices}
        for precision in ("bfloat16", "fp8"):
            made = plan(config, devices, precision, context=context)
            copies, contexts = replicas(config, made)
            row[precision] = {"fits": made.fits, "replicas": copies, "contexts": contexts, "used": made.loads[0].used}
        row["reason"] = _reason(config, devices, row, context)
        rows.append(row)
    return rows


def _reason(config: Small4Config, devices: str, row: dict[str, Any], context: int) -> str:
    """The reason for a machine: it is the smallest that holds the unquantized weights, or it has room for more."""
    machine = parse_machine(devices)
    fewest = next(
        n for n in range(1, 17) if plan(config, f"{n}x{machine.gpus[0].model}", "bfloat16", context=context).fits
    )
    kind = machine.gpus[0].model
    room = (
        f"room for {row['bfloat16']['contexts']} sequences of {context:,} tokens in bfloat16, "
        f"{row['fp8']['contexts']} in FP8"
    )
    if len(machine.gpus) == fewest:
        return f"the fewest {kind} that hold the bfloat16 weights with one such sequence; {room}"
    unit = "A DGX is the smallest unit sold, and has more memory than needed: " if "DGX" in devices else ""
    return f"{unit}{fewest} x {kind} hold the bfloat16 weights; the rest is free for sequences: {room}"


def command(made: Plan) -> str:
    """The command that loads the model this way: a line of Python, or an engine that supports the precision."""
    gpus, request = len(made.machine.gpus), made.request
    homes = list((made.device_map or {}).values())
    if _exported(made):
        layers = sum(
            ".layers." in name and home not in ("cpu", "disk") for name, home in (made.device_map or {}).items()
        )
        return f"llama-server -m MODEL.gguf -c {request.context * request.batch} -np {request.batch} -ngl {layers}"
    if made.distributed:
        sizes = ", ".join(f"{name}={size}" for name, size in made.distributed.items())
        nodes = f"--nnodes {gpus // 8} " if gpus > 8 else ""
        return (
            f"torchrun {nodes}--nproc-per-node {min(gpus, 8)} SCRIPT.py, with "
            f"Small4ForCausalLM.from_pretrained(MODEL, distributed_config=DistributedConfig({sizes}))"
        )
    place = repr(homes[0]) if len(set(homes)) == 1 else "DEVICE_MAP"
    eight = '**weight_only("int8"), ' if request.precision == "int8" else ""
    return f"Small4ForCausalLM.from_pretrained(MODEL, {eight}device_map={place})"


__all__ = ["GPUS", "Alternative", "alternatives", "command", "notes", "release_table", "replicas"]
