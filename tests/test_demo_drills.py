"""What the demo's decoder is drilled in, on words and on random tokens, and the weights it starts from."""

import random
import re
from itertools import pairwise
from typing import Any

import pytest
import torch

from model_card.demo_recipe import recalling
from model_card.demo_recipe.batches import IGNORED
from model_card.demo_recipe.initial import TOKENS_BACK, new_model
from model_card.demo_recipe.tasks import drills
from model_card.demo_recipe.tasks.arithmetic import Problem, is_simple
from model_card.demo_recipe.tasks.arithmetic import key as arithmetic_key
from model_card.demo_recipe.tasks.item import Item, is_held_out

VOCABULARY = 1400


def drilled(kind: str, count: int = 60) -> list[Item]:
    rng = random.Random(8)
    items = [item for item in (drills.draw(rng) for _ in range(12 * count)) if item.kind == kind]
    assert len(items) >= count // 2
    return items


def in_small_steps(kind: str, count: int = 60) -> list[Item]:
    rng = random.Random(8)
    items = [item for item in (drills.draw_small_step(rng) for _ in range(8 * count)) if item.kind == kind]
    assert len(items) >= count // 2
    return items


def parts(item: Item) -> tuple[str, list[str]]:
    return item.turns[0]["content"], item.answer.split("\n")


def test_what_is_looked_up_stands_in_the_question_under_its_key() -> None:
    for item in drilled("look up"):
        question, lines = parts(item)
        facts, asked = question.rsplit("\nLook up: ", 1)
        for key, line in zip(asked.split(), lines, strict=True):
            assert line.startswith(key)
            assert re.search(rf"(^|\. |, |\n){re.escape(line)}($|\. |, |\n)", facts)


def test_copies_spell_the_same_words() -> None:
    for item in drilled("copy"):
        how, words = item.turns[0]["content"].split(": ")
        letters = re.sub(r"\d", "", item.answer) if how == "Number" else item.answer
        written = re.sub(r'[\s",]', "", letters)
        original = words.replace(" ", "")
        original = re.sub(r"\d", "", original) if how == "Number" else original
        assert original.startswith(written) if how == "Number" else written == original


def test_backwards_is_backwards_and_no_held_out_word_is_reversed() -> None:
    for item in drilled("backwards"):
        how, said = item.turns[0]["content"].split(": ")
        if how == "Backwards":
            assert item.answer.split(", ")[::-1] == said.split(", ")
            continue
        words = said.split()
        assert [line.replace(" ", "")[::-1] for line in parts(item)[1]] == words
        assert not any(is_held_out(("reverse", word)) for word in words)


def test_columns_hold_the_digits_of_both_numbers() -> None:
    for item in drilled("columns"):
        question, lines = parts(item)
        step = -1 if "last first" in question else 1
        for (a, b), line in zip(re.findall(r"(\d+)[-+x](\d+)", question), lines, strict=True):
            columns = [column.split("-") for column in line.split()][::step]
            assert ["".join(digits) for digits in zip(*columns, strict=True)] == [
                number.zfill(max(len(a), len(b))) for number in (a, b)
            ]


def test_values_are_those_that_python_has_at_the_end() -> None:
    for item in drilled("newest value"):
        question, lines = parts(item)
        code, asked = question.rsplit("\nValues: ", 1)
        values: dict[str, Any] = {}
        exec(code, {}, values)
        assert lines == [f"{name}={values[name]}" for name in asked.split()]


def test_comparisons_are_right() -> None:
    judge = {
        "Smaller": lambda a, b: str(min(int(a), int(b))),
        "Larger": lambda a, b: str(max(int(a), int(b))),
        "Same": lambda a, b: "yes" if a == b else "no",
    }
    for item in drilled("compare"):
        how, pairs = item.turns[0]["content"].split(": ")
        expected = [f"{pair} {judge[how](*pair.split())}" for pair in pairs.split(", ")]
        assert parts(item)[1] == expected


# -- random tokens -----------------------------------------------------------------------------------------------------


def recalled(sort: Any, size: float) -> list[tuple[list[int], list[int], int]]:
    """Rows, and where their second half begins."""
    rng, pieces = random.Random(2), list(range(100, 400))
    rows = [sort(rng, pieces, size) for _ in range(100)]
    for ids, labels in rows:
        assert len(ids) == len(labels)
        assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    marks = (recalling.LOOK_UP, recalling.COPY, recalling.BACKWARDS)
    return [(ids, labels, max(i for i, token in enumerate(ids) if token in marks) + 1) for ids, labels in rows]


