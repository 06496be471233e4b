"""transformers' two generation pipelines for Small 4: clean answers with the thought apart, and no image that may not
be read.

They are registered in place of transformers' own and leave other models to these. Must not know: models, decoding.
"""

from typing import Any

from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.text_generation import ReturnType, TextGenerationPipeline
from transformers.utils.chat_template_utils import Chat

from .chat_responses import CONTENT, THINKING
from .processing_small4 import Small4Processor
from .tokenization_small4 import Small4Tokenizer


class Small4TextGenerationPipeline(TextGenerationPipeline):
    """`pipeline("text-generation")`.

    `generated_text` holds what the model said, without special tokens; a thought stands apart in `reasoning_content`,
    calls in `tool_calls`. `skip_special_tokens=False` with strings gives everything as one text.
    """

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        return_type: Any = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        given = {"continue_final_message": continue_final_message, "skip_special_tokens": skip_special_tokens}
        given |= kwargs if return_type is None else {"return_type": return_type, **kwargs}
        if not isinstance(self.tokenizer, Small4Tokenizer) or _name(return_type) == "TENSORS":
            return super().postprocess(model_outputs, **given)
        # Everything beside the text (scores and the like) is transformers' work.
        records = super().postprocess(model_outputs, **given | {"return_type": ReturnType.NEW_TEXT})
        prompt = [] if model_outputs["input_ids"] is None else model_outputs["input_ids"][0].tolist()
        for record, sequence in zip(records, model_outputs["generated_sequence"][0].tolist(), strict=True):
            answer = _Answer(self.tokenizer, prompt, sequence[len(prompt) :], skip_special_tokens)
            record |= answer.record(model_outputs["prompt_text"], _name(return_type), continue_final_message)
        return records


class Small4ImageTextToTextPipeline(ImageTextToTextPipeline):
    """`pipeline("image-text-to-text")`. Answers as in `Small4TextGenerationPipeline`; images given beside a text are
    read under the same limits as those in messages (`image_access`, or the image processor's own)."""

    def preprocess(self, inputs: Any = None, timeout: float | None = None, **kwargs: Any) -> Any:
        if not isinstance(self.processor, Small4Processor) or isinstance(inputs, (Chat, str, list, tuple)):
            return super().preprocess(inputs, timeout, **kwargs)
        kwargs.pop("continue_final_message", None)
        options = kwargs.pop("processor_kwargs", None) or kwargs
        text = inputs["text"]
        model_inputs = self.processor(images=inputs["images"], text=text, return_tensors="pt", **options)
        model_inputs = model_inputs.to(dtype=self.dtype)
        model_inputs["text"] = text
        return model_inputs

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        return_type: Any = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        given = {"continue_final_message": continue_final_message, "skip_special_tokens": skip_special_tokens}
        given |= kwargs if return_type is None else {"return_type": return_type, **kwargs}
        if not isinstance(self.processor, Small4Processor) or _name(return_type) == "TENSORS":
            return super().postprocess(model_outputs, **given)
        texts = model_outputs["prompt_text"]
        texts = [texts] if isinstance(texts, (str, Chat)) else texts
        prompts = model_outputs["input_ids"].tolist()
        sequences = model_outputs["generated_sequence"].flatten(0, -2).tolist()
        each = len(sequences) // len(texts)
        records = []
        for index, sequence in enumerate(sequences):
            text, prompt = texts[index // each], prompts[index // each]
            answer = _Answer(self.processor.tokenizer, prompt, sequence[len(prompt) :], skip_special_tokens)
            shown = text.messages if isinstance(text, Chat) else text
            records.append({"input_text": shown} | answer.record(text, _name(return_type), continue_final_message))
        return records


class _Answer:
    """What was generated after a prompt, by channel."""

    def __init__(self, tokenizer: Small4Tokenizer, prompt: list[int], new: list[int], skip: bool | None) -> None:
        reader = tokenizer.response_reader(prompt)
        pieces = reader.feed(new) + reader.finish()
        self.content = "".join(text for channel, text in pieces if channel == CONTENT)
        self.thought = "".join(text for channel, text in pieces if channel == THINKING)
        self.message = reader.message()
        self.raw = None if skip is not False else tokenizer.decode(new, skip_special_tokens=False)

    def record(self, prompt: Any, kind: str, continue_final_message: bool | None) -> dict[str, Any]:
        """`generated_text`, and beside a text what does not belong into it."""
        if kind == "NEW_TEXT" or isinstance(prompt, str):
            text = self.content if self.raw is None else self.raw
            text = prompt + text if isinstance(prompt, str) and kind != "NEW_TEXT" else text
            return {"generated_text": text} | ({} if self.raw is not None else self._apart())
        last = prompt.messages[-1]
        if last["role"] != "assistant" if continue_final_message is None else not continue_final_message:
            return {"generated_text": [*prompt.messages, self.message]}
        content = last.get("content") or ""
        if isinstance(content, str):
            content = content + self.content
        elif self.content:
            content = [*content, {"type": "text", "text": self.content}]
            if len(content) > 1 and content[-2].get("type") == "text":
                content = [*content[:-2], {**content[-2], "text": content[-2]["text"] + self.content}]
        added = self._apart()
        if "reasoning_content" in added:
            added["reasoning_content"] = (last.get("reasoning_content") or "") + added["reasoning_content"]
        return {"generated_text": [*prompt.messages[:-1], {**last, "content": content, **added}]}

    def _apart(self) -> dict[str, Any]:
        out: dict[str, Any] = {"reasoning_content": self.thought} if self.thought else {}
        return out | ({"tool_calls": self.message["tool_calls"]} if self.message["tool_calls"] else {})


def _name(return_type: Any) -> str:
    """The name of a return type; each pipeline of transformers has an enumeration of its own."""
    return "FULL_TEXT" if return_type is None else str(return_type.name)
