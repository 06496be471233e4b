"""Decoding with drafts answers as plain decoding does, whatever drafts: caches, modes, batches, streams, samples."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from modeling_small4 import Small4ForCausalLM, demo_checkpoint, drafts_sources
from modeling_small4.drafts_decoding import Choosing
from modeling_small4.drafts_eagle import Small4EagleDraft
from modeling_small4.drafts_loading import drafting_for, paces
from modeling_small4.drafts_pace import AnswerPace
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.training.draft import new_draft

QUESTIONS = ["What is 482 + 759?", "Reverse the word dolphin.", "Hello!", "What is 9 - 4?"]


class Bold(AnswerPace):
    """Drafts as much as it can, however wrong."""

    def wants_draft(self, unread: int) -> bool:
        return True

    def worth_drafting(self, drafted: int, sure: float) -> bool:
        return drafted < 5

    def worth_checking(self, drafted: int, sure: float) -> bool:
        return drafted < 5


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Small4Processor:
    return AutoProcessor.from_pretrained(demo_checkpoint())


@pytest.fixture(scope="module")
def drafts(model: Small4ForCausalLM) -> dict[str, Any]:
    """Of every kind: untrained ones are mostly wrong, the model itself is right, one in bfloat16 is mostly right."""
    torch.manual_seed(3)
    rounded = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.bfloat16).eval()
    return {"lookup": "prompt_lookup", "eagle": new_draft(model).eval(), "itself": model, "rounded": rounded}


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft drafts, also where that does not pay."""
    monkeypatch.setattr(drafts_sources, "AnswerPace", Bold)


def prompts(processor: Small4Processor, questions: list[str], mode: str = "high") -> dict[str, torch.Tensor]:
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False, reasoning_mode=mode
        )
        for question in questions
    ]
    return dict(processor(text=texts, return_tensors="pt", padding=True))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mode": {"reasoning_mode": "high"},
    "none": {"reasoning_mode": "none"},
    "budget": {"reasoning_mode": "high", "max_thinking_tokens": 7},
    "cut": {"max_new_tokens": 9},
    "one token": {"max_new_tokens": 1},
    "8 bits": {"cache_implementation": "latent_8bit"},
    "fixed": {"cache_implementation": "latent_static"},
    "fixed, 8 bits": {"cache_implementation": "latent_static_8bit"},
    "host's static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 7},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 0},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4},
    "at least": {"min_new_tokens": 30},
    "latency": {"preset": "latency"},
}


# A draft that is right now and then, to one prompt, and one with a cache of its own, to several, in every case; one
# that is always right where answers end, and one without a model where prompts and tokens are counted.
KINDS = {
    "rounded": list(CASES),
    "eagle": list(CASES),
    "itself": ["plain", "budget", "cut", "one token", "at least"],
    "lookup": ["plain", "several", "chunks", "penalty"],
}
ROWS = {"rounded": (1,), "eagle": (4,), "itself": (1, 4), "lookup": (1, 4)}


@pytest.fixture(scope="module")
def answer(model: Small4ForCausalLM, processor: Small4Processor) -> Callable[..., torch.Tensor]:
    """Answers to the first questions in a case; without a draft they are found once."""

    def found(case: str, count: int, draft: Any = None) -> torch.Tensor:
        given = prompts(processor, QUESTIONS[:count]) | {"max_new_tokens": 24} | CASES[case]
        torch.manual_seed(5)
        return model.generate(**given, **({} if draft is None else {"draft": draft}))

    plain = cache(found)
    return lambda case, count, draft=None: plain(case, count) if draft is None else found(case, count, draft)


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in KINDS.items() for case in cases])
def test_answers_are_those_without_a_draft(answer: Any, drafts: dict[str, Any], kind: str, case: str) -> None:
    for count in (1, 4) if case == "plain" else ROWS[kind]:
        assert torch.equal(answer(case, count), answer(case, count, drafts[kind]))


def test_drafts_are_accepted_and_spare_forwards(
    model: Small4ForCausalLM, processor: Small4Processor, drafts: dict[str, Any]
) -> None:
    pace = drafting_for(model, drafts["itself"]).pace
    pace.drafted = pace.accepted = pace.forwards = 0
    out = model.generate(**prompts(processor, QUESTIONS[:1]), draft=drafts["itself"])
    assert pace.acceptance > 0.8
    assert pace.forwards < out.shape[1] / 4
    assert "Small4ForCausalLM" in paces(model)


