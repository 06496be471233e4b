"""One of the processes of `test_parallel`, as torchrun starts them: loads two models in every layout, and rank 0 writes
down how they compare.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from generation_cases import TOKEN_IDS, batch, chat
from oracle import Case, image_inputs, text_ids
from transformers.distributed import DistributedConfig

from modeling_small4 import Small4ForCausalLM

LAYOUTS: dict[str, dict[str, int]] = {
    "tensor": {"tp_size": 2},
    "tensor and expert": {"tp_size": 2, "ep_size": 2},
    "fsdp": {"fsdp_size": 2},
    "fsdp and expert": {"fsdp_size": 2, "ep_size": 2},
    "pipeline": {"pp_size": 2},
}
Answers = dict[str, tuple[torch.Tensor, torch.Tensor]]
Modes = dict[str, torch.Tensor]
CASE = Case(seed=21)
PROMPTS = batch([chat(50, 51, 52), chat(60, mode="none"), chat(70, 71, mode="high")])


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[operator]


def padded() -> dict[str, torch.Tensor]:
    ids = text_ids(CASE, 2, 30)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def inputs() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "text": {"input_ids": text_ids(CASE, 2, 30)},
        "padded": padded(),
        "images": image_inputs(CASE, [(56, 84), (28, 56)]),
    }


@torch.no_grad()
def answers(model: Small4ForCausalLM) -> Answers:
    """Logits and greedy tokens, by inputs."""
    greedy = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
    return {name: (model(**given).logits, model.generate(**given, **greedy)) for name, given in inputs().items()}


def in_modes(model: Small4ForCausalLM) -> Modes:
    """Answers to `PROMPTS`, by reasoning mode."""
    how: dict[str, Any] = {"max_thinking_tokens": 2, "max_new_tokens": 8, "do_sample": False}
    modes: list[str | list[str]] = ["none", "high", ["none", "high", "high"]]
    return {f"{mode}": model.generate(**PROMPTS, **how, reasoning_mode=mode) for mode in modes}


def compare(folder: Path, chatty: Path, layout: dict[str, int], whole: Answers, modes: Modes) -> dict[str, Any]:
    """Differences of logits, whether greedy tokens and reasoning modes are alike, and what this rank holds."""
    spread = Small4ForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**layout))
    out: dict[str, Any] = {}
    found = answers(spread)
    for name, given in inputs().items():
        rows = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
        out[name] = (found[name][0] - whole[name][0])[rows].abs().max().item()
        out[f"{name} greedy"] = torch.equal(found[name][1], whole[name][1])
    out["shapes"] = {name: list(local(parameter).shape) for name, parameter in spread.named_parameters()}
    out["bytes"] = sum(local(p).numel() * p.element_size() for p in spread.parameters())
    spread = Small4ForCausalLM.from_pretrained(chatty, distributed_config=DistributedConfig(**layout))
    for mode, ours in in_modes(spread).items():
        new = ours[:, PROMPTS["input_ids"].shape[1] :]
        out[f"mode {mode}"] = torch.equal(ours, modes[mode])
        out[f"thinks {mode}"] = [TOKEN_IDS["think"] in row for row in new.tolist()]
    return out


def main() -> None:
    folder, chatty, report = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    whole = answers(Small4ForCausalLM.from_pretrained(folder))
    modes = in_modes(Small4ForCausalLM.from_pretrained(chatty))
    results = {name: compare(folder, chatty, layout, whole, modes) for name, layout in LAYOUTS.items()}
    report.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
