"""What is asked about the demo checkpoint's pictures, and the thought, which says first what is seen.

Colour and shape of one figure, how many there are, where it is, which digit is drawn, and two pictures compared. Knows
nothing of tokens or models.
"""

import random

from model_card.demo_recipe.tasks.item import Item, question_and_answer, vary
from model_card.demo_recipe.tasks.scenes import Scene, drawn_digit, one_shape, placed_shape, render, several_shapes

ASK_BOTH = (
    "What is in this picture?", "What is in this image?", "What is in the picture?", "What's in this picture?",
    "What do you see?",
    "What can you see in the image?", "Describe the image.", "Describe this picture.", "Describe the picture in a few "
        "words.",
    "What does this image show?", "What does the picture show?", "What is this?", "What is shown here?",
    "Tell me what you see.",
    "Which shape is it, and which colour?", "What shape and colour is "
        "this?", "What colour and shape is it?", "What is drawn here?",
    "Name the shape and its colour.", "What is the colour and shape in this picture?", "What object is in the "
        "picture?", "Look at this picture. What is it?",
)  # fmt: skip
ASK_COLOUR = (
    "Which colour is the shape?", "What colour is the shape?", "What colour is it?", "What is the colour of the shape?",
    "What color is the shape?", "Which color is it?", "Name the colour.", "Tell me the colour of this "
        "shape.", "What color is this?",
)  # fmt: skip
ASK_SHAPE = (
    "What shape is this?", "Which shape is this?", "What shape is it?", "What is the shape?", "Name the shape.",
    "Which shape is in the picture?", "What shape do you see?", "What shape is in the image?", "Tell me the shape.",
)  # fmt: skip
ASK_COUNT = (
    "How many shapes are there?", "How many shapes do you see?", "Count the shapes.", "How many {s}s are there?",
    "How many {s}s do you see?",
    "How many {s}s are in the picture?", "Count the {s}s.",
)  # fmt: skip
ASK_PLACE = (
    "Where is the {s}?",
    "Where is the shape?",
    "In which part of the picture is the {s}?",
    "Where do you see the {s}?",
    "Say where the shape is.",
)
ASK_DIGIT = (
    "Which digit is this?",
    "What digit is this?",
    "Read the digit.",
    "Which number is drawn here?",
    "What number do you see?",
    "Which digit do you see?",
)
ASK_SAME = {
    "shape": ("Do both pictures show the same shape?", "Is it the same shape in both "
        "pictures?", "Are the two shapes the same?"),
    "colour": ("Are both shapes of the same colour?", "Do both pictures show the same colour?", "Is the colour the "
        "same in both pictures?"),
}  # fmt: skip


def draw(rng: random.Random, easy: bool = False, kind: str | None = None) -> Item:
    """A question about one picture, or about two."""
    kind = kind or rng.choices(list(KINDS), weights=(6, 3, 3, 3, 3))[0]
    return KINDS[kind](rng)


def _look(rng: random.Random) -> Item:
    scene, chance = one_shape(rng), rng.random()
    if chance < 0.2:
        kind, question, answer = "colour", rng.choice(ASK_COLOUR), scene.colour
    elif chance < 0.4:
        kind, question, answer = "shape", rng.choice(ASK_SHAPE), f"a {scene.shape}"
    else:
        article = "an" if scene.colour[0] in "aeiou" else "a"
        kind, question, answer = "colour and shape", rng.choice(ASK_BOTH), f"{article} {scene.colour} {scene.shape}"
    return _item(kind, question, answer, f"{scene.colour} {scene.shape}", [scene], rng)


def _count(rng: random.Random) -> Item:
    scene = several_shapes(rng)
    count = str(len(scene.figures))
    question = rng.choice(ASK_COUNT).format(s=scene.shape)
    return _item("count", question, count, f"count {count}", [scene], rng)


def _place(rng: random.Random) -> Item:
    scene, place = placed_shape(rng)
    answer = "in the middle" if place == "middle" else f"at the {place}"
    return _item("position", rng.choice(ASK_PLACE).format(s=scene.shape), answer, place, [scene], rng)


def _digit(rng: random.Random) -> Item:
    scene = drawn_digit(rng)
    return _item("digit", rng.choice(ASK_DIGIT), str(scene.digit), f"digit {scene.digit}", [scene], rng)


def _compare(rng: random.Random) -> Item:
    what, same = rng.choice(("shape", "colour")), rng.random() < 0.5
    first = one_shape(rng)
    while (getattr(second := one_shape(rng), what) == getattr(first, what)) != same:
        pass
    seen = "\n".join(f"{scene.colour} {scene.shape}" for scene in (first, second))
    seen += f"\n{getattr(first, what)}, {getattr(second, what)}: {'same' if same else 'different'}"
    return _item("two pictures", rng.choice(ASK_SAME[what]), "yes" if same else "no", seen, [first, second], rng)


def _item(kind: str, question: str, answer: str, thought: str, scenes: list[Scene], rng: random.Random) -> Item:
    turns = question_and_answer(vary(question, rng), answer, thought)
    return Item(kind, tuple(scenes), turns, answer, images=lambda: [render(scene) for scene in scenes])


KINDS = {"look": _look, "count": _count, "place": _place, "digit": _digit, "compare": _compare}
