"""Measures, before the first token, how fast experts are read, copied and multiplied: with some real ones, in the slots
that they will use, by the code that will use them. Takes less than a second.

Must not know: what is estimated from it.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import torch

from .experts_link import Link
from .experts_offloaded import ExpertStore, Held, Small4OffloadedExperts
from .experts_pool import READERS, Expert
from .experts_speed import FOREVER, WeightRates, rate_of

ENOUGH = 2**28  # bytes, of which a cache holds little; four times as many gave the same rates
PATIENCE = 0.4  # seconds after which a disk is known


@dataclass
class _Filled:
    """Experts in slots, in the order of `experts`."""

    memory: torch.Tensor
    experts: Sequence[int]

    def slot(self, expert: Expert) -> torch.Tensor:
        """As `Holding.slot`."""
        return self.memory[self.experts.index(expert[1])]


def measured_rates(
    store: ExpertStore, module: Small4OffloadedExperts, hidden: int, top_k: int, fastest: bool = False
) -> WeightRates:
    """Rates of a store whose pools are still empty.

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
    experts = list(range(groups * size))
    disk, groups = _read(store, module.layer, main.memory, groups, size)
    link = FOREVER
    if store.below is not None:
        link = _copied(store.below.link, main.memory[: groups * size], store.pool.memory)

    def product(memory: torch.Tensor) -> float:
        inputs = torch.ones(size, hidden, dtype=module.like.dtype, device=memory.device)
        rows = [slice(index, index + 1) for index in range(size)]

        def multiply(group: int) -> float:
            held = Held(files, _Filled(memory, experts), experts[group * size : (group + 1) * size])
            return float(module.multiplied(held, inputs, rows, 1, [])[0].sum())  # which waits for an accelerator

        return rate_of(multiply, groups, size * files.nbytes)

    with torch.inference_mode():
        return WeightRates(product(store.pool.memory), link, disk, product(main.memory) if fastest else 0.0)


def _read(store: ExpertStore, layer: int, memory: torch.Tensor, groups: int, size: int) -> tuple[float, int]:
    """Bytes per second of reading groups of experts that are in no file cache, each group at once; and how many groups
    were read.
    """
    files, taken, done = store.layers[layer], 0.0, 0
    memory[: groups * size].zero_()  # the first touch of a page takes time of its own
    with ThreadPoolExecutor(READERS) as workers:
        while done < groups and taken < PATIENCE:
            some = range(done * size, (done + 1) * size)
            for expert in some:
                files.forget(expert)
            begin = time.perf_counter()
            list(workers.map(lambda expert: files.read(expert, memory[expert]), some))
            taken, done = taken + time.perf_counter() - begin, done + 1
    return done * size * files.nbytes / taken, done


def _copied(link: Link, source: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes per second of copies to the accelerator, one expert after the other."""
    return rate_of(lambda index: link.copy(source[index], target[index], None), len(source), source.shape[1])
