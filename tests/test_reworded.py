"""The tasks in wider wording: whole texts, right thoughts and answers, and wording that training never draws."""

import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import jsonschema
import pytest
from PIL import Image

from model_card.demo_recipe.batches import chat, encode
from model_card.demo_recipe.tasks import programs, words
from model_card.demo_recipe.tasks.data import DRAW, REWORDED, TASKS, dataset, rows
from model_card.demo_recipe.tasks.item import Item
from model_card.demo_recipe.tasks.judge import correct
from model_card.demo_recipe.tasks.puzzles import ORDINALS
from model_card.demo_recipe.tasks.reworded import (
    as_json,
    grammar,
    lookups,
    nouns,
    pictures,
    puzzles,
    relations,
    stories,
    sums,
    talk,
    tools,
)
from model_card.demo_recipe.tasks.reworded import programs as reworded_programs
from model_card.demo_recipe.tasks.reworded.grammar import BASE, PAST, THIRD, Grammar
from modeling_small4 import Small4DataCollator, demo_checkpoint
from modeling_small4.processing_small4 import Small4Processor

GRAMMARS = {
    "stories": stories.GRAMMAR, "puzzles": puzzles.GRAMMAR, "sums": sums.GRAMMAR, "lookups": lookups.GRAMMAR,
    "programs": reworded_programs.GRAMMAR, "tools": tools.GRAMMAR, "talk": talk.GRAMMAR,
}  # fmt: skip
COMPUTED = re.compile(r"\d+[-+x]\d+")


def items(task: str, count: int, seed: int = 4, **options: Any) -> Iterator[Item]:
    rng = random.Random(seed)
    for i in range(count):
        yield REWORDED[task](rng, easy=i % 3 == 0, unseen=i % 2 == 1, **options)


@pytest.fixture(scope="module")
def demo_processor() -> Small4Processor:
    return Small4Processor.from_pretrained(demo_checkpoint())


def question(item: Item) -> str:
    return item.turns[0]["content"]


# -- the grammar -------------------------------------------------------------------------------------------------------

SMALL = Grammar(
    {
        "all": ("{who} <am|is|was> here", "~{who} <stay|stays|stayed>"),
        "who": ("{name}", "the {kind}"),
        "kind": ("dog", "~cat"),
    }
)


def test_texts_are_drawn_from_alternatives_slots_and_forms_of_verbs() -> None:
    rng = random.Random(1)
    for form, verb in ((BASE, "am"), (THIRD, "is"), (PAST, "was")):
        drawn = {SMALL.say("{all}", rng, {"name": "anna"}, form) for _ in range(80)}
        assert drawn == {f"Anna {verb} here", f"The dog {verb} here"}


def test_unseen_texts_hold_an_alternative_that_training_never_draws() -> None:
    rng = random.Random(1)
    drawn = {SMALL.say("{all}", rng, {"name": "anna"}, THIRD, unseen=True) for _ in range(400)}
    assert drawn == {"Anna stays", "The dog stays", "The cat stays", "The cat is here"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("how  many ? i see 3 . yes", "How many? I see 3. Yes"), ("i'm here. i am", "I'm here. I am"),
        ("in a box; it is", "In a box; it is"), ("what is 3.5 ? no", "What is 3.5? No"),
    ],
)  # fmt: skip
def test_sentences_begin_with_capitals(text: str, shown: str) -> None:
    assert grammar.tidy(text) == shown


@pytest.mark.parametrize("name", GRAMMARS)
def test_rules_are_complete_and_used(name: str) -> None:
    rules = GRAMMARS[name].rules
    for alternatives in rules.values():
        assert len(set(alternatives)) >= len(alternatives) - 6, alternatives
        for text in alternatives:
            assert text.count("{") == text.count("}")
            assert text.count("<") == text.count(">")
            assert all(verb.count("|") == 2 for verb in re.findall("<([^<>]*)>", text)), text


