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
    "here is one for you. ", "my teacher asks: ",
)  # fmt: skip
AFTER = (
    " thanks",
    " thank you!",
    " please",
    ", please",
    " thanks in advance",
    " just tell me the answer",
    " i need help",
)


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
        for _ in range(TRIES):
            drawn: list[bool] = []
            text = self._expand(start, rng, slots, unseen, drawn)
            if not unseen or any(drawn):
                break
        return tidy(_VERB.sub(lambda verb: verb[1].split("|")[form], text))

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
    if rng.random() < 0.06:
        text = tidy(rng.choice(BEFORE) + text)
    if rng.random() < 0.06:
        text = text.rstrip(".") + rng.choice(AFTER)
    if rng.random() < 0.15:
        text = text.lower() if rng.random() < 0.6 else text[0].lower() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip(".?!")
    if rng.random() < 0.1:
        text = text.replace("'s ", "s ").replace("n't", "nt") if rng.random() < 0.5 else text.replace(",", "")
    return text
