"""Models whose experts are read from disk as needed, with room for a few.

Shared by the tests of such models.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from modeling_small4 import Small4ForCausalLM
from modeling_small4.experts_offloaded import expert_store

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


def slots(folder: Path, count: int) -> int:
    """Bytes for so many experts."""
    return count * _slot_bytes(folder)


@cache
def _slot_bytes(folder: Path) -> int:
    return offloaded(folder, "1GB").store.pool.memory.shape[1]


class offloaded:
    """A model of a folder with few experts in memory, and its store."""

    def __init__(self, folder: Path, memory: Any, **options: Any) -> None:
        self.model: Any = Small4ForCausalLM.from_pretrained(folder, expert_memory=memory, **options)
        store = expert_store(self.model)
        assert store is not None
        self.store = store


def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 1100, (2, 40), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}
