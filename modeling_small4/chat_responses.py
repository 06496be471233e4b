"""What a model generated, read back into a message: thinking, content and tool calls apart.

Fed with control tokens and text in the order of generation, whole or in bits, by token id or as decoded text.
Must not know: tokenizers, torch, how a prompt is laid out.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .chat_messages import check_function_name
from .reasoning import ARGS, END_THINK, EOS, THINK, TOOL_CALLS

THINKING, CONTENT, CALLS = "thinking", "content", "tool_calls"


@dataclass
class _Chunk:
    channel: str
    text: str = ""
    closed: bool = False

    def as_dict(self) -> dict[str, Any]:
        if self.channel == CONTENT:
            return {"type": "text", "text": self.text}
        return {"type": "thinking", "thinking": self.text, "closed": self.closed}


@dataclass
class _Call:
    name: str = ""
    arguments: str | None = None


class ResponseReader:
    """Reads one answer. Feed it with `control` and `text`; each returns the `(channel, text)` pieces that became
    certain, channel being "thinking", "content" or "tool_calls" (a call streams as its name, then its arguments;
    a second call begins with a line break). `message` is the answer so far."""

    def __init__(self) -> None:
        self._state = CONTENT
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chunks: list[_Chunk] = []
        self._calls: list[_Call] = []
        self.finished = False

    def control(self, token: str) -> list[tuple[str, str]]:
        """A control token. Those that have no meaning in an answer are dropped."""
        pieces = self.flush()
        if self.finished:
            return pieces
        if token == EOS:
            self.finished = True
        elif token == THINK:
            self._state = THINKING
            self._chunks.append(_Chunk(THINKING))
        elif token == END_THINK and self._state == THINKING:
            self._state = CONTENT
            self._chunks[-1].closed = True
        elif token == TOOL_CALLS:
            self._state = CALLS
            pieces += [(CALLS, "\n")] if self._calls else []
            self._calls.append(_Call())
        elif token == ARGS and self._state == CALLS and self._calls[-1].arguments is None:
            self._calls[-1].arguments = ""
        return pieces

    def data(self, data: bytes) -> list[tuple[str, str]]:
        """Bytes of text; a character that is cut off waits for the rest."""
        return self.text(self._decoder.decode(data))

    def text(self, text: str) -> list[tuple[str, str]]:
        if self.finished or not text:
            return []
        if self._state == CALLS:
            call = self._calls[-1]
            if call.arguments is None:
                call.name += text
            else:
                call.arguments += text
        else:
            if not self._chunks or self._chunks[-1].channel != self._state:
                self._chunks.append(_Chunk(self._state))
            self._chunks[-1].text += text
        return [(self._state, text)]

    def flush(self) -> list[tuple[str, str]]:
        """Gives out what waits for the rest of a character; call it when no more comes."""
        return self.text(self._decoder.decode(b"", final=True))

    def message(self) -> dict[str, Any]:
        """`{"role", "reasoning_content", "content", "tool_calls"}`, ready to be put back into `messages`.

        `reasoning_closed: False` is added when the last thought was not closed, `empty: True` when nothing was said,
        and `incomplete` to a call that broke off or has no valid name. Where these cannot say what was generated, what
        can is added, and holds as long as it agrees with the rest: `chunks` (content after which thoughts follow,
        spaces at its end) and `arguments_text` in a call's function (JSON spelled in another way than Python's).
        """
        thoughts = [chunk for chunk in self._chunks if chunk.channel == THINKING]
        message: dict[str, Any] = {
            "role": "assistant",
            "reasoning_content": "".join(chunk.text for chunk in thoughts) if thoughts else None,
            "content": "".join(chunk.text for chunk in self._chunks if chunk.channel == CONTENT),
            "tool_calls": [_call_message(call, index) for index, call in enumerate(self._calls)],
        }
        if thoughts and not thoughts[-1].closed:
            message["reasoning_closed"] = False
        if not self._chunks and not self._calls:
            message["empty"] = True
        if not self._plain():
            message["chunks"] = [chunk.as_dict() for chunk in self._chunks]
        return message

    def _plain(self) -> bool:
        """Whether it is one thought, or none, and then text, in the form in which a prompt renders them."""
        if any(chunk.channel == THINKING for chunk in self._chunks[1:]):
            return False
        return len(self._chunks) != 1 or self._chunks[0].channel == THINKING or self._chunks[0].text[-1] != " "


def _call_message(call: _Call, index: int) -> dict[str, Any]:
    """The id is not generated by the model; it is derived from the call, so that the same answer reads the same."""
    digest = hashlib.sha256(json.dumps([index, call.name, call.arguments]).encode()).hexdigest()[:9]
    function: dict[str, Any] = {"name": call.name, "arguments": call.arguments or ""}
    out: dict[str, Any] = {"id": digest, "type": "function", "function": function}
    if call.arguments is None:
        return {**out, "incomplete": "name"}
    try:
        check_function_name(call.name)
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return {**out, "incomplete": "arguments"}
    if isinstance(value, dict):
        function["arguments"] = value
    if json.dumps(value, ensure_ascii=False) != call.arguments:
        function["arguments_text"] = call.arguments
    return out


class SpecialTokenSplitter:
    """Cuts decoded text at control tokens, across any chunk borders. Feed it text; it yields `(is_control, text)`."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._pattern, self._starts, self._longest = _found_by(tuple(tokens))
        self._rest = ""

    def feed(self, text: str, final: bool = False) -> list[tuple[bool, str]]:
        text = self._rest + text
        out: list[tuple[bool, str]] = []
        begin = 0
        for match in self._pattern.finditer(text):
            if match.start() > begin:
                out.append((False, text[begin : match.start()]))
            out.append((True, match.group()))
            begin = match.end()
        text = text[begin:]
        held = 0 if final else self._held(text)
        self._rest = text[len(text) - held :] if held else ""
        text = text[: len(text) - held]
        return [*out, (False, text)] if text else out

    def _held(self, text: str) -> int:
        """How many last characters may be the beginning of a control token."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length:] in self._starts:
                return length
        return 0


@lru_cache(maxsize=8)  # a vocabulary has a thousand, and every answer is cut
def _found_by(tokens: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str], int]:
    """The pattern of any of the tokens, the longest first; their beginnings; the length of the longest."""
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
    starts = frozenset(token[:length] for token in tokens for length in range(1, len(token)))
    return pattern, starts, max(map(len, tokens))
