"""Ids of plain texts, in which nothing is a special token whatever it spells, and the bytes of tokens.

Must not know: chats, prompt strings, transformers.
"""

import json
from collections.abc import Collection, Sequence
from functools import cached_property

from tokenizers import Tokenizer

from .ascii_words import AsciiWords


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
    def _ascii(self) -> AsciiWords:
        splits = json.loads(self._backend.to_str())["pre_tokenizer"]["pretokenizers"]
        return AsciiWords(splits[0]["pattern"]["Regex"], self._word_ids)

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
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        shifted = [byte for byte in range(256) if byte not in plain]
        return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(shifted)}


def without_surrogates(text: str) -> str:
    """The text with each half of a surrogate pair replaced by U+FFFD; whole pairs become their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
