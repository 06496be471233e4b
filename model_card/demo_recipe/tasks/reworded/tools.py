"""Tool calls in wider wording: the conversations of `tool_use`, begun with other words. Knows nothing of tokens or models."""

import dataclasses
import random
from typing import Any

from model_card.demo_recipe.tasks import tool_use
from model_card.demo_recipe.tasks.item import Item, user
from model_card.demo_recipe.tasks.reworded import sums, talk
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, typed

GRAMMAR = Grammar({
    "look": ("look up", "check", "find", "find out", "tell me", "get", "get me", "i need", "give me", "can you check", "please look up", "can you find", "i want to know", "tell me please", "find out for me", "could you check", "could you look up", "can you get me", "can you look up", "search", "search for", "show me", "please check", "please find", "please get", "i would like to know", "help me find", "let me know", "~retrieve"),
    "get_price": (
        "{look} the price of the {x}", "{look} the price for a {x}", "{look} what the {x} costs", "{look} what a {x} costs", "how much does the {x} cost?", "how much does a {x} cost?", "price of {x}?",
        "how much for the {x}?", "how much for a {x}?", "what do i pay for a {x}?", "what do i pay for the {x}?", "is the {x} expensive?", "what does a {x} cost?", "the price of the {x}?", "{x} price",
        "what would a {x} cost me?", "how expensive is the {x}?", "i would like to buy a {x}. how much is it?", "what is a {x} worth?", "cost of a {x}?", "can i afford the {x}?", "how many euros is the {x}?",
        "how much is the {x}?", "how much is a {x}?", "what's the price of the {x}?", "what's the price of a {x}?", "what is the price for the {x}?", "what is the cost of the {x}?", "what's the cost of a {x}?", "what price is the {x}?", "what price has the {x}?", "what price does the {x} have?", "do you know the price of the {x}?",
        "do you know what the {x} costs?", "can you tell me the price of the {x}?", "can you tell me how much the {x} is?", "could you tell me what a {x} costs?", "tell me how much the {x} is", "tell me how much a {x} costs", "i want to buy the {x}. what does it cost?", "i want a {x}. how much?", "i need a {x}. what is the price?",
        "how much money do i need for the {x}?", "how much do i pay for the {x}?", "how much do i have to pay for a {x}?", "how much must i pay for the {x}?", "how much would the {x} be?", "how much would a {x} cost?", "how much does it cost to buy a {x}?", "how many euros does a {x} cost?", "how many dollars is the {x}?",
        "what does the {x} cost?", "what does the {x} go for?", "what do you want for the {x}?", "what will the {x} cost me?", "what would i pay for a {x}?", "the {x}: how much?", "{x}: price?", "{x}, how much?", "{x} cost?", "price {x}", "price for the {x}", "the cost of the {x}?", "is the {x} cheap?",
        "is a {x} cheap or expensive?", "my friend wants the {x}. what does it cost?", "we need the price of the {x}", "in the shop i saw a {x}. how much is it?", "~what are they asking for the {x}?", "~what sum do i need for a {x}?",
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
        "what's it like in {x} and in {y}?", "what is the weather in {x} and {y}?", "what's the weather in {x} and in {y}?", "what is the weather like in {x} and {y}?", "how is the weather in {x} and in {y}?", "how's the weather in {x} and {y}?", "tell me the weather in {x} and {y}", "tell me the weather in {x} and in {y}",
        "compare the weather of {x} and {y}", "weather {x} and {y}", "weather for {x} and {y}?", "the weather in {x} and in {y}?", "{x} and {y}: weather?", "is it warmer in {x} or in {y}?", "is it colder in {x} than in {y}?", "where is it warmer, in {x} or {y}?", "where is it sunny, {x} or {y}?", "does it rain in {x} and in {y}?",
        "should i go to {x} or to {y}? how is the weather?", "i fly to {x} and then to {y}. how is the weather?", "which has better weather, {x} or {y}?", "~compare the sky over {x} and {y}",
    ),
    "get_age": (
        "{look} the age of {x}", "{look} how old {x} is", "age of {x}?", "{x}'s age is what?", "what is {x}'s age?", "what's the age of {x}?", "how many years old is {x}?", "is {x} old?", "how old is {x} now?", "do you know how old {x} is?",
        "can you tell me {x}'s age?", "how old is our friend {x}?", "i forgot how old {x} is", "{x}, how old?", "~in which year of life is {x}?", "~how many birthdays has {x} had?",
    ),
    "get_age_two": (
        "{look} the ages of {x} and {y}", "ages of {x} and {y}?", "who is older, {x} or {y}?", "is {x} older than {y}?", "how old is {x} and how old is {y}?", "what are {x}'s and {y}'s ages?", "how old are {x} and {y}?", "how old are {x} and {y} now?", "how old is {x}, and how old is {y}?", "what are the ages of {x} and {y}?", "what is the age of {x} and of {y}?", "what is the age of {x} and the age of {y}?", "tell me how old {x} and {y} are", "tell me the ages of {x} and {y}",
        "tell me the age of {x} and {y}", "i need the ages of {x} and {y}", "can you tell me how old {x} and {y} are?", "do you know how old {x} and {y} are?", "{x} and {y}: how old?", "{x} and {y}, how old are they?", "the ages of {x} and {y}?", "who is younger, {x} or {y}?", "is {x} younger than {y}?", "which one is older, {x} or {y}?",
        "are {x} and {y} the same age?", "compare {x}'s and {y}'s age", "my friends are {x} and {y}. how old are they?", "~compare the ages of {x} and {y}",
    ),
    "with_tool": ("", "", "", "", "", "use the tool. ", "use your tool: ", "with the tool, ", "use a tool: ", "please use the tool: ", "by tool: ", "do not guess: ", "check with the tool: ", "~call the tool: "),
    "rounds+": ("add {a} and {b}, then add {c}", "first {a} plus {b}, then {c} more", "what is {a} and {b}, and {c} on top?", "{a} + {b}, then + {c}", "add {a} and {b}. then add {c}", "what is {a} plus {b}, then plus {c}?", "{a} plus {b}, and then {c} more", "first add {a} and {b}, then add {c}", "{a} + {b}, then add {c} to the result", "take {a}, add {b}, then add {c}", "compute {a} + {b} and add {c} to it", "what do you get for {a} plus {b} and then plus {c}?", "start with {a}, add {b}, add {c}", "~sum {a} and {b}; to that add {c}"),
    "roundsx": ("multiply {a} by {b}, then by {c}", "first {a} times {b}, then times {c}", "what is {a} x {b}, and that x {c}?", "multiply {a} by {b}. then multiply by {c}", "multiply {a} and {b} and then multiply the result by {c}", "what is {a} times {b}, then times {c}?", "{a} times {b}, and that times {c}", "first multiply {a} and {b}, then multiply by {c}", "take {a}, multiply by {b}, then by {c}", "compute {a} x {b} and multiply it by {c}", "start with {a}, times {b}, times {c}", "~take {a} {b} times and all of it {c} times"),
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
