"""Rows of chats to training batches: token ids through our processor, labels on what the assistant writes, equal parts of a step.

Knows nothing of the model or the optimiser. Rows are padded on the right: causal attention then needs no mask.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

IGNORED = -100


def chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's messages as a processor takes them: the picture stands before or after the first question."""
    messages: list[dict[str, Any]] = []
    for message in row["messages"]:
        content: Any = message["content"]
        if message["role"] == "user" and row["image"] is not None and not any(m["role"] == "user" for m in messages):
            content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": content}]
            content = content[::-1] if row["image_last"] else content
        thought = {"reasoning_content": message["reasoning_content"]} if message["reasoning_content"] else {}
        messages.append({"role": message["role"], "content": content, **thought})
    return messages


def encode(row: dict[str, Any], processor: Any, marks: dict[str, int]) -> dict[str, Any]:
    """`input_ids`, `labels` and the prepared picture of one row.

    With a `budget`, only so many tokens of the first thought are kept, and nothing up to its end is a label: the model learns to
    answer after a thought that was cut, not to cut it.
    """
    encoded = processor.apply_chat_template(
        chat(row), reasoning_mode=row["mode"], tokenize=True, return_dict=True, add_generation_prompt=False
    )
    ids = torch.as_tensor(encoded["input_ids"]).flatten().tolist()
    labels = supervised(ids, marks)
    if row["budget"] >= 0:
        ids, labels = cut_thought(ids, labels, row["budget"], marks)
    picture = {name: torch.as_tensor(encoded[name]) for name in ("pixel_values", "image_sizes") if name in encoded}
    return {"input_ids": ids, "labels": labels, **picture}


def supervised(ids: list[int], marks: dict[str, int]) -> list[int]:
    """Labels: each id from after `[/INST]` to the end of the turn, -100 elsewhere."""
    labels, speaking = [], False
    for token in ids:
        labels.append(token if speaking else IGNORED)
        speaking = token == marks["end_inst"] or (speaking and token != marks["eos"])
    return labels


def cut_thought(ids: list[int], labels: list[int], budget: int, marks: dict[str, int]) -> tuple[list[int], list[int]]:
    """Keep `budget` tokens of the first thought and unlabel it, its marks included."""
    start, stop = ids.index(marks["think"]), ids.index(marks["end_think"])
    kept = min(start + 1 + budget, stop)
    ids = ids[:kept] + ids[stop:]
    labels = labels[:start] + [IGNORED] * (kept - start + 1) + labels[stop + 1 :]
    return ids, labels


class Parts(TorchDataset):
    """The run's batches in order: each step's rows sorted by length and dealt into parts of about equal cost.

    Item `step * parts + i` is part `i` of a step, so that accumulating `parts` of them is one step on mixed rows, and
    hardly any padding is computed.
    """

    def __init__(self, rows: Dataset, processor: Any, marks: dict[str, int], stage: Any, seed: int) -> None:
        self.rows, self.processor, self.marks = rows, processor, marks
        self.size, self.parts, self.pad = stage.rows_per_step, stage.parts_per_step, marks["pad"]
        self.order: list[int] = []
        self.steps = stage.steps
        while len(self.order) < self.steps * self.size:  # one shuffled epoch after the other
            order = list(range(len(rows)))
            random.Random(f"{seed}-{len(self.order)}").shuffle(order)
            self.order += order
        self.step, self.cut = -1, list[list[dict[str, Any]]]()

    def __len__(self) -> int:
        return self.steps * self.parts

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        step, part = divmod(index, self.parts)
        if step != self.step:
            chosen = self.order[step * self.size : (step + 1) * self.size]
            self.step, self.cut = step, self._deal([self._row(i) for i in chosen])
        return collate(self.cut[part], self.pad)

    def _row(self, index: int) -> dict[str, Any]:
        return encode(self.rows[index], self.processor, self.marks)

    def _deal(self, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        total, done = sum(len(row["input_ids"]) for row in rows), 0
        parts: list[list[dict[str, Any]]] = [[] for _ in range(self.parts)]
        for row in rows:
            parts[min(done * self.parts // total, self.parts - 1)].append(row)
            done += len(row["input_ids"])
        return parts


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask`, `labels` `[rows, longest]`, and all pictures of the rows padded to the largest."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        end = len(row["input_ids"])
        ids[i, :end], labels[i, :end], mask[i, :end] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]), 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    pictures = [row for row in rows if "pixel_values" in row]
    if pictures:
        sizes = torch.cat([row["image_sizes"] for row in pictures])
        height, width = sizes.amax(0).tolist()
        pixels = torch.zeros(len(sizes), 3, height, width)
        for i, row in enumerate(pictures):
            (one,) = row["pixel_values"]
            pixels[i, :, : one.shape[1], : one.shape[2]] = one
        batch |= {"pixel_values": pixels, "image_sizes": sizes}
    return batch
