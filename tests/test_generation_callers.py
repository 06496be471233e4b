"""What callers pass to `generate` beside a mode: streamers, processors, criteria, lengths, a configuration, a
tokenizer.
"""

from typing import Any

import pytest
import torch
from generation_cases import EOS, MODES, ROWS, TOKEN_IDS, batch, chat, tiny_model
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from modeling_small4 import Small4ForCausalLM

torch.set_num_threads(1)
NEW = 16


@pytest.fixture(scope="module")
def one() -> Small4ForCausalLM:
    return tiny_model(0)


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.puts: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.puts.append(value)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 2}])
def test_streamer_is_given_the_callers_prompt_first(one: Small4ForCausalLM, options: dict[str, Any]) -> None:
    prompt, streamer = chat(50, 51, 52), Recorder()
    out = one.generate(**batch([prompt]), **options, reasoning_mode="high", max_new_tokens=8, streamer=streamer)
    assert streamer.ended
    assert streamer.puts[0].tolist() == [prompt]
    assert torch.cat([put.flatten() for put in streamer.puts]).tolist() == out[0].tolist()


class Watcher(LogitsProcessor, StoppingCriteria):
    """Both a processor and a criterion: notes the ids it is shown, stops after `stop` ids in all."""

    def __init__(self, stop: int) -> None:
        self.stop, self.seen = stop, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.seen.append(input_ids)
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.stop)


class WatchingProcessor(LogitsProcessor):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids)
        return scores


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_callers_processors_criteria_and_prefix_function_see_the_callers_prompt(
    one: Small4ForCausalLM, options: dict[str, Any]
) -> None:
    inputs = batch(ROWS)
    own = inputs["input_ids"].shape[1]
    criterion, processor, asked = Watcher(own + 6), WatchingProcessor(), []

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        asked.append((row, ids))
        return list(range(96))

    out = one.generate(
        **inputs,
        **options,
        reasoning_mode=MODES,
        eos_token_id=None,
        max_new_tokens=NEW,
        logits_processor=LogitsProcessorList([processor]),
        stopping_criteria=StoppingCriteriaList([criterion]),
        prefix_allowed_tokens_fn=allowed,
    )
    assert out.shape[1] == own + 6
    repeats = 2 if options else 1
    for seen in (*processor.seen, *criterion.seen):
        each = seen.shape[0] // len(ROWS)  # beam search tries more candidates than it keeps
        assert torch.equal(seen[:, :own], inputs["input_ids"].repeat_interleave(each, 0))
    for row, ids in asked:
        prompt = row if "num_beams" in options else row // repeats
        assert torch.equal(ids[:own], inputs["input_ids"][prompt])


@pytest.mark.parametrize("where", ["argument", "config", "model"])
def test_max_length_counts_the_callers_prompt(where: str) -> None:
    model, prompt = tiny_model(0), chat(50, 51, 52)
    options: dict[str, Any] = {"eos_token_id": None, "reasoning_mode": "high"}
    if where == "argument":
        options["max_length"] = len(prompt) + 5
    elif where == "config":
        options = {"generation_config": GenerationConfig(max_length=len(prompt) + 5, **options)}
    else:
        model.generation_config.max_length = len(prompt) + 5
    for _ in range(2):  # nothing may be left behind in a config
        assert model.generate(**batch([prompt]), **options).shape[1] == len(prompt) + 5


def test_default_length_and_min_length(one: Small4ForCausalLM) -> None:
    prompt = chat(50)
    assert one.generate(**batch([prompt]), reasoning_mode="high", eos_token_id=None).shape[1] == len(prompt) + 20
    for seed in range(3):
        out = tiny_model(seed).generate(
            **batch([prompt]), reasoning_mode="none", min_length=len(prompt) + 9, max_new_tokens=10
        )
        assert EOS not in out[0, len(prompt) : len(prompt) + 9].tolist()


def test_forced_end_at_the_maximum_length_wins_over_an_open_thought(one: Small4ForCausalLM) -> None:
    for sample in (False, True):
        out = one.generate(
            **batch([chat(50)]), reasoning_mode="high", max_new_tokens=4, forced_eos_token_id=EOS, do_sample=sample
        )
        assert out[0, -1] == EOS


def test_generation_config_carries_the_fields_and_arguments_win() -> None:
    model, prompt = tiny_model(0), chat(50, 51, 52)
    direct = model.generate(**batch([prompt]), reasoning_mode="high", max_thinking_tokens=3, max_new_tokens=NEW)
    none = model.generate(**batch([prompt]), reasoning_mode="none", max_new_tokens=NEW)
    fields = {"reasoning_mode": "high", "max_thinking_tokens": 3}
    passed = GenerationConfig(max_new_tokens=NEW, **fields)
    assert torch.equal(direct, model.generate(**batch([prompt]), generation_config=passed))
    assert torch.equal(none, model.generate(**batch([prompt]), generation_config=passed, reasoning_mode="none"))
    model.generation_config.reasoning_mode, model.generation_config.max_thinking_tokens = "high", 3
    assert torch.equal(direct, model.generate(**batch([prompt]), max_new_tokens=NEW))
    assert torch.equal(none, model.generate(**batch([prompt]), reasoning_mode="none", max_new_tokens=NEW))


def test_fields_survive_saving(tmp_path: Any) -> None:
    model = tiny_model(0)
    model.generation_config.reasoning_mode = "high"
    model.generation_config._from_model_config = False
    model.save_pretrained(tmp_path)
    again, prompt = Small4ForCausalLM.from_pretrained(tmp_path), chat(50, 51)
    assert again.generation_config.reasoning_token_ids == TOKEN_IDS
    assert torch.equal(
        again.generate(**batch([prompt]), max_new_tokens=9), model.generate(**batch([prompt]), max_new_tokens=9)
    )


class FakeTokenizer:
    def get_vocab(self) -> dict[str, int]:
        from modeling_small4.reasoning import REASONING_TOKENS

        return {token: TOKEN_IDS[name] for name, token in REASONING_TOKENS.items()}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return TOKEN_IDS["settings_high" if "high" in text else "settings_none"]


class FakeProcessor:
    tokenizer = FakeTokenizer()


def test_ids_come_from_a_tokenizer_where_the_checkpoint_has_none() -> None:
    model, prompt = tiny_model(0), chat(50, 51)
    options: dict[str, Any] = {"reasoning_mode": "high", "max_new_tokens": 9}
    direct = model.generate(**batch([prompt]), **options)
    del model.generation_config.reasoning_token_ids
    with pytest.raises(ValueError, match=r"reasoning_token_ids.*tokenizer="):
        model.generate(**batch([prompt]), **options)
    for tokenizer in (FakeTokenizer(), FakeProcessor()):
        assert torch.equal(direct, model.generate(**batch([prompt]), **options, tokenizer=tokenizer))
    model.generation_config.reasoning_token_ids = TOKEN_IDS | {"think": None, "settings_none": None}
    with pytest.raises(ValueError, match=r"no id for think, settings_none"):
        model.generate(**batch([prompt]), **options)
