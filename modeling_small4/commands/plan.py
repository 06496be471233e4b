"""`small4 plan`: the planner's arguments and output. Must not know: arithmetic, which is in `planner/`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..configuration_small4 import Small4Config
from ..experts_profile import ExpertProfile, read_profile
from ..experts_speed import rounded
from ..planner.alternatives import alternatives, command, notes, release_table, replicas
from ..planner.hardware import GPUS, NODES, UNIFIED, Machine, parse_machine, this_machine
from ..planner.layout import CHUNK, LAYOUTS, Plan, plan
from ..planner.sizes import PRECISIONS, cache_bytes, weight_bytes
from ..planner.speed import Rates, Speed, speed
from . import plan_training
from .terminal import describe_bytes

EXAMPLES = ("4xH100", "2xH100", "8xH200", "4xH200", "2xH200", "1xH200", "2xB200", "1xB200", "1xDGX-B200", "4xA100",
    "4x24GB+64GB-ram",
            "2x24GB+64GB-ram", "24GB+64GB-ram", "24GB+128GB-ram", "128GB-ram", "64GB-ram")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 plan`."""
    parser.add_argument("--model", metavar="DIR_OR_REPO", help="whose config.json is read (default: the release)")
    known = ", ".join([*GPUS, *NODES, *UNIFIED])
    parser.add_argument(
        "--devices", metavar="SPEC", help=f"4xH100, 24GB+64GB-ram, ... (default: this machine). Known names: {known}"
    )
    parser.add_argument(
        "--dtype",
        type=_precision,
        choices=PRECISIONS,
        help="precision of weights (default: as --model stores them where they are quantized, else fp8)",
    )
    parser.add_argument(
        "--context", metavar="N", type=int, default=262144, help="tokens per sequence (default: 262144)"
    )
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="sequences at once (default: 1)")
    parser.add_argument(
        "--chunk", metavar="N", type=int, default=CHUNK, help=f"tokens read per forward pass (default: {CHUNK})"
    )
    parser.add_argument(
        "--images", metavar="N", type=int, default=1, help="largest images encoded at once (default: 1)"
    )
    parser.add_argument(
        "--cache-bits", type=int, choices=(16, 8), default=16, help="bits per cached number (default: 16)"
    )
    parser.add_argument(
        "--draft", metavar="DRAFT", help="an EAGLE or DFlash draft to be held too, a folder or Hub name"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="how weights are spread (default: auto)")
    parser.add_argument("--table", action="store_true", help="print what fits on many machines, as a Markdown table")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="estimate speed from this machine's bandwidths, which takes a few seconds to measure",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    plan_training.add_arguments(parser)


def _precision(text: str) -> str:
    """The precision's name, also by its short names and in capitals."""
    return {"bf16": "bfloat16", "fp32": "float32"}.get(text.lower(), text.lower())


def run(args: argparse.Namespace) -> None:
    """Print what was asked for.

    Raises:
        ValueError: A device, number or model that cannot be planned for.
    """
    config = _configuration(args.model)
    if args.train:
        plan_training.run(
            config, args, args.dtype or ("bfloat16" if args.train == "full" else stored_precision(config))
        )
        return
    if args.table:
        print(_table_as_json(config, args.context) if args.json else table(config, args.context))
        return
    machine = parse_machine(args.devices) if args.devices else this_machine()
    asked = {name: getattr(args, name) for name in ("context", "batch", "chunk", "images", "cache_bits")}
    if args.draft:
        from ..drafts_reading import draft_bytes

        asked["draft_bytes"] = draft_bytes(args.draft, args.context, args.batch)
    precision = args.dtype or stored_precision(config)
    made = plan(config, machine, precision, layout=args.layout, **asked)
    estimate = speed(
        config, made, _measured(precision, args.model) if args.measure else None, _profile(config, args.model)
    )
    print(json.dumps(_as_json(config, made, estimate)) if args.json else _as_text(config, made, estimate))


def _measured(precision: str, model: str | None) -> Rates:
    from ..planner.measuring import measure

    return measure(precision, Path(model) if model is not None and Path(model).is_dir() else None)


def _profile(config: Small4Config, model: str | None) -> ExpertProfile | None:
    """Which experts are used most, where the folder of a model says so."""
    text = config.text_config
    layers = text.num_hidden_layers - text.first_k_dense_replace
    return read_profile(model, layers, text.n_routed_experts) if model is not None and Path(model).is_dir() else None


