"""The decoder's own lesson, before it meets any text: what stood with the same tokens before, in rows of random tokens.

A row holds some tokens and then, in another order perhaps, the same again: pairs of keys and values looked up, a list
copied, a list from its end. Nothing but attention to like content can tell what comes. That is learned soon where rows
are very short, and hardly where they start long; so they start with two or three items and grow. Knows nothing of
words.
"""

import random

import torch
from torch import nn

from model_card.demo_recipe.batches import IGNORED
from model_card.demo_recipe.muon import Muon, parameter_groups
from model_card.demo_recipe.recipe import Recalling
from model_card.demo_recipe.team import Team
from model_card.demo_recipe.vocabulary import NUM_SPECIAL
from modeling_small4.modeling_small4 import Small4ForCausalLM

# Control ids that stand between the two halves of a row, one for each sort of row; they mean other things later.
LOOK_UP, COPY, BACKWARDS = 4, 5, 6
BEGIN, PAD = 1, 11
DIGITS = [NUM_SPECIAL + byte for byte in b"0123456789"]
PRINTABLE = [NUM_SPECIAL + byte for byte in range(32, 127)]
# Token ids of a row, and which of them are to be told.
Row = tuple[list[int], list[int]]


def learn_to_recall(model: Small4ForCausalLM, recipe: Recalling, seed: int, team: Team | None = None) -> None:
    """Train the text model in place; each member of a team draws rows of its own."""
    team = team or Team()
    rng = random.Random(f"recall-{seed}-{team.rank}")
    pieces = [*PRINTABLE, *range(NUM_SPECIAL + 256, model.config.get_text_config().vocab_size)]
    text = nn.ModuleList([model.model.language_model, model.lm_head])
    optimizer = Muon(
        parameter_groups(text, recipe.matrix_rate, recipe.other_rate, recipe.weight_decay), team=team, max_norm=1.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup_steps))
    for step in range(1, recipe.steps + 1):
        size = min(1.0, max(0.0, (step - recipe.short_steps) / recipe.growing_steps))
        count = round(recipe.rows_per_step * (1 - min(0.5, size)))  # longer rows, fewer of them
        loss = told(model, [row(rng, pieces, size) for _ in range(count // team.size)])
        (loss / team.size).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 and team.rank == 0:
            print({"recall": step, "size": round(size, 2), "loss": round(loss.item(), 3)}, flush=True)


def told(model: Small4ForCausalLM, rows: list[Row]) -> torch.Tensor:
    """Mean cross-entropy of the labels."""
    length = max(len(ids) for ids, _ in rows)
    ids, labels = (
        torch.tensor([each[side] + [fill] * (length - len(each[side])) for each in rows], device=model.device)
        for side, fill in ((0, PAD), (1, IGNORED))
    )
    wanted = labels[:, 1:] != IGNORED
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][wanted]
    return nn.functional.cross_entropy(model.lm_head(hidden).float(), labels[:, 1:][wanted])


def row(rng: random.Random, pieces: list[int], size: float) -> Row:
    """One row of any sort; `size` from 0 (two or three items) to 1 (full length)."""
    return rng.choices((look_up, copy, backwards), weights=(6, 3, 2))[0](rng, pieces, size)


def look_up(rng: random.Random, pieces: list[int], size: float) -> Row:
    """Keys of up to three tokens, something that joins them to values of up to four, other tokens now and then; later
    all pairs in another order, where each key is given and the rest told."""
    wide = size > 0.3
    key, joint, value = (
        rng.choice(c) for c in (((1, 1, 2, 3), range(4), (1, 1, 2, 4)) if wide else ((1,), (0, 1), (1,)))
    )
    count, between, end = rng.randint(2, grown(8, size)), rng.sample(pieces, joint), rng.sample(pieces, 1)
    if key > 1 and rng.random() < 0.5:  # keys that differ in the last token only
        keys = [[*begin, last] for begin in [rng.sample(pieces, key - 1)] for last in rng.sample(pieces, count)]
    else:
        keys = [rng.sample(pieces, key) for _ in range(count)]
    values = [[rng.choice(DIGITS if rng.random() < 0.6 else pieces) for _ in range(value)] for _ in keys]
    ids = [BEGIN]
    for k, v in zip(keys, values, strict=True):
        ids += [*k, *between, *v, *end]
        if rng.random() < 0.2:
            ids += rng.choices(pieces, k=rng.randint(1, 8))
    ids.append(LOOK_UP)
    labels = [IGNORED] * len(ids)
    for k, v in rng.sample(list(zip(keys, values, strict=True)), count):
        ids += [*k, *between, *v, *end]
        labels += [*[IGNORED] * key, *between, *v, *end]
    return ids, labels


def copy(rng: random.Random, pieces: list[int], size: float) -> Row:
    """A list, perhaps other tokens, and the list again."""
    listed = [rng.choice(pieces if rng.random() < 0.8 else DIGITS) for _ in range(rng.randint(3, grown(32, size)))]
    others = rng.choices(pieces, k=rng.choice((0, 0, 5, 20)) if size > 0.5 else 0)
    ids = [BEGIN, *listed, COPY, *others, COPY]
    return [*ids, *listed], [*[IGNORED] * len(ids), *listed]


def backwards(rng: random.Random, pieces: list[int], size: float) -> Row:
    """A list, and the list from its end."""
    listed = [rng.choice(pieces if rng.random() < 0.5 else DIGITS) for _ in range(rng.randint(2, grown(12, size)))]
    ids = [BEGIN, *listed, BACKWARDS]
    return [*ids, *listed[::-1]], [*[IGNORED] * len(ids), *listed[::-1]]


def grown(full: int, size: float) -> int:
    return max(3, round(full * size))
