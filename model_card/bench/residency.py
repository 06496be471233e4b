"""Experts read from disk as they are needed, against accelerate's disk offload of the same weights: bytes and seconds
of a decoded token.

    python -m model_card.bench.residency [--layers 1] [--experts 16] [--tokens 64] [--runs 3]
        [--shares 0.25 0.5 0.75] [--folder DIR] [--out model_card/results/residency.json]

from the repository root. Writes a bfloat16 checkpoint with experts of the released widths, 50 MB each, into DIR, and
removes it. Each way is run several times, the ways in turn, each run in a process of its own; the run of median time is
told. A run reads a prompt first that uses all experts, so that what is in memory is there; then the files are dropped
from the file cache before every token. The tokens are given, drawn at random: a model of random weights repeats itself,
and a cache would look too good. All ways of this package must answer each with the same next token, and accelerate's,
which rounds differently, 80 % of them. Routing is near to uniform, the worst case of a cache.

Estimates are those of the line at the start, with a profile of experts that other tokens wrote; of all in memory, that
of `small4 plan --measure`. Without a GPU, the accelerator is main memory: its seconds are those of a CPU.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from model_card.bench.decode import random_state
from model_card.bench.harness import child, options, read, report
from modeling_small4 import Small4Config, Small4ForCausalLM, loading_offloaded, save_expert_profile
from modeling_small4.experts_files import WatchedFile
from modeling_small4.experts_offloaded import ExpertStore, expert_store
from modeling_small4.experts_pool import READERS
from modeling_small4.loading_offloaded import estimate
from modeling_small4.planner.hardware import this_machine
from modeling_small4.planner.layout import plan
from modeling_small4.planner.measuring import measure
from modeling_small4.planner.speed import speed

PROMPT = 512  # tokens, which use every expert


def write(folder: Path, layers: int, experts: int, **widths: int) -> None:
    """A text-only checkpoint with few experts and a small vocabulary, in the released widths but for those given."""
    text = {"num_hidden_layers": layers, "n_routed_experts": experts, "vocab_size": 1024} | widths
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


class CountedLink:
    """A `Link` to an accelerator that is main memory, where there is none: copies are counted, their time means
    nothing.
    """

    device = torch.device("cpu")

    def mark(self) -> None:
        """What is computed is done when a call returns."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: None) -> None:
        """`MainMemory` counts it."""
        target.copy_(source)

    def free(self) -> int:
        """Enough."""
        return 2**40


def load(folder: Path, way: str, share: float) -> Any:
    """`disk`: accelerate's disk offload of every layer; `memory`: all in main memory, which is its CPU offload on a
    CPU; `experts`: a share of the experts in memory; `accelerator`: a share on it, all others in main memory.
    """
    if way == "memory":
        return Small4ForCausalLM.from_pretrained(folder, expert_memory=False)
    if way == "disk":
        homes = {"model.language_model.embed_tokens": "cpu", "model.language_model.layers": "disk",
                 "model.language_model.norm": "cpu", "lm_head": "cpu"}  # fmt: skip
        return Small4ForCausalLM.from_pretrained(folder, device_map=homes, offload_folder=folder / "offloaded")
    whole = Small4Config.from_pretrained(folder).text_config
    total = whole.n_routed_experts * whole.num_hidden_layers
    each = 3 * whole.hidden_size * whole.moe_intermediate_size * 2
    size = max(round(share * total), whole.num_experts_per_tok) * each
    if way == "experts":
        return Small4ForCausalLM.from_pretrained(folder, expert_memory=size)
    memory = {"gpu": size, "cpu": total * each}
    if torch.cuda.is_available():
        return Small4ForCausalLM.from_pretrained(folder, expert_memory=memory)
    with patch.object(loading_offloaded, "accelerator", lambda *_: CountedLink()):
        return Small4ForCausalLM.from_pretrained(folder, expert_memory=memory)


