"""Reading answers by token: decoded text that remembers its control tokens, and a reader fed while an answer is
written.

Must not know: how ids become text (the tokenizer's `events` says), prompts, models.
"""

from typing import Any, Protocol

from .chat_responses import ResponseReader, SpecialTokenSplitter
from .reasoning import BOS, END_INST, END_TOOL_RESULTS, PAD

Events = list[tuple[bool, Any]]
_ANSWER_STARTS_AFTER = (END_INST, END_TOOL_RESULTS)


class Source(Protocol):
    """What a reader needs of a tokenizer."""

    @property
    def control_ids(self) -> dict[str, int]: ...
    def events(self, source: object) -> Events: ...


class Decoded(str):
    """Decoded ids that still know which control tokens in them were ids and which are spelled out in text.

    Pipelines decode first and parse then; this carries the difference through, also through their cutting off of the
    prompt. `events` is as in `Small4Tokenizer.events`.
    """

    events: list[tuple[bool, str]]

    @classmethod
    def of(cls, text: str, events: list[tuple[bool, str]]) -> "Decoded":
        decoded = cls(text)
        decoded.events = events
        return decoded

    def __getitem__(self, key: Any) -> str:
        text = super().__getitem__(key)
        if not isinstance(key, slice) or key.stop is not None or key.step is not None:
            return text
        skip, rest = len(self) - len(text), []
        for is_control, value in self.events:
            if skip < len(value):
                rest.append((is_control and not skip, value[skip:]))
            skip = max(skip - len(value), 0)
        return Decoded.of(text, rest)


class TokenReader:
    """Reads an answer while it is generated: `feed` with ids or decoded text returns `(channel, text)` pieces."""

    def __init__(self, tokenizer: Source, prefix: Any = None) -> None:
        self._tokenizer = tokenizer
        self._reader = ResponseReader()
        self._splitter = SpecialTokenSplitter(tokenizer.control_ids)
        if prefix is not None and len(prefix):
            events = tokenizer.events(rows(prefix)[0][0])
            start = answer_start(events)
            self._take(events[start:] if start else [])

    def feed(self, source: object) -> list[tuple[str, str]]:
        """Takes ids (list, array, tensor) or text."""
        if isinstance(source, Decoded):
            return self._take(source.events)
        if isinstance(source, str):
            return self._take(self._splitter.feed(source))
        if isinstance(source, list) and source and isinstance(source[0], tuple):
            return self._take(source)
        return self._take(self._tokenizer.events(rows(source)[0][0]))

    def finish(self) -> list[tuple[str, str]]:
        """What was held back because it could have been the beginning of a control token or character."""
        return self._take(self._splitter.feed("", final=True)) + self._reader.flush()

    def message(self) -> dict[str, Any]:
        """The message read, as `parse_response` returns it."""
        self.finish()
        return self._reader.message()

    def _take(self, events: Events) -> list[tuple[str, str]]:
        out: list[tuple[str, str]] = []
        for is_control, value in events:
            if is_control:
                out += self._reader.control(value)
            else:
                out += self._reader.text(value) if isinstance(value, str) else self._reader.data(value)
        return out


def read(tokenizer: Source, answer: object, prefix: object = None) -> dict[str, Any]:
    """One whole answer, ids or text, as a message. Without a prefix it may be a whole sequence, its prompt included."""
    if prefix is None:
        answer = tokenizer.events(answer)
        while answer and answer[0] == (True, PAD):
            answer = answer[1:]
        if answer and answer[0] == (True, BOS):
            answer = answer[answer_start(answer) :]
    reader = TokenReader(tokenizer, prefix)
    reader.feed(answer)
    return reader.message()


def answer_start(events: Events) -> int:
    """Where the last turn of the assistant begins."""
    after = [index for index, (is_control, value) in enumerate(events) if is_control and value in _ANSWER_STARTS_AFTER]
    return after[-1] + 1 if after else 0


def rows(source: Any) -> tuple[list[Any], bool]:
    """One answer or many -> a list of them, each text or a list of ids, and whether they were many."""
    if isinstance(source, str):
        return [source], False
    if hasattr(source, "tolist"):
        source = source.tolist()
    if isinstance(source, int):
        source = [source]
    source = list(source)
    if source and not isinstance(source[0], int):
        return [
            row.tolist() if hasattr(row, "tolist") else row if isinstance(row, str) else list(row) for row in source
        ], True
    return [source], False
