"""The latent cache: bytes per token of real caches against arithmetic, and what 8 bits change in the answers of the
demo checkpoint.

    python -m model_card.bench.cache [--rows 40] [--out model_card/results/cache.json]

from the repository root. A token of the release takes 320 numbers in each of 36 layers. In 8 bits these are 320 bytes
of codes and two bfloat16 scales, 324 bytes; so half the bytes of bfloat16, and 1.25 % for scales. Answers are greedy,
to held-out problems of every task in both reasoning modes; beside them, how many stay the same when instead the other
attention kernel computes (eager), which is what rounding alone changes in that dtype. Where 8 bits change an answer,
`largest_lead` says how far ahead the token was that is not chosen any more: its logit less that of the one chosen
instead. The error of logits is that of one forward over prompt and answer.
"""

import argparse
from typing import Any

import torch

from model_card.bench.harness import options, read, report
from model_card.demo_recipe.tasks.data import TASKS
from model_card.evals.answers import prompt
from model_card.evals.demo_checkpoint import held_out
from modeling_small4 import LatentCache, Small4Config, Small4ForCausalLM, Small4Processor, demo_checkpoint
from modeling_small4.reasoning import REASONING_MODES

BATCH = 20


def bytes_per_token(bits: int, tokens: int = 256) -> dict[str, Any]:
    """Of a cache with the release's layers and widths, filled with bfloat16 latents; beside what arithmetic says."""
    config = Small4Config()
    text = config.text_config
    width = text.kv_lora_rank + text.qk_rope_head_dim
    cache = LatentCache(config, bits=bits)
    for layer in range(text.num_hidden_layers):
        cache.update(torch.randn(1, 1, tokens, width, dtype=torch.bfloat16), None, layer)
    expected = text.num_hidden_layers * (2 * width if bits == 16 else width + 2 * 2)
    if cache.nbytes != tokens * expected:
        raise SystemExit(f"{bits} bits: {cache.nbytes / tokens} bytes per token, but arithmetic says {expected}.")
    return {"bytes_per_token": expected, "share": expected / (text.num_hidden_layers * 2 * width)}


@torch.inference_mode()
def compared(model: Small4ForCausalLM, inputs: Any, mode: str, new: int) -> dict[str, Any]:
    """One batch of prompts, answered with both caches and by the other kernel: rows with the same tokens, leads where 8
    bits changed them, and errors of the logits of all their tokens."""
    wanted: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "reasoning_mode": mode}
    exact = model.generate(**inputs, **wanted)
    coded = model.generate(**inputs, **wanted, cache_implementation="latent_8bit")
    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")
    rounded = model.generate(**inputs, **wanted)
    model.set_attn_implementation(kernel)
    answered = inputs["attention_mask"].new_ones(exact.shape[0], exact.shape[1] - inputs["input_ids"].shape[1])
    mask = torch.cat((inputs["attention_mask"], answered), dim=1)
    given = {**inputs, "input_ids": exact, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    logits = [model(**given, past_key_values=LatentCache(model.config, bits=bits)).logits.float() for bits in (16, 8)]
    kept = (mask.bool() & (exact != model.generation_config.pad_token_id))[..., None].expand_as(logits[0])
    error, size = (logits[1] - logits[0])[kept].abs(), logits[0][kept].std()
    same = {"same_answers": _same(exact, coded), "same_answers_of_eager": _same(exact, rounded)}
    leads = [_lead(a, b, row) for a, b, row in zip(exact, coded, logits[0], strict=True)]
    return {"prompts": len(exact), **same, "leads": leads, "error": error, "size": size}


def _lead(exact: torch.Tensor, coded: torch.Tensor, logits: torch.Tensor) -> float:
    """How much more likely, in logits `[tokens, vocabulary]` of `exact`, its token was than `coded`'s where they first
    differ; 0 if nowhere.
    """
    for place, (one, other) in enumerate(zip(exact.tolist(), coded.tolist(), strict=False)):
        if one != other:
            return (logits[place - 1, one] - logits[place - 1, other]).item()
    return 0.0


def _same(one: torch.Tensor, other: torch.Tensor) -> int:
    """Rows with the same tokens, but for padding behind them."""
    width = max(one.shape[1], other.shape[1])
    return sum(int(_to(a, width) == _to(b, width)) for a, b in zip(one, other, strict=True))


def _to(ids: torch.Tensor, width: int) -> list[int]:
    return ids.tolist() + [0] * (width - len(ids))


def answers(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows of the table: each task in each mode."""
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=args.dtype).to(args.device).eval()
    processor = Small4Processor.from_pretrained(demo_checkpoint())
    rows: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        for mode in REASONING_MODES:
            prompts = [prompt(row, processor, mode) for row in held_out(task, mode, args.rows)]
            parts = []
            for begin in range(0, len(prompts), BATCH):
                inputs = processor(text=prompts[begin : begin + BATCH], return_tensors="pt", padding=True)
                parts.append(compared(model, inputs.to(args.device, args.dtype), mode, args.new))
            errors = torch.cat([part["error"] for part in parts])
            rows[f"{task}, {mode}"] = {
                **{
                    name: sum(part[name] for part in parts)
                    for name in ("prompts", "same_answers", "same_answers_of_eager")
                },
                "largest_lead": max(lead for part in parts for lead in part["leads"]),
                "largest_logit_error": errors.max().item(),
                "mean_logit_error": errors.mean().item(),
                "spread_of_logits": torch.stack([part["size"] for part in parts]).mean().item(),
            }
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=40, help="of each task in each mode")
    parser.add_argument("--new", type=int, default=192, help="most tokens of an answer")
    args = read(parser)
    rows: dict[str, dict[str, Any]] = {"bfloat16": bytes_per_token(16), "8 bits": bytes_per_token(8)}
    rows |= answers(args)
    columns = {"bytes_per_token": "10.0f", "share": "8.4f", "prompts": "8.0f", "same_answers": "8.0f"}
    columns |= {
        "same_answers_of_eager": "8.0f",
        "largest_lead": "10.4f",
        "largest_logit_error": "10.4f",
        "mean_logit_error": "10.4f",
        "spread_of_logits": "10.2f",
    }
    report(args, {"rows": rows}, columns)


if __name__ == "__main__":
    main()
