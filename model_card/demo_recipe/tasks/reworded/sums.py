"""Arithmetic in wider wording: sums, differences and products put into words, numbers sometimes in words too.

Thoughts are `arithmetic`'s; where the larger of two numbers has to be found first, a line says which it is. Knows nothing
of tokens or models.
"""

import random
import re

from model_card.demo_recipe.tasks import arithmetic
from model_card.demo_recipe.tasks.arithmetic import Problem
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.reworded import nouns
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, tidy, typed
from model_card.demo_recipe.tasks.reworded.stories import plan
from model_card.demo_recipe.tasks.reworded.sum_rules import RULES

GRAMMAR = Grammar(RULES)
SIGNED = re.compile(r"@[abc] ?[-+*x&] ?[@?]|\?=@")  # where numbers stay digits


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """A problem of `arithmetic`'s kinds, or three numbers to be added."""
    problem = arithmetic.draw_problem(rng, easy)
    chance, lines = rng.random(), list[str]()
    numbers = [problem.left, problem.right]
    start = problem.sign
    if start == "x" and chance < 0.15:
        problem = Problem(problem.left % 100, "x", rng.choice((2, 3)))
        start, numbers = f"x{problem.right}", [problem.left]
    elif start == "-" and chance < 0.35:
        numbers.sort(reverse=True)
        problem = Problem(numbers[0], "-", numbers[1])
        start = rng.choice(("gap", "gap_down", "gap_up"))
        shown = numbers[::-1] if start == "gap_up" else numbers
        if start == "gap" and rng.random() < 0.5:
            numbers, shown = numbers[::-1], numbers[::-1]
        lines = [f"{shown[0]},{shown[1]}:{max(shown)}"] if start == "gap" else []
    elif start == "+" and not easy and chance < 0.15:
        numbers.append(rng.randrange(1000))
        return _three(rng, numbers, unseen)
    question = _ask(start, numbers, rng, unseen)
    turns = question_and_answer(question, str(problem.answer), "\n".join([*lines, arithmetic.think(problem)]))
    simple = arithmetic.is_simple(problem)
    return Item(problem.kind, arithmetic.key(problem), turns, str(problem.answer), never_held_out=simple)


def _three(rng: random.Random, numbers: list[int], unseen: bool) -> Item:
    total, lines = numbers[0], [plan("++", numbers)]
    for number in numbers[1:]:
        lines.append(arithmetic.think(Problem(total, "+", number)))
        total += number
    turns = question_and_answer(_ask("three", numbers, rng, unseen), str(total), "\n".join(lines))
    return Item("three numbers", ("++", *numbers), turns, str(total))


def _ask(start: str, numbers: list[int], rng: random.Random, unseen: bool) -> str:
    text = GRAMMAR.say(f"{{{start}}}", rng, {letter: f"@{letter}" for letter in "abc"}, unseen=unseen)
    spelled = 0.0 if SIGNED.search(text) else 0.08
    said = {letter: nouns.number(number, rng, spelled) for letter, number in zip("abc", numbers, strict=False)}
    text = tidy(re.sub("@([abc])", lambda mark: said[mark[1]], text))
    if text[-1].isalnum() and rng.random() < 0.5:
        text += "?" if start in "+-x" and rng.random() < 0.4 else "."
    return typed(text, rng)
