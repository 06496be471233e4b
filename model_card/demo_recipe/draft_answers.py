"""The demo's own answers to problems of the training side, for its EAGLE draft to learn from.

Greedy, all tasks, both modes. Must not know what is learned from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model_card.demo_recipe.tasks.data import TASKS, dataset
from model_card.evals.answers import alike, prompt
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.training.evaluation import new_tokens

MODES = {"high": 0.75, "none": 0.25}
CONTEXTS = {200: 0.6, 500: 0.3, 1000: 0.1}  # lengths of retrieval's texts, in tokens


@dataclass
class Answers:
    """Rows of like length.

    Attributes:
        inputs: What the model reads: `input_ids` and `attention_mask` `[rows, length]`, answers included, and images.
        start: Where the answers begin.
    """

    inputs: dict[str, torch.Tensor]
    start: int


def answers(
    model: Small4ForCausalLM, processor: Small4Processor, rows: int, seed: int, batch: int = 48
) -> Iterator[Answers]:
    """Answers to `rows` problems of each task."""
    for task in TASKS:
        context = {"context": CONTEXTS} if task == "retrieval" else {}
        for mode, share in MODES.items():
            drawn = list(dataset("train", round(rows * share), seed, tasks={task: 1.0}, modes={mode: 1.0}, **context))
            prompts = [prompt(row, processor, mode) for row in drawn]
            lengths = [len(ids) for ids in processor(text=prompts)["input_ids"]]
            for members in alike(lengths, batch):
                yield _answered(model, processor, [prompts[i] for i in members], mode)


def _answered(model: Small4ForCausalLM, processor: Small4Processor, prompts: list[str], mode: str) -> Answers:
    inputs = dict(processor(text=prompts, return_tensors="pt", padding=True))
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        new = new_tokens(model, inputs, reasoning_mode=mode, max_thinking_tokens=None)
    start, pad = inputs["input_ids"].shape[1], model.generation_config.pad_token_id
    inputs["input_ids"] = torch.cat((inputs["input_ids"], new), dim=1)
    inputs["attention_mask"] = torch.cat((inputs["attention_mask"], (new != pad).long()), dim=1)
    return Answers(inputs, start)
