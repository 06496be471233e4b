"""Chat prompts as token ids: which reasoning mode they carry, how to change it, where their answer begins.

Works on plain lists of ids and on whole left-padded batches; knows the special tokens of the chat format by id only.
Must not know: models, decoding, tokenization of anything but the two settings texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .reasoning import REASONING_MODES, REASONING_TOKENS, settings_text

_REQUIRED = ("inst", "end_inst", "think", "end_think", "settings", "end_settings")


@dataclass(frozen=True)
class ReasoningIds:
    """The ids of `generation_config.reasoning_token_ids` that decoding needs, checked."""

    inst: int
    end_inst: int
    think: int
    end_think: int
    settings: int
    end_settings: int
    end_tool_results: int | None
    settings_texts: dict[str, list[int]]

    @classmethod
    def from_mapping(cls, ids: Mapping[str, Any]) -> "ReasoningIds":
        """Reads the mapping; a required special token the vocabulary lacks is a ValueError that lists what is
        missing.
        """
        missing = [name for name in _REQUIRED if ids.get(name) is None]
        missing += [f"settings_{mode}" for mode in REASONING_MODES if not ids.get(f"settings_{mode}")]
        if missing:
            raise ValueError(
                f"generation_config.reasoning_token_ids has no id for {', '.join(missing)}; reasoning_mode and "
                "max_thinking_tokens need all of them. Use a checkpoint whose vocabulary has these control tokens."
            )
        return cls(
            **{name: int(ids[name]) for name in _REQUIRED},
            end_tool_results=ids.get("end_tool_results"),
            settings_texts={mode: list(ids[f"settings_{mode}"]) for mode in REASONING_MODES},
        )

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "ReasoningIds":
        """Looks the special tokens up in a transformers tokenizer, or in the tokenizer of a processor."""
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        vocabulary = tokenizer.get_vocab()
        ids: dict[str, Any] = {name: vocabulary.get(token) for name, token in REASONING_TOKENS.items()}
        for mode in REASONING_MODES:
            ids[f"settings_{mode}"] = tokenizer.encode(settings_text(mode), add_special_tokens=False)
        return cls.from_mapping(ids)

    def settings_blocks(self, row: Sequence[int]) -> list[tuple[int, int]]:
        """(start, stop) of every settings block of one row, special tokens included."""
        blocks: list[tuple[int, int]] = []
        for start, token in enumerate(row):
            if token == self.settings:
                if self.end_settings not in row[start:]:
                    raise ValueError("The prompt opens [MODEL_SETTINGS] and never closes it; build it from messages.")
                blocks.append((start, row.index(self.end_settings, start) + 1))
        return blocks

    def mode_of(self, row: Sequence[int]) -> str | None:
        """The mode a prompt's own (last) settings block asks for; None without a block, or with another text in it."""
        blocks = self.settings_blocks(row)
        text = list(row[blocks[-1][0] + 1 : blocks[-1][1] - 1]) if blocks else None
        return next((mode for mode, ids in self.settings_texts.items() if ids == text), None)

    def edits(self, row: Sequence[int], mode: str) -> list[tuple[int, int, list[int]]]:
        """The (start, stop, new ids) replacements that make `mode` the row's mode, in order; empty when it has it.

        The encoder writes the block directly before the first `[INST]`, after system prompt and tools, in
        conversations of any length (mistral-common, `InstructTokenizerV15`); so that is where one is inserted.

        Raises:
            ValueError: the row is no chat prompt.
        """
        if self.inst not in row or self.end_inst not in row[row.index(self.inst) :]:
            raise ValueError(
                "reasoning_mode needs a chat prompt, but the ids hold no message between [INST] and [/INST]. Build "
                "them "
                "from messages with processor.apply_chat_template, or leave reasoning_mode out."
            )
        wanted = [self.settings, *self.settings_texts[mode], self.end_settings]
        first = row.index(self.inst)
        spans = self.settings_blocks(row) or [(first, first)]
        return [(start, stop, wanted) for start, stop in spans if list(row[start:stop]) != wanted]

    def answer_start(self, row: Sequence[int], eos: Sequence[int]) -> int:
        """Index of the answer's first token: behind the last `[/INST]`, `[/TOOL_RESULTS]` or end of message; else 0."""
        ends = {self.end_inst, self.end_tool_results, *eos}
        return next((i + 1 for i in range(len(row) - 1, -1, -1) if row[i] in ends), 0)


