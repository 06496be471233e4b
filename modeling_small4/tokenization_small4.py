"""The tokenizer: transformers' fast tokenizer, with chats encoded piece by piece as mistral-common encodes them.

A chat never passes through one string: each text is encoded on its own, without special tokens, and the special
tokens are set between. A prompt string is encoded by `tokenizer(text)`; in it, special tokens that users spelled are
escaped (`chat_text`). Must not know: pixels (the processor brings each image's ids), model classes.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import BatchEncoding
from transformers.utils import logging
from transformers.utils.generic import PaddingStrategy

from .chat import Piece, lay_out
from .chat_answers import Decoded, Events, TokenReader, read, rows
from .chat_messages import is_batch, read_objects
from .chat_responses import SpecialTokenSplitter
from .chat_template import chat_template as own_template
from .chat_template import rendering
from .chat_text import escape_all
from .files_reading import check_json, check_text, folder_of, naming, one_line, read_json, shown
from .files_saving import NoLinksFollowed
from .reasoning import check_reasoning_mode, resolve_reasoning_mode
from .tokenization_checks import check_reasoning_settings, check_tokenizer
from .tokenization_prompts import CALL_OPTIONS, COLLATE_OPTIONS, PromptTokenizer

logger = logging.get_logger(__name__)

# Template variables with which callers say what is so anyway, or what other models need.
_NO_MEANING = ("sanitize_control_tokens", "load_audio_from_video")


class Small4Tokenizer(NoLinksFollowed, PromptTokenizer):
    """Tekken tokenizer of Mistral Small 4.

    `tokenizer(text)` takes prompt strings: special tokens written in `text` are recognized, as in transformers, except
    where they are escaped (`[\\INST]` is the text `[INST]`), as `apply_chat_template` escapes those that users typed. A
    text that begins with `<s>` is not given another. `split_special_tokens=True` takes the whole text as plain text.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """As transformers'. Raises ValueError or OSError that names the file for one that is damaged, and, as there,
        AttributeError for an argument that has the name of a method.
        """
        for name in kwargs:
            if callable(getattr(cls, name, None)):
                raise AttributeError(f"{name} conflicts with the method {name} in {cls.__name__}")
        folder = folder_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if folder is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        _check_files(folder)
        with naming(f"{folder / 'tokenizer_config.json'} or tokenizer.json"):
            try:
                return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            except Exception as error:
                if type(error) is not Exception:  # which only the tokenizers library raises, over its own file
                    raise
                raise ValueError(f"{folder / 'tokenizer.json'}: {one_line(error)}") from error

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: object = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        padding: bool | str | PaddingStrategy = False,
        truncation: bool | str = False,
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
        than the tokenizer's own, transformers renders it. Special tokens that users typed are text in every case, as
        with `sanitize_control_tokens=True`.

        Raises:
            ValueError: a conversation that mistral-common refuses; images, which only the processor can encode.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True.")
        if not self.is_own_template(self.chat_template if chat_template is None else chat_template):
            variables = kwargs | self.reasoning_variables(reasoning_mode, reasoning_effort)
            tokens = {name: variables.pop(name) for name in list(variables) if name.endswith("_token")}
            with rendering():
                return super().apply_chat_template(
                    escape_all(read_objects(conversation), self.special), escape_all(tools, self.special),
                    escape_all(documents, self.special), chat_template, add_generation_prompt, continue_final_message,
                        tokenize,
                    padding=padding, truncation=truncation, max_length=max_length, return_tensors=return_tensors,
                    return_dict=return_dict, return_assistant_tokens_mask=return_assistant_tokens_mask,
                    tokenizer_kwargs=tokenizer_kwargs, **escape_all(variables, self.special), **tokens,
                )  # fmt: skip
        given = {key: kwargs.pop(key) for key in CALL_OPTIONS & kwargs.keys()}
        mode = self.reasoning_mode(reasoning_mode, reasoning_effort, kwargs)
        prompts, batched = self.lay_out(
            conversation, tools, documents, mode, add_generation_prompt, continue_final_message
        )
        if not tokenize:
            texts = [self.prompt_text(pieces) for pieces in prompts]
            return texts if batched else texts[0]
        options = {"padding": padding, "truncation": truncation, "max_length": max_length} | (tokenizer_kwargs or {})
        options = {"return_tensors": return_tensors} | options | given
        if options.keys() <= set(COLLATE_OPTIONS):
            encoded = self.encode_prompts(prompts, [[] for _ in prompts])
            out = self.collate(encoded, options, return_assistant_tokens_mask, batched)
        else:
            out = self._encode_rendered(prompts, options, return_assistant_tokens_mask, batched)
        return out if return_dict else out["input_ids"]

    def lay_out(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None,
        documents: object,
        mode: str | None,
        add_generation_prompt: bool,
        continue_final_message: bool | str,
    ) -> tuple[list[list[Piece]], bool]:
        """The pieces of each conversation, and whether it was a list of them."""
        if documents is not None:
            raise ValueError("The chat format has no place for documents; put their text into a message.")
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "add_generation_prompt and continue_final_message contradict each other: the one has the assistant "
                "begin a "
                "message, the other go on with its last one. Give one of them."
            )
        conversation = read_objects(conversation)
        batched = is_batch(conversation)
        prompts = [
            lay_out(chat, tools, mode, continue_final_message, finished=not add_generation_prompt)
            for chat in (conversation if batched else [conversation])
        ]
        return prompts, batched

    def is_own_template(self, template: str | None) -> bool:
        """Whether chats are laid out by our own code: there is no template, or it is the one that says the same in
        Jinja.
        """
        return template is None or template == self._own_template

    def reasoning_variables(self, mode: str | None, effort: str | None) -> dict[str, str]:
        """The mode under both of its names, for a template that is not ours; nothing if none was given."""
        mode = resolve_reasoning_mode(mode, effort)
        return {} if mode is None else {"reasoning_mode": mode, "reasoning_effort": mode}

    def _encode_rendered(
        self, prompts: list[list[Piece]], options: dict[str, Any], masks: bool, batched: bool
    ) -> BatchEncoding:
        """By way of prompt strings, for options that only transformers' own code knows."""
        if masks:
            others = sorted(options.keys() - set(COLLATE_OPTIONS))
            raise ValueError(f"return_assistant_tokens_mask=True cannot be combined with {', '.join(others)}.")
        texts = [self.prompt_text(pieces) for pieces in prompts]
        return self(texts if batched else texts[0], **({"add_special_tokens": False} | options))

    def reasoning_mode(self, mode: str | None, effort: str | None, others: dict[str, Any]) -> str | None:
        """The mode to write into a prompt, None where the tokenizer knows no settings.

        `others` are further template variables: `enable_thinking`, with which transformers' server says the same, is
        understood; the rest draws a warning.
        """
        others = {key: value for key, value in others.items() if value is not None and key not in _NO_MEANING}
        thinking = others.pop("enable_thinking", None)
        if "grammar" in others:
            raise ValueError(
                'A grammar is not of the prompt but of generate; in a pipeline: generate_kwargs={"grammar": ...}.'
            )
        if others:
            logger.warning_once(f"The chat format has no variables {sorted(others)}; they are ignored.")
        asked = resolve_reasoning_mode(mode, effort)
        if asked is None and thinking is not None:
            asked = "high" if thinking else "none"
        known = self.init_kwargs.get("reasoning_settings")
        if known is None:
            if asked is not None:
                raise ValueError(
                    f"reasoning_mode is {shown(asked)}, but this tokenizer has no model settings; leave it out."
                )
            return None
        if asked is None:
            return known["default"]
        if asked not in known["values"]:
            raise ValueError(f"reasoning_mode is {shown(asked)}, but this tokenizer allows only {known['values']}.")
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
        options: Mapping[str, Any],
        assistant_masks: bool = False,
        batched: bool = True,
    ) -> BatchEncoding:
        """A batch of `input_ids`, `attention_mask` and, when asked for, `assistant_masks`.

        `options` are some of `COLLATE_OPTIONS`, with transformers' meanings. Rows are padded as `padding` says, and
        always when tensors of several prompts are asked for.
        """
        options = dict(options)
        side, unit = options.pop("padding_side", None) or self.padding_side, options.get("pad_to_multiple_of") or 1
        with_mask, tensors = options.pop("return_attention_mask", None), options.pop("return_tensors", None)
        padding, truncation, limit, _ = self._get_padding_truncation_strategies(**options)
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {shown(side)}, but it must be 'left' or 'right'.")
        if truncation.value == "only_second":
            raise ValueError("truncation='only_second' needs pairs of texts, and a prompt is one text; give True.")
        if truncation.value != "do_not_truncate" and limit is not None:
            keep = slice(-limit, None) if self.truncation_side == "left" else slice(limit)
            encoded = [(ids[keep], mask[keep]) for ids, mask in encoded]
        width = None
        if padding.value != "do_not_pad" or tensors is not None:
            longest = max(len(ids) for ids, _ in encoded)
            if padding.value == "max_length" and limit is not None:
                longest = max(longest, limit)
            width = -(-longest // unit) * unit if padding.value != "do_not_pad" else longest
        rows = {"input_ids": [_padded(ids, width, self.pad_token_id, side) for ids, _ in encoded]}
        if with_mask is not False:
            rows["attention_mask"] = [_padded([1] * len(ids), width, 0, side) for ids, _ in encoded]
        if assistant_masks:
            rows["assistant_masks"] = [_padded(mask, width, 0, side) for _, mask in encoded]
        if tensors == "pt":
            return BatchEncoding({key: torch.from_numpy(np.array(value, np.int64)) for key, value in rows.items()})
        if not batched and tensors is None:
            return BatchEncoding({key: value[0] for key, value in rows.items()})
        return BatchEncoding(rows, tensor_type=tensors)

    @cached_property
    def _own_template(self) -> str:
        return own_template(self.init_kwargs.get("reasoning_settings"))

    def _decode(self, token_ids: object, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if skip_special_tokens:
            return text
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        events = [(control, v if control else v.decode("utf-8", "replace")) for control, v in self.events(ids)]
        return Decoded.of(text, events) if "".join(value for _, value in events) == text else text

    def parse_response(
        self, response: object, schema: object = None, *, prefix: Any = None, tools: object = None
    ) -> Any:
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

    def response_reader(self, prefix: object = None) -> TokenReader:
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


def _check_files(folder: Path) -> None:
    """Look at the files of a tokenizer. Raises ValueError or OSError that names the file for one that is damaged."""
    check_json(folder, "special_tokens_map.json")
    check_text(folder / "chat_template.jinja")
    for name in ("tokenizer_config.json", "tokenizer.json"):
        if os.path.lexists(folder / name):
            content = read_json(folder / name)
            with naming(folder / name):
                if name == "tokenizer.json":
                    check_tokenizer(content)
                else:
                    check_reasoning_settings(content.get("reasoning_settings"))


def _padded(row: list[int], width: int | None, filler: int, side: str) -> list[int]:
    padding = [filler] * (width - len(row)) if width is not None else []
    return padding + row if side == "left" else row + padding
