"""Memory of a quantized checkpoint that is held as stored: bytes of its files, of the process, and of the planner.

    python -m model_card.bench.stored_memory [--layers 10] [--experts 16] [--prompt 512] [--cold]
                                             [--out model_card/results/stored_memory.json]

from the repository root; needs 1.3 GB of disk and of memory. The checkpoints are the release made smaller, its codes
drawn at random: FP8 and NVFP4 as released, and 4-bit groups of 128. Each is loaded in a process of its own, which reads
a prompt long enough to meet every expert and writes ten tokens; counted is the growth of its resident memory from
before `from_pretrained` to the end. Files are mapped, so what is read of them counts. What a process takes once for any
model, libraries and compiled kernels, is brought in before by a model of the same widths with one layer and four
experts; with `--cold` it is not, and counts as the model's. First checks that the parameters are as many bytes as the
files.
"""

import argparse
import ctypes
import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small4_conversion.checkpoint import header_bytes
from small4_conversion.memory import peak_rss_bytes

from model_card.bench.harness import child, options, read, report
from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.planner.hardware import Device, Machine
from modeling_small4.planner.layout import plan
from modeling_small4.planner.sizes import NVFP4_BLOCK, Tensor, tensors

FORMS = ("fp8", "nvfp4", "int4")
ENTRIES: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    "nvfp4": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    "int4": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}
ANSWER, GROUP = 10, 128
RUNS = 3  # processes for each row; their peaks scatter by what the allocator keeps, and the median is the row's
Part = tuple[str, str, tuple[int, ...]]


def scaled_down(layers: int, experts: int) -> Small4Config:
    """The release's text model, half as wide, with fewer layers, experts and words."""
    text = {
        "vocab_size": 2048, "hidden_size": 2048, "moe_intermediate_size": 1024, "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "q_lora_rank": 512, "kv_lora_rank": 256, "n_routed_experts": experts,
    }  # fmt: skip
    return Small4Config(text_config=text, vision_config=None, dtype="bfloat16")