@pytest.mark.parametrize("size", [0.0, 0.4, 1.0])
def test_what_is_told_follows_from_what_stood_before(size: float) -> None:
    for ids, labels, half in recalled(recalling.copy, size):
        assert ids[1 : 1 + len(ids) - half] == ids[half:] == labels[half:]
    for ids, labels, half in recalled(recalling.backwards, size):
        assert ids[1 : half - 1] == ids[half:][::-1] == labels[half:][::-1]
    for ids, labels, half in recalled(recalling.look_up, size):
        before = " ".join(map(str, ids[:half]))
        start = half
        for i in range(half, len(ids)):  # a pair ends where the labels do
            if i + 1 == len(ids) or (labels[i] != IGNORED and labels[i + 1] == IGNORED):
                pair = ids[start : i + 1]
                assert before.count(f" {' '.join(map(str, pair))} ") == 1
                assert labels[start] == IGNORED
                start = i + 1


def test_rows_grow() -> None:
    lengths = [
        max(len(recalling.row(random.Random(i), list(range(100, 400)), size)[0]) for i in range(60))
        for size in (0.0, 0.4, 1.0)
    ]
    assert lengths[0] < 40
    assert lengths[0] < lengths[1] < lengths[2]


# -- the weights at the start
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(5)
    model = new_model(VOCABULARY).eval()
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def test_heads_of_the_first_layer_look_back(model: Any) -> None:
    ids = torch.randint(1000, VOCABULARY, (2, 300))
    weights = model(input_ids=ids, output_attentions=True).attentions[0]
    for head, distance in enumerate(TOKENS_BACK):
        by_distance = [torch.diagonal(weights[:, head], -d, 1, 2)[:, 100:].mean().item() for d in range(100)]
        assert max(range(100), key=by_distance.__getitem__) == distance
        assert by_distance[distance] > 0.5


@torch.no_grad()
def test_other_heads_match_like_content_and_copy_it(model: Any) -> None:
    for layer in model.model.language_model.layers[1:]:
        attention = layer.self_attn
        content = torch.randn(200, 128)
        latent = attention.kv_a_proj_with_mqa(content)[:, : attention.rank]
        assert torch.equal(attention.q_a_proj(content), latent)
        up = attention.kv_b_proj(latent).unflatten(-1, (-1, attention.nope + attention.value_dim))
        query = attention.q_b_proj(latent).unflatten(-1, (-1, attention.nope + attention.rope))[..., : attention.nope]
        scores = torch.einsum("qhd,khd->hqk", query, up[..., : attention.nope])
        assert (scores.argmax(-1) == torch.arange(200)).float().mean() > 0.9
        copied = attention.o_proj(up[..., attention.nope :].flatten(1))
        likeness = torch.nn.functional.cosine_similarity(copied, content)
        assert likeness.min() > 0.3


def test_the_same_seed_gives_the_same_start() -> None:
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        starts.append(torch.cat([weight.flatten() for weight in new_model(VOCABULARY).parameters()]))
    assert [torch.equal(a, b) for a, b in pairwise(starts)] == [True, False]


def test_facts_are_true_and_no_held_out_problem() -> None:
    for item in in_small_steps("facts"):
        asked = item.turns[0]["content"].split(": ")[1].split(", ")
        for step, line in zip(asked, parts(item)[1], strict=True):
            assert line == f"{step}={eval(step.replace('x', '*'))}"
            left, sign, right = re.fullmatch(r"(\d+)([-+x])(\d+)(?:[-+]\d)?", step).groups()  # type: ignore[union-attr]
            problem = Problem(int(left), sign, int(right))
            assert is_simple(problem) or not is_held_out(arithmetic_key(problem))


def test_letters_by_places_are_those_of_words_not_held_out() -> None:
    for item in in_small_steps("spell"):
        how, said = item.turns[0]["content"].split(": ")
        for word, line in zip(said.split(), parts(item)[1], strict=True):
            places = [f"{i}{letter}" for i, letter in enumerate(word, 1)]
            assert line.split() == (places[::-1] if "end" in how else places)
            assert not is_held_out(("reverse", word))


def test_values_are_put_in_and_conditions_judged_as_python_does() -> None:
    for item in in_small_steps("put in"):
        program, asked = item.turns[0]["content"].split("\nPut in: ")
        values: dict[str, int] = {}
        exec(program, values)
        for expression, line in zip(asked.split(", "), parts(item)[1], strict=True):
            shown, put, *judged = line.split(": ")
            assert shown == expression.replace(" ", "")
            assert eval(put) == eval(expression, values)
            assert judged == ([] if not set("<>") & set(put) else ["yes" if eval(put) else "no"])


def test_the_best_of_each_list_is_found_in_the_last_comparison() -> None:
    for item in in_small_steps("best"):
        how, said = item.turns[0]["content"].split(" of each: ")
        pick = max if how == "Largest" else min
        for numbers, line in zip(said.split("; "), parts(item)[1], strict=True):
            listed = [int(number) for number in numbers.split(", ")]
            assert int(line.split(":")[-1]) == pick(listed)
            assert not is_held_out((pick.__name__, listed))
