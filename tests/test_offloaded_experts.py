"""Experts that are read from disk as needed: the same bits as with all of them in memory, within the memory allowed."""

import copy
import pickle
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from offloaded_models import GREEDY, offloaded, padded, slots
from oracle import Case, image_inputs

from modeling_small4 import Small4ForCausalLM, Small4Model
from modeling_small4.experts_files import LayerFiles
from modeling_small4.experts_offloaded import Small4OffloadedExperts, expert_store

FORMS = ("fp8", "nvfp4", "bfloat16", "float32")


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    plain = request.param in ("bfloat16", "float32")
    folders = stored_folder.write(tmp_path_factory.mktemp("stored"), "fp8" if plain else request.param)
    return (folders.expanded if plain else folders.stored), getattr(torch, request.param if plain else "bfloat16")


@pytest.fixture(scope="module")
def whole(folder: tuple[Path, Any]) -> Any:
    return Small4ForCausalLM.from_pretrained(folder[0], dtype=folder[1])


@pytest.fixture(scope="module", params=[2, 5])
def moving(folder: tuple[Path, Any], request: pytest.FixtureRequest) -> Any:
    """Of 8 experts in two layers, `param` fit."""
    made = offloaded(folder[0], {"cpu": slots(folder[0], request.param)}, dtype=folder[1])
    assert made.store.pool.count == request.param
    return made.model


def seen() -> dict[str, torch.Tensor]:
    return image_inputs(Case(seed=3), [(56, 84), (28, 56)])


OPTIONS: dict[str, dict[str, Any]] = {
    "absorbed": {},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 16},
    "static": {"cache_implementation": "static"},
    "8-bit cache": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
    "beams": {"num_beams": 2},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


CASES = [(padded, name) for name in OPTIONS] + [(seen, name) for name in ("absorbed", "chunks", "beams")]
# How tokens are chosen does not depend on the form: in every case a stored form with little room and a plain one with
# more; the others, and these with the other room, in one of text and one of images.
FULL, FEW = (("fp8", 2), ("bfloat16", 5)), [(padded, "absorbed"), (seen, "chunks")]


Answer = tuple[torch.Tensor, torch.Tensor]


def answered(model: Any, inputs: Callable[[], dict[str, torch.Tensor]], name: str) -> Answer:
    """Tokens and their logits."""
    given, options = inputs(), OPTIONS[name]
    if "prompt_lookup_num_tokens" in options:
        given = {n: value[-1:] if n in ("input_ids", "attention_mask") else value for n, value in given.items()}
    torch.manual_seed(0)
    found = model.generate(**given, **(GREEDY | options), return_dict_in_generate=True, output_logits=True)
    return found.sequences, torch.stack(found.logits)


@pytest.fixture(scope="module")
def expected(whole: Any) -> Callable[..., Answer]:
    """What the whole model answers, found once for each case."""
    return cache(partial(answered, whole))


def test_the_same_tokens_and_logits(moving: Any, expected: Callable[..., Answer], request: Any) -> None:
    of = request.node.callspec.params
    for inputs, name in CASES if (of["folder"], of["moving"]) in FULL else FEW:
        ours, theirs = answered(moving, inputs, name), expected(inputs, name)
        assert torch.equal(ours[0], theirs[0]), (inputs, name)
        assert torch.equal(ours[1], theirs[1]), (inputs, name)


