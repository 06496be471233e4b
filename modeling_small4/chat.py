"""A conversation laid out as pieces: control tokens, text and images, in the order in which the model reads them.

Each text piece is to be encoded on its own, so no text can become a control token whatever it spells. Follows
mistral-common's normalization and layout for tokenizer v15. Must not know: tokenizers, ids, pixels.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from .chat_messages import Chunk, Image, Message, Text, Thought, ToolCall, check_conversation, read_messages
from .chat_tools import tools_text
from .files_reading import shown
from .reasoning import (
    ARGS,
    AVAILABLE_TOOLS,
    BOS,
    END_AVAILABLE_TOOLS,
    END_INST,
    END_SETTINGS,
    END_SYSTEM,
    END_THINK,
    END_TOOL_RESULTS,
    EOS,
    INST,
    SETTINGS,
    SYSTEM,
    THINK,
    TOOL_CALLS,
    TOOL_RESULTS,
    settings_text,
)

_BETWEEN_MESSAGES = "\n\n"
_REASONING_KEYS = ("reasoning_content", "reasoning")


class Piece(NamedTuple):
    """One stretch of a prompt. `kind` is "control" (`value` is a control token), "text" (`value` is plain text) or
    "image" (`value` is the image as the user gave it). `generated` says that the assistant wrote it."""

    kind: str
    value: Any
    generated: bool = False


def lay_out(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    mode: str | None = None,
    continue_final_message: bool | str = False,
    finished: bool = False,
) -> list[Piece]:
    """Lays out one conversation.

    Args:
        messages: dicts with `role` and `content` (and `reasoning_content`, `tool_calls`, `tool_call_id`).
        tools: functions or JSON schemas, as transformers accepts them.
        mode: "none", "high", or None to write no settings block.
        continue_final_message: leave the last message, the assistant's, open. "reasoning_content" leaves its thought
            open as well.
        finished: allow the conversation to end with a finished assistant message, as training data does.

    Returns:
        Pieces, the first of which is `<s>`.

    Raises:
        ValueError: whatever mistral-common refuses, with the reason.
    """
    records = read_messages(messages)
    if continue_final_message:
        _leave_open(records[-1], continue_final_message)
    check_conversation(records, finished)
    records = _normalize(records)
    opening = _tools(tools) + _settings(mode)
    pieces = [Piece("control", BOS)]
    first_user = next((record for record in records if record.role == "user"), None)
    for record in records:
        if record is first_user:
            pieces += opening
        pieces += _LAYOUTS[record.role](record)
    return pieces


def _leave_open(last: Message, how: bool | str) -> None:
    if last.role != "assistant":
        raise ValueError(f"continue_final_message needs a last message of the assistant, but it is the {last.role}'s.")
    last.prefix = True
    if how in _REASONING_KEYS:
        if not isinstance(last.content, list) or not isinstance(last.content[0], Thought):
            raise ValueError(f"continue_final_message={shown(how)}, but the last message has no {how}.")
        last.content[0].closed = False
    elif how is not True and how != "content":
        raise ValueError(
            f"continue_final_message must be a bool, 'content' or 'reasoning_content', but is {shown(how)}."
        )


def _normalize(records: list[Message]) -> list[Message]:
    """Joins neighboring user or assistant messages, and sorts tool results into the order of their calls."""
    out: list[Message] = []
    call_ids: list[str | None] = []
    for role, group in groupby(records, key=lambda record: record.role):
        members = list(group)
        if role == "tool":
            order = {call_id: index for index, call_id in enumerate(call_ids)}
            members.sort(key=lambda record: order.get(record.tool_call_id, len(order)))
            call_ids = []
        if role in ("system", "tool"):
            out += [Message(role, _join([record.content])) for record in members]
            continue
        calls = [call for record in members for call in record.tool_calls]
        call_ids += [call.id for call in calls]
        last = members[-1]
        content = last.content if last.exact and len(members) == 1 else _join([record.content for record in members])
        out.append(Message(role, content, calls, prefix=last.prefix, empty=last.empty))
    return out


def _join(contents: list[str | list[Chunk] | None]) -> str | list[Chunk]:
    """Joins texts, "\\n\\n" between messages and nothing between chunks; a plain string when there is only text."""
    out: list[Chunk] = []
    parts: list[str] = []
    for content in contents:
        new_message = bool(parts)
        for chunk in [Text(content)] if isinstance(content, str) else content or ():
            if not isinstance(chunk, Text):
                if parts:
                    out.append(Text("".join(parts)))
                out.append(chunk)
                parts = []
            elif chunk.text:
                parts += [_BETWEEN_MESSAGES, chunk.text] if parts and new_message else [chunk.text]
                new_message = False
    if not out:
        return "".join(parts)
    return [*out, Text("".join(parts))] if parts else out


def _tools(tools: Sequence[Any] | None) -> list[Piece]:
    return _block(AVAILABLE_TOOLS, [Piece("text", tools_text(tools))], END_AVAILABLE_TOOLS) if tools else []


def _settings(mode: str | None) -> list[Piece]:
    return _block(SETTINGS, [Piece("text", settings_text(mode))], END_SETTINGS) if mode is not None else []


def _block(opening: str, pieces: list[Piece], closing: str) -> list[Piece]:
    return [Piece("control", opening), *pieces, Piece("control", closing)]


def _system(record: Message) -> list[Piece]:
    return _block(SYSTEM, _content(record.content), END_SYSTEM)


def _user(record: Message) -> list[Piece]:
    content = record.content
    if isinstance(content, list) and len(content) == 2 and isinstance(content[0], Text):
        content = [content[1], content[0]]  # a text and then an image: the image is read first
    return _block(INST, _content(content), END_INST)


def _tool(record: Message) -> list[Piece]:
    return _block(TOOL_RESULTS, _content(record.content), END_TOOL_RESULTS)


def _assistant(record: Message) -> list[Piece]:
    if not record.content and not record.tool_calls and not record.empty:
        raise ValueError("An assistant message needs content, reasoning_content or tool_calls, but has none of them.")
    content = record.content.rstrip(" ") if isinstance(record.content, str) else record.content
    pieces = _content(content)
    for call in record.tool_calls:
        pieces += _call(call)
    if not record.prefix:
        pieces.append(Piece("control", EOS))
    return [piece._replace(generated=True) for piece in pieces]


def _call(call: ToolCall) -> list[Piece]:
    pieces = [Piece("control", TOOL_CALLS), Piece("text", call.name)]
    if call.incomplete == "name":
        return pieces
    arguments = call.arguments if call.incomplete or call.exact else _normal_json(call.arguments)
    return [*pieces, Piece("control", ARGS), Piece("text", arguments)]


def _normal_json(arguments: str) -> str:
    """JSON text respelled with Python's default separators; text that is not JSON becomes a JSON string."""
    if not arguments:
        return "{}"
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        value = arguments
    except RecursionError:
        raise ValueError("The arguments of a tool call are nested too deeply.") from None
    return json.dumps(value, ensure_ascii=False)


def _content(content: str | list[Chunk] | None) -> list[Piece]:
    pieces: list[Piece] = []
    for chunk in [Text(content)] if isinstance(content, str) else content or ():
        if isinstance(chunk, Text):
            pieces.append(Piece("text", chunk.text))
        elif isinstance(chunk, Image):
            pieces.append(Piece("image", chunk.source))
        else:
            pieces += [Piece("control", THINK), Piece("text", chunk.text)]
            pieces += [Piece("control", END_THINK)] if chunk.closed else []
    return pieces


_LAYOUTS = {"system": _system, "user": _user, "assistant": _assistant, "tool": _tool}
