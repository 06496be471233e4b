"""`generate(reasoning_mode=..., max_thinking_tokens=...)` against a slow loop without cache, for every way to decode."""

import copy
from typing import Any

import pytest
import torch
from generation_cases import (
    END_INST,
    END_RESULTS,
    END_SYSTEM,
    END_THINK,
    END_TOOLS,
    EOS,
    IMG,
    IMG_BREAK,
    IMG_END,
    INST,
    PAD,
    RESULTS,
    SYSTEM,
    THINK,
    TOKEN_IDS,
    TOOLS,
    batch,
    chat,
    choices,
    naive_greedy,
    settings,
    tiny_model,
)
from transformers import (
    CompileConfig,
    DynamicCache,
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


@pytest.fixture(scope="module", params=range(2))
def model(request: pytest.FixtureRequest) -> Small4ForCausalLM:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def one() -> Small4ForCausalLM:
    return tiny_model(0)


class NaiveRules(LogitsProcessor):
    """The rules of `choices`, row by row in Python; `starts` is where each row's answer begins."""

    def __init__(self, starts: list[int], modes: list[str | None], budget: int | None) -> None:
        self.starts, self.modes, self.budget = starts, modes, budget

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        out = torch.full_like(scores, -torch.inf)
        repeats = input_ids.shape[0] // len(self.modes)
        for row, ids in enumerate(input_ids.tolist()):
            allowed = choices(ids[self.starts[row // repeats] :], self.modes[row // repeats], self.budget)
            out[row, allowed] = 0 if len(allowed) == 1 else scores[row, allowed]
        return out


def trimmed(sequence: torch.Tensor, prompt: int) -> list[int]:
    """The new tokens, up to and with the end of the message."""
    new = sequence[prompt:].tolist()
    return new[: new.index(EOS) + 1] if EOS in new else new


HEADS = {
    "bare": [],
    "system": [SYSTEM, 60, 61, END_SYSTEM],
    "tools": [SYSTEM, 60, END_SYSTEM, TOOLS, 62, 63, 64, END_TOOLS],
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("given", [None, "none", "high"])
@pytest.mark.parametrize("mode", ["none", "high"])
@pytest.mark.parametrize("budget", [None, 0, 3])
def test_greedy_equals_the_slow_loop(
    model: Small4ForCausalLM, head: str, given: str | None, mode: str, budget: int | None
) -> None:
    prompt = chat(50, 51, 52, mode=given, before=HEADS[head])
    out = model.generate(
        **batch([prompt]), reasoning_mode=mode, max_thinking_tokens=budget, max_new_tokens=NEW, do_sample=False
    )
    assert out[0, : len(prompt)].tolist() == prompt
    wanted = naive_greedy(model, chat(50, 51, 52, mode=mode, before=HEADS[head]), mode, NEW, budget)
    assert out[0, len(prompt) :].tolist() == wanted


TURNS = {
    "second turn": [70, EOS, INST, 71, END_INST],
    "an earlier thought": [THINK, 70, END_THINK, 71, EOS, INST, 72, END_INST],
    "after a tool": [THINK, 70, END_THINK, 9, 71, EOS, RESULTS, 72, END_RESULTS],
}


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("mode", ["none", "high"])
def test_settings_stand_before_the_first_user_message_of_a_long_conversation(
    model: Small4ForCausalLM, turns: str, mode: str
) -> None:
    prompt = chat(50, 51, answer=TURNS[turns])
    out = model.generate(**batch([prompt]), reasoning_mode=mode, max_thinking_tokens=4, max_new_tokens=NEW)
    assert trimmed(out[0], len(prompt)) == naive_greedy(
        model, chat(50, 51, mode=mode, answer=TURNS[turns]), mode, NEW, 4
    )


ANSWERS = {"open thought": [THINK, 70, 71], "closed thought": [THINK, 70, END_THINK], "begun": [70, 71]}


@pytest.mark.parametrize("begun", ANSWERS)
@pytest.mark.parametrize("mode", ["none", "high"])
@pytest.mark.parametrize("budget", [None, 1, 2, 6])
def test_an_answer_begun_in_the_prompt_is_gone_on_with(
    model: Small4ForCausalLM, begun: str, mode: str, budget: int | None
) -> None:
    answer = ANSWERS[begun]
    prompt = chat(50, 51, answer=answer)
    out = model.generate(**batch([prompt]), reasoning_mode=mode, max_thinking_tokens=budget, max_new_tokens=NEW)
    assert trimmed(out[0], len(prompt)) == naive_greedy(model, chat(50, 51, mode=mode), mode, NEW, budget, answer)


def test_an_interrupted_answer_goes_on_as_if_it_had_not_been(model: Small4ForCausalLM) -> None:
    prompt = chat(50, 51, 52, mode="high")
    options: dict[str, Any] = {"reasoning_mode": "high", "max_thinking_tokens": 6}
    whole = model.generate(**batch([prompt]), **options, max_new_tokens=14)
    for cut in range(1, 12):
        part = model.generate(**batch([prompt]), **options, max_new_tokens=cut)
        if EOS not in trimmed(part[0], len(prompt)):
            rest = model.generate(part, **options, max_new_tokens=14 - cut)
            assert torch.equal(rest, whole)


def test_left_out_mode_leaves_decoding_free_and_a_budget_keeps_to_the_prompts_own(model: Small4ForCausalLM) -> None:
    for given in (None, "none", "high"):
        prompt = chat(50, 51, 52, mode=given)
        free = model.generate(**batch([prompt]), max_new_tokens=NEW)
        assert trimmed(free[0], len(prompt)) == naive_greedy_free(model, prompt)
        budgeted = model.generate(**batch([prompt]), max_thinking_tokens=2, max_new_tokens=NEW)
        assert trimmed(budgeted[0], len(prompt)) == naive_greedy(model, prompt, given, NEW, 2)


@torch.no_grad()
def naive_greedy_free(model: Small4ForCausalLM, prompt: list[int]) -> list[int]:
    new: list[int] = []
    while len(new) < NEW and EOS not in new:
        new.append(int(model(input_ids=torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1].argmax()))
    return new


def test_budget_on_a_prompt_without_chat_only_limits_thoughts(model: Small4ForCausalLM) -> None:
    prompt = [1, 50, 51]
    out = model.generate(**batch([prompt]), max_thinking_tokens=2, max_new_tokens=NEW)
    assert trimmed(out[0], len(prompt)) == naive_greedy(model, prompt, None, NEW, 2)


# One batch for all ways to decode: ragged, with and without settings, a mode for each row.
ROWS = [
    chat(50, 51, 52),
    chat(53, mode="none"),
    chat(54, 55, mode="high", before=HEADS["system"]),
    chat(56, 57, answer=[THINK, 70]),
]
BARE = [
    {"user": (50, 51, 52)},
    {"user": (53,)},
    {"user": (54, 55), "before": HEADS["system"]},
    {"user": (56, 57), "answer": [THINK, 70]},
]
MODES = ["high", "high", "none", "high"]


def rewritten_by_hand(index: int, mode: str) -> list[int]:
    case = BARE[index]
    return chat(*case["user"], mode=mode, before=case.get("before", ()), answer=case.get("answer", ()))


def compiled() -> dict[str, Any]:
    config = CompileConfig(fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.95},
    "many samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beams, all returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "beams and sampling": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "beams on a static cache": {"num_beams": 2, "cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 4},
    "other processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "min_p": 0.01},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "beams in a dictionary": {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True},
}


@pytest.mark.parametrize("budget", [None, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ragged_batch_with_a_mode_for_each_row(model: Small4ForCausalLM, strategy: str, budget: int | None) -> None:
    options = STRATEGIES[strategy] | {"max_new_tokens": NEW}
    inputs = batch(ROWS)
    torch.manual_seed(7)
    out = model.generate(**inputs, **options, reasoning_mode=MODES, max_thinking_tokens=budget)

    by_hand = batch([rewritten_by_hand(index, mode) for index, mode in enumerate(MODES)])
    length, own = by_hand["input_ids"].shape[1], inputs["input_ids"].shape[1]
    starts = [length - len(case.get("answer", ())) for case in BARE]
    torch.manual_seed(7)
    naive = model.generate(**by_hand, **options, logits_processor=[NaiveRules(starts, MODES, budget)])

    if "return_dict_in_generate" in options:
        for ours, theirs in zip(out.scores, naive.scores, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert ("sequences_scores" in out) == ("sequences_scores" in naive)
        beams = getattr(out, "beam_indices", None)
        scores = model.compute_transition_scores(out.sequences, out.scores, beams)
        torch.testing.assert_close(scores, model.compute_transition_scores(naive.sequences, naive.scores, beams))
        out, naive = out.sequences, naive.sequences
    repeats = out.shape[0] // len(ROWS)
    assert torch.equal(out[:, :own], inputs["input_ids"].repeat_interleave(repeats, 0))
    assert torch.equal(out[:, own:], naive[:, length:])


def test_greedy_batch_equals_the_slow_loop_row_by_row(model: Small4ForCausalLM) -> None:
    out = model.generate(**batch(ROWS), reasoning_mode=MODES, max_thinking_tokens=4, max_new_tokens=NEW)
    width = max(map(len, ROWS))
    for index, mode in enumerate(MODES):
        answer = BARE[index].get("answer", [])
        prompt = rewritten_by_hand(index, mode)[: -len(answer) or None]
        assert trimmed(out[index], width) == naive_greedy(model, prompt, mode, NEW, 4, answer)


@pytest.mark.parametrize("helper", ["same model", "another model", "prompt lookup", "sampling"])
@pytest.mark.parametrize("mode", ["none", "high"])
def test_assisted_decoding(model: Small4ForCausalLM, helper: str, mode: str) -> None:
    prompt = chat(50, 51, 52, 50, 51)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if helper != "prompt lookup":
        options = {"assistant_model": model if helper == "same model" else tiny_model(9, layers=1)}
    new = naive_greedy(model, chat(50, 51, 52, 50, 51, mode=mode), mode, NEW, 4)
    sample = helper == "sampling"
    torch.manual_seed(0)
    out = model.generate(
        **batch([prompt]), **options, reasoning_mode=mode, max_thinking_tokens=4, max_new_tokens=NEW, do_sample=sample
    )
    assert out[0, : len(prompt)].tolist() == prompt
    found = trimmed(out[0], len(prompt))
    if not sample:
        assert found == new
    for index, token in enumerate(found):
        assert token in choices(found[:index], mode, 4)


@pytest.mark.slow
def test_compiled_in_one_graph(one: Small4ForCausalLM) -> None:
    options = {"reasoning_mode": MODES, "max_thinking_tokens": 4, "max_new_tokens": 12}
    plain = one.generate(**batch(ROWS), **options)
    assert torch.equal(plain, one.generate(**batch(ROWS), **options, **compiled()))


@pytest.mark.parametrize("mode", ["none", "high"])
def test_images_are_left_alone(mode: str) -> None:
    model = tiny_model(1, vision=True)
    pictures = {"pixel_values": torch.randn(1, 3, 56, 28, generator=torch.Generator().manual_seed(0))}
    pictures["image_sizes"] = torch.tensor([[56, 28]])
    user = (IMG, IMG_BREAK, IMG, IMG_END, 50)
    prompt = chat(*user, mode="none")
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
        out = model.generate(**batch([prompt]), **pictures, **options, reasoning_mode=mode, max_new_tokens=NEW)
        assert out[0, : len(prompt)].tolist() == prompt
        if not options or "cache_implementation" in options:
            wanted = naive_greedy(model, chat(*user, mode=mode), mode, NEW, **pictures)
            assert trimmed(out[0], len(prompt)) == wanted


def test_embeddings_have_no_ids_to_rewrite_and_the_mode_governs_decoding(model: Small4ForCausalLM) -> None:
    prompt = chat(50, 51, mode="high")
    embeds = model.get_input_embeddings()(torch.tensor([prompt]))
    for mode in ("none", "high"):
        out = model.generate(inputs_embeds=embeds, reasoning_mode=mode, max_thinking_tokens=3, max_new_tokens=NEW)
        assert trimmed(out[0], 0) == naive_greedy(model, prompt, mode, NEW, 3)


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


def test_conversation_goes_on_with_its_cache(model: Small4ForCausalLM) -> None:
    """Whether the caller's prompt had the mode or was rewritten: the second turn equals one without the cache."""
    for given in (None, "none", "high"):
        rows = [chat(50, 51, 52, mode=given), chat(53, mode=given)]
        options: dict[str, Any] = {"reasoning_mode": "high", "max_thinking_tokens": 2, "max_new_tokens": 5}
        options["eos_token_id"] = None
        first = model.generate(**batch(rows), **options, return_dict_in_generate=True)
        more = torch.tensor([[EOS, INST, 71, 72, END_INST]] * 2)
        ids = torch.cat([first.sequences, more], dim=1)
        mask = torch.cat([batch(rows)["attention_mask"], torch.ones(2, 10, dtype=torch.long)], dim=1)
        for again in ({}, {"reasoning_mode": "high"}, {"max_thinking_tokens": 1}):
            cache = copy.deepcopy(first.past_key_values)
            kept = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=6, **again)
            fresh = {"reasoning_mode": "high"} | again
            if not again:  # free decoding of the rewritten prompt, spelled out
                wanted = [settings("high")] * 2
                by_hand = batch(
                    [[1, *wanted[i], *row[len(settings(given)) + 1 if given else 1 :]] for i, row in enumerate(rows)]
                )
                plain = torch.cat([by_hand["input_ids"], ids[:, len(rows[0]) :]], dim=1)
                plain_mask = torch.cat([by_hand["attention_mask"], mask[:, len(rows[0]) :]], dim=1)
                expected = model.generate(plain, attention_mask=plain_mask, max_new_tokens=6)[:, plain.shape[1] :]
            else:
                expected = model.generate(ids, attention_mask=mask, max_new_tokens=6, **fresh)[:, ids.shape[1] :]
            assert torch.equal(kept[:, : ids.shape[1]], ids)
            assert torch.equal(kept[:, ids.shape[1] :], expected)


def test_a_filled_cache_refuses_another_mode_and_a_foreign_beginning(one: Small4ForCausalLM) -> None:
    prompt = chat(50, 51, mode="none")
    first = one.generate(**batch([prompt]), max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[EOS, INST, 71, END_INST]])], dim=1)
    with pytest.raises(
        ValueError, match=r"reasoning_mode is 'high', but (cache|past_key_values) already holds \d+ tokens"
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


def test_missing_mask_is_inferred_from_padding(model: Small4ForCausalLM) -> None:
    inputs = batch(ROWS)
    options: dict[str, Any] = {"reasoning_mode": MODES, "max_new_tokens": NEW}
    assert PAD in inputs["input_ids"]
    assert torch.equal(model.generate(**inputs, **options), model.generate(inputs["input_ids"], **options))


def test_peft_wrapper(one: Small4ForCausalLM) -> None:
    peft = pytest.importorskip("peft")
    model, prompt = tiny_model(0), chat(50, 51)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"]))
    options: dict[str, Any] = {"reasoning_mode": "high", "max_thinking_tokens": 3, "max_new_tokens": 9}
    assert torch.equal(one.generate(**batch([prompt]), **options), wrapped.generate(**batch([prompt]), **options))
