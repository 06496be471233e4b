"""The cache is taken under both of its names everywhere, and handed back as `cache`."""

from typing import Any

import pytest
import torch
from oracle import Case, text_ids
from transformers import DynamicCache

from modeling_small4 import LatentCache, Small4ForCausalLM, Small4ForSequenceClassification

NAMES = ("cache", "past_key_values")  # transformers renamed the argument in 5.24; callers use either

CASE = Case(seed=37)
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
EXPECTED: dict[str, Any] = {"return_dict_in_generate": True}


@pytest.fixture(scope="module")
def models() -> tuple[Small4ForCausalLM, Any]:
    return CASE.models()


def test_the_name_is_that_of_transformers_own_models(models: tuple[Small4ForCausalLM, Any]) -> None:
    ours, theirs = models
    ids = text_ids(CASE, length=9)
    assert "cache" in theirs(ids).keys()  # noqa: SIM118 - outputs iterate over values
    assert "cache" in theirs.generate(ids, **GREEDY, **EXPECTED).keys()  # noqa: SIM118
    for output in (
        ours(ids),
        ours.model(ids),
        ours.model.language_model(ids),
        ours.generate(ids, **GREEDY, **EXPECTED),
    ):
        assert [name for name in output.keys() if name in NAMES] == ["cache"]  # noqa: SIM118
        assert type(output.cache) is LatentCache


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["model.language_model", "model", ""])
def test_forward(models: tuple[Small4ForCausalLM, Any], part: str, name: str) -> None:
    model, ids = models[0].get_submodule(part), text_ids(CASE, length=30)
    cache = LatentCache(model.config)
    with torch.no_grad():
        expected = model(ids)[0][:, 20:]
        first = model(ids[:, :20], **{name: cache})
        got = model(ids[:, 20:], **{name: first.cache})[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert cache.get_seq_length() == 30
    with pytest.raises(ValueError, match="two names of one argument"):
        model(ids, cache=cache, past_key_values=cache)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"preset": "latency"}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_generate(models: tuple[Small4ForCausalLM, Any], options: dict[str, Any], name: str) -> None:
    model, ids = models[0], text_ids(CASE, batch=1, length=30)
    for cache in (LatentCache(model.config), DynamicCache()):
        output = model.generate(ids, **GREEDY, **EXPECTED, **options, **{name: cache})
        assert output.cache is cache
        assert torch.equal(output.sequences, model.generate(ids, **GREEDY, **options))
        more = torch.cat((output.sequences, ids[:, :3]), dim=1)
        if "num_beams" not in options:
            assert torch.equal(
                model.generate(more, **GREEDY, **options, **{name: cache}), model.generate(more, **GREEDY, **options)
            )
    with pytest.raises(ValueError, match="two names of one argument"):
        model.generate(ids, cache=cache, past_key_values=cache)


@pytest.mark.parametrize("name", NAMES)
def test_refused_where_there_are_many(models: tuple[Small4ForCausalLM, Any], name: str) -> None:
    with pytest.raises(ValueError, match=r"throughput.* and cache contradict"):
        models[0].generate(text_ids(CASE), **GREEDY, preset="throughput", **{name: LatentCache(models[0].config)})


def test_a_task_head_hands_it_on() -> None:
    config = CASE.config()
    config.num_labels = 3
    model, ids = Small4ForSequenceClassification(config).eval(), text_ids(CASE, length=12)
    cache = LatentCache(config)
    with torch.no_grad():
        output = model(ids, attention_mask=torch.ones_like(ids), cache=cache)
    assert output.cache is cache
    assert cache.get_seq_length() == 12


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_takes_it_away(name: str) -> None:
    """Layers are run twice then; a cache would be extended twice."""
    model, ids, found = CASE.models()[0].train(), text_ids(CASE, length=12), []
    cache = LatentCache(model.config)
    for options in ({}, {name: cache}):
        model.zero_grad()
        model(ids, labels=ids, **options).loss.backward()
        found.append(model.lm_head.weight.grad.clone())
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(*found)
    assert cache.get_seq_length() == 0
