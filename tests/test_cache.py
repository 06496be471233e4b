"""The latent cache by its laws: whatever is done to it, what follows equals a forward without a cache. And its bytes,
and 8 bits.
"""

from typing import Any

import pytest
import torch
from oracle import Case, image_inputs, text_ids
from transformers import DynamicCache

from modeling_small4 import LatentCache, Small4Config, Small4ForCausalLM, attention_blocks, generation_hooks
from modeling_small4.cache import LatentLayer

CASE = Case(seed=31)
GREEDY = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return CASE.models()[0]


def logits(model: Small4ForCausalLM, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 90, [40, 50], [7, 1, 1, 60, 21], [89, 1]])
def test_chunks_equal_one_forward(model: Small4ForCausalLM, chunks: list[int]) -> None:
    ids, cache = text_ids(CASE), LatentCache(model.config, capacity=4)
    got = torch.cat([logits(model, piece, past_key_values=cache) for piece in ids.split(chunks, dim=1)], dim=1)
    assert_close(got, logits(model, ids, use_cache=False))
    assert cache.get_seq_length() == 90


def test_forward_and_generate_use_it_by_default(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, length=9)
    assert type(model(ids).past_key_values) is LatentCache
    output = model.generate(ids, **GREEDY, return_dict_in_generate=True)
    assert type(output.past_key_values) is LatentCache
    assert (
        type(
            model.generate(ids, **GREEDY, return_dict_in_generate=True, past_key_values=DynamicCache()).past_key_values
        )
        is DynamicCache
    )


@pytest.mark.parametrize("padded", [False, True])
def test_generate_makes_room_for_the_whole_prompt_at_once(model: Small4ForCausalLM, padded: bool) -> None:
    """Growing meanwhile would hold the cache twice."""
    ids = text_ids(CASE, batch=1, length=700)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0 if padded else 1
    output = model.generate(
        ids, attention_mask=mask, **GREEDY | {"max_new_tokens": 600, "max_time": 0.0}, return_dict_in_generate=True
    )
    made = {layer.stores[0].shape[2] for layer in output.past_key_values.layers}
    assert made == {700 + 256}


def test_crop_forgets(model: Small4ForCausalLM) -> None:
    ids, cache = text_ids(CASE), LatentCache(model.config)
    logits(model, torch.cat((ids[:, :50], ids[:, :20]), dim=1), past_key_values=cache)
    cache.crop(-20)
    cache.crop(0)
    assert_close(logits(model, ids[:, 50:], past_key_values=cache), logits(model, ids)[:, 50:])
    for wrong in (3, -91):
        with pytest.raises(ValueError, match="number of tokens"):
            cache.crop(wrong)


