"""A prompt of 262,144 tokens through one small layer with latents of the release's width: time, and memory beside its
bound.

    python -m model_card.bench.long_prompt [--lengths 32768 262144] [--heads 1] [--out model_card/results/long_prompt.json]

from the repository root, with two cores about 6 minutes. Each length runs in a process of its own. Before that, chunks
are compared with one forward over all pairs, where that fits (`--check`). The bound is 1.5 times the sum of weights,
cache and one chunk, where a chunk is what a forward over `CHUNK` tokens without a cache takes at its peak.
"""  # noqa: E501

import sys
from typing import Any

import torch

from model_card.bench.decode import random_state
from model_card.bench.harness import child, options, peak_bytes, read, report, seconds
from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.generation_hooks import CHUNK

NEW = 4


def model(heads: int, dtype: torch.dtype, device: torch.device) -> Small4ForCausalLM:
    """One layer; what is cached of a token is as wide as in the release, everything else is small."""
    sizes = {"hidden_size": 128, "moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 1}
    narrow = {"q_lora_rank": 64, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_attention_heads": heads}
    config = Small4Config(
        text_config=sizes | narrow | {"num_hidden_layers": 1, "vocab_size": 1024, "bos_token_id": None},
        vision_config=None,
    )
    with torch.device("meta"):
        made = Small4ForCausalLM(config)
    made.load_state_dict(random_state(made, dtype, device), assign=True)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 11
    return made.eval()


def prompt(length: int, device: torch.device) -> torch.Tensor:
    """Random ids, the same ones each time."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(100, 1024, (1, length), generator=generator).to(device)


@torch.inference_mode()
def checked(made: Small4ForCausalLM, length: int, allowed: float) -> float:
    """The answer in chunks equals that of one forward over all pairs for each of its tokens; largest error of the
    logits.
    """
    ids = prompt(length, made.device)
    answer = made.generate(ids, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True)
    whole = made(answer.sequences[:, :-1], use_cache=False, logits_to_keep=NEW).logits[0]
    error = (torch.cat(answer.logits) - whole).abs().max().item()
    if not (error <= allowed and torch.equal(answer.sequences[0, -NEW:], whole.argmax(-1))):
        raise SystemExit(f"{length} tokens in chunks differ from one forward by {error}; nothing was measured.")
    return error


def measured(made: Small4ForCausalLM, length: int, device: torch.device) -> dict[str, Any]:
    """Seconds and bytes of one prompt with its answer."""
    with torch.inference_mode():
        made(prompt(CHUNK, device), use_cache=False, logits_to_keep=1)  # what is made once
        chunk = peak_bytes(lambda: made(prompt(CHUNK, device), use_cache=False, logits_to_keep=1), device)
    weights = sum(p.numel() * p.element_size() for p in made.parameters())
    text, number = made.config.text_config, next(made.parameters()).element_size()
    cache = text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim) * number * (length + NEW)
    ids, took = prompt(length, device), []
    peak = peak_bytes(lambda: took.append(seconds(lambda: made.generate(ids, max_new_tokens=NEW), device)), device)
    bound = 1.5 * (weights + cache + chunk)
    return {
        "seconds": took[0],
        "peak_mb": (weights + peak) / 1e6,
        "weights_mb": weights / 1e6,
        "cache_mb": cache / 1e6,
        "chunk_mb": chunk / 1e6,
        "of_sum": (weights + peak) / (weights + cache + chunk),
        "within": weights + peak <= bound,
    }


def main() -> None:
    parser = options(__doc__, dtype="float32")
    parser.add_argument("--lengths", type=int, nargs="*", default=[32768, 262144])
    parser.add_argument("--check", type=int, default=8192, help="tokens of the prompt that is also read in one forward")
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--alone", type=int, help="measure this length in this process, and print one JSON line")
    args = read(parser)
    made = model(args.heads, args.dtype, args.device)
    if args.alone:
        report(args, {"rows": {"alone": measured(made, args.alone, args.device)}}, {})
        return
    result: dict[str, Any] = {"rows": {}, "checked_tokens": args.check}
    result["largest_logit_error"] = checked(made, args.check, 1e-3 if args.dtype == torch.float32 else 0.1)
    shared = ["--heads", args.heads, "--dtype", str(args.dtype).removeprefix("torch."), "--device", args.device]
    for length in args.lengths:
        shared_here = [*shared, "--threads", args.threads, "--alone", length]
        result["rows"][f"{length} tokens"] = child("model_card.bench.long_prompt", *shared_here)["rows"]["alone"]
    columns = {"seconds": "8.1f", "peak_mb": "8.0f", "cache_mb": "8.0f", "chunk_mb": "8.0f", "of_sum": "6.2f"}
    report(args, result, columns)
    if not all(row["within"] for row in result["rows"].values()):
        sys.exit("memory exceeded 1.5 times weights, cache and one chunk")


if __name__ == "__main__":
    main()
