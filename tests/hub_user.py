"""What a user does with the Hub, and what they find. Knows no test, nor where the Hub is."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import model_info
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor

from modeling_small4 import Small4ForCausalLM


def same(model: Any, folder: Path) -> bool:
    stored = load_file(folder / "model.safetensors")
    state = model.state_dict()
    return state.keys() >= stored.keys() and all(torch.equal(state[name], stored[name]) for name in stored)


def push(folder: Path) -> dict[str, Any]:
    """One model to the main branch, another to a branch `second`, and back again."""
    for branch, name in (("main", "first"), ("second", "second")):
        Small4ForCausalLM.from_pretrained(folder / name).push_to_hub("lab/tiny", revision=branch, token="hf_x")
        AutoProcessor.from_pretrained(folder / name).push_to_hub("lab/tiny", revision=branch, token="hf_x")
    return {}


def load(folder: Path) -> dict[str, Any]:
    main, second = (AutoModelForCausalLM.from_pretrained("lab/tiny", revision=r) for r in ("main", "second"))
    commit = AutoModelForCausalLM.from_pretrained("lab/tiny", revision=model_info("lab/tiny").sha)
    nested = AutoModelForCausalLM.from_pretrained("lab/nested", subfolder="inner")
    processor = AutoProcessor.from_pretrained("lab/tiny")
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    options = {"reasoning_mode": "high", "tokenize": True, "return_tensors": "pt"}
    ids = processor.apply_chat_template(chat, **options)
    local = AutoProcessor.from_pretrained(folder / "first").apply_chat_template(chat, **options)
    modes = [main.generation_config.reasoning_token_ids, nested.generation_config.reasoning_token_ids]
    return {
        "main": same(main, folder / "first"), "second": same(second, folder / "second"),
        "commit": same(commit, folder / "first"),
        "nested": same(nested, folder / "first"), "processor": torch.equal(ids, local),
        "modes": modes[0] == modes[1] is not None,
        "class": type(main).__name__,
    }  # fmt: skip


def broken(folder: Path) -> dict[str, Any]:
    return {"whole": same(AutoModelForCausalLM.from_pretrained("lab/large"), folder / "large")}


def offline(folder: Path) -> dict[str, Any]:
    main = AutoModelForCausalLM.from_pretrained("lab/tiny")
    AutoProcessor.from_pretrained("lab/tiny")
    try:
        AutoModelForCausalLM.from_pretrained("lab/never-seen")
    except OSError as error:
        message = str(error)
    return {"main": same(main, folder / "first"), "error": message}
