"""Evaluation: the metric from disk and offline, answers in batches beside answers one by one, calls against schemas,
use of experts.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from model_card.demo_recipe.batches import chat, tools
from model_card.demo_recipe.tasks.judge import correct
from model_card.evals import answers, lm_harness, scores
from model_card.evals.demo_checkpoint import flat, held_out
from model_card.evals.expert_use import expert_use
from model_card.evals.wilson_accuracy import wilson
from modeling_small4 import demo_checkpoint
from modeling_small4.moe import Small4TopkRouter
from tests.chat_options import ENCODED, PROMPT

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(demo_checkpoint())


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "rows"), [(8, 10), (97, 100), (0, 20), (20, 20)])
def test_wilson_bounds_solve_the_score_equation(right: int, rows: int) -> None:
    # The bounds are the p whose distance to the share seen is z standard errors of p itself.
    for bound in wilson(right, rows):
        assert (right / rows - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / rows, abs=1e-9)
    low, high = wilson(right, rows)
    assert 0 <= low <= right / rows <= high <= 1
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_metric_loads_through_evaluate_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a network was asked for")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    scores.metric.cache_clear()
    found = scores.metric().compute(predictions=["4", "5", "6", "7"], references=["4", "5", "6", "8"])
    assert (found["accuracy"], found["right"], found["rows"]) == (0.75, 3, 4)
    assert found["interval_95"] == pytest.approx(wilson(3, 4))
    assert scores.share([True, False]) == {
        "rows": 2,
        "accuracy": 0.5,
        "interval_95": [round(b, 4) for b in wilson(1, 2)],
    }


def test_a_summary_counts_right_answers_and_all_tokens() -> None:
    rows = [{"task": "arithmetic", "answer": "12", "messages": [{"tool_calls": ""}]}] * 2
    given = [
        {"message": {"content": text, "tool_calls": []}, "prompt_tokens": 10, "thinking_tokens": n, "new_tokens": 2 * n,
        "seconds": 0.5}
        for n, text in ((4, "12"), (8, "13"))
    ]  # fmt: skip
    found = scores.summary(rows, given)
    assert {key: found[key] for key in ("rows", "accuracy", "prompt_tokens", "thinking_tokens", "new_tokens",
        "tokens_per_second")} == {
        "rows": 2, "accuracy": 0.5, "prompt_tokens": 10, "thinking_tokens": 6, "new_tokens": 12,
        "tokens_per_second": 24,
    }  # fmt: skip


SCHEMA = {
    "function": {
        "name": "add",
        "parameters": {
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "why": {"type": "string"}},
            "required": ["a", "b"],
        },
    }
}


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("add", {"a": 1, "b": 2}, True), ("add", {"a": 1, "b": 2, "why": "so"}, True), ("add", {"a": 1}, False),
        ("add", {"a": 1, "b": "2"}, False),
        ("add", {"a": 1, "b": True}, False), ("add", {"a": 1, "b": 2, "c": 3}, False), ("add", '{"a": 1', False),
        ("sub", {"a": 1, "b": 2}, False),
    ],
)  # fmt: skip
def test_calls_are_held_to_the_schemas_that_are_offered(name: str, arguments: Any, valid: bool) -> None:
    row = {"tools": json.dumps([SCHEMA])}
    call = {"function": {"name": name, "arguments": arguments}}
    assert scores.valid_calls(row, {"tool_calls": [call]}) is valid
    assert not scores.valid_calls(row, {"tool_calls": []})
    assert not scores.valid_calls({"tools": ""}, {"tool_calls": [call]})


# -- answers -----------------------------------------------------------------------------------------------------------


def test_batches_hold_every_row_once_and_like_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BATCH_TOKENS", 100)
    lengths = [7, 300, 20, 21, 19, 60, 5, 50, 50]
    batches = list(answers.alike(lengths, 3))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) <= 3 and len(batch) * longest <= 100)
    assert [lengths[batch[-1]] for batch in batches] == sorted(lengths[batch[-1]] for batch in batches)
    assert list(answers.alike([], 3)) == []


@pytest.mark.parametrize("mode", ["none", "high"])
@pytest.mark.parametrize("task", ["arithmetic", "tools", "picture"])
def test_answers_in_batches_are_those_of_single_prompts(model: Any, processor: Any, task: str, mode: str) -> None:
    rows = held_out(task, mode, 4)
    given = answers.measured_answers(model, processor, rows, 3, mode, 24)
    for row, one in zip(rows, given, strict=True):
        inputs = processor.apply_chat_template(chat(row)[:-1], tools=tools(row), reasoning_mode=mode, **PROMPT)
        out = model.generate(**inputs, reasoning_mode=mode, max_thinking_tokens=24)[0, inputs["input_ids"].shape[1] :]
        ids = out.tolist()
        assert one["message"] == processor.parse_response(ids)
        assert (one["prompt_tokens"], one["new_tokens"]) == (inputs["input_ids"].shape[1], len(ids))
        thought = ids[ids.index(34) + 1 : ids.index(35)] if mode == "high" else []
        assert one["thinking_tokens"] == len(thought) <= 24
        assert one["seconds"] > 0


def test_held_out_rows_are_the_same_in_both_modes() -> None:
    direct, thought = (held_out("puzzle", mode, 5) for mode in ("none", "high"))
    assert [row["answer"] for row in direct] == [row["answer"] for row in thought]
    assert [row["messages"][-2] for row in direct] == [row["messages"][-2] for row in thought]
    assert {row["mode"] for row in direct} == {"none"}
    lengths = [len(row["messages"][-2]["content"].split()) for row in held_out("retrieval", "high", 2, context=2048)]
    assert min(lengths) > 800


def test_tables_name_what_is_nested() -> None:
    assert flat({"a": {"x": {"accuracy": 1}, "y": {"accuracy": 2}}}) == {
        "a / x": {"accuracy": 1},
        "a / y": {"accuracy": 2},
    }


# -- experts -----------------------------------------------------------------------------------------------------------


def test_use_of_experts_is_what_routers_choose_for_each_token(model: Any, processor: Any) -> None:
    rows = [*held_out("arithmetic", "high", 3), *held_out("picture", "none", 2)]
    counts: list[list[int]] = [[] for _ in range(model.config.text_config.num_hidden_layers)]
    routers = [module for module in model.modules() if isinstance(module, Small4TopkRouter)]
    hooks = [
        router.register_forward_hook(lambda m, i, out, kept=kept: kept.extend(out[2].flatten().tolist()))
        for router, kept in zip(routers, counts, strict=True)
    ]
    for row in rows:  # one by one, without padding
        inputs = processor.apply_chat_template(chat(row), reasoning_mode=row["mode"], **ENCODED)
        with torch.inference_mode():
            model(**inputs)
    for hook in hooks:
        hook.remove()
    found = expert_use(model, processor, rows, batch=2)
    experts = model.config.text_config.n_routed_experts
    for layer, chosen in zip(found, counts, strict=True):
        assert layer == pytest.approx([chosen.count(expert) / len(chosen) for expert in range(experts)], abs=2e-3)
        assert sum(layer) == pytest.approx(1, abs=1e-3)


# -- lm-evaluation-harness
# -------------------------------------------------------------------------------------------------


def test_the_harness_data_is_what_the_generators_make() -> None:
    assert lm_harness.DATA.read_text("utf-8").splitlines() == [line.rstrip("\n") for line in lm_harness.lines()]


@pytest.mark.slow
def test_the_harness_scores_as_the_judge_does(model: Any, processor: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    root, out = lm_harness.FOLDER.parents[2], tmp_path / "lm_eval.json"
    command = [sys.executable, "-m", "model_card.evals.lm_harness", "--limit", "12", "--out", str(out)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    stored = json.loads(out.read_text("utf-8"))
    asked = [json.loads(line) for line in lm_harness.DATA.read_text("utf-8").splitlines()[:12]]
    for mode, score in stored["modes"].items():
        right = 0
        for row in asked:
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": row["question"]}], reasoning_mode=mode, **PROMPT
            )
            ids = model.generate(**inputs, reasoning_mode=mode)[0, inputs["input_ids"].shape[1] :]
            wanted = {"task": row["kind"], "answer": row["answer"], "messages": [{"tool_calls": ""}]}
            right += correct(wanted, processor.parse_response(ids))
        assert score == {
            "exact_match": pytest.approx(right / 12),
            "standard_error": score["standard_error"],
            "rows": 12,
        }
