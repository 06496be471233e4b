"""Weights in 8 bits through torchao and in 4 through torch: what they take, how far answers move, and what is refused.
In part skipped without torchao."""

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Case, text_ids

from modeling_small4 import Small4ForCausalLM
from modeling_small4.planner.sizes import tensors, weight_bytes
from modeling_small4.quantize.weight_only import weight_only

torch.set_num_threads(1)
CASE = Case(seed=4)
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    CASE.models()[0].to(torch.bfloat16).save_pretrained(folder)
    return folder


def nbytes(parameter: Any) -> int:
    """Of a parameter, or of the plain tensors that a quantized one is made of."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return parameter.numel() * parameter.element_size()
    return sum(nbytes(getattr(parameter, name)) for name in parameter.__tensor_flatten__()[0])


def load(folder: Path, **options: Any) -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


@needs_torchao
def test_linears_and_experts_take_the_planned_bytes(saved: Path) -> None:
    whole, eight = load(saved), load(saved, **weight_only("int8"))
    held = {name: nbytes(parameter) for name, parameter in eight.named_parameters()}
    assert held == {tensor.name: tensor.nbytes("int8") for tensor in tensors(whole.config)}
    assert sum(held.values()) == sum(weight_bytes(whole.config, "int8").values())
    ids = text_ids(CASE, 2, 40)
    with torch.no_grad():
        left, right = whole(ids).logits.float(), eight(ids).logits.float()
    assert 0 < ((left - right).norm() / left.norm()) < 0.05
    new = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
    assert eight.generate(ids, **new).shape == (2, 44)


@needs_torchao
def test_experts_are_run_by_what_can_run_them(saved: Path) -> None:
    """A configuration that forgets the implementation works all the same."""
    options = weight_only("int8")
    del options["experts_implementation"]
    eight, same = load(saved, **options), load(saved, **weight_only("int8"))
    ids = text_ids(CASE, 1, 20)
    with torch.no_grad():
        assert torch.equal(eight(ids).logits, same(ids).logits)


@needs_torchao
def test_a_saved_one_loads_as_it_was(saved: Path, tmp_path: Path) -> None:
    eight = load(saved, **weight_only("int8"))
    eight.save_pretrained(tmp_path)
    again = Small4ForCausalLM.from_pretrained(tmp_path)
    ids = text_ids(CASE, 1, 20)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, eight(ids).logits)


@needs_torchao
def test_experts_left_out_are_spoken_of(
    saved: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_small4"), "propagate", True)
    load(saved, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    assert "leaves the routed experts" in caplog.text


FOUR = Case(
    seed=5,
    text={"hidden_size": 128, "moe_intermediate_size": 64, "q_lora_rank": 96, "v_head_dim": 24, "attention_bias": True},
)


PACKED = re.compile(
    r"language_model\.layers\..*(q_a|q_b|o|gate|up|down|gate_up)_proj(_with_mqa)?(\.weight)?$|kv_a_proj_with_mqa\.weight$"
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 128, 96 and 64 values, which have groups of 128, 32 and 64."""
    folder = tmp_path_factory.mktemp("wide")
    FOUR.models()[0].to(torch.bfloat16).save_pretrained(folder)
    return folder


def rounded(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The naive twin of four bits: each group of a row on 16 evenly spaced values from its least to its largest."""
    out = torch.empty_like(weight, dtype=torch.float32)
    for row in range(weight.shape[0]):
        for first in range(0, weight.shape[1], group):
            part = weight[row, first : first + group].float()
            step = (part.max() - part.min()) / 15
            step, middle = (v.to(weight.dtype).float() for v in (step, part.min() + 8 * step))
            codes = ((part - middle) / step + 8).round().clamp(0, 15)
            out[row, first : first + group] = (codes - 8) * step + middle
    return out


def test_four_bits_are_those_of_the_naive_twin(wide: Path) -> None:
    whole, four = (Small4ForCausalLM.from_pretrained(wide, dtype=torch.float32, **o) for o in ({}, weight_only("int4")))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            group = {128: 128, 96: 32, 64: 64}.get(parameter.shape[-1])
            if not PACKED.search(name):
                continue
            rows = [rounded(part, group) for part in (parameter if parameter.ndim == 3 else [parameter])]
            parameter.copy_(torch.stack(rows).view_as(parameter))
        ids = text_ids(FOUR, 2, 40)
        left, right = whole(ids).logits.float(), four(ids).logits.float()
    assert (left - right).norm() / left.norm() < 1e-5


def test_four_bits_take_their_bytes(wide: Path) -> None:
    """Half a byte a value, and a scale and a zero in bfloat16 for each group."""
    whole, four = load(wide), load(wide, **weight_only("int4"))
    expected = 0
    for name, parameter in whole.named_parameters():
        group = {128: 128, 96: 32, 64: 64}.get(parameter.shape[-1])
        expected += (
            parameter.numel() // 2 + 4 * parameter.numel() // group
            if group and PACKED.search(name)
            else 2 * parameter.numel()
        )
    assert sum(map(nbytes, four.parameters())) == expected
    ids = text_ids(FOUR, 2, 40)
    new = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
    assert four.generate(ids, **new).shape == (2, 44)
    attention = four.model.language_model.layers[0].self_attn
    assert attention.absorbing_pays(1, 100)  # decoding still runs on the latents


def test_four_bits_are_not_saved(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not serializable"):
        load(wide, **weight_only("int4")).save_pretrained(tmp_path / "none")


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(ValueError, match="'int2'"):
        weight_only("int2")


def test_torchao_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install torchao"):
        weight_only("int8")
