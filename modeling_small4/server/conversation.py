"""Turns messages and items of requests into a conversation of the chat format. Nothing in them is ignored silently.

Chats have `messages`, responses have `input` items. An error names the path of what is wrong. Knows nothing of prompts
and decoding.
"""

from typing import Any

from ..files_reading import shown
from .errors import ApiError, blamed_on

# Keys without a meaning for the model: they are sent back with answers of this or another server, or by clients'
# classes.
_SILENT = frozenset(
    ("name", "annotations", "parsed", "provider_specific_fields", "cache_control", "weight", "id", "status", "phase")
)
_ONLY_NULL = frozenset(("audio", "function_call"))
_COMMON = frozenset(("role", "content"))
_ASSISTANT = _COMMON | {"tool_calls", "reasoning_content", "reasoning", "prefix", "refusal", "thinking_blocks"}
_KEYS = {
    "system": _COMMON, "developer": _COMMON, "user": _COMMON, "assistant": _ASSISTANT,
    "tool": _COMMON | {"tool_call_id"},
}  # fmt: skip
_KEPT = frozenset(("chunks", "empty", "reasoning_closed"))  # in our own parsed answers


def from_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation of a chat request.

    Raises:
        ApiError: A message or a part of it that cannot be read; `param` is its path.
    """
    if not messages:
        raise ApiError("messages is empty; give at least one.", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def from_input(given: str | list[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The conversation of a responses request: the instructions, then its items. Consecutive items of the assistant
    (thought, text, calls) are one message.

    Raises:
        ApiError: As in `from_messages`.
    """
    out: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*out, {"role": "user", "content": given}]
    if not given:
        raise ApiError("input is empty; give at least one item.", "input")
    for index, item in enumerate(given):
        message = _item(item, f"input[{index}]")
        if message["role"] == "assistant" and out and out[-1]["role"] == "assistant":
            _join(out[-1], message)
        else:
            out.append(message)
    for message in out:
        if message["role"] == "assistant":
            message["empty"] = _says_nothing(message)
    return out


