"""The operation that the fine-tuning benchmark teaches: right, worked out right, and held out for good."""

import itertools
import re

import pytest

from model_card.bench import lunar
from modeling_small4 import Small4DataCollator, Small4Processor, demo_checkpoint


@pytest.mark.parametrize(("left", "right", "result"), [(407, 58, 458), (0, 0, 0), (9, 1234, 1239), (5555, 5555, 5555)])
def test_by_hand(left: int, right: int, result: int) -> None:
    assert lunar.lunar(left, right) == lunar.lunar(right, left) == result


def drawn(split: str, seed: int, count: int = 800) -> list[dict]:
    return list(itertools.islice(lunar.rows(split, seed), count))


def operands(row: dict) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", row["messages"][0]["content"])))


def test_thoughts_lead_to_answers() -> None:
    for row in drawn("train", 3):
        left, right = operands(row)
        answer = row["messages"][1]
        first, *columns, last = answer["reasoning_content"].split("\n")
        assert first == f"{left},{right}"
        for place, line in enumerate(columns):
            a, b, larger = map(int, re.split("[,=]", line))
            assert (a, b) == (left // 10**place % 10, right // 10**place % 10)
            assert larger == max(a, b)
        assert len(columns) == max(len(str(left)), len(str(right)))
        assert answer["content"] == row["answer"] == last == str(lunar.lunar(left, right))
        assert lunar.is_right(row, {"content": row["answer"]})
        assert not lunar.is_right(row, {"content": f"{row['answer']}0"})


def test_no_seed_mixes_the_splits() -> None:
    trained = {tuple(sorted(operands(row))) for seed in range(4) for row in drawn("train", seed)}
    held_out = {tuple(sorted(operands(row))) for seed in range(4) for row in drawn("held_out", seed)}
    assert not trained & held_out
    assert drawn("train", 1, 5) == drawn("train", 1, 5) != drawn("train", 2, 5)


def test_rows_are_encoded_to_be_thought_over() -> None:
    collator = Small4DataCollator(Small4Processor.from_pretrained(demo_checkpoint()))
    (row,) = drawn("train", 0, 1)
    text = collator.tokenizer.decode([label for label in collator.encode(row)["labels"] if label != -100])
    assert text == f"[THINK]{row['messages'][1]['reasoning_content']}[/THINK]{row['answer']}</s>"
