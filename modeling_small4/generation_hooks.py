"""Which cache `generate` makes, and how a long prompt goes into it: latents, chunk by chunk. Nothing of decoding
itself.

Assisted decoding of transformers reads the prompt and the first draft in one forward, whatever a cache holds already;
here it goes the same way as any prompt.
"""

import copy
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.streamers import BaseStreamer

from .cache import FIRST_TOKENS, LatentCache, given_cache
from .configuration_small4 import Small4Config
from .forward_rules import repeat_rows, warn_beyond_positions
from .generation_call import GenerateCall
from .generation_grammar import GrammarProcessor
from .generation_presets import PromptDrafts

LONG_PROMPT = 4096  # tokens from which a prompt is read in chunks
CHUNK = 2048
LATENT_CACHES = {  # values of `cache_implementation`: bits per number, and whether of fixed size
    "latent": (16, False),
    "latent_8bit": (8, False),
    "latent_static": (16, True),
    "latent_static_8bit": (8, True),
}
IMAGES = ("pixel_values", "image_sizes", "mm_encoder_outputs")


def static_room(tokens: int) -> int:
    """Room of a static cache for so many tokens: of few sizes, so that few steps are compiled, and at most twice as
    much as needed.
    """
    return max(512, 1 << (tokens - 1).bit_length()) if tokens <= 16384 else -(-tokens // 16384) * 16384


def refuse_draft(call: GenerateCall) -> None:
    """Raises ValueError where `draft` stands beside arguments that contradict it."""
    beams, assistant = call.get("num_beams") or 1, call.arguments.get("assistant_model")
    if beams > 1:
        raise ValueError(f"draft and num_beams={beams} contradict each other; leave one of them out.")
    if assistant is not None or call.get("prompt_lookup_num_tokens") is not None:
        raise ValueError(
            "draft contradicts assistant_model and prompt_lookup_num_tokens, which draft too; leave one of them out."
        )
    if call.get("use_cache") is False:
        raise ValueError("draft and use_cache=False contradict each other; leave one of them out.")
    if call.preset == "throughput":
        raise ValueError(
            'draft and preset="throughput" contradict each other: many rows together read all experts anyway; leave '
            "one of them out."
        )


class Small4PrefillMixin:
    """Hooks into transformers' `generate`, between its arguments and its decoding."""

    config: Small4Config
    generation_config: GenerationConfig
    forward: Any
    _valid_auto_compile_criteria: Any
    _default_compile_config: Any

    def _prepare_generation_config(
        self, generation_config: GenerationConfig, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Adds the latent caches (`LATENT_CACHES`; "latent" is the default) to transformers' closed list of names."""
        latent = LATENT_CACHES.get(kwargs.get("cache_implementation", ""))
        if latent is not None:
            del kwargs["cache_implementation"]
        preset, drafts = kwargs.pop("preset", None), kwargs.pop("drafts", False)
        drafting = kwargs.pop("draft", None)
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        if latent is not None:
            config.cache_implementation = None
            config.latent_cache_bits, config.latent_cache_static = latent
        config.preset, config.prompt_drafts, config.drafting = preset, drafts, drafting
        if drafts:  # chooses assisted decoding, for which `_get_candidate_generator` makes the drafts
            config.prompt_lookup_num_tokens = 1
        return config, model_kwargs

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """A latent cache wherever transformers would have made a dynamic one."""
        given = model_kwargs.get("cache")
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        made = model_kwargs.get("cache")
        times = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        if given is not None:
            repeat_rows(given, batch_size, times)
        limit = self.config.get_text_config().max_position_embeddings
        prompt = self._prompt_length(generation_config, model_kwargs)
        if 0 < prompt <= limit:  # a longer prompt is warned of when it is read
            total = max_cache_length + 1
            warn_beyond_positions(
                limit,
                total,
                f"The prompt has {prompt} tokens and {total - prompt} new ones are allowed, {total} in all",
            )
        if given is not None or not isinstance(made, DynamicCache):
            return
        bits = getattr(generation_config, "latent_cache_bits", None) or 16
        if getattr(generation_config, "latent_cache_static", False):
            room = static_room(max_cache_length + 1)
            model_kwargs["cache"] = LatentCache(self.config, bits, room, static=True)
            return
        if getattr(generation_config, "preset", None) == "latency" and not made.offloading:
            cache = self.cache_for(max_cache_length, "latency", bits, generation_config)
        else:
            room = min(max_cache_length, prompt + FIRST_TOKENS)
            cache = LatentCache(self.config, bits, max(FIRST_TOKENS, room), made.offloading)
        model_kwargs["cache"] = cache

    @staticmethod
    def _prompt_length(generation_config: GenerationConfig, model_kwargs: dict[str, Any]) -> int:
        """Tokens of the prompt, padding included."""
        mask = model_kwargs.get("attention_mask")  # left out where nothing is padded
        return getattr(generation_config, "_mask_length", 0) if mask is None else mask.shape[1]

    def cache_for(
        self, tokens: int, preset: str | None, bits: int = 16, generation_config: GenerationConfig = None
    ) -> LatentCache:
        """An empty cache for so many tokens: with the latency preset of fixed size where steps are compiled, else with
        all room made.
        """
        if preset != "latency":
            return LatentCache(self.config, bits)
        fixed = LatentCache(self.config, bits, static_room(tokens + 1), static=True)
        settings = generation_config or self.generation_config
        if self._valid_auto_compile_criteria({"cache": fixed}, settings):
            return fixed
        return LatentCache(self.config, bits, max(FIRST_TOKENS, tokens))

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        """Long prompts in chunks, so that memory is bounded by the cache and one chunk."""
        cache = model_kwargs.get("cache")
        long = input_ids.shape[1] > LONG_PROMPT and generation_config.prefill_chunk_size is None
        if long and cache is not None and model_kwargs.get("inputs_embeds") is None:
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = CHUNK
        with cache.reading_a_prompt() if isinstance(cache, LatentCache) else nullcontext():
            return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)  # type: ignore[misc]

    def _get_logits_processor(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        """transformers' own; a grammar is told at what length the answer is cut off, so that it can end it before."""
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)  # type: ignore[misc]
        for each in processors:
            if (
                isinstance(each, GrammarProcessor) and each.limit is None
            ):  # an assistant's drafts have a limit of their own
                each.limit = generation_config.max_length
        return processors

    def _get_candidate_generator(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> CandidateGenerator:
        """The latency preset's own drafts, else transformers' generators."""
        if getattr(generation_config, "prompt_drafts", False):
            return PromptDrafts(generation_config.max_length)
        if "model_kwargs" in kwargs:  # an assistant's arguments are made of them
            kept = {name: value for name, value in kwargs["model_kwargs"].items() if name != "cached_only"}
            kwargs["model_kwargs"] = kept
        return super()._get_candidate_generator(generation_config, *args, **kwargs)  # type: ignore[misc]

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """transformers' own, or the same with drafts. Without drafts where they cannot be checked: no cache or one that
        keeps what it read, attentions or hidden states that are asked for, several processes in step."""
        config, cache = generation_config, model_kwargs.get("cache")
        drafting = getattr(config, "drafting", None)
        recorded = config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states)
        if drafting is None or synced_gpus or recorded or not getattr(cache, "is_croppable", False):
            return super()._sample(  # type: ignore[misc]
                input_ids, logits_processor, stopping_criteria, config, synced_gpus, streamer, **model_kwargs
            )
        from .drafts_decoding import decode_with_drafts  # it knows drafts, which know this class

        return decode_with_drafts(
            self, input_ids, logits_processor, stopping_criteria, config, streamer, drafting, model_kwargs
        )

    def _assisted_decoding(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        """All of the prompt but its last token goes into the cache first, unless the cache holds it or the prompt is
        short.
        """
        cache: Any = kwargs.get("cache")
        config = generation_config
        compiled = cache is not None and self._valid_auto_compile_criteria(kwargs, config)
        recorded = config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states)
        chunked = config.prefill_chunk_size is not None or input_ids.shape[1] > LONG_PROMPT
        ahead = cache is not None and (compiled or chunked or int(cache.get_seq_length()) > 0)
        if not ahead or recorded or kwargs.get("inputs_embeds") is not None:
            return super()._assisted_decoding(  # type: ignore[misc]
                input_ids, logits_processor, stopping_criteria, config, **kwargs
            )
        kwargs["cached_only"] = self._read_ahead(input_ids, config, kwargs)
        return super()._assisted_decoding(  # type: ignore[misc]
            input_ids, logits_processor, stopping_criteria, config, **kwargs
        )

    def _read_ahead(self, input_ids: torch.Tensor, generation_config: GenerationConfig, kwargs: dict[str, Any]) -> int:
        """Fills the cache with the prompt up to its last token, and takes the images out of `kwargs`.

        Returns:
            How many tokens of the prompt are only in the cache, not in `input_ids`.
        """
        mask = kwargs.get("attention_mask")
        length = generation_config._mask_length if mask is None else mask.shape[1]
        if length - 1 > int(kwargs["cache"].get_seq_length()):
            ahead = kwargs | {"attention_mask": None if mask is None else mask[:, :-1]}
            if (positions := kwargs.get("position_ids")) is not None:
                ahead["position_ids"] = positions[..., :-1]
            settings = copy.copy(generation_config)
            settings._mask_length = length - 1
            with torch.no_grad():
                self._prefill(input_ids[:, :-1], settings, ahead)
        for name in IMAGES:
            kwargs.pop(name, None)
        return length - input_ids.shape[1]

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # named, for transformers looks for it here
        past_key_values: Cache | None = None,
        cached_only: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' own; assisted decoding gives the whole prompt first, of which the cache may hold all but the
        end.

        Args:
            cached_only: Tokens that are in the cache and not in `input_ids`; where `_assisted_decoding` filled the
                cache.
        """
        cache = given_cache(cache, past_key_values)
        if next_sequence_length is None and cached_only is not None and cache is not None:
            next_sequence_length = cached_only + input_ids.shape[1] - int(cache.get_seq_length())
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            cache=cache,
            **kwargs,
        )
