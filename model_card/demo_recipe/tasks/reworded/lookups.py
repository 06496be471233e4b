"""Retrieval in wider wording: who has which number, told in many ways, asked for in others, among names that are alike.

Half the texts are about the numbers of `relations`: ages, prices, rooms, hours. The thought is the fact as it is told.
Knows nothing of tokens or models.
"""

import random
import re
from dataclasses import dataclass, replace

from model_card.demo_recipe.tasks import words
from model_card.demo_recipe.tasks.item import Item, assistant, user
from model_card.demo_recipe.tasks.retrieval import TOKENS_PER_SENTENCE, filler
from model_card.demo_recipe.tasks.reworded import nouns, relations
from model_card.demo_recipe.tasks.reworded.grammar import BASE, Grammar, choose, tidy, typed

GRAMMAR = Grammar(relations.RULES | {
    "ask": (
        "what is {its}?", "what is {its}?", "what's {its}?", "{its}?", "{its} please", "tell me {its}", "give me {its}", "find {its}", "i need {its}",
        "what was {its}?", "what was {its} again?", "which {attr} does {who} have?", "what {attr} does {who} have?", "which {attr} has {who}?",
        "can you tell me {its}?", "could you look up {its}?", "do you know {its}?", "which {attr} belongs to {who}?", "what does the text say about {who}?",
        "and {who}?", "{who}?", "which number goes with {who}?", "what number does {who} have?", "look up {who}", "the number for {who}?", "i am looking for {its}",
        "where is {who}?", "what is the value of {who}?", "what is written next to {who}?", "which one is {its}?", "which {attr} is for {who}?",
        "look for {its}", "say {its}", "read me {its}", "how does {its} read?", "what do i type in for {who}?", "which {attr} do i need for {who}?",
        "what number is {its}?", "show me {its}", "please give me {its}", "i forgot {its}", "i can't find {its}", "{its}, please", "{its} is what?", "{its} =", "{its}:", "any idea what {its} is?", "which number is {its}?",
        "what have you got for {who}?", "what is noted for {who}?", "what do you have on {who}?", "{who}'s number?", "{attr} of {who}?", "{attr} for {who}?", "what is the {attr} for {who}?", "what's the {attr} of {who}?", "get {its}", "search for {its}",
        "extract {its}", "copy {its}", "write down {its}", "repeat {its}", "what did i say {its} was?", "what did it say about {its}?", "how many is {its}?", "i want {its}", "need {its}", "do you see {its}?", "what about {who}?", "and what about {who}?",
        "just {its}", "just give me {its}", "according to the text, what is {its}?", "in the text, what is {its}?", "what is {its} according to this?", "~remind me of {its}", "~spit out {its}", "~my memory fails me: {its}?", "~what should i write down as {its}?", "~under which number do i find {who}?", "~state {its}", "~does anyone know {its}?",
    ),
    "the_ask": ("which {attr} is it?", "what is the {attr}?", "the {attr}?", "tell me the {attr}", "what was the {attr}?", "which number is the {attr}?", "find the {attr}",
        "give me the {attr}", "{attr}?", "which {attr} do you see?", "what {attr} is mentioned?", "what {attr} does the text give?", "the {attr} is what?", "~what {attr} do i read there?"),
    "relation_ask": ("what is {its}?", "what's {its}?", "{its}?", "tell me {its}", "give me {its}", "find {its}", "what was {its}?", "{its} please", "{noun} of {who}?", "say {its}", "which {noun} is it for {who}?", "~name {its}"),
    "who_ask": ("{who}?", "and {who}?", "what about {who}?", "and for {who}?", "which number goes with {who}?", "what number is it for {who}?", "what does the text say about {who}?", "the number for {who}?", "what is said about {who}?", "how about {who}?",
        "~{who}, then?"),
    # sentences that do not matter
    "filler": ("{thing} {does}", "{thing} {does}", "{thing} {does} {when}", "{when} {thing} {does}", "we {did}", "i {did} {when}", "{when} we {did}", "there were {n} of us", "it took {n} days in all", "~nobody minded"),
    "thing": ("the weather", "the old cat", "my bag", "the garden", "the road", "her bike", "the music", "our bus", "the river", "a stranger", "the coffee", "the wind", "the door", "his hat", "the light", "everyone", "nobody", "the book", "the sky"),
    "does": ("was nice", "is new", "looked fine", "was late", "is very old", "made us laugh", "was gone", "is still there", "seemed small", "was not far", "is quite big", "was wet", "pleased us", "is green", "was full", "got lost", "smelled good"),
    "did": ("had tea", "took the bus", "went home", "met some friends", "played cards", "saw a film", "bought bread", "sang a song", "cleaned up", "walked in the park", "slept well", "had {n} guests", "wrote a letter", "watched the birds"),
    "when": ("today", "yesterday", "last week", "in the evening", "after lunch", "at noon", "in spring", "then", "on Friday", "later", "this morning", "once", "in the end"),
    "before": ("text: ", "here is a list. ", "note: ", "here are some facts. ", "please read this. ", "from my notes: ", "read: ", "we have this: ", "look: ", "listen: ", "facts: ", "from a letter: ", "i was told this: ", "remember: ",
        "this is what i know. ", "my list: ", "hi! ", "a friend wrote: ", "from the timetable: ", "from the shop: ", "info: ", "data: ", "it says here: ", "given: ", "context: ", "there is a note on the door. ", "~memo: ", "~overheard: "),
    "lead": ("", "", "", "", "", "so, ", "now, ", "question: ", "my question: ", "and now: ", "tell me: ", "please tell me: ", "i want to know: ", "can you tell me: ", "do you know? ", "from the text: ", "quick: ", "ok, ", "please, ", "hey, ",
        "based on this, ", "q: ", "well, ", "say, ", "i ask you: ", "now tell me, ", "sorry, ", "help me: ", "~just this: ", "~one thing only: "),
})  # fmt: skip
FACTS = (
    "{its} is {v}", "{its} is {v}", "{its}: {v}", "{who} has {attr} {v}", "{who} has the {attr} {v}", "{attr} {v} belongs to {who}", "{attr} {v} is for {who}",
    "{v} is {its}", "for {who} the {attr} is {v}", "{who} got {attr} {v}", "{its} = {v}", "{its} was {v}", "you find {who} at {v}", "{who} uses {attr} {v}",
    "{who}'s {attr} happens to be {v}", "the {attr} that {who} has is {v}", "{who} chose {attr} {v}", "{attr} {v} goes to {who}", "{who} was given {attr} {v}", "{who} works with {attr} {v}", "the {attr} {v} is with {who}",
    "{v} is the {attr} of {who}", "{who} has got {attr} {v}", "for {who} it is {attr} {v}", "as {attr}, {who} has {v}", "{who} ({attr} {v})", "remember that {its} is {v}", "note that {its} is {v}",
    "~{its} reads {v}", "~{who} goes with {attr} {v}", "~{who} swears by {attr} {v}",
)  # fmt: skip
SHORT_FACTS = ("{who} {v}", "{who}: {v}", "{who}={v}", "{who} = {v}", "{who} - {v}", "{who}, {v}", "{who} is {v}", "{who} has {v}", "{who}|{v}", "{attr} {who} {v}", "{v} {who}", "{v}: {who}",
    "{who} -> {v}", "~{who} / {v}", "~{who} ({v})")  # fmt: skip