@pytest.mark.parametrize("kind", ["lookup", "eagle", "rounded"])
def test_streamer_criteria_scores_and_cache_are_those_without_a_draft(
    model: Small4ForCausalLM, processor: Small4Processor, drafts: dict[str, Any], kind: str
) -> None:
    class Streamer(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[list[int]] = []

        def put(self, value: torch.Tensor) -> None:
            self.pieces.append(value.flatten().tolist())

        def end(self) -> None:
            self.pieces.append([])

    class Seen(StoppingCriteria):
        def __init__(self) -> None:
            self.lengths: list[int] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            self.lengths.append(input_ids.shape[1])
            return torch.tensor([len(self.lengths) > 20])

    seen = []
    for draft in (None, drafts[kind]):
        streamer, criterion = Streamer(), Seen()
        out = model.generate(
            **prompts(processor, QUESTIONS[:1]), draft=draft, streamer=streamer, return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([criterion]), output_scores=True, output_logits=True,
        )  # fmt: skip
        seen.append((streamer.pieces, criterion.lengths, out))
    plain, drafted = seen[0][2], seen[1][2]
    assert seen[0][:2] == seen[1][:2]
    assert torch.equal(plain.sequences, drafted.sequences)
    assert plain.cache.get_seq_length() == drafted.cache.get_seq_length()
    assert len(plain.scores) == len(drafted.scores)
    assert len(plain.logits) == len(drafted.logits)
    torch.testing.assert_close(torch.stack(plain.logits), torch.stack(drafted.logits), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["lookup", "eagle", "rounded"])
def test_stop_strings_grammar_and_going_on(
    model: Small4ForCausalLM, processor: Small4Processor, drafts: dict[str, Any], kind: str
) -> None:
    pytest.importorskip("llguidance")
    given = prompts(processor, QUESTIONS[:1]) | {"tokenizer": processor.tokenizer}
    for case in ({"stop_strings": ["+1="]}, {"grammar": ["yes", "1241", "never"], "reasoning_mode": "high"}):
        plain, drafted = (model.generate(**given, **case, draft=draft) for draft in (None, drafts[kind]))
        assert torch.equal(plain, drafted)
    first = model.generate(**prompts(processor, QUESTIONS[:1]), return_dict_in_generate=True, draft=drafts[kind])
    more = torch.cat((first.sequences, processor(text=["[INST]Hello![/INST]"], return_tensors="pt")["input_ids"]), 1)
    plain = model.generate(input_ids=more, max_new_tokens=12)
    assert torch.equal(plain, model.generate(input_ids=more, max_new_tokens=12, cache=first.cache, draft=drafts[kind]))


@pytest.mark.parametrize("kind", ["lookup", "eagle", "itself"])
def test_pictures(model: Small4ForCausalLM, processor: Small4Processor, drafts: dict[str, Any], kind: str) -> None:
    from PIL import Image

    picture = Image.new("RGB", (56, 84), (200, 30, 30))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Which color is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt", reasoning_mode="high",
    )  # fmt: skip
    plain, drafted = (model.generate(**inputs, max_new_tokens=24, draft=draft) for draft in (None, drafts[kind]))
    assert torch.equal(plain, drafted)


def test_samples_have_the_distribution_of_the_model() -> None:
    """Chi-squared, 20,000 draws: each token along a draft is drawn from the scores that the model has there."""
    torch.manual_seed(1)
    logits, draws = 1.5 * torch.randn(1, 4, 9), 20_000
    draft = logits[:, :3].argmax(-1)
    settings = GenerationConfig(do_sample=True)
    counts = torch.zeros(4, 9)
    for _ in range(draws):
        start = torch.tensor([[1, 2]])
        chosen = Choosing(start, LogitsProcessorList(), StoppingCriteriaList(), settings, None)
        taken = chosen.choose_along(logits, draft)
        assert chosen.ids[0, 2 : 1 + taken].tolist() == draft[0, : taken - 1].tolist()
        counts[torch.arange(taken), chosen.ids[0, 2:]] += 1
    for place in range(4):
        drawn = counts[place].sum()
        expected = drawn * logits[0, place].softmax(-1)
        usual = expected > 5
        statistic = float(((counts[place] - expected)[usual].square() / expected[usual]).sum())
        freedom = int(usual.sum()) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    assert all(counts[place + 1].sum() == counts[place, draft[0, place]] > 500 for place in range(3))


def test_mistakes_are_told(
    model: Small4ForCausalLM, processor: Small4Processor, drafts: dict[str, Any], tmp_path: Path
) -> None:
    given = prompts(processor, QUESTIONS[:1])
    with pytest.raises(ValueError, match="no folder"):
        model.generate(**given, draft="/nowhere")
    with pytest.raises(ValueError, match="holds no draft"):
        model.generate(**given, draft=str(tmp_path))
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(**given, draft="prompt_lookup", num_beams=2)
    with pytest.raises(ValueError, match="use_cache"):
        model.generate(**given, draft="prompt_lookup", use_cache=False)
    with pytest.raises(ValueError, match="assistant_model"):
        model.generate(**given, draft="prompt_lookup", assistant_model=model)
    with pytest.raises(ValueError, match="give an EAGLE draft"):
        model.generate(**given, draft=["prompt_lookup"])
    config = drafts["eagle"].config.__class__(**drafts["eagle"].config.to_dict() | {"hidden_size": 64})
    with pytest.raises(ValueError, match="hidden_size 64"):
        model.generate(**given, draft=Small4EagleDraft(config))
