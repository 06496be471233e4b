"""Random conversations, valid and not, that mix every kind of message with text meant to break an encoder.

Must not know: any tokenizer. Everything follows from the `random.Random` given.
"""

import base64
import io
import json
import random
from typing import Any

from PIL import Image

from tests.tekken_files import CONTROL

SCRAPS = [
    "Hello", " world", "What is 12 + 30?", "naïve café", "Ünïcödé", "日本語の文章", "中文 文本", "한국어", "العربية", "עברית",  # noqa: E501
    "हिन्दी", "ไทย", "🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "\u200b", "\u202etxt", "\ufeff", "\x00", "\x7f", "\t", "\n",
    "\r\n",
    "\n\n\n", "   ", " ", "  trailing  ", "def f(x):\n    return x ** "
        "2\n", "<div class='a'>&amp;</div>", '{"a": [1, 2]}',
    "SELECT * FROM t;", "a\\nb", '"quoted"', "\\", "//", "1234567890", "3.14159", "I'm", "DON'T", "ǅungla", "𝔘𝔫𝔦", "ﬁ",
    "\U0010ffff", "̈", "x" * 50, "CamelCaseWord", "snake_case_word", "…", "—", "«»", "€", "½", "²", "Ⅷ", "ß", "İ",
    "system", "[", "]", "[/", "<", "</", "[INST", "INST]", "[/THINK", "THINK]", "<s", "s>", "[ INST ]",
    "CONTINUE_FINAL_MESSAGE_TAG ", "{{ messages }}", "{% raw %}", "\u2028", "\ue000", "\uf8ff", "\ud83d", "\ude00",
    "a\udfffb",
]  # fmt: skip
MARKS = [*CONTROL, "<SPECIAL_20>", "<SPECIAL_999>"]


def text(rng: random.Random, least: int = 0) -> str:
    parts = [rng.choice(MARKS if rng.random() < 0.3 else SCRAPS) for _ in range(rng.randint(least, 6))]
    return rng.choice(["", " ", ""]).join(parts)


def image_url(rng: random.Random) -> str:
    size = (rng.randint(1, 90), rng.randint(1, 90))
    image = Image.new("RGB", size, tuple(rng.randint(0, 255) for _ in range(3)))
    out = io.BytesIO()
    image.save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def value(rng: random.Random, depth: int = 0) -> Any:
    kinds = [lambda: text(rng), lambda: rng.randint(-(10**6), 10**12), lambda: rng.random() * 1e3, lambda: None]
    kinds += [lambda: rng.random() < 0.5]
    if depth < 3:
        kinds.append(lambda: [value(rng, depth + 1) for _ in range(rng.randint(0, 3))])
        kinds.append(lambda: {text(rng): value(rng, depth + 1) for _ in range(rng.randint(0, 3))})
    return rng.choice(kinds)()


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.choice(["string", "integer", "number", "boolean", "null", "object", "array"])
    out: dict[str, Any] = {"type": kind, "description": text(rng)}
    if kind == "string" and rng.random() < 0.5:
        out["enum"] = [text(rng) for _ in range(3)]
    if kind == "object" and depth < 3:
        out["properties"] = {text(rng) or "p": schema(rng, depth + 1) for _ in range(rng.randint(0, 3))}
        out["required"] = sorted(out["properties"])[:1]
    if kind == "array" and depth < 3:
        out["items"] = schema(rng, depth + 1)
    return out


def tool(rng: random.Random) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name(rng), "parameters": {"type": "object", "properties": {}}}
    for _ in range(rng.randint(0, 3)):
        function["parameters"]["properties"][text(rng, 1)] = schema(rng)
    if rng.random() < 0.8:
        function["description"] = text(rng)
    if rng.random() < 0.2:
        function["strict"] = rng.random() < 0.5
    return {"type": "function", "function": function}


def name(rng: random.Random) -> str:
    return rng.choice(["get_weather", "f", "add-2", "Search_Web", "x" * 64])