def test_rows_are_reordered_selected_and_repeated(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, batch=3)
    for change, rows in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 2])), [2, 0, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        cache = LatentCache(model.config)
        logits(model, ids[:, :50], past_key_values=cache)
        change(cache)
        assert cache.batch_size == len(rows)
        assert_close(logits(model, ids[rows, 50:], past_key_values=cache), logits(model, ids)[rows, 50:])


def test_ragged_left_padding(model: Small4ForCausalLM) -> None:
    ids, lengths = text_ids(CASE, batch=3, length=40), [40, 23, 3]
    mask = torch.tensor([[0] * (40 - n) + [1] * n for n in lengths])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = LatentCache(model.config)
    got = []
    for part in (slice(0, 25), slice(25, 26), slice(26, 40)):
        seen = mask[:, : part.stop]
        got.append(
            logits(model, ids[:, part], attention_mask=seen, position_ids=positions[:, part], past_key_values=cache)
        )
    got_all = torch.cat(got, dim=1)
    for row, n in enumerate(lengths):
        assert_close(got_all[row, -n:], logits(model, ids[row : row + 1, -n:])[0])


def test_reset_starts_anew(model: Small4ForCausalLM) -> None:
    ids, cache = text_ids(CASE), LatentCache(model.config)
    logits(model, ids, past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == cache.nbytes == 0
    assert_close(logits(model, ids[:1], past_key_values=cache), logits(model, ids[:1]))


def test_gradients_flow_through_it(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, batch=1, length=30)
    gradients = []
    for cached in (False, True):
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        if cached:
            cache = LatentCache(model.config)
            first = model(inputs_embeds=embedded[:, :20], past_key_values=cache).logits
            output = torch.cat((first, model(inputs_embeds=embedded[:, 20:], past_key_values=cache).logits), dim=1)
        else:
            output = model(inputs_embeds=embedded, use_cache=False).logits
        gradients.append(torch.autograd.grad(output.square().mean(), embedded)[0])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_filled_in_inference_mode_and_used_outside(model: Small4ForCausalLM) -> None:
    ids, cache = text_ids(CASE), LatentCache(model.config)
    with torch.inference_mode():
        model(ids[:, :50], past_key_values=cache)
    assert_close(logits(model, ids[:, 50:], past_key_values=cache), logits(model, ids)[:, 50:])


def test_memory_grows_geometrically_and_is_filled_by_new_tokens_alone() -> None:
    layer, width, sizes = LatentLayer(capacity=8), 5, set()
    for step in range(1000):
        layer.update(torch.full((1, 1, 1, width), float(step)))
        sizes.add(layer.stores[0].shape[2])
    assert len(sizes) < 30
    assert layer.stores[0].shape[2] <= 1.25 * 1000
    assert torch.equal(layer.keys[0, 0, :, 0], torch.arange(1000.0))


def test_bytes_per_token_are_the_release_s() -> None:
    config = Small4Config()
    for bits, per_token in ((16, 23_040), (8, 36 * (320 + 4))):
        cache = LatentCache(config, bits=bits)
        for layer in range(36):
            cache.update(torch.randn(2, 1, 10, 320, dtype=torch.bfloat16), None, layer)
        assert cache.nbytes == 2 * 10 * per_token


@pytest.mark.parametrize("magnitude", [1e-20, 1e-3, 1.0, 1e4])
def test_eight_bits_round_to_half_a_step(magnitude: float) -> None:
    cache = LatentCache(CASE.config(), bits=8)
    tokens = magnitude * torch.randn(8, 1, 400, 48, generator=torch.Generator().manual_seed(0))
    got = cache.update(tokens, None, 0)[0]
    for part in (slice(0, 32), slice(32, 48)):
        step = tokens[..., part].abs().amax(-1, keepdim=True) / 127
        error = (got - tokens)[..., part].abs()
        assert (error <= step * (1 + 2**-8) / 2).all()  # as scales are stored in bfloat16
        wide = (step * (1 + 2**-7)).bfloat16().float()
        wasteful = ((tokens[..., part] / wide).round() * wide - tokens[..., part]).abs()
        assert error.mean() < wasteful.mean() * 0.997
    assert torch.equal(
        LatentCache(CASE.config(), bits=8).update(torch.zeros(1, 1, 3, 48), None, 0)[0], torch.zeros(1, 1, 3, 48)
    )


def test_eight_bits_hold_the_largest_value_however_its_scale_is_rounded() -> None:
    """Scales between two numbers of bfloat16, the midpoint included."""
    largest = 127 * torch.linspace(1, 2, 2**11 + 1)
    tokens = torch.zeros(1, 1, len(largest), 48)
    tokens[..., 0], tokens[..., 40] = largest, -largest
    layer = LatentCache(CASE.config(), bits=8).layers[0]
    layer.update(tokens)
    codes = layer.stores[0].int()
    assert (codes[..., 0].min(), codes[..., 40].max()) == (127, -127)
    assert codes.abs().max() == 127


def test_eight_bit_cache_in_generate(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, length=30)
    output = model.generate(
        ids, **GREEDY, cache_implementation="latent_8bit", return_dict_in_generate=True, output_logits=True
    )
    exact = model.generate(ids, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert output.past_key_values.nbytes < 0.6 * exact.past_key_values.nbytes / 2
    error = (output.logits[0] - exact.logits[0]).abs().max()
    assert 0 < (output.logits[1] - exact.logits[1]).abs().max() + error < 0.5
    with pytest.raises(ValueError, match="bits=4"):
        LatentCache(model.config, bits=4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 11},
        {"cache_implementation": "latent"},
    ],
)
def test_generating_equals_a_dynamic_cache(model: Small4ForCausalLM, options: dict) -> None:
    ids = text_ids(CASE, batch=1 if "prompt_lookup_num_tokens" in options else 2)
    theirs = {k: v for k, v in options.items() if k != "cache_implementation"}
    expected = model.generate(ids, **GREEDY, **theirs, past_key_values=DynamicCache())
    assert torch.equal(model.generate(ids, **GREEDY, **options), expected)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths for long prompts, at lengths that a test can afford."""
    from modeling_small4 import attention

    monkeypatch.setattr(attention_blocks, "LONG", 1)
    monkeypatch.setattr(attention, "BLOCK", 16)
    monkeypatch.setattr(generation_hooks, "LONG_PROMPT", 40)
    monkeypatch.setattr(generation_hooks, "CHUNK", 32)


@pytest.mark.parametrize("lengths", [[90, 90], [90, 41], [90, 3]])
def test_attention_in_blocks_equals_one_forward(
    model: Small4ForCausalLM, short_blocks: None, lengths: list[int]
) -> None:
    ids = text_ids(CASE)
    mask = torch.tensor([[0] * (90 - n) + [1] * n for n in lengths])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, got = LatentCache(model.config), []
    for part in (slice(0, 50), slice(50, 85), slice(85, 86), slice(86, 90)):
        seen = mask[:, : part.stop]
        got.append(
            logits(model, ids[:, part], attention_mask=seen, position_ids=positions[:, part], past_key_values=cache)
        )
    for row, n in enumerate(lengths):
        assert_close(torch.cat(got, dim=1)[row, -n:], logits(model, ids[row : row + 1, -n:])[0])


@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_a_part_of_attention_equals_its_definition(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU's fused kernel, and in plain torch as on other devices; with and without padding."""
    if kernel == "plain":
        monkeypatch.setattr(attention_blocks, "_fused", lambda device: False)
    query, key, value = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 6)
    padding = torch.tensor([[True] * 9, [False] * 5 + [True] * 4])
    for causal in (False, True):
        for shown in (None, padding):
            part = attention_blocks.attend_part(query, key, value, 0.3, shown, causal)
            mask = torch.ones(9, 9, dtype=torch.bool).tril() if causal else torch.ones(9, 9, dtype=torch.bool)
            mask = mask if shown is None else mask & shown[:, None, None, :]
            scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~mask, -torch.inf)
            expected = torch.nan_to_num(scores.softmax(-1)) @ value
            assert_close(part.output, expected)
            torch.testing.assert_close(part.logsumexp, scores.logsumexp(-1, keepdim=True))


def test_long_prompt_is_read_in_chunks_with_images(
    model: Small4ForCausalLM, short_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = image_inputs(CASE, [(56, 84), (112, 56)])
    assert inputs["input_ids"].shape[1] > 40
    widths: list[int] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    got = model.generate(**inputs, **GREEDY)
    handle.remove()
    assert max(widths) == 32
    monkeypatch.undo()
    assert torch.equal(got, model.generate(**inputs, **GREEDY, use_cache=False))


def test_transformers_quantized_cache_still_works(model: Small4ForCausalLM) -> None:
    ids = text_ids(CASE, length=30)
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    output = model.generate(ids, **GREEDY, **options, return_dict_in_generate=True, output_logits=True)
    exact = model.generate(ids, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert (output.logits[1] - exact.logits[1]).abs().mean() < 0.1 * exact.logits[1].abs().mean()