@pytest.mark.parametrize("task", [task for task in REWORDED if task != "picture"])
def test_training_never_draws_what_is_kept_for_evaluation(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {one for each in GRAMMARS.values() for rule in each.rules.values() for one in rule if one.startswith("~")}
    kept |= {one for one in (*lookups.FACTS, *lookups.SHORT_FACTS) if one.startswith("~")}
    original, drawn = grammar.choose, list[str]()

    def choose(alternatives: Any, rng: random.Random, unseen: bool = False) -> str:
        drawn.append(original(alternatives, rng, unseen))
        return drawn[-1]

    for module in (grammar, lookups, relations):
        monkeypatch.setattr(module, "choose", choose)
    source = rows("train", 1, tasks={task: 1.0}, reworded=1.0)
    for _ in range(150):
        next(source)
    assert drawn
    assert not kept & set(drawn)
    fresh, source = 0, rows("held_out", 1, tasks={task: 1.0}, reworded=1.0)
    for _ in range(30):
        drawn.clear()
        next(source)
        fresh += bool(kept & set(drawn))
    assert fresh >= 25


def test_words_are_parted_too() -> None:
    rng = random.Random(5)
    seen, unseen = ({grammar.part(nouns.NAMES, rng, fresh) for _ in range(3000)} for fresh in (False, True))
    assert not seen & unseen
    assert seen | unseen == set(nouns.NAMES)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", REWORDED)
def test_texts_have_no_marks_of_the_grammar_left(task: str) -> None:
    for item in items(task, 1000):
        for turn in item.turns:
            if turn["role"] == "user":
                said = turn["content"]
                words = re.sub(r"[\[\]{}<>]", "", said) if task == "program" else said  # Python's own
                assert not re.search(r"[{}@~]|<\w|\w\|[a-z]+>", words), said
                assert said == said.strip()
                assert said


def test_questions_are_hardly_ever_the_same() -> None:
    for task in set(REWORDED) - {"picture"}:  # photographs are asked about in the task's own words
        asked = [question(item) for item in items(task, 400)]
        assert len(set(asked)) > (250 if task == "talk" else 340), task


@pytest.mark.parametrize("value", range(100))
def test_numbers_are_spelled(value: int) -> None:
    tens, ones = divmod(value, 10)
    parts = nouns.spell(value).split("-")
    if value >= 20:
        assert nouns.TENS.index(parts[0]) + 2 == tens
        assert parts[1:] == ([nouns.ONES[ones]] if ones else [])
    else:
        assert parts == [nouns.ONES[value]]


def test_near_words_differ_in_a_letter() -> None:
    rng = random.Random(2)
    for _ in range(500):
        word = nouns.name(rng)
        near = nouns.near(word, rng)
        assert abs(len(near) - len(word)) <= 1
        assert near[0].isupper() == word[0].isupper()


# -- answers -----------------------------------------------------------------------------------------------------------


def told(text: str) -> list[int]:
    """The numbers of a text, in digits or in words."""
    spelled = {nouns.spell(value): str(value) for value in range(100)}
    words = re.findall(r"\d+|[a-z]+(?:-[a-z]+)?", text.lower())
    return [int(spelled.get(word, word)) for word in words if word in spelled or word.isdigit()]


def steps(item: Item) -> list[str]:
    """The computations of a thought in order; its other lines are true equations, comparisons and results."""
    lines = item.turns[-1]["reasoning_content"].split("\n")
    for line in lines:
        if "=" in line and (found := re.fullmatch(r"(\d+)=(\d+)", line)):
            assert found[1] == found[2]
        elif "=" in line:
            left, right = line.replace("x", "*").split("=")
            assert eval(left) == int(right), line
        elif larger := re.fullmatch(r"(\d+),(\d+):(\d+)", line):
            assert max(int(larger[1]), int(larger[2])) == int(larger[3])
    return [line for line in lines if COMPUTED.fullmatch(line)]


@pytest.mark.parametrize("task", ["word_problem", "arithmetic"])
def test_thoughts_compute_with_the_numbers_told_and_arrive_at_the_answer(task: str) -> None:
    for item in items(task, 1500):
        first, *others = steps(item)
        known = [*told(question(item)), 2, 3]  # two and three times may be said as double and triple
        total, left = 0, re.split("[-+x]", first)[0]
        assert int(left) in known
        for line in (first, *others):
            left, sign, right = re.fullmatch(r"(\d+)([-+x])(\d+)", line).groups()  # type: ignore[union-attr]
            if line is first or (int(left) == total and int(right) in known):  # others add up the rows of a product
                assert int(right) in known, (item, line)
                total = int(eval(f"{left}{sign.replace('x', '*')}{right}"))
        assert total == int(item.answer), item


def test_two_steps_are_planned_first() -> None:
    planned = [item for item in items("word_problem", 600) if isinstance(item.key, tuple) and len(item.key) == 4]
    planned += [item for item in items("arithmetic", 600) if item.kind == "three numbers"]
    assert len(planned) > 150
    for item in planned:
        plan, first, *_ = item.turns[1]["reasoning_content"].split("\n")
        assert re.fullmatch(r"\d+([-+x]\d+){2}", plan)
        assert plan.startswith(first)
        assert eval(plan.replace("x", "*")) == int(item.answer)


def test_comparisons_say_first_which_is_the_larger() -> None:
    compared = [item for item in items("word_problem", 2000) if item.kind == "compare"]
    assert len(compared) > 100
    for item in compared:
        first = re.fullmatch(r"(\d+),(\d+):\d+", item.turns[1]["reasoning_content"].split("\n")[0])
        assert first
        numbers = [int(first[1]), int(first[2])]
        assert abs(numbers[0] - numbers[1]) == int(item.answer)
        said = iter(told(question(item)))
        assert all(number in said for number in numbers), item  # in this order


def test_puzzles_are_about_the_words_of_the_question() -> None:
    seen = set()
    for item in items("puzzle", 1500):
        said, (what, *rest) = question(item).lower(), cast(tuple[Any, ...], item.key)
        seen.add(item.kind)
        answers: dict[str, Callable[..., str]] = {
            "reverse": lambda word: " ".join(reversed(word)), "spell": lambda word: " ".join(word),
            "length": lambda word: str(len(word)),
            "count": lambda word, letter: str(list(word).count(letter)),
            "letter": lambda which, word: word[-1 if which == "last" else ORDINALS.index(which)],
            "max": lambda numbers: str(sorted(numbers)[-1]), "min": lambda numbers: str(sorted(numbers)[0]),
            "sort": lambda down, numbers: ", ".join(str(n) for n in sorted(numbers, key=lambda n: -n if down else n)),
            "backwards": lambda words: ", ".join(words[::-1]), "many": lambda words: str(len(words)),
            "pick": lambda which, words: words[-1 if which == "last" else ORDINALS.index(which)],
        }  # fmt: skip
        assert item.answer == answers[what](*rest), item
        for part in rest:
            if part not in (*ORDINALS, "last", True, False):
                assert all(str(each).lower() in said for each in (part if isinstance(part, list) else [part])), item
    assert len(seen) == 10


def test_programs_print_the_answer_under_any_names() -> None:
    for item in items("program", 400):
        said = question(item).removeprefix("```python\n")
        lines = [line for line in said.split("\n") if re.match(r"\w+ (\+)?= |    |print\(|for |if |else:", line)]
        assert programs.run("\n".join(lines)) == item.answer == programs.run(str(item.key))


def test_facts_are_told_once_and_the_thought_is_the_fact() -> None:
    for item in items("retrieval", 600):
        text, thought = question(item), item.turns[1]["reasoning_content"]
        assert (
            text.lower().count(thought.lower().replace("'s ", "s ")) + text.lower().count(thought.lower()) >= 1
            or "," in thought
        )
        assert item.answer in thought
        assert re.findall(r"\d+", text).count(item.answer) >= 1
    long = next(items("retrieval", 1, context=1000, questions=3))
    assert len(question(long).split()) > 500
    assert len(long.turns) == 6


@pytest.mark.parametrize("name", relations.RELATIONS)
def test_relations_name_the_owner_and_the_number_once_and_ask_without_it(name: str) -> None:
    relation = relations.RELATIONS[name]
    for text in (*relation.told, *relation.brief):
        assert text.count("{who}") == text.count("{v}") == 1, text
        assert not set(re.findall("[a-z]+", text)) & set(grammar.MISTYPED), text  # facts are copied, letter by letter
    for text in relation.ask:
        assert "{who}" in text
        assert "{v}" not in text
    for texts in (relation.told, relation.brief, relation.ask):
        assert any(text.startswith("~") for text in texts), texts
    assert all(pool == "names" or len(relations.POOLS[pool]) > 7 for pool in relation.pools.split())


def test_the_question_decides_between_a_lookup_a_sum_a_comparison_and_the_best_of_the_same_facts() -> None:
    fact, asked = re.compile(r"(?:weighs|costs|earns|scores|owes|measures|lasts|owns) (\d+)"), set[str]()
    for task in ("retrieval", "word_problem", "puzzle"):
        for item in items(task, 5000):
            numbers = told(question(item))
            if len(numbers) == 2 and list(map(int, fact.findall(question(item)))) == numbers:
                low, high = sorted(numbers)
                answers = {"retrieval": (low, high), "puzzle": (low, high), "word_problem": (low + high, high - low)}
                assert int(item.answer) in answers[task], item
                asked.add(task)
    assert len(asked) == 3


def test_a_fact_that_names_nobody_stands_behind_one_about_the_same_owner() -> None:
    seen = 0
    for item in items("retrieval", 3000):
        (key, *_), thought, text = cast(Any, item.key), item.turns[1]["reasoning_content"], question(item).lower()
        if key[0] not in thought and (
            found := re.search(rf"([^\n]*[ \n;|/,.]){re.escape(thought.lower())}(?!\d)", text)
        ):
            before = re.split(r"\. |\n|; | \| | / |, | and | but ", found[1].rstrip(" .\n;|/,"))
            assert any(key[0].lower() in part for part in before[-3:]), item
            seen += 1
    assert seen > 10


def test_short_texts_have_two_facts_and_small_numbers_too() -> None:
    drawn = list(items("retrieval", 1500, questions=3))
    single = [item for item in drawn if len(item.turns) == 2]
    assert len(single) > 600
    assert sum(len(re.findall(r"\d+", question(item))) == 2 for item in single) > 100
    assert sum(len(item.answer) < 3 for item in single) > 300


@pytest.mark.parametrize(
    ("pattern", "sign"),
    [
        (r"(?:subtract|deduct|remove|take away|take|drop) (\d+) (?:away )?from (\d+)", -1),
        (r"(\d+) (?:less|fewer|smaller) than (\d+)", -1), (r"(\d+) (?:subtracted|taken) from (\d+)", -1),
        (r"(?:from|start with) (\d+),? (?:and )?(?:subtract|take) (\d+)", 1), (r"reduce (\d+) by (\d+)", 1),
        (r"(\d+) (?:minus|take away|without|reduced by|decreased by) (\d+)", 1),
    ],
)  # fmt: skip
def test_differences_are_in_the_order_of_their_words(pattern: str, sign: int) -> None:
    read = 0
    for item in items("arithmetic", 6000):
        if found := re.search(pattern, question(item), re.IGNORECASE):
            assert int(item.answer) == sign * (int(found[1]) - int(found[2])), item
            read += 1
    assert read > 5


def test_typing_errors_leave_lists_and_words_alone() -> None:
    assert not set(grammar.MISTYPED) & {*words.WORDS, *words.OBJECTS, *nouns.THINGS}
    rng = random.Random(3)
    for _ in range(300):
        listed = ",".join(rng.sample(words.OBJECTS, 4))
        assert listed in grammar.typed(f"Which is first: {listed}", rng)
    assert {grammar.mistyped("how many?", rng) for _ in range(300)} == {
        *(f"{how} many?" for how in grammar.MISTYPED["how"]), *(f"how {many}?" for many in grammar.MISTYPED["many"]),
    }  # fmt: skip


def test_tools_are_called_with_words_of_the_question() -> None:
    for item in items("tools", 400):
        called = item.turns[1].get("tool_calls") or []
        assert bool(called) == (item.kind != "no call")
        for call in called:
            for value in call["function"]["arguments"].values():
                asked = question(item).lower()
                words = set(re.findall(r"\w+", asked) + re.findall(r"(\w+)s age", asked))  # also "Adams age"
                assert set(re.findall(r"\w+", str(value).lower())) <= words | {"2", "3"}


@pytest.mark.parametrize("task", REWORDED)
def test_rows_in_wider_wording_are_judged_as_the_task_is(task: str) -> None:
    held_out = list(dataset("held_out", 30, 5, tasks={task: 1.0}, modes={"none": 1.0}, reworded=1.0))
    for row in held_out:
        assert row["task"] == task
        assert correct(row, chat(row)[-1])
        assert not correct(row, {"content": "I cannot say", "tool_calls": []})


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "value"),
    [("-3", -3), ("5, 2", [5, 2]), ("tea, milk", ["tea", "milk"]), ("t e a", "t e a"), ("at the top, left", None)],
)
def test_values_keep_their_types(answer: str, value: Any) -> None:
    assert json.loads(as_json.text("x", answer)) == {"x": value or answer}


