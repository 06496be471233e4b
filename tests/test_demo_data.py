"""The demo checkpoint's data: right thoughts and answers, a clean split, a judge that accepts nothing else."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_card.demo_recipe.batches import chat
from model_card.demo_recipe.tasks import arithmetic, data, puzzles, scenes, small_steps, tool_use
from model_card.demo_recipe.tasks.arithmetic import Problem
from model_card.demo_recipe.tasks.data import DRAW, TASKS, dataset, rows
from model_card.demo_recipe.tasks.item import Item, is_held_out
from model_card.demo_recipe.tasks.judge import correct

numbers = st.integers(0, 9999)
products = st.one_of(st.tuples(numbers, st.integers(0, 9)), st.tuples(st.integers(0, 99), st.integers(0, 99)))
problems = st.one_of(
    st.builds(Problem, numbers, st.sampled_from("+-"), numbers),
    products.map(lambda pair: Problem(pair[0], "x", pair[1])),
)


def items(task: str, count: int, seed: int = 4) -> list[Item]:
    rng = random.Random(seed)
    return [DRAW[task](rng) for _ in range(count)]


def thought(item: Item) -> list[str]:
    return item.turns[-1]["reasoning_content"].split("\n")


# -- thoughts and answers
# --------------------------------------------------------------------------------------------------


@given(problems)
def test_every_line_of_a_computation_is_true_and_leads_to_the_answer(problem: Problem) -> None:
    lines = arithmetic.think(problem).splitlines()
    assert lines[0] in (str(problem), f"{problem.right}{problem.sign}{problem.left}")
    check_equations(lines[1:])
    assert int(lines[-1]) == abs(problem.answer)
    assert problem.answer == eval(str(problem).replace("x", "*"))


def check_equations(lines: list[str]) -> None:
    for line in lines:
        compared = re.fullmatch(r"(\d)([<>=])(\d)", line)
        if compared:
            a, order, b = compared.groups()
            assert {"<": a < b, ">": a > b, "=": a == b}[order]
        elif "=" in line:
            left, right = line.replace("x", "*").split("=")
            assert eval(left) == int(right)


def test_stories_end_in_their_answer_and_use_every_number_told() -> None:
    for item in items("word_problem", 400):
        lines = thought(item)
        check_equations([line for line in lines if not re.fullmatch(r"[\dx+-]+", line)])
        assert int(lines[-1]) == int(item.answer) >= 0
        told = re.findall(r"\d+", item.turns[0]["content"])
        for number in told:
            assert any(number in re.split("[x+-]", line) for line in lines if re.fullmatch(r"\d+[x+-]\d+", line))


def test_programs_print_what_the_thought_arrives_at() -> None:
    for item in items("program", 600):
        lines = item.turns[0]["content"].split("\n")
        code = "\n".join(line for line in lines if not line.endswith("?"))
        assert printed(code) == item.answer
        for line in thought(item):
            for step in re.findall(r"(?:^|=)(\d+[-+x]\d+)=(\d+)", line):
                assert eval(step[0].replace("x", "*")) == int(step[1])


def test_programs_in_small_steps_arrive_at_what_is_printed_over_true_equations() -> None:
    for item in items("program", 1500):
        thought = small_steps.program(str(item.key))
        last = thought.split("\n")[-1]
        if item.kind in ("variables", "if and else", "loop"):
            assert last.split("=")[-1] == item.answer
        for step in re.findall(r"=(\d+[-+x]\d+)=(\d+)", thought):
            assert eval(step[0].replace("x", "*")) == int(step[1])
        for a, sign, b, said in re.findall(r": (\d+)([<>])(\d+): (yes|no)", thought):
            assert (int(a) < int(b) if sign == "<" else int(a) > int(b)) == (said == "yes")


def test_puzzles_in_small_steps_arrive_at_their_answer() -> None:
    for item in items("puzzle", 1500):
        thought = small_steps.puzzle(item.key)  # type: ignore[arg-type]
        if thought is None:
            assert item.kind in ("length of a word", "reverse a list", "pick from a list", "length of a list")
            continue
        first, *_, last = [*thought.split("\n"), thought.split("\n")[-1]]
        if item.kind == "reverse a word":
            assert re.sub(r"[\d ]", "", first) == quoted(item.turns[0]["content"])
            assert re.sub(r"\d", "", last) == item.answer
        elif item.kind == "sort numbers":
            *picks, rest = re.findall(r"^(\d+): (.*)$", thought, re.MULTILINE)
            assert ", ".join([*(pick for pick, _ in picks), rest[0], rest[1]]) == item.answer
        else:
            assert last.endswith(item.answer)
        for a, b, better in re.findall(r"(\d+),(\d+):(\d+)", thought):
            assert better in (a, b)


def test_held_out_tool_rows_keep_the_system_prompt_they_are_asked_under() -> None:
    asked = [row for row in dataset("held_out", 300, 5, tasks={"tools": 1.0}) if row["kind"] == "no call"]
    under = [row for row in asked if row["messages"][0]["role"] == "system"]
    assert asked
    assert under
    named = [row for row in asked if "name is" in row["answer"]]
    assert all(row["messages"][0]["role"] == "system" for row in named)


def test_small_steps_change_thoughts_alone() -> None:
    draw = {"tasks": {"puzzle": 0.5, "program": 0.5}, "modes": {"high": 1.0}}
    plain, small = rows("train", 3, **draw), rows("train", 3, **draw, in_small_steps=True)  # type: ignore[arg-type]
    changed = 0
    for _ in range(60):
        (*before, answer), (*before_small, answer_small) = next(plain)["messages"], next(small)["messages"]
        assert before == before_small
        changed += answer["reasoning_content"] != answer_small["reasoning_content"]
        assert answer | {"reasoning_content": ""} == answer_small | {"reasoning_content": ""}
    assert changed > 20


def test_stories_of_two_steps_are_planned_where_others_are_worded_widely() -> None:
    draw = {"tasks": {"word_problem": 1.0}, "modes": {"high": 1.0}, "in_small_steps": True, "reworded": 1e-9}
    source, planned = rows("train", 3, **draw), 0  # type: ignore[arg-type]
    for _ in range(60):
        row = next(source)
        *plan, _ = row["messages"][-1]["reasoning_content"].partition("\n")
        if row["kind"] == "two steps":
            assert eval(plan[0].replace("x", "*")) == int(row["answer"])
            planned += 1
    assert planned > 10


def printed(code: str) -> str:
    lines: list[str] = []
    exec(code, {"print": lambda value: lines.append(str(value))})
    return "\n".join(lines)


NAIVE: dict[str, Callable[[str], str]] = {
    "reverse a word": lambda q: " ".join(reversed(quoted(q))),
    "length of a word": lambda q: str(len(quoted(q))),
    "reverse a list": lambda q: ", ".join(reversed(listed(q))),
    "length of a list": lambda q: str(len(listed(q))),
    "largest or smallest": lambda q: str((min if re.search("small|mini|low", q) else max)(integers(q))),
    "sort numbers": lambda q: ", ".join(map(str, sorted(integers(q), reverse="largest to" in q))),
}


def quoted(question: str) -> str:
    return re.findall(r'"(\w+)"', question)[0]


def listed(question: str) -> list[str]:
    """The words of the list: every object word, in order."""
    return [word for word in re.findall(r"\w+", question) if word in puzzles.OBJECTS]


def integers(question: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", question)]


def test_puzzles_against_naive_answers() -> None:
    seen = set()
    for item in items("puzzle", 1500):
        question = item.turns[0]["content"]
        if item.kind in NAIVE:
            assert item.answer == NAIVE[item.kind](question), question
        elif item.kind == "count a letter":
            (letter,) = re.findall(r"(?<![\w\"])([a-z])(?![\w\"])", question)
            assert int(item.answer) == quoted(question).count(letter)
        else:
            things = listed(question) if item.kind == "pick from a list" else list(quoted(question))
            place = next((i for i, name in enumerate(puzzles.ORDINALS) if name in question), -1)
            assert item.answer == things[place]
        seen.add(item.kind)
    assert set(NAIVE) | {"count a letter", "pick from a list", "letter of a word"} == seen


def test_a_fact_is_told_once_and_asked_for() -> None:
    for item in items("retrieval", 50):
        text, question = item.turns[0]["content"].rsplit("\n", 1)
        key = re.search(r"(\w+)'s code|code of the (\w+)", question)
        assert key
        told = re.findall(rf"{key.group(0)} is (\d+)", text, re.IGNORECASE)
        assert told == [item.answer]


@pytest.mark.parametrize("task", ["tools", "hard tools"])
def test_calls_fit_the_schemas_and_answers_the_results(task: str) -> None:
    for whole in items(task, 300):
        item = tool_use.cut(whole, random.Random(repr(whole.key)))
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in item.tools}
        for turn in item.turns:
            for call in turn.get("tool_calls") or []:
                parameters = schemas[call["function"]["name"]]
                assert list(call["function"]["arguments"]) == parameters["required"]
        if item.kind == "answer":
            for turn in item.turns[-3:-1]:
                assert turn["role"] != "tool" or turn["content"] in item.answer or item.answer.isdigit()
        elif item.kind != "no call":
            assert json.loads(item.answer) == [call["function"] for call in item.turns[-1]["tool_calls"]]


def test_two_calls_of_a_message_have_ids_of_their_own() -> None:
    calls = [tool_use.call("add", {"a": 1, "b": b}, 99_999) for b in (2, 3)]
    item = tool_use._finish("two calls", 0, "What?", [(calls, ["3", "4"])], "7", [], random.Random(0))
    _, asked, *answers, _ = item.turns
    ids = [one["id"] for one in asked["tool_calls"]]
    assert ids == ["call99999", "call00000"] == [turn["tool_call_id"] for turn in answers]


def test_hard_calls_ask_for_the_words_of_the_question() -> None:
    for item in items("hard tools", 300):
        question, answer = item.turns[0]["content"].lower(), item.turns[1]
        asked = [word for call in answer["tool_calls"] for word in call["function"]["arguments"].values()]
        assert len(asked) == (2 if item.kind == "two" else 1)
        assert all(word.lower() in question for word in asked)


@pytest.mark.parametrize("draw", [scenes.one_shape, scenes.several_shapes, scenes.drawn_digit])
def test_a_scene_is_inside_its_canvas_and_visible(draw: Callable[[random.Random], scenes.Scene]) -> None:
    rng = random.Random(2)
    for _ in range(100):
        scene = draw(rng)
        image, drawn = scenes.render(scene), scenes.mask(scene)
        assert image.size == drawn.size == (scene.width, scene.height)
        left, top, right, bottom = drawn.getbbox() or (0, 0, 0, 0)
        assert left > 0 or top > 0 or right < scene.width or bottom < scene.height
        for figure in scene.figures:
            middle = image.getpixel((int(figure.centre[0]), int(figure.centre[1])))
            assert max(abs(a - b) for a, b in zip(middle, scene.paint, strict=True)) <= 2


def test_several_shapes_do_not_touch() -> None:
    rng = random.Random(3)
    for _ in range(200):
        figures = scenes.several_shapes(rng).figures
        for i, one in enumerate(figures):
            for other in figures[i + 1 :]:
                assert abs(complex(*one.centre) - complex(*other.centre)) > one.radius + other.radius


# -- the split ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_no_problem_is_on_both_sides(task: str) -> None:
    sides: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for split in sides:
        for seed in (0, 1):
            count = 40 if task == "picture" else 150
            for row in dataset(split, count, seed, tasks={task: 1.0}, modes={"high": 1.0}):
                sides[split].add(identity(row))
    assert not sides["train"] & sides["held_out"]


def identity(row: dict[str, Any]) -> str:
    """What is asked, without phrasing where that can be read off a row: pictures, the first thought, or the question
    itself.
    """
    if row["images"]:
        return "".join(image.tobytes().hex() for image in row["images"])
    said = [message for message in row["messages"] if message["role"] == "assistant"]
    if row["task"] in ("arithmetic", "word_problem"):
        return said[0]["reasoning_content"]
    asked = " ".join(m["content"].lower().rstrip(".?") for m in row["messages"] if m["role"] in ("system", "user"))
    return asked + str(said[0]["content"]) + row["tools"]


@given(problems)
def test_the_order_of_numbers_does_not_change_sides(problem: Problem) -> None:
    turned = Problem(problem.right, problem.sign, problem.left)
    assert is_held_out(arithmetic.key(problem)) == is_held_out(arithmetic.key(turned))


def test_the_same_seed_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same vocabulary, as `test_demo.py` finds: that of the folder."""
    first = list(dataset("train", 60, 3))
    assert first != list(dataset("train", 60, 4))
    monkeypatch.setattr(data, "PIECE", 7)
    assert first == list(dataset("train", 60, 3))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out"):
        dataset("test", 1, 0)


# -- the judge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_judge_accepts_the_answer_and_nothing_else(task: str) -> None:
    rows = list(dataset("held_out", 12, 5, tasks={task: 1.0}, modes={"none": 1.0}))
    for row in rows:
        right = chat(row)[-1]
        assert correct(row, right)
        assert not correct(row, {"content": "I cannot say", "tool_calls": []})
        wrong = [chat(other)[-1] for other in rows if other["answer"] != row["answer"]]
        assert not any(correct(row, reply) for reply in wrong)


def test_the_judge_reads_calls_by_their_meaning() -> None:
    (row,) = [r for r in dataset("held_out", 40, 5, tasks={"tools": 1.0}) if "expression" in r["answer"]][:1]
    (function,) = json.loads(row["answer"])
    tight = {"name": function["name"], "arguments": json.dumps(function["arguments"]).replace(" ", "")}
    assert correct(row, {"content": "", "tool_calls": [{"function": tight}]})
    assert not correct(row, {"content": "", "tool_calls": [{"function": tight}] * 2})
    assert not correct(row, {"content": "", "tool_calls": [{"function": tight | {"arguments": "{"}}]})
