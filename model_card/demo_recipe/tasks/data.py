"""The demo checkpoint's data: chats with seeds, as `datasets` datasets, training and held-out problems disjoint by
construction.

Every row is one chat. Whether a problem or a picture may be trained on or is held out depends on a hash of the problem
itself (never of its phrasing), so no seed can mix the two. Knows nothing of token ids or models.

Columns: task, kind (of problem), mode ("none" | "high"), budget (tokens of the thought that are kept, or -1 for all),
gap (positions left out somewhere in the prompt, 0 for none), first_line (the row ends behind the first line of its
thought), forced (letters of the last message that a grammar gives and that are not learned), answer, images (PNG),
image_last (pictures stand after the first question, not before), tools (JSON of the schemas offered, or "") and
messages, whose assistant turns carry `reasoning_content` and `tool_calls` (JSON or "").
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from datasets import Dataset, Features, Image, Value, concatenate_datasets

from model_card.demo_recipe.tasks import (
    arithmetic,
    drills,
    pictures,
    programs,
    puzzles,
    retrieval,
    small_steps,
    talk,
    tool_use,
    word_problems,
)
from model_card.demo_recipe.tasks.item import Item
from model_card.demo_recipe.tasks.reworded import as_json, lookups, stories, sums
from model_card.demo_recipe.tasks.reworded import pictures as reworded_pictures
from model_card.demo_recipe.tasks.reworded import programs as reworded_programs
from model_card.demo_recipe.tasks.reworded import puzzles as reworded_puzzles
from model_card.demo_recipe.tasks.reworded import talk as reworded_talk
from model_card.demo_recipe.tasks.reworded import tools as reworded_tools

# Tasks and how often training draws them. `DRAW` has more, for training alone: drills, and what is easily missed of a
# task.
TASKS = {
    "arithmetic": 0.26,
    "word_problem": 0.12,
    "puzzle": 0.16,
    "program": 0.12,
    "tools": 0.08,
    "retrieval": 0.08,
    "picture": 0.14,
    "talk": 0.04,
}
DRAW: dict[str, Callable[..., Item]] = {
    "arithmetic": arithmetic.draw,
    "word_problem": word_problems.draw,
    "puzzle": puzzles.draw,
    "program": programs.draw,
    "tools": tool_use.draw,
    "retrieval": retrieval.draw,
    "picture": pictures.draw,
    "talk": talk.draw,
    "drill": drills.draw,
    "small step": drills.draw_small_step,
    "difference": arithmetic.draw_difference,
    "table": arithmetic.draw_simple,
    "hard puzzle": puzzles.draw_hard,
    "hard program": programs.draw_hard,
    "hard tools": tool_use.draw_hard,
}
# The same tasks in wider wording, drawn as often as `reworded` of `rows` says; pictures are photographed.
REWORDED: dict[str, Callable[..., Item]] = {
    "arithmetic": sums.draw,
    "word_problem": stories.draw,
    "puzzle": reworded_puzzles.draw,
    "program": reworded_programs.draw,
    "tools": reworded_tools.draw,
    "retrieval": lookups.draw,
    "picture": reworded_pictures.draw,
    "talk": reworded_talk.draw,
}
MODES = {"high": 0.7, "none": 0.3}
MESSAGE = {name: Value("string") for name in ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")}
FEATURES = Features(
    {
        "task": Value("string"),
        "kind": Value("string"),
        "mode": Value("string"),
        "budget": Value("int64"),
        "gap": Value("int64"),
        "forced": Value("int64"),
        "first_line": Value("bool"),
        "answer": Value("string"),
        "images": [Image()],
        "image_last": Value("bool"),
        "tools": Value("string"),
        "messages": [MESSAGE],
    }
)
IN_JSON = ("arithmetic", "difference", "word_problem", "puzzle", "program", "retrieval", "picture")
READ = ("arithmetic", "word_problem")  # the first line of the thought says what was read; the rest follows from it
LONGEST_GAP = 6000
LONGEST_GAP_WHEN_WIDE = 7600
PIECE = 10_000


def rows(
    split: str,
    seed: int,
    tasks: dict[str, float] | None = None,
    modes: dict[str, float] | None = None,
    context: int | dict[int, float] | None = None,
    in_small_steps: bool = False,
    reworded: float = 0.0,
    in_json: float = 0.0,
    first_lines: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Endless rows of one split ("train" | "held_out"); the same arguments give the same rows.

    `tasks` and `modes` weigh what is drawn; `context` is the length of retrieval's texts in tokens, or lengths and
    their weights. With `in_small_steps`, thoughts of training rows are written out as `small_steps.py` says. `reworded`
    is the share of rows in wider wording; in held-out rows, wording that training never draws. `in_json` is the share
    of rows of the tasks `IN_JSON` whose answers are JSON; held-out ones ask for it. `first_lines` is the share of
    training rows in wider wording, of the tasks `READ`, that end behind the first line of their thought. Held-out rows
    ask one thing, with no cut thoughts and no gaps.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split is {split!r}; allowed are 'train' and 'held_out'")
    tasks, modes = tasks or TASKS, modes or MODES
    rng = random.Random(f"{split}-{seed}")
    while True:
        task, mode = _weighted(tasks, rng), _weighted(modes, rng)
        length = _weighted(context, rng) if isinstance(context, dict) else context
        wide = bool(reworded) and task in REWORDED and rng.random() < reworded
        if split == "train":
            yield _training_row(task, mode, length, in_small_steps, bool(reworded), wide, in_json, first_lines, rng)
        else:
            yield _held_out_row(task, mode, length, wide, in_json, rng)


def dataset(split: str, count: int, seed: int, **draw: Any) -> Dataset:
    """The first `count` of `rows` as a dataset in memory."""
    source = rows(split, seed, **draw)
    # Packed piece by piece: as Python objects, hundreds of thousands of rows fill gigabytes.
    sizes = [min(PIECE, count - start) for start in range(0, count, PIECE)]
    return concatenate_datasets([Dataset.from_list(list(islice(source, size)), features=FEATURES) for size in sizes])


def corpus(rng: random.Random) -> Iterator[str]:
    """Text to learn a vocabulary from: questions, thoughts, answers, schemas and settings, as they occur in training
    rows.

    Words to be spelled are left out, so that they fall into single letters and short pieces.
    """
    tasks = {
        "arithmetic": 3.0,
        "word_problem": 3.0,
        "program": 2.0,
        "tools": 2.0,
        "retrieval": 3.0,
        "picture": 3.0,
        "talk": 3.0,
    }
    source = rows("train", rng.randrange(2**32), tasks=tasks)
    for _ in range(4000):
        row = next(source)
        if row["kind"] == "string":
            continue
        yield f'{{"reasoning_effort": "{row["mode"]}"}}'
        yield row["tools"]
        for message in row["messages"]:
            yield from (message[part] or "" for part in ("content", "reasoning_content"))
            yield from (json.dumps(call["function"]["arguments"]) for call in json.loads(message["tool_calls"] or "[]"))
    for _ in range(1500):
        question = puzzles.draw(rng).turns[0]["content"]
        yield '""'.join(question.split('"')[::2])


def _training_row(
    task: str,
    mode: str,
    context: int | None,
    in_small_steps: bool,
    planned: bool,
    wide: bool,
    in_json: float,
    first_lines: float,
    rng: random.Random,
) -> dict[str, Any]:
    easy = mode == "none" and rng.random() < 0.5
    options = {"context": context, "questions": rng.choice((2, 3, 4))} if task == "retrieval" else {}
    if wide and options and rng.random() < 0.75:
        options["context"] = None
    draw = REWORDED[task] if wide else DRAW[task]
    item = _of_split(lambda: draw(rng, easy=easy, **options), False)
    turns, system = list(item.turns), item.system
    thought = _small_steps(task, item, turns[-1]["reasoning_content"], planned) if in_small_steps and not wide else None
    if thought:
        turns[-1] = turns[-1] | {"reasoning_content": thought}
    forced = 0
    if in_json and task in IN_JSON and len(turns) == 2 and not system and rng.random() < in_json:
        if rng.random() < 0.6:
            turns, system = _asked_in_json(turns, rng)
        else:
            answer, forced = as_json.unasked(turns[-1]["content"], rng)
            turns[-1] = turns[-1] | {"content": answer}
    elif task in ("arithmetic", "talk") and not system and rng.random() < 0.12:
        turns += _of_split(
            lambda: DRAW[rng.choice(("arithmetic", "talk"))](rng), False, lambda other: not other.system
        ).turns
    elif task in ("arithmetic", "word_problem", "puzzle", "program") and rng.random() < 0.1:
        system = rng.choice(list(talk.STYLES))
        turns[-1] = turns[-1] | {"content": talk.style(turns[-1]["content"], system)}
    if system is None and rng.random() < 0.1:
        system = rng.choice(talk.SYSTEM_PROMPTS)
    budget, gap = -1, 0
    if mode == "high" and task == "arithmetic" and rng.random() < 0.1:
        budget = rng.choice((0, 2, 4, 8, 8, 16, 32))
    if task == "retrieval" and rng.random() < 0.5:
        gap = rng.randrange(LONGEST_GAP_WHEN_WIDE if wide else LONGEST_GAP)
    row = _row(item, task, mode, system, turns, budget, gap, rng.random() < 0.1) | {"forced": forced}
    if first_lines and wide and mode == "high" and budget < 0 and task in READ:
        row["first_line"] = rng.random() < first_lines
    return row


def _asked_in_json(
    turns: list[dict[str, Any]], rng: random.Random, unseen: bool = False
) -> tuple[list[dict[str, Any]], str | None]:
    """A question and its answer, asked for and given in JSON, and the system prompt that may ask for it."""
    first, last = turns
    question, system, answer = as_json.asked(first["content"], last["content"], rng, unseen)
    return [first | {"content": question}, last | {"content": answer}], system


def _small_steps(task: str, item: Item, thought: str, planned: bool) -> str | None:
    key: Any = item.key
    if task in ("puzzle", "hard puzzle"):
        return small_steps.puzzle(key)
    if planned and task == "word_problem" and item.kind == "two steps":
        return f"{stories.plan(key[0], key[1:])}\n{thought}"
    return small_steps.program(key) if task in ("program", "hard program") else None


def _held_out_row(
    task: str, mode: str, context: int | None, wide: bool, in_json: float, rng: random.Random
) -> dict[str, Any]:
    options: dict[str, Any] = {"context": context} if task == "retrieval" else {}
    if wide:
        options["unseen"] = True
    draw = REWORDED[task] if wide else DRAW[task]
    item = _of_split(lambda: draw(rng, **options), True)
    if task == "tools":
        item = tool_use.cut(item, rng)
    if in_json and task in IN_JSON and rng.random() < in_json:
        turns, system = _asked_in_json(list(item.turns), rng, unseen=True)
        item = replace(item, turns=turns, system=system, answer=turns[-1]["content"])
    return _row(item, task, mode, item.system, item.turns, -1, 0, rng.random() < 0.1)


def _row(
    item: Item,
    task: str,
    mode: str,
    system: str | None,
    turns: list[dict[str, Any]],
    budget: int,
    gap: int,
    image_last: bool,
) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        calls = turn.get("tool_calls")
        thought = turn.get("reasoning_content") if mode == "high" else None
        messages.append(turn | {"reasoning_content": thought, "tool_calls": json.dumps(calls) if calls else ""})
    about = {
        "task": task,
        "kind": item.kind,
        "mode": mode,
        "budget": budget,
        "gap": gap,
        "forced": 0,
        "first_line": False,
    }
    about["answer"] = item.answer
    shown = {"images": item.images() if item.images else [], "image_last": image_last}
    complete = [dict.fromkeys(MESSAGE, None) | message for message in messages]
    return about | shown | {"tools": json.dumps(item.tools) if item.tools else "", "messages": complete}


def _of_split(draw: Callable[[], Item], held_out: bool, wanted: Callable[[Item], bool] = lambda item: True) -> Item:
    while True:
        item = draw()
        if item.held_out == held_out and wanted(item):
            return item


def _weighted(weights: dict[Any, float], rng: random.Random) -> Any:
    return rng.choices(list(weights), weights=list(weights.values()))[0]
