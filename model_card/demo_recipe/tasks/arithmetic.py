"""Integer arithmetic for the demo checkpoint: problems, the ways people ask them, and the thought that works them out.

Knows nothing of tokens, chats or models. A thought is written the way one computes on paper, lowest digit first:

    348+76            the problem, in one spelling
    8+6=14            one line per column, the carry added to the next
    4+7+1=12
    3+0+1=4
    424               the columns put together

Subtraction first compares from the top digit down and turns the problem round when the result is negative; a product of
two numbers of several digits is a sum of products by one digit.
"""

import random
from dataclasses import dataclass

from model_card.demo_recipe.tasks.item import Item, question_and_answer

SIGNS = {
    "+": ("+", "+", "+", " plus "),
    "-": ("-", "-", "-", "\u2212", " minus "),
    "x": ("x", "*", "\u00d7", " times ", " multiplied by "),
}
ASK_EXPRESSION = (
    "{e}", "{e}", "{e}?", "{e}=", "{e} =", "{e} = ?", "What is {e}?", "What is {e}?", "What is {e}?", "What's {e}?",
    "How much is {e}?", "Compute {e}.", "Calculate {e}.", "Evaluate {e}.", "Solve {e}.", "Work out {e}.", "Find {e}.",
    "Please compute {e}.", "Please calculate {e}.", "Please work out {e}.", "Can you compute {e}?",
    "Can you tell me what {e} is?",
    "What does {e} equal?", "What does {e} make?", "Tell me {e}.", "Give me the result of {e}.",
    "What is the result of {e}?",
    "I need to know {e}.", "{e}, please.", "What do you get for {e}?",
)  # fmt: skip
ASK_WORDS = {
    "+": (
        "Add {a} and {b}.", "Add {b} to {a}.", "What is the sum of {a} and {b}?", "Sum {a} and {b}.",
        "How much is {a} and {b} together?", "Please add {a} and {b}.", "Find the sum of {a} and {b}.",
    ),
    "-": (
        "Subtract {b} from {a}.", "Take {b} away from {a}.", "What is left if I take {b} from {a}?",
        "Please subtract {b} from {a}.", "How much is {a} less {b}?", "What do you get when you subtract {b} from {a}?",
    ),
    "x": (
        "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?",
        "Please multiply {a} by {b}.", "Find the product of {a} and {b}.",
    ),
}  # fmt: skip
BEFORE = ("Hi! ", "Hello, ", "Quick question: ", "A question: ", "Now ", "OK, ", "And ")
AFTER = (
    " Answer with a number only.",
    " Think step by step.",
    " Show your work.",
    " Be brief.",
    " Thanks!",
    " Just the number, please.",
)


@dataclass(frozen=True)
class Problem:
    """`left` `sign` `right`, both from 0 to 9999; `sign` is "+", "-" or "x"."""

    left: int
    sign: str
    right: int

    @property
    def answer(self) -> int:
        if self.sign == "+":
            return self.left + self.right
        return self.left - self.right if self.sign == "-" else self.left * self.right

    @property
    def kind(self) -> str:
        if self.sign != "x":
            return "sum" if self.sign == "+" else "difference"
        return "product by a digit" if min(self.left, self.right) < 10 else "product of two-digit numbers"

    def __str__(self) -> str:
        return f"{self.left}{self.sign}{self.right}"


def draw(rng: random.Random, easy: bool = False) -> Item:
    """A problem put into words; its thought works it out."""
    return _item(draw_problem(rng, easy), rng)


def draw_difference(rng: random.Random, easy: bool = False) -> Item:
    """As `draw`, of differences alone."""
    while (problem := draw_problem(rng, easy)).sign != "-":
        pass
    return _item(problem, rng)


def draw_simple(rng: random.Random, easy: bool = False) -> Item:
    """As `draw`, of two numbers below 10."""
    return _item(Problem(rng.randrange(10), rng.choice("+-x"), rng.randrange(10)), rng)


def _item(problem: Problem, rng: random.Random) -> Item:
    answer = str(problem.answer)
    turns = question_and_answer(ask(problem, rng), answer, think(problem))
    return Item(problem.kind, key(problem), turns, answer, never_held_out=is_simple(problem))


def key(problem: Problem) -> object:
    """The same for problems that differ only in the order of their numbers."""
    return (problem.sign, *sorted((problem.left, problem.right)))


def is_simple(problem: Problem) -> bool:
    """Two numbers below 10: a table to be known, never held out."""
    return max(problem.left, problem.right) < 10


