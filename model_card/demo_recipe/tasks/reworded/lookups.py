"""Retrieval in wider wording: who has which number, told in many ways, asked for in others, among names that are alike.

The thought is the fact as it is told. Knows nothing of tokens or models.
"""

import random
from dataclasses import dataclass

from model_card.demo_recipe.tasks import words
from model_card.demo_recipe.tasks.item import Item, assistant, user
from model_card.demo_recipe.tasks.retrieval import TOKENS_PER_SENTENCE, filler
from model_card.demo_recipe.tasks.reworded import nouns
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, choose, tidy, typed

GRAMMAR = Grammar({
    "ask": (
        "what is {its}?", "what is {its}?", "what's {its}?", "{its}?", "{its} please", "tell me {its}", "give me {its}", "find {its}", "i need {its}",
        "what was {its}?", "what was {its} again?", "which {attr} does {who} have?", "what {attr} does {who} have?", "which {attr} has {who}?",
        "can you tell me {its}?", "could you look up {its}?", "do you know {its}?", "which {attr} belongs to {who}?", "what does the text say about {who}?",
        "and {who}?", "{who}?", "which number goes with {who}?", "what number does {who} have?", "look up {who}", "the number for {who}?", "i am looking for {its}",
        "where is {who}?", "what is the value of {who}?", "what is written next to {who}?", "which one is {its}?", "which {attr} is for {who}?",
        "look for {its}", "say {its}", "read me {its}", "how does {its} read?", "what do i type in for {who}?", "which {attr} do i need for {who}?",
        "~remind me of {its}", "~what should i write down as {its}?", "~under which number do i find {who}?", "~state {its}", "~does anyone know {its}?",
    ),
    "the_ask": ("which {attr} is it?", "what is the {attr}?", "the {attr}?", "tell me the {attr}", "what was the {attr}?", "which number is the {attr}?", "find the {attr}",
        "~what {attr} do i read there?"),
    "before": ("text: ", "here is a list. ", "note: ", "here are some facts. ", "please read this. ", "from my notes: ", "read: ", "we have this: ", "~memo: "),
    "lead": ("", "", "", "so, ", "now ", "question: ", "my question: ", "and now: ", "~just this: "),
})  # fmt: skip
FACTS = (
    "{its} is {v}", "{its} is {v}", "{its}: {v}", "{who} has {attr} {v}", "{who} has the {attr} {v}", "{attr} {v} belongs to {who}", "{attr} {v} is for {who}",
    "{v} is {its}", "for {who} the {attr} is {v}", "{who} got {attr} {v}", "{its} = {v}", "{its} was {v}", "you find {who} at {v}", "{who} uses {attr} {v}",
    "~{its} reads {v}", "~{who} goes with {attr} {v}",
)  # fmt: skip
SHORT_FACTS = ("{who} {v}", "{who}: {v}", "{who}={v}", "{who} = {v}", "{who} - {v}", "{who}, {v}", "{who} is {v}", "{who} has {v}", "{who}|{v}", "{attr} {who} {v}", "{v} {who}", "{v}: {who}",
    "{who} -> {v}", "~{who} / {v}", "~{who} ({v})")  # fmt: skip
ATTRIBUTES = (
    "code", "number", "PIN", "password", "locker", "room", "seat", "ticket", "badge", "phone number", "ID", "order number", "key", "flight", "gate",
    "page", "score", "house number", "account", "invoice", "box", "line", "table", "price", "extension", "shelf", "track", "license", "file", "street number",
)  # fmt: skip
KINDS = ("blue", "red", "green", "old", "new", "big", "small", "left", "right", "first", "second", "upper", "lower")
JOINTS = (". ", ". ", ", ", "; ", "\n", "\n", " and ", " | ", " / ", ", but ")


@dataclass(frozen=True)
class Fact:
    """`text` says that `who`'s `attribute` is `value`; `its` is "Anna's code" or "the code of the lamp"."""

    who: str
    its: str
    attribute: str
    value: str
    text: str


