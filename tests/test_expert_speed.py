"""The formula for the seconds of a token, with given rates; and that its rates are measured before the first token,
with a clock that the test turns.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import stored_folder
import torch
from test_offloaded_accelerator import FakeLink, loaded

import modeling_small4.experts_measuring as measuring
import modeling_small4.loading as loading
from modeling_small4 import (
    Small4ForCausalLM,
    Small4ForSequenceClassification,
    Small4ForTokenClassification,
    Small4Model,
    experts_speed,
    loading_offloaded,
)
from modeling_small4.attention import Small4Attention
from modeling_small4.experts_files import LayerFiles
from modeling_small4.experts_offloaded import Held, Small4OffloadedExperts, expert_store
from modeling_small4.experts_speed import WeightRates, rate_of, rounded, seconds_per_token, typical_seconds


def test_all_experts_in_place_wait_for_nothing() -> None:
    found = seconds_per_token(0.2, 1e9, (1.0, 1.0), WeightRates(10e9, 5e9, 1e9))
    assert found == {"product": pytest.approx(0.3), "cpu": 0, "link": 0, "disk": 0}


def test_half_of_them_in_main_memory_and_a_tenth_on_disk() -> None:
    """What is on disk goes through main memory and over the link; wherever it was, it is computed with."""
    found = seconds_per_token(0.2, 1e9, (0.4, 0.9), WeightRates(10e9, 5e9, 1e9))
    assert found == {"product": pytest.approx(0.3), "cpu": 0, "link": pytest.approx(0.12), "disk": pytest.approx(0.1)}


def test_without_an_accelerator() -> None:
    found = seconds_per_token(0.2, 1e9, (0.75, 0.75), WeightRates(10e9, disk=1e9))
    assert found == {"product": pytest.approx(0.3), "cpu": 0, "link": 0, "disk": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("value", "words"), [(1234.0, "1,200"), (412.0, "410"), (98.7, "99"), (7.31, "7.3"), (0.0171, "0.017")]
)
def test_numbers_are_written_without_exponents(value: float, words: str) -> None:
    assert rounded(value) == words


def test_the_median_of_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that warms up is not counted, nor is a single slow one decisive."""
    times: Iterator[float] = iter([0, 2, 10, 12, 20, 29, 30, 32, 40, 42, 50, 52])
    monkeypatch.setattr(experts_speed.time, "perf_counter", lambda: float(next(times)))
    called: list[int] = []
    assert rate_of(called.append, 2, 100) == pytest.approx(100 / 2)
    assert called == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(("patience", "calls"), [(0, 1), (8, 2), (100, 3), (10_000, experts_speed.MOST)])
def test_calls_are_timed_as_long_as_patience_lasts(
    patience: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take 5, 90, 5, 90, ... seconds, the one that warms up none."""
    each = iter([5, 90] * 10)
    called: list[None] = []

    def timed(run: Callable[[], None]) -> float:
        run()
        return next(each)

    monkeypatch.setattr(experts_speed, "seconds_of", timed)
    assert typical_seconds(lambda: called.append(None), patience) == median(([5, 90] * 10)[:calls])
    assert len(called) == calls + 1


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
    assert min(store.rates.product, store.rates.disk) > 0
    assert (store.rates.link < float("inf")) == (memory == "gpu") == bool(link.copied)
    assert (store.pool.hits, store.pool.misses, store.disk.bytes_read, store.usage.tokens) == (0, 0, 0, 0)
    assert not store.pool.present.any()
    assert not store.usage.scores.any()
    assert store.below is None or store.below.up == 0
    assert all(module.store is store for module in model.modules() if isinstance(module, Small4OffloadedExperts))


def _slot_bytes(folder: Path) -> int:
    store = expert_store(Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, expert_memory="1GB"))
    assert store is not None
    return store.pool.memory.shape[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> stored_folder.Folders:
    return stored_folder.write(tmp_path_factory.mktemp("plain"), "fp8")


def test_a_token_is_timed_with_all_its_experts_in_place(
    plain: stored_folder.Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second that it takes, two experts in each of two layers take theirs at the measured rate."""
    multiplied: list[tuple[int, int]] = []
    timed: list[int] = []
    real = Small4OffloadedExperts.multiplied

    def counted(self: Small4OffloadedExperts, held: Held, *rest: Any) -> list[torch.Tensor]:
        multiplied.extend((self.layer, expert) for expert in held.experts)
        return real(self, held, *rest)

    def one_second(run: Callable[[], float], patience: float) -> float:
        multiplied.clear()
        run()
        timed.extend(sorted(layer for layer, _ in multiplied))
        return 1.0

    monkeypatch.setattr(Small4OffloadedExperts, "multiplied", counted)
    monkeypatch.setattr(measuring, "typical_seconds", one_second)
    monkeypatch.setattr(measuring, "rate_of", lambda run, groups, nbytes: 1e6)
    said: list[str] = []
    monkeypatch.setattr(loading_offloaded.logger, "warning", said.append)
    store = expert_store(Small4ForCausalLM.from_pretrained(plain.stored, expert_memory="1GB"))
    assert store is not None
    assert timed == [0, 0, 1, 1]
    assert store.others == pytest.approx(1 - 4 * store.pool.memory.shape[1] / 1e6)
    assert len(said) == 1
    assert "about 1 tokens/s (all but experts" in said[0]
    monkeypatch.setattr(measuring, "rate_of", lambda run, groups, nbytes: 1.0)  # noise beyond all measure
    store = expert_store(Small4ForCausalLM.from_pretrained(plain.stored, expert_memory="1GB"))
    assert store is not None
    assert store.others == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [True, False])