@pytest.mark.parametrize("answer", ["4", "5, 2", "tea, milk", "t e a"])
def test_a_schema_allows_its_answer_and_no_other_type(answer: str) -> None:
    text = as_json.text("x", answer)
    jsonschema.validate(json.loads(text), as_json.schema(text))
    for other in ("4", "5, 2", "tea, milk", "t e a"):
        if other != answer:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(json.loads(as_json.text("x", other)), as_json.schema(text))


def test_answers_in_json_are_asked_for_or_begun() -> None:
    draw = {"tasks": {"arithmetic": 0.5, "puzzle": 0.5}, "reworded": 0.5}
    plain, source, counts = rows("train", 3, **draw), rows("train", 3, **draw, in_json=1.0), [0, 0]  # type: ignore[arg-type]
    assert not any(next(plain)["forced"] for _ in range(100))
    for _ in range(200):
        row = next(source)
        if row["messages"][-1]["role"] == "assistant" and row["messages"][-1]["content"].startswith("{"):
            ((key, value),) = json.loads(row["messages"][-1]["content"]).items()
            assert json.loads(as_json.text(key, row["answer"])) == {key: value}
            told = json.dumps(row["messages"][:-1]).lower()
            assert ("json" in told or key in told) or row["forced"] == len(f'{{"{key}":')
            counts[bool(row["forced"])] += 1
    assert min(counts) > 40


