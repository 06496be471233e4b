"""The profile of experts beside a checkpoint: counted, written, read first, refused when it is another's."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_folder
import torch
from test_offloaded_accelerator import FakeLink, _Numbered, loaded

from modeling_small4 import Small4ForCausalLM, save_expert_profile
from modeling_small4.experts_offloaded import expert_store
from modeling_small4.experts_pool import Pool, Usage
from modeling_small4.experts_profile import FILE, RANKS, ExpertProfile, read_profile
from modeling_small4.experts_speed import WeightRates
from modeling_small4.loading_offloaded import estimate

SHAPE = (2, 4)  # layers, experts
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stored_folder.write(tmp_path, "nvfp4").stored


def prompt(seed: int = 0) -> torch.Tensor:
    return torch.randint(1000, 1100, (1, 30), generator=torch.Generator().manual_seed(seed))


def offloaded(folder: Path, slots: int | None = None) -> tuple[Any, Any]:
    """A model with `slots` experts in memory, all of them without a number, and its store."""
    model = Small4ForCausalLM.from_pretrained(folder, expert_memory="1GB")
    if slots is not None:
        nbytes = expert_store(model).pool.memory.shape[1]  # type: ignore[union-attr]
        model = Small4ForCausalLM.from_pretrained(folder, expert_memory=slots * nbytes)
    return model, expert_store(model)


def filled(model: Any) -> Any:
    """The store of a model, once what its profile names has been read."""
    for thread in threading.enumerate():
        if thread.name == "small4-fill":
            thread.join()
    return expert_store(model)


def test_counts_are_those_of_the_router(folder: Path) -> None:
    model, _ = offloaded(folder)
    chosen: list[np.ndarray] = []
    for layer in model.model.language_model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda _, __, output: chosen.append(np.bincount(output[2].flatten().numpy(), minlength=SHAPE[1]))
        )
    model.generate(prompt(), **GREEDY)
    save_expert_profile(model, folder)
    found = read_profile(folder, *SHAPE)
    assert found is not None
    assert np.array_equal(found.uses, np.stack([sum(chosen[0::2]), sum(chosen[1::2])]))
    assert found.tokens == 30 + 11  # the last token is not read


def test_the_hottest_are_read_first_and_answers_stay(folder: Path) -> None:
    model, _ = offloaded(folder, 3)
    expected = model.generate(prompt(), **GREEDY)
    save_expert_profile(model, folder)
    profile = read_profile(folder, *SHAPE)
    assert profile is not None
    again, store = offloaded(folder, 3)
    filled(again)
    here = {expert for expert in profile.ranked() if expert in store.pool}
    least = min(profile.uses[expert] for expert in here)
    assert len(here) == 3
    assert all(profile.uses[other] <= least for other in profile.ranked() if other not in here)
    assert torch.equal(again.generate(prompt(), **GREEDY), expected)


def test_an_accelerator_and_main_memory_hold_different_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = offloaded(folder)
    expected = model.generate(prompt(), **GREEDY)
    save_expert_profile(model, folder)
    nbytes = store.pool.memory.shape[1]
    tiered = loaded(folder, {"gpu": 3 * nbytes, "cpu": 3 * nbytes}, monkeypatch, FakeLink())
    moved = filled(tiered)
    ranked = read_profile(folder, *SHAPE).ranked()  # type: ignore[union-attr]
    above, below = ({each for each in ranked if each in pool} for pool in (moved.pool, moved.below.pool))
    assert len(above) == 3
    assert len(above | below) >= min(5, len(ranked))
    assert torch.equal(tiered.generate(prompt(), **GREEDY), expected)


def test_the_speed_is_foretold_by_it(folder: Path) -> None:
    _, store = offloaded(folder, 2)
    rates = WeightRates(10e9, disk=1e9)
    assert "assumed" in estimate(store, rates, 1e-4, 4).said
    assert store.hit_rates()[0] == pytest.approx((2 / 8) ** 0.5)
    uses = np.ones(SHAPE, dtype=np.int64)
    uses[0, :2] = 47
    ExpertProfile(50, uses).save(folder)
    _, store = offloaded(folder, 2)
    assert store.hit_rates()[0] == pytest.approx(94 / 100)
    found = estimate(store, rates, 1e-4, 4)
    assert "94% of the chosen experts" in found.said
    assert FILE in found.said
    each = store.pool.memory.shape[1]
    assert found.seconds == pytest.approx(1e-4 + 4 * each / 10e9 + 0.06 * 4 * each / 1e9)


def test_hit_rates_by_ranks() -> None:
    """Of 8 experts, uses of the one that was used most until then, of the second, and of the last."""
    ranks = np.zeros(RANKS, dtype=np.int64)
    ranks[0], ranks[RANKS // 8], ranks[RANKS - RANKS // 8] = 500, 300, 200
    profile = ExpertProfile(500, np.ones(SHAPE, dtype=np.int64), ranks)
    assert [profile.hit_rate(slots) for slots in (0, 1, 2, 7, 8, 9)] == [0, 0.5, 0.8, 0.8, 1, 1]
    few = ExpertProfile(500, np.ones(SHAPE, dtype=np.int64), ranks // 100)
    assert few.hit_rate(2) == 2 / 8


def test_ranks_are_those_of_a_pool() -> None:
    """A pool of each size, by the same uses: as many hits as ranks say, but for the slots that missing experts take."""
    random, experts, layers = np.random.default_rng(0), 64, 2
    odds = 1 / np.arange(1, experts + 1)
    usage = Usage(layers, experts)
    pools = {slots: Pool(slots, 8, _Numbered(), usage, torch.device("cpu")) for slots in (16, 40, 96)}
    for step in range(600):
        if step == 200:
            usage.ranks[:] = 0
            for pool in pools.values():
                pool.hits = pool.misses = 0
        for layer in range(layers):
            chosen = [int(n) for n in random.choice(experts, size=2, replace=False, p=odds / odds.sum())]
            usage.used(layer, np.bincount(chosen, minlength=experts).tolist(), 1)
            for pool in pools.values():
                with pool.held([(layer, n) for n in chosen]):
                    pass
    assert usage.ranks.sum() == 400 * layers * 2
    profile = ExpertProfile(1, usage.counts, usage.ranks)
    for slots, pool in pools.items():
        found = pool.hits / (pool.hits + pool.misses)
        assert profile.hit_rate(slots - 2) - 0.03 < found < profile.hit_rate(slots) + 0.03


def test_prompts_and_most_layers_are_not_ranked() -> None:
    usage = Usage(36, 4)
    for layer in range(36):
        usage.used(layer, [5, 5, 5, 5], 20)
    assert usage.ranks.sum() == 0
    for _ in range(4):
        for layer in range(36):
            usage.used(layer, [1, 0, 0, 1], 1)
    assert usage.ranks.sum() == 36 * 2


BROKEN = {
    "no json": "{",
    "a list": "[1]",
    "no tokens": json.dumps({"uses": [[1] * 4] * 2}),
    "none counted": json.dumps({"tokens": 3, "uses": [[0] * 4] * 2}),
    "negative": json.dumps({"tokens": 3, "uses": [[-1, 1, 1, 1]] * 2}),
    "fractions": json.dumps({"tokens": 3, "uses": [[0.5] * 4] * 2}),
    "ragged": json.dumps({"tokens": 3, "uses": [[1] * 4, [1]]}),
    "ranks of another kind": json.dumps({"tokens": 3, "uses": [[1] * 4] * 2, "ranks": [1, 2]}),
    "negative ranks": json.dumps({"tokens": 3, "uses": [[1] * 4] * 2, "ranks": [-1] * 256}),
    "huge": json.dumps({"tokens": 3, "uses": [[10**40] * 4] * 2}),
    "not UTF-8": "\udcff",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / FILE).write_text(BROKEN[name], encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=FILE):
        offloaded(folder)


def test_of_another_model(folder: Path) -> None:
    ExpertProfile(3, np.ones((3, 4), dtype=np.int64)).save(folder)
    with pytest.raises(ValueError, match=r"\[3, 4\].*another model"):
        offloaded(folder)


def test_what_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    model, _ = offloaded(folder)
    with pytest.raises(ValueError, match="No token"):
        save_expert_profile(model, folder)
    with pytest.raises(ValueError, match="expert_memory"):
        save_expert_profile(Small4ForCausalLM.from_pretrained(folder), folder)
    model.generate(prompt(), **GREEDY)
    with pytest.raises(FileNotFoundError, match="missing is no folder; make it first"):
        save_expert_profile(model, tmp_path / "missing")
    target = tmp_path / "mine.txt"
    target.write_text("mine")
    os.symlink(target, folder / FILE)
    with pytest.raises(ValueError, match="is a link"):
        save_expert_profile(model, folder)
    assert target.read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