def draw(
    rng: random.Random, easy: bool = False, unseen: bool = False, context: int | None = None, questions: int = 1
) -> Item:
    """Two to seven facts, with other sentences between them up to `context` tokens, and `questions` about them."""
    facts = _facts(rng, max(questions + 1, rng.choice((2, 2, 3, 3, 4, 5, 7))), unseen)
    told = [fact.text for fact in facts]
    fillers = rng.choice((0, 0, 0, 1, 2, 3)) if context is None else max(0, context // TOKENS_PER_SENTENCE - len(told))
    joint = ". " if fillers else rng.choice(JOINTS)
    for _ in range(fillers):
        told.insert(rng.randint(0, len(told)), filler(rng).rstrip("."))
    text = joint.join(told)
    if joint == ". ":
        text = tidy(text + ".")
    if rng.random() < 0.12:
        text = GRAMMAR.say("{before}", rng, {}) + " " + text
    asked = rng.sample(facts, questions)
    turns = []
    for i, fact in enumerate(asked):
        question = _ask(fact, facts, rng, unseen)
        if i == 0:
            question = f"{question}\n{text}" if rng.random() < 0.12 else f"{text}{rng.choice(_between(text))}{question}"
        turns += [user(typed(question, rng)), assistant(fact.value, fact.text)]
    return Item("retrieval", tuple((fact.who, fact.value) for fact in asked), turns, asked[-1].value)


def _between(text: str) -> tuple[str, ...]:
    """What may stand between the facts and the question."""
    return (" ", " ", "\n", "\n\n") if text[-1] == "." else (". ", "\n", ".\n", "\n\n")


def _ask(fact: Fact, facts: list[Fact], rng: random.Random, unseen: bool) -> str:
    slots = {"who": fact.who, "its": fact.its, "attr": fact.attribute}
    same = [other for other in facts if other.attribute == fact.attribute]
    start = "{the_ask}" if len(same) == 1 and rng.random() < 0.4 else "{lead}{ask}"
    if sum(other.who == fact.who for other in facts) > 1 and start != "{the_ask}":
        start = "{lead}what is {its}?"
    question = GRAMMAR.say(start, rng, slots, unseen=unseen)
    return question if question[-1] in "?." or rng.random() < 0.5 else question + "."


def _facts(rng: random.Random, count: int, unseen: bool) -> list[Fact]:
    """Facts of one form, or each of its own; values differ, and often only in a digit or their order."""
    attribute, own = rng.choice(ATTRIBUTES), rng.random() < 0.25
    short, digits = rng.random() < 0.35, rng.choice((4, 4, 4, 4, 3, 2, 5, 1))
    people, templates = _owners(rng, count, unseen), SHORT_FACTS if short else FACTS
    template, values, facts = choose(templates, rng, unseen), list[str](), list[Fact]()
    for who in people:
        value = _value(rng, digits, values)
        values.append(value)
        name = rng.choice(ATTRIBUTES) if own else attribute
        if own or (not short and rng.random() < 0.15):
            template = choose(templates, rng, unseen)
        its = f"{who}'s {name}" if who[0].isupper() or (rng.random() < 0.3 and who != "I") else f"the {name} of {who}"
        text = template.removeprefix("~").format(who=who, its=its, attr=name, v=value)
        facts.append(Fact(who, its, name, value, text))
    return facts


def _value(rng: random.Random, digits: int, others: list[str]) -> str:
    while True:
        value = str(rng.randrange(10 ** (digits - 1), 10**digits))
        if others and digits > 1 and rng.random() < 0.3:
            shuffled = list(rng.choice(others))
            rng.shuffle(shuffled)
            value = "".join(shuffled)
        if value not in others and value[0] != "0":
            return value


def _owners(rng: random.Random, count: int, unseen: bool) -> list[str]:
    """Whose facts: people, things, kinds of one thing, rooms with numbers, or places; often two are alike."""
    how = rng.random()
    if how < 0.45:
        return nouns.names(count, rng, unseen)
    if how < 0.6:
        noun = rng.choice(words.OBJECTS)
        return [f"the {kind} {noun}" for kind in rng.sample((*KINDS, *nouns.COLORS[4:]), count)]
    if how < 0.7:
        noun = rng.choice(("room", "house", "team", "bus", "box", "class", "floor", "lane"))
        return [f"{noun} {number}" for number in rng.sample(range(1, 40), count)]
    source = rng.choice((words.OBJECTS, words.WORDS, words.CITIES, nouns.THINGS))
    owners = rng.sample(source, count)
    if rng.random() < 0.3:
        owners[0] = nouns.near(owners[1], rng) if nouns.near(owners[1], rng) not in owners else owners[0]
    article = "the " if source is not words.CITIES and rng.random() < 0.7 else ""
    owners = [f"{article}{owner}" for owner in owners]
    return owners if len(set(owners)) == count else _owners(rng, count, unseen)
