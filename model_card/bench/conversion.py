"""Speed and memory of conversion: full-width FP8 layers, against a plain copy of the same files and against holding all
in memory.

    python -m model_card.bench.conversion [--layers 2] [--runs 3] [--out model_card/results/conversion.json]

from the repository root; needs three times the checkpoint (6.5 GB for 2 layers) on disk and, for the way that holds all
in memory, 2.5 times of it free. Each way runs in a process of its own, in turns; files are dropped from the page cache
before each and synced after. First checks that the converted folder goes back to the source bit by bit. Prints a table,
and one JSON line last.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from small4_conversion.checkpoint import CHUNK, Reader, header_bytes, read_headers, width
from small4_conversion.memory import peak_rss_bytes
from small4_conversion.naming import leaves, place_raw
from small4_conversion.raw import config_from_params
from small4_conversion.verify import compare

from model_card.bench.harness import store
from model_card.tekken_content import published

VOCABULARY, CONTROL = 2048, 1000


def released_params(layers: int) -> dict[str, Any]:
    """The release's text model with fewer layers and a small vocabulary, so that nearly all of it is experts."""
    rope = {"original_max_position_embeddings": 8192}
    return {
        "dim": 4096, "n_layers": layers, "n_heads": 32, "n_kv_heads": 32, "head_dim": 128, "hidden_dim": 12288,
        "norm_eps": 1e-6,
        "vocab_size": VOCABULARY, "rope_theta": 10000.0, "max_position_embeddings": 1048576, "tied_embeddings": False,
        "q_lora_rank": 1024, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "yarn": {"factor": 128, "beta": 32, "alpha": 1, "apply_scale": False, **rope},
        "llama_4_scaling": {"beta": 0.1, **rope},
        "moe": {"num_experts": 128, "num_experts_per_tok": 4, "expert_hidden_dim": 2048, "num_shared_experts": 1},
        "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
    }  # fmt: skip


def write_source(folder: Path, layers: int, shards: int = 3) -> None:
    """A raw FP8 checkpoint of random codes, dealt round over `shards` files, one tensor in memory at a time."""
    folder.mkdir()
    params = released_params(layers)
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tekken.json").write_text(json.dumps(published(VOCABULARY, CONTROL)))
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for leaf in leaves(config_from_params(params, folder / "params.json")):
        entries.append((leaf.raw, "F8_E4M3" if leaf.linear else "BF16", leaf.shape))
        entries += [
            (place_raw(leaf).beside(name), "BF16", ()) for name in ("qscale_weight", "qscale_act") if leaf.linear
        ]
    generator = torch.Generator().manual_seed(0)
    for i in range(shards):
        part = sorted(entries[i::shards], key=lambda e: -width(e[1]))
        with (folder / f"consolidated-{i + 1:05d}-of-{shards:05d}.safetensors").open("wb") as file:
            file.write(header_bytes(part))
            for name, dtype, shape in part:
                file.write(_values(name, dtype, shape, generator))
            file.flush()
            os.fsync(file.fileno())


