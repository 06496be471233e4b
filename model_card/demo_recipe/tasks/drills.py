"""Drills for the demo checkpoint, for training alone: many small steps of one sort in one row, which every other task
needs somewhere.

To find what belongs to a name, to write a word again in another spelling, to walk a word or number from its end, to
keep the newest value of a variable, to compare two things: in a story or a program such a step occurs once or twice in
a row, here ten times, and the attention that does it is learned sooner. Never evaluated. Knows nothing of tokens or
models.
"""

import random

from model_card.demo_recipe.tasks import small_steps
from model_card.demo_recipe.tasks.arithmetic import Problem, is_simple
from model_card.demo_recipe.tasks.arithmetic import key as arithmetic_key
from model_card.demo_recipe.tasks.item import Item, is_held_out, question_and_answer
from model_card.demo_recipe.tasks.puzzles import a_word
from model_card.demo_recipe.tasks.words import NAMES, OBJECTS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# (kind, question, answer)
Drill = tuple[str, str, str]


def draw(rng: random.Random, easy: bool = False) -> Item:
    """One of the drills; its answer is the recital itself, in either mode without a thought."""
    return _item(rng.choice(DRILLS)(rng))


def draw_small_step(rng: random.Random, easy: bool = False) -> Item:
    """One of the drills of what thoughts in small steps are made of."""
    return _item(rng.choice(SMALL_STEPS)(rng))


def _item(drill: Drill) -> Item:
    kind, question, answer = drill
    return Item(kind, question, question_and_answer(question, answer, None), answer)


def _look_up(rng: random.Random) -> Drill:
    """Pairs in any order, then what belongs to some of the keys."""
    count = rng.randint(4, 10)
    keys = rng.sample(rng.choice((NAMES, OBJECTS, LETTERS, range(10, 100))), count)
    values = [_value(rng) for _ in keys]
    joint = rng.choice((" ", ": ", " is ", " = ", "'s code is "))
    pairs = [f"{key}{joint}{value}" for key, value in zip(keys, values, strict=True)]
    asked = rng.sample(range(count), rng.randint(3, count))
    question = rng.choice((". ", ", ", "\n")).join(pairs) + "\nLook up: " + " ".join(str(keys[i]) for i in asked)
    return "look up", question, "\n".join(pairs[i] for i in asked)


def _value(rng: random.Random) -> str:
    return rng.choice(
        (str(rng.randrange(1000, 10000)), str(rng.randrange(100)), rng.choice(OBJECTS), rng.choice(LETTERS))
    )


def _copy(rng: random.Random) -> Drill:
    """Words once more, as they are or in another spelling."""
    words = [a_word(rng) if rng.random() < 0.8 else str(rng.randrange(10000)) for _ in range(rng.randint(4, 10))]
    how = {
        "Copy": " ".join(words),
        "Quote": " ".join(f'"{word}"' for word in words),
        "Join": ",".join(words),
        "Spell": "\n".join(" ".join(word) for word in words),
        "Number": "\n".join(" ".join(f"{letter}{i}" for i, letter in enumerate(word, 1)) for word in words[:4]),
    }
    name = rng.choice(list(how))
    return "copy", f"{name}: {' '.join(words)}", how[name]


def _backwards(rng: random.Random) -> Drill:
    """Words letter by letter from their end, or a whole list from its end."""
    if rng.random() < 0.3:
        words = rng.sample(OBJECTS, rng.randint(6, 9))  # longer than any puzzle's list, of which some are held out
        return "backwards", f"Backwards: {', '.join(words)}", ", ".join(reversed(words))
    words = [word for word in (a_word(rng) for _ in range(8)) if not is_held_out(("reverse", word))]
    return "backwards", f"Backwards, by letters: {' '.join(words)}", "\n".join(" ".join(word[::-1]) for word in words)


def _columns(rng: random.Random) -> Drill:
    """Pairs of numbers in columns, from the lowest digit on or from the highest."""
    pairs = [[rng.randrange(10 ** rng.randint(1, 4)) for _ in range(2)] for _ in range(rng.randint(2, 4))]
    step, name = rng.choice(((-1, "last"), (1, "first")))
    lines = []
    for a, b in pairs:
        width = max(len(str(a)), len(str(b)))
        digits = zip(str(a).zfill(width)[::step], str(b).zfill(width)[::step], strict=True)
        lines.append(" ".join(f"{x}-{y}" for x, y in digits))
    sign = rng.choice("+-x")
    return "columns", f"Columns, {name} first: {', '.join(f'{a}{sign}{b}' for a, b in pairs)}", "\n".join(lines)


