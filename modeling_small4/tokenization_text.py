"""Ids of plain texts, in which nothing is a special token whatever it spells, and the bytes of tokens.

Must not know: chats, prompt strings.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

# What Unicode classes of a split pattern come down to in ASCII text.
_CLASSES = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9", "Lt": "", "Lm": "", "Lo": "", "M": ""}
_MOST_WORDS = 100_000
_LONGEST_WORD = 64


class PlainText:
    """Encodes texts with the model of a byte-level tokenizer, without its special tokens.

    Args:
        backend: the whole tokenizer.
        special: content of each of its special tokens -> id.
    """

    def __init__(self, backend: Tokenizer, special: dict[str, int]) -> None:
        self._backend = backend
        self._special = special
        self._ids = set(special.values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Half of a surrogate pair is read as U+FFFD."""
        out = [self._ascii.encode(text) for text in texts]
        missing = [index for index, ids in enumerate(out) if ids is None]
        for index, ids in zip(missing, self._encode_any([texts[index] for index in missing]), strict=True):
            out[index] = ids
        return [ids for ids in out if ids is not None]

    def token_bytes(self, token: str) -> bytes:
        """The bytes for which a token of the vocabulary stands."""
        return bytes(self._byte_of[character] for character in token)

    def _encode_any(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            texts = [without_surrogates(text) for text in texts]
            encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        out = [encoding.ids for encoding in encodings]
        if not self._allowed(index for ids in out for index in ids):
            out = [encoding.ids for encoding in self._strict.encode_batch_fast(list(texts), add_special_tokens=False)]
        return out

    def _allowed(self, ids: Collection[int] | object) -> bool:
        return self._ids.isdisjoint(ids)  # type: ignore[arg-type]

    @cached_property
    def _ascii(self) -> "_AsciiWords":
        splits = json.loads(self._backend.to_str())["pre_tokenizer"]["pretokenizers"]
        return _AsciiWords(splits[0]["pattern"]["Regex"], self._word_ids)

    def _word_ids(self, word: str) -> list[int]:
        """Ids of one ASCII word that is not to be split again."""
        shown = word.translate({byte: character for character, byte in self._byte_of.items()})
        ids = [token.id for token in self._plain.model.tokenize(shown)]
        return ids if self._allowed(ids) else [token.id for token in self._strict.model.tokenize(shown)]

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same model without added tokens: nothing is looked for in the text before it is split into words."""
        plain = Tokenizer(self._backend.model)
        plain.pre_tokenizer = self._backend.pre_tokenizer
        return plain

    @cached_property
    def _strict(self) -> Tokenizer:
        """`_plain` with the special tokens taken out of the vocabulary too. Needed only where the split pattern lets a
        whole special token through as one word, which Tekken's does not."""
        state = json.loads(self._backend.to_str())
        state |= {"added_tokens": [], "post_processor": None, "normalizer": None}
        vocab = state["model"]["vocab"]
        state["model"]["vocab"] = {token: index for token, index in vocab.items() if token not in self._special}
        return Tokenizer.from_str(json.dumps(state))

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """Byte-level BPE writes each byte as a printable character: this is the way back."""
        return {character: byte for byte, character in bytes_to_unicode().items()}


def without_surrogates(text: str) -> str:
    """The text with each half of a surrogate pair replaced by U+FFFD; whole pairs become their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _AsciiWords:
    """Encodes ASCII texts: words are split with `re`, and each word's ids are remembered. Prompts repeat most of their
    words, so this takes a fraction of the tokenizer's time, and gives what it gives.

    Args:
        pattern: the regular expression that splits text into words, with `\\p{..}` classes.
        encode_word: the ids of one word.
    """

    def __init__(self, pattern: str, encode_word: Callable[[str], list[int]]) -> None:
        self._pattern = _ascii_pattern(pattern)
        self._encode_word = encode_word
        self._ids: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int] | None:
        """The ids of `text`; None when it is not ASCII, or the pattern is one that `re` does not know."""
        if self._pattern is None or not text.isascii():
            return None
        words = self._pattern.findall(text)
        if sum(map(len, words)) != len(text):  # the pattern leaves something out
            return None
        ids: list[int] = []
        known = self._ids.get
        for word in words:
            ids += known(word) or self._new(word)
        return ids

    def _new(self, word: str) -> list[int]:
        ids = self._encode_word(word)
        if len(self._ids) >= _MOST_WORDS:
            self._ids = {}
        if len(word) <= _LONGEST_WORD:
            self._ids[word] = ids
        return ids


def _ascii_pattern(pattern: str) -> re.Pattern[str] | None:
    """`pattern` for Python's `re`, equal to it on ASCII text; None when it uses anything that is not known here."""
    out, inside = "", False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        if part.startswith("\\p{"):
            known = _CLASSES.get(part[3:-1])
            if known is None:
                return None
            out += known if inside else f"[{known}]"
            continue
        if not part.startswith("\\"):
            inside = part == "[" or (inside and part != "]")
        elif part[1] not in "srnStfv/" and part[1].isalnum():
            return None
        out += part
    try:
        compiled = re.compile(out, re.ASCII)
    except re.error:
        return None
    return compiled if compiled.groups == 0 else None
