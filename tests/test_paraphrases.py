"""The questions in nobody's generator's words: right answers in the judge's form, no sentence that a generator writes,
and what their evaluation counts.
"""

import ast
import json
import random
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from documents import ROOT
from transformers import AutoModelForCausalLM, AutoProcessor

from model_card.demo_recipe.batches import chat, tools
from model_card.demo_recipe.tasks import programs, talk, words
from model_card.demo_recipe.tasks.data import DRAW, REWORDED
from model_card.demo_recipe.tasks.item import Item
from model_card.demo_recipe.tasks.judge import BY_NUMBER, correct
from model_card.demo_recipe.tasks.reworded import nouns
from model_card.evals import paraphrases
from model_card.evals.scores import summary, valid_calls
from modeling_small4 import demo_checkpoint
from tests.chat_options import PROMPT

torch.set_num_threads(1)
ITEMS = paraphrases.items()
COUNTS = {
    "word_problem": 60, "arithmetic": 30, "puzzle": 40, "retrieval": 25, "program": 20, "tools": 15, "talk": 10,
}  # fmt: skip
SPELLED = {"four": "4", "five": "5", "seven": "7", "twenty": "20", "three": "3", "triple": "3", "double": "2"}
PLACES = {"start": 0, "last": -1, "final": -1, "end": -1, "2": 1, "3rd": 2, "third": 2, "fourth": 3}
SHORTEST = 5  # words of a sentence that only one person would write
DRAWS = 1500


def question(item: dict[str, Any]) -> str:
    """The first thing that the user says."""
    return next(message["content"] for message in item["messages"] if message["role"] == "user")


def stored(*keys: str) -> dict[str, Any]:
    found = json.loads((ROOT / "model_card/results/paraphrases.json").read_text("utf-8"))
    for key in keys:
        found = found[key]
    return found


NAMES = {
    "stories": "word_problem", "sums in words": "arithmetic", "puzzles": "puzzle", "look-ups": "retrieval",
    "programs": "program", "tools": "tools", "small talk": "talk",
}  # fmt: skip


def test_the_guide_tells_the_stored_figures() -> None:
    text = " ".join((ROOT / "model_card/guides/demo.md").read_text("utf-8").split())
    told = dict(re.findall(r"([a-z][a-z -]*) (\d+ of \d+)[,.( ]", text.partition("(`none`")[2].partition("- ")[0]))

    def right(score: dict[str, Any]) -> str:
        return f"{round(score['accuracy'] * score['rows'])} of {score['rows']}"

    assert told == {name: right(stored("tasks", task, "high")) for name, task in NAMES.items()}
    assert f"it answered {right(stored('all', 'high'))} questions right" in text
    assert f"(`none`: {right(stored('all', 'none')).split()[0]})" in text


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_holds_two_hundred_different_questions_of_all_tasks_but_pictures() -> None:
    assert Counter(item["task"] for item in ITEMS) == COUNTS
    assert len({question(item).lower() for item in ITEMS}) == 200
    for item in ITEMS:
        assert set(item) - {"tools", "check"} == {"task", "kind", "messages", "answer"}, item
        assert item["messages"][-1]["role"] in ("user", "tool")
        assert ("check" in item) == (item["task"] in ("word_problem", "arithmetic", "puzzle", "program")), item
        assert ("tools" in item) == (item["task"] == "tools"), item


@pytest.mark.parametrize("mode", ["none", "high"])
def test_answers_are_in_the_judges_form(mode: str) -> None:
    rows = [paraphrases.row(item, mode) for item in ITEMS]
    for row in rows:
        right = chat(row)[-1]
        assert correct(row, right), row
        assert not correct(row, {"content": "I cannot say", "tool_calls": []})
        others = [
            chat(other)[-1] for other in rows if other["task"] == row["task"] and other["answer"] != row["answer"]
        ]
        assert not any(correct(row, other) for other in others), row
        if row["task"] in BY_NUMBER:
            assert str(int(row["answer"])) == row["answer"]
        if right.get("tool_calls"):
            assert valid_calls(row, right), row