def parts(tensor: Tensor, form: str) -> Iterator[Part]:
    """Name, dtype and shape of everything that is stored of a weight."""
    *experts, rows, columns = tensor.shape if tensor.kind != "plain" else (0, 0)
    if tensor.kind == "plain" or (form == "nvfp4" and "experts" not in tensor.part):
        yield tensor.name, "BF16", tensor.shape
        return
    halves = 2 if tensor.name.endswith("gate_up_proj") else 1
    begin = f"{tensor.name}_" if experts else f"{tensor.name.removesuffix('weight')}"
    if form == "fp8":
        yield tensor.name, "F8_E4M3", tensor.shape
        yield f"{tensor.name}_scale_inv", "BF16", (*experts, halves, 1) if experts else ()
        yield f"{begin}activation_scale", "BF16", (*experts, *([2] if halves == 2 else [])) if experts else ()
    elif form == "nvfp4":
        yield f"{tensor.name}_packed", "U8", (*experts, rows, columns // 2)
        yield f"{tensor.name}_scale", "F8_E4M3", (*experts, rows, columns // NVFP4_BLOCK)
        yield f"{tensor.name}_global_scale", "F32", (*experts, halves) if experts else (1,)
        yield f"{begin}input_global_scale", "F32" if experts else "BF16", (*experts, halves) if experts else (1,)
    else:
        yield f"{tensor.name}_packed", "I32", (*experts, rows, columns // 8)
        yield f"{tensor.name}_scale", "BF16", (*experts, rows, columns // GROUP)


def write(folder: Path, config: Small4Config, form: str) -> int:
    """A folder of random codes in `form`; returns the bytes of its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict() | {"quantization_config": ENTRIES[form]}))
    generator, total = torch.Generator().manual_seed(0), 0
    entries = sorted(
        (part for tensor in tensors(config) for part in parts(tensor, form)), key=lambda part: _alignment(part[1])
    )
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header_bytes(entries))
        for name, dtype, shape in entries:
            body = _values(name, dtype, shape, generator).contiguous().view(-1).view(torch.uint8).numpy()
            total += body.nbytes
            file.write(body.data)
    return total


def _alignment(dtype: str) -> int:
    return {"F32": 0, "I32": 0, "BF16": 1}.get(dtype, 2)


def _values(name: str, dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Codes of both signs, and scales that keep the numbers small."""
    if dtype in ("U8", "I32"):
        shape = (*shape[:-1], shape[-1] * (4 if dtype == "I32" else 1))
        low, high = (torch.randint(1, 16, shape, dtype=torch.uint8, generator=generator) for _ in range(2))
        return low + 16 * high
    if dtype == "F8_E4M3":
        if name.endswith("_scale"):
            return torch.randint(0x20, 0x38, shape, dtype=torch.uint8, generator=generator)
        return torch.randint(0x20, 0x50, shape, dtype=torch.uint8, generator=generator) + 128 * torch.randint(
            0, 2, shape, dtype=torch.uint8, generator=generator
        )
    if dtype == "F32":
        return torch.full(shape, 20.0)
    if "scale" in name:
        return 0.01 * torch.ones(shape, dtype=torch.bfloat16)
    return (
        torch.ones(shape).bfloat16() if "norm" in name else (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    )


@torch.inference_mode()
def one(folder: Path, tokens: int, cold: bool) -> dict[str, Any]:
    """Load and answer in this process: the growth of resident memory, and bytes of parameters."""
    if not cold:
        answered(folder.with_suffix(".warm"), tokens)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident
    before = peak_rss_bytes()
    held = answered(folder, tokens)
    return {"peak_bytes": peak_rss_bytes() - before, "parameter_bytes": held}


def answered(folder: Path, tokens: int) -> int:
    """Load a model and let it answer a prompt of `tokens`; returns the bytes of its parameters."""
    prompt = torch.randint(1000, 2000, (1, tokens), generator=torch.Generator().manual_seed(0))
    model = Small4ForCausalLM.from_pretrained(folder)
    answer = model.generate(prompt, max_new_tokens=ANSWER, do_sample=False, eos_token_id=None, pad_token_id=11)
    assert answer.shape == (1, tokens + ANSWER)
    return sum(parameter.nbytes for parameter in model.parameters())


def planned(config: Small4Config, form: str, tokens: int) -> int:
    """The planner's figure for the same work on a machine with enough memory."""
    machine = Machine("ram", (), Device("cpu", "ram", 2**42))
    return plan(config, machine, form, context=tokens + ANSWER, chunk=tokens, images=0).loads[0].used


def measured(args: argparse.Namespace, folder: Path, form: str) -> dict[str, Any]:
    """One row."""
    config = scaled_down(args.layers, args.experts)
    stored = write(folder / form, config, form)
    write(folder / f"{form}.warm", scaled_down(1, 4), form)
    work = ["--one", folder / form, "--threads", args.threads, "--prompt", args.prompt]
    found = [child("model_card.bench.stored_memory", *work, *(["--cold"] if args.cold else [])) for _ in range(RUNS)]
    if {each["parameter_bytes"] for each in found} != {stored}:
        raise SystemExit(f"{form}: what is held is not what is stored.")
    peaks = sorted(each["peak_bytes"] for each in found)
    expected = planned(config, form, args.prompt)
    return {
        "stored_bytes": stored,
        "peak_bytes": peaks[RUNS // 2],
        "planned_bytes": expected,
        "peak_to_planned": peaks[RUNS // 2] / expected,
        "largest_to_planned": peaks[-1] / expected,
    }


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--cold", action="store_true", help="count what any model brings in, too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = read(parser)
    if args.one:
        print(json.dumps(one(args.one, args.prompt, args.cold)))
        return
    with tempfile.TemporaryDirectory(prefix="small4-bench-") as work:
        rows = {form: measured(args, Path(work), form) for form in FORMS}
    plain = sum(2 * tensor.count for tensor in tensors(scaled_down(args.layers, args.experts)))
    columns = {"stored_bytes": "12.4g", "peak_bytes": "12.4g", "planned_bytes": "12.4g", "peak_to_planned": "8.3f"}
    columns["largest_to_planned"] = "8.3f"
    report(args, {"rows": rows, "bfloat16_bytes": plain}, columns)


if __name__ == "__main__":
    main()
