"""`preset="throughput"` gives the greedy answers of a plain call in every form; and continuous batching by itself."""

from typing import Any

import pytest
import torch
from generation_cases import EOS, PAD, batch
from oracle import Case, image_inputs, text_ids
from preset_cases import CASE, CHATS, GREEDY
from transformers import ContinuousBatchingConfig, GenerationConfig

from modeling_small4 import Small4ForCausalLM, attention_paged, generation_batching

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return CASE.models()[0]


def rows_of(sequences: torch.Tensor, width: int) -> list[list[int]]:
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in sequences[:, width:].tolist()]


@pytest.mark.parametrize(
    ("mode", "room"), [(None, 2), ("none", 64), (["none", "high", "high", "none", "none"], 2), ("high", 64)]
)
def test_throughput_gives_the_tokens_of_a_plain_call(
    repeating: Small4ForCausalLM, mode: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_batching, "ROWS", room)
    inputs = batch(CHATS)
    options = {"max_new_tokens": 20, "reasoning_mode": mode}
    expected = repeating.generate(**inputs, **options)
    assert torch.equal(repeating.generate(**inputs, **options, preset="throughput"), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 12},
        {"max_length": 40},
        {"cache_implementation": "latent_8bit"},
        {"generation_config": GenerationConfig(max_new_tokens=9, eos_token_id=EOS, pad_token_id=PAD)},
        {"generation_config": GenerationConfig(max_length=37, eos_token_id=EOS, pad_token_id=PAD)},
        {"eos_token_id": None},
        {"prefix_allowed_tokens_fn": lambda row, ids: [70 + row, 80 + row, 90]},
    ],
)
def test_throughput_keeps_to_what_else_is_asked_for(
    repeating: Small4ForCausalLM, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_batching, "ROWS", 2)
    inputs = batch(CHATS)
    lengths = {} if {"max_length", "generation_config"} & options.keys() else {"max_new_tokens": 16}
    expected = repeating.generate(**inputs, **lengths, **options)
    assert torch.equal(repeating.generate(**inputs, **lengths, **options, preset="throughput"), expected)


def test_throughput_deals_images_out_to_their_rows(model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_batching, "ROWS", 1)
    one, two = image_inputs(CASE, [(56, 84)]), image_inputs(CASE, [(112, 56), (28, 28)])
    width = max(part["input_ids"].shape[1] for part in (one, two)) + 3
    rows = [one["input_ids"][0].tolist(), text_ids(CASE, batch=1, length=7)[0].tolist(), two["input_ids"][0].tolist()]
    pixels = torch.zeros(3, 3, 112, 84)
    pixels[:1, :, :56, :84], pixels[1:, :, :112, :56] = one["pixel_values"], two["pixel_values"]
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": pixels,
        "image_sizes": torch.cat((one["image_sizes"], two["image_sizes"])),
    }
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, preset="throughput"), expected)
    with pytest.raises(ValueError, match="do not fit"):
        model.generate(
            **inputs | {"pixel_values": pixels[:2], "image_sizes": inputs["image_sizes"][:2]}, preset="throughput"
        )


def test_throughput_uses_continuous_batching_for_text_alone(
    repeating: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    original = Small4ForCausalLM.generate_batch
    monkeypatch.setattr(
        Small4ForCausalLM, "generate_batch", lambda *args, **kwargs: called.append(1) or original(*args, **kwargs)
    )
    inputs = batch(CHATS)
    for options, times in (({}, 1), ({"reasoning_mode": "none"}, 1), ({"num_beams": 2}, 1), ({}, 2)):
        repeating.generate(**inputs, **options, max_new_tokens=4, preset="throughput")
        assert len(called) == times


# continuous batching


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [({}, "eager"), ({"kv_lora_rank": 31, "v_head_dim": 20}, "sdpa"), ({"num_attention_heads": 3}, "sdpa")],
)
def test_continuous_batching_holds_latents(shape: dict, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts longer and shorter than a step, more of them than run at once; in as few bytes as the latent cache."""
    case = Case(seed=43, text=shape, vision=None)
    model = case.models()[0]
    model.generation_config.eos_token_id = -1
    rows = [text_ids(case, batch=1, length=length)[0].tolist() for length in (90, 3, 41, 77, 20)]
    expected = [model.generate(torch.tensor([row]), **GREEDY)[0, len(row) :].tolist() for row in rows]
    model.set_attn_implementation(kernel)
    made = []
    original = attention_paged.PagedBatch.of
    monkeypatch.setattr(
        attention_paged.PagedBatch, "of", lambda pages, *rest: made.append(pages) or original(pages, *rest)
    )
    settings = ContinuousBatchingConfig(page_size=16, num_blocks=24, max_batch_tokens=32, max_requests_per_batch=3)
    got = model.generate_batch(rows, GenerationConfig(**GREEDY), continuous_batching_config=settings)
    assert [request.generated_tokens for request in got.values()] == expected
    width = case.config().text_config.kv_lora_rank + 16
    assert made[0].num_blocks * 16 * 3 * (width + width % 2) * 4 == made[0].num_sectors * made[0].bytes_per_sector
    assert model.config._attn_implementation == kernel


def test_continuous_batching_reads_long_prompts_block_by_block(
    model: Small4ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modeling_small4 import attention

    rows = [text_ids(CASE, batch=1, length=length)[0].tolist() for length in (90, 61)]
    expected = [model.generate(torch.tensor([row]), **GREEDY)[0, len(row) :].tolist() for row in rows]
    monkeypatch.setattr(attention_paged, "LONG", 1)
    monkeypatch.setattr(attention, "BLOCK", 16)
    settings = ContinuousBatchingConfig(page_size=16, num_blocks=24, max_batch_tokens=32)
    got = model.generate_batch(rows, GenerationConfig(**GREEDY), continuous_batching_config=settings)
    assert [request.generated_tokens for request in got.values()] == expected


def test_room_for_continuous_batching_is_that_of_the_prompts() -> None:
    settings = generation_batching.continuous_batching_for([10, 1000, 100], 50)
    assert 1000 + 100 + 10 + 150 <= settings.num_blocks * settings.page_size < 2000
    many = generation_batching.continuous_batching_for([10_000] * 1000, 50)
    assert many.num_blocks * many.page_size < 66 * 10_051 + 64 * 64
    assert many.max_requests_per_batch == 64 <= many.max_batch_tokens <= 1024