@pytest.mark.parametrize("item", [item for item in ITEMS if "check" in item], ids=question)
def test_answers_can_be_worked_out_from_the_question(item: dict[str, Any]) -> None:
    check, asked = item["check"], question(item)
    if item["task"] == "program":
        assert check in asked
        assert programs.run(check) == item["answer"]
        return
    assert str(eval(check)) == item["answer"]
    told = asked.lower().replace("\n", " ")
    numbers = [*re.findall(r"\d+", told), *(number for word, number in SPELLED.items() if word in told)]
    for literal in (node.value for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Constant)):
        if isinstance(literal, int) and item["kind"] in ("letter of a word", "pick from a list"):
            places = {PLACES[word] for word in re.findall(r"\w+", told) if word in PLACES}
            assert {literal, -literal} & places, literal
        elif literal != ", ":
            assert str(literal) in numbers or str(literal) in told, literal


def test_what_is_looked_up_is_told_once_and_called_arguments_are_named() -> None:
    for item in ITEMS:
        if item["task"] == "retrieval":
            assert re.findall(r"\d+", question(item)).count(item["answer"]) == 1, item
        elif isinstance(item["answer"], list):
            for call in item["answer"]:
                for value in call["arguments"].values():
                    assert set(re.findall(r"\w+", str(value))) <= set(re.findall(r"\w+", question(item))), item


def test_small_talk_is_answered_as_the_demo_answers_it() -> None:
    known = {answer for _, answer, _ in talk.TOPICS.values()}
    for item in ITEMS:
        if item["task"] == "talk" and len(item["messages"]) == 1:
            assert item["answer"] == talk.TOPICS[item["kind"]][1]
        elif item["task"] == "talk":
            assert item["answer"] not in known
            assert item["kind"] in ("name from the system prompt", "answer as the system prompt says")


# -- no generator's words ----------------------------------------------------------------------------------------------

LISTS = (words.NAMES, words.THINGS, words.OBJECTS, words.CITIES, words.WORDS, nouns.NAMES, nouns.THINGS)
KNOWN = {word.lower() for words in LISTS for word in words}


def masked(text: str) -> Iterator[str]:
    """The whole text and each longer sentence, with numbers and the lists' words taken out."""
    plain = re.sub(r"\d+", "#", text.lower().replace("\u2212", "-"))
    plain = re.sub(r"[a-z]+", lambda word: "@" if word[0] in KNOWN else word[0], plain)
    yield " ".join(re.findall(r"[\w#@']+", plain))
    for sentence in re.split(r"[.?!;:\n]", plain):
        said = re.findall(r"[\w#@']+", sentence)
        if len(said) >= SHORTEST and any(word.isalpha() for word in said):
            yield " ".join(said)


def test_no_sentence_is_a_generators() -> None:
    rng, generated = random.Random(7), set[str]()
    wider = [partial(draw, unseen=unseen) for draw in REWORDED.values() for unseen in (False, True)]
    draws: list[Callable[..., Item]] = [*DRAW.values(), *wider]
    for draw in draws:
        for i in range(DRAWS):
            for turn in draw(rng, easy=i % 2 == 0).turns:
                if turn["role"] == "user":
                    generated.update(masked(turn["content"]))
    assert len(generated) > 5000
    assert set(masked("Adam had 5 coins and lost 3 of them. How many coins does Adam still have?")) <= generated
    for item in ITEMS:
        text = question(item)
        said = text.replace(item["check"], "\n") if item["task"] == "program" else text
        assert not generated & set(masked(said)), text


def test_what_masks_compares_is_wording_alone() -> None:
    one, other = "Emma has 3 apples and gets 12 more.", "Felix has 44 coins and gets 7 more!"
    assert set(masked(one)) == set(masked(other))
    assert not set(masked(one)) & set(masked("Emma has 3 apples and then she gets 12 more."))


# -- the evaluation ----------------------------------------------------------------------------------------------------


