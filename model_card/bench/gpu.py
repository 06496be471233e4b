"""All that wants a GPU, measured by one command in under ten minutes: products of stored weights, a full-width layer by
precision, the demo's answers beside those of the CPU, memory beside the planner's figure, experts on disk.

    python -m model_card.bench.gpu [--device cuda] [--out model_card/results/gpu.json]

from the repository root; takes 30 GB of disk and of GPU memory. `--device cpu --small` tries the command without a GPU.
A part that fails is stored with its error, and the others go on. Prints a table, and one JSON line last.
"""

import argparse
import dataclasses
import shutil
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model_card.bench import stored_memory, stored_products
from model_card.bench.decode import prefill, step
from model_card.bench.harness import Run, child, interleaved, options, peak_bytes, read, relative_error, report
from modeling_small4 import LatentCache, Small4Config, Small4ForCausalLM, Small4Processor, demo_checkpoint
from modeling_small4.planner.hardware import Device, Machine
from modeling_small4.planner.layout import plan
from modeling_small4.stored_kernels import products
from modeling_small4.stored_weights import Fp8Weight, StoredWeight

Rows = dict[str, dict[str, Any]]
PROMPT = "What is 123 + 456?"


def moved(weight: StoredWeight, device: torch.device) -> StoredWeight:
    """A weight on another device."""
    parts = {field.name: getattr(weight, field.name) for field in dataclasses.fields(weight)}  # type: ignore[arg-type]
    return dataclasses.replace(  # type: ignore[type-var]
        weight, **{name: None if part is None else part.to(device) for name, part in parts.items()}
    )


def kernels(args: argparse.Namespace) -> Rows:
    """One token's experts and more tokens, by form: stored against bfloat16."""
    width = 128 if args.small else 2048
    shapes = [(width, 2 * width)] * 8 + [(2 * width, width)] * 4
    rows = {}
    for form in stored_products.FORMS:
        weights = [moved(stored_products.random_weight(form, *shape), args.device) for shape in shapes]
        for tokens in (1, 4, 32, 256):
            rows[f"experts, {form}, {tokens} tokens"] = product(args, weights, tokens)
    return rows


def product(args: argparse.Namespace, weights: list[StoredWeight], tokens: int) -> dict[str, Any]:
    """One row, both sides compared first."""
    whole = [weight.expand().to(args.dtype) for weight in weights]
    inputs = [torch.randn(tokens, weight.columns, dtype=args.dtype, device=args.device) for weight in weights]

    def ours() -> list[torch.Tensor]:
        return products(weights, inputs)

    def plain() -> list[torch.Tensor]:
        return [x @ weight.T for x, weight in zip(inputs, whole, strict=True)]

    error = max(stored_products.difference(*pair) for pair in zip(ours(), plain(), strict=True))
    if not error <= 0.01:
        raise SystemExit(f"{type(weights[0]).__name__} differs by {error:.2g} for {tokens} tokens.")
    return interleaved(args, ours, bfloat16=plain) | {"error": error}


def native_fp8(args: argparse.Namespace) -> Rows:
    """`torch._scaled_mm`, inputs rounded to FP8 in the step, against bfloat16."""
    weight = stored_products.random_weight("fp8", 256, 512) if args.small else None
    weight = moved(weight or stored_products.random_weight("fp8", 4096, 4096), args.device)
    assert isinstance(weight, Fp8Weight)
    whole, scale, rows = weight.expand(), weight.scale[0, 0], {}
    for tokens in (16, 256):
        inputs = torch.randn(tokens, weight.columns, dtype=torch.bfloat16, device=args.device)
        ours = partial(scaled_product, inputs, weight.codes, scale)
        error = stored_products.difference(ours(), inputs @ whole.T)
        row = interleaved(args, ours, bfloat16=partial(torch.mm, inputs, whole.T))
        rows[f"_scaled_mm, {tokens} tokens"] = row | {"error": error}
    return rows


