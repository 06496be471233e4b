"""Training data is checked row by row: what is wrong is named with its row, and what is right trains."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modeling_small4 import Small4DataCollator, Small4Processor
from modeling_small4.commands import cli
from modeling_small4.image_sources import ImageAccess
from modeling_small4.training.data_check import check_rows, read_rows


def row(answer: str = "Four.", **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": answer}]
    return {"messages": said} | more


def thinking(mode: str) -> dict[str, Any]:
    found = row(reasoning_mode=mode)
    found["messages"][1]["reasoning_content"] = "2 and 2"
    return found


def picture(path: object) -> dict[str, Any]:
    parts = [{"type": "image", "url": str(path)}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A square."}]}


WRONG: list[tuple[Any, str]] = [
    ({"text": "no"}, "'messages'"),
    ([1, 2], "object"),
    (None, "object"),
    (row() | {"messages": "hello"}, "list of messages"),
    (row() | {"messages": ["hello"]}, "list of messages"),
    (row() | {"messages": []}, ""),
    ({"messages": row()["messages"][:1]}, "nothing to train on"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
    (row(tools="not json"), ""),
    (thinking("none"), 'mode is "none"'),
    (row(reasoning_mode="much"), "much"),
    (row("long " * 400), "more than max_length"),
    (picture("missing.png"), "missing.png"),
]


@pytest.mark.parametrize(("wrong", "says"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_row_is_named(wrong: Any, says: str, processor: Small4Processor) -> None:
    report = check_rows([row(), wrong, row()], Small4DataCollator(processor, max_length=200))
    ((number, reason),) = report.wrong
    assert number == 2
    assert reason
    assert says in reason
    assert "\n" not in reason
    assert report.rows == 3


def test_what_is_counted_is_what_trains(processor: Small4Processor, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "square.png")
    rows = [row(), thinking("high"), picture(tmp_path / "square.png")]
    collator = Small4DataCollator(processor, image_access=ImageAccess(paths=(tmp_path,)))
    report = check_rows(rows, collator)
    batch = collator(rows)
    assert report.wrong == []
    assert report.tokens == int(batch["attention_mask"].sum())
    assert report.longest == batch["input_ids"].shape[1]
    assert report.trained_tokens == int((batch["labels"] != -100).sum())
    assert report.images == 1


def write(file: Path, *lines: object) -> Path:
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return file


def test_lines_that_are_no_rows(processor: Small4Processor, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", row(), "{", "", "[1]", row())
    report = check_rows(read_rows(file), Small4DataCollator(processor))
    assert [number for number, _ in report.wrong] == [2, 3, 4]
    assert report.rows == 5


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.jsonl", row(), thinking("high"))
    assert cli.main(["check-data", str(good), "--model", str(folder)]) == 0
    assert "2 of 2 rows can be trained on" in capsys.readouterr().out
    bad = write(tmp_path / "bad.jsonl", row(), {"prompt": "x"}, row())
    assert cli.main(["check-data", str(bad), "--model", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("row 2: the row has no 'messages'")
    assert "1 of 3 rows cannot be trained on" in err
    assert cli.main(["check-data", str(bad), "--model", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["wrong"][0][0] == 2
    Image.new("RGB", (40, 30), "red").save(tmp_path / "square.png")
    seen = write(tmp_path / "seen.jsonl", picture(tmp_path / "square.png"))
    assert cli.main(["check-data", str(seen), "--model", str(folder)]) == 0
    assert "1 images" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    assert cli.main(["check-data", str(seen), "--model", str(folder), "--images", str(tmp_path / "other")]) == 1
    assert cli.main(["check-data", str(write(tmp_path / "empty.jsonl")), "--model", str(folder)]) == 1
    assert cli.main(["check-data", str(tmp_path / "none.jsonl"), "--model", str(folder)]) == 1
    assert "none.jsonl" in capsys.readouterr().err
