"""Where a pool's experts come from and go to: files on disk below main memory, main memory below an accelerator.

An expert is either on the accelerator or in main memory, not in both for long, so that both sizes add up. Must not
know: what decides which expert stays, what is computed.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch

from .experts_files import LayerFiles
from .experts_link import Link
from .experts_pool import Expert, Pool


class Disk:
    """The source of experts that are in no memory. Counts what it reads."""

    def __init__(self, layers: Sequence[LayerFiles]) -> None:
        self.layers = layers
        self.bytes_read = 0
        self._lock = Lock()

    def load(self, expert: Expert, slot: torch.Tensor, after: Any = None, old: Expert | None = None) -> None:
        """Read one expert from its files."""
        count = self.layers[expert[0]].read(expert[1], slot)
        with self._lock:
            self.bytes_read += count


class MainMemory:
    """The source of an accelerator's slots: a pool in main memory. Counts the bytes of experts copied `up` and `down`,
    and those of inputs and outputs of experts that the CPU computes instead (`activations`).
    """

    def __init__(self, pool: Pool, link: Link) -> None:
        self.pool, self.link = pool, link
        self.up = self.down = self.activations = 0
        self.lock = Lock()

    def load(self, expert: Expert, slot: torch.Tensor, after: Any = None, old: Expert | None = None) -> None:
        """Copy an expert to the accelerator, read from disk first if it has to be, and the one that leaves its slot to
        main memory, if that is used more than something there.
        """
        with self.pool.held([expert]) as held:
            source = held.slot(expert)
            if old is not None:
                self.pool.adopt(old, lambda _, place, after, old: self._down(slot, place))
            self.link.copy(source, slot, after)
        with self.lock:
            self.up += slot.nbytes

    def _down(self, slot: torch.Tensor, place: torch.Tensor) -> None:
        self.link.copy(slot, place, None)
        with self.lock:
            self.down += slot.nbytes
