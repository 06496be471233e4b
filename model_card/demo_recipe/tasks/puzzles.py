"""String and list puzzles for the demo checkpoint: letters of a word, and short lists of numbers or words.

A thought takes the word or list apart and walks along it, so that each step looks at one element only:

    How many times does t occur in "better"?    b0 e0 t1 t2 e2 r2
    Which is the largest of 4, 17, 9?           4 17 17

Knows nothing of tokens or models.
"""

import random
from collections.abc import Callable, Sequence

from model_card.demo_recipe.tasks.item import Item, question_and_answer, vary
from model_card.demo_recipe.tasks.words import OBJECTS, WORDS

ORDINALS = ("first", "second", "third", "fourth", "fifth")
# (kind, question, answer, thought, what the problem is)
Puzzle = tuple[str, str, str, str, object]


def draw(rng: random.Random, easy: bool = False, kinds: Sequence[Callable[[random.Random], Puzzle]] = ()) -> Item:
    """One of `kinds`; by default one of `PUZZLES`."""
    kind, question, answer, thought, what = rng.choice(kinds or PUZZLES)(rng)
    return Item(kind, what, question_and_answer(vary(question, rng), answer, thought), answer)


def draw_hard(rng: random.Random, easy: bool = False) -> Item:
    """One of the two kinds with the longest thoughts: a word backwards, or numbers sorted."""
    return draw(rng, kinds=(_reverse, _sort))


def a_word(rng: random.Random) -> str:
    """A word of the list, or, so that every pair of letters is met, a made-up one."""
    if rng.random() < 0.6:
        return rng.choice(WORDS)
    length = rng.randint(3, 8)
    return "".join(rng.choice("aaabcdeeeefghiijklmnnooopqrrssttuuvwxyz") for _ in range(length))


def numbered(word: str) -> str:
    """`cat` -> `c1 a2 t3`."""
    return " ".join(f"{letter}{i}" for i, letter in enumerate(word, 1))


def counted(word: str, letter: str) -> str:
    """`better`, `t` -> `b0 e0 t1 t2 e2 r2`."""
    return " ".join(f"{each}{word[: i + 1].count(letter)}" for i, each in enumerate(word))


def running(numbers: list[int], best: Callable[[int, int], int]) -> str:
    """The best so far, at each number."""
    so_far = numbers[:1]
    for number in numbers[1:]:
        so_far.append(best(so_far[-1], number))
    return " ".join(map(str, so_far))


def _reverse(rng: random.Random) -> Puzzle:
    word = a_word(rng)
    ask = (
        'Spell "{w}" backwards.',
        'Reverse "{w}".',
        'Write the letters of "{w}" in reverse.',
        'What is "{w}" spelled backwards?',
    )
    return "reverse a word", rng.choice(ask).format(w=word), " ".join(word[::-1]), numbered(word), ("reverse", word)


def _count_letter(rng: random.Random) -> Puzzle:
    word = a_word(rng)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnoprstu")
    ask = (
        'How many times does {x} occur in "{w}"?', 'How many {x} are in "{w}"?', 'Count the letter {x} in "{w}".',
        'How often does the letter {x} appear in "{w}"?',
    )  # fmt: skip
    answer = str(word.count(letter))
    return (
        "count a letter",
        rng.choice(ask).format(x=letter, w=word),
        answer,
        counted(word, letter),
        ("count", word, letter),
    )


def _length(rng: random.Random) -> Puzzle:
    word = a_word(rng)
    ask = ('How many letters are in "{w}"?', 'How long is the word "{w}"?', 'Count the letters of "{w}".')
    return "length of a word", rng.choice(ask).format(w=word), str(len(word)), numbered(word), ("length", word)


def _letter(rng: random.Random) -> Puzzle:
    word = a_word(rng)
    place = rng.randrange(min(len(word), 5))
    which, letter = ORDINALS[place], word[place]
    if rng.random() < 0.3:
        which, letter = "last", word[-1]
    ask = ('What is the {i} letter of "{w}"?', 'Which letter is {i} in "{w}"?', 'Tell me the {i} letter in "{w}".')
    return "letter of a word", rng.choice(ask).format(i=which, w=word), letter, numbered(word), ("letter", which, word)


def _best(rng: random.Random) -> Puzzle:
    numbers = rng.sample(range(1, 100), rng.randint(3, 5))
    largest = rng.random() < 0.5
    names = ("largest", "biggest", "maximum", "highest") if largest else ("smallest", "minimum", "lowest")
    ask = ("Which is the {x} of {n}?", "What is the {x} of {n}?", "Find the {x} number: {n}.", "{n}: which is the {x}?")
    question = rng.choice(ask).format(x=rng.choice(names), n=", ".join(map(str, numbers)))
    best = max if largest else min
    return "largest or smallest", question, str(best(numbers)), running(numbers, best), (best.__name__, numbers)


def _sort(rng: random.Random) -> Puzzle:
    numbers = rng.sample(range(1, 100) if rng.random() < 0.6 else range(1, 10), rng.randint(3, 5))
    down = rng.random() < 0.25
    up = ("Sort {n}.", "Sort these numbers: {n}.", "Put {n} in order.", "Order {n} from smallest to largest.")
    ask = ("Sort {n} from largest to smallest.", "Order {n} from largest to smallest.") if down else up
    question = rng.choice(ask).format(n=", ".join(map(str, numbers)))
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return "sort numbers", question, answer, sorting(numbers, down), ("sort", down, numbers)


def sorting(numbers: list[int], down: bool = False) -> str:
    """One line for each pick: the number taken, and what is left, in the given order."""
    left, lines = list(numbers), []
    while left:
        pick = max(left) if down else min(left)
        left.remove(pick)
        lines.append(f"{pick}: {' '.join(map(str, left))}" if left else f"{pick}")
    return "\n".join(lines)


def _reverse_list(rng: random.Random) -> Puzzle:
    words = rng.sample(OBJECTS, rng.randint(3, 5))
    ask = ("Reverse the list: {n}.", "Say these backwards: {n}.", "Write {n} in reverse order.")
    question = rng.choice(ask).format(n=", ".join(words))
    thought = " ".join(f"{word} {i}" for i, word in enumerate(words, 1))
    return "reverse a list", question, ", ".join(reversed(words)), thought, ("backwards", words)


def _pick(rng: random.Random) -> Puzzle:
    words = rng.sample(OBJECTS, rng.randint(3, 5))
    place = rng.randrange(len(words))
    which = "last" if place == len(words) - 1 and rng.random() < 0.5 else ORDINALS[place]
    ask = ("Which is the {i} of {n}?", "What is the {i} word: {n}?", "Take the {i} of {n}.")
    question = rng.choice(ask).format(i=which, n=", ".join(words))
    thought = " ".join(f"{word} {i}" for i, word in enumerate(words, 1))
    return "pick from a list", question, words[place], thought, ("pick", which, words)


def _how_many(rng: random.Random) -> Puzzle:
    words = [rng.choice(OBJECTS) for _ in range(rng.randint(2, 6))]
    ask = ("How many words are there: {n}?", "Count the words: {n}.", "How long is the list {n}?")
    thought = " ".join(f"{word} {i}" for i, word in enumerate(words, 1))
    return "length of a list", rng.choice(ask).format(n=", ".join(words)), str(len(words)), thought, ("many", words)


PUZZLES = (_reverse, _count_letter, _length, _letter, _best, _sort, _reverse_list, _pick, _how_many)
