"""Small Python programs for the demo checkpoint, and what they print.

The thought runs the program line by line, with each variable's value put in:

    a = 3              a=3
    b = a + 4          b=3+4=7
    print(a * b)       3x7=21

Numbers stay small enough for each line to be one step. Every program is run by Python when it is made, so the answer is
what it prints. Knows nothing of tokens or models.
"""

import contextlib
import io
import random
from collections.abc import Callable, Sequence

from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.puzzles import a_word, counted, numbered, running, sorting

VARIABLES = ("a", "b", "c", "d", "x", "y", "z", "n", "k", "m")
ASK_BEFORE = (
    "What does this print?",
    "What does this program print?",
    "What is the output?",
    "What will this code print?",
    "Read this code. What does it print?",
)
ASK_AFTER = ("What does this print?", "What is printed?", "What is the output?")
# (kind, lines of the program, lines of the thought)
Program = tuple[str, list[str], list[str]]


def draw(rng: random.Random, easy: bool = False, kinds: Sequence[Callable[[random.Random], Program]] = ()) -> Item:
    """One of `kinds`; by default one of `PROGRAMS`."""
    kind, lines, thought = rng.choice(kinds or PROGRAMS)(rng)
    code = "\n".join(lines)
    answer = run(code)
    question = f"{rng.choice(ASK_BEFORE)}\n{code}" if rng.random() < 0.7 else f"{code}\n{rng.choice(ASK_AFTER)}"
    return Item(kind, code, question_and_answer(question, answer, "\n".join(thought)), answer)


def draw_hard(rng: random.Random, easy: bool = False) -> Item:
    """One of the kinds in which a variable's newest value has to be found: straight lines, or two branches."""
    return draw(rng, kinds=(_straight, _straight, _branch))


def run(code: str) -> str:
    """What the program prints, without the last line end. Only for the programs of this file."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue().rstrip("\n")


class _State:
    """Variables of a program that is being written, and the lines so far."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng, self.names = rng, rng.sample(VARIABLES, count)
        self.values: dict[str, int] = {}
        self.lines, self.thought = list[str](), list[str]()

    def assign(self, name: str, value: int) -> None:
        self.values[name] = value
        self.lines.append(f"{name} = {value}")
        self.thought.append(f"{name}={value}")

    def operand(self) -> tuple[str, int]:
        """A variable or a small number: as written, and its value."""
        if self.rng.random() < 0.6:
            name = self.rng.choice(list(self.values))
            return name, self.values[name]
        number = self.rng.randint(1, 9)
        return str(number), number

    def expression(self) -> tuple[str, str, int]:
        """As written, with values put in and worked out, and its value, from 0 to 99."""
        while True:
            name = self.rng.choice(list(self.values))
            (right, b), sign = self.operand(), self.rng.choice("++-*")
            a = self.values[name]
            value = a + b if sign == "+" else a - b if sign == "-" else a * b
            simple = max(a, b) < 10 if sign == "*" else min(a, b) < 10
            if 0 <= value < 100 and simple:
                shown = "x" if sign == "*" else sign
                return f"{name} {sign} {right}", f"{a}{shown}{b}={value}", value


def _straight(rng: random.Random) -> Program:
    state = _State(rng, rng.randint(2, 3))
    state.assign(state.names[0], rng.randint(1, 9))
    for name in state.names[1:]:
        if rng.random() < 0.4:
            state.assign(name, rng.randint(1, 9))
        else:
            _compute(state, name)
    if rng.random() < 0.3:
        _compute(state, rng.choice(state.names))
    if rng.random() < 0.3:
        name = rng.choice(state.names)
        state.lines.append(f"print({name})")
        state.thought.append(str(state.values[name]))
    else:
        written, worked, _ = state.expression()
        state.lines.append(f"print({written})")
        state.thought.append(worked)
    return "variables", state.lines, state.thought


def _compute(state: _State, name: str) -> None:
    written, worked, value = state.expression()
    state.lines.append(f"{name} = {written}")
    state.thought.append(f"{name}={worked}")
    state.values[name] = value


def _branch(rng: random.Random) -> Program:
    state = _State(rng, 2)
    first, second = state.names
    state.assign(first, rng.randint(1, 20))
    state.assign(second, rng.randint(1, 20))
    a, b, sign = state.values[first], state.values[second], rng.choice("<>")
    true = a < b if sign == "<" else a > b
    state.lines += [f"if {first} {sign} {second}:"]
    state.thought.append(f"{a}{sign}{b}: {'yes' if true else 'no'}")
    texts = []
    for branch in (True, False):
        written, worked, _ = state.expression()
        texts.append(written)
        if branch == true:
            chosen = worked
    state.lines += [f"    print({texts[0]})", "else:", f"    print({texts[1]})"]
    state.thought.append(chosen)
    return "if and else", state.lines, state.thought


def _loop(rng: random.Random) -> Program:
    name, index = rng.choice(("total", "s", "x", "n")), rng.choice("ijk")
    value, times = rng.randint(0, 9), rng.randint(2, 4)
    step = rng.choice((str(rng.randint(1, 9)), index))
    lines = [f"{name} = {value}", f"for {index} in range({times}):", f"    {name} += {step}", f"print({name})"]
    thought = [f"{name}={value}"]
    for i in range(times):
        added = i if step == index else int(step)
        thought.append(f"{index}={i} {name}={value}+{added}={value + added}")
        value += added
    return "loop", lines, [*thought, str(value)]


def _numbers(rng: random.Random) -> Program:
    name = rng.choice(("x", "a", "items", "numbers"))
    numbers = rng.sample(range(1, 20), rng.randint(3, 4))
    place = rng.randrange(len(numbers))
    call, thought = rng.choice(
        (
            (f"{name}[{place}]", " ".join(f"{i}:{number}" for i, number in enumerate(numbers))),
            (f"{name}[-1]", str(numbers[-1])),
            (f"len({name})", " ".join(f"{number}:{i}" for i, number in enumerate(numbers, 1))),
            (f"max({name})", running(numbers, max)),
            (f"min({name})", running(numbers, min)),
            (f"sorted({name})", sorting(numbers)),
            (f"sum({name})", _summing(numbers)),
        )
    )
    return "list", [f"{name} = {numbers}", f"print({call})"], [thought]


def _summing(numbers: list[int]) -> str:
    lines, total = [], numbers[0]
    for number in numbers[1:]:
        lines.append(f"{total}+{number}={total + number}")
        total += number
    return "\n".join(lines)


def _string(rng: random.Random) -> Program:
    name, word = rng.choice(("s", "word", "text")), a_word(rng)
    place, letter = rng.randrange(min(3, len(word))), rng.choice(word)
    from_zero = " ".join(f"{each}{i}" for i, each in enumerate(word))
    call, thought = rng.choice(
        (
            (f"len({name})", numbered(word)),
            (f"{name}[{place}]", from_zero),
            (f"{name}[-1]", numbered(word)),
            (f'{name}.count("{letter}")', counted(word, letter)),
        )
    )
    return "string", [f'{name} = "{word}"', f"print({call})"], [thought]


PROGRAMS = (_straight, _straight, _branch, _loop, _numbers, _string)