def test_measuring_leaves_no_trace(
    plain: stored_folder.Folders, stored: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain.stored if stored else plain.expanded
    ids = torch.randint(1000, 1100, (1, 20), generator=torch.Generator().manual_seed(1))
    answers, states = [], []
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr(loading, "begin", lambda model, fastest: None)
        torch.manual_seed(3)
        model = Small4ForCausalLM.from_pretrained(folder, dtype=dtype, expert_memory="1GB")
        states.append(torch.get_rng_state())
        cache = model(ids, use_cache=True).cache  # gradients are on
        answers.append(model(ids[:, :1], past_key_values=cache).logits)
        store = expert_store(model)
        assert store is not None
        assert store.usage.tokens == 21
        assert (store.others is not None) == measured
    assert torch.equal(*states)
    assert torch.equal(*answers)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "kind", [Small4ForCausalLM, Small4Model, Small4ForSequenceClassification, Small4ForTokenClassification]
)
def test_each_kind_of_model_is_measured(plain: stored_folder.Folders, kind: Any, tied: bool) -> None:
    config = kind.config_class.from_pretrained(plain.expanded)
    config.tie_word_embeddings, config.num_labels = tied, 3
    model, info = kind.from_pretrained(plain.expanded, config=config, expert_memory="1GB", output_loading_info=True)
    store = expert_store(model)
    assert store is not None
    assert store.others is not None
    assert not info["mismatched_keys"]


def test_a_token_that_cannot_be_computed(plain: stored_folder.Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is there, and its experts are those of the files."""

    def failing(self: Small4Attention, *given: Any, **options: Any) -> Any:
        raise RuntimeError("no such\nkernel")

    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(loading_offloaded.logger, "warning", said.append)
        patched.setattr(Small4Attention, "forward", failing)
        model = Small4ForCausalLM.from_pretrained(plain.stored, expert_memory="1GB")
    store = expert_store(model)
    assert store is not None
    assert store.rates is not None
    assert store.others is None
    assert "no token could be timed (no such kernel)" in said[0]
    ids = torch.randint(1000, 1100, (1, 20))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, Small4ForCausalLM.from_pretrained(plain.stored)(ids).logits)
    assert store.pool.misses > 0


def test_no_attention_is_compiled_while_loading(plain: stored_folder.Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(loading_offloaded.logger, "warning", said.append)
    monkeypatch.setattr(Small4Attention, "forward", lambda *_, **__: pytest.fail("a token was computed"))
    options = {"expert_memory": "1GB", "attn_implementation": "flex_attention"}
    Small4ForCausalLM.from_pretrained(plain.stored, **options)
    assert "no token could be timed (flex_attention is compiled" in said[0]
