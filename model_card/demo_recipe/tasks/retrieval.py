"""Retrieval for the demo checkpoint: a fact somewhere in a long text, and a question about it at the end.

    ... Anna's code is 4821. ...     What is Anna's code?      4821

Text around the facts is made of unrelated sentences; each key occurs in one fact only. Knows nothing of tokens or
models.
"""

import random

from model_card.demo_recipe.tasks.item import Item, assistant, user
from model_card.demo_recipe.tasks.words import NAMES, OBJECTS

SUBJECTS = (
    "The old man",
    "A small dog",
    "The teacher",
    "My friend",
    "The cook",
    "A bird",
    "The farmer",
    "The doctor",
    "A young girl",
    "The driver",
    "The king",
    "A cat",
)
VERBS = ("sees", "likes", "paints", "carries", "finds", "watches", "cleans", "buys", "sells", "draws", "moves", "wants")
THINGS = (
    "a red apple",
    "the tall tree",
    "some bread",
    "a blue book",
    "the river",
    "an old song",
    "the green hill",
    "a warm coat",
    "the last train",
    "a glass of milk",
    "the big house",
    "a new road",
)
TIMES = (
    "today",
    "every day",
    "in the morning",
    "at night",
    "in the summer",
    "on Sunday",
    "once a week",
    "near the sea",
    "in the rain",
    "after lunch",
)
TOKENS_PER_SENTENCE = 10


def draw(rng: random.Random, easy: bool = False, context: int | None = None, questions: int = 1) -> Item:
    """A text of about `context` tokens with several facts, and a question about one of them, or several one after the
    other.
    """
    context = context or rng.choice((96, 128, 192, 256, 384, 512))
    count = min(len(NAMES) + len(OBJECTS), max(questions + 1, rng.randint(2, 8)))
    facts = dict.fromkeys(rng.sample([*NAMES, *OBJECTS], count), "")
    facts = {key: f"{rng.randrange(1000, 10000)}" for key in facts}
    sentences = [filler(rng) for _ in range(max(0, context // TOKENS_PER_SENTENCE - count))]
    for key, value in facts.items():
        sentences.insert(rng.randint(0, len(sentences)), fact(key, value))
    asked = rng.sample(list(facts), questions)
    turns = []
    for i, key in enumerate(asked):
        question = rng.choice(("What is {k}?", "What is {k}?", "Tell me {k}.", "Find {k}.")).format(k=owner(key))
        text = " ".join(sentences) + "\n" + question if i == 0 else question
        turns += [user(text), assistant(facts[key], fact(key, facts[key]))]
    identity = tuple((key, facts[key]) for key in asked)
    return Item("retrieval", identity, turns, facts[asked[-1]])


def owner(key: str) -> str:
    return f"{key}'s code" if key in NAMES else f"the code of the {key}"


def fact(key: str, value: str) -> str:
    name = owner(key)
    return f"{name[0].upper()}{name[1:]} is {value}."


def filler(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(THINGS)} {rng.choice(TIMES)}."
