"""The formula for the seconds of a token, with given rates; and that its rates are measured before the first token,
with a clock that the test turns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from test_offloaded_accelerator import FakeLink, loaded

from modeling_small4 import Small4ForCausalLM, experts_speed
from modeling_small4.experts_files import LayerFiles
from modeling_small4.experts_offloaded import Held, Small4OffloadedExperts, expert_store
from modeling_small4.experts_speed import WeightRates, rate_of, seconds_per_token
from modeling_small4.loading_offloaded import read_by_each


def test_all_experts_in_place_wait_for_nothing() -> None:
    found = seconds_per_token(2e9, 1e9, (1.0, 1.0), WeightRates(10e9, 5e9, 1e9))
    assert found == {"product": pytest.approx(0.3), "cpu": 0, "link": 0, "disk": 0}


def test_half_of_them_in_main_memory_and_a_tenth_on_disk() -> None:
    """What is on disk goes through main memory and over the link; wherever it was, it is computed with."""
    found = seconds_per_token(2e9, 1e9, (0.4, 0.9), WeightRates(10e9, 5e9, 1e9))
    assert found == {"product": pytest.approx(0.3), "cpu": 0, "link": pytest.approx(0.12), "disk": pytest.approx(0.1)}


def test_without_an_accelerator() -> None:
    found = seconds_per_token(2e9, 1e9, (0.75, 0.75), WeightRates(10e9, disk=1e9))
    assert found == {"product": pytest.approx(0.3), "cpu": 0, "link": 0, "disk": pytest.approx(0.25)}


def test_the_median_of_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that warms up is not counted, nor is a single slow one decisive."""
    times: Iterator[float] = iter([0, 2, 10, 12, 20, 29, 30, 32, 40, 42, 50, 52])
    monkeypatch.setattr(experts_speed.time, "perf_counter", lambda: float(next(times)))
    called: list[int] = []
    assert rate_of(called.append, 2, 100) == pytest.approx(100 / 2)
    assert called == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("form", ["fp8", "nvfp4", "bfloat16"])
@pytest.mark.parametrize("memory", [2, 5, "gpu"])
def test_what_is_measured_leaves_the_pools_empty(
    form: str, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts are read from the files, all of a token's at once, multiplied as tokens will be, and not counted."""
    folders = stored_folder.write(tmp_path, "fp8" if form == "bfloat16" else form)
    folder = folders.expanded if form == "bfloat16" else folders.stored
    each = _slot_bytes(folder)
    read: list[int] = []
    multiplied: list[list[int]] = []
    real_read, real_multiplied = LayerFiles.read, Small4OffloadedExperts.multiplied

    def counted_read(self: LayerFiles, expert: int, slot: torch.Tensor) -> int:
        read.append(expert)
        return real_read(self, expert, slot)

    def counted_product(self: Small4OffloadedExperts, held: Held, *rest: Any) -> list[torch.Tensor]:
        multiplied.append(held.experts)
        return real_multiplied(self, held, *rest)

    monkeypatch.setattr(LayerFiles, "read", counted_read)
    monkeypatch.setattr(Small4OffloadedExperts, "multiplied", counted_product)
    link = FakeLink()
    if memory == "gpu":
        model = loaded(folder, {"gpu": 3 * each, "cpu": 3 * each}, monkeypatch, link)
    else:
        model = Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, expert_memory=memory * each)
    store = expert_store(model)
    assert store is not None
    assert store.rates is not None
    assert sorted(read) == list(range(4 if memory == 5 else 2))
    assert {len(experts) for experts in multiplied} == {2}
    assert {expert for experts in multiplied for expert in experts} == set(read)
    assert min(store.rates.product, store.rates.disk) > 0
    assert (store.rates.link < float("inf")) == (memory == "gpu") == bool(link.copied)
    assert (store.pool.hits, store.pool.misses, store.disk.bytes_read, store.usage.tokens) == (0, 0, 0, 0)
    assert not store.pool.present.any()
    assert store.below is None or store.below.up == 0


def _slot_bytes(folder: Path) -> int:
    store = expert_store(Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, expert_memory="1GB"))
    assert store is not None
    return store.pool.memory.shape[1]


def test_weights_that_each_token_is_multiplied_with(tmp_path: Path) -> None:
    """Neither embedding nor vision tower; the head even where it is the embedding."""
    model = Small4ForCausalLM.from_pretrained(stored_folder.write(tmp_path, "fp8").stored, expert_memory="1GB")
    found = read_by_each(model)
    tensors = {name: p for name, p in model.named_parameters() if "vision" not in name and "projector" not in name}
    del tensors["model.language_model.embed_tokens.weight"]
    assert found == sum(p.numel() * p.element_size() for p in tensors.values())
    model.config.tie_word_embeddings = True
    assert read_by_each(model) == found + model.get_input_embeddings().weight.nbytes
