"""Decoding and prefill of one full-width layer beside transformers' `mistral4`, on the same weights, in one process.

    python -m model_card.bench.decode [--contexts 64 4096 16384 65536] [--prefill 1024] [--experts 128] [--dtype bfloat16]
        [--runs 5] [--threads 2] [--out model_card/results/decode.json]

from the repository root; one layer of 128 experts takes 6.5 GB in bfloat16. Both sides read the same tensors and caches filled with the
same latents; their outputs are compared first. Each figure is the median of interleaved runs. Prints a table, and one JSON line last.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, Mistral4Config
from transformers.models.mistral4.modeling_mistral4 import Mistral4Model

from model_card.evals.record import provenance
from modeling_small4 import LatentCache, Small4TextConfig, Small4TextModel

VOCABULARY = 1024  # the embedding is no part of what is measured


def build(experts: int, dtype: torch.dtype) -> tuple[Small4TextModel, Mistral4Model]:
    """One layer of the released widths, ours and transformers', sharing every tensor."""
    ours_config = Small4TextConfig(vocab_size=VOCABULARY, num_hidden_layers=1, n_routed_experts=experts)
    rope = {"attention_factor": 1.0, "mscale_all_dim": 0.0, "partial_rotary_factor": 0.5}
    host_config = Mistral4Config(
        vocab_size=VOCABULARY,
        num_hidden_layers=1,
        n_routed_experts=experts,
        rope_parameters=ours_config.rope_parameters | rope,
        attn_implementation="sdpa",
    )
    ours_config._attn_implementation = "sdpa"
    ours_config._experts_implementation = host_config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        ours = Small4TextModel(ours_config)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in ours.named_parameters():
        noise = torch.empty(parameter.shape, dtype=dtype).normal_(generator=generator)
        state[name] = 1 + 0.1 * noise if parameter.ndim == 1 else noise.mul_(parameter.shape[-1] ** -0.5)
    ours.load_state_dict(state, assign=True)
    with torch.device("meta"):
        host = Mistral4Model(host_config)
    host.load_state_dict(state, assign=True)
    host.rotary_emb = type(host.rotary_emb)(host_config)
    return ours.eval(), host.eval()


def filled(ours: Small4TextModel, context: int, dtype: torch.dtype) -> tuple[LatentCache, DynamicCache]:
    """Both caches holding the same random latents of `context` tokens."""
    tokens = torch.randn(1, 1, context, 320, generator=torch.Generator().manual_seed(context)).to(dtype)
    mine, theirs = LatentCache(ours.config, capacity=context + 64), DynamicCache()
    mine.update(tokens, None, 0)
    theirs.update(tokens[..., :256], tokens[..., 256:], 0)
    return mine, theirs


def paired(runs: int, first: Callable[[], Any], second: Callable[[], Any]) -> dict[str, float]:
    """Median milliseconds of both, and the median ratio of interleaved pairs."""
    seconds: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        pair = []
        for run in (first, second):
            begin = time.perf_counter()
            run()
            pair.append(time.perf_counter() - begin)
        seconds.append((pair[0], pair[1]))
    kept = seconds[1:]  # the first round warms up
    ours, theirs = (statistics.median(pair[side] for pair in kept) * 1e3 for side in (0, 1))
    return {"ours_ms": ours, "transformers_ms": theirs, "speedup": statistics.median(b / a for a, b in kept)}


def step(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """Output of new tokens behind a cache, which is left as it was."""
    seen = cache.get_seq_length()
    positions = torch.arange(seen, seen + ids.shape[1])[None]
    output = model(input_ids=ids, past_key_values=cache, position_ids=positions).last_hidden_state
    cache.crop(-ids.shape[1])
    return output


def check(mine: torch.Tensor, theirs: torch.Tensor, what: str) -> float:
    """Median difference relative to the median size of outputs; far apart is an error, not a figure.

    The median, since in bfloat16 a token whose experts are close to a tie may choose others on either side.
    """
    error = ((mine - theirs).float().abs().median() / theirs.float().abs().median()).item()
    if error > 0.02:
        raise SystemExit(f"outputs differ by {error:.3f} of their size in {what}; nothing was timed")
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="*", default=[64, 4096, 16384, 65536])
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024])
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    ours, host = build(args.experts, dtype)
    rows: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for context in args.contexts:
            ids, (mine, theirs) = torch.tensor([[7]]), filled(ours, context, dtype)
            error = check(step(ours, ids, mine), step(host, ids, theirs), f"decoding at {context}")
            figures = paired(args.runs, lambda: step(ours, ids, mine), lambda: step(host, ids, theirs))  # noqa: B023
            rows[f"decode at {context}"] = figures | {"relative_error": error, "cache_bytes": mine.nbytes}
        for length in args.prefill:
            ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))

            def run(model: Any) -> torch.Tensor:
                return model(input_ids=ids, use_cache=True).last_hidden_state  # noqa: B023

            error = check(run(ours), run(host), f"prefill of {length}")
            rows[f"prefill of {length}"] = paired(args.runs, lambda: run(ours), lambda: run(host)) | {
                "relative_error": error
            }
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    result = {"rows": rows, "settings": settings} | provenance(["python", *sys.orig_argv[1:]])
    print(f"{'':<20} {'ours ms':>10} {'transformers ms':>16} {'speed-up':>9}")
    for name, row in rows.items():
        print(f"{name:<20} {row['ours_ms']:10.1f} {row['transformers_ms']:16.1f} {row['speedup']:9.2f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
