"""Where rounding could show: answers with drafts in half precision, of stored weights, of long texts, in threads.

Models with random weights choose between tokens that are almost equally likely, in bfloat16 often exactly so.
"""

import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from torch.nn import functional as F

from modeling_small4 import Small4Config, Small4ForCausalLM, demo_checkpoint, drafts_sources
from modeling_small4.drafts_loading import drafting_for
from modeling_small4.drafts_pace import AnswerPace
from modeling_small4.training.draft import new_draft

GIVEN: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "pad_token_id": 11}


class Bold(AnswerPace):
    """Drafts as much as it can, however wrong."""

    def wants_draft(self, unread: int) -> bool:
        return True

    def worth_drafting(self, drafted: int, sure: float) -> bool:
        return drafted < 6

    def worth_checking(self, drafted: int, sure: float) -> bool:
        return drafted < 6


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_sources, "AnswerPace", Bold)


def prompt(length: int, rows: int = 1, seed: int = 0, low: int = 1000) -> torch.Tensor:
    return torch.randint(low, low + 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def near(model: Small4ForCausalLM) -> Small4ForCausalLM:
    """A draft that is right more often than not."""
    torch.manual_seed(1)
    draft = Small4ForCausalLM(model.config).to(model.dtype).eval()
    draft.load_state_dict(model.state_dict())
    with torch.no_grad():
        weight = draft.lm_head.weight
        weight += 0.02 * weight.std() * torch.randn_like(weight)
    return draft


@cache
def rounding_pair(seed: int) -> tuple[Small4ForCausalLM, Small4ForCausalLM]:
    """A model in bfloat16 and its draft."""
    model = random_model(seed, torch.bfloat16)
    return model, near(model)


def random_model(seed: int, dtype: torch.dtype) -> Small4ForCausalLM:
    torch.manual_seed(seed)
    return Small4ForCausalLM(Small4Config.from_pretrained(demo_checkpoint())).to(dtype).eval()


def products_are_of_each_row_alone(dtype: torch.dtype) -> bool:
    """Whether this machine's matrix products do not depend on how many rows they have."""
    for columns, rows in ((128, 128), (64, 256), (128, 2024), (256, 200)):
        x, weight = torch.randn(24, columns).to(dtype), torch.randn(rows, columns).to(dtype)
        alone = torch.cat([F.linear(x[row : row + 1], weight) for row in range(24)])
        if not all(torch.equal(F.linear(x[:count], weight), alone[:count]) for count in (2, 4, 7, 24)):
            return False
    return True


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "8 bits": {"cache_implementation": "latent_8bit"},
    "fixed": {"cache_implementation": "latent_static"},
    "chunks": {"prefill_chunk_size": 5},
    "penalty": {"repetition_penalty": 1.2},
}


# Several rows, of which one is padded, in every case; a single one where nothing else is set, and over a fixed cache.
@pytest.mark.parametrize(("rows", "case"), [*((3, case) for case in CASES), (1, "plain"), (1, "fixed")])
def test_bfloat16_answers_are_the_same_to_the_bit(rows: int, case: str) -> None:
    if not products_are_of_each_row_alone(torch.bfloat16):
        pytest.skip("this CPU's products of one row in bfloat16 round otherwise than those of several")
    accepted = 0
    for seed in range(2):
        (model, draft), ids = rounding_pair(seed), prompt(11, rows, seed)
        before = drafting_for(model, draft).pace.accepted
        mask = torch.ones_like(ids)
        mask[0, : 4 * (rows > 1)] = 0
        given = GIVEN | CASES[case] | {"input_ids": ids, "attention_mask": mask}
        plain = model.generate(**given, return_dict_in_generate=True, output_logits=True)
        drafted = model.generate(**given, return_dict_in_generate=True, output_logits=True, draft=draft)
        assert torch.equal(plain.sequences, drafted.sequences)
        assert torch.equal(torch.stack(plain.logits), torch.stack(drafted.logits))
        accepted += drafting_for(model, draft).pace.accepted - before
    assert accepted > 10


@pytest.mark.parametrize("form", ["fp8", "fp8 blocks", "nvfp4", "int4 32", "int4 zeros"])
def test_answers_of_stored_weights(tmp_path: Path, form: str) -> None:
    """In float32; in bfloat16 kernels for one token and for several round otherwise."""
    folder = stored_folder.write(tmp_path, form).stored
    model = Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(2)
    draft = new_draft(model).eval()
    for rows in (1, 3):
        given = GIVEN | {"input_ids": prompt(20, rows)}
        plain = model.generate(**given)
        for each in ("prompt_lookup", draft):
            assert torch.equal(plain, model.generate(**given, draft=each))


