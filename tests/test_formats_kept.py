"""Formats in transformers' names whose codes our layout holds: read, kept bit for bit, expanded, and written back."""

import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, check_logits, equal, run
from small4_conversion.checkpoint import Stored
from small4_conversion.convert import Options, convert
from small4_conversion.formats.values import check_finite

from modeling_small4 import Small4ForCausalLM

WIDE = {"dim": 256, "q_lora_rank": 128, "kv_lora_rank": 128, "v_head_dim": 32, "moe": {"expert_hidden_dim": 128}}
KEPT: dict[str, tuple[d.Encoder, dict[str, Any], dict[str, Any]]] = {
    "fp8 tensor": (partial(d.fp8, "tensor"), d.FP8_ENTRY, {}),
    "fp8 row": (partial(d.fp8, "row"), d.FP8_ENTRY, {}),
    "fp8 block": (partial(d.fp8, "block"), d.FP8_BLOCK, {}),
    "fp8 block wide": (partial(d.fp8, "block"), d.FP8_BLOCK, {"dim": 192, "moe": {"expert_hidden_dim": 160}}),
    "fp8 dynamic": (partial(d.fp8, "channel"), d.CHANNEL, {}),
    "nvfp4": (d.nvfp4, d.NVFP4, {}),
    "w4a16": (partial(d.compressed_int, 16, 4, True), d.int_entry(16, 4, True), {}),
    "w4a16 128": (partial(d.compressed_int, 128, 4, True), d.int_entry(128, 4, True), WIDE),
    "w4a16 asymmetric": (partial(d.compressed_int, 16, 4, False), d.int_entry(16, 4, False), {}),
    "w4a16 text only": (partial(d.compressed_int, 16, 4, False), d.int_entry(16, 4, False), {"vision": False}),
}


def made(folder: Path, name: str, seed: int = 3) -> tuple[dict[str, Any], rc.Tensors, rc.Tensors]:
    """A folder in a format; its params, what is stored, and the raw tensors it stands for."""
    encode, entry, sizes = KEPT[name]
    p = rc.params(**sizes)
    stored, plain = d.derive(p, rc.weights(p, seed), encode)
    d.write_folder(folder, p, stored, entry)
    return p, stored, plain


@pytest.mark.parametrize("name", KEPT)
def test_codes_are_kept(tmp_path: Path, name: str) -> None:
    _, stored, plain = made(tmp_path / "hf", name)
    run(tmp_path / "hf", tmp_path / "ours")
    ours = rc.read_all(tmp_path / "ours")
    narrow = (torch.float8_e4m3fn, torch.uint8, torch.int32)
    bodies = sum(t.nbytes for n, t in stored.items() if t.dtype in narrow and "zero_point" not in n)
    assert sum(t.nbytes for n, t in ours.items() if t.dtype in narrow and "zero_point" not in n) == bodies
    run(tmp_path / "ours", tmp_path / "raw", to="mistral", dtype="bfloat16")
    rc.same_bits(rc.read_all(tmp_path / "raw"), plain)
    assert equal(tmp_path / "hf", tmp_path / "ours")
    assert equal(tmp_path / "ours", tmp_path / "hf")
    run(tmp_path / "ours", tmp_path / "kept", to="mistral")
    said = json.loads((tmp_path / "kept" / "params.json").read_text()).get("quantization_config", {"ignore": []})
    ignored = [entry.removeprefix("re:") for entry in said["ignore"]]
    quantized = [n.rpartition(".")[0] for n, t in rc.read_all(tmp_path / "kept").items() if t.dtype in narrow]
    assert not [name for name in quantized for pattern in ignored if re.match(pattern, name)]
    run(tmp_path / "kept", tmp_path / "again")
    rc.same_bits(rc.read_all(tmp_path / "again"), ours)
    first, second = (
        json.loads((tmp_path / f / "config.json").read_text())["quantization_config"] for f in ("ours", "again")
    )
    assert first == second


@pytest.mark.parametrize("name", KEPT)
def test_expanded_it_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    p, _, plain = made(tmp_path / "hf", name, seed=5)
    run(tmp_path / "hf", tmp_path / "out", dtype="bfloat16")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "out"), p, plain)


