"""What `generate` refuses: wrong modes and budgets, prompts without a chat, caches of another prompt, continuous
batching.
"""

import pytest
import torch
from generation_cases import END_INST, EOS, INST, batch, chat, tiny_model
from transformers import DynamicCache, GenerationConfig

from modeling_small4 import Small4ForCausalLM

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def one() -> Small4ForCausalLM:
    return tiny_model(0)


def test_a_filled_cache_refuses_another_mode_and_a_foreign_beginning(one: Small4ForCausalLM) -> None:
    prompt = chat(50, 51, mode="none")
    first = one.generate(**batch([prompt]), max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[EOS, INST, 71, END_INST]])], dim=1)
    with pytest.raises(
        ValueError,
        match=r"reasoning_mode is 'high', but (cache|past_key_values) already holds \d+ tokens.*settings for 'none'.*='none' to go on",  # noqa: E501
    ):
        one.generate(ids, past_key_values=first.past_key_values, reasoning_mode="high", max_new_tokens=4)
    with pytest.raises(ValueError, match=r"Pass the ids of the whole conversation"):
        one.generate(
            ids[:, -4:],
            attention_mask=torch.ones_like(ids),
            past_key_values=first.past_key_values,
            reasoning_mode="none",
            max_new_tokens=4,
        )
    cache = DynamicCache(config=one.config)
    one.generate(**batch([prompt]), past_key_values=cache, reasoning_mode="high", max_new_tokens=4, eos_token_id=None)
    with pytest.raises(ValueError, match=r"neither that prompt nor the one"):
        one.generate(torch.tensor([chat(60, 61, 62, 63, 64, 65, 66, 67, 68)]), past_key_values=cache, max_new_tokens=4)
    cache.crop(-cache.get_seq_length())
    plain = one.generate(**batch([prompt]), max_new_tokens=4)
    assert torch.equal(plain, one.generate(**batch([prompt]), past_key_values=cache, max_new_tokens=4))


BAD = {
    "unknown": ("medium", None, [chat(50)], r"'medium'.*'none' or 'high'"),
    "no string": (1, None, [chat(50)], r"is 1, .*'none' or 'high'"),
    "in a list": (["none", "low"], None, [chat(50), chat(51)], r"'low'.*'none' or 'high'"),
    "short list": (["none"], None, [chat(50), chat(51)], r"lists 1 modes for a batch of 2"),
    "no chat": ("high", None, [[1, 50, 51]], r"no message between \[INST\] and \[/INST\].*apply_chat_template"),
    "unfinished": ("high", None, [[1, INST, 50, 51]], r"no message between"),
    "unclosed settings": ("high", None, [[1, 36, 40, INST, 50, END_INST]], r"never closes"),
    "negative": (None, -1, [chat(50)], r"max_thinking_tokens is -1.*0 or more"),
    "fraction": ("high", 2.0, [chat(50)], r"max_thinking_tokens is 2\.0"),
    "boolean": ("high", True, [chat(50)], r"max_thinking_tokens is True"),
    "text": ("high", "8", [chat(50)], r"max_thinking_tokens is '8'"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(one: Small4ForCausalLM, case: str) -> None:
    mode, budget, rows, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        one.generate(**batch(rows), reasoning_mode=mode, max_thinking_tokens=budget, max_new_tokens=4)


def test_more_mistakes(one: Small4ForCausalLM) -> None:
    with pytest.raises(ValueError, match="pass input_ids or inputs_embeds"):
        one.generate(reasoning_mode="high", max_new_tokens=4)
    inputs = batch([chat(50)])
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    with pytest.raises(ValueError, match="position_ids"):
        one.generate(**inputs, position_ids=positions, reasoning_mode="high", max_new_tokens=4)
    with pytest.raises(ValueError, match="model_kwargs"):
        one.generate(**inputs, reasoning_effort="high", max_new_tokens=4)


def test_continuous_batching_is_refused_with_reasoning_arguments() -> None:
    model = tiny_model(0)
    prompt = chat(50)
    for options in ({"reasoning_mode": "high"}, {"max_thinking_tokens": 3}):
        with pytest.raises(ValueError, match="continuous batching"):
            model.generate_batch([prompt], **options)
        with pytest.raises(ValueError, match="continuous batching"):
            model.generate(torch.tensor([prompt]), cache_implementation="paged", **options)
        with pytest.raises(ValueError, match="continuous batching"):
            model.generate_batch([prompt], generation_config=GenerationConfig(**options))
        with pytest.raises(ValueError, match="continuous batching"):
            model.init_continuous_batching(GenerationConfig(**options))
    model.generation_config.reasoning_mode = "none"
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([prompt])
