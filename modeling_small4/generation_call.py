"""One call of `generate`: its arguments and the settings that Small 4 adds, resolved once. Must not know: what any of
them does.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from .cache import with_cache_name
from .generation_prompt import ReasoningIds, RewrittenPrompt
from .grammar import Grammar

Modes = str | Sequence[str] | None

# The attribute in which a cache carries the rewrite of the prompt that filled it. It has to go where the cache goes,
# copies included, and transformers' caches take it as ours do. Only `GenerateCall` reads and writes it.
_REWRITE = "_small4_rewrite"


@dataclass
class GenerateCall:
    """What one call was asked for. Nothing of it is kept on the model, so that calls in several threads do not meet.

    Attributes:
        arguments: As transformers' `generate` takes them; the call's own dict, edited on the way there.
        own: The model's `generation_config`.
        mode: `reasoning_mode`, as given: one for all rows, or one for each.
        budget: `max_thinking_tokens`.
        preset: "latency", "throughput" or None.
        grammars: `grammar`, one for each row (None: the row is free); None where there is none at all.
    """

    arguments: dict[str, Any]
    own: GenerationConfig
    mode: Modes = None
    budget: int | None = None
    preset: str | None = None
    grammars: list[Grammar | None] | None = None

    @classmethod
    def of(cls, arguments: dict[str, Any], own: GenerationConfig) -> "GenerateCall":
        """Takes Small 4's own settings out of the arguments; each that is missing comes from a configuration.

        Raises:
            ValueError: A cache under both of its names, or a grammar that is wrong, impossible or cannot be enforced.
        """
        given = with_cache_name(arguments)
        grammar = given.pop("grammar", None)
        mode, budget, preset = (given.pop(name, None) for name in ("reasoning_mode", "max_thinking_tokens", "preset"))
        if (tokenizer := given.get("tokenizer")) is not None:  # transformers' server hands over a processor
            given["tokenizer"] = getattr(tokenizer, "tokenizer", tokenizer)
        call = cls(given, own)
        call.mode = call.get("reasoning_mode") if mode is None else mode
        call.budget = call.get("max_thinking_tokens") if budget is None else budget
        call.preset = call.get("preset") if preset is None else preset
        call.grammars = None if grammar is None else _grammars_of_rows(grammar, call.rows)
        return call

    def of_rows(self, arguments: dict[str, Any], rows: Sequence[int]) -> "GenerateCall":
        """The call for some rows of its batch, whose arguments are given."""
        mode = [self.mode[row] for row in rows] if isinstance(self.mode, (list, tuple)) else self.mode
        grammars = None if self.grammars is None else [self.grammars[row] for row in rows]
        return replace(self, arguments=arguments, mode=mode, grammars=grammars)

    @property
    def ruled(self) -> bool:
        """Whether decoding has rules of its own: of thinking, or a grammar."""
        return self.mode is not None or self.budget is not None or self.grammars is not None

    @property
    def rows(self) -> int:
        """How many prompts there are."""
        prompts = self.ids if self.ids is not None else self.arguments.get("inputs_embeds")
        return 1 if prompts is None else prompts.shape[0]

    @property
    def configs(self) -> list[GenerationConfig]:
        """Where settings are looked up: the configuration passed in, then the model's."""
        return [config for config in (self.arguments.get("generation_config"), self.own) if config is not None]

    @property
    def cache(self) -> Cache | None:
        return self.arguments.get("cache")

    def rewrite_in_cache(self) -> RewrittenPrompt | None:
        """The rewrite of the prompt that filled the call's cache, if there was one; an emptied cache forgets it."""
        rewritten = getattr(self.cache, _REWRITE, None)
        if self.cache is not None and rewritten is not None and self.cache.get_seq_length() == 0:
            delattr(self.cache, _REWRITE)
            return None
        return rewritten

    def keep(self, rewritten: RewrittenPrompt, result: object) -> None:
        """Lets calls that go on with the caches of this call, and of its result, find the rewrite."""
        for cache in (self.cache, getattr(result, "cache", None)):
            if cache is not None:
                setattr(cache, _REWRITE, rewritten)

    @property
    def ids(self) -> torch.Tensor | None:
        """The prompts `[rows, length]`; None for a prompt of embeddings alone."""
        inputs = self.arguments.get("inputs")
        return self.arguments.get("input_ids") if inputs is None else inputs

    def set_prompt(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Other prompts, under the name under which the call has its own."""
        self.arguments["input_ids" if self.arguments.get("inputs") is None else "inputs"] = ids
        self.arguments["attention_mask"] = mask

    def get(self, name: str) -> Any:
        """A setting as `generate` resolves it: the argument, else that of the configuration passed in, else the model's
        own.
        """
        values = [self.arguments.get(name), *(getattr(config, name, None) for config in self.configs)]
        return next((value for value in values if value is not None), None)

    def eos(self) -> list[int]:
        """Every id that may end a message: what stops this call, and what ends one for the checkpoint."""
        values = [self.arguments.get("eos_token_id"), *(config.eos_token_id for config in self.configs)]
        found: set[int] = set()
        for value in values:
            if isinstance(value, torch.Tensor):
                value = value.tolist()
            found |= set() if value is None else {value} if isinstance(value, int) else set(value)
        return sorted(found)

    def reasoning_ids(self) -> ReasoningIds:
        """The ids of the control tokens that reasoning needs.

        Raises:
            ValueError: Neither a configuration nor a tokenizer says them.
        """
        mapping, tokenizer = self.get("reasoning_token_ids"), self.arguments.get("tokenizer")
        if mapping is not None:
            return ReasoningIds.from_mapping(mapping)
        if tokenizer is not None:
            return ReasoningIds.from_tokenizer(tokenizer)
        raise ValueError(
            "reasoning_mode and max_thinking_tokens need the ids of the control tokens, but this model's "
            "generation_config has no reasoning_token_ids. Pass tokenizer=... to generate, or use a checkpoint folder "
            "written by `small4 convert`."
        )

    def shift_lengths(self, added: int) -> None:
        """Lengths that count the prompt count the caller's: lengthen them by what was added to it (less than 0: was cut
        off).
        """
        for name in ("max_length", "min_length"):
            length = self.get(name)
            if length is None:
                continue
            passed = self.arguments.get("generation_config")
            if self.arguments.get(name) is None and passed is not None:
                self.arguments["generation_config"] = copy(passed)
                setattr(self.arguments["generation_config"], name, length + added)
            else:
                self.arguments[name] = length + added


def _grammars_of_rows(grammar: object, rows: int) -> list[Grammar | None]:
    """One grammar for each row; a list of texts is one grammar, of choices."""
    if not isinstance(grammar, (list, tuple)) or all(isinstance(each, str) for each in grammar):
        return [Grammar.read(grammar)] * rows
    if len(grammar) != rows:
        raise ValueError(
            f"grammar lists {len(grammar)} grammars for a batch of {rows}; give one for each row (None for none), or "
            "a single one."
        )
    return [None if each is None else Grammar.read(each) for each in grammar]
