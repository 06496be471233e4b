"""Two threads call `generate` on one model, forward by forward in step: each gets what it gets alone."""

import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from typing import Any

import pytest
import torch
from generation_cases import ROWS, batch, chat, tiny_model
from transformers import CompileConfig, DynamicCache

from modeling_small4 import Small4ForCausalLM

LONG = chat(*[50, 51, 52, 53, 54] * 12)
SINGLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"reasoning_mode": "none"},
    "high": {"reasoning_mode": "high", "max_thinking_tokens": 4},
    "latency": {"preset": "latency", "reasoning_mode": "high"},
    "drafts": {"prompt_lookup_num_tokens": 3, "prefill_chunk_size": 9, "reasoning_mode": "none"},
    "beams": {"num_beams": 2, "max_thinking_tokens": 2},
}
BATCH: dict[str, dict[str, Any]] = {
    "throughput": {"preset": "throughput"},
    "sorted batches": {"preset": "throughput", "reasoning_mode": ["high", "none", "none", "high"]},
    "modes": {"reasoning_mode": ["none", "high", "high", "none"], "num_return_sequences": 2, "num_beams": 2},
}
CALLS = {name: (batch([LONG]), options) for name, options in SINGLE.items()}
CALLS |= {name: (batch(ROWS), options) for name, options in BATCH.items()}


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return tiny_model()


def call(model: Small4ForCausalLM, name: str) -> torch.Tensor:
    inputs, options = CALLS[name]
    return model.generate(**inputs, **options, max_new_tokens=16, do_sample=False)


def together(model: Small4ForCausalLM, tasks: list[Callable[[], Any]]) -> list[Any]:
    """Results of all tasks, each in a thread; before every forward a thread waits for another one, as long as there are
    two.
    """
    meeting, results = threading.Barrier(2), [None] * len(tasks)

    def meet(*args: Any) -> None:
        with suppress(threading.BrokenBarrierError):  # the other one is done
            meeting.wait()

    def run(place: int) -> None:
        try:
            results[place] = tasks[place]()
        finally:
            meeting.abort()

    hook = model.register_forward_pre_hook(meet)
    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    return results


@pytest.fixture(scope="module")
def alone(model: Small4ForCausalLM) -> dict[str, torch.Tensor]:
    """What each call gets alone."""
    return {name: call(model, name) for name in CALLS}


@pytest.mark.parametrize("pair", list(combinations(CALLS, 2)), ids=" and ".join)
def test_each_gets_what_it_gets_alone(
    model: Small4ForCausalLM, alone: dict[str, torch.Tensor], pair: tuple[str, str]
) -> None:
    found = together(model, [lambda name=name: call(model, name) for name in pair])
    for got, name in zip(found, pair, strict=True):
        assert torch.equal(got, alone[name])


@pytest.mark.slow
def test_compiled_steps_beside_plain_ones(model: Small4ForCausalLM) -> None:
    """What is compiled for one call is not run by the other. The two meet where scores are processed, which is not
    compiled.
    """
    meeting = threading.Barrier(2)

    def meet(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        with suppress(threading.BrokenBarrierError):
            meeting.wait()
        return scores

    def run(name: str, **options: Any) -> torch.Tensor:
        inputs, more = CALLS[name]
        try:
            return model.generate(**inputs, **more, **options, max_new_tokens=16, do_sample=False)
        finally:
            meeting.abort()

    compiled = CompileConfig(fullgraph=True, backend="eager")
    compiled._compile_all_devices = True
    fast = {"preset": "latency", "compile_config": compiled}
    for name in ("plain", "high"):
        alone, forwards = [run(name), run("plain", **fast)], model.forward
        meeting.reset()
        found: dict[str, torch.Tensor] = {}
        threads = [
            threading.Thread(
                target=lambda name=name, found=found: found.update(one=run(name, logits_processor=[meet]))
            ),
            threading.Thread(
                target=lambda found=found: found.update(other=run("plain", logits_processor=[meet], **fast))
            ),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(found["one"], alone[0])
        assert torch.equal(found["other"], alone[1])
        assert model.forward == forwards


def test_nothing_of_a_call_stays_on_the_model(model: Small4ForCausalLM) -> None:
    call(model, "plain")
    before = set(vars(model))
    for name in CALLS:
        call(model, name)
    assert set(vars(model)) == before


@pytest.mark.parametrize("make", [lambda model: None, lambda model: DynamicCache()], ids=["latent", "dynamic"])
def test_two_conversations_go_on_each_with_its_own_cache(model: Small4ForCausalLM, make: Callable[..., Any]) -> None:
    """The modes change the prompts, so each cache holds another beginning than its caller knows."""

    def conversation(mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = batch([chat(50, 51, 52, mode={"none": "high", "high": "none"}[mode])])
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        first = model.generate(
            **inputs, **options, reasoning_mode=mode, cache=make(model), return_dict_in_generate=True
        )
        more = torch.cat((first.sequences, torch.tensor([[60, 61]])), dim=1)
        return first.sequences, model.generate(more, **options, cache=first.cache)

    alone = [conversation(mode) for mode in ("none", "high")]
    found = together(model, [lambda mode=mode: conversation(mode) for mode in ("none", "high")])
    for got, expected in zip(found, alone, strict=True):
        assert all(map(torch.equal, got, expected))
