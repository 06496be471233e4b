"""Continuous batching: latents in transformers' paged cache, and attention for each request of a batch by itself.

transformers' pages hold a key and a value of equal width per head. Here that is one head whose key and value are the
two halves of `[latent | rotary key]`, so that a token takes as many bytes as in the latent cache. This file knows
nothing of attention's inside.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from .attention_blocks import LONG, LongPrefill

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class PagedBatch:
    """What a forward's layers need to know of the requests whose new tokens lie one after the other in one row.

    Attributes:
        pages: transformers' `PagedAttentionCache`.
        queries, keys: Where each request's new tokens begin, and all its tokens; then the end. None for flash
            attention, which takes requests apart by itself.
    """

    pages: Any
    queries: list[int] | None = None
    keys: list[int] | None = None

    @classmethod
    def of(cls, pages: object, mask: object, kwargs: dict[str, Any]) -> "PagedBatch":
        """From what transformers' manager hands to a forward; `mask` is None with flash attention."""
        if mask is None:
            return cls(pages)
        (keys,) = kwargs["cu_seq_lens_k"].values()
        return cls(pages, kwargs["cu_seq_lens_q"].tolist(), keys.tolist())

    def attend(
        self,
        attend: Attend,
        query: torch.Tensor,
        tokens: torch.Tensor,
        mask: Any,
        layer_idx: int,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Write the new tokens into their pages, and attend.

        Args:
            attend: From query `[B, H, Q, ...]`, tokens `[B, 1, L, width]` and a mask to output `[B, Q, H, value width]`
                and weights.
            query: `[1, H, new, ...]`. tokens: `[1, 1, new, width]`.
        """
        kwargs, width = dict(kwargs), tokens.shape[-1]
        half = _half(width)
        first, second = F.pad(tokens, (0, 2 * half - width)).split(half, dim=-1)
        held = torch.cat(self.pages.update(first, second, layer_idx, kwargs), dim=-1)[..., :width]
        if self.queries is None or self.keys is None:
            return attend(query, held, mask, **kwargs)
        outputs: dict[int, torch.Tensor] = {}
        requests = [
            (slice(*new), slice(*all_))
            for new, all_ in zip(pairwise(self.queries), pairwise(self.keys), strict=True)
            if new[0] < new[1]
        ]
        for new, all_ in requests:
            if new.stop - new.start > 1:
                shown = self._mask(mask, new, all_)
                outputs[new.start] = attend(query[:, :, new], held[:, :, all_], shown)[0]
        for group in _alike([request for request in requests if request[0].stop - request[0].start == 1]):
            rows = [new.start for new, _ in group]
            outputs |= zip(
                rows, self._decode(attend, query[:, :, rows], held, [all_ for _, all_ in group]), strict=True
            )
        output = torch.cat([outputs[start] for start in sorted(outputs)], dim=1)
        return F.pad(output, (0, 0, 0, 0, 0, query.shape[2] - output.shape[1])), None

    @staticmethod
    def _mask(mask: torch.Tensor, new: slice, all_: slice) -> Any:
        """Of a request with several new tokens."""
        queries, keys = new.stop - new.start, all_.stop - all_.start
        if queries == keys:
            return None  # causal
        return LongPrefill(None) if queries * keys >= LONG else mask[..., new, all_]

    @staticmethod
    def _decode(attend: Attend, query: torch.Tensor, held: torch.Tensor, all_: list[slice]) -> tuple[torch.Tensor, ...]:
        """Of requests with one new token each, as a batch that is padded on the right: one `[1, 1, H, value width]` per
        request.
        """
        spans = torch.tensor([(span.start, span.stop) for span in all_], device=held.device)
        steps = torch.arange(max(span.stop - span.start for span in all_), device=held.device)
        places = spans[:, :1] + steps
        mask = places < spans[:, 1:]
        tokens = held[0, 0, places.clamp(max=held.shape[2] - 1)][:, None]
        return attend(query.transpose(0, 2), tokens, mask[:, None, None])[0].split(1)


class LatentBatchingManager(ContinuousBatchingManager):
    """transformers' manager, with pages for latents. Attention is sdpa's, or flash attention where the model was loaded
    with it.
    """

    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig,
        continuous_batching_config: ContinuousBatchingConfig,
        hints: object = None,
    ) -> None:
        settings = copy(continuous_batching_config)
        if "flash" not in model.config._attn_implementation:
            settings.use_cuda_graph = (
                False  # requests are taken apart by lengths that a recorded graph would not read again
            )
        super().__init__(model, generation_config, settings, hints)

    def switch_to_cb_friendly_attn(self, model: PreTrainedModel, auto_switch_to_flash: bool = True) -> None:
        """Never to flash attention by itself: its heads are not as wide as a latent, so every token would be expanded
        at each step.
        """
        chosen = model.config._attn_implementation
        if chosen != "sdpa" and "flash" not in chosen:
            model.set_attn_implementation("sdpa")
            self._original_attn_impl = chosen  # restored when the manager stops

    def _create_batch_processor(self) -> Any:
        model = self.model
        text = _OneHalfHead(model.config.get_text_config())
        self.model = SimpleNamespace(  # what is read of the model to make the pages
            config=SimpleNamespace(get_text_config=lambda: text),
            device=model.device,
            dtype=model.dtype,
            _supports_logits_to_keep=model._supports_logits_to_keep,
        )
        try:
            return super()._create_batch_processor()
        finally:
            self.model = model


class _OneHalfHead:
    """A text configuration as the pages are to see it: one key head, half as wide as a cached token."""

    num_key_value_heads = 1

    def __init__(self, config: Any) -> None:
        self._config = config
        self.head_dim = _half(config.kv_lora_rank + config.qk_rope_head_dim)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _half(width: int) -> int:
    return -(-width // 2)


def _alike(requests: list[tuple[slice, slice]]) -> list[list[tuple[slice, slice]]]:
    """Groups of requests of which none is more than twice as long as another, but for the shortest."""
    groups: list[list[tuple[slice, slice]]] = []
    limit = -1
    for request in sorted(requests, key=lambda each: each[1].stop - each[1].start):
        length = request[1].stop - request[1].start
        if length > limit:
            groups.append([])
            limit = max(2 * length, 256)
        groups[-1].append(request)
    return groups