@pytest.mark.parametrize("mode", ["none", "high"])
def test_what_a_grammar_gives_is_no_label(demo_processor: Small4Processor, mode: str) -> None:
    collator = Small4DataCollator(demo_processor)
    source = rows("train", 4, tasks={"word_problem": 1.0}, modes={mode: 1.0}, in_json=1.0)
    for row in filter(lambda row: row["forced"], islice(source, 60)):
        whole, encoded = encode(row | {"forced": 0}, collator), encode(row, collator)
        assert encoded["input_ids"] == whole["input_ids"]
        hidden = [a for a, b in zip(whole["labels"], encoded["labels"], strict=True) if a != b]
        assert demo_processor.tokenizer.decode(hidden) == row["messages"][-1]["content"][: row["forced"]]
        assert encoded["labels"][-2:] == whole["labels"][-2:]


def test_rows_end_behind_the_first_line_of_their_thought_as_often_as_said(demo_processor: Small4Processor) -> None:
    collator, counts = Small4DataCollator(demo_processor), [0, 0]
    drawn = {"tasks": {"arithmetic": 0.4, "word_problem": 0.4, "puzzle": 0.2}, "modes": {"high": 1.0}, "in_json": 0.2}
    for row in islice(rows("train", 5, **drawn, reworded=1.0, first_lines=0.7), 150):  # type: ignore[arg-type]
        whole, encoded = encode(row | {"first_line": False}, collator), encode(row, collator)
        length = len(encoded["input_ids"])
        assert (encoded["input_ids"], encoded["labels"]) == (whole["input_ids"][:length], whole["labels"][:length])
        assert not (row["first_line"] and row["task"] == "puzzle")
        if row["budget"] < 0 and row["task"] != "puzzle":
            counts[row["first_line"]] += 1
        thought = next(m["reasoning_content"] for m in row["messages"] if m["role"] == "assistant")
        if row["first_line"] and "\n" in thought:
            learned = [label for label in encoded["labels"] if label >= 0]
            text = demo_processor.tokenizer.decode(learned, skip_special_tokens=False)
            assert text == f"[THINK]{thought.splitlines()[0]}\n"
        else:
            assert length == len(whole["input_ids"])
    assert 0.6 < counts[True] / sum(counts) < 0.8
    plain = rows("train", 5, **drawn, reworded=1.0)  # type: ignore[arg-type]
    assert not any(next(plain)["first_line"] for _ in range(60))


