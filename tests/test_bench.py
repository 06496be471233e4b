"""Benchmarks of the model run at tiny sizes: they check both sides, and their rows have the numbers that tables and
plots read.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from transformers import AutoProcessor

from model_card.bench import (
    decode,
    drafts,
    experts,
    gpu,
    harness,
    load,
    predecessor,
    residency,
    stored_memory,
    stored_products,
    train_step,
    vision,
    vllm_engine,
)
from modeling_small4 import Small4ForCausalLM, demo_checkpoint
from modeling_small4.planner.sizes import tensors

TEXT: dict[str, Any] = {
    "hidden_size": 64, "moe_intermediate_size": 32, "num_attention_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "num_experts_per_tok": 2,
}  # fmt: skip
CPU = torch.device("cpu")


def arguments(**given: Any) -> Namespace:
    return Namespace(
        **{"device": CPU, "dtype": torch.float32, "runs": 1, "budget": 5.0, "threads": 1, "out": None} | given
    )


def positive(row: dict[str, Any], *keys: str) -> None:
    assert all(row[key] > 0 for key in keys), row


def test_decoding_and_prefill() -> None:
    args = arguments(host_context=64)
    ours, host = decode.build(6, args.dtype, CPU, **TEXT)
    with torch.inference_mode():
        row, alone = (decode.decoded(args, ours, host, context) for context in (48, 80))
        whole = decode.prefilled(args, ours, host, 33)
    assert row["relative_error"] < 1e-5
    assert whole["relative_error"] < 1e-5
    assert row["cache_bytes"] >= 48 * 48 * 4
    positive(row, "ours_ms", "transformers_ms", "speedup_transformers")
    positive(whole, "ours_ms", "transformers_ms", "speedup_transformers")
    assert "transformers_ms" not in alone
    positive(alone, "ours_ms")


def test_experts() -> None:
    args = arguments(copies=1e6)
    module = experts.build(6, args.dtype, CPU, hidden_size=64, moe_intermediate_size=32)
    with torch.inference_mode():
        few, many = (experts.measured(args, module, tokens) for tokens in (1, 40))
    positive(few, "ours_ms", "eager_ms", "grouped_mm_ms", "batched_mm_ms", "speedup_best")
    assert "batched_mm_ms" not in many, "its copies would take 40 * 4 * 16,384 bytes"
    assert few["ours_error"] < 1e-5


def test_experts_that_are_wrong_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = experts.build(6, torch.float32, CPU, hidden_size=64, moe_intermediate_size=32)
    monkeypatch.setattr(type(module), "forward", lambda self, hidden, *rest: hidden)
    monkeypatch.setattr(experts, "theirs", lambda name, module, hidden, *rest: hidden)
    with torch.inference_mode(), pytest.raises(SystemExit, match="nothing was timed"):
        experts.measured(arguments(copies=0), module, 3)


def test_predecessor() -> None:
    args = arguments(latency=[16], batches=[3], context=16, prefill=[20], head=50)
    large = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    with torch.inference_mode():
        rows = predecessor.measured(args, predecessor.build(args, TEXT | {"n_routed_experts": 6}, large))
    assert list(rows) == ["latency, context 16", "decoding, batch 3", "reading 20 tokens"]
    for row in rows.values():
        assert row["ours_ms"] == pytest.approx(36 * row["layer"]["ours_ms"] + row["head"]["ours_ms"])
        assert row["transformers_ms"] == pytest.approx(
            40 * row["layer"]["transformers_ms"] + row["head"]["transformers_ms"]
        )
        positive(row, "same_kernel_ms", "latency_to_transformers", "throughput_to_same_kernel")


def test_predecessor_has_24_billion_parameters() -> None:
    """23,572,403,200 parameters of text, as published: embedding, 40 layers, norm and head."""
    config = predecessor.MistralConfig(num_hidden_layers=1, vocab_size=8, **predecessor.SMALL3)
    with torch.device("meta"):
        layer = predecessor.MistralModel(config).layers[0]
    each = sum(parameter.numel() for parameter in layer.parameters())
    assert 2 * predecessor.HEAD * 5120 + predecessor.LAYERS["theirs"] * each + 5120 == 23_572_403_200


def test_vision() -> None:
    args = arguments(layers=1, mask=1e5)
    towers = vision.build(args, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    with torch.inference_mode():
        one, four = (vision.measured(args, towers, count, 112, True) for count in (1, 4))
    assert one["patches"] == 64
    assert one["relative_error"] < 1e-4
    positive(one, "ours_ms", "transformers_ms")
    assert four["transformers_mask_bytes"] == 256**2 * 4
    assert "transformers_ms" not in four


def test_loading(tmp_path: Path) -> None:
    text = TEXT | {"n_routed_experts": 4, "num_hidden_layers": 2, "vocab_size": 64}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert load.make(tmp_path, text, small) > 1e5
    found = [load.one(side, tmp_path, "float32") for side in load.SIDES]
    positive(found[0], "loaded_s", "touched_s")
    torch.testing.assert_close(*(torch.tensor(each["logits"]) for each in found), atol=1e-4, rtol=1e-4)


def test_training_step() -> None:
    sizes = TEXT | {"n_routed_experts": 4, "num_hidden_layers": 2, "vocab_size": 128}
    row = train_step.measured(arguments(batch=2, length=16), sizes)
    assert row["relative_error"] < 1e-3
    positive(row, "ours_tokens_per_s", "transformers_tokens_per_s")
    assert train_step.memory("ours", arguments(batch=2, length=16), sizes)["peak_bytes"] > 0


@torch.no_grad()
def test_wider_heads_compute_the_same() -> None:
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    wide = vllm_engine.widened(model, 64)
    assert wide.config.text_config.qk_nope_head_dim + wide.config.text_config.qk_rope_head_dim == 64
    ids = torch.randint(1000, 2000, (2, 90), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_runs_are_taken_in_turns_and_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    times = iter([5.0, 5.0, 2.0, 1.0, 1.0, 4.0, 3.0, 1.0])
    monkeypatch.setattr(harness, "seconds", lambda run, device: (run(), next(times))[1])
    ways = {name: lambda name=name: calls.append(name) for name in ("ours", "other")}
    row = harness.interleaved(arguments(runs=3, budget=100), **ways)
    assert calls == ["ours", "other", "other", "ours"] * 2
    assert row == {"ours_ms": 1e3, "other_ms": 3e3, "speedup_other": 3.0, "runs": 3}
    times = iter([40.0, 80.0])
    assert harness.interleaved(arguments(runs=3, budget=60), **ways)["speedup_other"] == 2.0


def test_peak_memory_sees_what_a_run_held() -> None:
    held = 64 * 2**20
    assert harness.peak_bytes(lambda: torch.ones(held // 4).sum(), CPU) == pytest.approx(held, rel=0.2)


def test_outputs_that_differ_end_a_benchmark() -> None:
    with pytest.raises(SystemExit, match="nothing was timed"):
        harness.relative_error(torch.ones(5), torch.full((5,), 1.1), "a test")
    with pytest.raises(SystemExit, match="nothing was timed"):
        harness.relative_error(torch.full((5,), torch.nan), torch.ones(5), "a test")


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "model_card.bench.experts"])
    args = arguments(out=tmp_path / "new" / "x.json", runs=2)
    harness.report(args, {"rows": {"long name": {"a": 1.25}, "b": {"a": 2.0, "c": 3.0}}}, {"a": "8.2f", "c": "8.1f"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["long", "name", "1.25", "-"]
    stored = json.loads(args.out.read_text())
    assert json.loads(lines[-1]) == stored
    assert stored["rows"]["b"]["c"] == 3.0
    assert stored["settings"]["runs"] == 2
    assert {"command", "commit", "date", "machine", "versions", "device"} <= stored.keys()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("form", stored_memory.FORMS)
def test_a_stored_checkpoint_takes_what_the_planner_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Smaller than the stored result's, which agrees within 1 %; here what a process allots for itself shows more.
    Peaks scatter: what one process does not show has to be the median of three.
    """
    if torch.version.cuda is None:  # a forked process counts code that its parent has; CUDA builds bring in more of it
        monkeypatch.setattr(stored_memory, "child", forked.child)
    for runs in (1, 3):
        (tmp_path / f"{runs}").mkdir()
        monkeypatch.setattr(stored_memory, "RUNS", runs)
        args = arguments(layers=3, experts=16, prompt=96, cold=True)
        row = stored_memory.measured(args, tmp_path / f"{runs}", form)
        if 0.92 < row["peak_to_planned"] < 1.08:
            break
    expanded = sum(2 * tensor.count for tensor in tensors(stored_memory.scaled_down(3, 16)))
    assert row["stored_bytes"] < row["peak_bytes"] < 0.8 * expanded
    assert 0.92 < row["peak_to_planned"] < 1.08


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("form", stored_products.FORMS)
def test_products_of_stored_weights(form: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args, shapes = arguments(dtype=torch.bfloat16, copies=2), [(128, 256), (256, 128), (130, 256)]
    with torch.inference_mode():
        row = stored_products.measured(args, form, shapes, tokens)
    positive(row, "ours_ms", "bfloat16_ms", "speedup_bfloat16", "bytes", "runs")
    assert 0 <= row["error"] < 0.004
    right = stored_products.products
    monkeypatch.setattr(stored_products, "products", lambda *given: [1.01 * out for out in right(*given)])
    with pytest.raises(SystemExit, match=f"{form} differs by"):
        stored_products.measured(args, form, shapes, tokens)


def test_result_of_stored_products(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stored_products, "EXPERTS", [(128, 256), (256, 128)])
    monkeypatch.setattr(stored_products, "ATTENTION", [(64, 256)])
    out = tmp_path / "stored_products.json"
    monkeypatch.setattr(sys, "argv", f"x --tokens 1 20 --forms fp8 nvfp4 --runs 1 --threads 1 --out {out}".split())
    stored_products.main()
    found = json.loads(out.read_text())
    names = {
        f"{part}, {form}, {n} tokens" for part in ("experts", "attention") for form in ("fp8", "nvfp4") for n in (1, 20)
    }
    assert set(found["rows"]) == names
    assert {"kernels", "fused_tokens", "cpu", "command", "commit", "machine", "versions"} <= set(found)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is read from /proc")
def test_what_is_measured_on_a_gpu_runs_without_one(tmp_path: Path) -> None:
    with torch.inference_mode():
        rows = gpu.measured(arguments(dtype=torch.bfloat16, small=True, budget=0.1), tmp_path)
    assert not [row["failed"] for row in rows.values() if "failed" in row]
    assert rows["demo"]["equal"]
    for form in stored_memory.FORMS:
        positive(rows[f"memory, {form}"], "peak_bytes", "planned_bytes")
        for name in (f"prefill of 64, {form}", f"decode at 64, {form}"):
            positive(rows[name], "ours_ms", "bfloat16_ms", "speedup_bfloat16")
    assert {"experts, nvfp4, 1 tokens", "_scaled_mm, 16 tokens"} <= set(rows)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_leaves_the_others_alone() -> None:
    assert gpu.tried("kernels", lambda: {}["none"]) == {"kernels": {"failed": "KeyError: 'none'"}}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the file cache cannot be dropped")
def test_bytes_of_experts_that_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of 8 experts, 50 MB; what is read is what misses explain, if the file system counts it."""
    monkeypatch.setattr(residency, "child", forked.child)
    residency.write(tmp_path, 1, 8, hidden_size=1024, moe_intermediate_size=1024)
    rows = residency.measured(arguments(shares=[0.5], tokens=8, threads=1, runs=1), tmp_path)
    half, above = rows["50% of the experts"], rows["50% on an accelerator"]
    assert half["mb"] < 1.1 * half["need_mb"] + 1
    assert 0 < half["hit_rate"] < 1
    assert half["resident_gb"] < 0.5
    assert 0 < above["need_mb"] <= above["copied_mb"] <= 2 * above["need_mb"]
    assert above["fewer_copied"] > 2
    assert residency.disk_rate(tmp_path, 0.1) > 0


def test_drafts() -> None:
    """One problem of a task: what drafts cost and spare, and that answers are equal."""
    args = arguments(rows=1, cpu_time=True, dtype=torch.float32)
    model = Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=args.dtype).eval()
    given: dict[str, Any] = drafts.drafts_of(args)
    row: dict[str, Any] = drafts.measure(model, AutoProcessor.from_pretrained(demo_checkpoint()), "talk", given, args)
    for name in given:
        assert row[f"equal_{name}"] == row["answers"] == 1
        positive(row, f"speedup_{name}", f"speedup_with_prompt_{name}", f"tokens_a_forward_{name}")
    assert row["accepted_wrong"] == 0
