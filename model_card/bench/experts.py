"""Routed experts of one full-width layer: the default on this device beside each of transformers' implementations, on
the same weights.

    python -m model_card.bench.experts [--tokens 1 32 256 2048] [--experts 128] [--dtype float32 --experts 64]
        [--out model_card/results/experts.json]

from the repository root; 128 experts take 6.5 GB in bfloat16. First every implementation is compared with float64, for
some of the tokens. `batched_mm` copies the weights of each token's experts; it is left out where the copies take more
than `--copies` bytes.
"""

import argparse
from functools import partial
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from model_card.bench.decode import random_state
from model_card.bench.harness import interleaved, options, read, report
from modeling_small4 import Small4TextConfig
from modeling_small4.moe import Small4Experts

NAMES = ("eager", "grouped_mm", "batched_mm")


def build(count: int, dtype: torch.dtype, device: torch.device, **sizes: int) -> Small4Experts:
    """Random experts of the released widths, unless `sizes` says otherwise."""
    config = Small4TextConfig(n_routed_experts=count, **sizes)
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        experts = Small4Experts(config)
    experts.load_state_dict(random_state(experts, dtype, device), assign=True)
    return experts


def theirs(name: str, experts: Small4Experts, *inputs: torch.Tensor) -> torch.Tensor:
    """One of transformers' own implementations."""
    eager = type(experts).forward.__wrapped__  # type: ignore[attr-defined]
    return ALL_EXPERTS_FUNCTIONS.get(name, eager)(experts, *inputs)


def exact(experts: Small4Experts, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The same in float64, token by token."""
    out = torch.zeros_like(hidden, dtype=torch.float64)
    for token, chosen in enumerate(index.tolist()):
        for slot, expert in enumerate(chosen):
            gate, up = (experts.gate_up_proj[expert].double() @ hidden[token].double()).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            out[token] += weights[token, slot].double() * (experts.down_proj[expert].double() @ inner)
    return out


def measured(args: argparse.Namespace, experts: Small4Experts, tokens: int) -> dict[str, Any]:
    """One row: this many tokens, each with experts drawn at random."""
    generator = torch.Generator(args.device).manual_seed(tokens)
    hidden = torch.empty(tokens, experts.hidden_dim, dtype=args.dtype, device=args.device).normal_(generator=generator)
    scores = torch.rand(tokens, experts.num_experts, device=args.device, generator=generator).softmax(dim=-1)
    config: Any = experts.config
    weights, index = scores.topk(config.num_experts_per_tok)
    inputs = hidden, index, (weights / weights.sum(dim=-1, keepdim=True)).to(args.dtype)
    wide = experts.gate_up_proj[0].numel() * experts.gate_up_proj.element_size()
    fits = index.numel() * wide <= args.copies
    ways = {"ours": partial(experts, *inputs)} | {n: partial(theirs, n, experts, *inputs) for n in NAMES}
    ways = {name: way for name, way in ways.items() if name != "batched_mm" or fits}
    some = slice(0, 4)
    reference = exact(experts, *(each[some] for each in inputs))
    row: dict[str, Any] = {"tokens": tokens, "experts_chosen": index.unique().numel()}
    for name, way in ways.items():
        error = ((way()[some].double() - reference).norm() / reference.norm()).item()
        if error > (0.02 if args.dtype == torch.bfloat16 else 1e-5):
            raise SystemExit(f"{name} is {error:.2g} away from float64 for {tokens} tokens; nothing was timed.")
        row[f"{name}_error"] = error
    row |= interleaved(args, **ways)
    return row | {"speedup_best": min(row[f"speedup_{name}"] for name in ways if name != "ours")}


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 32, 256, 2048])
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--copies", type=float, default=7e9, help="bytes that batched_mm may take for its copies")
    args = read(parser)
    experts = build(args.experts, args.dtype, args.device)
    with torch.inference_mode():
        rows = {f"{tokens} tokens": measured(args, experts, tokens) for tokens in args.tokens}
    columns = {f"{name}_ms": "10.1f" for name in ("ours", *NAMES)} | {"speedup_best": "8.2f"}
    report(args, {"rows": rows}, columns | {"ours_error": "8.1e", "grouped_mm_error": "8.1e"})


if __name__ == "__main__":
    main()
