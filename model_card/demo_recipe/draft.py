"""Train the demo's EAGLE draft on the demo's own answers, and write it as a folder that `generate(draft=...)` loads.

    python -m model_card.demo_recipe.draft --out model_card/demo_draft [--rows 1200] [--steps 1500]

Answers to problems of the training side, in both modes; then the draft alone learns, Muon on its matrices. 290,000
parameters in one layer; about 20 minutes on one core.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from model_card.demo_recipe.draft_answers import Answers, answers
from model_card.demo_recipe.muon import Muon, parameter_groups
from modeling_small4 import demo_checkpoint
from modeling_small4.drafts_eagle import Small4EagleDraft
from modeling_small4.drafts_view import Seen
from modeling_small4.modeling_small4 import Small4ForCausalLM
from modeling_small4.training.draft import IGNORED, draft_loss, new_draft, seen_by

LAYERS, WIDTH = 1, 384
MATRIX_RATE, OTHER_RATE, WARMUP = 8e-3, 3e-3, 30
TOKENS = 5000  # of one step, padding included


def train(model: Small4ForCausalLM, given: list[Answers], steps: int, seed: int) -> Small4EagleDraft:
    """A draft for `model`, which has written the answers."""
    torch.manual_seed(seed)
    draft, rng = new_draft(model, LAYERS, WIDTH), random.Random(seed)
    rows = [row for each in given for row in rows_of(model, each)]
    optimizer = Muon(parameter_groups(draft, MATRIX_RATE, OTHER_RATE, 0.01), max_norm=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * max(0.02, 1 - step / steps)
    )
    for step in range(1, steps + 1):
        loss = draft_loss(draft, model.lm_head, *batch(rng, rows))
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print({"step": step, "loss": round(loss.item(), 3), "seconds": round(time.process_time())}, flush=True)
    return draft


def rows_of(model: Small4ForCausalLM, given: Answers) -> list[tuple[Seen, torch.Tensor]]:
    """Each row without its padding, and its labels: what the model wrote behind the first token."""
    seen, out = seen_by(model, given.inputs), []
    ids, mask = given.inputs["input_ids"], given.inputs["attention_mask"]
    labels = torch.where((torch.arange(ids.shape[1]) > given.start) & mask.bool(), ids, IGNORED)
    for row in range(ids.shape[0]):
        kept = mask[row].bool()
        part = Seen(*(x[row : row + 1, kept].bfloat16() for x in (seen.embeddings, seen.positions, seen.hidden)))
        part.positions = seen.positions[row : row + 1, kept]
        out.append((part, labels[row : row + 1, kept]))
    return out


def batch(rng: random.Random, rows: list[tuple[Seen, torch.Tensor]]) -> tuple[Seen, torch.Tensor]:
    """Rows of like length, padded on the right, where causal attention needs no mask."""
    first = rng.choice(rows)
    near = [row for row in rng.sample(rows, min(len(rows), 400)) if 0.8 * len(first[0]) < len(row[0]) <= len(first[0])]
    chosen = [first, *near[: max(0, TOKENS // len(first[0]) - 1)]]
    length = max(len(seen) for seen, _ in chosen)

    def padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        out = tensors[0].new_full((len(tensors), length, *tensors[0].shape[2:]), value)
        for i, tensor in enumerate(tensors):
            out[i, : tensor.shape[1]] = tensor[0]
        return out

    seen = Seen(
        padded([seen.embeddings for seen, _ in chosen], 0).float(),
        torch.arange(length).expand(len(chosen), -1),
        padded([seen.hidden for seen, _ in chosen], 0).float(),
    )
    return seen, padded([labels for _, labels in chosen], IGNORED)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's EAGLE draft.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1200, help="problems of each task")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = demo_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    given = list(answers(model, AutoProcessor.from_pretrained(folder), args.rows, args.seed))
    train(model, given, args.steps, args.seed).bfloat16().save_pretrained(args.out)


if __name__ == "__main__":
    main()
