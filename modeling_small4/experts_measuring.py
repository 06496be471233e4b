"""Measures, before the first token, how fast experts are read, copied and multiplied, with some real ones, in the slots
that they will use, by the code that will use them; and how long a token takes whose experts are all in place. Takes
about a second, and twice what a token takes where that is longer.

Must not know: what is estimated from it.
"""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil

import torch
from transformers import PreTrainedModel

from .cache import LatentCache, extend
from .experts_link import Link
from .experts_offloaded import ExpertStore, Held, Small4OffloadedExperts
from .experts_pool import READERS, Expert, Pool, Usage
from .experts_speed import FOREVER, WeightRates, rate_of, typical_seconds

ENOUGH = 2**28  # bytes, of which a cache holds little; four times as many gave the same rates
PATIENCE = 0.4  # seconds after which a disk is known, and a token
CACHED = 16  # tokens before the one that is timed: few, but attention takes the path of many


@dataclass
class _Filled:
    """Slots that hold experts, which are given out in turn, whichever expert is asked for."""

    memory: torch.Tensor
    given: int = 0

    def slot(self, expert: Expert) -> torch.Tensor:
        """As `Slots.slot`."""
        self.given += 1
        return self.memory[self.given % len(self.memory)]


@dataclass
class _InPlace(ExpertStore):
    """Experts that are all in memory, as far as time is concerned. Counts and pools of the store that it stands for
    stay as they are.
    """

    filled: _Filled = field(kw_only=True)

    def held(self, pool: Pool, layer: int, experts: Sequence[int]) -> Generator[Held, None, None]:
        """As `ExpertStore.held`."""
        yield Held(self.layers[layer], self.filled, list(experts))


def measured_rates(
    store: ExpertStore, module: Small4OffloadedExperts, hidden: int, top_k: int, fastest: bool = False
) -> tuple[WeightRates, int]:
    """Rates of a store whose pools are still empty, and how many of its first slots have been filled for that.

    Args:
        module: A layer of it.
        hidden: Width of its inputs.
        top_k: Experts of a token.
        fastest: Whether the CPU may multiply for an accelerator.

    Raises:
        OSError: An expert cannot be read.
    """
    main, files = (store.pool if store.below is None else store.below.pool), store.layers[module.layer]
    size = min(top_k, main.count, store.pool.count, files.count)
    groups = min(main.count, store.pool.count, files.count, size * max(2, ceil(ENOUGH / (size * files.nbytes)))) // size
    missing = max(1, min(size, round((1 - store.hit_rates()[1]) * top_k)))
    disk, read = _read(store, module.layer, main.memory[: groups * size], size, missing)
    groups, link = read // size, FOREVER
    filled = groups * size
    if store.below is not None:
        link = _copied(store.below.link, main.memory[:filled], store.pool.memory)

    def product(memory: torch.Tensor) -> float:
        inputs = torch.ones(size, hidden, dtype=module.like.dtype, device=memory.device)
        rows = [slice(index, index + 1) for index in range(size)]
        held = Held(files, _Filled(memory[:filled]), list(range(size)))

        def multiply(group: int) -> float:
            return float(module.multiplied(held, inputs, rows, 1, [])[0].sum())  # which waits for an accelerator

        return rate_of(multiply, groups, size * files.nbytes)

    with torch.inference_mode():
        host = product(main.memory) if fastest else 0.0
        return WeightRates(product(store.pool.memory), link, disk, host), filled


def token_seconds(model: PreTrainedModel, store: ExpertStore, filled: int) -> float:
    """Seconds of a forward pass with one token whose experts are all in place.

    Args:
        model: Nobody else may use it meanwhile.
        filled: As `measured_rates` returns it.

    Raises:
        ValueError: The model's attention is compiled first, which takes much longer than a token.
    """
    if "flex" in model.config.get_text_config()._attn_implementation:
        raise ValueError("flex_attention is compiled at its first token")
    modules = [module for module in model.modules() if isinstance(module, Small4OffloadedExperts)]
    filled_slots = _Filled(store.pool.memory[:filled])
    usage = Usage(*store.usage.scores.shape)
    in_place = _InPlace(store.layers, store.disk, usage, store.pool, filled=filled_slots)
    text, embedding = model.config.get_text_config(), model.get_input_embeddings().weight
    ids = torch.zeros(1, 1, dtype=torch.long, device=embedding.device)
    for module in modules:
        module.store = in_place
    try:
        with torch.no_grad():  # inference mode would leave tensors behind that autograd refuses
            cache = LatentCache(text)
            for layer in range(text.num_hidden_layers):
                width = text.kv_lora_rank + text.qk_rope_head_dim
                extend(cache, embedding.new_zeros(1, 1, CACHED, width), text.kv_lora_rank, layer)

            def run() -> float:  # and waits for an accelerator
                return float(model(ids, past_key_values=cache, use_cache=True)[0].sum())

            return typical_seconds(run, PATIENCE)
    finally:
        for module in modules:
            module.store = store


def _read(store: ExpertStore, layer: int, memory: torch.Tensor, least: int, at_once: int) -> tuple[float, int]:
    """Bytes per second of reading experts that are in no file cache, so many at once as a token misses in a layer; and
    how many were read, `least` or more.
    """
    files, taken, done = store.layers[layer], 0.0, 0
    memory.zero_()  # the first touch of a page takes time of its own
    with ThreadPoolExecutor(READERS) as workers:
        while done < least or (done < len(memory) and taken < PATIENCE):
            some = range(done, min(done + at_once, len(memory)))
            for expert in some:
                files.forget(expert)
            begin = time.perf_counter()
            list(workers.map(lambda expert: files.read(expert, memory[expert]), some))
            taken, done = taken + time.perf_counter() - begin, some.stop
    return done * files.nbytes / taken, done


def _copied(link: Link, source: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes per second of copies to the accelerator, one expert after the other."""
    return rate_of(lambda index: link.copy(source[index], target[index], None), len(source), source.shape[1])
