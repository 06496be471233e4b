"""Experts read from disk as they are needed, against accelerate's disk offload of the same weights: bytes and seconds
of a decoded token.

    python -m model_card.bench.residency [--layers 1] [--experts 16] [--tokens 24] [--shares 0.25 0.5 0.75]
        [--folder DIR] [--out model_card/results/residency.json]

from the repository root. Writes a bfloat16 checkpoint with experts of the released widths, 50 MB each, into DIR, and
removes it. Each way runs in a process of its own, with the files dropped from the file cache first and after every
token. The tokens are given, drawn at random: a model of random weights repeats itself, and a cache would look too good.
All ways must answer each with the same next token. Runs on the CPU; routing is near to uniform, the worst case of a
cache.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from model_card.bench.decode import random_state
from model_card.bench.harness import child, options, read, report
from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.loading_offloaded import expert_store


def write(folder: Path, layers: int, experts: int) -> None:
    """A text-only checkpoint of full-width layers with few experts and a small vocabulary."""
    text = {"num_hidden_layers": layers, "n_routed_experts": experts, "vocab_size": 1024}
    with torch.device("meta"):
        model = Small4ForCausalLM(Small4Config(text_config=text, vision_config=None))
    model.load_state_dict(random_state(model, torch.bfloat16, torch.device("cpu")), assign=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1GB")


def drop(folder: Path) -> None:
    """Take the files out of the file cache. Pages that are mapped stay."""
    os.sync()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """Bytes that this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def resident_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def load(folder: Path, share: float | None) -> Small4ForCausalLM:
    """With a share of the experts in memory; None: accelerate's disk offload of every layer."""
    if share is None:
        homes = {"model.language_model.embed_tokens": "cpu", "model.language_model.layers": "disk",
                 "model.language_model.norm": "cpu", "lm_head": "cpu"}  # fmt: skip
        return Small4ForCausalLM.from_pretrained(folder, device_map=homes, offload_folder=folder / "offloaded")
    whole = Small4Config.from_pretrained(folder).text_config
    count = round(share * whole.n_routed_experts * whole.num_hidden_layers)
    each = 3 * whole.hidden_size * whole.moe_intermediate_size * 2
    return Small4ForCausalLM.from_pretrained(folder, expert_memory=max(count, whole.num_experts_per_tok) * each)


@torch.inference_mode()
def decoded(folder: Path, share: float | None, tokens: int) -> dict[str, Any]:
    """Tokens one by one, the files dropped between them; the first quarter only warms up."""
    before = resident_bytes()
    model = load(folder, share)
    output = model(torch.arange(8)[None], use_cache=True)
    ids, taken, begin_bytes, hits, misses = [], [], 0, 0, 0
    store = expert_store(model)
    given = torch.randint(1024, (tokens,), generator=torch.Generator().manual_seed(1))
    for step in range(tokens):
        drop(folder)
        if step == tokens // 4:
            begin_bytes = disk_bytes()
            hits, misses = (store.pool.hits, store.pool.misses) if store else (0, 0)
        begin = time.perf_counter()
        ids.append(int(output.logits[0, -1].argmax()))
        output = model(given[step].view(1, 1), past_key_values=output.past_key_values, use_cache=True)
        taken.append(time.perf_counter() - begin)
    kept = taken[tokens // 4 :]
    row = {"ids": ids, "ms": 1e3 * sorted(kept)[len(kept) // 2], "mb": (disk_bytes() - begin_bytes) / len(kept) / 1e6}
    row["resident_gb"] = (resident_bytes() - before) / 1e9
    if store:
        found = store.pool.hits - hits, store.pool.misses - misses
        row |= {"hit_rate": found[0] / max(1, sum(found)), "limit_gb": store.pool.memory.nbytes / 1e9}
    return row


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All ways, each in its own process."""
    rows: dict[str, Any] = {}
    ways = {"accelerate, disk": None} | {f"{share:.0%} of the experts": share for share in args.shares}
    for name, share in ways.items():
        given = (
            "--worker",
            folder,
            "--share",
            -1 if share is None else share,
            "--tokens",
            args.tokens,
            "--threads",
            args.threads,
        )
        rows[name] = child("model_card.bench.residency", *given)
    chosen = {tuple(row.pop("ids")) for row in rows.values()}
    if len(chosen) > 1:
        raise SystemExit("The ways choose different tokens; nothing is reported.")
    theirs = rows["accelerate, disk"]
    for row in rows.values():
        row |= {"speedup": theirs["ms"] / row["ms"], "fewer_bytes": theirs["mb"] / max(row["mb"], 1e-3)}
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary folder)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    args = read(parser)
    if args.worker:
        print(json.dumps(decoded(args.worker, None if args.share < 0 else args.share, args.tokens)), file=sys.stdout)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write(Path(folder), args.layers, args.experts)
        rows = measured(args, Path(folder))
    form = {
        "ms": "9.1f",
        "mb": "9.1f",
        "hit_rate": "9.2f",
        "resident_gb": "11.2f",
        "limit_gb": "9.2f",
        "speedup": "8.2f",
        "fewer_bytes": "11.2f",
    }
    report(args, {"rows": rows}, form)


if __name__ == "__main__":
    main()
