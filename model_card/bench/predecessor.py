"""Small 4 beside the architecture of Mistral Small 3 (24 B, dense), both at full width: one layer of each times its
layers, plus the head.

    python -m model_card.bench.predecessor [--latency 64 4096] [--batches 16 64] [--context 1024] [--prefill 1024]
        [--out model_card/results/predecessor.json]

from the repository root; 6.5 GB for a layer of 128 experts in bfloat16. Latency is one token for one sequence;
throughput is tokens per second of a step for a batch, and of reading prompts. Small 3 runs in transformers'
`MistralModel`. `transformers` is that as it is; `same_kernel` has its linear layers multiplied as ours are on a CPU, so
that what remains is the architecture. Two architectures have no outputs in common; what is checked first is that each
side's steps behind a cache equal its own forward without one.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, MistralConfig, MistralModel
from transformers.cache_utils import Cache

from model_card.bench.decode import VOCABULARY, filled, prefill, random_state, step
from model_card.bench.harness import interleaved, options, read, relative_error, report
from modeling_small4 import LatentCache, Small4TextConfig, Small4TextModel
from modeling_small4.cpu_matmul import linear
from modeling_small4.modeling_small4 import Small4ForCausalLM

SMALL3 = {
    "hidden_size": 5120, "intermediate_size": 32768, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e8},
    "max_position_embeddings": 32768,
}  # fmt: skip
HEAD = 131072  # tokens of either vocabulary
LAYERS = {"ours": 36, "theirs": 40}


class Same(nn.Module):
    """A linear layer multiplied as ours are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(self.inner, inputs)


def build(args: argparse.Namespace, small: dict[str, Any], large: dict[str, Any]) -> list[Any]:
    """A layer of ours, a layer of theirs, that again with our kernel (same weights), and both heads. The dicts change
    sizes, for tests.
    """
    shared = {"vocab_size": VOCABULARY, "num_hidden_layers": 1}
    config = Small4TextConfig(**shared, **small)
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    dense = MistralConfig(**shared, **SMALL3 | large, sliding_window=None, attn_implementation="sdpa")
    with torch.device("meta"):
        ours, theirs, same = Small4TextModel(config), MistralModel(dense), MistralModel(dense)
        heads = [nn.Linear(width, args.head, bias=False) for width in (config.hidden_size, dense.hidden_size)]
    for model in (ours, theirs, *heads):
        model.load_state_dict(random_state(model, args.dtype, args.device), assign=True)
    same.load_state_dict(theirs.state_dict(), assign=True)
    for model in (theirs, same):
        model.rotary_emb = type(model.rotary_emb)(dense).to(args.device)
    for part in (same.layers[0].self_attn, same.layers[0].mlp):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, Same(child))
    return [ours.eval(), theirs.eval(), same.eval(), *heads]


def dense_cache(model: MistralModel, context: int, batch: int) -> DynamicCache:
    """A cache of `context` random tokens."""
    config, weight = model.config, model.embed_tokens.weight
    shape = (batch, config.num_key_value_heads, context, config.head_dim)
    key, value = (torch.randn(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
    cache = DynamicCache()
    cache.update(key, value, 0)
    return cache


def check(model: Small4ForCausalLM, cache: Cache, device: torch.device, what: str) -> None:
    """The last tokens of a text behind a cache of the others equal those of the whole text at once."""
    ids = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0)).to(device)
    whole = model(input_ids=ids, use_cache=False).last_hidden_state[:, -8:]
    model(input_ids=ids[:, :-8], past_key_values=cache)
    relative_error(step(model, ids[:, -8:], cache), whole, f"{what} behind a cache")


def whole(
    args: argparse.Namespace, layers: Sequence[Callable], heads: Sequence[Callable], tokens: int
) -> dict[str, Any]:
    """One row: milliseconds of whole models from those of a layer and of a head, and the ratios."""
    layer = interleaved(args, layers[0], transformers=layers[1], same_kernel=layers[2])
    head = interleaved(args, heads[0], transformers=heads[1], same_kernel=heads[2])
    row: dict[str, Any] = {"tokens": tokens, "layer": layer, "head": head}
    for name in ("ours", "transformers", "same_kernel"):
        count = LAYERS["ours" if name == "ours" else "theirs"]
        row[f"{name}_ms"] = count * layer[f"{name}_ms"] + head[f"{name}_ms"]
        row[f"{name}_tokens_per_s"] = tokens / row[f"{name}_ms"] * 1e3
    for name in ("transformers", "same_kernel"):
        row[f"latency_to_{name}"] = row["ours_ms"] / row[f"{name}_ms"]
        row[f"throughput_to_{name}"] = row[f"{name}_ms"] / row["ours_ms"]
    return row


def measured(args: argparse.Namespace, parts: list[Any]) -> dict[str, Any]:
    """All rows."""
    ours, theirs, same, *heads = parts
    check(ours, LatentCache(ours.config), args.device, "Small 4")
    check(theirs, DynamicCache(), args.device, "Small 3")
    check(same, DynamicCache(), args.device, "Small 3 with our kernel")

    def headed(rows: int) -> list[Callable]:
        mine, other = (torch.randn(rows, h.in_features, dtype=args.dtype, device=args.device) for h in heads)
        runs = partial(linear, heads[0], mine), partial(heads[1], other), partial(linear, heads[1], other)
        return list(runs)

    def stepping(context: int, batch: int) -> dict[str, Any]:
        ids = torch.randint(VOCABULARY, (batch, 1), generator=torch.Generator().manual_seed(batch)).to(args.device)
        cache = dense_cache(theirs, context, batch)
        runs = [partial(step, ours, ids, filled(ours, context, batch)[0])]
        runs += [partial(step, model, ids, cache) for model in (theirs, same)]
        return {"batch": batch, "context": context} | whole(args, runs, headed(batch), batch)

    rows = {f"latency, context {n}": stepping(n, 1) for n in args.latency}
    rows |= {f"decoding, batch {b}": stepping(args.context, b) for b in args.batches}
    for length in args.prefill:
        ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length)).to(args.device)
        runs = [partial(prefill, model, ids) for model in (ours, theirs, same)]
        rows[f"reading {length} tokens"] = {"length": length} | whole(args, runs, headed(1), length)
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=3)
    parser.add_argument("--latency", type=int, nargs="*", default=[64, 4096], help="contexts, one sequence")
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--context", type=int, default=1024, help="of each sequence in a batch")
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024])
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--head", type=int, default=HEAD)
    args = read(parser)
    with torch.inference_mode():
        rows = measured(args, build(args, {"n_routed_experts": args.experts}, {}))
    columns = {f"{name}_ms": "12.1f" for name in ("ours", "transformers", "same_kernel")}
    ratios = "latency_to_transformers", "throughput_to_transformers", "throughput_to_same_kernel"
    columns |= dict.fromkeys(ratios, "6.2f")
    report(args, {"rows": rows, "layers": LAYERS}, columns)


if __name__ == "__main__":
    main()