def _newest(rng: random.Random) -> Drill:
    """Variables that are set and set again, from numbers or from one another; then the value of each."""
    names, values, lines = rng.sample(LETTERS, rng.randint(2, 5)), dict[str, int](), list[str]()
    for name in [*names, *(rng.choice(names) for _ in range(rng.randint(1, 5)))]:
        if values and rng.random() < 0.35:
            source = rng.choice(list(values))
            values[name], text = values[source], source
        else:
            values[name] = rng.randrange(100)
            text = str(values[name])
        lines.append(f"{name} = {text}")
    asked = rng.sample(names, len(names))
    answer = "\n".join(f"{name}={values[name]}" for name in asked)
    return "newest value", "\n".join(lines) + f"\nValues: {' '.join(asked)}", answer


def _compare(rng: random.Random) -> Drill:
    """Each two of a list: the smaller, the larger, or whether they are the same."""
    how = rng.choice(("Smaller", "Larger", "Same"))
    lines, answers = [], []
    for _ in range(rng.randint(4, 9)):
        if how == "Same":
            a, b = rng.sample(OBJECTS, 2)
            b = a if rng.random() < 0.5 else b
            answers.append(f"{a} {b} {'yes' if a == b else 'no'}")
        else:
            x, y = rng.sample(range(100), 2)
            a, b = str(x), str(y)
            answers.append(f"{a} {b} {min(x, y) if how == 'Smaller' else max(x, y)}")
        lines.append(f"{a} {b}")
    return "compare", f"{how}: {', '.join(lines)}", "\n".join(answers)


DRILLS = (_look_up, _look_up, _copy, _backwards, _columns, _newest, _compare)


def _spell(rng: random.Random) -> Drill:
    """Words letter by letter, each letter after its place."""
    words = [word for word in (a_word(rng) for _ in range(8)) if not is_held_out(("reverse", word))]
    name, step = rng.choice((("Spell by places", 1), ("Spell by places from the end", -1)))
    return "spell", f"{name}: {' '.join(words)}", "\n".join(small_steps.letters(word, step=step) for word in words)


def _facts(rng: random.Random) -> Drill:
    """Single steps of arithmetic, as columns need them."""
    lines: list[str] = []
    while len(lines) < 12:
        a, b, c = rng.randrange(10), rng.randrange(10), rng.randrange(1, 9)
        left, sign, right, carry = rng.choice(
            (
                (a, "+", b, ""), (a, "+", b, "+1"), (a, "x", b, ""), (a, "x", b, f"+{c}"), (a, "-", b, ""),
                (a + b, "-", b, ""),
                (a + b + 1, "-", b, "-1"), (10 * c + a, "+", b, ""),
            )
        )  # fmt: skip
        problem = Problem(left, sign, right)
        if is_simple(problem) or not is_held_out(arithmetic_key(problem)):
            lines.append(f"{problem}{carry}={problem.answer + int(carry or 0)}")
    return "facts", f"Facts: {', '.join(line.split('=')[0] for line in lines)}", "\n".join(lines)


def _put_in(rng: random.Random) -> Drill:
    """Values of variables put into expressions and conditions."""
    names = rng.sample(LETTERS, rng.randint(2, 4))
    values = {name: rng.randrange(20) for name in names}
    asked, answers = [], []
    for _ in range(6):
        a, b, sign = rng.choice(names), rng.choice(names), rng.choice("+-*<>")
        asked.append(f"{a} {sign} {b}")
        worked = f"{a}{sign}{b}: {values[a]}{sign}{values[b]}"
        if sign in "<>":
            worked += f": {'yes' if (values[a] < values[b]) == (sign == '<') and values[a] != values[b] else 'no'}"
        answers.append(worked)
    lines = "\n".join(f"{name} = {value}" for name, value in values.items())
    return "put in", f"{lines}\nPut in: {', '.join(asked)}", "\n".join(answers)


def _best(rng: random.Random) -> Drill:
    """Lists, each walked along for its largest or smallest."""
    name, largest = rng.choice((("Largest", True), ("Smallest", False)))
    lists: list[list[int]] = []
    while len(lists) < 3:
        numbers = rng.sample(range(1, rng.choice((10, 20, 100, 100))), rng.randint(3, 6))
        if not is_held_out(("max" if largest else "min", numbers)):
            lists.append(numbers)
    question = f"{name} of each: {'; '.join(', '.join(map(str, numbers)) for numbers in lists)}"
    return "best", question, "\n".join(small_steps.best(numbers, largest) for numbers in lists)


SMALL_STEPS = (_spell, _spell, _facts, _put_in, _best)