@pytest.mark.parametrize("case", ["released", "text only", "experts", "dense first", "tied"])
@pytest.mark.parametrize("old", [True, False])
def test_one_tensor_for_each_expert_in_bfloat16(tmp_path: Path, case: str, old: bool) -> None:
    p = rc.params(**CASES[case])
    raw = rc.weights(p, seed=6)
    tensors = rc.host_state(p, raw)
    apart = {n: t for n, t in tensors.items() if ".mlp.experts." not in n}
    apart |= {d.unfused_name(n): t for n, t in raw.items() if ".experts." in n}
    d.write_folder(tmp_path / "hf", p, apart, old_names=old)
    run(tmp_path / "hf", tmp_path / "ours")
    rc.same_bits(rc.read_all(tmp_path / "ours"), tensors)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    p = rc.params()
    apart = d.unfused(p, rc.weights(p))
    gone = "model.language_model.layers.1.mlp.experts.2.up_proj.weight"
    del apart[gone]
    d.write_folder(tmp_path / "hf", p, apart, old_names=False)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.2\.up_proj\.weight is missing"):
        convert(tmp_path / "hf", tmp_path / "out")


def test_zeros_of_some_weights(tmp_path: Path) -> None:
    """Two groups of layers are announced, of which one has no zeros."""

    def encode(tensor: torch.Tensor) -> d.Encoded:
        return d.compressed_int(16, 4, 32 in tensor.shape, tensor)

    p = rc.params()
    stored, plain = d.derive(p, rc.weights(p), encode)
    entry = d.int_entry(16, 4, False)
    entry["config_groups"]["group_1"] = d.int_entry(16, 4, True)["config_groups"]["group_0"]
    d.write_folder(tmp_path / "hf", p, stored, entry)
    run(tmp_path / "hf", tmp_path / "ours")
    for folder in ("hf", "ours"):
        check_logits(Small4ForCausalLM.from_pretrained(tmp_path / folder), p, plain)


def test_fp8_in_blocks_beside_rows(tmp_path: Path) -> None:
    def encode(tensor: torch.Tensor) -> d.Encoded:
        parts, numbers = d.fp8("block" if 32 in tensor.shape else "channel", tensor)
        return {name.replace("scale_inv", "scale"): part for name, part in parts.items()}, numbers

    p = rc.params()
    stored, plain = d.derive(p, rc.weights(p), encode)
    d.write_folder(tmp_path / "hf", p, stored, d.CHANNEL)
    run(tmp_path / "hf", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "raw", to="mistral", dtype="bfloat16")
    rc.same_bits(rc.read_all(tmp_path / "raw"), plain)
    for folder in ("hf", "ours"):
        check_logits(Small4ForCausalLM.from_pretrained(tmp_path / folder), p, plain)


@pytest.mark.parametrize("case", ["two arrangements", "routed experts alone", "all but a projection"])
def test_fp8_that_transformers_has_no_words_for_is_expanded(tmp_path: Path, case: str) -> None:
    """Its entry is about all text linears, and about one arrangement."""
    chosen = {"two arrangements": "", "routed experts alone": ".experts.", "all but a projection": "wo|w[123]|wq|wkv_b"}

    def encode(tensor: torch.Tensor) -> d.Encoded:
        parts, numbers = d.fp8("block" if case == "two arrangements" and 32 in tensor.shape else "tensor", tensor)
        return {name.replace("scale_inv", "scale"): part for name, part in parts.items()}, numbers

    p = rc.params()
    stored, plain = d.derive(p, rc.weights(p), encode, lambda name: re.search(chosen[case], name) is not None)
    d.write_folder(tmp_path / "source", p, stored, d.CHANNEL)
    notes: list[str] = []
    convert(tmp_path / "source", tmp_path / "hf", Options(to="transformers"), notes.append)
    assert any("fp8 weights are expanded" in note for note in notes)
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    rc.same_bits(rc.read_all(tmp_path / "hf"), rc.host_state(p, plain))


def test_codes_of_fp8_that_are_no_numbers(tmp_path: Path) -> None:
    for code in torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn):
        refusing = pytest.raises(ValueError, match="not finite") if code.isnan() else nullcontext()
        with refusing:
            check_finite(code.reshape(1), Stored(tmp_path, "x", "F8_E4M3", (1,), 0))


@pytest.mark.parametrize("ending", ["weight_scale", "weight_packed", "weight_zero_point", "weight_global_scale"])
@pytest.mark.parametrize("name", ["nvfp4", "w4a16 asymmetric", "fp8 dynamic"])
def test_every_scale_is_accounted_for(tmp_path: Path, name: str, ending: str) -> None:
    """A part that is missing, or one too many, is refused by its name."""
    p, stored, _ = made(tmp_path / "whole", name)
    part = f"model.language_model.layers.0.mlp.experts.1.down_proj.{ending}"
    without = {k: v for k, v in stored.items() if k != part}
    changed = without if part in stored else stored | {part: torch.ones(1)}
    d.write_folder(tmp_path / "hf", p, changed, KEPT[name][1], old_names=False)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.1\.down_proj\.weight"):
        convert(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