ATTRIBUTES = (
    "code", "number", "PIN", "password", "locker", "room", "seat", "ticket", "badge", "phone number", "ID", "order number", "key", "flight", "gate",
    "page", "score", "age", "weight", "height", "distance", "size", "floor", "seat number", "bus", "platform", "desk", "level", "lane", "time", "hour", "year", "points", "rank", "temperature", "speed", "salary", "street", "phone",
    "door", "parking space", "drawer", "cabin", "tent", "table number", "room number", "bib", "card number", "chapter", "volume", "channel", "zip code", "pass", "barcode", "model", "part number", "result", "bill", "tax number", "house number", "account", "invoice", "box", "line", "table", "price", "extension", "shelf", "track", "license", "file", "street number",
)  # fmt: skip
KINDS = ("blue", "red", "green", "old", "new", "big", "small", "left", "right", "first", "second", "upper", "lower")
JOINTS = (". ", ". ", ", ", "; ", "\n", "\n", " and ", " | ", " / ", ", but ")

# Relations told of one owner together, none of them asked for in another's words.
TOGETHER = {
    "names": ("age", "house", "weight", "score", "earns", "size", "sleeps", "height"), "offices": ("opens", "closes", "floor"),
    "events": ("starts", "lasts", "room"), "cities": ("distance", "leaves", "line", "warm"), "animals": ("age", "weight", "speed", "sleeps"),
}  # fmt: skip
PRONOUNS = {"names": ("he", "she"), "animals": ("it", "he", "she")}