def scaled_product(inputs: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`inputs @ (codes * scale).T` in FP8 instructions, bfloat16."""
    size = inputs.abs().amax().float() / 448
    rounded = (inputs / size).to(torch.float8_e4m3fn)
    return torch._scaled_mm(rounded, codes.T, scale_a=size, scale_b=scale.float(), out_dtype=torch.bfloat16)


def config(small: bool) -> Small4Config:
    """One layer of the released widths with a quarter of the experts, or a tiny one."""
    if small:
        return stored_memory.scaled_down(1, 4)
    return Small4Config(
        text_config={"num_hidden_layers": 1, "n_routed_experts": 32, "vocab_size": 2048},
        vision_config=None,
        dtype="bfloat16",
    )


def layer(args: argparse.Namespace, form: str, folder: Path) -> Rows:
    """Decode and prefill of one layer held as stored against the same expanded; its memory against the planner's."""
    stored_memory.write(folder / form, config(args.small), form)
    lengths = (16, 64) if args.small else (512, 4096)
    prompts = [torch.randint(100, 1000, (1, length), device=args.device) for length in lengths]
    held: list[Small4ForCausalLM] = []

    def load() -> None:
        held.append(loaded(args, folder / form, False))
        prefill(held[0].model, prompts[-1])

    peak = peak_bytes(load, args.device)
    models = (held[0], loaded(args, folder / form, True))
    rows: Rows = {f"memory, {form}": {"peak_bytes": peak, "planned_bytes": planned(args, form, lengths[-1])}}
    for ids in prompts:
        runs = [partial(prefill, model.model, ids) for model in models]
        rows[f"prefill of {ids.shape[1]}, {form}"] = both(args, form, *runs)
        runs = [partial(step, model.model, ids[:, :1], cache_of(model, ids)) for model in models]
        rows[f"decode at {ids.shape[1]}, {form}"] = both(args, form, *runs)
    shutil.rmtree(folder / form)
    return rows


def both(args: argparse.Namespace, form: str, ours: Run, plain: Run) -> dict[str, Any]:
    """One row, both sides compared first. FP8 instructions of a GPU round inputs too."""
    allowed = 0.2 if form == "fp8" and args.device.type == "cuda" else 0.02
    error = relative_error(ours(), plain(), form, allowed)
    return interleaved(args, ours, bfloat16=plain) | {"error": error}


def loaded(args: argparse.Namespace, folder: Path, dequantize: bool) -> Small4ForCausalLM:
    """The model on the device."""
    return Small4ForCausalLM.from_pretrained(folder, dequantize=dequantize, device_map={"": args.device})


def cache_of(model: Small4ForCausalLM, ids: torch.Tensor) -> LatentCache:
    """A cache that holds a prompt."""
    cache = LatentCache(model.config.get_text_config(), capacity=ids.shape[1] + 8)
    model.model(input_ids=ids, past_key_values=cache)
    return cache


def planned(args: argparse.Namespace, form: str, length: int) -> int:
    """Bytes that the planner foretells for loading and for a prompt of `length` tokens."""
    device = Device(0, "gpu", 2**42, 9.0) if args.device.type == "cuda" else Device("cpu", "ram", 2**42)
    machine = Machine("here", (device,), None) if args.device.type == "cuda" else Machine("here", (), device)
    return plan(config(args.small), machine, form, context=length, chunk=length, images=0).loads[0].used


def demo(args: argparse.Namespace) -> Rows:
    """Greedy answers of the demo checkpoint in float32, on the device and on the CPU."""
    folder = demo_checkpoint()
    question = [{"role": "user", "content": PROMPT}]
    prompt = Small4Processor.from_pretrained(folder).apply_chat_template(
        question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answers = []
    for device in (torch.device("cpu"), args.device):
        model = Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": device})
        answers.append(model.generate(**prompt.to(device), max_new_tokens=64, do_sample=False).cpu())
    return {"demo": {"equal": torch.equal(*answers), "tokens": answers[0].shape[1]}}


def residency(args: argparse.Namespace) -> Rows:
    """The benchmark of experts on disk, which has a command of its own."""
    if args.small:
        return {}
    return child("model_card.bench.residency", "--layers", 1, "--experts", 16, "--tokens", 8, "--shares", 0.5)["rows"]


def tried(name: str, part: Callable[[], Rows]) -> Rows:
    """The rows of a part, or one that says why there are none."""
    try:
        return part()
    except (Exception, SystemExit) as error:  # the other parts are worth their time all the same
        traceback.print_exc()
        return {name: {"failed": f"{type(error).__name__}: {error}"[:500]}}


def measured(args: argparse.Namespace, folder: Path) -> Rows:
    """All rows, `folder` being for checkpoints."""
    parts: dict[str, Callable[[], Rows]] = {"demo": partial(demo, args), "kernels": partial(kernels, args)}
    parts["native FP8"] = partial(native_fp8, args)
    parts |= {f"layer, {form}": partial(layer, args, form, folder) for form in stored_memory.FORMS}
    parts["residency"] = partial(residency, args)
    rows: Rows = {}
    for name, part in parts.items():
        rows |= tried(name, part)
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=10)
    parser.set_defaults(budget=3.0)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the command")
    args = read(parser)
    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="small4-bench-") as work:
        rows = measured(args, Path(work))
    columns = {"ours_ms": "9.3f", "bfloat16_ms": "9.3f", "speedup_bfloat16": "8.2f", "error": "8.1e"}
    report(args, {"rows": rows}, columns | {"peak_bytes": "12.4g", "planned_bytes": "12.4g"})


if __name__ == "__main__":
    main()
