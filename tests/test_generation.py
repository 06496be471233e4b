"""`generate(reasoning_mode=..., max_thinking_tokens=...)` against a slow loop without cache, for every way to
decode.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from generation_cases import (
    END_INST,
    END_RESULTS,
    END_THINK,
    EOS,
    HEADS,
    IMG,
    IMG_BREAK,
    IMG_END,
    INST,
    MODES,
    PAD,
    RESULTS,
    ROWS,
    THINK,
    TOKEN_IDS,
    batch,
    chat,
    choices,
    naive_greedy,
    settings,
    tiny_model,
)
from transformers import (
    CompileConfig,
    LogitsProcessor,
)

from modeling_small4 import Small4ForCausalLM
from modeling_small4.generation_prompt import ReasoningIds

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


def every_pair(*values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combinations of the values, the last of them chosen so that each stands beside each of the others."""
    *free, last = values
    places = itertools.product(*(range(len(each)) for each in free))
    return [(*(each[i] for each, i in zip(free, at, strict=True)), last[sum(at) % len(last)]) for at in places]


@pytest.mark.parametrize(
    ("head", "given", "mode", "budget"), every_pair(list(HEADS), [None, "none", "high"], ["none", "high"], [None, 0, 3])
)
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


@pytest.mark.parametrize("stand", [("none", "high"), ("high", "none"), ("high", "high"), ("none", "none", "high")])
@pytest.mark.parametrize("mode", [None, "none", "high"])
def test_several_settings_blocks_all_say_the_mode_and_the_last_one_counts(
    model: Small4ForCausalLM, stand: tuple[str, ...], mode: str | None
) -> None:
    def conversation(modes: tuple[str, ...]) -> list[int]:
        turns = [token for each in modes for token in (*settings(each), INST, 50, 51, END_INST, 60, EOS)]
        return [1, *turns[:-2]]

    prompt = conversation(stand)
    assert ReasoningIds.from_mapping(TOKEN_IDS).mode_of(prompt) == stand[-1]
    out = model.generate(
        **batch([prompt]), reasoning_mode=mode, max_thinking_tokens=3, max_new_tokens=NEW, do_sample=False
    )
    read = prompt if mode is None else conversation((mode,) * len(stand))
    assert out[0].tolist() == prompt + naive_greedy(model, read, mode or stand[-1], NEW, 3)


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


@pytest.mark.parametrize(("budget", "begun", "mode"), every_pair([None, 1, 2, 6], list(ANSWERS), ["none", "high"]))
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
BARE = [
    {"user": (50, 51, 52)},
    {"user": (53,)},
    {"user": (54, 55), "before": HEADS["system"]},
    {"user": (56, 57), "answer": [THINK, 70]},
]


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


@pytest.mark.parametrize(
    ("strategy", "budget"),
    [*((name, 4) for name in STRATEGIES), *((name, None) for name in ("greedy", "sampling", "beams"))],
)
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
def test_compiled_in_one_graph() -> None:
    one = tiny_model(0, layers=1)
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
