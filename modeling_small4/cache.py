"""The latent cache: per layer one buffer that holds, for every token, `[latent | rotary key]`, and grows geometrically.

In the release that is 320 numbers per token and layer, against 8192 if keys and values were kept. Appending copies the
new tokens only; or, for compiled steps, one of fixed size that is written in place. `bits=8` stores codes with two
scales per token. This file knows nothing of attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, QuantizedCache
from transformers.utils import is_torchdynamo_compiling

from .configuration_small4 import Small4Config, Small4TextConfig
from .files_reading import shown

GROWTH = 1.25
FIRST_TOKENS = 256


class LatentLayer(CacheLayerMixin):
    """One layer's tokens. `keys` `[batch, 1, tokens, width]` are the tokens held; `values` is unused, as values are
    part of the latent.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, capacity: int = FIRST_TOKENS) -> None:
        self.first_capacity = capacity
        self.length: Any = 0  # tokens held
        self.stores: list[torch.Tensor] = []  # what is stored per token, each [batch, 1, capacity, ...]
        self.device: torch.device | None = None
        self.values = None

    @property
    def is_initialized(self) -> bool:
        return bool(self.stores)

    @property
    def keys(self) -> torch.Tensor | None:
        return self.decode([store[:, :, : self.length] for store in self.stores]) if self.stores else None

    @property
    def batch_size(self) -> int:
        return self.stores[0].shape[0] if self.stores else -1

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held, without room for more."""
        return sum(store[:, :, : self.length].numel() * store.element_size() for store in self.stores)

    def encode(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Tokens `[batch, 1, new, width]` as they are stored."""
        return [tokens]

    def decode(self, stored: list[torch.Tensor]) -> torch.Tensor:
        """The inverse of `encode`."""
        return stored[0]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        self.device = key_states.device
        self.stores = [new[:, :, :0] for new in self.encode(key_states)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        """Append `[batch, 1, new, width]`; returns all tokens `[batch, 1, tokens, width]`, and `value_states` as
        given.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        for index, new in enumerate(self.encode(key_states)):
            self.stores[index] = self._appended(self.stores[index], new, start)
        keys = self.keys
        assert keys is not None
        return keys, value_states

    def _appended(self, store: torch.Tensor, new: torch.Tensor, start: int) -> torch.Tensor:
        if torch.is_grad_enabled() and (new.requires_grad or store.requires_grad):
            return torch.cat((store[:, :, :start], new), dim=2)  # writing in place would break what autograd has saved
        foreign = store.is_inference() and not torch.is_inference_mode_enabled()
        if store.shape[2] < self.length or foreign:
            capacity = max(
                self.length, self.first_capacity, int(store.shape[2] * GROWTH) if store.shape[2] < self.length else 0
            )
            grown = new.new_empty((*new.shape[:2], capacity, *new.shape[3:]))
            grown[:, :, :start] = store[:, :, :start]
            store = grown
        store[:, :, start : self.length] = new
        return store

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        self.stores = [store.to("cpu", non_blocking=True) for store in self.stores]

    def prefetch(self) -> None:
        self.stores = [store.to(self.device, non_blocking=True) for store in self.stores]

    def reset(self) -> None:
        self.stores, self.length = [], 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; as in transformers their number is given as a negative one.

        Raises:
            ValueError: A positive number, or more tokens than are held.
        """
        if tokens_to_remove > 0 or -tokens_to_remove > self.length:
            raise ValueError(
                f"crop({tokens_to_remove}) with {self.length} tokens held; give minus the number of tokens to forget."
            )
        self.length += tokens_to_remove

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; indices or a bool mask `[batch]`."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().squeeze(1)
        self.stores = [store.index_select(0, indices.to(store.device)) for store in self.stores]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.stores = [store.repeat_interleave(repeats, dim=0) for store in self.stores]


class LatentLayer8Bit(LatentLayer):
    """Stores int8 codes and two bfloat16 scales per token, one for the latent and one for the rotary key, whose sizes
    differ.
    """

    def __init__(self, rank: int, capacity: int = FIRST_TOKENS) -> None:
        super().__init__(capacity)
        self.rank, self.dtype = rank, torch.float32

    def encode(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        self.dtype = tokens.dtype
        codes, scales = zip(
            *(_to_8_bits(part) for part in (tokens[..., : self.rank], tokens[..., self.rank :])), strict=True
        )
        return [torch.cat(codes, dim=-1), torch.cat(scales, dim=-1)]

    def decode(self, stored: list[torch.Tensor]) -> torch.Tensor:
        codes, scales = stored[0], stored[1].to(self.dtype)
        tokens = codes.to(self.dtype)
        tokens[..., : self.rank] *= scales[..., :1]
        tokens[..., self.rank :] *= scales[..., 1:]
        return tokens


class StaticLatentLayer(LatentLayer):
    """Room for `capacity` tokens from the start, written in place, so that a compiled step always finds the same shapes
    and addresses.

    `update` returns the whole room, as transformers' static layer does; its masks hide what is not filled yet. With
    `is_compileable` set to False it returns what is filled, as a growing layer does: for prompts, which are not
    compiled.
    """

    def __init__(self, capacity: int = FIRST_TOKENS) -> None:
        super().__init__(capacity)
        self.is_compileable = True
        self.length = torch.zeros((), dtype=torch.int64)  # a tensor, for a number would be compiled in

    @property
    def nbytes(self) -> int:
        return sum(store[:, :, : int(self.length)].numel() * store.element_size() for store in self.stores)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        self.device = key_states.device
        self.length = self.length.to(self.device)
        self.stores = [
            new.new_zeros((*new.shape[:2], self.first_capacity, *new.shape[3:])) for new in self.encode(key_states)
        ]
        if not is_torchdynamo_compiling():
            for fixed in (*self.stores, self.length):
                torch._dynamo.mark_static_address(fixed)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        places = torch.arange(key_states.shape[-2], device=self.device) + self.length
        self.length.add_(key_states.shape[-2])
        for store, new in zip(self.stores, self.encode(key_states), strict=True):
            store.index_copy_(2, places, new)
        filled = self.stores if self.is_compileable else [store[:, :, : int(self.length)] for store in self.stores]
        return self.decode(filled), value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.first_capacity if self.is_compileable else int(self.length) + query_length), 0

    def get_max_length(self) -> int:
        return self.first_capacity

    def reset(self) -> None:
        self.length.zero_()

    def crop(self, tokens_to_remove: int) -> None:
        length = int(self.length)
        if tokens_to_remove > 0 or -tokens_to_remove > length:
            raise ValueError(f"crop({tokens_to_remove}) with {length} tokens held; give minus the number to forget.")
        self.length.add_(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        for store in self.stores:
            store.copy_(store.index_select(0, beam_idx.to(store.device)))


class StaticLatentLayer8Bit(LatentLayer8Bit, StaticLatentLayer):
    """Of fixed size, and in 8 bits."""


def _to_8_bits(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric codes in [-127, 127] and their scale, rounded to bfloat16: at most 2**-8 too small, which takes no code
    beyond 127.496.
    """
    largest = part.detach().float().abs().amax(dim=-1, keepdim=True) / 127
    scale = largest.clamp(min=1e-30).to(torch.bfloat16)
    return (part.detach().float() / scale.float()).round().to(torch.int8), scale


class LatentCache(Cache):
    """Cache of Small 4's latents; what `generate` uses unless told otherwise.

    Args:
        config: A `Small4Config` or `Small4TextConfig`.
        bits: 16 keeps latents in the dtype they come in; 8 stores int8 codes, half the bytes of bfloat16 and 4 per
            token and layer.
        capacity: Tokens to make room for at first, where the length is known beforehand.
        offloading: Keep all layers but the one in use in host memory (needs a GPU).
        static: Never grow beyond `capacity`, and let steps be compiled; `generate` compiles them by itself on a GPU.

    Raises:
        ValueError: Bits other than 8 and 16.
    """

    def __init__(
        self,
        config: Small4Config | Small4TextConfig,
        bits: int = 16,
        capacity: int = FIRST_TOKENS,
        offloading: bool = False,
        static: bool = False,
    ) -> None:
        if bits not in (8, 16):
            raise ValueError(f"bits={shown(bits)} is not possible; a latent cache has 16 (as computed) or 8.")
        text = config.get_text_config()
        if bits == 16:
            make = partial(StaticLatentLayer if static else LatentLayer, capacity)
        else:
            make = partial(StaticLatentLayer8Bit if static else LatentLayer8Bit, text.kv_lora_rank, capacity)
        super().__init__(layers=[make() for _ in range(text.num_hidden_layers)], offloading=offloading)

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens held, in all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @contextmanager
    def reading_a_prompt(self) -> Iterator[None]:
        """Where the cache is of fixed size, only what is filled is seen meanwhile, and nothing is compiled."""
        fixed = [layer for layer in self.layers if isinstance(layer, StaticLatentLayer)]
        for layer in fixed:
            layer.is_compileable = False
        try:
            yield
        finally:
            for layer in fixed:
                layer.is_compileable = True


def extend(cache: Cache, tokens: torch.Tensor, rank: int, layer_idx: int) -> torch.Tensor:
    """Append tokens to any cache and return all of them.

    transformers' own caches hold them as keys whose values have no width; its quantized ones cannot, and get latent and
    rotary key apart.

    Args:
        tokens: `[batch, 1, new, rank + rotary width]`.

    Returns:
        `[batch, 1, cached + new, rank + rotary width]`.
    """
    if isinstance(cache, QuantizedCache):
        return torch.cat(cache.update(tokens[..., :rank], tokens[..., rank:], layer_idx), dim=-1)
    return cache.update(tokens, tokens[..., :0], layer_idx)[0]


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that was passed as `cache` or, as callers of transformers before 5.24 do, as `past_key_values`; None
    without one.

    Raises:
        ValueError: Both were passed, or something that is no cache.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument; pass one of them.")
    given = past_key_values if cache is None else cache
    if isinstance(given, (str, tuple, list, dict, torch.Tensor, bool, int)):
        raise ValueError(
            f"The cache must be a LatentCache or another Cache of transformers, but is a {type(given).__name__}. A "
            'kind of cache is chosen by cache_implementation="...".'
        )
    return given


def with_cache_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their cache, if any, as `cache`. Raises ValueError for one under each name."""
    rest = {name: value for name, value in arguments.items() if name not in ("cache", "past_key_values")}
    cache = given_cache(arguments.get("cache"), arguments.get("past_key_values"))
    return rest if cache is None else rest | {"cache": cache}
