"""Programs in wider wording: asked about in many ways, with variables of any name.

The programs are `programs`' own; their thoughts are `small_steps`'. Knows nothing of tokens or models.
"""

import ast
import random

from model_card.demo_recipe.tasks import programs, small_steps
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.reworded import nouns
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, part, typed

GRAMMAR = Grammar({
    "code": ("code", "program", "script", "Python", "snippet", "python code", "program here", "~listing"),
    "print": ("print", "print", "output", "show", "display", "write", "give", "~emit"),
    "ask": (
        "what does the {code} {print}?", "what does this {code} {print}?", "what will the {code} {print}?", "what is the result?", "what is the output?", "what do i see?",
        "what's the output of this {code}?", "what is printed by this {code}?", "run this", "run this {code} for me", "what happens when i run this?", "output?", "result?",
        "can you run this?", "what do i get when i run this {code}?", "which value does it {print}?", "tell me what this {code} does", "tell me the output", "and the output is?",
        "please tell me what it prints", "what comes out?", "what would Python {print}?", "what number comes out?", "what is the value at the end?", "execute this {code}",
        "i have this {code}. what does it {print}?", "look at this {code}. what does it {print}?", "go through this {code} and say what it prints", "guess the output",
        "can you say what this prints?", "what will be printed?", "what should it {print}?", "find the output", "what is the answer of this {code}?", "step through this {code}",
        "~evaluate this {code}", "~what ends up on the console?", "~predict what it will {print}", "~which line of text do i see after running it?",
    ),
})  # fmt: skip
VARIABLES = (
    "price", "cost", "sum", "number", "num", "value", "amount", "left", "right", "first", "second", "age", "year", "size", "length", "width", "height", "score", "points", "speed",
    "apples", "coins", "books", "cats", "dogs", "days", "hours", "steps", "weight", "money", "result", "answer", "total", "count", "limit", "start", "end", "level", "temp", "foo",
    "bar", "baz", "q", "p", "r", "t", "u", "v", "w", "g", "h", "i1", "x1", "x2", "a1", "b2", "val", "res", "tmp", "my_number", "big", "small", "old", "new", "rate", "minutes",
)  # fmt: skip
LISTS = (
    "data",
    "values",
    "nums",
    "lst",
    "my_list",
    "scores",
    "prices",
    "ages",
    "list1",
    "arr",
    "points",
    "days",
    "row",
    "things",
)
STRINGS = ("name", "city", "animal", "fruit", "my_word", "title", "w", "txt", "line", "color", "input_text", "string")


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """A program of `programs`' kinds; two of three times its variables have other names."""
    kind, lines, _ = rng.choice(programs.PROGRAMS)(rng)
    code = original = "\n".join(lines)
    if rng.random() < 0.67:
        code = renamed(code, rng, unseen)
    answer = programs.run(code)
    ask = typed(GRAMMAR.say("{ask}", rng, {}, unseen=unseen), rng)
    if ask[-1] not in ".?!" and rng.random() < 0.5:
        ask += rng.choice((":", ".", ""))
    question = f"{ask}\n{code}" if rng.random() < 0.6 else f"{code}\n{ask}"
    if rng.random() < 0.1:
        question = question.replace(code, f"```python\n{code}\n```")
    return Item(kind, original, question_and_answer(question, answer, small_steps.program(code)), answer)


def renamed(code: str, rng: random.Random, unseen: bool = False) -> str:
    """The program with other variables: an equal one, written as Python's `ast` writes it."""
    tree = ast.parse(code)
    assigned = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
    assigned += [node.target for node in tree.body if isinstance(node, ast.For)]
    old = list(dict.fromkeys(target.id for target in assigned if isinstance(target, ast.Name)))
    names = LISTS if "[" in code.split("\n")[0] else STRINGS if '"' in code else VARIABLES
    new = dict[str, str]()
    for name in old:
        while (chosen := part(names, rng, unseen) if rng.random() < 0.85 else nouns.invented(rng)) in new.values():
            pass
        new[name] = chosen
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in new:
            node.id = new[node.id]
    return ast.unparse(tree).replace("'", '"' if rng.random() < 0.7 else "'")