@pytest.mark.parametrize(
    ("reply", "right"), [('{"x":4}', True), ('{"x": 5}', False), ('{"y": 4}', False), ("4", False), ('{"x": 4', False)]
)
def test_json_is_judged_by_its_value(reply: str, right: bool) -> None:
    row = {"task": "arithmetic", "answer": '{"x": 4}', "messages": [{"tool_calls": ""}]}
    assert correct(row, {"content": reply}) == right


@pytest.mark.parametrize(("reply", "right"), [("{4}", True), ("{5}", False), ("no", False)])
def test_what_only_begins_like_json_is_judged_by_its_words(reply: str, right: bool) -> None:
    row = {"task": "program", "answer": "{4}", "messages": [{"tool_calls": ""}]}
    assert correct(row, {"content": reply}) == right


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", [False, True])
def test_photographs_are_of_the_same_pictures_and_no_lighter(unseen: bool) -> None:
    changed = 0
    for seed in range(40):
        item = pictures.draw(random.Random(seed), unseen=unseen)
        plain = DRAW["picture"](random.Random(seed))
        assert (item.key, item.turns, item.answer) == (plain.key, plain.turns, plain.answer)
        assert item.images is not None
        assert plain.images is not None
        for shot, again, drawn in zip(item.images(), item.images(), plain.images(), strict=True):
            assert shot.size == drawn.size
            assert shot.tobytes() == again.tobytes()
            assert sum(shot.resize((1, 1)).getpixel((0, 0))) <= sum(drawn.resize((1, 1)).getpixel((0, 0))) + 6
            changed += shot.tobytes() != drawn.tobytes()
    assert changed >= (40 if unseen else 20)


