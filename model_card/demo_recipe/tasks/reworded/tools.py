"""Tool calls in wider wording: the conversations of `tool_use`, begun with other words. Knows nothing of tokens or models."""

import dataclasses
import random
from typing import Any

from model_card.demo_recipe.tasks import tool_use
from model_card.demo_recipe.tasks.item import Item, user
from model_card.demo_recipe.tasks.reworded import sums, talk
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, typed

GRAMMAR = Grammar({
    "look": ("look up", "check", "find", "find out", "tell me", "get", "get me", "i need", "give me", "can you check", "please look up", "can you find", "i want to know", "~retrieve"),
    "get_price": (
        "{look} the price of the {x}", "{look} the price for a {x}", "{look} what the {x} costs", "{look} what a {x} costs", "how much does the {x} cost?", "how much does a {x} cost?", "price of {x}?",
        "how much for the {x}?", "how much for a {x}?", "what do i pay for a {x}?", "what do i pay for the {x}?", "is the {x} expensive?", "what does a {x} cost?", "the price of the {x}?", "{x} price",
        "what would a {x} cost me?", "how expensive is the {x}?", "i would like to buy a {x}. how much is it?", "what is a {x} worth?", "cost of a {x}?", "can i afford the {x}?", "how many euros is the {x}?",
        "~what are they asking for the {x}?", "~what sum do i need for a {x}?",
    ),
    "get_price_two": (
        "{look} the prices of {x} and {y}", "how much do the {x} and the {y} cost?", "how much are a {x} and a {y}?", "prices of {x} and {y}?", "what do i pay for a {x} and for a {y}?", "what are {x} and {y} worth?",
        "which costs less, the {x} or the {y}?", "is the {x} cheaper than the {y}?", "compare the prices of {x} and {y}", "~what would both the {x} and the {y} set me back?",
    ),
    "get_weather": (
        "{look} the weather in {x}", "weather in {x}?", "what's the weather like in {x}?", "how's the weather in {x} today?", "is it raining in {x}?", "is it sunny in {x}?", "is it cold in {x}?", "how warm is {x} today?",
        "will it rain in {x}?", "do i need a coat in {x}?", "i fly to {x}. how is the weather?", "what is it like outside in {x}?", "{x} weather", "how does the weather look in {x}?", "is the sun out in {x}?",
        "i am in {x}. can i go out without a jacket?", "what about the weather over in {x}?", "should i take a hat to {x}?", "~tell me whether {x} has a fine day", "~forecast for {x}?",
    ),
    "get_weather_two": (
        "{look} the weather in {x} and {y}", "weather in {x} and {y}?", "how is the weather in {x} and {y}?", "is it nicer in {x} or in {y}?", "is it raining in {x} or {y}?", "{x} or {y}: where is the weather better?",
        "what's it like in {x} and in {y}?", "~compare the sky over {x} and {y}",
    ),
    "get_age": (
        "{look} the age of {x}", "{look} how old {x} is", "age of {x}?", "{x}'s age is what?", "what is {x}'s age?", "what's the age of {x}?", "how many years old is {x}?", "is {x} old?", "how old is {x} now?", "do you know how old {x} is?",
        "can you tell me {x}'s age?", "how old is our friend {x}?", "i forgot how old {x} is", "{x}, how old?", "~in which year of life is {x}?", "~how many birthdays has {x} had?",
    ),
    "get_age_two": (
        "{look} the ages of {x} and {y}", "ages of {x} and {y}?", "who is older, {x} or {y}?", "is {x} older than {y}?", "how old is {x} and how old is {y}?", "what are {x}'s and {y}'s ages?", "~compare the ages of {x} and {y}",
    ),
    "with_tool": ("", "", "", "", "", "use the tool. ", "use your tool: ", "with the tool, ", "~call the tool: "),
    "rounds+": ("add {a} and {b}, then add {c}", "first {a} plus {b}, then {c} more", "what is {a} and {b}, and {c} on top?", "{a} + {b}, then + {c}", "~sum {a} and {b}; to that add {c}"),
    "roundsx": ("multiply {a} by {b}, then by {c}", "first {a} times {b}, then times {c}", "what is {a} x {b}, and that x {c}?", "~take {a} {b} times and all of it {c} times"),
})  # fmt: skip


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """A conversation of `tool_use`, whose first words are others."""
    item = tool_use.draw(rng)
    if item.kind == "no call":
        said = talk.draw(rng, unseen=unseen)
        return dataclasses.replace(
            item, key=("no call", item.tools, said.key), turns=said.turns, answer=said.answer, system=said.system
        )
    calls = [call["function"] for call in item.turns[1]["tool_calls"]]
    if item.kind == "rounds":
        (sign, a, b, c), start = _rounds(item.key), "rounds"
        question = GRAMMAR.say(f"{{{start}{sign}}}", rng, {"a": a, "b": b, "c": c}, unseen=unseen)
    elif item.kind == "compute":
        question = _computed(item.key, rng, unseen)
    else:
        values = [value for call in calls for value in call["arguments"].values()]
        start = calls[0]["name"] + ("_two" if len(calls) == 2 else "")
        question = GRAMMAR.say(f"{{{start}}}", rng, dict(zip("xy", values, strict=False)), unseen=unseen)
    if question[-1] not in ".?" and rng.random() < 0.5:
        question += "."
    return dataclasses.replace(item, turns=[user(typed(question, rng)), *item.turns[1:]])


def _computed(key: Any, rng: random.Random, unseen: bool) -> str:
    sign, a, b = key
    text = sums.GRAMMAR.say(f"{{{sign}}}", rng, {"a": a, "b": b}, unseen=unseen)
    before = GRAMMAR.say("{with_tool}", rng, {}, unseen=unseen)
    return f"{before} {text}" if before else text


def _rounds(key: Any) -> tuple[str, int, int, int]:
    sign, a, b, c = key
    return sign, a, b, c
