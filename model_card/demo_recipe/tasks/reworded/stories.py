"""Word problems in wider wording: who has, gets, loses, compares and repeats what, in many forms and orders; what comes
and goes in a bus, a tank or a shop; numbers that `relations` has too, asked about together.

The thought is the arithmetic, as in `word_problems`, numbers in the order in which they are told. Where two are
compared, it first says which is the larger:

    Max is 9 and Eva is 12. How much older is Eva?    9,12:12
                                                      12-9 ...

Two steps are planned first: `50+12-20`.

Knows nothing of tokens or models.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model_card.demo_recipe.tasks import arithmetic
from model_card.demo_recipe.tasks.arithmetic import Problem
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.reworded import nouns, relations, story_places, story_unknowns
from model_card.demo_recipe.tasks.reworded.grammar import BASE, PAST, THIRD, Grammar, typed
from model_card.demo_recipe.tasks.reworded.story_rules import EVENTS, RULES
from model_card.demo_recipe.tasks.word_problems import draw_numbers

GRAMMAR = Grammar(RULES | EVENTS | relations.RULES | story_places.RULES | story_unknowns.RULES)
SIGNS = ("+", "+", "+", "-", "-", "-", "-", "x", "x", "++", "+-", "-+", "--", "x+", "x-")
# First mention, later mention, whose, whom, and whether the verb is in its base form.
PEOPLE = (
    ("I", "I", "my", "me", True), ("we", "we", "our", "us", True), ("my brother", "he", "his", "him", False),
    ("my sister", "she", "her", "her", False), ("the teacher", "she", "her", "her", False),
    ("a farmer", "he", "his", "him", False), ("the shop", "it", "its", "it", False),
    ("grandma", "she", "her", "her", False), ("our class", "it", "its", "it", False), ("a baker", "he", "his", "him", False),
    ("Mr Jones", "he", "his", "him", False), ("Mrs Smith", "she", "her", "her", False), ("mum", "she", "her", "her", False),
    ("the library", "it", "its", "it", False), ("a boy", "he", "his", "him", False), ("a girl", "she", "her", "her", False),
    ("my friend", "she", "her", "her", False), ("dad", "he", "his", "him", False), ("grandpa", "he", "his", "him", False),
    ("my cousin", "he", "his", "him", False), ("my aunt", "she", "her", "her", False), ("the museum", "it", "its", "it", False),
    ("our team", "it", "its", "it", False), ("a gardener", "she", "her", "her", False), ("the school", "it", "its", "it", False),
    ("a pirate", "he", "his", "him", False), ("the club", "it", "its", "it", False), ("a witch", "she", "her", "her", False),
    ("my neighbour", "he", "his", "him", False), ("the cook", "he", "his", "him", False), ("two friends", "they", "their", "them", True),
    ("the twins", "they", "their", "them", True), ("our parents", "they", "their", "them", True), ("the children", "they", "their", "them", True), ("they", "they", "their", "them", True), ("my uncle", "he", "his", "him", False),
)  # fmt: skip
MONEY = ("euros", "dollars", "pounds", "cents", "francs", "crowns")  # the last two only in evaluation
SIZES = (("long", "longer"), ("tall", "taller"), ("wide", "wider"), ("high", "higher"), ("deep", "deeper"))
ITEMS = (
    "book", "pen", "bike", "coat", "game", "cake", "ticket", "phone", "table", "chair", "shirt", "rope", "box",
    "parcel", "ball", "pizza", "drink", "train", "tower", "tree", "stick", "wall", "river", "road", "board", "ribbon",
    "lamp", "candle", "drum", "kite", "knife", "ladder", "mirror", "radio", "sofa", "spoon", "clock", "camera", "carpet",
    "comic", "doll", "guitar", "jacket", "mug", "notebook", "poster", "puzzle", "racket", "scarf", "shelf", "skirt",
    "sandwich", "tent", "towel", "vase", "watch", "pan", "pencil", "present", "salad", "scooter", "soup", "sweater",
    "tea", "coffee", "hat", "bag", "cup", "toy", "magazine", "meal", "plant", "bottle", "stone", "melon", "pipe",
)  # fmt: skip


@dataclass
class Story:
    """One story that is being told. `a`, `b` and `c` stand in `slots` as marks, so that their order can be seen; in a
    comparison `b` is the larger number if `second`.
    """

    rng: random.Random
    unseen: bool
    second: bool
    slots: dict[str, str] = field(default_factory=lambda: {letter: f"@{letter}" for letter in "abc"})
    form: int = THIRD

    def say(self, text: str) -> str:
        return GRAMMAR.say(text, self.rng, self.slots, self.form, self.unseen)

    def fill(self, people: bool) -> None:
        """Draw who and what the story is about: with `people`, perhaps someone without a name."""
        rng, (n, m, k) = self.rng, nouns.names(3, self.rng, self.unseen)
        she = rng.choice((("he", "his", "him"), ("she", "her", "her")))
        who = rng.choice(PEOPLE) if people and rng.random() < 0.4 else (n, rng.choice((n, she[0])), *she[1:], False)
        self.form = PAST if rng.random() < 0.5 else BASE if who[4] else THIRD
        am = "am" if who[1] == "I" else "are" if who[4] else "is"
        self.slots |= dict(zip(("S", "s", "his", "him"), who[:4], strict=True))
        self.slots |= {
            "was": "were" if who[1] in ("we", "they") else "was",
            "do": "do" if who[4] else "does",
            "has": "have" if who[4] else "has",
            "is": am,
        }
        (box, boxes), (color, color2) = rng.choice(nouns.CONTAINERS), rng.sample(nouns.COLORS, 2)
        (long, longer), unit = rng.choice(SIZES), rng.choice(nouns.LENGTHS)
        (place, place2), (item, item2) = rng.sample(nouns.PLACES, 2), rng.sample(ITEMS, 2)
        big, small = (m, n) if self.second else (n, m)
        dear, cheap = (color2, color) if self.second else (color, color2)
        thing = nouns.things(rng, self.unseen)
        self.slots |= {
            "M": m, "K": k, "o": thing, "o1": nouns.invented(rng), "box": box, "boxes": boxes, "color": color,
            "color2": color2, "long": long, "longer": longer, "unit": unit, "place": place, "place2": place2,
            "item": item, "item2": item2, "big": big, "small": small, "dear": dear, "cheap": cheap,
            "n": str(rng.randint(2, 12)), "money": rng.choice(MONEY[4:] if self.unseen else MONEY[:4]),
        }  # fmt: skip


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """A story with one or two steps; no step gives a negative number. `easy` ones have one step and numbers below
    10.
    """
    signs = rng.choice(SIGNS) if not easy else rng.choice("+-x")
    story = Story(rng, unseen, second=rng.random() < 0.5)
    kind, text = rng.choice(TOLD[signs])(story, signs)
    numbers = draw_numbers(signs, rng, easy)
    compared = kind == "compare"
    if compared and story.second:
        numbers.reverse()
    if kind == "more and both":
        numbers = numbers[:2]
    values = dict(zip("abc", numbers, strict=False))
    told = [values[mark] for mark in re.findall("@([abc])", text)]
    text = re.sub("@([abc])", lambda mark: nouns.number(values[mark[1]], rng), text)
    lines = [f"{told[0]},{told[1]}:{max(told)}"] if compared else []
    if compared:
        numbers = sorted(told, reverse=True)
    elif kind == "more and both":
        numbers = [*told, told[0]]
    elif signs in ("+", "x", "++"):
        numbers = told
    elif signs[0] == "x" and told.index(numbers[0]) > told.index(numbers[1]):
        numbers = [numbers[1], numbers[0], numbers[2]]
    return _item(kind, signs, typed(text, rng), numbers, lines)


def _item(kind: str, signs: str, question: str, numbers: list[int], lines: list[str]) -> Item:
    total = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        step = Problem(total, sign, number)
        lines.append(arithmetic.think(step))
        total = step.answer
    one = len(signs) == 1
    if not one:
        lines.insert(0, plan(signs, numbers))
    key = arithmetic.key(step) if one else (signs, *numbers)
    turns = question_and_answer(question, str(total), "\n".join(lines))
    return Item(kind, key, turns, str(total), never_held_out=one and arithmetic.is_simple(step))


def plan(signs: str, numbers: Sequence[int]) -> str:
    """What is to be computed, before it is: `50+12-20`, from left to right, a product's longer number first."""
    first, second, *others = numbers
    if signs[0] == "x" and len(str(first)) < len(str(second)):
        numbers = [second, first, *others]
    return str(numbers[0]) + "".join(f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True))


