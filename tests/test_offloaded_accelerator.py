"""Experts on an accelerator, in main memory and on disk, with a fake accelerator that counts copies: the same bits as
with all in memory, each size held to, and no expert overwritten before it was computed with.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_folder
import torch

import modeling_small4.loading_offloaded as loading
from modeling_small4 import Small4ForCausalLM
from modeling_small4.experts_link import link_to
from modeling_small4.experts_offloaded import expert_store
from modeling_small4.experts_pool import Pool, Usage
from modeling_small4.experts_tiers import MainMemory

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


class FakeLink:
    """A `Link` whose accelerator is main memory. Counts bytes by direction; a mark is a number that grows."""

    def __init__(self, memory: int = 10**9) -> None:
        self.device = torch.device("cpu")
        self.copied = self.marks = 0
        self.afters: list[Any] = []
        self.memory = memory

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> None:
        self.copied += source.nbytes
        self.afters.append(after)
        target.copy_(source)

    def free(self) -> int:
        return self.memory


FORMS = ("fp8", "nvfp4", "bfloat16")


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = stored_folder.write(
        tmp_path_factory.mktemp("stored"), "fp8" if request.param == "bfloat16" else request.param
    )
    return folders.expanded if request.param == "bfloat16" else folders.stored


def loaded(folder: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, link: FakeLink | None = None) -> Any:
    monkeypatch.setattr(loading, "accelerator", lambda device_map, asked: link or FakeLink())
    return Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, expert_memory=memory)


@cache
def slot_bytes(folder: Path) -> int:
    """Of an expert."""
    store = expert_store(Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, expert_memory="1GB"))
    assert store is not None
    return store.pool.memory.shape[1]


def prompt(tokens: int = 40) -> torch.Tensor:
    return torch.randint(1000, 1100, (2, tokens), generator=torch.Generator().manual_seed(5))


PLACES = [(2, 1), (2, 6), (3, 3), (5, 2), (8, 8)]
# What is copied where does not depend on the form: every form where most are read from disk and where most wait.
SPREAD = [(form, *place) for form in FORMS for place in PLACES if form == "fp8" or place in PLACES[:2]]


@pytest.mark.parametrize(("folder", "slots", "waiting"), SPREAD, indirect=["folder"])
def test_the_same_bits(folder: Path, slots: int, waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    each = slot_bytes(folder)
    model = loaded(folder, {"gpu": slots * each, "cpu": waiting * each}, monkeypatch)
    whole = Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    store = expert_store(model)
    assert store is not None
    assert store.below is not None
    assert store.pool.memory.nbytes == slots * each
    assert store.below.pool.memory.nbytes == min(waiting, 8 - slots + loading.TRANSIT) * each
    for options in ({}, {"num_beams": 2}, {"prefill_chunk_size": 16}):
        assert torch.equal(model.generate(prompt(), **GREEDY, **options), whole.generate(prompt(), **GREEDY, **options))
    ids = prompt(300)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole(ids).logits)
    assert store.below.up == store.pool.misses * each


def test_loaded_in_inference_mode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = slot_bytes(folder)
    with torch.inference_mode():
        model = loaded(folder, {"gpu": 2 * each, "cpu": 2 * each}, monkeypatch)
        assert model(prompt()).logits.isfinite().all()


def test_the_automatic_choice(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As with `device_map="auto"` where accelerate would leave layers in main memory."""
    model, link = torch.nn.Linear(2, 2), FakeLink()
    assert loading._fits(model, {"a": 0}, link)
    assert not loading._fits(model, {"a": 0, "b": "cpu"}, link)
    assert not loading._fits(model, {"a": "cuda:0", "b": "disk"}, link)
    assert loading._fits(model, {"a": "mps", "b": "disk"}, None)
    monkeypatch.setattr(loading, "_fits", lambda *_: False)
    monkeypatch.setattr(loading, "affordable", lambda free, others: min(free, 300_000))
    store = expert_store(loaded(folder, None, monkeypatch, FakeLink(100_000)))
    assert store is not None
    assert store.below is not None
    assert store.pool.memory.nbytes <= max(100_000, 2 * store.pool.memory.shape[1])
    assert "in main memory" in store.describe()


