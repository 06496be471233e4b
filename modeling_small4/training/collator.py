"""Conversations to training batches: ids, labels on what the assistant says, images; padded or packed.

What the assistant says is known by position, from the layout of the conversation, never by searching for text. Must not
know: models, trainers, where a data set comes from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..files_reading import shown
from ..image_sources import ImageAccess
from ..processing_small4 import Small4Processor
from ..reasoning import END_THINK, IMG, IMG_BREAK, IMG_END, THINK, resolve_reasoning_mode
from ..tokenization_small4 import Small4Tokenizer

IGNORED = -100
_OVERLONG = ("error", "truncate")
_IMAGE_FIELDS = ("pixel_values", "image_sizes")


@dataclass
class Small4DataCollator:
    """Makes batches for `Small4ForCausalLM` from rows that hold messages; for transformers' `Trainer` and others.

    A row is a dict with `messages`, finished conversations in the processor's form, and perhaps `tools` (a list, or
    JSON text of one), `reasoning_mode` ("none" or "high"), and `images` that fill image chunks naming no source.
    Without a mode, a conversation in which the assistant thinks is "high", another has the tokenizer's default. Rows
    made by `encode` before (with `input_ids` and `labels`) are taken as well. With `Trainer`, pass
    `remove_unused_columns=False`, or it takes the messages away.

    Args:
        processor: a `Small4Processor`, or a `Small4Tokenizer` for text alone.
        train_thinking: whether thoughts, `[THINK]` and `[/THINK]` included, are trained on. They are read by the model
            either way.
        last_turn_only: train on the assistant's last turn, not on all.
        padding_side: "right" or "left".
        packing: no padding: one row of all conversations, `position_ids` restarting with each, no attention mask; the
            model then keeps them apart.
        max_length: most tokens of one conversation.
        overlong: for longer ones, "error", or "truncate": the end is cut off, and with it images that do not fit whole.
        pad_to_multiple_of: pad to a multiple of so many tokens; not when packing, where nothing could tell the router
            losses of padding.
        reasoning_mode: mode of rows that name none.
        image_access: what images may be read from.

    Raises:
        ValueError: a row that cannot be encoded, is too long, says something in mode "none" that begins with a thought,
            or leaves nothing to train on.
    """

    processor: Small4Processor | Small4Tokenizer
    train_thinking: bool = True
    last_turn_only: bool = False
    padding_side: str = "right"
    packing: bool = False
    max_length: int | None = None
    overlong: str = "error"
    pad_to_multiple_of: int | None = None
    reasoning_mode: str | None = None
    image_access: ImageAccess | None = None

    def __post_init__(self) -> None:
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"padding_side is {shown(self.padding_side)}, but it must be 'right' or 'left'.")
        if self.overlong not in _OVERLONG:
            raise ValueError(f"overlong is {shown(self.overlong)}, but it must be 'error' or 'truncate'.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}, but it must be 1 or more, or None.")
        if self.packing and self.pad_to_multiple_of is not None:
            raise ValueError("packing leaves no padding; give packing or pad_to_multiple_of, not both.")
        self.reasoning_mode = resolve_reasoning_mode(self.reasoning_mode)
        self._tokens: Small4Tokenizer = getattr(  # type: ignore[assignment]
            self.processor, "tokenizer", self.processor
        )
        # Where `Trainer` is given no `processing_class`, it saves what stands under this name in its folders: images
        # included.
        self.tokenizer = self.processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels` [batch, length] (-100: not trained on), `attention_mask` or `position_ids` of the
        same shape, and for images `pixel_values` [images, 3, H, W] with `image_sizes` [images, 2]."""
        examples = []
        for number, row in enumerate(rows):
            try:
                examples.append(_read(row) if "input_ids" in row else self.encode(row))
            except ValueError as error:
                raise ValueError(f"Row {number} of the batch: {error}") from None
        batch = self._packed(examples) if self.packing else self._padded(examples)
        return batch | _join_images(examples)

    def encode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row as lists `input_ids` and `labels`, with its `pixel_values` and `image_sizes` if it has images."""
        encoded, mask = self._conversation(row, row_messages(row), answered=True)
        labels = self._labels(encoded["input_ids"], mask, self._mode(row))
        example = encoded | {"labels": labels}
        length = len(labels)
        if self.max_length is not None and length > self.max_length:
            if self.overlong == "error":
                raise ValueError(
                    f"the conversation has {length} tokens, more than max_length={self.max_length}. Raise max_length, "
                    "leave such rows "
                    'out (dataset.filter(collator.fits)), or pass overlong="truncate".'
                )
            example = self._cut(example)
        if all(label == IGNORED for label in example["labels"]):
            raise ValueError(
                f"nothing to train on in {len(example['labels'])} of {length} tokens. A row needs an assistant "
                "message that lies within "
                "max_length and, with train_thinking=False, more in it than a thought."
            )
        return example

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has at most `max_length` tokens, for `dataset.filter`."""
        encoded, _ = self._conversation(row, row_messages(row), answered=True)
        return self.max_length is None or len(encoded["input_ids"]) <= self.max_length

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """What `generate` needs to answer the rows: each conversation up to the assistant's last turn, padded on the
        left.
        """
        examples = []
        for row in rows:
            messages = list(row_messages(row))
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
            encoded, _ = self._conversation(row, messages, answered=False)
            examples.append(encoded | {"labels": encoded["input_ids"]})
        batch = self._padded(examples, "left") | _join_images(examples)
        del batch["labels"]
        return batch

    def modes(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """The mode of each row, as `generate(reasoning_mode=...)` takes it; None for a tokenizer without modes."""
        return [self._mode(row) for row in rows]

    def _mode(self, row: Mapping[str, Any]) -> str | None:
        known = self._tokens.init_kwargs.get("reasoning_settings")
        asked = resolve_reasoning_mode(row.get("reasoning_mode"), row.get("reasoning_effort")) or self.reasoning_mode
        if asked is None and known is not None:
            asked = "high" if any(map(_thinks, row_messages(row))) else known["default"]
        return asked

    def _conversation(
        self, row: Mapping[str, Any], messages: Sequence[Any], answered: bool
    ) -> tuple[dict[str, Any], list[int]]:
        """Ids as a list, images, and for each id whether the assistant wrote it."""
        tools = row.get("tools")
        options: dict[str, Any] = {
            "tools": json.loads(tools) if isinstance(tools, str) else tools,
            "reasoning_mode": self._mode(row),
            "add_generation_prompt": not answered,
            "return_assistant_tokens_mask": True,
            "tokenize": True,
            "return_dict": True,
        }
        if self._tokens is self.processor:
            encoded = self._tokens.apply_chat_template(messages, **options)
            return {"input_ids": encoded["input_ids"]}, encoded["assistant_masks"]
        images = row.get("images")
        encoded = self.processor.apply_chat_template(messages, images=images, image_access=self.image_access, **options)
        images = {name: encoded[name] for name in _IMAGE_FIELDS if name in encoded}
        return {"input_ids": encoded["input_ids"][0], **images}, encoded["assistant_masks"][0]

    def _labels(self, ids: list[int], mask: list[int], mode: str | None) -> list[int]:
        think, end_think = (self._tokens.control_ids.get(token) for token in (THINK, END_THINK))
        first = 0
        if self.last_turn_only and 1 in mask:
            last = len(mask) - 1 - mask[::-1].index(1)
            first = next((i + 1 for i in range(last, -1, -1) if not mask[i]), 0)
        labels, thinking = [], False
        for place, (token, written) in enumerate(zip(ids, mask, strict=True)):
            thinking = bool(written) and (thinking or token == think)
            trained = written and place >= first and (self.train_thinking or not thinking)
            if trained and thinking and mode == "none":
                raise ValueError(
                    'the assistant thinks, but the mode is "none", in which no thought may open. Leave out '
                    "reasoning_content, or "
                    'give the row reasoning_mode="high".'
                )
            labels.append(token if trained else IGNORED)
            thinking = thinking and token != end_think
        return labels

    def _cut(self, example: dict[str, Any]) -> dict[str, Any]:
        """The first `max_length` tokens; an image is kept whole or not at all."""
        assert self.max_length is not None
        ids, kept = example["input_ids"], self.max_length
        inside = {self._tokens.control_ids.get(token) for token in (IMG, IMG_BREAK)}
        while kept and ids[kept - 1] in inside:
            kept -= 1
        images = ids[:kept].count(self._tokens.control_ids.get(IMG_END))
        out = {"input_ids": ids[:kept], "labels": example["labels"][:kept]}
        return out | {name: example[name][:images] for name in _IMAGE_FIELDS if images and name in example}

    def _padded(self, examples: list[dict[str, Any]], side: str | None = None) -> dict[str, torch.Tensor]:
        unit = self.pad_to_multiple_of or 1
        width = -(-max(len(example["input_ids"]) for example in examples) // unit) * unit
        fillers = {"input_ids": self._tokens.pad_token_id, "labels": IGNORED, "attention_mask": 0}
        rows: dict[str, list[list[int]]] = {name: [] for name in fillers}
        for example in examples:
            row = example | {"attention_mask": [1] * len(example["input_ids"])}
            for name, filler in fillers.items():
                padding = [filler] * (width - len(row[name]))
                rows[name].append(padding + row[name] if (side or self.padding_side) == "left" else row[name] + padding)
        return {name: torch.tensor(values) for name, values in rows.items()}

    def _packed(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [token for example in examples for token in example["input_ids"]]
        # Nothing predicts the first token of a conversation, least of all the one before it.
        labels = [label for example in examples for label in (IGNORED, *example["labels"][1:])]
        positions = [place for example in examples for place in range(len(example["input_ids"]))]
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
        }


def row_messages(row: Mapping[str, Any]) -> Sequence[Any]:
    """The conversation of a row. Raises ValueError where there is none, with the usual reason."""
    if "messages" not in row:
        raise ValueError(
            f"the row has no 'messages', only {sorted(row)}. transformers' Trainer removes columns that the model "
            "does not read: pass "
            "remove_unused_columns=False in TrainingArguments. A column of another name is renamed by "
            "dataset.rename_column."
        )
    return row["messages"]


def _thinks(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    chunks = content if isinstance(content, (list, tuple)) else ()
    given = any(message.get(name) is not None for name in ("reasoning_content", "reasoning"))
    chunked = any(isinstance(chunk, Mapping) and chunk.get("type") == "thinking" for chunk in chunks)
    return message.get("role") == "assistant" and (given or chunked)


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row made by `encode`, perhaps stored in between."""
    if "labels" not in row:
        raise ValueError("the row has input_ids, but no labels; give messages, or rows made by collator.encode.")
    out: dict[str, Any] = {name: torch.as_tensor(row[name]).tolist() for name in ("input_ids", "labels")}
    return out | {name: torch.as_tensor(row[name]) for name in _IMAGE_FIELDS if row.get(name) is not None}


def _join_images(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """All images in the order of the rows, padded with zeros on the right and below to the largest."""
    seen = [example for example in examples if "pixel_values" in example]
    if not seen:
        return {}
    sizes = torch.cat([example["image_sizes"] for example in seen])
    height, width = (max(example["pixel_values"].shape[side] for example in seen) for side in (-2, -1))
    pixels = [
        torch.nn.functional.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2]))
        for p in (example["pixel_values"] for example in seen)
    ]
    return {"pixel_values": torch.cat(pixels), "image_sizes": sizes}
