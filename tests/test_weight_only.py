"""Eight-bit weights through torchao: what they take, how far the answers move, and what is refused. Skipped in part without torchao."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Case, text_ids

from modeling_small4 import Small4ForCausalLM
from modeling_small4.sizes import tensors, weight_bytes
from modeling_small4.weight_only import weight_only

torch.set_num_threads(1)
CASE = Case(seed=4)
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    CASE.models()[0].to(torch.bfloat16).save_pretrained(folder)
    return folder


def nbytes(parameter: Any) -> int:
    """Of a parameter, or of the plain tensors that a quantised one is made of."""
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


@pytest.mark.parametrize(("kind", "words"), [("int4", "llama.cpp"), ("int2", "'int2'")])
def test_what_is_not_possible_is_refused(kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        weight_only(kind)


def test_torchao_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install torchao"):
        weight_only("int8")