@torch.inference_mode()
def decoded(folder: Path, way: str, share: float, tokens: int) -> dict[str, Any]:
    """Tokens one by one, the files dropped between them; the first quarter only warms up."""
    before = resident_bytes()
    model = load(folder, way, share)
    home = model.get_input_embeddings().weight.device
    store = expert_store(model)
    row: dict[str, Any] = {"estimated_ms": 1e3 * estimated(model, store, folder)} if way != "disk" else {}
    for thread in threading.enumerate():
        if thread.name == "small4-fill":
            thread.join()
    output = model(drawn(PROMPT, 2).to(home)[None], use_cache=True)
    ids, taken, begin_bytes, hits, misses, begin_copied = [], [], 0, 0, 0, 0
    given = drawn(tokens, 1)
    for step in range(tokens):
        drop(folder)
        if step == tokens // 4:
            begin_bytes = disk_bytes()
            hits, misses = (store.pool.hits, store.pool.misses) if store else (0, 0)
            begin_copied = copied(store)
        begin = time.perf_counter()
        ids.append(int(output.logits[0, -1].argmax()))
        output = model(given[step].view(1, 1).to(home), past_key_values=output.past_key_values, use_cache=True)
        taken.append(time.perf_counter() - begin)
    kept = taken[tokens // 4 :]
    row |= {"ids": ids, "ms": 1e3 * sum(kept) / len(kept), "mb": (disk_bytes() - begin_bytes) / len(kept) / 1e6}
    row["resident_gb"] = (resident_bytes() - before) / 1e9
    if store:
        found = store.pool.hits - hits, store.pool.misses - misses
        limit = store.pool.memory.nbytes + (store.below.pool.memory.nbytes if store.below else 0)
        row |= {"hit_rate": found[0] / max(1, sum(found)), "limit_gb": limit / 1e9}
        row["copied_mb"] = (copied(store) - begin_copied) / len(kept) / 1e6
        row["need_mb"] = found[1] * store.layers[0].nbytes / len(kept) / 1e6
    return row


def drawn(tokens: int, seed: int) -> torch.Tensor:
    """Token ids at random."""
    return torch.randint(1024, (tokens,), generator=torch.Generator().manual_seed(seed))


def copied(store: ExpertStore | None) -> int:
    """Bytes copied to and from the accelerator so far."""
    return store.below.up + store.below.down if store and store.below else 0


def estimated(model: Any, store: ExpertStore | None, folder: Path) -> float:
    """Seconds of a token, as they were said when the model was loaded, or as the planner says of experts that are all
    in memory.
    """
    if store is not None:
        assert store.rates is not None
        assert store.others is not None
        text = model.config.text_config
        chosen = text.num_experts_per_tok * (text.num_hidden_layers - text.first_k_dense_replace)
        return estimate(store, store.rates, store.others, chosen).seconds
    made = plan(model.config, replace(this_machine(), gpus=()), "bfloat16", context=2 * PROMPT)
    found = speed(model.config, made, measure("bfloat16", folder))
    assert found is not None
    return 1 / found.tokens_per_second


@torch.inference_mode()
def write_profile(folder: Path, tokens: int) -> None:
    """Which experts are chosen after the same prompt by other tokens than those that are timed."""
    model = load(folder, "experts", 1.0)
    store = expert_store(model)
    assert store is not None
    cache = model(drawn(PROMPT, 2)[None], use_cache=True).past_key_values
    store.usage.counts[:], store.usage.ranks[:], store.usage.tokens = 0, 0, 0
    for token in drawn(tokens, 3):
        model(token.view(1, 1), past_key_values=cache, use_cache=True)
    save_expert_profile(model, folder)


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All ways, each in its own process."""
    rows: dict[str, Any] = {}
    ways = [("accelerate, disk", "disk", 1.0), ("all in memory", "memory", 1.0)]
    ways += [(f"{share:.0%} of the experts", "experts", share) for share in args.shares]
    ways += [(f"{share:.0%} on an accelerator", "accelerator", share) for share in args.shares]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in ways}
    for _ in range(args.runs):
        for name, way, share in ways:
            given = {"worker": folder, "way": way, "share": share, "tokens": args.tokens, "threads": args.threads}
            made = child("model_card.bench.residency", *(x for n, v in given.items() for x in (f"--{n}", v)))
            runs[name].append(made)
    for name, found in runs.items():
        ordered = sorted(found, key=lambda row: row["ms"])
        rows[name] = ordered[len(ordered) // 2] | {"runs_ms": [row["ms"] for row in found]}
        if "estimated_ms" in ordered[0]:
            rows[name]["runs_estimated_ms"] = [row["estimated_ms"] for row in found]
    chosen = {name: row.pop("ids") for name, row in rows.items()}
    mapped, exact = chosen.pop("accelerate, disk"), chosen["all in memory"]
    same = sum(a == b for a, b in zip(mapped, exact, strict=True)) / len(exact)
    differ = any(row["ids"] != found[0]["ids"] for found in runs.values() for row in found)
    if differ or any(ids != exact for ids in chosen.values()) or same < 0.8:
        raise SystemExit("The ways choose different tokens; nothing is reported.")
    theirs = rows["accelerate, disk"]
    layers = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    for name, row in rows.items():
        if name.endswith("accelerator"):  # accelerate copies every layer to it for every token
            row["fewer_copied"] = layers / max(row["copied_mb"], 1e-3)
        else:
            row |= {"speedup": theirs["ms"] / row["ms"], "fewer_bytes": theirs["mb"] / max(row["mb"], 1e-3)}
    return rows


def disk_rate(folder: Path, gigabytes: float = 1.0) -> float:
    """Bytes per second that the disk gives for random pieces of the size of an expert's matrix, read by as many threads
    as experts are, past the file cache.
    """
    file = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    drop(folder)
    opened, size = WatchedFile(str(file)), 2**25
    places = torch.randperm(file.stat().st_size // size)[: max(1, int(gigabytes * 1e9 / size))].tolist()
    buffers = torch.ones(len(places), size, dtype=torch.uint8).numpy()
    begin = time.perf_counter()
    with ThreadPoolExecutor(READERS) as workers:
        list(workers.map(lambda n: opened.read(places[n] * size, buffers[n].data), range(len(places))))
    return len(places) * size / (time.perf_counter() - begin)


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=3)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary folder)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    args = read(parser)
    if args.worker:
        print(json.dumps(decoded(args.worker, args.way, args.share, args.tokens)), file=sys.stdout)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write(Path(folder), args.layers, args.experts)
        write_profile(Path(folder), 8 * args.tokens)
        rows = measured(args, Path(folder))
        disk = disk_rate(Path(folder)) / 1e9
    columns = {"ms": 9, "estimated_ms": 12, "mb": 9, "need_mb": 9, "copied_mb": 9, "hit_rate": 8, "resident_gb": 11,
               "limit_gb": 8, "speedup": 8, "fewer_bytes": 11, "fewer_copied": 12}  # fmt: skip
    report(args, {"rows": rows, "disk_gb_s": disk}, {name: f"{width}.2f" for name, width in columns.items()})


if __name__ == "__main__":
    main()