@dataclass(frozen=True)
class Prompt:
    """Token ids [batch, length] and the attention mask passed with them, of the same shape if nothing is cached."""

    ids: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor | None, pad: int | None, eos: Sequence[int]) -> "Prompt":
        """As `generate` reads its inputs: a missing mask is inferred from the padding id where there is one."""
        if mask is None:
            mask = torch.ones_like(ids) if pad is None or pad in eos else ids.ne(pad).long()
        return cls(ids, mask)

    def with_modes(self, modes: Sequence[str | None], known: ReasoningIds, pad: int) -> "Prompt":
        """The prompt with each row's mode in its settings block, re-padded on the left; itself if nothing changes."""
        rows, masks, changed = self.ids.tolist(), self.mask.tolist(), False
        for row, mask, mode in zip(rows, masks, modes, strict=True):
            for start, stop, new in reversed(known.edits(row, mode) if mode is not None else []):
                row[start:stop], mask[start:stop], changed = new, [1] * len(new), True
            padding = mask.index(1) if 1 in mask else len(mask)
            del row[:padding], mask[:padding]
        if not changed:
            return self
        width = max(map(len, rows))
        return Prompt(
            self.ids.new_tensor([[pad] * (width - len(row)) + row for row in rows]),
            self.mask.new_tensor([[0] * (width - len(mask)) + mask for mask in masks]),
        )


@dataclass(frozen=True)
class RewrittenPrompt:
    """What the caller passed beside what the model reads instead; `length` added to the caller's length."""

    caller: Prompt
    actual: Prompt

    @property
    def added(self) -> int:
        return self.actual.ids.shape[1] - self.caller.ids.shape[1]

    def as_caller(self, sequences: torch.Tensor) -> torch.Tensor:
        """[rows, length] that begin with the actual prompt -> the same beginning with the caller's own.

        Row r belongs to prompt r // (rows / batch), as beams and returned sequences are laid out.
        """
        own = _per_row(self.caller.ids, sequences)
        return torch.cat([own, sequences[:, self.actual.ids.shape[1] :]], dim=1)

    def row_as_caller(self, prompt: int, ids: torch.Tensor) -> torch.Tensor:
        """The same for one row [length] of the given prompt."""
        return torch.cat([self.caller.ids[prompt].to(ids.device), ids[self.actual.ids.shape[1] :]])

    def begins_as_read(self, prompt: Prompt) -> bool:
        """Whether a conversation begins with the ids the model has read."""
        return _begins_with(prompt.ids, self.actual.ids)

    def as_read(self, prompt: Prompt) -> Prompt | None:
        """A conversation that begins with the caller's prompt -> as the model has read it; None if it does not."""
        if not _begins_with(prompt.ids, self.caller.ids):
            return None
        length = self.caller.ids.shape[1]
        return Prompt(
            torch.cat([_per_row(self.actual.ids, prompt.ids), prompt.ids[:, length:]], dim=1),
            torch.cat([_per_row(self.actual.mask, prompt.mask), prompt.mask[:, length:]], dim=1),
        )


def _begins_with(ids: torch.Tensor, prompts: torch.Tensor) -> bool:
    if ids.shape[0] % prompts.shape[0] or ids.shape[1] < prompts.shape[1]:
        return False
    return torch.equal(ids[:, : prompts.shape[1]], _per_row(prompts, ids))


def _per_row(prompts: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return prompts.to(rows.device).repeat_interleave(rows.shape[0] // prompts.shape[0], dim=0)
