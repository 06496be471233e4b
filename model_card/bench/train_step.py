"""A training step (forward, backward, AdamW) beside transformers' `Mistral4ForCausalLM` on the same weights: tokens per
second, peak memory.

    python -m model_card.bench.train_step [--batch 4] [--length 256] [--out model_card/results/train_step.json]

from the repository root. Loss and gradients are compared first; time is taken in turns in one process, peak memory of
each side in a process of its own.
"""

import argparse
import json
from typing import Any

import torch
from transformers import Mistral4Config
from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

from model_card.bench.decode import random_state
from model_card.bench.harness import child, interleaved, options, peak_bytes, read, relative_error, report
from modeling_small4 import Small4Config, Small4ForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 16384, "hidden_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "q_lora_rank": 256, "kv_lora_rank": 128, "n_routed_experts": 16, "num_experts_per_tok": 4,
}  # fmt: skip


def build(side: str, args: argparse.Namespace, sizes: dict[str, Any]) -> Small4ForCausalLM:
    """A text model of one side; the weights are the same for both."""
    config = Small4Config(text_config=sizes, vision_config=None)
    with torch.device("meta"):
        ours = Small4ForCausalLM(config)
    state = random_state(ours, args.dtype, args.device)
    text = config.text_config
    if side == "ours":
        ours.load_state_dict(state, assign=True)
        return ours.train()
    rotary = text.qk_rope_head_dim / text.qk_head_dim
    rope = {"attention_factor": 1.0, "mscale_all_dim": 0.0, "partial_rotary_factor": rotary}
    host_config = Mistral4Config(**sizes, rope_parameters=text.rope_parameters | rope, tie_word_embeddings=False)
    with torch.device("meta"):
        host = Mistral4ForCausalLM(host_config)
    host.load_state_dict({k.replace("model.language_model.", "model."): v for k, v in state.items()}, assign=True)
    host.model.rotary_emb = type(host.model.rotary_emb)(host_config).to(args.device)
    return host.train()


class Steps:
    """A model with its optimizer, on the same batch `ids` again and again."""

    model: Any
    optimizer: torch.optim.Optimizer
    ids: torch.Tensor

    def loss(self) -> torch.Tensor:
        """Of the batch, with gradients on all that is trained."""
        self.optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """One training step."""
        self.loss()
        self.optimizer.step()


class Trainer(Steps):
    """One side; all parameters are trained."""

    def __init__(self, side: str, args: argparse.Namespace, sizes: dict[str, Any]) -> None:
        self.model = build(side, args, sizes)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(sizes["vocab_size"], (args.batch, args.length), generator=generator).to(args.device)


def check(ours: Trainer, host: Trainer) -> float:
    """Equal loss and gradients; returns the largest relative error of these."""
    errors = [relative_error(ours.loss(), host.loss(), "the loss", 1e-3)]
    theirs = dict(host.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        other = theirs[name.replace("model.language_model.", "model.")]
        errors.append(((parameter.grad - other.grad).norm() / other.grad.norm().clamp(min=1e-12)).item())
    if max(errors) > (1e-3 if parameter.dtype == torch.float32 else 0.1):
        raise SystemExit(f"Gradients differ by {max(errors):.2g} of their size; nothing was timed.")
    return max(errors)


def measured(args: argparse.Namespace, sizes: dict[str, Any]) -> dict[str, Any]:
    """Time of both sides in this process."""
    ours, host = Trainer("ours", args, sizes), Trainer("transformers", args, sizes)
    row: dict[str, Any] = {"relative_error": check(ours, host)}
    row |= interleaved(args, ours.step, transformers=host.step)
    tokens = ours.ids.numel()
    return row | {f"{side}_tokens_per_s": tokens / row[f"{side}_ms"] * 1e3 for side in ("ours", "transformers")}


def memory(side: str, args: argparse.Namespace, sizes: dict[str, Any]) -> dict[str, int]:
    """Bytes of the weights, and the most held in two steps: weights, gradients, optimizer and activations."""
    trainer = Trainer(side, args, sizes)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())

    def two_steps() -> None:
        trainer.step()
        trainer.step()

    beyond = peak_bytes(two_steps, args.device)
    return {"weights_bytes": weights, "peak_bytes": weights + beyond}


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, dtype="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = read(parser)
    if args.memory:
        print(json.dumps(memory(args.memory, args, SIZES)))
        return
    row = measured(args, SIZES)
    given = ["--batch", args.batch, "--length", args.length, "--threads", args.threads, "--device", args.device]
    for side in ("ours", "transformers"):
        found = child("model_card.bench.train_step", "--memory", side, *given, "--dtype", str(args.dtype).split(".")[1])
        row |= {f"{side}_peak_bytes": found["peak_bytes"], "weights_bytes": found["weights_bytes"]}
    columns = {"ours_tokens_per_s": "8.1f", "transformers_tokens_per_s": "8.1f", "speedup_transformers": "6.2f"}
    report(args, {"rows": {"step": row}}, columns | {"ours_peak_bytes": "8.3g", "transformers_peak_bytes": "8.3g"})


if __name__ == "__main__":
    main()
