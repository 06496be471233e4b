"""One conversation with a model: messages in, streamed pieces and a parsed answer out, the cache kept between turns.

Must not know: terminals, arguments, exit statuses.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.generation.streamers import BaseStreamer

from ..image_sources import ImageAccess, load_image
from ..modeling_small4 import Small4ForCausalLM
from ..processing_small4 import Small4Processor
from ..reasoning import END_THINK, THINK, thought_length
from ..tokenization_small4 import Small4Tokenizer
from .prefix import load_prefix, prefix_key, save_prefix

Show = Callable[[str, str], None]


@dataclass(frozen=True)
class Answer:
    """A parsed answer and its costs. `complete` is False if it was cut off at the token limit."""

    message: dict[str, Any]
    prompt_tokens: int
    thinking_tokens: int
    new_tokens: int
    seconds: float
    complete: bool
    cached_tokens: int = 0  # of the prompt, that did not have to be read


@dataclass
class Session:
    """Model, processor, settings of one conversation, and its state.

    Args:
        mode: "none" or "high"; None: `generation_config.reasoning_mode`, else "none".
        max_new_tokens: per answer, thinking included; None: `generation_config.max_new_tokens`, else 4096.
        max_thinking_tokens: None for no limit.
        preset: of `generate`; "latency" or None.
        draft: of `generate`; a folder, a Hub name or "prompt_lookup".
    """

    model: Small4ForCausalLM
    processor: Small4Processor
    mode: str | None = None
    max_new_tokens: int | None = None
    max_thinking_tokens: int | None = None
    preset: str | None = None
    draft: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    _cache: Any = None
    _cached: list[int] = field(default_factory=list)

    def ask(self, text: str, images: Sequence[Path] = (), show: Show = lambda channel, piece: None) -> Answer:
        """Sends `text`, with images from files before it, and returns the answer, which is added to the conversation.

        Args:
            show: called with (channel, text) while the answer is generated; channel is "thinking", "content" or
                "tool_calls".

        Raises:
            ValueError: a file that is not an image, or images for a model without a vision tower.
        """
        content: list[dict[str, Any]] = [
            {"type": "image", "image": load_image(path, ImageAccess(paths=True))} for path in images
        ]
        content.append({"type": "text", "text": text})
        if images and self.model.config.vision_config is None:
            raise ValueError("This model reads no images (its configuration has no vision tower); leave them out.")
        self.messages.append({"role": "user", "content": content if images else text})
        try:
            answer = self._answer(show)
        except BaseException:
            self.messages.pop()
            self._cache, self._cached = None, []
            raise
        self.messages.append(answer.message)
        return answer

    def _answer(self, show: Show) -> Answer:
        settings = self.model.generation_config
        mode = self.mode or getattr(settings, "reasoning_mode", None) or "none"
        inputs = self.processor.apply_chat_template(
            self.messages,
            reasoning_mode=mode,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        prompt = inputs["input_ids"][0].tolist()
        key, _ = prefix_key(self.model.config, prompt, inputs.get("pixel_values"), inputs.get("image_sizes"))
        new = self.max_new_tokens or settings.max_new_tokens or 4096
        self._go_back_to(key, new)
        cached = len(self._cached)
        if self._cached:  # images are in the part that is cached
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        streamer = _Streamer(self.processor.tokenizer, prompt, show)
        begin = time.perf_counter()
        out = self.model.generate(
            **inputs,
            cache=self._cache,
            reasoning_mode=mode,
            max_thinking_tokens=self.max_thinking_tokens,
            max_new_tokens=new,
            preset=self.preset,
            draft=self.draft,
            tokenizer=self.processor.tokenizer,
            streamer=streamer,
        )
        seconds = time.perf_counter() - begin
        ids = out[0].tolist()
        self._cached = [*key, *ids[len(prompt) :]][: int(self._cache.get_seq_length())]
        return self._report(prompt, ids[len(prompt) :], streamer, seconds, cached)

    def save_prefix(self, path: Path) -> None:
        """Saves what was read, answers included, for `load_prefix` in another process. Raises what `prefix.save_prefix`
        raises.
        """
        if self._cache is None:
            raise ValueError("Nothing has been read yet, so there is nothing to save.")
        save_prefix(path, self._cached, self._cache, self.model)

    def load_prefix(self, path: Path) -> None:
        """Loads a saved prefix, which is not read again if the conversation begins with it. Raises what
        `prefix.load_prefix` raises.
        """
        self._cached, self._cache = load_prefix(path, self.model)

    def _go_back_to(self, prompt: list[int], new: int) -> None:
        """Crops the cache to what the new prompt, by its key, begins with; usually an answer is encoded as it was
        generated.
        """
        same = 0
        while same < min(len(prompt) - 1, len(self._cached)) and prompt[same] == self._cached[same]:
            same += 1
        needed = len(prompt) + new
        room = None if self._cache is None or not self._cache.is_compileable else self._cache.get_max_length()
        if self._cache is None or any(part < 0 for part in prompt[same:]) or (room is not None and room < needed):
            self._cache, same = self.model.cache_for(needed, self.preset), 0
        elif same < len(self._cached):
            self._cache.crop(same - len(self._cached))
        self._cached = prompt[:same]

    def _report(self, prompt: list[int], new: list[int], streamer: "_Streamer", seconds: float, cached: int) -> Answer:
        thinking = thought_length(new, *self.processor.tokenizer.convert_tokens_to_ids([THINK, END_THINK]))
        eos = self.model.generation_config.eos_token_id
        complete = new[-1] in (eos if isinstance(eos, list) else [eos])
        return Answer(streamer.reader.message(), len(prompt), thinking, len(new), seconds, complete, cached)


class _Streamer(BaseStreamer):
    """Reads tokens as they arrive and shows each piece of text as soon as it is certain."""

    def __init__(self, tokenizer: Small4Tokenizer, prompt: list[int], show: Show) -> None:
        self.reader, self.show, self.begun = tokenizer.response_reader(prompt), show, False

    def put(self, value: torch.Tensor) -> None:
        if self.begun:  # the first call brings the prompt
            self._give(self.reader.feed(value.flatten()))
        self.begun = True

    def end(self) -> None:
        self._give(self.reader.finish())

    def _give(self, pieces: Sequence[tuple[str, str]]) -> None:
        for channel, text in pieces:
            self.show(channel, text)


def load(
    folder: str, device: str = "auto", expert_memory: str | None = None
) -> tuple[Small4ForCausalLM, Small4Processor]:
    """Model and processor from a checkpoint folder or a Hub repository, on a device; "auto": on all GPUs, else on the
    CPU.

    Args:
        expert_memory: Of `from_pretrained`: memory for routed experts that are read from disk as needed.

    Raises:
        ValueError: no such folder, one that has to be converted first, or one with damaged weights.
        OSError: a file is missing or cannot be read or downloaded.
    """
    path = Path(folder)
    if path.is_dir() and not (path / "config.json").is_file():
        raw = (path / "params.json").is_file()
        hint = f"convert it first: small4 convert {folder} DST" if raw else "name a checkpoint folder"
        raise ValueError(f"{folder} holds no config.json; {hint}.")
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json; name a folder that `small4 convert` has written.")
    if not path.is_dir() and (path.exists() or folder.startswith((".", "/", "~")) or folder.count("/") != 1):
        raise ValueError(f"{folder}: no such folder (a Hub repository is written owner/name).")
    place: dict[str, Any] = {"device_map": device}
    if device == "cpu" or (device == "auto" and (expert_memory or not torch.accelerator.is_available())):
        place = {}
    try:
        model = Small4ForCausalLM.from_pretrained(folder, dtype="auto", expert_memory=expert_memory, **place)
    except SafetensorError as error:
        raise ValueError(f"{folder}: a weights file is damaged ({error}); copy or download it again.") from error
    return model.eval(), Small4Processor.from_pretrained(folder)
