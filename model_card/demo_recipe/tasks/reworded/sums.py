"""Arithmetic in wider wording: sums, differences and products put into words, numbers sometimes in words too.

Thoughts are `arithmetic`'s; where the larger of two numbers has to be found first, a line says which it is. Knows nothing
of tokens or models.
"""

import random

from model_card.demo_recipe.tasks import arithmetic
from model_card.demo_recipe.tasks.arithmetic import Problem
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.reworded import nouns
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, typed
from model_card.demo_recipe.tasks.reworded.stories import plan

GRAMMAR = Grammar({
    "what": ("what is", "what's", "how much is", "tell me", "compute", "calculate", "find", "give me", "work out"),
    "make": ("make", "make", "equal", "add up to", "result in", "~yield"),
    "+": (
        "add {a} and {b}", "add {a} to {b}", "add {a} plus {b}", "add up {a} and {b}", "sum up {a} and {b}", "{what} {a} and {b}", "{a} and {b} together", "{a} and {b}?",
        "what do {a} and {b} {make}?", "what is {a} added to {b}?", "{what} the sum of {a} and {b}", "{what} the total of {a} and {b}", "{what} {a} more than {b}",
        "if i add {a} and {b}, what do i get?", "put {a} and {b} together", "{a} more than {b} is how much?", "{a} plus {b} equals what?", "total of {a} and {b}",
        "i have {a}. add {b} to it", "start with {a} and add {b}", "take {a}, then add {b}", "{a} increased by {b}", "increase {a} by {b} and tell me the result",
        "combine {a} and {b}", "{what} {a}+{b}", "{a} with {b} added", "which number is {a} more than {b}?", "from {a} go up {b}", "{a} and then {b} more",
        "count on {b} from {a}", "raise {a} by {b}", "what comes out if you add {a} and {b}?", "~join {a} and {b} into one number", "~{b} on top of {a} makes what?",
        "~{what} {a} when it grows by {b}",
    ),
    "-": (
        "subtract {b} from {a}", "take {b} from {a}", "take {b} away from {a}", "take away {b} from {a}", "{a} take away {b}", "{a} less {b}", "{what} {a} without {b}",
        "remove {b} from {a}", "{what} {a} minus {b}", "{a} minus {b} equals what?", "{a} reduced by {b}", "reduce {a} by {b}", "if i take {b} from {a}, what is left?",
        "what is left of {a} without {b}?", "what remains if you take {b} from {a}?", "{b} less than {a} is how much?", "{what} {b} less than {a}", "which number is {b} less than {a}?",
        "start with {a} and subtract {b}", "take {a}, then subtract {b}", "i have {a}. take {b} away", "from {a} subtract {b}", "from {a} go down {b}", "lower {a} by {b}",
        "deduct {b} from {a}", "{a} decreased by {b}", "count back {b} from {a}", "what do you get if {b} is subtracted from {a}?", "{b} off {a}", "drop {b} from {a}",
        "~cut {a} by {b}", "~strip {b} from {a} and say what is left", "~{a} shrinks by {b}. what is it?",
    ),
    "gap": (
        "what is the difference between {a} and {b}?", "tell me the difference of {a} and {b}", "difference between {a} and {b}?", "how far apart are {a} and {b}?",
        "how far is {a} from {b}?", "by how much do {a} and {b} differ?", "{a} and {b}: what is the difference?", "~what gap lies between {a} and {b}?",
    ),
    "gap_down": ("how much more is {a} than {b}?", "how much larger is {a} than {b}?", "how much greater is {a} than {b}?", "by how much is {a} more than {b}?",
        "how much do i subtract from {a} to get {b}?", "~by how much does {a} beat {b}?"),
    "gap_up": ("how much less is {b} than {a}?", "how much smaller is {b} than {a}?", "what do i add to {b} to get {a}?", "how much is missing from {b} to {a}?",
        "from {b} to {a}, how much is that?", "{b} plus what is {a}?", "how many more than {b} is {a}?", "~how much must {b} grow to be {a}?"),
    "x": (
        "multiply {a} and {b}", "multiply {a} by {b}", "multiply {a} with {b}", "{what} {a} times {b}", "{what} the product of {a} and {b}", "product of {a} and {b}?",
        "{a} times {b} equals what?", "what do you get if you multiply {a} by {b}?", "{a} multiplied by {b}", "{a} multiplied with {b} is how much?", "take {a} times {b}",
        "take {a} and multiply it by {b}", "start with {a} and multiply by {b}", "{a} groups of {b}", "{a} sets of {b}", "{what} {a} groups of {b}", "{a} by {b}",
        "what do {a} times {b} make?", "i have {a}. multiply it by {b}", "how much are {a} times {b}?", "{a} lots of {b}?", "{a} rows of {b} are how many?",
        "what comes out when {a} is multiplied by {b}?", "~the result of multiplying {a} and {b}?", "~scale {a} by {b}", "~{a} repeated {b} times, added up",
    ),
    "x2": ("double the number {a}", "{what} twice {a}", "twice {a}", "what is {a} doubled?", "{a} doubled", "two times {a}", "{what} double {a}", "{a} times two", "~{a} and the same again"),
    "x3": ("triple {a}", "how much is three times {a}?", "three times {a}", "what is {a} tripled?", "{a} times three", "{what} {a} three times", "~threefold {a}"),
    "three": (
        "add {a}, {b} and {c}", "{what} {a} + {b} + {c}", "{what} the sum of {a}, {b} and {c}", "{a}+{b}+{c}", "{a} plus {b} plus {c}", "sum up {a}, {b} and {c}",
        "what do {a}, {b} and {c} {make}?", "total of {a}, {b}, {c}", "~{a} and {b} and {c}, all together",
    ),
})  # fmt: skip


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
    slots = dict(zip("abc", (nouns.number(number, rng, 0.08) for number in numbers), strict=False))
    text = GRAMMAR.say(f"{{{start}}}", rng, slots, unseen=unseen)
    if text[-1] not in ".?" and rng.random() < 0.5:
        text += "?" if start in "+-x" and rng.random() < 0.4 else "."
    return typed(text, rng)
