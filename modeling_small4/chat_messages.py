"""Chat messages as users write them, read into plain records and checked by mistral-common's rules (tokenizer v15).

Accepts OpenAI's and transformers' spellings. A request that mistral-common refuses is a ValueError here too.
Must not know: control tokens, tokenizers, how an image is loaded.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any

from .files_reading import one_line, shown

ROLES = ("system", "user", "assistant", "tool")
_MAY_FOLLOW = {
    "system": ("system", "user", "assistant"),
    "user": ("system", "user", "assistant"),
    "assistant": ("user", "assistant", "tool"),
    "tool": ("user", "assistant", "tool"),
}
_IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
_FUNCTION_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")


@dataclass
class Text:
    text: str


@dataclass
class Thought:
    text: str
    closed: bool = True


@dataclass
class Image:
    """`source` is whatever the user gave (PIL image, array, bytes, URL, ...); None is a placeholder to be filled."""

    source: Any


Chunk = Text | Thought | Image


@dataclass
class ToolCall:
    """`arguments` is JSON text, written back verbatim where it is `exact`. `incomplete` ("name" or "arguments") marks a
    call that generation broke off: it is exact too, and without `[ARGS]` when even the name was not finished. `id` is
    None where none was given."""

    id: str | None
    name: str
    arguments: str
    incomplete: str | None = None
    exact: bool = False


@dataclass
class Message:
    """One message. `prefix` leaves the assistant's open, `empty` is the assistant saying nothing, `exact` content is
    the chunks that were generated, not to be tidied."""

    role: str
    content: str | list[Chunk] | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None
    prefix: bool = False
    empty: bool = False
    exact: bool = False


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Reads one conversation. Raises ValueError naming the message at fault."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"A conversation is a list of message dicts, but got {type(messages).__name__}.")
    if not messages:
        raise ValueError("The conversation is empty; give at least one message.")
    return [_read_message(message, index) for index, message in enumerate(messages)]


def is_batch(conversation: object) -> bool:
    """Whether this is a list of conversations, not one."""
    return (
        isinstance(conversation, Sequence)
        and len(conversation) > 0
        and isinstance(conversation[0], Sequence)
        and not isinstance(conversation[0], (str, bytes, Mapping))
    )


def read_objects(value: object) -> Any:
    """Conversations with every message object in them as a dict: dataclasses, pydantic models, and lists of messages
    that are an attribute `messages` of something, as transformers takes them. What is none of these, an image say,
    stays as it is.

    Raises:
        ValueError: The conversation holds itself, or is nested too deeply.
    """
    try:
        return _as_plain(value)
    except RecursionError:
        raise ValueError("The conversation is nested too deeply, or holds itself.") from None


def _as_plain(value: object) -> Any:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return value
    if isinstance(value, Mapping):
        return {key: _as_plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_as_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _as_plain(getattr(value, item.name)) for item in fields(value)}
    if hasattr(value, "model_dump"):
        return _as_plain(value.model_dump())
    return _as_plain(value.messages) if hasattr(value, "messages") else value


def check_conversation(messages: list[Message], finished: bool) -> None:
    """mistral-common's structural rules.

    Args:
        finished: the conversation may end with a finished assistant message (training), instead of having to end
            where the model is to speak.

    Raises:
        ValueError: what is wrong, and where.
    """
    if len(messages) == 1 and messages[0].role not in ("user", "system"):
        raise ValueError(f"A conversation starts with a user or system message, not {shown(messages[0].role)} alone.")
    last = messages[-1]
    if len(messages) > 1 and last.role == "assistant" and not last.prefix and not finished:
        raise ValueError(
            "The last message is the assistant's, so there is nothing to answer. Pass continue_final_message=True to "
            "have it continued, or add_generation_prompt=False to encode a finished conversation."
        )
    for previous, message in pairwise(messages):
        if message.role not in _MAY_FOLLOW[previous.role]:
            raise ValueError(f"A {shown(message.role)} message cannot follow a {shown(previous.role)} message.")
        if previous.prefix:
            raise ValueError("Only the last message can be an assistant message to continue (prefix=True).")
    _check_tool_pairing(messages)
    for index, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id is None and index == 0:
            raise ValueError('A tool message needs the "tool_call_id" of the call it answers.')
        _check_names_and_ids(message)


def _check_tool_pairing(messages: list[Message]) -> None:
    """Every result answers a call of the assistant message before it; no result is missing when it speaks again.

    Where neither calls nor results have ids, as trainers and transformers' examples write them, results answer the
    calls in order. mistral-common refuses these; ids are not part of the prompt.
    """
    expected: set[str | None] = set()
    observed: set[str | None] = set()
    unanswered = 0  # calls without ids
    unnamed = False
    for message in messages[1:]:  # as in mistral-common, the first message opens no calls
        if message.role == "tool":
            if unnamed and message.tool_call_id is None:
                unanswered -= 1
                continue
            if message.tool_call_id in observed:
                raise ValueError(f"Two tool results have the tool_call_id {shown(message.tool_call_id)}.")
            if message.tool_call_id not in expected:
                raise ValueError(
                    f"The tool result with tool_call_id {shown(message.tool_call_id)} answers no call of the assistant "
                    f"message before it, whose call ids are {shown(sorted(map(str, expected)))}."
                )
            observed.add(message.tool_call_id)
        elif message.role == "assistant":
            if len(expected) != len(observed) or unanswered > 0:
                which = shown(sorted(map(str, expected - observed))) if expected else "before it"
                raise ValueError(f"Results are missing for the tool calls {which}.")
            expected, observed = set(), set()
            calls = [call for call in message.tool_calls if call.incomplete is None]  # nothing answers a broken one
            unnamed = bool(calls) and all(call.id is None for call in calls)
            unanswered = len(calls) if unnamed else 0
            for call in message.tool_calls:
                if call.id is not None and call.id in expected:
                    raise ValueError(f"Two tool calls of one assistant message have the id {shown(call.id)}.")
                if call.incomplete is None and not unnamed:
                    expected.add(call.id)


def _check_names_and_ids(message: Message) -> None:
    if message.role == "tool":
        if message.tool_call_id in ("", "null"):
            raise ValueError('A tool message needs the "tool_call_id" of the call it answers.')
        if message.name is not None:
            check_function_name(message.name)
    unnamed = all(call.id is None for call in message.tool_calls)
    for call in message.tool_calls:
        if call.id in ("", "null") or (call.id is None and not unnamed):
            raise ValueError(f'The tool call of {shown(call.name)} needs an "id", a string other than "" and "null".')
        if call.incomplete is None:
            check_function_name(call.name)


def check_function_name(name: str) -> None:
    """Raises ValueError unless `name` is 1 to 64 letters, digits, underscores and dashes."""
    if not _FUNCTION_NAME.match(name):
        raise ValueError(f"The function name {shown(name)} must be 1 to 64 of the characters a-z, A-Z, 0-9, _ and -.")


def _read_message(message: object, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"Message {index} must be a dict with 'role' and 'content', but is {type(message).__name__}.")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise ValueError(f"Message {index} has the role {shown(role)}; allowed are {', '.join(ROLES)}.")
    try:
        content = _read_content(message.get("content"), role)
        if role == "assistant":
            return _read_assistant(message, content)
    except ValueError as error:
        raise ValueError(f"Message {index} ({role}): {error}") from None
    if content is None:
        raise ValueError(f"Message {index} ({role}) has no content.")
    if role != "tool":
        return Message(role, content)
    call_id, name = message.get("tool_call_id"), message.get("name")
    for key, value in (("tool_call_id", call_id), ("name", name)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"Message {index} (tool): {key!r} must be a string, but is {shown(value)}.")
    return Message(role, content, tool_call_id=call_id, name=name)


def _read_assistant(message: Mapping[str, Any], content: str | list[Chunk] | None) -> Message:
    thought = _read_reasoning(message)
    exact = _generated_chunks(message)
    if exact is not None:
        content = exact
    elif thought is not None:
        if isinstance(content, list):
            if any(isinstance(chunk, Thought) for chunk in content):
                raise ValueError("thinking is given twice, as reasoning_content and as a chunk of content; give one.")
            content = [thought, *content]
        else:
            content = [thought] if content is None else [thought, Text(content)]
    calls = message.get("tool_calls")
    if calls is not None and (isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence)):
        raise ValueError(f"'tool_calls' must be a list, but is {type(calls).__name__}.")
    prefix = message.get("prefix") or False
    if not isinstance(prefix, bool):
        raise ValueError(f"'prefix' must be true or false, but is {shown(prefix)}.")
    calls = [_read_call(call) for call in calls or ()]
    empty = message.get("empty") is True
    return Message("assistant", content, calls, prefix=prefix, empty=empty, exact=exact is not None)


def _generated_chunks(message: Mapping[str, Any]) -> list[Chunk] | None:
    """The `chunks` of a parsed answer, unless its content or thought was changed since."""
    if message.get("chunks") is None:
        return None
    chunks = _read_content(message["chunks"], "assistant")
    if not isinstance(chunks, list):
        raise ValueError(f"'chunks' must be a list, but is {type(chunks).__name__}.")
    content = "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))
    thoughts = [chunk.text for chunk in chunks if isinstance(chunk, Thought)]
    same = message.get("content") == content
    return chunks if same and message.get("reasoning_content") == ("".join(thoughts) if thoughts else None) else None


def _read_reasoning(message: Mapping[str, Any]) -> Thought | None:
    """`reasoning_content` or its other name `reasoning`; `reasoning_closed: False` leaves the thought open."""
    given = [message[key] for key in ("reasoning_content", "reasoning") if message.get(key) is not None]
    if not given:
        return None
    if any(not isinstance(text, str) for text in given):
        raise ValueError(f"'reasoning_content' must be a string, but is {type(given[0]).__name__}.")
    if len(set(given)) > 1:
        raise ValueError("'reasoning_content' and 'reasoning' are two names for one field and differ; give one.")
    return Thought(given[0], closed=message.get("reasoning_closed") is not False)


def _read_content(content: object, role: str) -> str | list[Chunk] | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ValueError(f"'content' must be a string or a list of chunks, but is {type(content).__name__}.")
    return [_read_chunk(chunk, role) for chunk in content]


def _read_chunk(chunk: object, role: str) -> Chunk:
    if not isinstance(chunk, Mapping):
        raise ValueError(f"a content chunk must be a dict with a 'type', but is {type(chunk).__name__}.")
    kind = chunk.get("type")
    if kind == "text":
        return Text(_string(chunk, "text"))
    if kind == "thinking" and role == "assistant":
        closed = chunk.get("closed", True)
        if not isinstance(closed, bool):
            raise ValueError(f"'closed' must be true or false, but is {shown(closed)}.")
        return Thought(_string(chunk, "thinking"), closed)
    if kind in ("image", "image_url") and role in ("user", "tool"):
        return Image(_image_source(chunk))
    allowed = {"assistant": "text and thinking", "system": "text"}.get(role, "text, image and image_url")
    raise ValueError(f"content of type {shown(kind)} cannot stand here; allowed are {allowed}.")


def _image_source(chunk: Mapping[str, Any]) -> Any:
    sources = [chunk[key] for key in _IMAGE_KEYS if chunk.get(key) is not None]
    if len(sources) > 1:
        raise ValueError(f"an image chunk names {len(sources)} images; one chunk holds one image.")
    if not sources:
        return None
    source = sources[0]
    if isinstance(source, Mapping):
        return _string(source, "url")
    if chunk.get("base64") is not None and isinstance(source, str) and not source.startswith("data:"):
        return f"data:;base64,{source}"
    return source


def _read_call(call: Any) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise ValueError(
            'a tool call must look like {"id": ..., "type": "function", "function": {"name", "arguments"}}.'
        )
    call_id = call.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise ValueError(f"the 'id' of a tool call must be a string, but is {shown(call_id)}.")
    incomplete = call.get("incomplete")
    if incomplete not in (None, "name", "arguments"):
        raise ValueError(f"'incomplete' of a tool call must be 'name' or 'arguments', but is {shown(incomplete)}.")
    name, exact = _string(function, "name"), function.get("arguments_text")
    if exact is not None and _reads_as(exact, function.get("arguments")):
        return ToolCall(call_id, name, exact, incomplete, exact=True)
    return ToolCall(call_id, name, _arguments(function), incomplete)


def _reads_as(text: object, arguments: object) -> bool:
    """Whether JSON text is another spelling of a call's arguments, and not a remnant of what was changed since."""
    if not isinstance(text, str):
        raise ValueError(f"'arguments_text' must be a string, but is {type(text).__name__}.")
    try:
        return text == arguments or bool(json.loads(text) == arguments)
    except (ValueError, RecursionError):
        return False


def _arguments(function: Mapping[str, Any]) -> str:
    """Arguments as JSON text; a dict is dumped as mistral-common does, whose later steps normalize the text."""
    if "arguments" not in function:
        raise ValueError(f"the call of {shown(function['name'])} has no 'arguments'; give a dict or JSON text.")
    arguments = function["arguments"]
    if arguments is None:
        return "{}"
    if isinstance(arguments, str):
        return arguments
    if not isinstance(arguments, Mapping):
        raise ValueError(f"'arguments' must be a dict or JSON text, but is {type(arguments).__name__}.")
    try:
        return json.dumps(dict(arguments))
    except TypeError as error:
        raise ValueError(f"the arguments of {shown(function['name'])} are not JSON: {one_line(error)}.") from None


def _string(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, but is {'missing' if value is None else shown(value)}.")
    return value
