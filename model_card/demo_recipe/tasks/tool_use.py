"""Tool calls for the demo checkpoint: schemas, questions that need them, calls, results, and answers from results.

One call, two calls in a turn, a second call that needs the first one's result, and questions that need no tool although
some are offered. Knows nothing of tokens or models.
"""

import json
import random
from typing import Any

from model_card.demo_recipe.tasks import talk
from model_card.demo_recipe.tasks.arithmetic import SIGNS
from model_card.demo_recipe.tasks.item import Item, assistant, user, vary
from model_card.demo_recipe.tasks.puzzles import a_word
from model_card.demo_recipe.tasks.words import CITIES, NAMES, OBJECTS, WORDS

OPERATIONS = {"+": "add", "-": "subtract", "x": "multiply"}
# Lookup tool -> description, argument, its values, question, question about two, answer, possible results.
LOOKUPS: dict[str, dict[str, Any]] = {
    "get_price": {
        "about": "Looks up the price of an item.", "argument": "item", "values": (*OBJECTS, *WORDS),
        "one": ("What does the {x} cost?", "What is the price of the {x}?", "How much is the {x}?",
        "Look up the price of the {x}."),
        "two": ("What do the {x} and the {y} cost?", "What are the prices of the {x} and the {y}?"),
        "answer": "the {x} costs {r}", "results": tuple(map(str, range(2, 400))),
    },
    "get_weather": {
        "about": "Says the weather in a city.", "argument": "city", "values": CITIES,
        "one": ("What is the weather in {x}?", "How is the weather in {x}?", "Tell me the weather in {x}."),
        "two": ("What is the weather in {x} and in {y}?", "Compare the weather in {x} and {y}."),
        "answer": "the weather in {x} is {r}",
        "results": ("sunny", "rainy", "cloudy", "windy", "cold", "warm", "foggy", "hot"),
    },
    "get_age": {
        "about": "Looks up the age of a person.", "argument": "name", "values": NAMES,
        "one": ("How old is {x}?", "What is the age of {x}?", "Look up the age of {x}."),
        "two": ("How old are {x} and {y}?", "What are the ages of {x} and {y}?"),
        "answer": "{x} is {r} years old", "results": tuple(map(str, range(2, 100))),
    },
}  # fmt: skip


def draw(rng: random.Random, easy: bool = False, kind: str | None = None) -> Item:
    """One of `KINDS`; in training rows a conversation runs to its end, so that every turn of it is learned."""
    kind = kind or rng.choices(list(KINDS), weights=(4, 3, 2, 1))[0]
    return KINDS[kind](rng)


def draw_hard(rng: random.Random, easy: bool = False) -> Item:
    """One or two calls of a lookup about words of any kind, made-up ones too, so that arguments must be copied piece by
    piece.
    """
    name = rng.choice(list(LOOKUPS))
    x, y = a_word(rng), a_word(rng)
    words = [x] if x == y or rng.random() < 0.5 else [x, y]
    if LOOKUPS[name]["values"] in (CITIES, NAMES):
        words = [word.capitalize() for word in words]
    return (_one_lookup if len(words) == 1 else _two_lookups)(name, words, rng)


def cut(item: Item, rng: random.Random) -> Item:
    """The same conversation up to one of its assistant turns, which is what is judged then."""
    ends = [i for i, turn in enumerate(item.turns) if turn["role"] == "assistant"]
    end = rng.choice(ends)
    last = item.turns[end]
    if not last["tool_calls"]:
        kind = item.kind if item.kind == "no call" else "answer"
        return Item(kind, item.key, item.turns[: end + 1], last["content"], item.system, item.tools)
    calls = [call["function"] for call in last["tool_calls"]]
    kind = "two calls" if len(calls) == 2 else "second call" if end > 1 else "one call"
    return Item(kind, item.key, item.turns[: end + 1], json.dumps(calls), item.system, item.tools)


