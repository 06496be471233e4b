"""Reads the tokens of one answer into thinking, content and tool calls as they arrive, by id: text is never mistaken
for a special token.

Also finds stop strings and removes them from the content. Knows nothing of requests, models or HTTP.
"""

import codecs
import json
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, field

from ..reasoning import ARGS, END_THINK, THINK, TOOL_CALLS
from .sampling import Reported

THINKING, CONTENT, NAME, ARGUMENTS = "thinking", "content", "name", "arguments"
_LETTERS = string.ascii_letters + string.digits


@dataclass
class Call:
    """A tool call. `whole` is set when its arguments are valid JSON and something follows them."""

    name: str = ""
    arguments: str = ""
    id: str = field(default_factory=lambda: "".join(secrets.choice(_LETTERS) for _ in range(9)))
    whole: bool = False


@dataclass(frozen=True)
class Delta:
    """A piece of an answer that is certain: of the thought, of the content, or of the arguments of the `call` with that
    index. `begins` marks the first piece of a call. `reports`: log probabilities of the content's tokens.
    """

    channel: str
    text: str
    call: int = 0
    begins: Call | None = None
    reports: tuple[Reported, ...] = ()


class Reader:
    """Reads one answer.

    Args:
        control: id -> special token.
        token_bytes: id -> bytes of any other.
        eos: ids that end the message.
        stops: strings that end the answer; content up to the first of them is kept.
        begun: the part of the answer that is in the prompt; it is read, but not returned again.
        raw: plain text, without thoughts and calls.
    """

    def __init__(
        self,
        control: dict[int, str],
        token_bytes: Callable[[int], bytes],
        eos: set[int],
        stops: list[str],
        begun: list[int],
        raw: bool = False,
    ) -> None:
        self._control, self._bytes, self._eos, self._stops, self._raw = control, token_bytes, eos, stops, raw
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state, self._held, self._reports = CONTENT, "", []  # type: ignore[var-annotated]
        self.calls: list[Call] = []
        self.parts: dict[str, list[str]] = {THINKING: [], CONTENT: []}
        self.thinking_tokens = 0
        self.thought = self.stopped = False
        for token in begun:
            self._step(token, None)
        self._held, self._reports = "", []
        self.parts = {THINKING: [], CONTENT: []}
        self.calls = self.calls if self._state in (NAME, ARGUMENTS) else []
        self.thought, self.stopped = self._state == THINKING, False

    @property
    def thinking(self) -> str | None:
        """The thought, or None."""
        return "".join(self.parts[THINKING]) if self.thought else None

    @property
    def content(self) -> str:
        return "".join(self.parts[CONTENT])

    def feed(self, token: int, report: Reported | None) -> list[Delta]:
        """The pieces that are certain after one more token. `stopped` is set if it completes a stop string."""
        deltas = self._kept(self._step(token, report))
        self.thinking_tokens += self._state == THINKING and token not in self._control
        return deltas

    def finish(self, ended: bool) -> list[Delta]:
        """The pieces that were held back. `ended`: the message ended by itself, so its last call is whole if it is
        JSON.
        """
        deltas = self._text(self._decoder.decode(b"", final=True), ())
        if self._held and not self.stopped:
            deltas.append(self._given(self._held))
        if ended:
            self._close_call()
        return self._kept(deltas)

    def _kept(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            if delta.channel in self.parts:
                self.parts[delta.channel].append(delta.text)
        return deltas

    def _step(self, token: int, report: Reported | None) -> list[Delta]:
        special = self._control.get(token)
        reports = () if report is None or self._state != CONTENT else (report,)
        if special is None:
            return self._text(self._decoder.decode(self._bytes(token)), reports)
        deltas = self._text(self._decoder.decode(b"", final=True), ())
        self._decoder.reset()
        return deltas if self._raw or token in self._eos else deltas + self._special(special)

    def _special(self, token: str) -> list[Delta]:
        deltas: list[Delta] = []
        if self._state == CONTENT and token in (THINK, TOOL_CALLS) and self._held:
            deltas.append(self._given(self._held))  # a stop string does not continue across a special token
        if token == THINK:
            self._state, self.thought = THINKING, True
        elif token == END_THINK and self._state == THINKING:
            self._state = CONTENT
        elif token == TOOL_CALLS:
            self._close_call()
            self.calls.append(Call())
            self._state = NAME
        elif token == ARGS and self._state == NAME:
            self._state = ARGUMENTS
            deltas.append(Delta(ARGUMENTS, "", len(self.calls) - 1, self.calls[-1]))
        return deltas

    def _text(self, text: str, reports: tuple[Reported, ...]) -> list[Delta]:
        if self._state == NAME:
            self.calls[-1].name += text
            return []
        if self._state == ARGUMENTS:
            self.calls[-1].arguments += text
            return [Delta(ARGUMENTS, text, len(self.calls) - 1)] if text else []
        if self._state == THINKING:
            return [Delta(THINKING, text)] if text else []
        self._held, self._reports = self._held + text, [*self._reports, *reports]
        if not text:
            return []
        found = min((place for stop in self._stops if (place := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped, text = True, self._held[:found]
            return [self._given(text)] if text else []
        held = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        text, rest = self._held[: len(self._held) - held], self._held[len(self._held) - held :]
        return [self._given(text, rest)] if text else []

    def _given(self, text: str, rest: str = "") -> Delta:
        reports, self._held, self._reports = tuple(self._reports), rest, []
        return Delta(CONTENT, text, reports=reports)

    def _close_call(self) -> None:
        """Marks the last call whole if its arguments are a JSON object."""
        if self.calls and self._state in (NAME, ARGUMENTS):
            try:
                self.calls[-1].whole = isinstance(json.loads(self.calls[-1].arguments), dict)
            except (ValueError, RecursionError):
                self.calls[-1].whole = False


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of the text may be the start of the stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