def test_answers_with_experts_on_the_disk(tmp_path: Path) -> None:
    folder = stored_folder.write(tmp_path, "nvfp4").stored
    whole = Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32, expert_memory="200KB").eval()
    given = GIVEN | {"input_ids": prompt(20)}
    drafted = model.generate(**given, draft="prompt_lookup")
    assert torch.equal(model.generate(**given), drafted)
    assert torch.equal(whole.generate(**given), drafted)
    assert drafting_for(model, "prompt_lookup").pace.costs.share == 1.0


def test_answers_beyond_8192_tokens() -> None:
    config = Small4Config.from_pretrained(demo_checkpoint())
    config.text_config.max_position_embeddings = 16384
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), config=config, dtype=torch.float32).eval()
    torch.manual_seed(0)
    ids = prompt(8300)
    given = GIVEN | {"input_ids": ids}
    plain = model.generate(**given)
    for draft in ("prompt_lookup", new_draft(model).eval()):
        assert torch.equal(plain, model.generate(**given, draft=draft))


def test_several_answers_scores_and_log_probabilities() -> None:
    model = random_model(4, torch.float32)
    draft = near(model)
    for more in ({"do_sample": False}, {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9, "top_k": 20}):
        found = []
        for given in (None, draft):
            torch.manual_seed(9)
            found.append(
                model.generate(
                    prompt(12, 2), **GIVEN, **more, draft=given, return_dict_in_generate=True, output_scores=True
                )
            )
        assert torch.equal(found[0].sequences, found[1].sequences)
        said = [model.compute_transition_scores(each.sequences, each.scores, normalize_logits=True) for each in found]
        torch.testing.assert_close(*said, atol=1e-4, rtol=1e-4)


def test_two_threads_share_a_draft() -> None:
    model = random_model(5, torch.float32)
    draft, prompts = near(model), [prompt(12, 1, seed) for seed in range(6)]
    expected = [model.generate(ids, **GIVEN) for ids in prompts]
    got: dict[int, torch.Tensor] = {}

    def run(number: int) -> None:
        got[number] = model.generate(prompts[number], **GIVEN, draft=draft)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[number], expected[number]) for number in range(6))


SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "top_k": {"top_k": 4},
    "top_p": {"top_k": 0, "top_p": 0.8},
    "temperature": {"top_k": 0, "temperature": 0.6},
    "penalty": {"top_k": 0, "repetition_penalty": 1.4},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampled_pairs_have_the_distribution_of_plain_sampling(name: str) -> None:
    """Chi-squared, 20,000 draws of two tokens of a vocabulary of 7, against exact probabilities of plain decoding."""
    sampling = SAMPLING[name]
    text = {"vocab_size": 7, "hidden_size": 32, "num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
    text |= {"intermediate_size": 32, "moe_intermediate_size": 16, "num_attention_heads": 2, "q_lora_rank": 16}
    text |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "pad_token_id": 0}
    torch.manual_seed(0)
    model = Small4ForCausalLM(Small4Config(text_config=text, vision_config=None, pad_token_id=0)).float().eval()
    with torch.no_grad():
        model.lm_head.weight *= 12
    draft = near(model)
    ids, draws = torch.tensor([[3, 5, 1]]), 20_000
    given = {"do_sample": True, "max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0, **sampling}
    torch.manual_seed(1)
    counts = torch.zeros(7, 7)
    for _ in range(draws // 2500):  # rows of a batch are drawn independently
        out = model.generate(ids.expand(2500, -1), **given, draft=draft)
        counts += torch.bincount(out[:, 3] * 7 + out[:, 4], minlength=49).view(7, 7)
    first = _chances(model, ids, sampling)
    exact = torch.stack(
        [
            first[0, token] * _chances(model, torch.cat((ids, torch.tensor([[token]])), 1), sampling)[0]
            for token in range(7)
        ]
    )
    expected = draws * exact
    usual = expected > 5
    statistic = float(((counts - expected)[usual].square() / expected[usual]).sum())
    freedom = int(usual.sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    assert counts[exact == 0].sum() == 0


def _chances(model: Small4ForCausalLM, ids: torch.Tensor, sampling: dict[str, Any]) -> torch.Tensor:
    """Worked out here: penalty, temperature, top_k, top_p in transformers' order."""
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, -1].double()
    if (penalty := sampling.get("repetition_penalty")) is not None:
        for token in set(ids[0].tolist()):
            scores[0, token] = scores[0, token] * penalty if scores[0, token] < 0 else scores[0, token] / penalty
    scores = scores / sampling.get("temperature", 1.0)
    if top_k := sampling["top_k"]:
        scores[scores < scores.topk(top_k).values[:, -1:]] = -torch.inf
    if (top_p := sampling.get("top_p")) is not None:
        ordered, order = scores.softmax(-1)[0].sort()
        scores[0, order[ordered.cumsum(0) <= 1 - top_p]] = -torch.inf
    return scores.softmax(-1).float()