def _laid_out(story: Story, told: str, ask: str) -> str:
    """What is told and what is asked, in this order or the other, with perhaps a fact that does not matter."""
    chance, ask = story.rng.random(), story.say(ask)
    told = story.say(told)
    if chance < 0.1:
        return f"{story.say('{aside}')} {told}. {ask}"
    if chance < 0.25:
        joint = story.say("{if_asked}").lower()
        return f"{ask.rstrip('.?')} {joint} {told[0].lower() if told.split()[0].lower() in LOWERED else told[0]}{told[1:]}?"
    if chance < 0.32:
        return f"{ask} {told}."
    if chance < 0.4:
        return f"{told}, {ask[0].lower()}{ask[1:]}"
    if chance < 0.44:
        return f"{told}, so {ask[0].lower()}{ask[1:]}"
    return f"{told}. {ask}"


LOWERED = ("a", "the", "there", "my", "our", "one", "in", "on", "at", "we", "they", "each", "every", "of", "mum", "first",
    "grandma", "last", "three", "out", "from", "all", "among")  # fmt: skip


def _change(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=True)
    there = story.rng.random() < 0.3
    if there:
        story.slots["s"] = story.slots["S"]
    events = "".join(
        f"{{then}}{{{'gain' if sign == '+' else 'lose'}_{letter}}}" for sign, letter in zip(signs, "bc", strict=False)
    )
    asks = {"+": ("{now_asked}", "{total_asked}"), "-": ("{left_asked}", "{left_asked}", "{now_asked}")}
    told = story.say(("{there}" if there else "{start}") + events)
    ask = story.rng.choice(asks[signs[-1]])
    while there and re.search(rf"\b{story.slots['S']}\b", said := story.say(ask)):
        pass  # who was not named is not asked about
    return "change" if len(signs) == 1 else "two changes", _laid_out(story, told, said if there else ask)