def test_a_photograph_is_turned_and_darkened_as_said() -> None:
    image = Image.new("RGB", (101, 101), "white")
    image.paste((200, 0, 0), (45, 5, 56, 16))  # above the middle
    quarter = pictures.photograph(image, 90, 0.5, 0)  # turned counterclockwise
    assert quarter.getpixel((10, 50)) == (100, 0, 0)
    assert quarter.getpixel((50, 10)) == quarter.getpixel((0, 0)) == (127, 127, 127)


# -- the split ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [task for task in REWORDED if task != "talk"])
def test_problems_are_on_the_side_of_the_split_that_they_are_on_in_the_tasks_own_wording(task: str) -> None:
    rng = random.Random(6)
    plain = {repr(item.key): item.held_out for item in (DRAW[task](rng, easy=True) for _ in range(3000))}
    both = [item for item in items(task, 1500) if repr(item.key) in plain and not item.never_held_out]
    assert all(item.held_out == plain[repr(item.key)] for item in both)


def test_without_a_share_of_wider_wording_rows_are_as_before() -> None:
    plain, none = rows("train", 3), rows("train", 3, reworded=0.0, in_json=0.0)
    assert all(next(plain) == next(none) for _ in range(40))
    assert set(REWORDED) == set(TASKS)
    mixed = [row["messages"] for row in dataset("train", 60, 3, reworded=0.5)]
    assert mixed == [row["messages"] for row in dataset("train", 60, 3, reworded=0.5)]
    assert json.dumps(mixed) != json.dumps([row["messages"] for row in dataset("train", 60, 3)])
