"""Short prompts with answers that are known, greedily answered in both modes, each with a verdict.

A file of prompts is JSON: `{"prompts": [{"ask": "...", "expect": ["Paris"]}, ...]}`. Further keys of a prompt: `modes`
(default: both), `max_new_tokens`, `image` (a file beside the prompts, or a drawing such as "drawing: red circle"),
`tools` (schemas) with `call` (`{"name": ..., "arguments": {...}}`) in place of `expect`.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from modeling_small4.files_reading import one_line, shown
from modeling_small4.image_sources import ImageAccess, load_image
from modeling_small4.reasoning import REASONING_MODES

from ..against import Fault
from ..checkpoint import CheckpointError, read_json
from .rows import Row, judged
from .running import Loaded

ENOUGH = 0.9  # share of right answers that each mode needs
DRAWING = "drawing:"
_LENGTH = {"none": 64, "high": 1024}
_SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Question:
    """One prompt and what its answer has to hold: one of `expect`, in any case, or the tool call `call`."""

    ask: str
    expect: tuple[str, ...] = ()
    modes: tuple[str, ...] = REASONING_MODES
    max_new_tokens: int | None = None
    image: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    call: dict[str, Any] | None = None
    folder: Path | None = None


def read_questions(file: Path) -> list[Question]:
    """The prompts in a file.

    Raises:
        CheckpointError: A prompt without `ask`, without anything to expect, or with a key or mode that is unknown.
    """
    given = read_json(file).get("prompts")
    if not isinstance(given, list) or not given:
        raise CheckpointError(f'{file}: holds no prompts; it must be {{"prompts": [{{"ask": ..., "expect": [...]}}]}}')
    return [_question(entry, f"{file}: prompt {number + 1}", file.parent) for number, entry in enumerate(given)]


def _question(entry: object, where: str, folder: Path) -> Question:
    if not isinstance(entry, dict) or not isinstance(entry.get("ask"), str):
        raise CheckpointError(f"{where} has no text under 'ask'")
    known = {"ask", "expect", "modes", "max_new_tokens", "image", "tools", "call"}
    if unknown := sorted(entry.keys() - known):
        raise CheckpointError(f"{where} has the unknown key {shown(unknown[0])}; known are {', '.join(sorted(known))}")
    expect = entry.get("expect", [])
    expect = [expect] if isinstance(expect, str) else expect
    if not isinstance(expect, list) or not all(isinstance(word, str) and word for word in expect):
        raise CheckpointError(f"{where}: 'expect' must be a text or a list of texts")
    call, modes = entry.get("call"), entry.get("modes", list(REASONING_MODES))
    if not expect and not (isinstance(call, dict) and isinstance(call.get("name"), str)):
        raise CheckpointError(f"{where} says neither what to 'expect' nor which tool to 'call'")
    if not isinstance(modes, list) or not modes or any(mode not in REASONING_MODES for mode in modes):
        raise CheckpointError(f"{where}: 'modes' must be a list of {', '.join(REASONING_MODES)}")
    length, image, tools = entry.get("max_new_tokens"), entry.get("image"), entry.get("tools", [])
    if length is not None and (type(length) is not int or length < 1):
        raise CheckpointError(f"{where}: 'max_new_tokens' must be a whole number, 1 or more")
    if image is not None and not isinstance(image, str):
        raise CheckpointError(f"{where}: 'image' must be the name of a file or a drawing such as 'drawing: red circle'")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise CheckpointError(f"{where}: 'tools' must be a list of schemas")
    return Question(entry["ask"], tuple(expect), tuple(modes), length, image, tuple(tools), call, folder)


def answer_rows(found: Loaded, questions: list[Question]) -> list[Row]:
    """One row for each mode: how many answers are right, and those that are not."""
    rows = []
    for mode in REASONING_MODES:
        asked = [question for question in questions if mode in question.modes]
        if found.model.config.vision_config is None:
            asked = [question for question in asked if question.image is None]
        if not asked:
            continue
        begin = time.perf_counter()
        verdicts = [verdict(found, question, mode) for question in asked]
        seconds = time.perf_counter() - begin
        wrong = [each for each in verdicts if not each["right"]]
        right = len(verdicts) - len(wrong)
        summary = f"{right} of {len(verdicts)} right, {seconds:.0f} s"
        faults = [Fault("wrong answer", one_line(each["ask"]), shown(each["answer"], 320)) for each in wrong]
        row = judged(
            f"answers, {mode}", faults if right < ENOUGH * len(verdicts) else [], summary, {"answers": verdicts}
        )
        rows.append(Row(row.check, row.status, summary, faults, row.data))
    return rows


def verdict(found: Loaded, question: Question, mode: str) -> dict[str, Any]:
    """The question, the answer and whether it is right."""
    try:
        message = _answer(found, question, mode)
    except (ValueError, OSError) as error:
        return {"ask": question.ask, "mode": mode, "answer": f"({one_line(error)})", "right": False}
    content = message.get("content") or ""
    if question.call is not None:
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        text = json.dumps(calls, ensure_ascii=False) if calls else content
        return {"ask": question.ask, "mode": mode, "answer": text[:300], "right": _called(calls, question.call)}
    right = any(_holds(content, word) for word in question.expect)
    return {"ask": question.ask, "mode": mode, "answer": content[:300], "right": right}


def _holds(content: str, word: str) -> bool:
    """Whether the word stands in the text, in any case and not inside a longer word or number."""
    pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
    return re.search(pattern, content.replace(",", "") if word.isdigit() else content, re.IGNORECASE) is not None


def _called(calls: list[dict[str, Any]], wanted: dict[str, Any]) -> bool:
    for call in calls:
        given = call.get("arguments")
        given = json.loads(given) if isinstance(given, str) else given or {}
        arguments = wanted.get("arguments", {})
        if call.get("name") == wanted["name"] and all(
            str(given.get(key)).casefold() == str(value).casefold() for key, value in arguments.items()
        ):
            return True
    return False


def _answer(found: Loaded, question: Question, mode: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question.ask}]
    if question.image is not None:
        content.insert(0, {"type": "image", "image": image_of(question)})
    inputs = found.inputs(content, mode, question.tools)
    length = question.max_new_tokens or _LENGTH[mode]
    options: dict[str, Any] = {**inputs, "max_new_tokens": length, "tokenizer": found.processor.tokenizer}
    out = found.model.generate(reasoning_mode=mode, do_sample=False, **options)
    message: dict[str, Any] = found.processor.parse_response(out[0, inputs["input_ids"].shape[1] :])
    return message


def image_of(question: Question) -> Image.Image:
    """The question's image, from its file or drawn.

    Raises:
        ValueError, OSError: No such file, no image, or a drawing of something else.
    """
    assert question.image is not None
    if not question.image.startswith(DRAWING):
        return load_image((question.folder or Path()) / question.image, ImageAccess(paths=True))
    words = question.image.removeprefix(DRAWING).split()
    if len(words) != 2 or words[1] not in _SHAPES:
        raise ValueError(f"{shown(question.image)}: a drawing is a color and one of {', '.join(_SHAPES)}")
    image = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(image)
    if words[1] == "circle":
        draw.ellipse((20, 20, 90, 90), fill=words[0])
    elif words[1] == "square":
        draw.rectangle((20, 20, 90, 90), fill=words[0])
    else:
        draw.polygon([(56, 18), (92, 92), (20, 92)], fill=words[0])
    return image
