"""Which experts are in memory: slots of equal size, filled as experts are requested, and a measure of use that decides
what stays.

One `Pool` serves all layers and all threads that share a model. What is being computed with is held and never
overwritten. A pool of slots on an accelerator takes its experts from a pool in main memory and gives back what it drops
(`experts_tiers`). Must not know: files, copies, what an expert computes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Any, Protocol

import numpy as np
import torch

from .experts_profile import RANKS, ExpertProfile

READERS = 8  # experts being read at a time: enough to keep a fast disk busy
HALF_LIFE = 128  # tokens after which a use counts half
FEW = 16  # tokens of a pass that is no prompt's
LOOKED_AT = 9  # layers of a pass whose experts are ranked, other ones each time; more take longer than they tell
Expert = tuple[int, int]  # layer among those with experts, expert
Load = Callable[[Expert, torch.Tensor, Any, Expert | None], None]  # as `Source.load`


class Source(Protocol):
    """Where a pool gets experts from."""

    def load(self, expert: Expert, slot: torch.Tensor, after: Any, old: Expert | None) -> None:
        """Fill `slot`, uint8 `[slot bytes]`. An accelerator may read it until it is past the mark `after`. `old` is the
        expert in it so far, which may be kept elsewhere.
        """


class Usage:
    """How much each expert was used lately: the sum of its tokens, one of `HALF_LIFE` tokens ago counting half.

    A compromise between least recently used and least often used. A prompt counts the same whether it is read at once
    or token by token.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.scores = np.zeros((layers, experts))
        self.counts = np.zeros((layers, experts), dtype=np.int64)  # of all tokens, none forgotten
        self.tokens = 0
        self.ranks = np.zeros(RANKS, dtype=np.int64)  # uses by how many experts were used more before, as their share
        self._passes = 0
        self._clock = np.zeros(layers)
        self._lock = Lock()

    def expect(self, profile: ExpertProfile) -> None:
        """Begin as if the tokens of a profile had gone on for ever."""
        self.scores += profile.uses / profile.tokens * (HALF_LIFE / np.log(2))

    def used(self, layer: int, counts: Sequence[int], tokens: int) -> None:
        """Count a forward pass of `tokens` tokens, of which `counts[expert]` chose each expert."""
        life = tokens / HALF_LIFE
        weight = 1.0 if life < 1e-9 else (1 - 2.0**-life) / (life * np.log(2))  # of a token, on average over the pass
        with self._lock:
            self._passes += layer == 0
            if tokens <= FEW and (self._passes + layer) % max(1, len(self.scores) // LOOKED_AT) == 0:
                self._rank(layer, counts)
            self.counts[layer] += np.asarray(counts)
            self.tokens += tokens if layer == 0 else 0
            self._clock[layer] += life
            # Weights grow instead of scores shrinking, so that a pass changes no other layer's scores.
            self.scores[layer] += np.asarray(counts) * (weight * 2.0 ** self._clock[layer])
            if (far := self._clock[layer]) > 500:
                self.scores *= 2.0**-far
                self._clock -= far

    def _rank(self, layer: int, counts: Sequence[int]) -> None:
        """Count chosen experts by their rank among all, which says how many slots would have had them."""
        chosen = np.flatnonzero(counts)
        more = (self.scores > self.scores[layer, chosen][:, None, None]).sum(axis=(1, 2))
        np.add.at(self.ranks, more * RANKS // self.scores.size, np.asarray(counts)[chosen])


class Pool:
    """Slots in one memory.

    Args:
        count, nbytes: Slots and bytes of each.
        source: Where missing experts come from.
        usage: Shared by the pools of a model.
        device: Where the slots are.
        pinned: Pages that are never moved, which makes copies to an accelerator faster.
        mark: Called when slots are given back: what the accelerator has to be past before they are overwritten.
    """

    def __init__(
        self,
        count: int,
        nbytes: int,
        source: Source,
        usage: Usage,
        device: torch.device,
        *,
        pinned: bool = False,
        mark: Callable[[], Any] = lambda: None,
    ) -> None:
        try:
            with torch.inference_mode(False):  # the readers write to it outside that mode
                self.memory = torch.empty(count, nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)
        except RuntimeError as error:  # torch's for memory that there is not
            raise ValueError(
                f"{count * nbytes:,} bytes for experts cannot be had on {device}; give less in expert_memory, at least "
                f"{nbytes:,} bytes for each expert that a token chooses in a layer."
            ) from error
        self.device, self.usage = device, usage
        self.hits, self.misses = 0, 0
        self._source, self._mark = source, mark
        self._marks: list[Any] = [None] * count
        self.present = np.zeros_like(usage.scores, dtype=bool)  # those that have arrived
        self.above: Pool | None = None  # whose experts need not be kept here
        self._slots: dict[Expert, int] = {}
        self._content: list[Expert | None] = [None] * count
        self._places = np.full((count, 2), -1)
        self._holders = np.zeros(count, dtype=np.int64)
        self._arrivals: list[Future[None] | None] = [None] * count
        self._changed = Condition()
        self._workers: ThreadPoolExecutor | None = None
        self._process = os.getpid()

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
            self._put(expert, index, self._source.load)
        return True

    def prefers(self, expert: Expert) -> bool:
        """Whether an expert that is not here was used more than one that is, or there is an empty slot."""
        with self._changed:
            return bool(self._room_for(expert))

    def _room_for(self, expert: Expert) -> list[int]:
        """The slot of an expert that was used less, if there is one; under the lock."""
        chosen = self._least_used(1)
        return chosen if chosen and self._value(chosen[0]) < self.usage.scores[expert] else []

    def adopt(self, expert: Expert, load: Load) -> "Future[None] | None":
        """Take an expert from elsewhere, by `load`, if it is used more than one that is here. Returns when it is
        here; None if it is not taken.
        """
        with self._changed:
            known = expert in self._slots or (self.above is not None and bool(self.above.present[expert]))
            chosen = [] if known else self._room_for(expert)
            if not chosen:
                return None
            arrival = self._put(expert, chosen[0], load)
            self._give_back(arrival, chosen[0])
        arrival.exception()
        return arrival

    def fill(self, experts: Iterable[Expert]) -> None:
        """Read experts one after the other, each if it is used more than one that is here. Ends early if one cannot be
        read: whoever needs it is told why.
        """
        for expert in experts:
            arrival = self.adopt(expert, self._source.load)
            if arrival is not None and arrival.exception() is not None:
                return

    def _value(self, index: int) -> float:
        """Uses of what is in a slot; -1 where it is empty, or its expert is above too."""
        old = self._content[index]
        spare = old is None or (self.above is not None and self.above.present[old])
        return -1.0 if spare else float(self.usage.scores[old])

    def _give_back(self, arrival: "Future[None]", index: int) -> None:
        """Once it has arrived."""
        arrival.add_done_callback(lambda _: self.release([index], computed=False))

    def _least_used(self, count: int) -> list[int]:
        """Up to `count` slots that nobody holds: empty ones, then those whose experts are used least."""
        if not count:
            return []
        layers, experts = self._places.T
        value = np.where(layers < 0, -1.0, self.usage.scores[layers, experts])
        if self.above is not None:
            value[(layers >= 0) & self.above.present[layers, experts]] = -0.5
        value[self._holders > 0] = np.inf
        chosen = np.argpartition(value, min(count, len(value)) - 1)[:count]
        return [int(index) for index in chosen if value[index] < np.inf]

    def _put(self, expert: Expert, index: int, load: Load) -> "Future[None]":
        """Begin to fill a slot, which is held from now on."""
        old = self._content[index]
        if old is not None:
            del self._slots[old]
            self.present[old] = False
        self._slots[expert], self._content[index], self._places[index] = index, expert, expert
        self._holders[index] = 1
        if self._workers is None or self._process != os.getpid():  # a process that was forked has no threads of it
            self._workers, self._process = ThreadPoolExecutor(READERS, "small4-experts"), os.getpid()
        arrival = self._arrivals[index] = self._workers.submit(self._fetch, expert, index, old, load)
        return arrival

    def _fetch(self, expert: Expert, index: int, old: Expert | None, load: Load) -> None:
        try:
            load(expert, self.memory[index], self._marks[index], old)
        except BaseException:
            with self._changed:  # so that the next request tries again
                del self._slots[expert]
                self._content[index], self._places[index] = None, (-1, -1)
            raise
        self.present[expert] = True  # held, so still its slot
        self._arrivals[index] = None

    def release(self, indices: Sequence[int], computed: bool = True) -> None:
        """Give back what was held; done by `Holding`. computed: by this thread, with what was in the slots."""
        mark = self._mark() if computed else None
        with self._changed:
            for index in indices if computed else ():
                self._marks[index] = mark
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