def chunks(rng: random.Random, kinds: list[str]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(kinds)
        if kind == "text":
            out.append({"type": "text", "text": text(rng)})
        elif kind == "thinking":
            out.append({"type": "thinking", "thinking": text(rng)})
            if rng.random() < 0.3:
                out[-1]["closed"] = rng.random() < 0.5
        else:
            url = image_url(rng)
            out.append({"type": "image_url", "image_url": url if rng.random() < 0.5 else {"url": url}})
    return out


def user(rng: random.Random, images: bool) -> dict[str, Any]:
    kinds = ["text", "text", "image"] if images else ["text"]
    return {"role": "user", "content": text(rng) if rng.random() < 0.5 else chunks(rng, kinds)}


def call(rng: random.Random, index: int) -> dict[str, Any]:
    arguments: Any = {text(rng): value(rng) for _ in range(rng.randint(0, 3))}
    if rng.random() < 0.4:
        arguments = json.dumps(arguments, ensure_ascii=rng.random() < 0.5, separators=rng.choice([None, (",", ":")]))
    elif rng.random() < 0.1:
        arguments = rng.choice(["", "not json [ARGS]", '{"a": ', "[1, 2]", '"x"', "null", " {} ", None])
    return {"id": f"call{index}", "type": "function", "function": {"name": name(rng), "arguments": arguments}}


def assistant(rng: random.Random, counter: list[int]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    form = rng.random()
    if form < 0.5:
        message["content"] = text(rng, 1)
    elif form < 0.75:
        message["content"] = [*chunks(rng, ["thinking", "text"]), {"type": "text", "text": text(rng, 1)}]
    elif form < 0.85:
        message["content"] = None
    if form < 0.5 and rng.random() < 0.4:
        message[rng.choice(["reasoning_content", "reasoning"])] = text(rng)
    if rng.random() < 0.4 or form >= 0.75:
        message["tool_calls"] = []
        for _ in range(rng.randint(1, 3)):
            counter[0] += 1
            message["tool_calls"].append(call(rng, counter[0]))
    return message


def results(rng: random.Random, message: dict[str, Any], images: bool) -> list[dict[str, Any]]:
    out = []
    for each in message.get("tool_calls") or ():
        content = text(rng) if rng.random() < 0.6 else chunks(rng, ["text", "image"] if images else ["text"])
        out.append({"role": "tool", "tool_call_id": each["id"], "content": content})
        if rng.random() < 0.5:
            out[-1]["name"] = each["function"]["name"]
    rng.shuffle(out)
    return out


def conversation(rng: random.Random, images: bool = True) -> dict[str, Any]:
    """`{"messages", "tools", "mode", "continue_final_message"}`; valid, but for rare arguments that are not JSON."""
    counter = [0]
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        content = text(rng) if rng.random() < 0.7 else chunks(rng, ["text"])
        messages.append({"role": rng.choice(["system", "system", "developer"]), "content": content})
    messages += [user(rng, images) for _ in range(rng.choice([1, 1, 1, 2]))]
    for _ in range(rng.randint(0, 3)):
        answer = assistant(rng, counter)
        messages.append(answer)
        messages += results(rng, answer, images)
        if messages[-1]["role"] == "tool" and rng.random() < 0.5:
            messages.append({"role": "assistant", "content": text(rng, 1)})
        messages += [user(rng, images) for _ in range(rng.choice([1, 1, 2]))]
    continued = rng.random() < 0.2
    if continued:
        messages.append(assistant(rng, counter))
    elif rng.random() < 0.1:
        messages.append({"role": "system", "content": text(rng)})
    return {
        "messages": messages,
        "tools": [tool(rng) for _ in range(rng.randint(1, 3))] if rng.random() < 0.4 else rng.choice([None, []]),
        "mode": rng.choice([None, "none", "high"]),
        "continue_final_message": continued,
    }


def damaged(rng: random.Random) -> dict[str, Any]:
    """A conversation with one thing changed that is usually not allowed."""
    case = conversation(rng, images=False)
    messages = case["messages"]
    position = rng.randrange(len(messages))
    target = messages[position]
    damage = rng.randrange(14)
    if damage == 0:
        del messages[position]
    elif damage == 1:
        messages.insert(position, {"role": "tool", "tool_call_id": "call1", "content": "late"})
    elif damage == 2:
        target["role"] = rng.choice(["user", "assistant", "tool", "system", "function", None])
    elif damage == 3:
        target.pop("content", None)
    elif damage == 4:
        target["content"] = rng.choice([None, 5, [], [{"type": "text"}], [{"text": "x"}], ["x"], ""])
    elif damage == 5:
        target["content"] = chunks(rng, ["thinking", "text", "audio"])
    elif damage == 6:
        for each in target.get("tool_calls") or ():
            each["id"] = rng.choice(["", "null", "call1", 7])
    elif damage == 7:
        for each in target.get("tool_calls") or ():
            each["function"]["name"] = rng.choice(["", "a b", "é", "x" * 65, "[INST]", "f\n"])
    elif damage == 8:
        target["tool_call_id"] = rng.choice([None, "", "null", "other"])
    elif damage == 9:
        case["continue_final_message"] = not case["continue_final_message"]
    elif damage == 10:
        case["tools"] = [tool(rng)]
        case["tools"][0]["function"][rng.choice(["name", "description", "parameters"])] = rng.choice(
            [None, 5, "a b", {"type": "strnig"}, {"required": "x"}, {"properties": []}, {"minLength": -1}, {}]
        )
    elif damage == 11:
        rng.shuffle(messages)
    elif damage == 12:
        target["reasoning_content"], target["reasoning"] = text(rng), text(rng)
    else:
        case["messages"] = messages[position:]
    return case
