"""A conversation as one string and back: special tokens spelled by users are escaped, so that they stay text.

In a prompt string every special token is one, except where a backslash stands behind its first character: `[\\INST]` is
the text `[INST]`, `[\\\\INST]` the text `[\\INST]`, and so on. Nothing else is changed. No tokenizer finds a special
token in the escaped form, so a program that does not know this rule reads text too, with the backslash. Must not know:
ids, pixels.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from .chat import Piece
from .reasoning import IMG


class SpecialTokens:
    """The special tokens of a vocabulary, found and escaped in text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = tuple(token for token in tokens if len(token) > 1)

    def escape(self, text: str) -> str:
        """The prompt string that stands for `text`. Every string has one, and no two have the same."""
        return self._starts.sub(r"\g<0>\\", text)

    def unescape(self, text: str) -> str:
        """The text for which an escaped string without special tokens stands."""
        return self._escapes.sub("", text)

    def protect(self, text: str) -> str:
        """The text with its escapes escaped, but not its special tokens."""
        return self._escapes.sub(r"\\\\", text)

    def split(self, prompt: str) -> list[tuple[bool, str]]:
        """Special tokens `(True, token)` and unescaped texts `(False, text)` of a prompt string, in order."""
        out, begin = [], 0
        for match in self._whole.finditer(prompt):
            if match.start() > begin:
                out.append((False, self.unescape(prompt[begin : match.start()])))
            out.append((True, match.group()))
            begin = match.end()
        return [*out, (False, self.unescape(prompt[begin:]))] if begin < len(prompt) else out

    def is_plain(self, text: str) -> bool:
        """Whether the text holds no special token."""
        return self._whole.search(text) is None

    @property
    def escapes(self) -> str:
        """A regular expression (of Python and of the tokenizers library) for the backslash to take out of each
        escape.
        """
        return "|".join(rf"(?<={re.escape(first)})\\(?=\\*{rest})" for first, rest in self._by_first.items()) or "(?!)"

    @cached_property
    def _escapes(self) -> re.Pattern[str]:
        return re.compile(self.escapes)

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        found = "|".join(rf"{re.escape(first)}(?=\\*{rest})" for first, rest in self._by_first.items())
        return re.compile(found or "(?!)")

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("|".join(f"{re.escape(first)}{rest}" for first, rest in self._by_first.items()) or "(?!)")

    @property
    def _by_first(self) -> dict[str, str]:
        return _branches(self._tokens)


@lru_cache(maxsize=8)  # a tokenizer is often loaded again, with the same thousand tokens
def _branches(tokens: tuple[str, ...]) -> dict[str, str]:
    """First character -> a regular expression for what follows it, the longest token first."""
    by_first: dict[str, list[str]] = {}
    for token in tokens:
        by_first.setdefault(token[0], []).append(token[1:])
    return {first: _any_of(rests) for first, rests in by_first.items()}


def _any_of(words: Iterable[str]) -> str:
    """A regular expression for any of the words, the longest first. A tree: a vocabulary has a thousand special
    tokens.
    """
    by_first: dict[str, list[str]] = {}
    for word in words:
        by_first.setdefault(word[:1], []).append(word[1:])
    ends = by_first.pop("", None) is not None
    branches = [re.escape(first) + _any_of(rests) for first, rests in sorted(by_first.items())]
    if not branches:
        return ""
    joined = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
    return joined + "?" * ends


class PromptText(str):
    """A conversation as a prompt string. `images` holds, for each `[IMG]` in it, the source that the message named, or
    None.

    Only the object itself remembers them: a part, a sum or a stored copy is a plain string, to which images are given
    anew.
    """

    images: list[Any]


def render(pieces: Sequence[Piece], special: SpecialTokens) -> PromptText:
    """The prompt string of a laid-out conversation.

    Raises:
        ValueError: the string would be read back as something else, because two texts meet in it without a special
            token between, or a special token of the vocabulary cannot be escaped.
    """
    shown = [(False, piece.value) if piece.kind == "text" else (True, piece.value) for piece in pieces]
    shown = [(True, IMG) if piece.kind == "image" else part for piece, part in zip(pieces, shown, strict=True)]
    prompt = PromptText("".join(value if is_special else special.escape(value) for is_special, value in shown))
    if special.split(prompt) != [part for part in shown if part[1]]:
        raise ValueError(
            "This conversation cannot be written as one string that is read back as it was; use tokenize=True. (It "
            "holds an "
            "unclosed thought with text behind it, or a special token that cannot be escaped.)"
        )
    prompt.images = [piece.value for piece in pieces if piece.kind == "image"]
    return prompt


def escape_all(value: object, special: SpecialTokens) -> Any:
    """Messages or tools with every text in them escaped, for a template that is not ours; images are left as they
    are.

    Raises:
        ValueError: They hold themselves, or are nested too deeply.
    """
    try:
        return _escaped(value, special)
    except RecursionError:
        raise ValueError("What the chat template is given is nested too deeply, or holds itself.") from None


def _escaped(value: object, special: SpecialTokens) -> Any:
    if isinstance(value, str):
        return special.escape(value)
    if isinstance(value, Mapping):
        is_image = value.get("type") in ("image", "image_url")
        return dict(value) if is_image else {key: _escaped(item, special) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item, special) for item in value]
    return value
