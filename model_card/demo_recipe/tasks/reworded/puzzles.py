"""Puzzles in wider wording: letters of words and short lists, asked in many ways, lists written in many ways.

Thoughts are `small_steps`' where it has one. Knows nothing of tokens or models.
"""

import random
from collections.abc import Callable, Sequence

from model_card.demo_recipe.tasks import small_steps, words
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.puzzles import ORDINALS, Puzzle, a_word, counted, numbered, sorting
from model_card.demo_recipe.tasks.reworded import nouns, relations
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, tidy, typed
from model_card.demo_recipe.tasks.reworded.puzzle_rules import RULES

GRAMMAR = Grammar(RULES | relations.RULES)
SHORT = ("1st", "2nd", "3rd", "4th", "5th")
Say = Callable[..., str]


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """One of `PUZZLES`."""

    def say(start: str, **slots: object) -> str:
        return GRAMMAR.say(f"{{{start}}}", rng, slots, unseen=unseen)

    kind, question, answer, thought, what = rng.choice(PUZZLES)(rng, say)
    if question[-1].isalnum() and rng.random() < 0.6:
        question += "."
    return Item(kind, what, question_and_answer(typed(question, rng), answer, thought), answer)


def _reverse(rng: random.Random, say: Say) -> Puzzle:
    word = a_word(rng)
    thought = f"{small_steps.letters(word)}\n{small_steps.letters(word, 1, -1)}"
    return "reverse a word", say("reverse", word=word), " ".join(word[::-1]), thought, ("reverse", word)


def _spell(rng: random.Random, say: Say) -> Puzzle:
    word = a_word(rng)
    return "spell a word", say("spell", word=word), " ".join(word), small_steps.letters(word), ("spell", word)


def _count(rng: random.Random, say: Say) -> Puzzle:
    word = a_word(rng)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnoprstu")
    thought = f"{letter}: {counted(word, letter)}"
    question = say("count", word=word, letter=letter)
    return "count a letter", question, str(word.count(letter)), thought, ("count", word, letter)


def _length(rng: random.Random, say: Say) -> Puzzle:
    word = a_word(rng)
    return "length of a word", say("length", word=word), str(len(word)), numbered(word), ("length", word)


def _letter(rng: random.Random, say: Say) -> Puzzle:
    word = a_word(rng)
    place = rng.randrange(min(len(word), 5))
    which, letter, chance = ORDINALS[place], word[place], rng.random()
    if chance < 0.25:
        which, place, letter = "last", len(word) - 1, word[-1]
        start = rng.choice(("letter_at", "letter_last"))
    elif chance < 0.4:
        which, place, letter = "first", 0, word[0]
        start = "letter_first"
    else:
        start = rng.choice(("letter_at", "letter_at", "letter_number"))
    written = which if which == "last" or rng.random() < 0.6 else SHORT[place]
    thought = f"{small_steps.letters(word)}\n{place + 1}{letter}"
    question = say(start, word=word, i=written, p=place + 1)
    return "letter of a word", question, letter, thought, ("letter", which, word)


def _best(rng: random.Random, say: Say) -> Puzzle:
    numbers, largest = _numbers(rng, rng.choice((2, 3, 3, 4, 4, 5, 5, 6))), rng.random() < 0.5
    word, said = say("largest" if largest else "smallest").lower(), list(map(str, numbers))
    either = f"{', '.join(said[:-1])} or {said[-1]}"
    return _best_of(numbers, largest, say("best", best_word=word, n=nouns.listed(said, rng), n_or=either))


def _best_fact(rng: random.Random, say: Say) -> Puzzle:
    """The largest or smallest of the numbers that facts tell."""
    largest, name = rng.random() < 0.5, rng.choice(relations.COMPARED)
    relation, numbers = relations.RELATIONS[name], rng.sample(range(1, 100), rng.choice((2, 2, 3, 3, 4)))
    unit = rng.choice(relation.units)
    people = relations.owners(relation, len(numbers), rng)
    told = relations.tell(name, list(zip(people, map(str, numbers), strict=True)), unit, rng)
    word, noun = say("largest" if largest else "smallest").lower(), relation.noun.replace("{u}", unit)
    ask, text = say("best_fact", best_word=word, noun=noun), relations.joined(told, rng)
    return _best_of(numbers, largest, f"{ask}\n{text}" if rng.random() < 0.2 else f"{tidy(text)}. {ask}")


def _best_of(numbers: list[int], largest: bool, question: str) -> Puzzle:
    best = max if largest else min
    thought = small_steps.best(numbers, largest)
    return "largest or smallest", question, str(best(numbers)), thought, (best.__name__, numbers)


def _numbers(rng: random.Random, count: int) -> list[int]:
    """Different numbers, most of them below 100."""
    return rng.sample(range(1, rng.choice((10, 30, 100, 100, 100, 100, 1000))), count)


def _sort(rng: random.Random, say: Say) -> Puzzle:
    numbers = _numbers(rng, rng.choice((3, 3, 4, 4, 5, 5, 6)))
    down, n = rng.random() < 0.45, nouns.listed(list(map(str, numbers)), rng)
    if not down and rng.random() < 0.35:
        question = say("sort_up", n=n)
    else:
        question = say("sort", n=n, way=say("down" if down else "up").lower())
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    what = ("sort", down, numbers)
    return "sort numbers", question, answer, small_steps.puzzle(what) or sorting(numbers, down), what


def _reverse_list(rng: random.Random, say: Say) -> Puzzle:
    listed = _words(rng)
    return (
        "reverse a list", say("reverse_list", n=nouns.listed(listed, rng)), ", ".join(reversed(listed)), _places(listed),
        ("backwards", listed),
    )  # fmt: skip


def _pick(rng: random.Random, say: Say) -> Puzzle:
    listed = _words(rng)
    place = rng.randrange(len(listed))
    which = "last" if place == len(listed) - 1 and rng.random() < 0.5 else ORDINALS[place]
    written = which if which == "last" or rng.random() < 0.7 else SHORT[place]
    question = say("pick", i=written, n=nouns.listed(listed, rng))
    return "pick from a list", question, listed[place], _places(listed), ("pick", which, listed)


def _how_many(rng: random.Random, say: Say) -> Puzzle:
    listed = _words(rng, 2, 6)
    return (
        "length of a list", say("many", n=nouns.listed(listed, rng)), str(len(listed)), _places(listed), ("many", listed)
    )  # fmt: skip


def _words(rng: random.Random, least: int = 3, most: int = 5) -> list[str]:
    """Words of one sort: things, any words, or names."""
    source: Sequence[str] = rng.choice((words.OBJECTS, words.OBJECTS, words.WORDS, nouns.THINGS, words.CITIES))
    chosen = rng.sample(source, rng.randint(least, most))
    if rng.random() < 0.1:
        chosen = [nouns.invented(rng) for _ in chosen]
    return [word.lower() for word in chosen]


def _places(listed: Sequence[str]) -> str:
    return " ".join(f"{word} {i}" for i, word in enumerate(listed, 1))


PUZZLES = (
    _reverse,
    _spell,
    _count,
    _count,
    _length,
    _letter,
    _best,
    _best,
    _best_fact,
    _sort,
    _sort,
    _reverse_list,
    _pick,
    _how_many,
)
