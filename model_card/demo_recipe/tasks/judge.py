"""Whether a reply to a row of the demo's data is right. Plain Python; knows nothing of models or files."""

import json
import re
from typing import Any

NUMBER = re.compile(r"[-\u2212]?\d+")
BY_NUMBER = ("arithmetic", "word_problem", "retrieval")


def correct(row: dict[str, Any], reply: dict[str, Any]) -> bool:
    """Judge a parsed reply (`processor.parse_response`: content, tool_calls).

    Where the last message of the row calls tools, the same calls with the same arguments, in the same order, are asked
    for. JSON: the same value. Sums, stories and codes: the last number of the answer is the result. All else: the same
    words, whatever case, spacing and full stop.
    """
    calls = [call["function"] for call in reply.get("tool_calls") or []]
    if row["messages"][-1]["tool_calls"]:
        return [_call(call) for call in calls] == [_call(call) for call in json.loads(row["answer"])]
    content = reply.get("content") or ""
    if calls:
        return False
    if row["answer"].startswith("{") and (wanted := _json(row["answer"])) is not None:
        return _json(content) == wanted
    if row["task"] in BY_NUMBER:
        numbers = NUMBER.findall(content)
        return bool(numbers) and int(numbers[-1].replace("\u2212", "-")) == int(row["answer"])
    return _plain(content) == _plain(row["answer"])


def _call(function: dict[str, Any]) -> tuple[str, Any]:
    """Name and arguments; spaces in texts (of an expression) do not count."""
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return function["name"], arguments
    return function["name"], json.loads(json.dumps(arguments).replace(" ", ""))


def _json(text: str) -> Any:
    """The value, texts in small letters, or None."""
    try:
        return json.loads(text.lower())
    except json.JSONDecodeError:
        return None


def _plain(text: str) -> str:
    return " ".join(text.strip().rstrip(".").lower().split())