def _message(message: dict[str, Any], at: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _KEYS:
        said = "is missing" if "role" not in message else f"is {shown(role)}"
        raise ApiError(f"{at}.role {said}; allowed are {', '.join(_KEYS)}.", f"{at}.role")
    for key, value in message.items():
        known = key in _KEYS[role] or key in _SILENT or (role == "assistant" and key in _KEPT)
        if not known and not (value is None and key in _ONLY_NULL) and value is not None:
            raise ApiError(f"{at}.{key} is not supported in a message of the role {shown(role)}.", f"{at}.{key}")
    out = {key: value for key, value in message.items() if key in _KEYS[role] | _KEPT and value is not None}
    if role == "assistant":
        return _assistant(out, at)
    if "content" not in out:
        raise ApiError(f"{at}.content is missing.", f"{at}.content")
    out["content"] = _content(out["content"], role, f"{at}.content")
    if role == "tool" and not isinstance(out.get("tool_call_id"), str):
        raise ApiError(f"{at}.tool_call_id must be a string.", f"{at}.tool_call_id")
    return out


def _assistant(message: dict[str, Any], at: str) -> dict[str, Any]:
    refusal = message.pop("refusal", None)
    blocks = message.pop("thinking_blocks", None)
    if "content" in message:
        message["content"] = _content(message["content"], "assistant", f"{at}.content")
    elif refusal is not None:
        message["content"] = _string(refusal, f"{at}.refusal")
    for key in ("reasoning_content", "reasoning"):
        if key in message:
            message[key] = _string(message[key], f"{at}.{key}")
    if blocks and not {"reasoning_content", "reasoning"} & message.keys():
        message["reasoning_content"] = "".join(_thinking_block(each, f"{at}.thinking_blocks") for each in _list(blocks,
            f"{at}.thinking_blocks"))  # fmt: skip
    if "prefix" in message and not isinstance(message["prefix"], bool):
        raise ApiError(f"{at}.prefix must be true or false.", f"{at}.prefix")
    calls = _list(message.get("tool_calls", []), f"{at}.tool_calls")
    message["tool_calls"] = [_call(call, f"{at}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if _says_nothing(message):
        message["empty"] = True
    return message


def _says_nothing(message: dict[str, Any]) -> bool:
    """Whether the assistant's answer is empty, which is allowed."""
    content = message.get("content")
    if isinstance(content, list) and all(part == {"type": "text", "text": ""} for part in content):
        message["content"] = content = ""
    return not (content or message.get("tool_calls") or {"reasoning_content", "reasoning"} & message.keys())


def _call(call: Any, at: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise ApiError(f"{at} must be a call of a function: {{id, type, function: {{name, arguments}}}}.", at)
    out = {"id": _string(call.get("id"), f"{at}.id"), "type": "function"}
    name = _string(function.get("name"), f"{at}.function.name")
    arguments = function.get("arguments", "")
    if not isinstance(arguments, (str, dict)) and arguments is not None:
        raise ApiError(f"{at}.function.arguments must be a string.", f"{at}.function.arguments")
    return out | {"function": {"name": name, "arguments": arguments}}


def _content(content: object, role: str, at: str) -> Any:
    """A string, or a list of the chat format's chunks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(f"{at} must be a string or an array of parts.", at)
    if role in ("system", "developer") and any(
        isinstance(part, dict) and "image" in str(part.get("type")) for part in content
    ):
        raise ApiError(f"{at}: only messages of the user and of tools can hold images.", at)
    return [_part(part, role, f"{at}[{index}]") for index, part in enumerate(content)]


def _part(part: object, role: str, at: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise ApiError(f"{at} must be an object with a type.", at)
    if kind in ("text", "input_text", "output_text"):
        return {"type": "text", "text": _string(part.get("text"), f"{at}.text")}
    if kind == "refusal" and role == "assistant":
        return {"type": "text", "text": _string(part.get("refusal"), f"{at}.refusal")}
    if kind == "thinking" and role == "assistant":
        return {"type": "thinking", "thinking": _thinking(part.get("thinking"), at)}
    if kind in ("image_url", "input_image", "image") and role in ("user", "tool"):
        return {"type": "image", "url": _image(part, at)}
    raise ApiError(
        f"{at} has the type {shown(kind)}, which is not supported in a message of the role {shown(role)}.", f"{at}.type"
    )


def _image(part: dict[str, Any], at: str) -> str:
    """The URL of an image, in any of its forms. Access is checked elsewhere."""
    if part.get("detail") not in (None, "auto", "high", "original", "low"):
        raise ApiError(f"{at}.detail must be auto, low or high.", f"{at}.detail")
    if part.get("file_id") is not None:
        raise ApiError(f"{at}.file_id is not supported; give the image as a data URL.", f"{at}.file_id")
    key = next((key for key in ("image_url", "url", "image", "base64") if part.get(key) is not None), "image_url")
    value, where = part.get(key), f"{at}.{key}"
    if isinstance(value, dict):
        if value.get("detail") not in (None, "auto", "high", "original", "low"):
            raise ApiError(f"{where}.detail must be auto, low or high.", f"{where}.detail")
        value, where = value.get("url"), f"{where}.url"
    value = _string(value, where)
    return f"data:;base64,{value}" if key == "base64" and not value.startswith("data:") else value


def _thinking(value: object, at: str) -> str:
    """Text, or Mistral's list of text parts."""
    if isinstance(value, list):
        return "".join(_string(part.get("text") if isinstance(part, dict) else None,
            f"{at}.thinking[{index}].text") for index, part in enumerate(value))  # fmt: skip
    return _string(value, f"{at}.thinking")


def _thinking_block(block: object, at: str) -> str:
    if not isinstance(block, dict):
        raise ApiError(f"{at} must hold objects.", at)
    return _string(block.get("thinking", ""), at)


def _item(item: dict[str, Any], at: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message":
        return _message({key: value for key, value in item.items() if key != "type"}, at)
    if kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "function": {"name": item.get("name"), "arguments": item.get("arguments", "")},
        }
        return {"role": "assistant", "tool_calls": [_call(call, at)]}
    if kind == "function_call_output":
        output = item.get("output")
        content = _content(output, "tool", f"{at}.output")
        return {"role": "tool", "tool_call_id": _string(item.get("call_id"), f"{at}.call_id"), "content": content}
    if kind == "reasoning":
        texts = item.get("content") or item.get("summary") or []
        thought = "".join(_string(part.get("text") if isinstance(part, dict) else None,
            f"{at}.content[{index}].text") for index, part in enumerate(_list(texts, f"{at}.content")))  # fmt: skip
        return {"role": "assistant"} | ({"reasoning_content": thought} if texts else {})
    raise ApiError(f"{at}.type is {shown(kind)}, which is not supported.", f"{at}.type")


def _join(message: dict[str, Any], more: dict[str, Any]) -> None:
    """Appends what the assistant wrote next."""
    for key in ("reasoning_content", "content"):
        if more.get(key) is None:
            continue
        if message.get(key) is None:
            message[key] = more[key]
        elif isinstance(message[key], str) and isinstance(more[key], str):
            message[key] += more[key]
        else:
            both = (message[key], more[key])
            message[key] = [
                part for each in both for part in ([{"type": "text", "text": each}] if isinstance(each, str) else each)
            ]
    message["tool_calls"] = [*message.get("tool_calls", []), *more.get("tool_calls", [])]
    message.pop("empty", None)
    if more.get("prefix"):
        message["prefix"] = True


def _string(value: object, at: str) -> str:
    if not isinstance(value, str):
        raise ApiError(f"{at} must be a string, but is {'missing' if value is None else shown(value, 60)}.", at)
    return value


def _list(value: object, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise ApiError(f"{at} must be an array.", at)
    return value


__all__ = ["blamed_on", "from_input", "from_messages"]