def _configuration(model: str | None) -> Small4Config:
    from transformers import AutoConfig

    if model is None:
        return Small4Config()
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{model} holds no config.json; name a checkpoint folder, or convert it first: small4 convert {model} DST."
        )
    kind = AutoConfig.from_pretrained(model).model_type
    if kind not in ("small4", "small4_text", "mistral3", "mistral4"):
        raise ValueError(f"{model} is of model type {kind!r}; the planner knows Small 4 only.")
    return Small4Config.from_pretrained(model)


def stored_precision(config: Small4Config) -> str:
    """The precision that a configuration says its weights are stored in; FP8, the release's, where it says none."""
    entry = getattr(config, "quantization_config", None)
    words = str(entry if isinstance(entry, dict) else getattr(entry, "entry", {}))
    return next((held for word, held in (("nvfp4", "nvfp4"), ("pack-quantized", "int4")) if word in words), "fp8")


def _as_json(config: Small4Config, made: Plan, estimate: Speed | None = None) -> dict[str, Any]:
    copies, contexts = replicas(config, made)
    return made.to_dict() | {
        "weights": weight_bytes(config, made.request.precision),
        "cache_per_token": cache_bytes(config, 1),
        "replicas": {"copies": copies, "contexts": contexts},
        "command": command(made),
        "notes": notes(made),
        "tokens_per_second": estimate and estimate.tokens_per_second,
        "prompt_tokens_per_second": estimate and estimate.prompt_tokens_per_second,
        "speed": estimate and estimate.to_dict(),
        "alternatives": [other.to_dict() for other in alternatives(config, made)],
    }


def _as_text(config: Small4Config, made: Plan, estimate: Speed | None = None) -> str:
    request, weights = made.request, weight_bytes(config, made.request.precision)
    lines = [
        f"{made.machine.name}, {request.precision} weights, {request.batch} x {request.context:,} tokens",
        "",
        f"weights {describe_bytes(sum(weights.values()))}: "
        + ", ".join(f"{part} {describe_bytes(size)}" for part, size in weights.items() if size >= 10**7),
        f"cache   {cache_bytes(config, 1):,} bytes per token in bfloat16, all layers",
        "",
        f"{'device':<16}{'usable':>10}{'weights':>10}{'cache':>10}{'activations':>13}{'visiting':>10}{'free':>10}",
    ]
    for load in made.loads:
        sizes = (load.device.usable, sum(load.weights.values()), load.cache)
        name = (
            f"{load.device.name} ({load.device.model})"
            if load.device.model != str(load.device.name)
            else load.device.model
        )
        lines.append(
            f"{name:<16}"
            + "".join(f"{describe_bytes(size):>10}" for size in sizes)
            + f"{describe_bytes(load.activations):>13}{describe_bytes(load.streamed):>10}{describe_bytes(load.free):>10}"  # noqa: E501
        )
    lines += ["", *_verdict(config, made), *_speed_words(estimate), *(f"note: {note}" for note in notes(made))]
    others = alternatives(config, made)
    if others:
        lines += ["", "cheaper, and fits:" if made.fits else "what fits:"]
        lines += [
            f"  {other.change}: --devices {other.devices!r} --dtype {other.request.precision}{_options(other)}"
            for other in others
        ]
    return "\n".join(lines)


def _options(other: Any) -> str:
    defaults = {"context": 262144, "batch": 1, "cache_bits": 16}
    changed = {
        name: value for name, value in asdict(other.request).items() if name in defaults and value != defaults[name]
    }
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())


def _verdict(config: Small4Config, made: Plan) -> list[str]:
    if not made.fits:
        worst = min(made.loads, key=lambda load: load.free)
        return [f"does not fit: device {worst.device.name} lacks {describe_bytes(-worst.free)}"]
    copies, contexts = replicas(config, made)
    out = [
        f"fits, {_LAYOUT_WORDS[made.layout]}; room for {made.contexts} sequences of {made.request.context:,} tokens "
        "at once"
    ]
    if copies > 1 and contexts > made.contexts:
        out.append(f"as {copies} replicas of {len(made.machine.gpus) // copies} GPUs: room for {contexts}")
    out.append(command(made))
    if made.device_map and len(set(made.device_map.values())) > 1 and made.request.precision != "int4":
        out.append(f"DEVICE_MAP = {_shortened(made.device_map)}")
    return out


