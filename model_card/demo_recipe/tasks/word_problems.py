"""Word problems for the demo checkpoint: one or two steps of arithmetic told as a story.

The thought is the arithmetic alone, in `arithmetic`'s form, one computation after the other. Knows nothing of tokens or
models.
"""

import random

from model_card.demo_recipe.tasks import arithmetic
from model_card.demo_recipe.tasks.arithmetic import Problem
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.words import NAMES, THINGS

# Signs in the order in which they are worked out -> stories; n, m and k are names, o things, a, b and c numbers.
STORIES: dict[str, tuple[str, ...]] = {
    "+": (
        "{n} has {a} {o} and gets {b} more. How many {o} does {n} have now?",
        "{n} has {a} {o} and {m} has {b}. How many {o} do they have together?",
        "There are {a} {o} in one box and {b} in another. How many {o} are there in all?",
        "{n} found {a} {o} on Monday and {b} on Tuesday. How many is that in total?",
        "{n} buys {a} {o}. Then {n} buys {b} more. How many {o} has {n} bought?",
    ),
    "-": (
        "{n} has {a} {o} and gives {b} to {m}. How many {o} are left?",
        "{n} had {a} {o} and lost {b} of them. How many {o} does {n} still have?",
        "{n} has {a} {o} and {m} has {b}. How many more does {n} have?",
        "A shop had {a} {o} and sold {b}. How many {o} remain?",
        "There were {a} {o} on the table. {n} took {b} away. How many are left?",
    ),
    "x": (
        "{n} has {a} boxes with {b} {o} each. How many {o} is that?",
        "There are {a} bags of {b} {o}. How many {o} are there in all?",
        "{n} finds {a} {o} every day. How many {o} does {n} find in {b} days?",
        "{a} friends have {b} {o} each. How many {o} do they have together?",
    ),
    "++": (
        "{n} has {a} {o}, {m} has {b} and {k} has {c}. How many {o} do they have together?",
        "{n} has {a} {o}, buys {b} and finds {c} more. How many {o} does {n} have now?",
    ),
    "+-": (
        "{n} has {a} {o}, gets {b} more and gives {c} to {m}. How many {o} are left?",
        "{n} had {a} {o}. {n} bought {b} and then lost {c}. How many {o} does {n} have now?",
    ),
    "--": (
        "{n} has {a} {o}, gives {b} to {m} and {c} to {k}. How many {o} are left?",
        "A shop had {a} {o}. It sold {b} on Monday and {c} on Tuesday. How many {o} remain?",
    ),
    "x+": (
        "{n} buys {a} boxes of {b} {o} and finds {c} more. How many {o} does {n} have now?",
        "There are {a} bags of {b} {o} and {c} loose ones. How many {o} are there in all?",
    ),
    "x-": (
        "{n} has {a} boxes with {b} {o} each and gives {c} {o} to {m}. How many {o} are left?",
        "{n} had {a} bags of {b} {o} and lost {c} {o}. How many {o} does {n} still have?",
    ),
}  # fmt: skip


def draw(rng: random.Random, easy: bool = False) -> Item:
    """A story with one or two steps; no step gives a negative number. `easy` ones have one step and numbers below
    10.
    """
    signs = rng.choice(list(STORIES) if not easy else ("+", "-", "x"))
    numbers = draw_numbers(signs, rng, easy)
    n, m, k = rng.sample(NAMES, 3)
    letters = dict(zip("abc", numbers, strict=False))
    question = rng.choice(STORIES[signs]).format(n=n, m=m, k=k, o=rng.choice(THINGS), **letters)
    lines, total = list[str](), numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        step = Problem(total, sign, number)
        lines.append(arithmetic.think(step))
        total = step.answer
    kind = "one step" if len(signs) == 1 else "two steps"
    key = arithmetic.key(step) if len(signs) == 1 else (signs, *numbers)
    simple = len(signs) == 1 and arithmetic.is_simple(step)
    return Item(
        kind,
        key,
        question_and_answer(question, str(total), "\n".join(lines)),
        str(total),
        never_held_out=simple,
    )


def draw_numbers(signs: str, rng: random.Random, easy: bool) -> list[int]:
    """Numbers for a story of these signs, with no negative number on the way."""
    if easy:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        return [max(a, b), min(a, b)] if signs == "-" else [a, b]
    if signs[0] == "x":
        numbers = [rng.randint(2, 9), rng.randint(2, 9) if rng.random() < 0.3 else rng.randint(10, 99)]
        rng.shuffle(numbers)
        total = numbers[0] * numbers[1]
    else:
        numbers = [_number(rng)]
        total = numbers[0]
    for sign in signs[1:] if signs[0] == "x" else signs:
        number = _number(rng) if sign == "+" else rng.randint(1, max(1, total - 1))
        numbers.append(number)
        total += number if sign == "+" else -number
    return numbers


def _number(rng: random.Random) -> int:
    return rng.randint(2, 99) if rng.random() < 0.6 else rng.randint(100, 999)
