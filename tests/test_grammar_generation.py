"""`generate(grammar=...)`: every answer fits, whatever way it is decoded, and the thought before it is free.

The tiny model writes at random and so runs into every rule; the demo is a real one.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from tiny_checkpoint import write_tiny_checkpoint
from transformers import LogitsProcessor, LogitsProcessorList, pipeline

from model_card.bench.grammar_validity import ask, verdict
from model_card.bench.random_schemas import random_schema
from modeling_small4 import Grammar, Small4ForCausalLM, Small4Processor, Small4Streamer, demo_checkpoint

pytest.importorskip("llguidance")
torch.set_num_threads(1)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ok": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["name", "ok", "n"],
}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}},
}
THINK, END_THINK, EOS, PAD = 34, 35, 2, 11


class Served:
    """A model and its processor."""

    def __init__(self, folder: Path) -> None:
        self.model = Small4ForCausalLM.from_pretrained(folder).eval()
        self.processor = Small4Processor.from_pretrained(folder)

    def prompt(self, *texts: str, **options: Any) -> Any:
        chats = [[{"role": "user", "content": text}] for text in texts or ("What is 2 + 3?",)]
        return self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )

    def answers(self, grammar: Any, *texts: str, tokens: int = 120, **options: Any) -> list[list[int]]:
        inputs = self.prompt(*texts)
        out = self.model.generate(**inputs, grammar=grammar, max_new_tokens=tokens, **options)
        return out[:, inputs["input_ids"].shape[1] :].tolist()

    def texts(self, *arguments: Any, **options: Any) -> list[str]:
        found = []
        for ids in self.answers(*arguments, **options):
            assert EOS in ids
            found.append(self.processor.parse_response(ids)["content"])
        return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def demo() -> Served:
    return Served(demo_checkpoint())


def check(text: str, schema: Any = SCHEMA) -> None:
    Draft202012Validator(schema).validate(json.loads(text))


WAYS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 1.3},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_p": 0.3, "repetition_penalty": 1.4},
    {"do_sample": True, "num_return_sequences": 3},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": False, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    {"do_sample": False, "prompt_lookup_num_tokens": 4},
    {"do_sample": False, "preset": "latency"},
    {"do_sample": False, "preset": "throughput"},
    {"do_sample": False, "cache_implementation": "latent_static"},
    {"do_sample": False, "use_cache": False},
    {"do_sample": False, "no_repeat_ngram_size": 2},
    {"do_sample": False, "min_new_tokens": 60},
]  # fmt: skip


# In every way after a thought; without one, one way of each kind.
@pytest.mark.parametrize(
    ("mode", "ways"),
    [*(("high", ways) for ways in WAYS), *((mode, WAYS[place]) for mode in ("none", None) for place in (0, 1, 5))],
    ids=str,
)
def test_every_way_of_decoding(tiny: Served, mode: str | None, ways: dict[str, Any]) -> None:
    torch.manual_seed(0)
    for ids in tiny.answers(SCHEMA, reasoning_mode=mode, max_thinking_tokens=10, **ways):
        assert EOS in ids
        message = tiny.processor.parse_response(ids)
        check(message["content"])
        assert message["tool_calls"] == []
        if mode is not None:
            assert (message["reasoning_content"] is not None) == (mode == "high")


def test_drafts_of_another_model_change_nothing(tiny: Served, tmp_path: Path) -> None:
    assistant = Small4ForCausalLM.from_pretrained(write_tiny_checkpoint(tmp_path, seed=1)).eval()
    for grammar in (SCHEMA, re.compile("[a-c]{3,30}[0-9]"), ["one", "other"]):
        plain = tiny.answers(grammar, do_sample=False)
        assert tiny.answers(grammar, do_sample=False, assistant_model=assistant) == plain
        assert tiny.answers(grammar, do_sample=False, prompt_lookup_num_tokens=3) == plain
        assert tiny.answers(grammar, do_sample=False, preset="latency") == plain
    sampled = tiny.answers(SCHEMA, do_sample=True, assistant_model=assistant)
    check(tiny.processor.parse_response(sampled[0])["content"])


def test_what_the_grammar_allows_is_chosen_as_without_it(demo: Served) -> None:
    """A grammar that allows the free answer gives the free answer."""
    inputs = demo.prompt("What is 17 + 25?")
    free = demo.model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    for grammar in (re.compile("(?s:.*)"), {"type": "text"}, {"tools": [TOOL]}):
        assert demo.answers(grammar, "What is 17 + 25?", tokens=60, do_sample=False) == [free]


def test_each_row_has_its_own(tiny: Served) -> None:
    grammars = [
        SCHEMA,
        None,
        ["a choice", "another"],
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    ]
    texts = ["Hello", "A somewhat longer question, is it not?", "?", "Add it."]
    torch.manual_seed(0)
    for ways in (
        {"do_sample": False},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 2},
        {"preset": "throughput"},
    ):
        rows = tiny.answers(
            grammars, *texts, reasoning_mode=["none", "high", "high", "none"], max_thinking_tokens=5, **ways
        )
        repeats = len(rows) // 4
        for row, ids in enumerate(rows):
            message = tiny.processor.parse_response(ids)
            if row // repeats == 0:
                check(message["content"])
            elif row // repeats == 2:
                assert message["content"] in grammars[2]
                assert message["reasoning_content"] is not None
            elif row // repeats == 3:
                (call,) = message["tool_calls"]
                assert call["function"]["name"] == "add"
                assert isinstance(call["function"]["arguments"]["a"], int)
    with pytest.raises(ValueError, match="lists 3 grammars for a batch of 2"):
        tiny.answers([SCHEMA, None, None], "a", "b")


def test_a_thought_is_free_and_its_budget_closes_it(tiny: Served) -> None:
    torch.manual_seed(1)
    for _ in range(5):
        (ids,) = tiny.answers(
            ["yes", "no"], reasoning_mode="high", max_thinking_tokens=7, do_sample=True, temperature=3.0
        )
        assert ids[0] == THINK
        assert 1 <= ids.index(END_THINK) <= 8
        assert not set(ids[1 : ids.index(END_THINK)]) & set(tiny.processor.tokenizer.control_tokens)
        assert tiny.processor.parse_response(ids)["content"] in ("yes", "no")


def test_a_thought_without_budget_leaves_room_for_the_answer(tiny: Served) -> None:
    class NeverStops(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            scores[:, END_THINK] = -1e9
            return scores

    (ids,) = tiny.answers(
        SCHEMA, reasoning_mode="high", do_sample=False, logits_processor=LogitsProcessorList([NeverStops()])
    )
    assert ids.index(END_THINK) > 20
    check(tiny.processor.parse_response(ids)["content"])


def test_an_answer_is_closed_in_time_unless_told_not_to(tiny: Served) -> None:
    text = tiny.texts(SCHEMA, "Write a long text.", tokens=60, do_sample=False)[0]
    check(text)
    read = Grammar.read(SCHEMA)
    (ids,) = tiny.answers(
        Grammar(read.kind, read.source, close=False), "Write a long text.", tokens=60, do_sample=False
    )
    assert EOS not in ids
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(tiny.processor.parse_response(ids)["content"])
    (ids,) = tiny.answers(SCHEMA, "Write a long text.", tokens=5, do_sample=False)  # too few for any answer
    assert EOS not in ids


def test_streams_and_outputs(tiny: Served) -> None:
    inputs = tiny.prompt()
    streamer = Small4Streamer(tiny.processor)
    out = tiny.model.generate(
        **inputs, grammar=SCHEMA, max_new_tokens=120, do_sample=False, streamer=streamer, return_dict_in_generate=True,
            output_scores=True
    )  # fmt: skip
    pieces = [text for channel, text in streamer if channel == "content"]
    check("".join(pieces))
    assert len(pieces) > 3
    assert len(out.scores) == out.sequences.shape[1] - inputs["input_ids"].shape[1]


def test_an_answer_that_has_begun_goes_on(tiny: Served) -> None:
    for prefix, grammar in (('{"name": "A', SCHEMA), ("ye", ["yes", "no"])):
        chat = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": prefix}]
        inputs = tiny.processor.apply_chat_template(
            chat, continue_final_message=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        out = tiny.model.generate(**inputs, grammar=grammar, max_new_tokens=80, do_sample=False)
        text = prefix + tiny.processor.parse_response(out[0, inputs["input_ids"].shape[1] :].tolist())["content"]
        assert text == "yes" if prefix == "ye" else check(text) is None
        with pytest.raises(ValueError, match="does not fit the grammar"):
            tiny.model.generate(**inputs, grammar=re.compile("[0-9]+"), max_new_tokens=5)


def test_text_that_is_no_chat(tiny: Served) -> None:
    inputs = tiny.processor(text=["Once upon a time", "x"], padding=True, return_tensors="pt")
    out = tiny.model.generate(**inputs, grammar=["there was", "end"], max_new_tokens=20, do_sample=False)
    for row in out[:, inputs["input_ids"].shape[1] :].tolist():
        assert tiny.processor.tokenizer.decode([i for i in row if i not in (EOS, PAD)]) in ("there was", "end")


def test_pipelines(demo: Served) -> None:
    chat = [{"role": "user", "content": "What is 17 + 25?"}]
    pipe = pipeline("text-generation", model=str(demo_checkpoint()))
    for grammar, right in ((re.compile("[0-9]+"), "[0-9]+"), ({"choices": ["yes", "no"]}, "yes|no")):
        said = pipe(chat, grammar=grammar, max_new_tokens=40)[0]["generated_text"][-1]["content"]
        assert re.fullmatch(right, said)
    pipe = pipeline("image-text-to-text", model=str(demo_checkpoint()))
    said = pipe(text=chat, generate_kwargs={"grammar": SCHEMA, "max_new_tokens": 60})[0]["generated_text"][-1][
        "content"
    ]
    check(said)
    with pytest.raises(ValueError, match="generate_kwargs"):
        pipe(text=chat, grammar=SCHEMA, max_new_tokens=60)


def test_refused_before_anything_is_decoded(tiny: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.model.lm_head, "forward", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"schema\.properties\.a cannot be enforced"):
        tiny.answers({"properties": {"a": {"not": {}}}})
    with pytest.raises(ValueError, match="continuous batching"):
        tiny.model.generate_batch([[1, 2, 3]], grammar=SCHEMA)
    with pytest.raises(ValueError, match="continuous batching"):
        tiny.answers(SCHEMA, cache_implementation="paged")
    monkeypatch.setattr(tiny.model, "name_or_path", str(tmp_path))
    tiny.model.__dict__.pop("_tokenizer_for_grammars", None)
    with pytest.raises(ValueError, match="tokenizer"):
        tiny.answers(SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "high"])
def test_random_schemas_with_the_demo(demo: Served, mode: str) -> None:
    torch.manual_seed(0)
    seeds = range(5000, 5012) if mode == "none" else range(5012, 5024)
    schemas = [random_schema(seed) for seed in seeds]
    answers = ask(demo.model, demo.processor, schemas, mode, sampled=mode == "high", tokens=300)
    said = {
        seed: verdict(demo.processor, schema, ids) for seed, schema, ids in zip(seeds, schemas, answers, strict=True)
    }
    assert {seed: each for seed, each in said.items() if each != "valid"} == {}
