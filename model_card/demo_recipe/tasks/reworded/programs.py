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
    "code": ("code", "program", "script", "Python", "snippet", "python code", "program here", "Python program", "python script", "piece of code", "bit of code", "example", "thing", "few lines", "code snippet", "small program", "~listing"),
    "print": ("print", "print", "output", "show", "display", "write", "give", "return", "produce", "put out", "say", "~emit"),
    "ask": (
        "what does the {code} {print}?", "what does this {code} {print}?", "what will the {code} {print}?", "what is the result?", "what is the output?", "what do i see?",
        "what's the output of this {code}?", "what is printed by this {code}?", "run this", "run this {code} for me", "what happens when i run this?", "output?", "result?",
        "can you run this?", "what do i get when i run this {code}?", "which value does it {print}?", "tell me what this {code} does", "tell me the output", "and the output is?",
        "please tell me what it prints", "what comes out?", "what would Python {print}?", "what number comes out?", "what is the value at the end?", "execute this {code}",
        "i have this {code}. what does it {print}?", "look at this {code}. what does it {print}?", "go through this {code} and say what it prints", "guess the output",
        "can you say what this prints?", "what will be printed?", "what should it {print}?", "find the output", "what is the answer of this {code}?", "step through this {code}",
        "what does it {print}?", "what does it {print} in the end?", "what does that {print}?", "what does the following {code} {print}?", "what is the output of the following {code}?", "what is the output of this {code}?", "what is the result of this {code}?", "what's the result?", "what's the output?",
        "what is printed?", "what is printed here?", "what is printed at the end?", "what gets printed?", "what will it {print}?", "what will this {code} {print}?", "what will be the output?", "what would this {code} {print}?", "what would the output be?", "what would be printed?", "what should i see?",
        "what does Python say?", "what does Python {print} here?", "what does my {code} {print}?", "what is my {code} going to {print}?", "what appears on the screen?", "what is shown?", "what is shown on the screen?", "what do we get?", "what do you get?", "what do i get?",
        "which output do i get?", "which number is printed?", "which value is printed?", "what value comes out?", "what is the final output?", "what is the last line printed?", "please run this {code}", "please run it", "run it", "run the {code}", "run the following {code}", "can you run this {code}?",
        "could you run this {code} for me?", "could you tell me the output?", "can you tell me what this prints?", "tell me what it prints", "tell me what is printed", "tell me what this {code} prints", "tell me the result of this {code}", "say what it prints", "say what comes out", "give me the output", "give the output",
        "show me the output", "show the output of this {code}", "write the output", "write down what it prints", "output please", "the output?", "the result?", "execute this", "execute it and tell me the output", "trace this {code}", "read this {code} and tell me the output", "read the {code} and say what it prints",
        "follow this {code}. what does it {print}?", "work out what this prints", "work out the output", "figure out the output", "find out what it prints", "find what this {code} prints", "help me: what does it {print}?", "i don't understand this {code}. what does it {print}?", "i wrote this {code}. what will it {print}?",
        "my teacher gave me this {code}. what is the output?", "here is a {code}. what does it {print}?", "here is some {code}. what is printed?", "here is Python. what comes out?", "given this {code}, what is printed?", "if i run this {code}, what do i see?", "if i run this, what is printed?", "when this runs, what is printed?",
        "when i run this {code}, what comes out?", "suppose i run this. what is the output?", "this {code} prints what?", "it prints what?", "prints?", "prints what?", "so what does it {print}?", "and what is printed?", "do you know what this prints?", "what happens here?", "what happens in this {code}?", "what is the answer?",
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
