"""The demo checkpoint's data: chats with seeds, as `datasets` datasets, training and held-out problems disjoint by construction.

Every row is one chat. Whether a problem or a picture may be trained on or is held out depends on a hash of the problem itself
(never of its phrasing), so no seed can mix the two. Knows nothing of token ids or models.

Columns: task, kind (of problem), mode ("none" | "high"), budget (tokens of the thought that are kept, or -1 for all), answer,
image (PNG or None), image_last (it stands after the first question, not before) and messages, whose assistant turns carry
`reasoning_content`.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Features, Image, Value
from small4_conversion.demo import arithmetic, pictures, talk

TASKS = {"arithmetic": 0.76, "picture": 0.2, "talk": 0.04}
HELD_OUT_SHARE = 0.05
MESSAGE = {"role": Value("string"), "content": Value("string"), "reasoning_content": Value("string")}
FEATURES = Features(
    {
        "task": Value("string"),
        "kind": Value("string"),
        "mode": Value("string"),
        "budget": Value("int64"),
        "answer": Value("string"),
        "image": Image(),
        "image_last": Value("bool"),
        "messages": [MESSAGE],
    }
)


def is_held_out(thing: arithmetic.Problem | pictures.Scene) -> bool:
    """Whether a problem or scene belongs to the held-out side: a twentieth of all, by hash.

    Problems that differ only in the order of their numbers go together; those of two digits below 10 are never held out.
    """
    key: object = thing
    if isinstance(thing, arithmetic.Problem):
        key = (thing.sign, *sorted((thing.left, thing.right)))
        if max(thing.left, thing.right) < 10:
            return False
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def rows(
    split: str, seed: int, tasks: dict[str, float] | None = None, modes: dict[str, float] | None = None
) -> Iterator[dict[str, Any]]:
    """Endless rows of one split ("train" | "held_out"); the same arguments give the same rows.

    `tasks` and `modes` weigh what is drawn. Held-out rows have one turn, no cut thoughts and no small talk.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split is {split!r}; allowed are 'train' and 'held_out'")
    tasks, modes = tasks or TASKS, modes or {"high": 0.68, "none": 0.32}
    rng = random.Random(f"{split}-{seed}")
    while True:
        task = _weighted(tasks, rng)
        mode = _weighted(modes, rng)
        easy = split == "train" and mode == "none" and rng.random() < 0.5
        kind, turns, answer, image = _turns(task, split, rng, easy)
        if split == "train" and rng.random() < 0.12:
            turns += _turns(rng.choice(("arithmetic", "talk")), split, rng)[1]
        system = [_message("system", rng.choice(talk.SYSTEM_PROMPTS))] if rng.random() < 0.2 else []
        if mode == "none":
            turns = [turn | {"reasoning_content": None} for turn in turns]
        budget = (
            rng.choice((0, 2, 4, 8, 8, 16, 32)) if split == "train" and mode == "high" and rng.random() < 0.12 else -1
        )
        about = {"task": task, "kind": kind, "mode": mode, "budget": budget, "answer": answer}
        yield about | {"image": image, "image_last": rng.random() < 0.15, "messages": system + turns}


def dataset(split: str, count: int, seed: int, **draw: Any) -> Dataset:
    """The first `count` of `rows` as a dataset in memory."""
    source = rows(split, seed, **draw)
    return Dataset.from_list([next(source) for _ in range(count)], features=FEATURES)


def corpus(rng: random.Random) -> Iterator[str]:
    """Text to learn a vocabulary from: questions, thoughts, answers and settings, as they occur in training rows."""
    source = rows("train", rng.randrange(2**32), tasks={"arithmetic": 0.7, "talk": 0.3})
    for _ in range(4000):
        row = next(source)
        yield f'{{"reasoning_effort": "{row["mode"]}"}}'
        for message in row["messages"]:
            yield message["content"]
            yield message["reasoning_content"] or ""
    for _ in range(20):
        yield from (*pictures.ASK_BOTH, *pictures.ASK_COLOUR, *pictures.ASK_SHAPE)
        for colour in pictures.COLOURS:
            yield from (f"a {colour} {shape}\ncolour: {colour}\nshape: {shape}" for shape in pictures.SHAPES)


def _turns(task: str, split: str, rng: random.Random, easy: bool = False) -> tuple[str, list[dict[str, Any]], str, Any]:
    """(kind, user and assistant message, answer, picture if any) of one question from the right side of the split."""
    kind, image = task, None
    if task == "talk":
        question, answer, thought = talk.draw_talk(rng)
    elif task == "picture":
        scene = _of_split(pictures.draw_scene, split, rng)
        kind, question, answer = pictures.ask(scene, rng)
        thought, image = pictures.think(scene), pictures.render(scene)
    else:
        problem = _of_split(lambda source: arithmetic.draw_problem(source, easy), split, rng)
        kind, question, answer = problem.kind, arithmetic.ask(problem, rng), str(problem.answer)
        thought = arithmetic.think(problem)
    return kind, [_message("user", question), _message("assistant", answer, thought)], answer, image


def _of_split(draw: Callable[[random.Random], Any], split: str, rng: random.Random) -> Any:
    while is_held_out(thing := draw(rng)) != (split == "held_out"):
        pass
    return thing


def _message(role: str, content: str, thought: str | None = None) -> dict[str, Any]:
    return {"role": role, "content": content, "reasoning_content": thought}


def _weighted(weights: dict[str, float], rng: random.Random) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]
