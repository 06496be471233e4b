"""The tokenizer: transformers' fast tokenizer, with chats encoded piece by piece as mistral-common encodes them.

A chat never passes through one string: each text is encoded on its own, without control tokens, and the control
tokens are set between. Must not know: pixels (the processor brings each image's ids), model classes.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BatchEncoding
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import logging

from .ascii_words import AsciiWords
from .chat import Piece, lay_out
from .chat_answers import Decoded, Events, TokenReader, read, rows
from .chat_responses import SpecialTokenSplitter
from .reasoning import IMG, check_reasoning_mode, resolve_reasoning_mode

logger = logging.get_logger(__name__)


class Prompt(str):
    """A chat as text that still knows its pieces, so that encoding it keeps user text apart from control tokens."""

    pieces: list[Piece]

    @classmethod
    def of(cls, pieces: list[Piece]) -> "Prompt":
        prompt = cls("".join(IMG if piece.kind == "image" else piece.value for piece in pieces))
        prompt.pieces = pieces
        return prompt


class Small4Tokenizer(TokenizersBackend):
    """Tekken tokenizer of Mistral Small 4.

    `tokenizer(text)` recognises control tokens written in `text`, as transformers' tokenizers do (it takes raw
    prompts; `split_special_tokens=True` turns that off). `apply_chat_template` never does.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        reasoning_mode: str | None = None,
        reasoning_effort: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encodes a conversation, or a list of them, with mistral-common's ids.

        Arguments and return values are transformers'. `reasoning_mode` ("none" or "high"; `reasoning_effort` is the
        same) sets the model-settings block; left out, the tokenizer's default stands. With another `chat_template`
        than the tokenizer's own, transformers renders it.

        Raises:
            ValueError: a conversation that mistral-common refuses; images, which only the processor can encode.
        """
        if chat_template is not None and chat_template != self.chat_template:
            if (mode := resolve_reasoning_mode(reasoning_mode, reasoning_effort)) is not None:
                kwargs |= {"reasoning_mode": mode, "reasoning_effort": mode}
            return super().apply_chat_template(
                conversation, tools, documents, chat_template, add_generation_prompt, continue_final_message, tokenize,
                padding=padding, truncation=truncation, max_length=max_length, return_tensors=return_tensors,
                return_dict=return_dict, return_assistant_tokens_mask=return_assistant_tokens_mask,
                tokenizer_kwargs=tokenizer_kwargs, **kwargs,
            )  # fmt: skip
        if documents is not None:
            raise ValueError("The chat format has no place for documents; put their text into a message.")
        mode = self.reasoning_mode(reasoning_mode, reasoning_effort, kwargs)
        batched = is_batch(conversation)
        prompts = [
            lay_out(chat, tools, mode, continue_final_message, finished=not add_generation_prompt)
            for chat in (conversation if batched else [conversation])
        ]
        if not tokenize:
            texts = [Prompt.of(pieces) for pieces in prompts]
            return texts if batched else texts[0]
        encoded = self.encode_prompts(prompts, [[] for _ in prompts])
        out = self.collate(
            encoded, padding, truncation, max_length, return_tensors, return_assistant_tokens_mask, batched=batched
        )
        return out if return_dict else out["input_ids"]

    def reasoning_mode(self, mode: Any, effort: Any, others: dict[str, Any]) -> str | None:
        """The mode to write into a prompt, None where the tokenizer knows no settings.

        `others` are further template variables: `enable_thinking`, with which transformers' server says the same, is
        understood; the rest draws a warning.
        """
        others = {key: value for key, value in others.items() if value is not None}
        thinking = others.pop("enable_thinking", None)
        others.pop("sanitize_control_tokens", None)  # always so
        others.pop("load_audio_from_video", None)  # said by transformers' server whatever the model
        if others:
            logger.warning_once(f"The chat format has no variables {sorted(others)}; they are ignored.")
        asked = resolve_reasoning_mode(mode, effort)
        if asked is None and thinking is not None:
            asked = "high" if thinking else "none"
        known = self.init_kwargs.get("reasoning_settings")
        if known is None:
            if asked is not None:
                raise ValueError(
                    f"reasoning_mode is {asked!r}, but this tokenizer has no model settings; leave it out."
                )
            return None
        if asked is None:
            return known["default"]
        if asked not in known["values"]:
            raise ValueError(f"reasoning_mode is {asked!r}, but this tokenizer allows only {known['values']}.")
        return check_reasoning_mode(asked)

    def encode_prompts(
        self, prompts: Sequence[Sequence[Piece]], image_ids: Sequence[Sequence[list[int]]]
    ) -> list[tuple[list[int], list[int]]]:
        """Ids of laid-out prompts.

        Args:
            prompts: one list of pieces for each prompt.
            image_ids: for each prompt, the ids of each of its images in order.

        Returns:
            For each prompt its ids and, as long, 1 where the assistant wrote and 0 elsewhere.
        """
        texts = iter(self.encode_texts([p.value for pieces in prompts for p in pieces if p.kind == "text"]))
        out = []
        for pieces, images in zip(prompts, image_ids, strict=True):
            ids: list[int] = []
            generated: list[int] = []
            next_images = iter(images)
            for piece in pieces:
                if piece.kind == "control":
                    new = [self.control_id(piece.value)]
                elif piece.kind == "text":
                    new = next(texts)
                elif (image := next(next_images, None)) is not None:
                    new = image
                else:
                    raise ValueError(
                        "The tokenizer alone cannot encode images; use the processor (AutoProcessor) or "
                        'pipeline("image-text-to-text").'
                    )
                ids += new
                generated += [int(piece.generated)] * len(new)
            out.append((ids, generated))
        return out

    def collate(
        self,
        encoded: list[tuple[list[int], list[int]]],
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        assistant_masks: bool = False,
        batched: bool = True,
    ) -> BatchEncoding:
        """A batch of `input_ids`, `attention_mask` and, when asked for, `assistant_masks`; padded as `padding` says, and
        always when tensors of several prompts are asked for."""
        limit = max_length or self.model_max_length
        if truncation:
            keep = slice(-limit, None) if self.truncation_side == "left" else slice(limit)
            encoded = [(ids[keep], mask[keep]) for ids, mask in encoded]
        longest = max(len(ids) for ids, _ in encoded)
        if padding == "max_length":
            longest = max(longest, limit)
        width = longest if padding or return_tensors is not None else None
        rows = {
            "input_ids": [self._padded(ids, width, self.pad_token_id) for ids, _ in encoded],
            "attention_mask": [self._padded([1] * len(ids), width, 0) for ids, _ in encoded],
        }
        if assistant_masks:
            rows["assistant_masks"] = [self._padded(mask, width, 0) for _, mask in encoded]
        if return_tensors == "pt":
            return BatchEncoding({key: torch.from_numpy(np.array(value, np.int64)) for key, value in rows.items()})
        if not batched and return_tensors is None:
            return BatchEncoding({key: value[0] for key, value in rows.items()})
        return BatchEncoding(rows, tensor_type=return_tensors)

    def _padded(self, row: list[int], width: int | None, filler: int) -> list[int]:
        padding = [filler] * (width - len(row)) if width is not None else []
        return padding + row if self.padding_side == "left" else row + padding

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        """As in transformers; a prompt from `apply_chat_template(tokenize=False)` keeps its user text plain."""
        prompts = [text] if isinstance(text, str) else text
        if args or not isinstance(prompts, (list, tuple)) or not prompts:
            return super().__call__(text, *args, **kwargs)
        if not all(isinstance(prompt, Prompt) for prompt in prompts):
            return super().__call__(text, *args, **kwargs)
        encoded = self.encode_prompts([prompt.pieces for prompt in prompts], [[] for _ in prompts])
        known = {key: kwargs[key] for key in ("padding", "truncation", "max_length", "return_tensors") if key in kwargs}
        return self.collate(encoded, **known, batched=not isinstance(text, str))

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

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts, each encoded on its own; none is ever a control id, whatever the texts spell."""
        out = [self._ascii.encode(text) for text in texts]
        missing = [index for index, ids in enumerate(out) if ids is None]
        for index, ids in zip(missing, self._encode_any([texts[index] for index in missing]), strict=True):
            out[index] = ids
        return [ids for ids in out if ids is not None]

    def _encode_any(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # half of a surrogate pair: it becomes U+FFFD
            texts = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        out = [encoding.ids for encoding in encodings]
        if any(not self.control_tokens.keys().isdisjoint(ids) for ids in out):
            out = [encoding.ids for encoding in self._strict.encode_batch_fast(list(texts), add_special_tokens=False)]
        return out

    @cached_property
    def _ascii(self) -> AsciiWords:
        splits = json.loads(self._tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
        return AsciiWords(splits[0]["pattern"]["Regex"], self._word_ids)

    def _word_ids(self, word: str) -> list[int]:
        """Ids of one ASCII word that is not to be split again."""
        shown = word.translate({byte: character for character, byte in self._byte_of.items()})
        ids = [token.id for token in self._plain.model.tokenize(shown)]
        if not self.control_tokens.keys().isdisjoint(ids):
            ids = [token.id for token in self._strict.model.tokenize(shown)]
        return ids

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same model without added tokens: nothing is looked for in the text before it is split into words."""
        plain = Tokenizer(self._tokenizer.model)
        plain.pre_tokenizer = self._tokenizer.pre_tokenizer
        return plain

    @cached_property
    def _strict(self) -> Tokenizer:
        """`_plain` with the control tokens taken out of the vocabulary too. Needed only where the split pattern lets a
        whole control token through as one word, which Tekken's does not."""
        state = json.loads(self._tokenizer.to_str())
        state["added_tokens"] = []
        state["post_processor"] = None
        vocab = state["model"]["vocab"]
        state["model"]["vocab"] = {token: index for token, index in vocab.items() if token not in self.control_ids}
        return Tokenizer.from_str(json.dumps(state))

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """Byte-level BPE writes each byte as a printable character: this is the way back."""
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        shifted = [byte for byte in range(256) if byte not in plain]
        return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(shifted)}

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens and ids outside the vocabulary."""
        token = None if index in self.control_tokens else self._tokenizer.id_to_token(index)
        return bytes(self._byte_of[character] for character in token or "")

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if skip_special_tokens:
            return text
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        events = [(control, v if control else v.decode("utf-8", "replace")) for control, v in self.events(ids)]
        return Decoded.of(text, events) if "".join(value for _, value in events) == text else text

    def parse_response(self, response: Any, schema: Any = None, *, prefix: Any = None, tools: Any = None) -> Any:
        """Reads what the model generated into a message: `role`, `reasoning_content`, `content`, `tool_calls`.

        Args:
            response: ids (list, array, tensor) or decoded text, of one answer or a batch of them. Ids are safer: text
                in which the model spells out a control token cannot be told from the token itself.
            schema: another response template than the tokenizer's own; then transformers parses.
            prefix: the prompt, ids or text; an assistant message begun in it belongs to the answer.
            tools: accepted for transformers; arguments are JSON and need no casting.

        Returns:
            A dict, or a list of them for a batch. It can be put back into `messages`. `reasoning_closed: False` says
            that the thought was not closed, `incomplete` in a tool call that it broke off or has no valid name, `empty:
            True` that nothing was said; `chunks` and `arguments_text` keep unusual answers as they were generated.
        """
        if schema is not None and schema != self.response_template:
            return super().parse_response(response, schema, prefix=prefix, tools=tools)
        answers, batched = rows(response)
        prefixes, _ = rows(prefix) if prefix is not None and len(prefix) else ([None], False)
        if len(prefixes) == 1:
            prefixes = prefixes * len(answers)
        if len(prefixes) != len(answers):
            raise ValueError(f"There are {len(answers)} answers but {len(prefixes)} prefixes; give one or as many.")
        messages = [read(self, answer, start) for answer, start in zip(answers, prefixes, strict=True)]
        return messages if batched else messages[0]

    def response_reader(self, prefix: Any = None) -> TokenReader:
        """A reader to be fed with ids or text as they are generated, for streaming."""
        return TokenReader(self, prefix)

    def events(self, source: Any) -> Events:
        """`(True, control token)` and `(False, text or bytes)` in order."""
        if isinstance(source, Decoded):
            return list(source.events)
        if isinstance(source, str):
            return SpecialTokenSplitter(self.control_ids).feed(source, final=True)
        out: Events = []
        for index in source:
            token = self.control_tokens.get(index)
            if token is not None:
                out.append((True, token))
            elif out and not out[-1][0]:
                out[-1] = (False, out[-1][1] + self.token_bytes(index))
            else:
                out.append((False, self.token_bytes(index)))
        return out


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations, not one."""
    return (
        isinstance(conversation, Sequence)
        and len(conversation) > 0
        and isinstance(conversation[0], Sequence)
        and not isinstance(conversation[0], (str, bytes, Mapping))
    )
