"""Greedy answers of a model to rows of the demo's data, in batches of like length. Must not know how answers are judged
or stored.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from model_card.demo_recipe.batches import chat, tools
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import thought_length
from modeling_small4.training.evaluation import new_tokens

BATCH_TOKENS = 16384  # prompt tokens of a batch, padding included


def measured_answers(
    model: Small4ForCausalLM,
    processor: Small4Processor,
    rows: Sequence[dict[str, Any]],
    batch: int,
    mode: str,
    budget: int | None = None,
    grammars: Sequence[Any] | None = None,
) -> list[dict[str, Any]]:
    """What the model says to each row's question.

    Args:
        rows: of `model_card.demo_recipe.tasks.data.dataset`; all but the last message, the answer to be found, is shown
            to the model.
        batch: most rows at once; long prompts go in smaller batches.
        mode, budget: `reasoning_mode` and `max_thinking_tokens` of `generate`.
        grammars: Its `grammar`, one for each row.

    Returns:
        For each row the parsed `message`, its `content`, `prompt_tokens`, `thinking_tokens` (between the marks),
        `new_tokens` up to the end of the turn, and its share of the batch's `seconds`.
    """
    prompts = [prompt(row, processor, mode) for row in rows]
    lengths = [len(ids) for ids in processor(text=prompts)["input_ids"]] if prompts else []
    out: list[dict[str, Any]] = [{} for _ in rows]
    for members in alike(lengths, batch):
        inputs = processor(text=[prompts[i] for i in members], return_tensors="pt", padding=True)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        kept = {} if grammars is None else {"grammar": [grammars[i] for i in members]}
        begin = time.perf_counter()
        with torch.inference_mode():
            new = new_tokens(model, inputs, reasoning_mode=mode, max_thinking_tokens=budget, **kept)
        seconds = (time.perf_counter() - begin) / len(members)
        for i, ids in zip(members, new.tolist(), strict=True):
            said = read(ids, processor, model.generation_config)
            out[i] = said | {"prompt_tokens": lengths[i], "seconds": seconds}
    return out


def prompt(row: dict[str, Any], processor: Small4Processor, mode: str) -> str:
    """The row's question as the processor lays it out, which still knows its pictures."""
    return processor.apply_chat_template(
        chat(row)[:-1], tools=tools(row), tokenize=False, reasoning_mode=mode, add_generation_prompt=True
    )


def alike(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Indices in batches of like length: at most `batch` rows and, padded, `BATCH_TOKENS` tokens, but one row in any
    case.
    """
    members: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if members and (len(members) == batch or (len(members) + 1) * lengths[i] > BATCH_TOKENS):
            yield members
            members = []
        members.append(i)
    if members:
        yield members


def read(ids: list[int], processor: Small4Processor, settings: GenerationConfig) -> dict[str, Any]:
    """The message, the tokens of its thought and all tokens up to the end of the turn."""
    known = settings.reasoning_token_ids
    ids = ids[: ids.index(settings.eos_token_id) + 1] if settings.eos_token_id in ids else ids
    thinking = thought_length(ids, known["think"], known["end_think"])
    message = processor.parse_response(ids)
    return {
        "message": message, "content": message["content"], "thinking_tokens": thinking, "new_tokens": len(ids)
    }  # fmt: skip