@pytest.mark.parametrize(
    ("memory", "words"),
    [({"gpu": 1000, "cpu": "1GB"}, "'gpu'"), ({"gpu": "1GB", "cpu": 1000}, "'cpu'")],
)
def test_memory_that_is_too_small(folder: Path, memory: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"give at least .*{words}"):
        loaded(folder, memory, monkeypatch)


class _Numbered:
    """A source that writes an expert's number into its slot."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def load(self, expert: tuple[int, int], slot: torch.Tensor, after: Any, old: Any) -> None:
        self.asked.append(expert)
        slot.fill_(expert[1])


def tiers(slots: int, waiting: int, experts: int = 16) -> tuple[Pool, MainMemory, FakeLink, _Numbered, Usage]:
    usage, disk, link = Usage(1, experts), _Numbered(), FakeLink()
    below = MainMemory(Pool(waiting, 8, disk, usage, link.device), link)
    below.pool.above = Pool(slots, 8, below, usage, link.device, mark=link.mark)
    return below.pool.above, below, link, disk, usage


def test_a_slot_is_overwritten_after_what_was_computed_with_it() -> None:
    pool, _, link, _, _ = tiers(1, 2)
    for expert in range(6):
        with pool.held([(0, expert)]) as held:
            assert int(held.slot((0, expert))[0]) == expert
    ups = [after for after in link.afters if after is not None]
    assert link.marks == 6
    assert ups == [1, 2, 3, 4, 5]  # the first slot was never computed with
    assert all(a < b for a, b in pairwise(ups))


@pytest.mark.parametrize(("slots", "together"), [(8, 2), (12, 3), (5, 1)])
def test_both_memories_add_up(slots: int, together: int) -> None:
    """What leaves the accelerator goes to main memory, so that 32 experts fit where neither memory holds them all."""
    pool, below, _, disk, usage = tiers(slots, 32 - slots + together, 32)
    random = np.random.default_rng(slots)
    for step in range(300):
        if step == 200:
            before, misses = len(disk.asked), pool.misses
        chosen = [int(n) for n in random.choice(32, size=together, replace=False)]
        usage.used(0, np.bincount(chosen, minlength=32).tolist(), 1)
        with pool.held([(0, n) for n in chosen]) as held:
            assert all(int(held.slot((0, n))[0]) == n for n in chosen)
    assert pool.misses > misses + 20
    assert len(disk.asked) == before
    assert below.down > 0


def test_random_use_by_both_memories() -> None:
    """Every expert is what it should be, and the used ones end up above, the next ones below."""
    pool, below, _, disk, usage = tiers(4, 6)
    random = np.random.default_rng(0)
    odds = 1 / np.arange(1, 17) ** 2
    for _ in range(400):
        chosen = [int(n) for n in random.choice(16, size=3, replace=False, p=odds / odds.sum())]
        usage.used(0, np.bincount(chosen, minlength=16).tolist(), 1)
        with pool.held([(0, n) for n in chosen]) as held:
            assert all(int(held.slot((0, n))[0]) == n for n in chosen)
    assert (0, 0) in pool
    assert (0, 1) in pool
    kept = [n for n in range(16) if (0, n) in pool or (0, n) in below.pool]
    assert len(kept) >= 8
    assert not pool._holders.any()
    assert not below.pool._holders.any()
    assert len(disk.asked) < pool.misses


def test_a_disk_that_fails_is_reported_above() -> None:
    pool, _, _, disk, _ = tiers(2, 2)

    def failing(expert: tuple[int, int], slot: torch.Tensor, after: Any, old: Any) -> None:
        raise OSError("Input/output error")

    real, disk.load = disk.load, failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output error"), pool.held([(0, 1)]) as held:
        held.slot((0, 1))
    disk.load = real  # type: ignore[method-assign]
    with pool.held([(0, 1)]) as held:
        assert int(held.slot((0, 1))[0]) == 1
    assert (0, 1) in pool


def test_no_link_to_what_shares_main_memory() -> None:
    assert link_to(torch.device("cpu")) is None
    assert link_to(torch.device("mps")) is None