def draw_problem(rng: random.Random, easy: bool = False) -> Problem:
    """A problem of the kinds the checkpoint learns: sums and differences to 4 digits, products to 4 x 1 and 2 x 2
    digits.

    `easy` ones have at most two digits, products one.
    """
    sign = rng.choices("+-x", weights=(30, 38, 32))[0]
    if sign == "x":
        digits = rng.choice(((1, 1), (2, 1), (2, 1), (3, 1), (4, 1), (2, 2), (2, 2), (2, 2)) if not easy else ((1, 1),))
        left, right = (_draw_number(rng, n) for n in digits)
        return Problem(left, sign, right) if rng.random() < 0.7 else Problem(right, sign, left)
    lengths = (1, 2) if easy else (1, 2, 3, 3, 4, 4)
    left, right = _draw_number(rng, rng.choice(lengths)), _draw_number(rng, rng.choice(lengths))
    if sign == "-" and not easy and rng.random() < 0.15:  # neighbours: the comparison has to read several digits
        right = min(9999, max(0, left + rng.choice((-1, 1)) * _draw_number(rng, rng.choice((1, 2, 3)))))
    return Problem(left, sign, right)


def ask(problem: Problem, rng: random.Random) -> str:
    """One of the many ways in which people put the problem."""
    if rng.random() < 0.2:
        text = rng.choice(ASK_WORDS[problem.sign]).format(a=problem.left, b=problem.right)
    else:
        sign = rng.choice(SIGNS[problem.sign])
        if not sign.startswith(" ") and rng.random() < 0.6:
            sign = f" {sign} "
        text = rng.choice(ASK_EXPRESSION).format(e=f"{problem.left}{sign}{problem.right}")
    if rng.random() < 0.25:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip(".?")
    elif text[-1] in ".?" and rng.random() < 0.06:
        text += rng.choice(AFTER)
    return rng.choice(BEFORE) + text if rng.random() < 0.04 else text


def think(problem: Problem) -> str:
    """The worked computation; its last line holds the digits of the result, perhaps with leading zeros."""
    steps = {"+": _add, "-": _subtract, "x": _multiply}[problem.sign]
    return "\n".join(steps(problem.left, problem.right))


def _draw_number(rng: random.Random, digits: int) -> int:
    number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
    return round(number, 1 - digits) % 10**digits if digits > 1 and rng.random() < 0.05 else number


def _digits(number: int, width: int) -> list[int]:
    """Lowest digit first, padded with zeros."""
    return [int(digit) for digit in reversed(str(number).zfill(width))]


def _add(left: int, right: int) -> list[str]:
    width = max(len(str(left)), len(str(right)))
    lines, total, carry = [f"{left}+{right}"], "", 0
    for a, b in zip(_digits(left, width), _digits(right, width), strict=True):
        column = a + b + carry
        lines.append(f"{a}+{b}+1={column}" if carry else f"{a}+{b}={column}")
        carry, total = column // 10, f"{column % 10}{total}"
    return [*lines, f"1{total}" if carry else total]


def _subtract(left: int, right: int) -> list[str]:
    width = max(len(str(left)), len(str(right)))
    lines, order = [f"{left}-{right}"], ""
    for a, b in zip(reversed(_digits(left, width)), reversed(_digits(right, width)), strict=True):
        order = "=" if a == b else "<" if a < b else ">"
        lines.append(f"{a}{order}{b}")
        if order != "=":
            break
    if order == "=":
        return [*lines, "0"]
    if order == "<":
        left, right = right, left
        lines.append(f"-({left}-{right})")
    total, borrow = "", 0
    for a, b in zip(_digits(left, width), _digits(right, width), strict=True):
        top = a + 10 if a < b + borrow else a
        lines.append(f"{top}-{b}-1={top - b - 1}" if borrow else f"{top}-{b}={top - b}")
        total, borrow = f"{top - b - borrow}{total}", int(top > a)
    return [*lines, total]


def _multiply(left: int, right: int) -> list[str]:
    if len(str(left)) < len(str(right)):
        left, right = right, left
    lines, partial = [f"{left}x{right}"], []
    for place, digit in enumerate(_digits(right, 1)):
        columns, product = _multiply_by_digit(left, digit)
        partial.append(f"{product}{'0' * place}")
        lines += [*columns, partial[-1]]
    total = int(partial[0])
    for product in partial[1:]:
        lines += _add(int(product), total)
        total += int(product)
    return lines


def _multiply_by_digit(left: int, digit: int) -> tuple[list[str], str]:
    lines, total, carry = [], "", 0
    for a in _digits(left, 1):
        column = a * digit + carry
        lines.append(f"{a}x{digit}+{carry}={column}" if carry else f"{a}x{digit}={column}")
        carry, total = column // 10, f"{column % 10}{total}"
    return lines, f"{carry}{total}" if carry else total
