"""Rows of chats to training batches: token ids through our processor, labels on what the assistant writes, equal parts
of a step.

Knows nothing of the model or the optimiser. Rows are padded on the right: causal attention then needs no mask.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from modeling_small4 import Small4DataCollator
from modeling_small4.image_processing_small4 import Small4ImageProcessor
from modeling_small4.reasoning import END_THINK, THINK
from modeling_small4.training.collator import IGNORED

LONGEST = 8192  # positions
LONGEST_WITH_GAP = 700  # tokens: rows with gaps need a mask in memory
TOKENS_PER_PICTURE = 40  # what the vision tower's work on a picture costs, in tokens of text


def chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's messages as a processor takes them: pictures stand before or after the first question."""
    messages: list[dict[str, Any]] = []
    for message in row["messages"]:
        content: Any = message["content"]
        if message["role"] == "user" and row["images"] and not any(m["role"] == "user" for m in messages):
            shown = [{"type": "image", "image": image} for image in row["images"]]
            text = [{"type": "text", "text": content}]
            content = [*text, *shown] if row["image_last"] else [*shown, *text]
        made: dict[str, Any] = {"role": message["role"], "content": content}
        if message["reasoning_content"]:
            made["reasoning_content"] = message["reasoning_content"]
        if message["tool_calls"]:
            made["tool_calls"] = json.loads(message["tool_calls"])
        if message["tool_call_id"]:
            made["tool_call_id"] = message["tool_call_id"]
        messages.append(made)
    return messages


def tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The schemas offered in this row, or None."""
    return json.loads(row["tools"]) if row["tools"] else None


def encode(row: dict[str, Any], collator: Small4DataCollator) -> dict[str, Any]:
    """`input_ids` and `labels` of one row: trained is what the assistant writes.

    With a `budget`, only so many tokens of the first thought are kept, and nothing up to its end is a label: the model
    learns to answer after a thought that was cut, not to cut it. Nor are labels the first `forced` letters of the last
    message: it learns to go on after what a grammar gives. With `first_line`, the row ends behind the first line of its
    first thought: it learns to read the question, which takes many wordings, and not what follows from it, which takes
    most tokens.
    """
    encoded = collator.encode({"messages": chat(row), "tools": tools(row), "reasoning_mode": row["mode"]})
    ids, labels = encoded["input_ids"], encoded["labels"]
    if row["budget"] >= 0:
        ids, labels = cut_thought(ids, labels, row["budget"], collator.processor.tokenizer.control_ids)
    if row["forced"]:
        given = row["messages"][-1]["content"][: row["forced"]]
        tokenizer = collator.processor.tokenizer
        labels = without_start(
            ids, labels, len(tokenizer.encode(given, add_special_tokens=False)), tokenizer.control_ids
        )
    if row["first_line"]:
        end = first_line_end(ids, collator.processor.tokenizer)
        ids, labels = ids[:end], labels[:end]
    return {"input_ids": ids, "labels": labels}


def first_line_end(ids: list[int], tokenizer: Any) -> int:
    """Where the first line of the first thought ends, its line break included; of a thought of one line, the whole
    length."""
    start, stop = (ids.index(tokenizer.control_ids[mark]) for mark in (THINK, END_THINK))
    breaks = (i + 1 for i in range(start + 1, stop) if "\n" in tokenizer.decode([ids[i]]))
    return next(breaks, len(ids))


def without_start(ids: list[int], labels: list[int], count: int, marks: dict[str, int]) -> list[int]:
    """`labels` of one answer without its first `count` tokens, behind its thought if it has one."""
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    start = ids.index(marks[END_THINK]) + 1 if ids[first] == marks[THINK] else first
    return labels[:start] + [IGNORED] * count + labels[start + count :]


def cut_thought(ids: list[int], labels: list[int], budget: int, marks: dict[str, int]) -> tuple[list[int], list[int]]:
    """Keep `budget` tokens of the first thought and unlabel it, its marks included."""
    start, stop = ids.index(marks[THINK]), ids.index(marks[END_THINK])
    kept = min(start + 1 + budget, stop)
    ids = ids[:kept] + ids[stop:]
    labels = labels[:start] + [IGNORED] * (kept - start + 1) + labels[stop + 1 :]
    return ids, labels


def positions(length: int, gap: int) -> list[int]:
    """Positions of a row, of which `gap` are left out at one place: a short text then stands for a long one."""
    gap = min(gap, max(0, LONGEST - length))
    if not gap:
        return list(range(length))
    place = random.Random(gap).randrange(10, max(11, length // 2))
    return [*range(place), *range(place + gap, length + gap)]


class Parts(TorchDataset):
    """One member's batches of the run in order: each step's rows sorted by length and dealt into parts of about equal
    cost.

    `rows` are encoded ones (`input_ids`, `labels`, `gap`, `images`). Each of `members` has `parts_per_step` of a step's
    parts, so that accumulating them, over all members, is one step on mixed rows, and hardly any padding is computed. A
    batch carries `total`, the labels in the whole step.
    """

    def __init__(
        self,
        rows: Dataset,
        image_processor: Small4ImageProcessor,
        pad: int,
        stage: Any,
        seed: int,
        member: int = 0,
        members: int = 1,
    ) -> None:
        self.rows, self.image_processor, self.pad = rows, image_processor, pad
        self.size, self.parts, self.steps = stage.rows_per_step, stage.parts_per_step, stage.steps
        self.member, self.members = member, members
        self.order: list[int] = []
        while len(self.order) < self.steps * self.size:  # one shuffled epoch after the other
            order = list(range(len(rows)))
            random.Random(f"{seed}-{len(self.order)}").shuffle(order)
            self.order += order
        self.step, self.cut, self.total = -1, list[list[dict[str, Any]]](), 0

    def __len__(self) -> int:
        return self.steps * self.parts

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        step, part = divmod(index, self.parts)
        if step != self.step:
            chosen = self.rows[self.order[step * self.size : (step + 1) * self.size]]
            rows = [dict(zip(chosen, values, strict=True)) for values in zip(*chosen.values(), strict=True)]
            self.total = sum(label != IGNORED for row in rows for label in row["labels"][1:])
            self.step, self.cut = step, self._deal(rows)
        # Parts are sorted by length, and their costs are estimates: who has the shortest part has the longest one too.
        place = self.member if part % 2 == 0 else self.members - 1 - self.member
        batch = collate(self.cut[part * self.members + place], self.pad, self.image_processor)
        return batch | {"total": torch.tensor(self.total)}

    def _deal(self, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        count, total, done = self.parts * self.members, sum(cost(row) for row in rows), 0.0
        parts: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        for row in rows:
            middle = done + cost(row) / 2
            parts[min(int(middle * count / total), count - 1)].append(row)
            done += cost(row)
        for i, part in enumerate(parts):  # a very long row may have left one empty
            if not part:
                part.append(max(parts, key=len).pop())
                parts[i] = part
        return parts


def cost(row: dict[str, Any]) -> float:
    """Work on a row, in tokens: linear in its length, attention's square, and the vision tower's share."""
    length = len(row["input_ids"])
    return length + length**2 / 3000 + TOKENS_PER_PICTURE * len(row["images"])


def collate(rows: Sequence[dict[str, Any]], pad: int, image_processor: Small4ImageProcessor) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask`, `labels` `[rows, longest]`, all pictures of the rows, prepared, and `position_ids`
    where rows have gaps; among long rows gaps are left out."""
    length = max(len(row["input_ids"]) for row in rows)
    gaps = length <= LONGEST_WITH_GAP and any(row["gap"] for row in rows)
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    places = torch.arange(length).repeat(len(rows), 1)
    for i, row in enumerate(rows):
        end = len(row["input_ids"])
        ids[i, :end], labels[i, :end], mask[i, :end] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]), 1
        places[i, :end] = torch.tensor(positions(end, row["gap"]))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if gaps:
        batch["position_ids"] = places
    pictures = [image for row in rows for image in row["images"]]
    if pictures:
        prepared = image_processor(pictures, return_tensors="pt")
        batch |= {name: torch.as_tensor(prepared[name]) for name in ("pixel_values", "image_sizes")}
    return batch
