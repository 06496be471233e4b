"""Rows of training data, checked before training: which one is wrong, and why.

Each row is encoded as the collator does while training, images included; nothing is trained. Must not know: models,
the command line.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files_reading import parse_json, reason_of, shown
from .collator import IGNORED, Small4DataCollator


@dataclass
class DataReport:
    """What was found. `wrong`: number of a row, from 1, and the reason, in the order of rows. Tokens are those of rows
    that can be trained on: all of them, those with a label, and the longest row's.
    """

    rows: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    images: int = 0


def check_rows(rows: Iterable[Any], collator: Small4DataCollator) -> DataReport:
    """Encode every row. An exception in place of a row, such as `read_rows` gives, is what is wrong with it."""
    report = DataReport()
    for number, row in enumerate(rows, 1):
        report.rows = number
        try:
            encoded = collator.encode(_checked(row))
        except Exception as error:
            report.wrong.append((number, reason_of(error)))
            continue
        length = len(encoded["input_ids"])
        report.tokens += length
        report.trained_tokens += sum(label != IGNORED for label in encoded["labels"])
        report.longest = max(report.longest, length)
        report.images += len(encoded.get("image_sizes", ()))
    return report


def read_rows(file: Path) -> Iterator[Any]:
    """The rows of a file of JSON lines, one object each; a ValueError in place of a line that holds something else.
    Blank lines are no rows, but numbered.

    Raises:
        OSError: The file cannot be read.
    """
    with file.open("rb") as lines:
        for line in lines:
            try:
                yield parse_json(line) if line.strip() else ValueError("the line is empty")
            except ValueError as error:
                yield error


def _checked(row: Any) -> Mapping[str, Any]:
    """Raise ValueError for what the collator takes for granted."""
    if isinstance(row, Exception):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"the row is {shown(row)}, but it must be an object with 'messages'.")
    messages = row.get("messages", [])
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(f"'messages' is {shown(messages)}, but it must be a list of messages with role and content.")
    return row
