"""Experts that the CPU computes in main memory because that is quicker than copying them: the same bits as with all in
one place where both devices are CPUs, and activations copied in place of experts.
"""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from oracle import Case, image_inputs
from test_offloaded_accelerator import GREEDY, FakeLink, prompt, slot_bytes

import modeling_small4.loading_offloaded as loading
from modeling_small4 import Small4ForCausalLM
from modeling_small4.experts_memory import parse_request
from modeling_small4.experts_offloaded import expert_store
from modeling_small4.experts_pool import Pool
from modeling_small4.experts_speed import WeightRates, seconds_per_token, stays

FORMS = ("fp8", "nvfp4", "int4 32", "bfloat16", "float32")
CPU_IS_FASTER = WeightRates(1e12, link=1e9, disk=1e9, host=1e12)


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.dtype]:
    plain = request.param in ("bfloat16", "float32")
    folders = stored_folder.write(tmp_path_factory.mktemp("stored"), "fp8" if plain else request.param)
    return (folders.expanded if plain else folders.stored), getattr(torch, request.param if plain else "bfloat16")


def loaded(folder: tuple[Path, torch.dtype], slots: int, waiting: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model with so many experts on a simulated accelerator and in main memory, and its store."""
    link, each = FakeLink(), slot_bytes(folder[0])
    monkeypatch.setattr(loading, "accelerator", lambda device_map, asked: link)
    memory = {"gpu": slots * each, "cpu": waiting * each, "compute": "fastest"}
    model = Small4ForCausalLM.from_pretrained(folder[0], dtype=folder[1], expert_memory=memory)
    store = expert_store(model)
    assert store is not None
    assert store.rates is not None
    assert store.rates.host > 0
    store.rates = CPU_IS_FASTER
    return model, store, link


PLACES = [(2, 1), (2, 6), (3, 3), (5, 8)]
# A stored form and a plain one in all places; the others where most are read from disk, or most wait in main memory.
SPREAD = [(f, *p) for f in ("fp8", "bfloat16") for p in PLACES]
SPREAD += [("nvfp4", *PLACES[1]), ("int4 32", *PLACES[0]), ("float32", *PLACES[1])]


@pytest.mark.parametrize(("folder", "slots", "waiting"), SPREAD, indirect=["folder"])
def test_the_same_bits(
    folder: tuple[Path, torch.dtype], slots: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store, _ = loaded(folder, slots, waiting, monkeypatch)
    whole = Small4ForCausalLM.from_pretrained(folder[0], dtype=folder[1])
    images = image_inputs(Case(seed=3), [(56, 84), (28, 56)])
    text = {"input_ids": prompt()}
    for given in (text, text | {"num_beams": 2}, images | {"prefill_chunk_size": 16}, images | {"do_sample": True}):
        found = []
        for each in (model, whole):
            torch.manual_seed(1)
            answer = each.generate(**GREEDY | given, return_dict_in_generate=True, output_logits=True)
            found.append((answer.sequences, torch.stack(answer.logits)))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
    if waiting >= 6:
        assert store.below.activations > 0


# How many are computed by the CPU does not depend on the form.
@pytest.mark.parametrize(
    ("folder", "tokens"),
    [(form, tokens) for form in FORMS for tokens in ((1, 2, 5, 16, 17) if form == "fp8" else (2, 17))],
    indirect=["folder"],
)
def test_each_count_of_tokens(folder: tuple[Path, torch.dtype], tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, store, _ = loaded(folder, 2, 8, monkeypatch)
    whole = Small4ForCausalLM.from_pretrained(folder[0], dtype=folder[1])
    with torch.no_grad():
        model(prompt())
        monkeypatch.setattr(Pool, "prefers", lambda self, expert: False)
        ids = prompt(tokens)[:1]
        assert torch.equal(model(ids).logits, whole(ids).logits)
    assert (store.below.activations > 0) == (tokens <= 16)


def test_activations_are_copied_in_place_of_experts(
    folder: tuple[Path, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While decoding with all experts in one of both memories and none used more than those on the accelerator."""
    model, store, link = loaded(folder, 2, 8, monkeypatch)
    with torch.no_grad():
        output = model(prompt()[:1], use_cache=True)
        before, misses = link.copied, store.pool.misses
        monkeypatch.setattr(Pool, "prefers", lambda self, expert: False)
        uses = 0
        for token in range(6):
            at = store.pool.hits
            output = model(torch.tensor([[1000 + token]]), past_key_values=output.past_key_values, use_cache=True)
            uses += 4 - (store.pool.hits - at)  # two of each of two layers
    assert uses > 0
    assert (link.copied, store.pool.misses) == (before, misses)
    hidden, width = 256, folder[1].itemsize
    inputs = store.below.activations - uses * hidden * width  # all of a token's, once in each layer that has one
    assert 0 < inputs <= 12 * 2 * hidden * width
    assert inputs % (2 * hidden * width) == 0


def test_off_unless_asked_for(folder: tuple[Path, torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    each = slot_bytes(folder[0])
    monkeypatch.setattr(loading, "accelerator", lambda device_map, asked: FakeLink())
    model = Small4ForCausalLM.from_pretrained(
        folder[0], dtype=folder[1], expert_memory={"gpu": 2 * each, "cpu": 8 * each}
    )
    store = expert_store(model)
    assert store is not None
    assert store.below is not None
    assert store.rates is not None
    assert store.rates.host == 0
    model.generate(prompt(), **GREEDY)
    assert store.below.activations == 0


@pytest.mark.parametrize("folder", ["fp8", "bfloat16"], indirect=True)  # which moves does not depend on its form
def test_an_expert_that_is_used_more_moves(folder: tuple[Path, torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty slots are filled; then the same token again and again brings its experts to the accelerator."""
    model, store, _ = loaded(folder, 4, 8, monkeypatch)
    with torch.no_grad():
        model(prompt(200))
        for _ in range(150):
            model(torch.tensor([[1007]]))
        at, misses = store.below.activations, store.pool.misses
        model(torch.tensor([[1007]]))
    assert (store.below.activations, store.pool.misses) == (at, misses)


@pytest.mark.parametrize("folder", ["nvfp4", "bfloat16"], indirect=True)
def test_two_threads(folder: tuple[Path, torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    model, store, _ = loaded(folder, 2, 8, monkeypatch)
    whole = Small4ForCausalLM.from_pretrained(folder[0], dtype=folder[1])
    prompts = [torch.randint(1000, 1100, (n, 9 + n), generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3)]
    expected = [whole.generate(ids, **GREEDY) for ids in prompts]
    found: dict[int, torch.Tensor] = {}

    def answer(number: int) -> None:
        found[number] = model.generate(prompts[number], **GREEDY)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(torch.equal(found[number], expected[number]) for number in range(3))
    assert store.below.activations > 0


@pytest.mark.parametrize("folder", ["int4 32", "float32"], indirect=True)
def test_a_file_that_is_gone_for_a_while(
    folder: tuple[Path, torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer that needs it fails and holds no slot; once it is back, answers are right again."""
    copied = Path(shutil.copytree(folder[0], tmp_path / "copied"))
    model, store, _ = loaded((copied, folder[1]), 2, 2, monkeypatch)
    expected = model.generate(prompt(), **GREEDY)
    (copied / "model.safetensors").rename(tmp_path / "away")
    for _ in range(3):
        with pytest.raises(OSError, match="can no longer be read"):
            model.generate(prompt(60), **GREEDY)
    assert not store.pool._holders.any()
    assert not store.below.pool._holders.any()
    (tmp_path / "away").rename(copied / "model.safetensors")
    assert torch.equal(model.generate(prompt(), **GREEDY), expected)


def test_the_rule() -> None:
    """An expert of 1 MB: by the CPU 1 / 4 ms and its activations; by the link 1 / 2 ms."""
    rates = WeightRates(1e12, link=2e9, host=4e9)
    assert stays(1e6, 1e4, rates)
    assert not stays(1e6, 6e5, rates)  # more to copy than is spared
    assert not stays(1e6, 0, WeightRates(1e12, link=5e9, host=4e9))
    assert not stays(1e6, 0, WeightRates(1e12, link=2e9))


def test_the_speed_by_the_rule() -> None:
    """Half on the accelerator, four tenths in main memory, a tenth on disk."""
    slow, fast = WeightRates(100e9, 2e9, 1e9, 1e9), WeightRates(100e9, 2e9, 1e9, 8e9)
    assert seconds_per_token(0.01, 2e9, (0.5, 0.9), slow)["cpu"] == 0
    assert seconds_per_token(0.01, 2e9, (0.5, 0.9), fast) == {
        "product": pytest.approx(0.01 + 0.6 * 2e9 / 100e9),
        "cpu": pytest.approx(0.4 * 2e9 / 8e9),
        "link": pytest.approx(0.1 * 2e9 / 2e9),
        "disk": pytest.approx(0.1 * 2e9 / 1e9),
    }


@pytest.mark.parametrize(
    ("asked", "parsed"),
    [
        ("gpu=18GiB,cpu=5,compute=fastest", ({"gpu": 18 * 2**30, "cpu": 5}, True)),
        ({"gpu": 7, "compute": "fastest"}, ({"gpu": 7}, True)),
        ({"cpu": 7, "compute": "gpu"}, ({"cpu": 7}, False)),
        ("7", ({"cpu": 7}, False)),
    ],
)
def test_how_it_is_asked_for(asked: Any, parsed: Any) -> None:
    assert parse_request(asked) == parsed


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpu": 7, "compute": "cpu"}, "'gpu', which is the default, or 'fastest'"),
        ({"gpu": 7, "compute": ["fastest"]}, "'gpu', which is the default, or 'fastest'"),
        ({"cpu": 7, "compute": "fastest"}, "no 'gpu'"),
        ({"compute": "gpu"}, "names nothing"),
        ("compute=fastest", "names nothing"),
    ],
)
def test_what_is_refused(asked: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_request(asked)
