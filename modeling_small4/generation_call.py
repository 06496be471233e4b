"""Settings of one call of `generate`, wherever they were given. Must not know: what any of them does."""

from copy import copy
from typing import Any

import torch
from transformers import GenerationConfig

from .generation_prompt import ReasoningIds


class Options:
    """A setting's value as `generate` would resolve it: argument, then the config passed in, then the model's own."""

    def __init__(self, call: dict[str, Any], passed: GenerationConfig | None, own: GenerationConfig) -> None:
        self.call, self.configs = call, [config for config in (passed, own) if config is not None]

    def get(self, name: str, given: Any = None) -> Any:
        values = [given, self.call.get(name), *(getattr(config, name, None) for config in self.configs)]
        return next((value for value in values if value is not None), None)

    def eos(self) -> list[int]:
        """Every id that may end a message: what stops this call, and what ends one for the checkpoint."""
        values = [self.call.get("eos_token_id"), *(config.eos_token_id for config in self.configs)]
        found: set[int] = set()
        for value in values:
            if isinstance(value, torch.Tensor):
                value = value.tolist()
            found |= set() if value is None else {value} if isinstance(value, int) else set(value)
        return sorted(found)

    def reasoning_ids(self) -> ReasoningIds:
        mapping, tokenizer = self.get("reasoning_token_ids"), self.call.get("tokenizer")
        if mapping is not None:
            return ReasoningIds.from_mapping(mapping)
        if tokenizer is not None:
            return ReasoningIds.from_tokenizer(tokenizer)
        raise ValueError(
            "reasoning_mode and max_thinking_tokens need the ids of the control tokens, but this model's "
            "generation_config has no reasoning_token_ids. Pass tokenizer=... to generate, or use a checkpoint folder "
            "written by `small4 convert`."
        )


def shift_lengths(call: dict[str, Any], options: Options, added: int) -> None:
    """Lengths that count the prompt count the caller's: lengthen them in `call` by what was added to it (less than 0: was cut off)."""
    for name in ("max_length", "min_length"):
        length = options.get(name)
        if length is None:
            continue
        if call.get(name) is None and call["generation_config"] is not None:
            call["generation_config"] = copy(call["generation_config"])
            setattr(call["generation_config"], name, length + added)
        else:
            call[name] = length + added