def call(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    identity = f"call{number:05d}"
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def schema(name: str, about: str, arguments: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """A function's JSON schema; `arguments` maps a name to its type and description."""
    properties = {key: {"type": kind, "description": text} for key, (kind, text) in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def lookup_schema(name: str) -> dict[str, Any]:
    tool = LOOKUPS[name]
    return schema(name, tool["about"], {tool["argument"]: ("string", f"The {tool['argument']}.")})


def calculator_schema() -> dict[str, Any]:
    return schema("calculator", "Computes an expression.", {"expression": ("string", "The expression.")})


def operation_schema(name: str) -> dict[str, Any]:
    about = {"add": "Adds two numbers.", "subtract": "Subtracts two numbers.", "multiply": "Multiplies two numbers."}
    return schema(name, about[name], {"a": ("integer", "One number."), "b": ("integer", "The other.")})


def _offer(needed: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """The needed tools among up to one other, in random order."""
    names = {tool["function"]["name"] for tool in needed}
    others = [lookup_schema(name) for name in LOOKUPS if name not in names]
    if not names & {"add", "subtract", "multiply", "calculator"}:
        others.append(calculator_schema())
    tools = needed + rng.sample(others, rng.choice((0, 1)))
    rng.shuffle(tools)
    return tools


def _finish(
    kind: str,
    key: object,
    question: str,
    rounds: list[tuple[list[Any], list[str]]],
    answer: str,
    tools: list[Any],
    rng: random.Random,
) -> Item:
    turns = [user(vary(question, rng))]
    for calls, results in rounds:
        if len(calls) == 2 and calls[0]["id"] == calls[1]["id"]:  # drawn alike
            calls[1]["id"] = f"call{(int(calls[0]['id'][4:]) + 1) % 100_000:05d}"
        names = "; ".join(_spelled(one["function"]) for one in calls)
        turns.append(assistant("", f"I call {names}", calls))
        for one, result in zip(calls, results, strict=True):
            turns.append({"role": "tool", "content": result, "tool_call_id": one["id"]})
    turns.append(assistant(answer, f"I have {' and '.join(rounds[-1][1])}"))
    return Item(kind, key, turns, answer, tools=tools)


def _spelled(function: dict[str, Any]) -> str:
    return f"{function['name']}: {', '.join(str(value) for value in function['arguments'].values())}"


def _lookup(rng: random.Random) -> Item:
    name = rng.choice(list(LOOKUPS))
    return _one_lookup(name, [rng.choice(LOOKUPS[name]["values"])], rng)


def _one_lookup(name: str, words: list[str], rng: random.Random) -> Item:
    tool, x = LOOKUPS[name], words[0]
    result = rng.choice(tool["results"])
    question = rng.choice(tool["one"]).format(x=x)
    answer = _sentence(tool["answer"].format(x=x, r=result))
    rounds = [([call(name, {tool["argument"]: x}, rng.randrange(10**5))], [result])]
    return _finish("lookup", (name, x), question, rounds, answer, _offer([lookup_schema(name)], rng), rng)


def _two_calls(rng: random.Random) -> Item:
    if rng.random() < 0.3:
        return _two_rounds(rng)
    name = rng.choice(list(LOOKUPS))
    return _two_lookups(name, rng.sample(LOOKUPS[name]["values"], 2), rng)


def _two_lookups(name: str, words: list[str], rng: random.Random) -> Item:
    tool, (x, y) = LOOKUPS[name], words
    results = [rng.choice(tool["results"]) for _ in range(2)]
    question = rng.choice(tool["two"]).format(x=x, y=y)
    parts = [tool["answer"].format(x=thing, r=result) for thing, result in zip((x, y), results, strict=True)]
    calls = [call(name, {tool["argument"]: thing}, rng.randrange(10**5)) for thing in (x, y)]
    answer = _sentence(" and ".join(parts))
    return _finish(
        "two", (name, *sorted((x, y))), question, [(calls, results)], answer, _offer([lookup_schema(name)], rng), rng
    )


def _compute(rng: random.Random) -> Item:
    a, b = (rng.randrange(10 ** rng.randint(1, 5)) for _ in range(2))
    sign = rng.choice("+-x")
    written = rng.choice(SIGNS[sign])
    if not written.startswith(" ") and rng.random() < 0.6:
        written = f" {written} "
    question = rng.choice(("What is {e}?", "Compute {e}.", "How much is {e}?", "Calculate {e}.", "{e}")).format(
        e=f"{a}{written}{b}"
    )
    result = str(a + b if sign == "+" else a - b if sign == "-" else a * b)
    if rng.random() < 0.6:
        expression = f"{a} {'*' if sign == 'x' else sign} {b}"
        made, tools = call("calculator", {"expression": expression}, rng.randrange(10**5)), [calculator_schema()]
    else:
        name = OPERATIONS[sign]
        made, tools = call(name, {"a": a, "b": b}, rng.randrange(10**5)), [operation_schema(name)]
    return _finish("compute", (sign, a, b), question, [([made], [result])], result, _offer(tools, rng), rng)


def _two_rounds(rng: random.Random) -> Item:
    """A product or sum, and what that gives with a third number: the second call needs the first one's result."""
    sign = rng.choice("+x")
    name, word = OPERATIONS[sign], "times" if sign == "x" else "plus"
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    first = a * b if sign == "x" else a + b
    second = first * c if sign == "x" else first + c
    question = f"What is {a} {word} {b}, and that {word} {c}?"
    rounds = [
        ([call(name, {"a": a, "b": b}, rng.randrange(10**5))], [str(first)]),
        ([call(name, {"a": first, "b": c}, rng.randrange(10**5))], [str(second)]),
    ]
    return _finish("rounds", (sign, a, b, c), question, rounds, str(second), _offer([operation_schema(name)], rng), rng)


def _no_call(rng: random.Random) -> Item:
    item = talk.draw(rng)
    tools = [lookup_schema(rng.choice(list(LOOKUPS)))] if rng.random() < 0.5 else [calculator_schema()]
    return Item("no call", ("no call", tools, item.key), item.turns, item.answer, item.system, tools)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


KINDS = {"lookup": _lookup, "compute": _compute, "two": _two_calls, "no call": _no_call}
