"""Which messages are accepted, and what is said of the others, message by message."""

from typing import Any

import pytest

from modeling_small4.chat_messages import check_conversation, read_messages

USER = {"role": "user", "content": "What is 2 + 3, and 4 + 5?"}
ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}


def calling(*ids: str | None) -> dict[str, Any]:
    """An assistant message with calls of these ids."""
    calls = [ADD if each is None else ADD | {"id": each} for each in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(name: str | None = None) -> dict[str, Any]:
    """A result of a call of this id."""
    return {"role": "tool", "content": "5"} | ({} if name is None else {"tool_call_id": name})


def check(*messages: dict[str, Any]) -> None:
    check_conversation(read_messages(messages), finished=False)


RIGHT = {
    "ids": [USER, calling("a1", "b2"), result("b2"), result("a1")],
    "no ids": [USER, calling(None, None), result(), result()],
    "no ids, twice": [USER, calling(None), result(), calling(None, None), result(), result()],
    "a result is not there yet": [USER, calling("a1", "b2"), result("a1")],
    "system messages in between": [{"role": "system", "content": "Be brief."}, USER, USER],
}
WRONG = {
    "tool alone": ([result("a1")], "starts with a user or system message, not 'tool' alone"),
    "tool after user": ([USER, result("a1")], "A 'tool' message cannot follow a 'user' message"),
    "system after an answer": (
        [USER, {"role": "assistant", "content": "5"}, {"role": "system", "content": ""}, USER],
        "A 'system' message cannot follow a 'assistant' message",
    ),
    "another id": ([USER, calling("a1"), result("b2")], r"'b2' answers no call .* ids are \['a1'\]"),
    "a result twice": ([USER, calling("a1", "b2"), result("a1"), result("a1")], "Two tool results .* 'a1'"),
    "a call twice": ([USER, calling("a1", "a1"), result("a1")], "Two tool calls .* 'a1'"),
    "a result is missing": ([USER, calling("a1", "b2"), result("a1"), calling("c3"), result("c3")], r"\['b2'\]"),
    "one without an id is missing": ([USER, calling(None, None), result(), calling(None), result()], "before it"),
    "an id where calls have none": ([USER, calling(None), result("a1")], "'a1' answers no call"),
    "nothing to answer": ([USER, {"role": "assistant", "content": "5"}], "there is nothing to answer"),
    "a prefix in the middle": (
        [USER, {"role": "assistant", "content": "5", "prefix": True}, USER],
        "Only the last message can be an assistant message to continue",
    ),
    "broken off nowhere": (
        [USER, {"role": "assistant", "tool_calls": [ADD | {"incomplete": "id"}]}],
        "'incomplete' of a tool call must be 'name' or 'arguments', but is 'id'",
    ),
    "no arguments": (
        [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}],
        "the call of 'add' has no 'arguments'",
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_accepted(case: str) -> None:
    check(*RIGHT[case])


@pytest.mark.parametrize("case", WRONG)
def test_refused(case: str) -> None:
    messages, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        check(*messages)
