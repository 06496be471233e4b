"""A fast tokenizer for prompt strings: special tokens are found in them except where they are escaped (`chat_text`).

Also says which tokens are special, and encodes plain texts in which none is. Must not know: messages, images.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Regex, normalizers
from transformers import BatchEncoding
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from .chat import Piece
from .chat_text import PromptText, SpecialTokens, render
from .grammar import Vocabulary
from .reasoning import BOS
from .tokenization_text import PlainText, without_surrogates

# What `collate` does itself; other options of the tokenizer's call are left to transformers.
COLLATE_OPTIONS = (
    *("padding", "truncation", "max_length", "padding_side", "pad_to_multiple_of"),
    *("return_attention_mask", "return_tensors", "verbose"),
)
CALL_OPTIONS = frozenset(
    (
        *COLLATE_OPTIONS,
        *("add_special_tokens", "stride", "is_split_into_words", "return_token_type_ids", "return_overflowing_tokens"),
        *("return_special_tokens_mask", "return_offsets_mapping", "return_length", "split_special_tokens"),
        "sanitize_control_tokens",
    )
)


class PromptTokenizer(TokenizersBackend):
    """Base of `Small4Tokenizer`. (transformers rebuilds a tokenizer whose own class has an `__init__`.)"""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_escapes()
        self._built = True

    def _encode_plus(
        self, text: Any, text_pair: object = None, add_special_tokens: bool = True, **kwargs: Any
    ) -> BatchEncoding:
        unknown = sorted(key for key in kwargs if key not in CALL_OPTIONS and not key.endswith("_strategy"))
        if unknown:
            raise ValueError(f"The tokenizer has no argument {', '.join(unknown)}.")
        kwargs.pop("sanitize_control_tokens", None)  # escaped anyway
        if text_pair is not None or kwargs.get("is_split_into_words"):
            return super()._encode_plus(text, text_pair, add_special_tokens, **kwargs)
        many = isinstance(text, (list, tuple))
        texts = [_readable(each) for each in (text if many else [text])]
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            texts = [self.special.protect(each) if isinstance(each, str) else each for each in texts]
        elif add_special_tokens and self._adds_bos:
            begun = [isinstance(each, str) and each.startswith(BOS) for each in texts]
            if any(begun):  # none is given a second one
                add_special_tokens = False
                if not all(begun) and kwargs.get("return_offsets_mapping"):
                    raise ValueError(f"return_offsets_mapping needs texts that all begin with {BOS}, or none of them.")
                texts = [each if has else BOS + each for each, has in zip(texts, begun, strict=True)]
        return super()._encode_plus(texts if many else texts[0], None, add_special_tokens, **kwargs)

    @property
    def _adds_bos(self) -> bool:
        return self._tokenizer.num_special_tokens_to_add(False) > 0

    def _add_tokens(self, new_tokens: object, special_tokens: bool = False) -> int:
        added = super()._add_tokens(new_tokens, special_tokens)
        if "_built" in self.__dict__:
            self._set_escapes()
        return added

    def _set_escapes(self) -> None:
        """Has the tokenizer read escapes, after special tokens are cut out of a text, and forgets what was known of
        these.
        """
        for name in ("control_ids", "control_tokens", "special", "_plain", "_has_more_tokens", "grammar_vocabulary"):
            self.__dict__.pop(name, None)
        self._tokenizer.normalizer = normalizers.Replace(Regex(self.special.escapes), "")

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """Control token -> id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items() if token.special}

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """Id -> control token."""
        return {index: token for token, index in self.control_ids.items()}

    def control_id(self, token: str) -> int:
        """The id of a control token; ValueError when the vocabulary has none."""
        if token not in self.control_ids:
            raise ValueError(f"This tokenizer has no control token {token}, which the conversation needs.")
        return self.control_ids[token]

    @cached_property
    def special(self) -> SpecialTokens:
        """The special tokens, to be found and escaped in text."""
        return SpecialTokens(self.control_ids)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts, each encoded on its own; none is ever a special token, whatever the texts spell. Tokens
        that were added to the vocabulary and are not special are found, as transformers finds them."""
        if self._has_more_tokens:
            escaped = [self.special.escape(without_surrogates(text)) for text in texts]
            plain = {"add_special_tokens": False, "split_special_tokens": False}
            return self(escaped, **plain)["input_ids"] if escaped else []
        return self._plain.encode(texts)

    def prompt_text(self, pieces: Sequence[Piece]) -> PromptText:
        """The prompt string of a laid-out conversation, which `self` encodes as each of its texts encoded on its own.

        Raises:
            ValueError: there is none.
        """
        prompt = render(pieces, self.special)
        typed = [piece.value for piece in pieces if piece.kind == "text" and not self.special.is_plain(piece.value)]
        if typed and not self.control_tokens.keys().isdisjoint(
            self(self.special.escape("\n".join(typed)))["input_ids"][1:]
        ):
            raise ValueError(
                "A text spells a special token that this vocabulary cannot write as text in a prompt string; use "
                "tokenize=True."
            )
        return prompt

    @cached_property
    def _has_more_tokens(self) -> bool:
        """Whether tokens were added that are not special."""
        return len(self.added_tokens_decoder) > len(self.control_ids)

    @cached_property
    def _plain(self) -> PlainText:
        return PlainText(self._tokenizer, self.control_ids)

    @cached_property
    def grammar_vocabulary(self) -> Vocabulary:
        """The tokens as the engine of grammars reads them; an added one stands for its own text."""
        added = {index: token.content.encode() for index, token in self.added_tokens_decoder.items()}
        tokens = [added[index] if index in added else self.token_bytes(index) for index in range(len(self))]
        return Vocabulary(tokens, self.control_ids, self.eos_token_id, self.encode_texts)

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for; empty for special tokens and ids outside the vocabulary."""
        token = None if index in self.control_tokens else self._tokenizer.id_to_token(index)
        return self._plain.token_bytes(token or "")


def _readable(text: object) -> Any:
    """The text as the tokenizers library takes it, which knows no halves of surrogate pairs."""
    if not isinstance(text, str):
        return text
    return text if text.isascii() or text.isprintable() else without_surrogates(text)