@dataclass(frozen=True)
class Fact:
    """`text` says that `who`'s `attribute` is `value`; `its` is "Anna's code" or "the code of the lamp". `relation` is
    one of `relations`, `unit` and `form` what it is told with.
    """

    who: str
    its: str
    attribute: str
    value: str
    text: str
    relation: str = ""
    unit: str = ""
    form: int = BASE


def draw(
    rng: random.Random, easy: bool = False, unseen: bool = False, context: int | None = None, questions: int = 1
) -> Item:
    """Two to seven facts, with other sentences between them up to `context` tokens, and `questions` about them; most
    short texts are asked about once.
    """
    count = rng.choice((2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7))
    if context is None:
        questions = min(questions, rng.choice((1, 1, 1, 2, 3)), count)
    count = max(questions + (context is not None), count)
    facts = _related(rng, count, unseen) if rng.random() < 0.6 else _facts(rng, count, unseen)
    told = [fact.text for fact in facts]
    fillers = (
        rng.choice((0, 0, 0, 0, 1, 2, 3)) if context is None else max(0, context // TOKENS_PER_SENTENCE - len(told))
    )
    if fillers:
        told = _kept_together(facts)
    for _ in range(fillers):
        told.insert(rng.randint(0, len(told)), _filler(facts, rng))
    if fillers:
        text = tidy(". ".join(told) + ".")
    elif rng.random() < 0.5:
        text = relations.joined(told, rng)
        text = tidy(f"{text}.") if rng.random() < 0.6 else text
    else:
        joint = rng.choice(JOINTS)
        text = tidy(joint.join(told) + ".") if joint == ". " else joint.join(told)
    if rng.random() < 0.12:
        text = GRAMMAR.say("{before}", rng, {}) + " " + text
    asked = rng.sample(facts, questions)
    turns = []
    for i, fact in enumerate(asked):
        question = _ask(fact, facts, rng, unseen)
        if i == 0:
            question = _together(text, question, rng)
        turns += [user(typed(question, rng)), assistant(fact.value, fact.text)]
    return Item("retrieval", tuple((fact.who, fact.value) for fact in asked), turns, asked[-1].value)


def _kept_together(facts: list[Fact]) -> list[str]:
    """The facts; one that says "it" or "she" stays behind the one before it."""
    told = list[str]()
    for fact in facts:
        if fact.who in fact.text:
            told.append(fact.text)
        else:
            told[-1] += f". {fact.text}"
    return told


def _filler(facts: list[Fact], rng: random.Random) -> str:
    """A sentence between the facts; a number in it is not one of theirs."""
    if rng.random() < 0.4:
        return filler(rng).rstrip(".")
    number = rng.choice([n for n in range(2, 60) if str(n) not in {fact.value for fact in facts}])
    return GRAMMAR.phrase("{filler}", rng, {"n": number})


def _together(text: str, question: str, rng: random.Random) -> str:
    """The text and the question about it, which comes first now and then."""
    if rng.random() < 0.18:
        return f"{question}\n{text}" if question[-1] not in "?." or rng.random() < 0.5 else f"{question} {text}"
    return f"{text}{rng.choice(_between(text))}{question}"


def _between(text: str) -> tuple[str, ...]:
    """What may stand between the facts and the question."""
    return (" ", " ", "\n", "\n\n") if text[-1] == "." else (". ", "\n", ".\n", "\n\n")


def _ask(fact: Fact, facts: list[Fact], rng: random.Random, unseen: bool) -> str:
    slots = {"who": fact.who, "its": fact.its, "attr": fact.attribute, "noun": fact.attribute, "u": fact.unit}
    same = [other for other in facts if fact.attribute in other.attribute]
    alone = sum(other.who == fact.who for other in facts) == 1
    if fact.relation:
        start, chance = f"{{lead}}{{{fact.relation}_ask}}", rng.random()
        if chance < 0.2:
            start = "{lead}{relation_ask}"
        elif chance < 0.3 and alone:
            start = "{who_ask}"
    else:
        start = "{the_ask}" if len(same) == 1 and rng.random() < 0.4 else "{lead}{ask}"
    question = GRAMMAR.say(start, rng, slots, fact.form, unseen)
    return question if question[-1] in "?." or rng.random() < 0.5 else question + "."


def _related(rng: random.Random, count: int, unseen: bool) -> list[Fact]:
    """Facts of one relation, or of two about the same owners."""
    if rng.random() < 0.25:
        return _two_of_each(rng, (count + 1) // 2, unseen)
    name = rng.choice(list(relations.RELATIONS))
    people = relations.owners(relations.RELATIONS[name], count, rng, unseen)
    return _of(name, people, rng, unseen)


def _two_of_each(rng: random.Random, count: int, unseen: bool) -> list[Fact]:
    """Two facts about each of `count` owners, one owner after the other or one relation after the other."""
    pool = rng.choice(("names", *TOGETHER))
    first, second = rng.sample(TOGETHER[pool], 2)
    people = relations.owners(relations.RELATIONS[first], count, rng, unseen, pool)
    pairs = list(zip(*(_of(name, people, rng, unseen, whole=True) for name in (first, second)), strict=True))
    if len({fact.value for pair in pairs for fact in pair}) < 2 * count:
        return _two_of_each(rng, count, unseen)
    if count > 1 and rng.random() < 0.4:
        return [pair[i] for i in (0, 1) for pair in pairs]
    pronoun = rng.choice(PRONOUNS.get(pool, ("it",)))
    if rng.random() < 0.6:
        pairs = [(one, replace(two, text=re.sub(f"^{two.who} ", f"{pronoun} ", two.text))) for one, two in pairs]
    return [fact for pair in pairs for fact in pair]


def _of(name: str, people: list[relations.Owner], rng: random.Random, unseen: bool, whole: bool = False) -> list[Fact]:
    """A fact of this relation about each of `people`; with `whole`, all in whole sentences."""
    relation, values = relations.RELATIONS[name], list[str]()
    unit, most = rng.choice(relation.units), relation.most if rng.random() < 0.7 else min(relation.most, 30)
    while len(values) < len(people):
        value = str(rng.randint(1000 if most >= 1000 else 1, most))
        if values and rng.random() < 0.15:
            value = rng.choice(values)[::-1]
        if value not in values and value[0] != "0":
            values.append(value)
    texts = relations.tell(name, list(zip(people, values, strict=True)), unit, rng, unseen, whole)
    noun = relation.noun.replace("{u}", unit)
    return [
        Fact(owner.who, owner.its(noun), noun, value, text, name, unit, owner.form)
        for owner, value, text in zip(people, values, texts, strict=True)
    ]


def _facts(rng: random.Random, count: int, unseen: bool) -> list[Fact]:
    """Facts of one form, or each of its own; values differ, and often only in a digit or their order."""
    attribute, own = rng.choice(ATTRIBUTES), rng.random() < 0.25
    short, digits = rng.random() < 0.35, rng.choice((4, 4, 4, 3, 3, 2, 2, 2, 5, 6, 1))
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
