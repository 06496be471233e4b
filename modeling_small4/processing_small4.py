"""The processor: messages, text and images to model inputs, and answers back to messages.

Called as any processor of transformers. Must not know: model classes, how a conversation is laid out (`chat`) and
written as one string (`chat_text`), how text and images become numbers, files (`processing_files`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, TextKwargs
from transformers.utils import logging
from transformers.utils.chat_template_utils import _get_template_variables as template_variables

from .chat import Piece
from .chat_images import fill, place_images
from .chat_messages import read_objects
from .chat_template import rendering
from .chat_text import escape_all
from .files_reading import shown
from .image_processing_small4 import Small4ImageProcessor
from .image_sources import ImageAccess, open_image
from .processing_files import ProcessorFilesMixin
from .reasoning import IMG, IMG_BREAK, IMG_END
from .tokenization_small4 import COLLATE_OPTIONS, Small4Tokenizer

logger = logging.get_logger(__name__)

_IN_PLACES = "_images_in_places"  # said to our own call: the text was rendered, so images without places are a mistake
_NO_PAIRS = ("text_pair", "text_target", "text_pair_target", "is_split_into_words")
_OTHER_INPUTS = ("videos", "audio", "audios")
_FLAGS = ("return_mm_token_type_ids", "return_text_replacement_offsets")
# Those that a tokenizer may have of its own, but for the side, which it knows itself.
_TEXT_ARGUMENTS = frozenset(TextKwargs.__annotations__) - {"padding_side"}
_GROUPS = tuple(name for name in ProcessingKwargs.__annotations__ if name.endswith("_kwargs"))
# All names that the call of a transformers processor knows. Those of videos and audio say nothing where there are none.
_ARGUMENTS = frozenset(
    {"common_kwargs", "split_special_tokens", *_OTHER_INPUTS, *ProcessingKwargs.__annotations__}
    | {name for group in _GROUPS for name in ProcessingKwargs.__annotations__[group].__annotations__}
)


class Small4Processor(ProcessorFilesMixin):
    """Tokenizer and image processor of one checkpoint. `image_processor` is None where the model has no vision."""

    def __init__(
        self,
        image_processor: Small4ImageProcessor | None = None,
        tokenizer: Small4Tokenizer | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        if tokenizer is None:
            raise ValueError("Small4Processor needs a tokenizer.")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template if chat_template is not None else tokenizer.chat_template
        self.image_token = IMG
        self.image_token_id = tokenizer.control_ids.get(IMG)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: object = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = False,
        reasoning_mode: str | None = None,
        reasoning_effort: str | None = None,
        images: object = None,
        image_access: ImageAccess | None = None,
        **kwargs: Any,
    ) -> Any:
        """A conversation, or a list of them, as a prompt string or with mistral-common's ids and pixels.

        Args:
            conversation: messages, or a list of conversations.
            chat_template: another template than the processor's own; transformers renders it.
            tools: functions or JSON schemas.
            add_generation_prompt: says that an answer is to follow, so the conversation may not end with a finished
                message of the assistant; the format has no generation prompt of its own.
            continue_final_message: the last message, the assistant's, is left open.
            return_assistant_tokens_mask: adds `assistant_masks`, 1 where the assistant wrote.
            tokenize: False returns a prompt string. `processor(text=..., images=...)` gives the same ids for it as
                `tokenize=True`, also when it was copied or stored in between: special tokens that users typed are
                escaped in it (`chat_text`).
            return_tensors: None, the default, for lists; "pt", "np".
            return_dict: False returns the ids alone.
            processor_kwargs: arguments of the processor's call (padding, truncation, ...); also accepted outside of it.
            sanitize_control_tokens: always so, as it is safe.
            reasoning_mode, reasoning_effort: "none" or "high", two names for one setting.
            images: for image chunks that name no source, in order; or for all image chunks.
            image_access: what images may be read from, for this call.

        Returns:
            A string (a list of them for several conversations), or `input_ids` and `attention_mask` [batch, length],
            and with images `pixel_values` [images, 3, H, W] and `image_sizes` [images, 2].

        Raises:
            ValueError: a conversation that mistral-common refuses; an image that may not or cannot be read; another
                number of images than of places for them.
        """
        options = dict(processor_kwargs or {}) | {key: kwargs.pop(key) for key in _ARGUMENTS & kwargs.keys()}
        if return_tensors != "auto":
            options["return_tensors"] = return_tensors
        images, access = options.pop("images", images), options.pop("image_access", image_access)
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True.")
        template = self._resolve_template(chat_template)
        if not self.tokenizer.is_own_template(template):
            options |= {} if images is None else {"images": images}
            options |= {} if access is None else {"image_access": access}
            options |= {_IN_PLACES: True} if tokenize else {}
            tensors = options.pop("return_tensors", "auto")
            return self._render_other(
                template, reasoning_mode, reasoning_effort, kwargs, conversation=conversation, tools=tools,
                documents=documents, add_generation_prompt=add_generation_prompt, tokenize=tokenize,
                continue_final_message=continue_final_message, return_dict=return_dict, processor_kwargs=options,
                return_tensors=tensors,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
            )  # fmt: skip
        mode = self.tokenizer.reasoning_mode(reasoning_mode, reasoning_effort, kwargs)
        prompts, batched = self.tokenizer.lay_out(
            conversation, tools, documents, mode, add_generation_prompt, continue_final_message
        )
        if not tokenize:
            texts = [self.tokenizer.prompt_text(pieces) for pieces in prompts]
            return texts if batched else texts[0]
        out = self._encode(prompts, images, access, return_assistant_tokens_mask, options)
        return out if return_dict else out["input_ids"]

    def __call__(
        self,
        images: object = None,
        text: str | Sequence[str] | None = None,
        image_access: ImageAccess | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encodes prompt strings with their images.

        Args:
            images: one image or a list of them for one text; for several texts a list of lists, or one list of all in
                order.
            text: prompt strings, from `apply_chat_template(tokenize=False)` or written by hand: special tokens in them
                are recognized, and `[IMG]` stands for an image. `[\\INST]` and the like are the text `[INST]`. A text
                without any special token has its images before it.
            image_access: what images may be read from, for this call.
            kwargs: transformers' arguments for text (padding, truncation, max_length, padding_side, add_special_tokens,
                return_tensors, ...) and images, also in `text_kwargs` and `images_kwargs`. `split_special_tokens=True`
                takes the texts as plain text, special tokens and all. Texts are padded when tensors of several are
                asked for.

        Raises:
            ValueError: another number of images than of places for them; an argument that is not known or has no
                meaning here.
        """
        in_places = kwargs.pop(_IN_PLACES, False)
        options = self._options(kwargs)
        if text is None:
            if images is None:
                raise ValueError("Give text, images or both.")
            return self._need_vision().preprocess(images, access=image_access, **options["images_kwargs"])
        texts = self._texts(text)
        if options["text_kwargs"].pop("split_special_tokens", None):
            texts = [self.tokenizer.special.escape(each) for each in texts]
        texts, sources = place_images(texts, images, self.tokenizer.special, in_places)
        pixels, shown = self._pixels(sources, image_access, options["images_kwargs"])
        replaced, replacements = self.get_text_with_replacements([str(each) for each in texts], shown)
        rows = self.tokenizer(replaced, **_padded_for_tensors(options["text_kwargs"], len(texts)))
        self._check_whole(rows["input_ids"], [each.count(IMG) for each in replaced])
        if options["return_text_replacement_offsets"]:
            rows["text_replacement_offsets"] = replacements
        return self._joined(rows, pixels, options)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands for an image in the text: rows of `[IMG]`, each closed by `[IMG_BREAK]`, the last by
        `[IMG_END]`.
        """
        height, width = (int(side) for side in image_inputs["image_sizes"][image_idx])
        unit = self._need_vision().unit
        row = IMG * (width // unit)
        return IMG_BREAK.join([row] * (height // unit)) + IMG_END

    def get_text_with_replacements(
        self,
        text: list[str],
        images_replacements: Sequence[str] = (),
        videos_replacements: Sequence[str] = (),
        audio_replacements: Sequence[str] = (),
    ) -> tuple[list[str], list[list[dict[str, Any]]]]:
        """Texts with each `[IMG]` replaced, in order, and where. As transformers' own, which skips an `[IMG]` behind
        U+F0000.

        transformers marks with that character what its templates escaped. Ours escape in another way, and users may
        type it.
        """
        left, replaced, places = iter(images_replacements), [], []
        for each in text:
            before, *parts = each.split(IMG) if images_replacements else [each]
            rows, start = [], len(before)
            for part in parts:
                shown = next(left)
                span, new_span = (start, start + len(IMG)), (len(before), len(before) + len(shown))
                rows.append({"type": "image", "span": span, "new_span": new_span, "text": IMG, "replacement": shown})
                before, start = before + shown + part, start + len(IMG) + len(part)
            replaced.append(before)
            places.append(rows)
        return replaced, places

    # Under these names transformers' Pixtral processor tells how images look in the text; trainers that expand images
    # read them.
    image_break_token, image_end_token = IMG_BREAK, IMG_END

    @property
    def patch_size(self) -> int:
        """Side of a patch of the vision tower, in pixels."""
        return self._need_vision().patch_size

    @property
    def spatial_merge_size(self) -> int:
        """Side of the square of patches that becomes one image token."""
        return self._need_vision().spatial_merge_size

    @property
    def image_token_ids(self) -> list[int]:
        """The ids that images take in a prompt."""
        ids = (self.tokenizer.control_ids.get(token) for token in (IMG, IMG_BREAK, IMG_END))
        return [index for index in ids if index is not None]

    def _resolve_template(self, chat_template: str | None) -> str | None:
        return (
            None if chat_template is None and self.chat_template is None else self._resolve_chat_template(chat_template)
        )

    def _render_other(
        self, template: str | None, mode: str | None, effort: str | None, variables: dict[str, Any], **arguments: Any
    ) -> Any:
        """transformers' way with a template that is not ours; what users typed is escaped before it is rendered."""
        special = self.tokenizer.special
        for name in ("conversation", "tools", "documents"):
            arguments[name] = escape_all(read_objects(arguments[name]), special)
        with rendering():
            known = template_variables(template)
        variables = variables | self.tokenizer.reasoning_variables(mode, effort)
        unknown = sorted(name for name, value in variables.items() if name not in known and value is not None)
        if mode is not None and not known & {"reasoning_mode", "reasoning_effort"}:
            raise ValueError(
                f"reasoning_mode is {shown(mode)}, but this chat template has no such variable; leave it out."
            )
        if set(unknown) - {"reasoning_mode", "reasoning_effort"}:
            logger.warning_once(f"The chat template has no variables {unknown}; they are ignored.")
        variables = {name: value for name, value in variables.items() if name in known}
        tokens = {name: variables.pop(name) for name in list(variables) if name.endswith("_token")}
        with rendering():
            return super().apply_chat_template(
                chat_template=template, **arguments, **escape_all(variables, special), **tokens
            )

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call as transformers sorts them: `text_kwargs`, `images_kwargs`, and those of the whole."""
        if kwargs.keys() <= {"return_tensors"} and not self.tokenizer.init_kwargs.keys() & _TEXT_ARGUMENTS:
            # What transformers' sorting gives, which for a short prompt takes longer than everything else.
            return {"text_kwargs": dict(kwargs), "images_kwargs": dict(kwargs), **dict.fromkeys(_FLAGS, False)}
        unknown = sorted(kwargs.keys() - _ARGUMENTS)
        if unknown:
            raise ValueError(f"Small4Processor has no argument {', '.join(unknown)}.")
        for name in _OTHER_INPUTS:
            if kwargs.get(name) is not None:
                raise ValueError(f"Small4Processor takes text and images, but no {name}.")
        kwargs = {key: value for key, value in kwargs.items() if key not in (*_OTHER_INPUTS, "sanitize_control_tokens")}
        split = kwargs.pop("split_special_tokens", None)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text = options["text_kwargs"]
        text.pop("sanitize_control_tokens", None)
        for name in _NO_PAIRS:
            if text.pop(name, None):
                raise ValueError(f"Small4Processor has no use for {name}; every text is one prompt string.")
        for name in _FLAGS:
            options[name] = text.pop(name, options[name])
        if split is not None:
            text["split_special_tokens"] = split
        return options

    def _texts(self, text: Any) -> list[str]:
        texts = [text] if isinstance(text, str) else list(text)
        for each in texts:
            if not isinstance(each, str):
                raise ValueError(f"text must be a string or a list of strings, but holds {type(each).__name__}.")
        if not texts:
            raise ValueError("text is an empty list; give at least one string.")
        return texts

    def _encode(
        self,
        prompts: list[list[Piece]],
        images: object,
        access: ImageAccess | None,
        masks: bool,
        options: dict[str, Any],
    ) -> BatchFeature:
        """Laid-out conversations, each text encoded on its own."""
        options = self._options(options)
        text = dict(options["text_kwargs"])
        text.pop("add_special_tokens", None)  # the layout has them
        sources = fill([[piece.value for piece in pieces if piece.kind == "image"] for pieces in prompts], images)
        if masks or (text.keys() <= set(COLLATE_OPTIONS) and not options["return_text_replacement_offsets"]):
            others = sorted(text.keys() - set(COLLATE_OPTIONS))
            if others:
                raise ValueError(f"return_assistant_tokens_mask=True cannot be combined with {', '.join(others)}.")
            pixels, shown = self._pixels(sources, access, options["images_kwargs"])
            encoded = self._encode_pieces(prompts, iter(shown))
            rows = self.tokenizer.collate(encoded, text, masks)
            self._check_whole(
                rows["input_ids"], [sum(index == self.image_token_id for index in ids) for ids, _ in encoded]
            )
            return self._joined(rows, pixels, options)
        texts = [str(self.tokenizer.prompt_text(pieces)) for pieces in prompts]
        flat = {name: options[name] for name in options if not name.endswith("_kwargs")}
        groups = {"text_kwargs": text | {"add_special_tokens": False}, "images_kwargs": options["images_kwargs"]}
        return self(text=texts, images=sources or None, image_access=access, **flat, **groups)

    def _encode_pieces(self, prompts: list[list[Piece]], shown: Iterator[str]) -> list[tuple[list[int], list[int]]]:
        ids = self.tokenizer.control_ids
        images = [
            [
                [ids[token] for is_special, token in self.tokenizer.special.split(next(shown)) if is_special]
                for piece in pieces
                if piece.kind == "image"
            ]
            for pieces in prompts
        ]
        return self.tokenizer.encode_prompts(prompts, images)

    def _pixels(
        self, sources: list[Any], access: ImageAccess | None, options: dict[str, Any]
    ) -> tuple[Mapping[str, Any], list[str]]:
        """Pixel values and sizes of all images, and what stands for each in the text."""
        if not sources:
            return {}, []
        vision = self._need_vision()
        pixels = vision.preprocess([open_image(source, access or vision.access) for source in sources], **options)
        return pixels, [self.replace_image_token(pixels, index) for index in range(len(sources))]

    def _joined(self, rows: Mapping[str, Any], pixels: Mapping[str, Any], options: dict[str, Any]) -> BatchFeature:
        tensors = options["text_kwargs"].get("return_tensors")
        out = {**rows}
        if options["return_mm_token_type_ids"]:
            out["mm_token_type_ids"] = self.create_mm_token_type_ids(rows["input_ids"])
        skipped = {key: out.pop(key) for key in self.skip_tensor_conversion if key in out}
        return BatchFeature({**BatchFeature(out, tensor_type=tensors), **skipped, **pixels})

    def _check_whole(self, rows: Any, before: list[int]) -> None:
        """Truncation may not cut through an image, or leave out one whose pixels are there."""
        after = [list(row).count(self.image_token_id) for row in (rows.tolist() if hasattr(rows, "tolist") else rows)]
        if len(after) == len(before) and after != before:
            raise ValueError(
                f"Truncation would cut through an image: of the {sum(before)} {IMG} tokens in the prompts "
                f"{sum(after)} are "
                "left. Raise max_length, or leave out truncation."
            )

    def _need_vision(self) -> Small4ImageProcessor:
        if self.image_processor is None:
            raise ValueError(
                "This checkpoint has no vision, so its processor takes no images. (If its model has: "
                "processor_config.json "
                "and config.json are missing beside the tokenizer; load the processor from the base model's folder.)"
            )
        return self.image_processor

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """How many tokens images of these (height, width) take, as transformers' own processors say it to other
        engines.
        """
        if image_sizes is None:
            return MultiModalData()
        grids = [self._need_vision().token_grid(width, height) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[rows * (columns + 1) for rows, columns in grids], num_image_patches=[1] * len(grids)
        )

    def parse_response(
        self, response: object, schema: object = None, *, prefix: object = None, tools: object = None
    ) -> Any:
        """An answer, ids or text, as a message; see `Small4Tokenizer.parse_response`."""
        return self.tokenizer.parse_response(response, schema, prefix=prefix, tools=tools)


def _padded_for_tensors(options: dict[str, Any], count: int) -> dict[str, Any]:
    """Options of the tokenizer's call; several texts become tensors only when they are padded."""
    needed = count > 1 and options.get("return_tensors") is not None and not options.get("padding")
    return options | {"padding": True} if needed else options