def _values(name: str, dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> memoryview:
    if dtype == "F8_E4M3":
        codes = torch.randint(0, 0x7F, shape, dtype=torch.uint8, generator=generator)  # 0x7F is NaN
        return codes.view(-1).numpy().data
    numbers = torch.rand(shape, generator=generator) * (1e-3 if "qscale" in name else 1.0) + 1e-4
    return numbers.bfloat16().view(-1).view(torch.uint8).numpy().data


def copy(source: Path, target: Path) -> None:
    """The plain copy: the same files, read and written in the same pieces, synced."""
    target.mkdir()
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb", buffering=0) as old, (target / file.name).open("wb", buffering=0) as new:
            buffer = memoryview(bytearray(CHUNK))
            while got := old.readinto(buffer):
                new.write(buffer[:got])
            os.fsync(new.fileno())


def in_memory(source: Path, target: Path) -> None:
    """The way of transformers' own converter: read every tensor, fuse the experts of each layer, then save the whole.

    As there, gate and up rows of an expert are quantized again to the larger of their two scales.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    for layer in range(json.loads((source / "params.json").read_text())["n_layers"]):
        stacks: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("gate_up", "gate_up_scale", "down", "down_scale")
        }
        for expert in range(128):
            stem = f"layers.{layer}.experts.{expert}"
            gate, up, down = (tensors.pop(f"{stem}.{w}.weight") for w in ("w1", "w3", "w2"))
            scales = [tensors.pop(f"{stem}.{w}.qscale_weight") for w in ("w1", "w3", "w2")]
            for w in ("w1", "w3", "w2"):
                del tensors[f"{stem}.{w}.qscale_act"]
            shared = torch.maximum(scales[0], scales[1])
            halves = [
                (codes.bfloat16() * (scale / shared)).clamp(-448, 448).to(torch.float8_e4m3fn)
                for codes, scale in ((gate, scales[0]), (up, scales[1]))
            ]
            for name, value in (
                ("gate_up", torch.cat(halves)),
                ("gate_up_scale", shared),
                ("down", down),
                ("down_scale", scales[2]),
            ):
                stacks[name].append(value)
        tensors |= {f"layers.{layer}.experts.{name}": torch.stack(values) for name, values in stacks.items()}
    target.mkdir()
    save_torch_state_dict(tensors, target, max_shard_size="5GB")
    for file in target.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def ours(source: Path, target: Path) -> None:
    """`small4 convert SOURCE TARGET --no-manifest`: writing alone, as the other ways."""
    from small4_conversion.convert import Options, convert

    convert(source, target, Options(manifest=False))


WAYS = {"copy": copy, "convert": ours, "in memory": in_memory}


def one_run(way: str, source: Path, target: Path) -> dict[str, float]:
    """Run one way in a new process; returns its seconds (imports not counted) and peak memory in bytes."""
    for file in source.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    command = [sys.executable, "-m", "model_card.bench.conversion", "--way", way, str(source), str(target)]
    try:
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    finally:
        shutil.rmtree(target, ignore_errors=True)


def check(source: Path, work: Path) -> None:
    """Converted and back again, every tensor has the bytes it had; and both compare equal in real value."""
    from small4_conversion.convert import Options, convert

    convert(source, work / "there", Options(manifest=False))
    assert not compare(source, work / "there")[1]
    convert(work / "there", work / "back", Options(to="mistral", manifest=False))
    shutil.rmtree(work / "there")
    first, second = (read_headers(sorted(f.glob("*.safetensors"))) for f in (source, work / "back"))
    assert first.keys() == second.keys()
    with Reader() as reader:
        for name, stored in first.items():
            assert reader.same_bytes(stored, second[name]), name
    shutil.rmtree(work / "back")


def measure(layers: int, runs: int, work: Path) -> dict[str, Any]:
    """All runs, interleaved, first and second in turns; medians, of seconds and of the ratios to the copy of the same
    round.
    """
    source = work / "raw"
    write_source(source, layers)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    check(source, work)
    taken: dict[str, list[dict[str, float]]] = {"copy": [], "convert": []}
    for i in range(runs):
        for way in ("copy", "convert") if i % 2 else ("convert", "copy"):
            taken[way].append(one_run(way, source, work / "out"))
    if _free_memory() > 2.5 * size:
        taken["in memory"] = [one_run("in memory", source, work / "out")]
    out: dict[str, Any] = {"layers": layers, "runs": runs, "bytes": size, "ways": {}}
    for way, rows in taken.items():
        seconds = [row["seconds"] for row in rows]
        middle = statistics.median(seconds)
        ratios = [mine / copied["seconds"] for mine, copied in zip(seconds, taken["copy"], strict=False)]
        out["ways"][way] = {
            "seconds": middle,
            "gb_per_s": size / middle / 1e9,
            "against_copy": statistics.median(ratios),
            "peak_rss_bytes": max(row["peak_rss_bytes"] for row in rows),
            "all_seconds": seconds,
        }
    return out


def _free_memory() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", nargs=3, metavar=("WAY", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        import small4_conversion.tokenizer  # noqa: F401  (imports are not what is measured)

        began = time.perf_counter()
        WAYS[args.way[0]](Path(args.way[1]), Path(args.way[2]))
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_rss_bytes": peak_rss_bytes()}))
        return
    with tempfile.TemporaryDirectory(prefix="small4-bench-") as work:
        result = measure(args.layers, args.runs, Path(work))
    print(f"{'way':<10} {'seconds':>8} {'GB/s':>6} {'against copy':>13} {'peak memory':>12}")
    for way, row in result["ways"].items():
        timing = f"{row['seconds']:8.2f} {row['gb_per_s']:6.2f} {row['against_copy']:13.2f}"
        print(f"{way:<10} {timing} {row['peak_rss_bytes'] / 1e9:9.2f} GB")
    store(args.out, result)


if __name__ == "__main__":
    main()
