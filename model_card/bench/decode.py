"""Decoding and prefill of one full-width layer beside transformers' `mistral4`, on the same weights, in one process.

    python -m model_card.bench.decode [--contexts 64 4096 16384 65536 262144] [--prefill 1024 8192] [--experts 128]
        [--out model_card/results/decode.json]

from the repository root; one layer of 128 experts takes 6.5 GB in bfloat16. Both sides read the same tensors and caches
filled with the same latents; their outputs are compared first. transformers is left out beyond `--host-context`, where
it would expand the whole cache to tens of gigabytes at each token.
"""

import argparse
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, Mistral4Config
from transformers.cache_utils import Cache
from transformers.models.mistral4.modeling_mistral4 import Mistral4Model

from model_card.bench.harness import Run, interleaved, options, peak_bytes, read, relative_error, report
from modeling_small4 import LatentCache, Small4TextConfig, Small4TextModel
from modeling_small4.modeling_small4 import Small4ForCausalLM

VOCABULARY = 1024  # the embedding is no part of what is measured


def build(
    experts: int, dtype: torch.dtype, device: torch.device, **sizes: Any
) -> tuple[Small4TextModel, Mistral4Model]:
    """One layer of the released widths, unless `sizes` says otherwise, ours and transformers', sharing every tensor."""
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "n_routed_experts": experts} | sizes
    ours_config = Small4TextConfig(**sizes)
    rotary = ours_config.qk_rope_head_dim / ours_config.qk_head_dim
    rope = {"attention_factor": 1.0, "mscale_all_dim": 0.0, "partial_rotary_factor": rotary}
    host_config = Mistral4Config(**sizes, rope_parameters=ours_config.rope_parameters | rope)
    ours_config._attn_implementation = host_config._attn_implementation = "sdpa"
    ours_config._experts_implementation = host_config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        ours, host = Small4TextModel(ours_config), Mistral4Model(host_config)
    state = random_state(ours, dtype, device)
    ours.load_state_dict(state, assign=True)
    host.load_state_dict(state, assign=True)
    host.rotary_emb = type(host.rotary_emb)(host_config).to(device)
    return ours.eval(), host.eval()


def random_state(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Values for all parameters that keep activations of about size 1."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for name, parameter in model.named_parameters():
        noise = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(generator=generator)
        state[name] = 1 + 0.1 * noise if parameter.ndim == 1 else noise.mul_(parameter[0].numel() ** -0.5)
    return state


def filled(ours: Small4TextModel, context: int, batch: int = 1) -> tuple[LatentCache, DynamicCache]:
    """Both caches holding the same random latents of `context` tokens."""
    weight, rank = ours.embed_tokens.weight, ours.config.kv_lora_rank
    shape = (batch, 1, context, rank + ours.config.qk_rope_head_dim)
    tokens = torch.empty(shape, dtype=weight.dtype, device=weight.device)
    tokens.normal_(generator=torch.Generator(weight.device).manual_seed(context))
    mine, theirs = LatentCache(ours.config, capacity=context + 64), DynamicCache()
    mine.update(tokens, None, 0)
    theirs.update(tokens[..., :rank], tokens[..., rank:], 0)
    return mine, theirs


def step(model: Small4ForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Output of new tokens behind a cache, which is left as it was."""
    seen = cache.get_seq_length()
    positions = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]
    output = model(input_ids=ids, past_key_values=cache, position_ids=positions).last_hidden_state
    cache.crop(-ids.shape[1])
    return output


def prefill(model: Small4ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Output of a prompt, its cache made and dropped."""
    return model(input_ids=ids, use_cache=True).last_hidden_state


def decoded(args: argparse.Namespace, ours: Small4TextModel, host: Mistral4Model, context: int) -> dict[str, Any]:
    """One row: a step at this context."""
    ids, (mine, theirs) = torch.tensor([[7]], device=args.device), filled(ours, context)
    runs: dict[str, Run] = {"ours": partial(step, ours, ids, mine), "transformers": partial(step, host, ids, theirs)}
    if context > args.host_context:
        del runs["transformers"]
    row = {"context": context, "cache_bytes": mine.nbytes} | compared(args, runs, f"decoding at {context}")
    return row | interleaved(args, **runs)


def prefilled(args: argparse.Namespace, ours: Small4TextModel, host: Mistral4Model, length: int) -> dict[str, Any]:
    """One row: a prompt of this length, from nothing. Peak memory is what a run takes beyond the weights, its cache
    included.
    """
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(VOCABULARY, (1, length), generator=generator).to(args.device)
    runs: dict[str, Run] = {"ours": partial(prefill, ours, ids), "transformers": partial(prefill, host, ids)}
    return {"length": length} | compared(args, runs, f"prefill of {length}") | interleaved(args, **runs)


def compared(args: argparse.Namespace, runs: dict[str, Run], what: str) -> dict[str, Any]:
    """Each side's peak memory, and how far their outputs are apart, from one run of each."""
    outputs: list[torch.Tensor] = []
    row: dict[str, Any] = {}
    for name, run in runs.items():
        row[f"{name}_peak_bytes"] = peak_bytes(lambda: outputs.append(run()), args.device)  # noqa: B023
    if len(outputs) == 2:
        mine, other = outputs
        row["relative_error"] = relative_error(mine, other, what)
    return row


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__)
    parser.add_argument("--contexts", type=int, nargs="*", default=[64, 4096, 16384, 65536, 262144])
    parser.add_argument("--prefill", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--host-context", type=int, default=65536, help="the longest context for transformers")
    parser.add_argument("--experts", type=int, default=128)
    args = read(parser)
    ours, host = build(args.experts, args.dtype, args.device)
    with torch.inference_mode():
        for model in (ours, host):
            prefill(model, torch.tensor([[1, 2, 3]], device=args.device))  # what is allocated once
        rows = {f"decode at {n}": decoded(args, ours, host, n) for n in args.contexts}
        rows |= {f"prefill of {n}": prefilled(args, ours, host, n) for n in args.prefill}
    columns = {"ours_ms": "10.1f", "transformers_ms": "10.1f", "speedup_transformers": "10.2f"}
    report(args, {"rows": rows}, columns | {"ours_peak_bytes": "12.3g", "transformers_peak_bytes": "12.3g"})


if __name__ == "__main__":
    main()
