"""Benchmarks of LoRA on weights that are held as stored, at tiny sizes."""

import json
from argparse import Namespace
from pathlib import Path

import forked
import pytest
import torch
from small4_conversion.convert import Options, convert

from model_card.bench import lora_held, lora_step, loss_chunks
from model_card.bench.stored_memory import FORMS, write
from modeling_small4 import demo_checkpoint

SIZES = {"hidden_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 2, "q_lora_rank": 128,
         "kv_lora_rank": 128}  # fmt: skip


def arguments(**given: object) -> Namespace:
    common = {"device": torch.device("cpu"), "dtype": torch.float32, "runs": 1, "budget": 5.0, "threads": 1}
    return Namespace(**common | {"batch": 2, "length": 24} | given)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_on_each_side(form: str, tmp_path: Path) -> None:
    write(tmp_path / form, lora_step.layer(4, SIZES), form)
    row = lora_step.measured(arguments(), tmp_path / form)
    assert row["relative_error"] < 1e-3
    assert all(row[f"{side}_tokens_per_s"] > 0 for side in ("ours", "bfloat16", "transformers"))
    found = {side: lora_step.memory(side, tmp_path / form, arguments()) for side in ("held", "bfloat16")}
    assert found["held"]["adapter_bytes"] == found["bfloat16"]["adapter_bytes"]
    assert found["held"]["base_bytes"] < found["bfloat16"]["base_bytes"]


def test_sides_that_differ_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "fp8", lora_step.layer(4, SIZES), "fp8")
    monkeypatch.setattr(lora_step, "trained_like", _doubled)
    with pytest.raises(SystemExit, match="nothing was timed"):
        lora_step.measured(arguments(), tmp_path / "fp8")


def _doubled(trainer: lora_step.Trainer) -> dict[str, torch.nn.Parameter]:
    found = {lora_step._name(name): parameter for name, parameter in trainer.trained.items()}
    for parameter in found.values():
        assert parameter.grad is not None
        parameter.grad = 2 * parameter.grad
    return found


def test_the_loss_in_chunks() -> None:
    args = arguments(tokens=20, chunks=[3, 50])
    rows = loss_chunks.measured(args, loss_chunks.Head(args, width=16, words=40))
    assert list(rows) == ["3 tokens", "50 tokens"]
    assert all(row["relative_error"] < 1e-5 and row["at_once_ms"] > 0 for row in rows.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is read from /proc")
def test_learning_on_held_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_held, "child", forked.child)
    args = Namespace(
        model=demo_checkpoint(), steps=2, batch=4, share=0.5, rows=2, forms=["int4", "fp8_shared"], threads=1, at_once=1
    )
    row, shared = lora_held.measured(args)["rows"].values()
    convert(demo_checkpoint(), tmp_path / "int4", Options(dtype="int4"))
    header = 8 + int.from_bytes((tmp_path / "int4" / "model.safetensors").read_bytes()[:8], "little")
    assert row["stored_bytes"] == (tmp_path / "int4" / "model.safetensors").stat().st_size - header
    for found in (row, shared):
        assert found["adapter_bytes"] == 4 * found["trained_parameters"]
    assert shared["adapter_bytes"] < row["adapter_bytes"]
    assert set(row["before"]) == set(row["after"]) == {lora_held.NEW, lora_held.KNOWN}
    assert row["peak_bytes"] > 0
    assert json.dumps(row)
