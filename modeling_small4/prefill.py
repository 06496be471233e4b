"""Which cache `generate` makes, and how a long prompt goes into it: latents, chunk by chunk. Nothing of decoding itself."""

import copy
from typing import Any

from transformers.cache_utils import DynamicCache

from .cache import FIRST_TOKENS, LatentCache

LONG_PROMPT = 4096  # tokens from which a prompt is read in chunks
CHUNK = 2048
LATENT_CACHES = {"latent": 16, "latent_8bit": 8}  # values of `cache_implementation`, and bits per number


class Small4PrefillMixin:
    """Hooks into transformers' `generate`, between its arguments and its decoding."""

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Adds `cache_implementation="latent"` (the default) and `"latent_8bit"` to transformers' closed list of names."""
        bits = LATENT_CACHES.get(kwargs.get("cache_implementation", ""))
        if bits is not None:
            del kwargs["cache_implementation"]
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        if bits is not None:
            config.cache_implementation, config.latent_cache_bits = None, bits
        return config, model_kwargs

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """A latent cache wherever transformers would have made a dynamic one."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        made = model_kwargs.get("past_key_values")
        if given is None and isinstance(made, DynamicCache):
            mask = model_kwargs.get("attention_mask")
            prompt = 0 if mask is None else mask.shape[1]
            model_kwargs["past_key_values"] = LatentCache(
                self.config,  # type: ignore[attr-defined]
                bits=getattr(generation_config, "latent_cache_bits", None) or 16,
                capacity=max(FIRST_TOKENS, min(max_cache_length, prompt + FIRST_TOKENS)),
                offloading=made.offloading,
            )

    def _prefill(
        self, input_ids: Any, generation_config: Any, model_kwargs: dict[str, Any], is_first_iteration: bool = True
    ) -> Any:
        """Long prompts in chunks, so that memory is bounded by the cache and one chunk."""
        long = input_ids.shape[1] > LONG_PROMPT and generation_config.prefill_chunk_size is None
        if long and model_kwargs.get("past_key_values") is not None and model_kwargs.get("inputs_embeds") is None:
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = CHUNK
        return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)  # type: ignore[misc]
