"""The prefix cache: latents of earlier prompts and answers, so that a request that begins with the same tokens reads
only the rest.

They are kept as they were computed, up to a limit of bytes; the least recently used are dropped first. Knows nothing of
requests or decoding.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from ..cache import LatentCache

LEAST = 64  # the shortest prefix that is worth keeping, in tokens


@dataclass
class _Entry:
    key: np.ndarray
    stores: list[list[torch.Tensor]]  # of each layer, what it stores, `[1, 1, tokens, ...]`

    @property
    def nbytes(self) -> int:
        return sum(store.untyped_storage().nbytes() for layer in self.stores for store in layer)


class PrefixStore:
    """
    Args:
        limit: bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes, self._entries = limit, 0, OrderedDict[int, _Entry]()
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, key: list[int], cache: LatentCache) -> int:
        """Fills an empty cache with the longest known prefix of `key`, without the last token of `key`. Returns its
        length in tokens.

        Args:
            key: one number for each token of a prompt; for images, hashes of their content.
        """
        wanted = np.asarray(key[:-1], dtype=np.int64)
        lengths = {name: _common(entry.key, wanted) for name, entry in self._entries.items()}
        best = max(lengths, key=lambda name: lengths[name], default=None)
        if best is None or lengths[best] < LEAST:
            return 0
        self._entries.move_to_end(best)
        length = lengths[best]
        for layer, stores in zip(cache.layers, self._entries[best].stores, strict=True):
            room = length + max(LEAST, len(key) - length)
            layer.device = stores[0].device
            layer.stores = [_with_room(store[:, :, :length], room) for store in stores]
            layer.length = length
        return length

    def keep(self, key: list[int], cache: LatentCache) -> None:
        """Keeps what a cache holds of `key`. The cache may grow afterwards, but must not be cropped."""
        length = min(len(key), int(cache.get_seq_length()))
        if not self.limit or length < LEAST:
            return
        wanted = np.asarray(key[:length], dtype=np.int64)
        for name, entry in list(self._entries.items()):
            common = _common(entry.key, wanted)
            if common == len(wanted):  # already kept
                self._entries.move_to_end(name)
                return
            if common == len(entry.key):  # the new one continues it
                self._drop(name)
        entry = _Entry(wanted, [[_alone(store, length) for store in layer.stores] for layer in cache.layers])
        if entry.nbytes > self.limit:
            return
        while self.nbytes + entry.nbytes > self.limit:
            self._drop(next(iter(self._entries)))
        self._entries[self._next] = entry
        self._next, self.nbytes = self._next + 1, self.nbytes + entry.nbytes

    def _drop(self, name: int) -> None:
        self.nbytes -= self._entries.pop(name).nbytes


def _common(mine: np.ndarray, theirs: np.ndarray) -> int:
    """Length of the common prefix."""
    length = min(len(mine), len(theirs))
    differs = mine[:length] != theirs[:length]
    return int(differs.argmax()) if differs.any() else length


def _alone(store: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` tokens, without the memory around them; no copy where there is nothing around."""
    part = store[:, :, :length]
    return part if part.untyped_storage().nbytes() == part.numel() * part.element_size() else part.clone()


def _with_room(store: torch.Tensor, room: int) -> torch.Tensor:
    grown = store.new_empty((*store.shape[:2], room, *store.shape[3:]))
    grown[:, :, : store.shape[2]] = store
    return grown
