"""Phrase grammars: nonterminals with alternatives, drawn by a random generator; some alternatives are kept for
evaluation.

    Grammar({"greet": ("hello", "hi there", "~good day"), "all": ("{greet}, {name}.",)})

`{greet}` stands for one of its alternatives, `{name}` for a slot that the caller fills. An alternative that begins with
`~` is unseen: no training row uses it. `<have|has|had>` is a verb in three forms, of which the caller takes one. Knows
nothing of tasks.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNSEEN = "~"
BASE, THIRD, PAST = 0, 1, 2  # forms of a verb
_NAME = re.compile(r"\{([\w+-]+)\}")
_VERB = re.compile(r"<([^<>]*)>")
TRIES = 50
BEFORE = (
    "hey, ", "hi! ", "hello, ", "ok, ", "so, ", "quick one: ", "please help: ", "question: ", "could you help? ",
    "here is one for you. ", "my teacher asks: ", "hi there, ", "good morning! ", "excuse me, ", "sorry, one more: ",
    "next: ", "my homework says: ", "help! ", "a quick question: ", "hello! i have a question. ", "now this: ",
    "my son asks: ", "can you do this? ", "try this: ", "please: ", "i wonder: ", "and ", "right, ", "well, ",
    "just checking: ", "homework: ", "hey demo, ", "dear computer, ", "one more question. ", "for school: ",
)  # fmt: skip
AFTER = (
    " thanks", " thank you!", " please", ", please", " thanks in advance", " just tell me the answer", " i need help",
    " thx", " pls", " :)", " just the answer please", " cheers", " that's all", " i don't know", " quick please",
    " can you help?", " no idea", " be quick", " i can't work it out", " what do you say?", "!", "??", "...",
)  # fmt: skip
# Words of questions as they are mistyped; none that stands in a fact or a list.
MISTYPED = {
    "what": ("waht", "wat", "whta", "wht"), "how": ("hwo", "hw", "hoow"), "many": ("mnay", "mny", "manny"),
    "much": ("muhc", "mcuh", "mutch"), "which": ("wich", "whcih"), "please": ("pls", "plz", "pleese"),
    "does": ("dose", "deos"), "tell": ("tel", "tlel"), "together": ("togehter", "togather"),
    "altogether": ("all together", "alltogether"), "difference": ("diference", "differnce"), "remain": ("reamin",),
    "subtract": ("substract", "subtrakt"), "multiply": ("multipy", "mutliply"), "calculate": ("calulate", "calcualte"),
    "backwards": ("backwords", "bakwards", "backward"), "reverse": ("revers", "reverese"), "smallest": ("smalest",),
    "largest": ("larges", "lagrest"), "biggest": ("bigest", "biggets"), "ascending": ("acending", "asending"),
}  # fmt: skip


@dataclass(frozen=True)
class Grammar:
    """Rules: each nonterminal's alternatives."""

    rules: Mapping[str, Sequence[str]]

    def say(
        self, start: str, rng: random.Random, slots: Mapping[str, object], form: int = BASE, unseen: bool = False
    ) -> str:
        """One text of `start`, a text with names in braces; with `unseen`, at least one of its alternatives is one that
        training never draws, where there is any.
        """
        return tidy(self.phrase(start, rng, slots, form, unseen))

    def phrase(
        self, start: str, rng: random.Random, slots: Mapping[str, object], form: int = BASE, unseen: bool = False
    ) -> str:
        """As `say`, without a capital: a part of a sentence."""
        for _ in range(TRIES):
            drawn: list[bool] = []
            text = self._expand(start, rng, slots, unseen, drawn)
            if not unseen or any(drawn):
                break
        return re.sub(r" +", " ", _VERB.sub(lambda verb: verb[1].split("|")[form], text)).strip()

    def _expand(
        self, text: str, rng: random.Random, slots: Mapping[str, object], unseen: bool, drawn: list[bool]
    ) -> str:
        def put(match: re.Match[str]) -> str:
            name = match[1]
            if name in slots:
                return str(slots[name])
            chosen = choose(self.rules[name], rng, unseen)
            drawn.append(chosen.startswith(UNSEEN))
            return self._expand(chosen.removeprefix(UNSEEN), rng, slots, unseen, drawn)

        return _NAME.sub(put, text)


def choose(alternatives: Sequence[str], rng: random.Random, unseen: bool = False) -> str:
    """One of the alternatives: a seen one in training, with `unseen` half the time one that training never draws."""
    kept = [one for one in alternatives if one.startswith(UNSEEN)]
    if unseen and kept and rng.random() < 0.5:
        return rng.choice(kept)
    return rng.choice([one for one in alternatives if not one.startswith(UNSEEN)])


def part(words: Sequence[str], rng: random.Random, unseen: bool = False) -> str:
    """A word of a list; every eighth is kept for evaluation."""
    return rng.choice(words[::8] if unseen else [word for i, word in enumerate(words) if i % 8])


def tidy(text: str) -> str:
    """Single spaces, and capitals where sentences begin."""
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" ([.,?!;:])(?=\s|$)", r"\1", text)
    text = re.sub(r"(?:(?<=[.?!] )|^)[a-z]", lambda letter: letter[0].upper(), text)
    return re.sub(r"\bi\b(?=[ ',])", "I", text)


def typed(text: str, rng: random.Random) -> str:
    """The text as people type it: greetings and thanks around it, without capitals, marks or apostrophes."""
    if rng.random() < 0.08:
        text = tidy(rng.choice(BEFORE) + text)
    if rng.random() < 0.06:
        text = mistyped(text, rng)
    if rng.random() < 0.06:
        text = text.rstrip(".") + rng.choice(AFTER)
    if rng.random() < 0.15:
        text = text.lower() if rng.random() < 0.6 else text[0].lower() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip(".?!")
    if rng.random() < 0.1:
        text = text.replace("'s ", "s ").replace("n't", "nt") if rng.random() < 0.5 else re.sub(r",(?=\s)", "", text)
    return text


def mistyped(text: str, rng: random.Random) -> str:
    """One of the words of `MISTYPED` with a typing error, where the text has one of them."""
    found = [word for word in re.findall(r"\b[a-z]+\b", text) if word in MISTYPED]
    if not found:
        return text
    word = rng.choice(found)
    return re.sub(rf"\b{word}\b", rng.choice(MISTYPED[word]), text, count=1)