def said(rows: Sequence[dict[str, Any]], right: Sequence[bool]) -> list[dict[str, Any]]:
    """Answers as `measured_answers` gives them, right where it is asked for."""
    tokens = {"prompt_tokens": 9, "thinking_tokens": 4, "new_tokens": 6, "seconds": 0.5}
    out = []
    for row, good in zip(rows, right, strict=True):
        message = chat(row)[-1] if good else {"content": "no", "tool_calls": []}
        out.append({"message": message, "content": message["content"]} | tokens)
    return out


def test_scores_are_counted_by_task_kind_and_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, verdicts = random.Random(3), dict[str, list[bool]]()

    def answers(model: object, processor: object, rows: Sequence[dict[str, Any]], batch: int, mode: str) -> object:
        assert {row["mode"] for row in rows} == {mode}
        verdicts[mode] = [rng.random() < 0.6 for _ in rows]
        return said(rows, verdicts[mode])

    monkeypatch.setattr(paraphrases, "measured_answers", answers)
    found = paraphrases.measured(None, None, Namespace(batch=50, show=True))  # type: ignore[arg-type]
    for mode, right in verdicts.items():
        assert found["all"][mode]["accuracy"] == pytest.approx(sum(right) / 200)
        for task in COUNTS:
            mine = [good for good, item in zip(right, ITEMS, strict=True) if item["task"] == task]
            assert found["tasks"][task][mode]["accuracy"] == pytest.approx(sum(mine) / len(mine), abs=1e-4)
            kinds = found["kinds"][task].values()
            counted = sum(kind[mode]["accuracy"] * kind[mode]["rows"] for kind in kinds)
            assert counted == pytest.approx(sum(mine), abs=0.01)
    shown = capsys.readouterr().err
    assert shown.count("\n  right ") == sum(not good for right in verdicts.values() for good in right)


def test_the_stored_result_is_of_this_file_and_these_weights() -> None:
    for mode in ("none", "high"):
        assert stored("all", mode)["rows"] == 200
        assert {task: score[mode]["rows"] for task, score in stored("tasks").items()} == COUNTS
    for task in COUNTS:
        rows = {kind: score["high"]["rows"] for kind, score in stored("kinds", task).items()}
        assert rows == Counter(item["kind"] for item in ITEMS if item["task"] == task)


def test_the_guide_says_what_was_counted() -> None:
    text = " ".join((ROOT / "model_card/guides/demo.md").read_text("utf-8").split())

    def right(score: dict[str, Any]) -> int:
        return round(score["accuracy"] * score["rows"])

    high = {task: f"{right(score['high'])} of {score['high']['rows']}" for task, score in stored("tasks").items()}
    both = stored("all")
    assert f"{right(both['high'])} of 200 questions" in text
    assert f"(`none`: {right(both['none'])})" in text
    assert (
        f"stories {high['word_problem']}, sums in words {high['arithmetic']}, puzzles {high['puzzle']}, look-ups "
        f"{high['retrieval']}, programs {high['program']}, tools {high['tools']}, small talk {high['talk']}"
    ) in text


@pytest.mark.parametrize("mode", ["none", "high"])
def test_rows_are_asked_as_a_user_would(mode: str) -> None:
    """Of each task one row, through the processor's own template, beside the batch."""
    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    firsts = {item["task"]: item for item in reversed(ITEMS)}.values()
    rows = [paraphrases.row(item, mode) for item in firsts]
    given = paraphrases.measured_answers(model, processor, rows, 7, mode, 8)
    for row, item, one in zip(rows, firsts, given, strict=True):
        inputs = processor.apply_chat_template(item["messages"], tools=tools(row), reasoning_mode=mode, **PROMPT)
        ids = model.generate(**inputs, reasoning_mode=mode, max_thinking_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert one["message"] == processor.parse_response(ids.tolist())


@pytest.mark.slow
def test_accuracy_is_the_stored_one() -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint()).eval()
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    rows = [paraphrases.row(item, "high") for item in ITEMS]
    low, high = stored("all", "high")["interval_95"]
    assert (
        low
        <= summary(rows, paraphrases.measured_answers(model, processor, rows, len(rows), "high"))["accuracy"]
        <= high
    )