def _speed_words(estimate: Speed | None) -> list[str]:
    """The estimate and its source; nothing if the model does not run."""
    if estimate is None:
        return []
    out = [
        f"at most about {rounded(estimate.tokens_per_second)} tokens/s (bound by {estimate.bound}), "
        f"{rounded(estimate.prompt_tokens_per_second)} tokens/s of a prompt (bound by {estimate.prompt_bound}); from "
        f"{estimate.rates.source}"
    ]
    if estimate.experts:
        out.append(f"which share of the chosen experts is in memory: {estimate.hit_rates}")
    if estimate.experts and estimate.prompt_chunk > CHUNK:
        out.append(f"a long prompt is read fastest with generate(prefill_chunk_size={estimate.prompt_chunk})")
    if estimate.experts.get("gpu", 1) < 1:
        out.append(
            f"experts: {estimate.experts['gpu']:.0%} on the GPU, the others are copied to it as they are needed: "
            'Small4ForCausalLM.from_pretrained(MODEL, device_map="auto"); DEVICE_MAP moves whole layers, '
            "which is slower"
        )
    if estimate.fastest_tokens_per_second:
        out.append(
            f"at most about {rounded(estimate.fastest_tokens_per_second)} tokens/s where the CPU computes the experts "
            "in main memory, which changes how sums are rounded: --expert-memory gpu=SIZE,cpu=SIZE,compute=fastest"
        )
    if estimate.experts.get("disk"):
        out.append(
            f"experts: {estimate.experts['memory']:.0%} in main memory, the others are read from disk as they are "
            "needed: "
            "Small4ForCausalLM.from_pretrained(MODEL), or --expert-memory SIZE"
        )
    return out


_LAYOUT_WORDS = {
    "device_map": "whole layers on each device",
    "tensor": "heads and experts cut over the GPUs",
    "expert": "heads cut, experts dealt over the GPUs",
}


def _shortened(device_map: dict[str, Any]) -> str:
    """The device map as Python source that can be pasted, with runs of layers as comprehensions."""
    words: list[str] = []
    run: list[tuple[str, Any]] = []
    for name, home in [*device_map.items(), ("", None)]:
        index = name.rsplit(".", 1)[1] if ".layers." in name else None
        if run and (index is None or home != run[0][1]):
            first, last = run[0][0], run[-1][0]
            words.append(
                f'**{{f"model.language_model.layers.{{i}}": {run[0][1]!r} for i in range({first}, {int(last) + 1})}}'
            )
            run = []
        if index is not None:
            run.append((index, home))
        elif name:
            words.append(f'"{name}": {home!r}')
    return "{" + ", ".join(words) + "}"


def table(config: Small4Config, context: int = 262144) -> str:
    """What fits on `EXAMPLES` and on the release's own machines, as Markdown."""
    return _markdown(config, _rows(config, context), context)


def _table_as_json(config: Small4Config, context: int) -> str:
    return json.dumps({"machines": _rows(config, context), "release": release_table(config, context)})


def _rows(config: Small4Config, context: int) -> list[dict[str, Any]]:
    rows = []
    for devices in EXAMPLES:
        row: dict[str, Any] = {"devices": devices}
        for precision in ("bfloat16", "fp8", "nvfp4", "int4"):
            row[precision] = _cell(config, parse_machine(devices), precision, context)
        rows.append(row)
    return rows


def _cell(config: Small4Config, machine: Machine, precision: str, context: int) -> dict[str, Any]:
    """The longest context that fits, and how many such sequences fit at once."""
    for tokens in (context, *(c for c in (65536, 16384, 4096) if c < context)):
        made = plan(config, machine, precision, context=tokens)
        if made.fits:
            contexts = replicas(config, made)[1]
            return {"context": tokens, "contexts": contexts, "layout": made.layout, "offloads": made.offloads}
    return {"context": 0, "contexts": 0, "layout": made.layout, "offloads": made.offloads}


def _markdown(config: Small4Config, rows: list[dict[str, Any]], context: int) -> str:
    names = {"bfloat16": "BF16", "fp8": "FP8", "nvfp4": "NVFP4", "int4": "4 bit"}
    sizes = {p: describe_bytes(sum(weight_bytes(config, p).values())) for p in names}
    lines = ["| machine | " + " | ".join(f"{name}, {sizes[p]}" for p, name in names.items()) + " |", "|---" * 5 + "|"]
    for row in rows:
        lines.append(f"| {row['devices']} | " + " | ".join(_cell_text(p, row[p]) for p in names) + " |")
    lines += ["", "| the release says | machine | why |", "|---|---|---|"]
    lines += [f"| {row['role']} | {row['devices']} | {row['reason']} |" for row in release_table(config, context)]
    return "\n".join(lines)


def _cell_text(precision: str, cell: dict[str, Any]) -> str:
    if not cell["context"]:
        return "no"
    tokens = f"{cell['context'] // 1024}k"
    text = f"{cell['contexts']} x {tokens}" if cell["contexts"] > 1 else tokens
    where = "partly in main memory" if precision == "int4" else "weights copied to the GPU"
    return f"{text}, {where}" if cell["offloads"] else text
