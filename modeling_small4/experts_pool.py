"""Which experts are in memory: slots of equal size, filled as experts are requested, and a measure of use that decides
what stays.

One `Pool` serves all layers and all threads that share a model. Experts in use are held and never overwritten. A pool
of slots on an accelerator takes its experts from a pool in host memory, which takes them from disk.
Must not know: files, what an expert computes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Protocol

import numpy as np
import torch

READERS = 8  # experts being read at a time: enough to keep a fast disk busy
HALF_LIFE = 128  # tokens after which a use counts half
Expert = tuple[int, int]  # layer among those with experts, expert


class Source(Protocol):
    """Where a pool gets experts from."""

    def load(self, expert: Expert, slot: torch.Tensor) -> None:
        """Fill `slot`, uint8 `[slot bytes]`."""


class Usage:
    """How much each expert was used lately: the sum of its tokens, one of `HALF_LIFE` tokens ago counting half.

    A compromise between least recently used and least often used. A prompt counts the same whether it is read at once
    or token by token.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.scores = np.zeros((layers, experts))
        self._clock = np.zeros(layers)
        self._lock = Lock()

    def used(self, layer: int, counts: Sequence[int], tokens: int) -> None:
        """Count a forward pass of `tokens` tokens, of which `counts[expert]` chose each expert."""
        life = tokens / HALF_LIFE
        weight = 1.0 if life < 1e-9 else (1 - 2.0**-life) / (life * np.log(2))  # of a token, on average over the pass
        with self._lock:
            self._clock[layer] += life
            # Weights grow instead of scores shrinking, so that a pass changes no other layer's scores.
            self.scores[layer] += np.asarray(counts) * (weight * 2.0 ** self._clock[layer])
            if (far := self._clock[layer]) > 500:
                self.scores *= 2.0**-far
                self._clock -= far


class Pool:
    """Slots in one memory.

    Args:
        count, nbytes: Slots and bytes of each.
        source: Where missing experts come from.
        usage: Shared by the pools of a model.
        device: Where the slots are; those of a CPU are pinned where that makes copies faster.
    """

    def __init__(self, count: int, nbytes: int, source: Source, usage: Usage, device: torch.device) -> None:
        pinned = device.type == "cpu" and torch.cuda.is_available()
        self.memory = torch.empty(count, nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)
        self.device, self.usage = device, usage
        self.hits, self.misses = 0, 0
        self._source = source
        self._slots: dict[Expert, int] = {}
        self._content: list[Expert | None] = [None] * count
        self._places = np.full((count, 2), -1)
        self._holders = np.zeros(count, dtype=np.int64)
        self._arrivals: list[Future[None] | None] = [None] * count
        self._changed = Condition()
        self._workers: ThreadPoolExecutor | None = None

    @property
    def count(self) -> int:
        """Slots."""
        return len(self._content)

    def __contains__(self, expert: Expert) -> bool:
        return expert in self._slots

    @contextmanager
    def held(self, experts: Sequence[Expert]) -> Iterator["Holding"]:
        """Keep experts in slots while the block runs; those that are missing are fetched together. At most `count`
        different ones.

        Waits while other threads hold the slots. A thread must not hold any when it asks.
        """
        holding = self.hold(experts)
        try:
            yield holding
        finally:
            holding.release()

    def hold(self, experts: Sequence[Expert]) -> "Holding":
        """As `held`; the caller releases."""
        assert len(experts) <= self.count
        with self._changed:
            self._changed.wait_for(lambda: self._take(experts))
            return self._holding(experts)

    def try_hold(self, experts: Sequence[Expert]) -> "Holding | None":
        """As `hold` without waiting for slots: None if there are not enough."""
        with self._changed:
            return self._holding(experts) if self._take(experts) else None

    def _holding(self, experts: Sequence[Expert]) -> "Holding":
        indices = [self._slots[expert] for expert in experts]
        return Holding(self, dict(zip(experts, indices, strict=True)), [self._arrivals[index] for index in indices])

    def _take(self, experts: Sequence[Expert]) -> bool:
        """Hold all of them or none; under the lock."""
        missing = [expert for expert in experts if expert not in self._slots]
        here = [self._slots[expert] for expert in experts if expert in self._slots]
        self._holders[here] += 1
        chosen = self._least_used(len(missing))
        if len(chosen) < len(missing):
            self._holders[here] -= 1
            return False
        self.hits, self.misses = self.hits + len(here), self.misses + len(missing)
        for expert, index in zip(missing, chosen, strict=True):
            self._put(expert, index)
        return True

    def _least_used(self, count: int) -> list[int]:
        """Up to `count` slots that nobody holds: empty ones, then those whose experts are used least."""
        if not count:
            return []
        layers, experts = self._places.T
        value = np.where(layers < 0, -1.0, self.usage.scores[layers, experts])
        value[self._holders > 0] = np.inf
        chosen = np.argpartition(value, min(count, len(value)) - 1)[:count]
        return [int(index) for index in chosen if value[index] < np.inf]

    def _put(self, expert: Expert, index: int) -> None:
        old = self._content[index]
        if old is not None:
            del self._slots[old]
        self._slots[expert], self._content[index], self._places[index] = index, expert, expert
        self._holders[index] = 1
        if self._workers is None:
            self._workers = ThreadPoolExecutor(READERS, "small4-experts")
        self._arrivals[index] = self._workers.submit(self._fetch, expert, index)

    def _fetch(self, expert: Expert, index: int) -> None:
        try:
            self._source.load(expert, self.memory[index])
        except BaseException:
            with self._changed:  # so that the next request tries again
                del self._slots[expert]
                self._content[index], self._places[index] = None, (-1, -1)
            raise
        self._arrivals[index] = None

    def release(self, indices: Sequence[int]) -> None:
        """Release held experts; called by `Holding`."""
        with self._changed:
            self._holders[list(indices)] -= 1
            self._changed.notify_all()


class Holding:
    """Experts that stay in their slots until `release`."""

    def __init__(self, pool: Pool, indices: dict[Expert, int], arrivals: Sequence[Future[None] | None]) -> None:
        self._pool, self._indices = pool, indices
        self._arrivals = dict(zip(indices, arrivals, strict=True))

    def slot(self, expert: Expert) -> torch.Tensor:
        """Its bytes, once they have been read, uint8 `[slot bytes]` on the pool's device.

        Raises:
            OSError: They could not be read.
        """
        arrival = self._arrivals[expert]
        if arrival is not None:
            arrival.result()
        return self._pool.memory[self._indices[expert]]

    def release(self) -> None:
        """Release them, once. Waits for reads in progress: a slot is not reused while it is being filled."""
        for arrival in self._arrivals.values():
            if arrival is not None:
                arrival.exception()
        self._pool.release(list(self._indices.values()))