def _place(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=False)
    place = story.rng.choice(list(story_places.PLACES))
    events = "".join(
        f"{{then}}{{{place}_{'gain' if sign == '+' else 'lose'}_{letter}}}"
        for sign, letter in zip(signs, "bc", strict=False)
    )
    kind = "change" if len(signs) == 1 else "two changes"
    return kind, _laid_out(story, f"{{{place}_start}}{events}", f"{{{place}_asked}}")


def _facts(story: Story, signs: str) -> tuple[str, str]:
    """Two facts as look-ups have them, to be added or compared."""
    story.fill(people=False)
    rng, name = story.rng, story.rng.choice(relations.ADDED if signs == "+" else relations.COMPARED)
    relation = relations.RELATIONS[name]
    pair = relations.owners(relation, 2, rng, story.unseen)
    told = relations.tell(
        name, list(zip(pair, ("@a", "@b"), strict=True)), rng.choice(relation.units), rng, story.unseen
    )
    big, small = (owner.who for owner in (pair[::-1] if story.second else pair))
    story.form = pair[0].form
    story.slots |= {"big": big, "small": small, "more": relation.more, "less": relation.less}
    compared = "{gap_compared}" if relation.more and rng.random() < 0.6 else "{gap_of_two}"
    ask = "{both}" if signs == "+" else compared
    return "parts" if signs == "+" else "compare", _laid_out(story, relations.joined(told, rng), ask)


def _unknown(story: Story, signs: str) -> tuple[str, str]:
    """What was at first, what changed, or a number that is told by another."""
    story.fill(people=False)
    if signs == "-":
        return "unknown", story.say(story.rng.choice(("{unknown_less}", "{unknown_less}", "{rel_less}")))
    if story.rng.random() < 0.5:
        return "unknown", story.say("{rel_more}")
    return "unknown", _laid_out(story, "{lost_a}{keeps_b}", "{before_asked}")


def _more_and_both(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=False)
    return "more and both", story.say("{more_and_both}")


def _parts(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=False)
    return "parts", _laid_out(story, "{parts}" if signs == "+" else "{three_parts}", "{total_asked}")


def _part_of(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=True)
    return "part of", _laid_out(story, "{taken_of}", "{rest_asked}")


def _compare(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=False)
    if story.rng.random() < 0.4:
        return "compare", story.say("{measured}")
    told = story.say("{two}")
    named = story.slots["S"] in told and story.slots["M"] in told
    return "compare", _laid_out(story, told, "{more_asked}" if named and story.rng.random() < 0.7 else "{gap_asked}")


def _quantity(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=False)
    return "quantity", story.say("{quantity_more}" if signs == "+" else "{quantity_less}")


def _groups(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=True)
    more = {"x": "", "x+": "{and_more}", "x-": "{and_less}"}[signs]
    ask = "{total_asked}" if signs != "x-" else story.rng.choice(("{left_asked}", "{now_asked}"))
    return "groups" if signs == "x" else "groups and a change", _laid_out(story, "{groups}" + more, ask)


def _rate(story: Story, signs: str) -> tuple[str, str]:
    story.fill(people=False)
    if signs == "x":
        return "rate", story.say("{rates}")
    return "groups and a change", story.say("{wages}" if signs == "x-" else "{more_wages}")


TOLD: dict[str, tuple[Callable[[Story, str], tuple[str, str]], ...]] = {
    "+": (_change, _change, _place, _parts, _parts, _quantity, _quantity, _facts, _facts, _unknown),
    "-": (_change, _change, _place, _compare, _compare, _part_of, _quantity, _quantity, _facts, _facts, _unknown, _unknown),
    "x": (_groups, _groups, _rate, _rate, _rate), "++": (_change, _place, _parts, _more_and_both),
    "+-": (_change, _place), "-+": (_change, _place), "--": (_change, _place), "x+": (_groups, _groups, _rate),
    "x-": (_groups, _groups, _rate),
}  # fmt: skip
