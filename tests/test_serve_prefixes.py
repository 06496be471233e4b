"""The prefix cache of the server by itself: memory that is counted is memory that is held."""

import pytest
import torch

from modeling_small4 import Small4Config
from modeling_small4.cache import LatentCache
from modeling_small4.server.prefixes import PrefixStore


def filled(config: Small4Config, pieces: list[int], rows: int = 1) -> LatentCache:
    cache, layers = LatentCache(config), config.get_text_config().num_hidden_layers
    width = config.get_text_config().kv_lora_rank + config.get_text_config().qk_rope_head_dim
    for tokens in pieces:
        for layer in range(layers):
            cache.update(torch.randn(rows, 1, tokens, width), None, layer)
    return cache


@pytest.mark.parametrize("pieces", [[520], [513, 7], [64, 1], [300, 1, 1, 1]])
@pytest.mark.parametrize("row_of_a_batch", [False, True])
def test_no_memory_is_held_beside_what_is_counted(pieces: list[int], row_of_a_batch: bool) -> None:
    config, store = Small4Config(text_config={"num_hidden_layers": 3}), PrefixStore(2**30)
    cache, length = filled(config, pieces, rows=3 if row_of_a_batch else 1), sum(pieces)
    if row_of_a_batch:
        for layer in cache.layers:
            layer.stores = [each[1:2] for each in layer.stores]
    expected = [[each[:, :, :length].clone() for each in layer.stores] for layer in cache.layers]
    store.keep(list(range(length)), cache)
    held = [each for layer in next(iter(store._entries.values())).stores for each in layer]
    assert store.nbytes == sum(
        {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in held}.values()
    )
    assert store.nbytes == sum(each.numel() * each.element_size() for layer in expected for each in layer)
    again = LatentCache(config)
    assert store.take([*range(length), 10**6], again) == length
    for layer, stores in zip(again.layers, expected, strict=True):
        assert all(torch.equal(a[:, :, :length], b) for a, b in zip(layer.stores, stores, strict=True))
