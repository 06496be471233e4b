"""A training step of LoRA on all experts (forward, backward, AdamW) of one full-width layer that is held in FP8, NVFP4
or 4 bits, beside LoRA on the same weights in bfloat16: ours, and PEFT on transformers' `Mistral4ForCausalLM`.

    python -m model_card.bench.lora_step [--experts 16] [--length 512] [--out model_card/results/lora_step.json]

from the repository root; extra `train`; needs 0.5 GB of disk and 8 GB of memory. Codes are drawn at random and adapters
are not zero. Losses are compared first; time is taken in turns in one process, peak memory of each side in a process of
its own. PEFT adds the adapters' product to all experts' weights at each step, so its time grows with their number;
there are fewer here than in the release to fit memory.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Mistral4Config
from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

from model_card.bench.harness import child, interleaved, options, peak_bytes, read, relative_error, report
from model_card.bench.stored_memory import FORMS, write
from model_card.bench.train_step import Steps
from modeling_small4 import Small4Config, Small4ForCausalLM, lora_targets, stored_lora

SIDES = ("held", "bfloat16", "transformers")
RANK = 16


def layer(experts: int, sizes: dict[str, Any]) -> Small4Config:
    """One layer of the release's text model with fewer experts and words."""
    text = {"num_hidden_layers": 1, "vocab_size": 4096, "n_routed_experts": experts}
    return Small4Config(text_config=text | sizes, vision_config=None, dtype="bfloat16")


class Trainer(Steps):
    """One side; only adapters are trained."""

    def __init__(self, side: str, folder: Path, args: argparse.Namespace) -> None:
        model: Any = Small4ForCausalLM.from_pretrained(folder, dtype=args.dtype, dequantize=side != "held")
        model = transformers_model(model) if side == "transformers" else model
        self.base_bytes = sum(parameter.nbytes for parameter in model.parameters())
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, init_lora_weights=False, **lora_targets("all+experts"))
        self.model = get_peft_model(model, stored_lora(config, model)).train()
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(0)
        for _, parameter in sorted((_name(name), p) for name, p in self.trained.items()):
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-5)
        vocabulary = model.config.get_text_config().vocab_size
        self.ids = torch.randint(vocabulary, (args.batch, args.length), generator=generator)


def _name(name: str) -> str:
    return name.replace("model.language_model.", "model.")


def transformers_model(ours: Small4ForCausalLM) -> nn.Module:
    """Their class with our tensors."""
    text = ours.config.text_config
    rope = {"attention_factor": 1.0, "mscale_all_dim": 0.0}
    rope["partial_rotary_factor"] = text.qk_rope_head_dim / text.qk_head_dim
    sizes = {key: getattr(text, key) for key in Mistral4Config().to_dict() if hasattr(text, key)}
    sizes |= {"rope_parameters": text.rope_parameters | rope, "tie_word_embeddings": False}
    config = Mistral4Config(**{key: value for key, value in sizes.items() if key != "model_type"})
    with torch.device("meta"):
        host = Mistral4ForCausalLM(config)
    host.load_state_dict({_name(name): tensor for name, tensor in ours.state_dict().items()}, assign=True)
    host.model.rotary_emb = type(host.model.rotary_emb)(config)
    return host


def check(sides: dict[str, Trainer], allowed: float = 0.1) -> float:
    """Equal losses and gradients, as near as bfloat16 allows; the largest relative error of a gradient to the one on
    expanded weights.
    """
    losses = {side: trainer.loss() for side, trainer in sides.items()}
    right = {_name(name): p.grad for name, p in sides["bfloat16"].trained.items()}
    errors = []
    for side, trainer in sides.items():
        relative_error(losses[side], losses["bfloat16"], f"the loss of {side}", 5e-3)
        for name, parameter in trained_like(trainer).items():
            assert parameter.grad is not None
            expected = right[name]
            assert expected is not None
            errors.append(((parameter.grad - expected).norm() / expected.norm().clamp(min=1e-12)).item())
    if max(errors) > allowed:
        raise SystemExit(f"Gradients differ by {max(errors):.2g} of their size; nothing was timed.")
    return max(errors)


def trained_like(trainer: Trainer) -> dict[str, nn.Parameter]:
    """Adapters by the names that they have in transformers' class."""
    return {_name(name): parameter for name, parameter in trainer.trained.items()}


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time of the sides in this process, and memory of the held one and of bfloat16."""
    sides = {side: Trainer(side, folder, args) for side in SIDES}
    row: dict[str, Any] = {"relative_error": check(sides)}
    steps = {side: trainer.step for side, trainer in sides.items()}
    row |= interleaved(args, steps.pop("held"), **steps)
    tokens = args.batch * args.length
    return row | {f"{side}_tokens_per_s": tokens / row[f"{side}_ms"] * 1e3 for side in ("ours", *steps)}


def memory(side: str, folder: Path, args: argparse.Namespace) -> dict[str, int]:
    """Bytes of the base and of the adapters, and the most held in two steps: base, adapters, gradients, optimizer and
    activations. A step of few tokens comes first, so that libraries are loaded and kernels compiled.
    """
    trainer = Trainer(side, folder, args)
    whole, trainer.ids = trainer.ids, trainer.ids[:, :8]
    trainer.step()
    trainer.ids = whole
    trainer.optimizer.state.clear()
    trainer.optimizer.zero_grad(set_to_none=True)
    adapters = sum(parameter.nbytes for parameter in trainer.trained.values())

    def two_steps() -> None:
        trainer.step()
        trainer.step()

    beyond = peak_bytes(two_steps, args.device)
    held = trainer.base_bytes + adapters
    return {"base_bytes": trainer.base_bytes, "adapter_bytes": adapters, "peak_bytes": held + beyond}


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=3)
    parser.set_defaults(budget=30)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = read(parser)
    if args.memory:
        print(json.dumps(memory(args.memory, args.folder, args)))
        return
    given = [f"--{name}={getattr(args, name)}" for name in ("batch", "length", "threads", "device")]
    rows: dict[str, dict[str, Any]] = {}
    expanded: dict[str, Any] = {}  # the same whatever form it was expanded from
    with tempfile.TemporaryDirectory(prefix="small4-bench-") as work:
        for form in FORMS:
            folder = Path(work) / form
            write(folder, layer(args.experts, {}), form)
            rows[form] = measured(args, folder)
            for side in ("held",) if expanded else SIDES:
                found = child("model_card.bench.lora_step", "--memory", side, "--folder", folder, *given)
                kept = rows[form] if side == "held" else expanded
                kept |= {f"{'ours' if side == 'held' else side}_{key}": value for key, value in found.items()}
            rows[form] |= expanded
            shutil.rmtree(folder)
    columns = {f"{side}_tokens_per_s": "8.1f" for side in ("ours", "bfloat16", "transformers")}
    columns |= {"speedup_bfloat16": "6.2f", "speedup_transformers": "6.2f"}
    report(args, {"rows": rows}, columns | {f"{s}_peak_bytes": "8.3g" for s in ("ours", "bfloat16", "transformers")})


if __name__ == "__main__":
    main()