def test_the_same_bits_of_long_prompts(moving: Any, whole: Any, request: pytest.FixtureRequest) -> None:
    """By one thread, and with the other room by two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if request.node.callspec.params["moving"] == 2 else 2)
    ids = torch.randint(1000, 1100, (1, 700), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        ours, theirs = (model(ids).logits for model in (moving, whole))
    torch.set_num_threads(before)
    assert torch.equal(ours, theirs)


def test_two_threads(moving: Any, whole: Any) -> None:
    """Each with a prompt of its own, in a pool that has not room for both."""
    prompts = [torch.randint(1000, 1100, (1, 9 + n), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    expected = [whole.generate(ids, **GREEDY) for ids in prompts]
    found: dict[int, Any] = {}

    def answer(number: int) -> None:
        found[number] = moving.generate(prompts[number], **GREEDY)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(torch.equal(found[number], expected[number]) for number in range(4))


def test_nothing_is_held_whole(folder: tuple[Path, Any]) -> None:
    made = offloaded(folder[0], slots(folder[0], 3))
    assert not any(".experts." in name for name in made.model.state_dict())
    assert made.store.pool.memory.nbytes == slots(folder[0], 3)
    assert "slots=3" in repr(made.model)


def test_a_prompt_reads_each_expert_of_a_layer_once(folder: tuple[Path, Any]) -> None:
    for count in (2, 3, 8):
        made = offloaded(folder[0], slots(folder[0], count))
        made.model.generate(padded()["input_ids"], **(GREEDY | {"max_new_tokens": 1}))
        experts = sum(int((row > 0).sum()) for row in made.store.usage.scores)
        assert made.store.pool.misses == experts > 5
        each = sum(piece.nbytes for piece in made.store.layers[0].pieces.values())
        assert made.store.disk.bytes_read == experts * each


def test_all_fit_and_are_read_once(folder: tuple[Path, Any]) -> None:
    made = offloaded(folder[0], "1GB")
    for _ in range(3):
        made.model.generate(**padded(), **GREEDY)
    assert made.store.pool.misses <= 8 < made.store.pool.hits


def test_the_model_without_a_head(folder: tuple[Path, Any], whole: Any) -> None:
    made: Any = Small4Model.from_pretrained(folder[0], dtype=folder[1], expert_memory="1GB")
    with torch.no_grad():
        assert torch.equal(made(**padded()).last_hidden_state, whole.model(**padded()).last_hidden_state)


def test_casts_and_copies(folder: tuple[Path, Any]) -> None:
    made = offloaded(folder[0], "1GB").model
    twin = copy.deepcopy(made)
    assert expert_store(twin) is expert_store(made)
    reference = Small4ForCausalLM.from_pretrained(folder[0], dtype=torch.bfloat16).float()
    with torch.no_grad():
        assert torch.equal(twin.float()(**padded()).logits, reference(**padded()).logits)
        assert made.to("meta")(padded()["input_ids"].to("meta")).logits.is_meta
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(twin)


def test_no_tokens(moving: Any) -> None:
    mlp = next(module for name, module in moving.named_modules() if name.endswith("layers.0.mlp"))
    none = torch.empty(1, 0, moving.config.text_config.hidden_size, dtype=moving.dtype)
    assert mlp(none).shape == none.shape


def test_a_model_that_is_cast(folder: tuple[Path, Any], whole: Any) -> None:
    made = offloaded(folder[0], slots(folder[0], 2), dtype=folder[1])
    ids = padded()["input_ids"]
    other = copy.deepcopy(whole).to(torch.float32)
    with torch.no_grad():
        assert torch.equal(made.model.to(torch.float32)(ids).logits, other(ids).logits)


def test_experts_in_memory_are_multiplied_while_others_are_read(
    folder: tuple[Path, Any], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read comes once the expert that is there was multiplied, or not at all."""
    made = offloaded(folder[0], slots(folder[0], 8), dtype=folder[1])
    ids = torch.randint(1000, 1100, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        made.model(ids[:, :1])
    multiplied = threading.Event()
    real_read, real_multiplied, both = LayerFiles.read, Small4OffloadedExperts.multiplied, [0]

    def read(self: LayerFiles, expert: int, slot: torch.Tensor) -> int:
        if not multiplied.wait(60):
            raise OSError("nothing was multiplied meanwhile")
        return real_read(self, expert, slot)

    def multiplying(self: Small4OffloadedExperts, held: Any, *rest: Any) -> Any:
        found = real_multiplied(self, held, *rest)
        both[0] += not multiplied.is_set()
        multiplied.set()
        return found

    monkeypatch.setattr(LayerFiles, "read", read)
    monkeypatch.setattr(Small4OffloadedExperts, "multiplied", multiplying)
    with torch.no_grad():
        assert torch.equal(made.model(ids).logits, whole(ids).logits)
    assert both == [1]
