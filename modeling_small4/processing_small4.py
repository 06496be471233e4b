"""The processor: messages, text and images to model inputs, and answers back to messages.

Must not know: model classes, how a conversation is laid out (`chat`), how text and images become numbers.
"""

from collections.abc import Sequence
from typing import Any

from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .chat import Piece, lay_out
from .chat_responses import SpecialTokenSplitter
from .image_processing_small4 import Small4ImageProcessor, flatten
from .image_sources import ImageAccess
from .reasoning import BOS, IMG, IMG_BREAK, IMG_END
from .tokenization_small4 import Prompt, Small4Tokenizer, is_batch

logger = logging.get_logger(__name__)

_CALL_OPTIONS = ("padding", "truncation", "max_length")


class Small4Processor(ProcessorMixin):
    """Tokenizer and image processor of one checkpoint. `image_processor` is None where the model has no vision."""

    def __init__(
        self,
        image_processor: Small4ImageProcessor | None = None,
        tokenizer: Small4Tokenizer | None = None,
        chat_template: str | None = None,
    ) -> None:
        if tokenizer is None:
            raise ValueError("Small4Processor needs a tokenizer.")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template if chat_template is not None else tokenizer.chat_template
        self.image_token = IMG
        self.image_token_id = tokenizer.control_ids.get(IMG)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = "pt",
        return_dict: bool = True,
        processor_kwargs: dict[str, Any] | None = None,
        reasoning_mode: str | None = None,
        reasoning_effort: str | None = None,
        images: Any = None,
        image_access: ImageAccess | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encodes a conversation, or a list of them, with mistral-common's ids and pixels.

        Args:
            conversation: messages, or a list of conversations (padded on the left).
            tools: functions or JSON schemas.
            add_generation_prompt: False allows a conversation that ends with the assistant's finished message; the
                format has no generation prompt of its own.
            continue_final_message: the last message, the assistant's, is left open.
            return_assistant_tokens_mask: adds `assistant_masks`, 1 where the assistant wrote.
            tokenize: False returns the text (a `str` that `processor(text=...)` encodes without losing what is text
                and what is a control token).
            reasoning_mode, reasoning_effort: "none" or "high", two names for one setting.
            images: fill image chunks that name no source, in order.
            image_access: what images may be read from, for this call.

        Returns:
            `input_ids` and `attention_mask` [batch, length], and with images `pixel_values` [images, 3, H, W] and
            `image_sizes` [images, 2].

        Raises:
            ValueError: a conversation that mistral-common refuses; an image that may not or cannot be read.
        """
        options = dict(processor_kwargs or {})
        options |= {key: kwargs.pop(key) for key in _CALL_OPTIONS if key in kwargs}
        if chat_template is not None and chat_template != self.chat_template:
            text = self.tokenizer.apply_chat_template(
                conversation, tools, documents, chat_template, add_generation_prompt, continue_final_message,
                tokenize=False, reasoning_mode=reasoning_mode, reasoning_effort=reasoning_effort, **kwargs,
            )  # fmt: skip
            if not tokenize:
                return text
            return self(text=text, images=images, control_tokens=True, return_tensors=return_tensors, **options)
        if documents is not None:
            raise ValueError("The chat format has no place for documents; put their text into a message.")
        mode = self.tokenizer.reasoning_mode(reasoning_mode, reasoning_effort, kwargs)
        batched = is_batch(conversation)
        prompts = [
            lay_out(chat, tools, mode, continue_final_message, finished=not add_generation_prompt)
            for chat in (conversation if batched else [conversation])
        ]
        if not tokenize:
            texts = [Prompt.of(pieces) for pieces in prompts]
            return texts if batched else texts[0]
        images = options.pop("images", images)
        out = self._encode(
            prompts, images, image_access, batched, return_tensors, return_assistant_tokens_mask, options
        )
        return out if return_dict else out["input_ids"]

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        control_tokens: bool = False,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        image_access: ImageAccess | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encodes text, with images, as it stands: `<s>`, then each text's images, then the text.

        Args:
            images: one image or a list of them for one text; for several texts a list of lists, one for each text.
            text: plain text, in which control tokens are nothing but text; or what
                `apply_chat_template(tokenize=False)` returned, where `[IMG]` stands for each image.
            control_tokens: for experts: `text` is a raw prompt whose control tokens are recognised, whoever wrote
                them, and in which each `[IMG]` is to be replaced by one image.
            add_special_tokens: False leaves out the `<s>` that text without one is given.
            padding, truncation, max_length: as in transformers.

        Raises:
            ValueError: as many images as places for them are needed.
        """
        if text is None:
            if images is None:
                raise ValueError("Give text, images or both.")
            return self._need_vision().preprocess(images, return_tensors=return_tensors, access=image_access)
        batched = not isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        for each in texts:
            if not isinstance(each, str):
                raise ValueError(f"text must be a string or a list of strings, but holds {type(each).__name__}.")
        groups = self._group(images, len(texts))
        prompts = [self._text_pieces(each, group, control_tokens) for each, group in zip(texts, groups, strict=True)]
        if not add_special_tokens:
            prompts = [
                pieces if isinstance(each, Prompt) or (each.startswith(BOS) and control_tokens) else pieces[1:]
                for each, pieces in zip(texts, prompts, strict=True)
            ]
        options = {key: kwargs.pop(key) for key in _CALL_OPTIONS if key in kwargs}
        if kwargs:
            logger.warning_once(f"Small4Processor has no arguments {sorted(kwargs)}; they are ignored.")
        return self._encode(prompts, images, image_access, batched, return_tensors, False, options)

    def _text_pieces(self, text: str, images: list[Any], control_tokens: bool) -> list[Piece]:
        if isinstance(text, Prompt):
            return text.pieces
        if not control_tokens:
            if text.startswith(BOS):
                logger.warning_once(
                    f"A text beginning with {BOS} is encoded as plain text, control tokens and all. If it is a prompt that "
                    "you wrote yourself, pass control_tokens=True."
                )
            return [Piece("control", BOS), *[Piece("image", None) for _ in images], Piece("text", text)]
        pieces = []
        for is_control, value in SpecialTokenSplitter(self.tokenizer.control_ids).feed(text, final=True):
            kind = "text" if not is_control else "image" if value == IMG else "control"
            pieces.append(Piece(kind, None if kind == "image" else value))
        if not pieces or pieces[0] != Piece("control", BOS):
            pieces.insert(0, Piece("control", BOS))
        return pieces

    def _group(self, images: Any, count: int) -> list[list[Any]]:
        """The images of each text."""
        if images is None:
            return [[] for _ in range(count)]
        if count == 1:
            return [flatten(images)]
        if not isinstance(images, (list, tuple)) or len(images) != count:
            raise ValueError(f"For {count} texts, images must be a list of {count} lists, one for each text.")
        return [flatten(group) for group in images]

    def _encode(
        self,
        prompts: list[list[Piece]],
        images: Any,
        access: ImageAccess | None,
        batched: bool,
        return_tensors: str | None,
        assistant_masks: bool,
        options: dict[str, Any],
    ) -> BatchFeature:
        sources = _sources(prompts, flatten(images) if images is not None else [])
        pixels = self._need_vision().preprocess(sources, access=access) if sources else {}
        ids = iter(self._image_ids(pixels["image_sizes"].tolist()) if sources else [])
        image_ids = [[next(ids) for piece in pieces if piece.kind == "image"] for pieces in prompts]
        encoded = self.tokenizer.encode_prompts(prompts, image_ids)
        rows = self.tokenizer.collate(
            encoded, **options, return_tensors=return_tensors, assistant_masks=assistant_masks, batched=batched
        )
        if sources and options.get("truncation"):
            _check_images_kept(encoded, rows["input_ids"], self.image_token_id)
        return BatchFeature({**rows, **pixels})

    def _image_ids(self, sizes: list[list[int]]) -> list[list[int]]:
        """For each (height, width) in pixels: rows of `[IMG]`, each closed by `[IMG_BREAK]`, the last by `[IMG_END]`."""
        vision = self._need_vision()
        unit = vision.patch_size * vision.spatial_merge_size
        img, line, end = (self.tokenizer.control_id(token) for token in (IMG, IMG_BREAK, IMG_END))
        out = []
        for height, width in sizes:
            ids = ([img] * (width // unit) + [line]) * (height // unit)
            ids[-1] = end
            out.append(ids)
        return out

    def _need_vision(self) -> Small4ImageProcessor:
        if self.image_processor is None:
            raise ValueError("This checkpoint has no vision, so its processor takes no images.")
        return self.image_processor

    def parse_response(  # type: ignore[override]
        self, response: Any, schema: Any = None, *, prefix: Any = None, tools: Any = None
    ) -> Any:
        """An answer, ids or text, as a message; see `Small4Tokenizer.parse_response`."""
        return self.tokenizer.parse_response(response, schema, prefix=prefix, tools=tools)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Always our own classes, whatever else is installed."""
        known = {
            key: kwargs[key]
            for key in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            if key in kwargs
        }
        tokenizer = Small4Tokenizer.from_pretrained(pretrained_model_name_or_path, **known)
        given = processor_dict or {}
        settings = given.get("image_processor")
        if settings is None:
            return [None, tokenizer]
        above = {"spatial_merge_size": given["spatial_merge_size"]} if "spatial_merge_size" in given else {}
        return [Small4ImageProcessor.from_dict(above | settings), tokenizer]

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As in transformers; a processor without vision saves no image processor, one without code no `auto_map`."""
        if (
            self._auto_class is None
        ):  # the entry names files, which transformers copies only for code that came with a folder
            self.tokenizer.init_kwargs.pop("auto_map", None)
            if self.image_processor is not None:
                self.image_processor.__dict__.pop("auto_map", None)
        if self.image_processor is None:
            self.get_attributes = lambda: ["tokenizer"]  # type: ignore[method-assign]
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            self.__dict__.pop("get_attributes", None)


def _sources(prompts: list[list[Piece]], images: list[Any]) -> list[Any]:
    """The source of each image piece in order; those that name none take the images given beside, in order."""
    given = iter(images)
    missing = object()
    sources = []
    for piece in (piece for pieces in prompts for piece in pieces if piece.kind == "image"):
        source = piece.value if piece.value is not None else next(given, missing)
        if source is missing:
            raise ValueError(f"The text has more places for images than the {len(images)} images given.")
        sources.append(source)
    left = sum(1 for _ in given)
    if left:
        raise ValueError(f"{left} of the {len(images)} images given have no place in the text.")
    return sources


def _check_images_kept(encoded: list[tuple[list[int], list[int]]], rows: Any, image_token: Any) -> None:
    before = [ids.count(image_token) for ids, _ in encoded]
    after = [list(row).count(image_token) for row in (rows.tolist() if hasattr(rows, "tolist") else rows)]
    if before != after:
        raise ValueError("Truncation would cut through an image; raise max_length or leave out truncation.")
