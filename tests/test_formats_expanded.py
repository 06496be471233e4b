"""Formats that our layout does not hold as they are: GPTQ and AWQ become 4-bit groups where they can, others plain
numbers.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import check_logits, equal, run
from safetensors.torch import save_file
from small4_conversion.checkpoint import Reader, read_headers
from small4_conversion.convert import convert
from small4_conversion.formats.gptq import Gptq

from modeling_small4 import Small4ForCausalLM

REGROUPED: dict[str, tuple[d.Encoder, dict[str, Any]]] = {
    "gptq": (partial(d.gptq, 16, 4), d.GPTQ),
    "gptq asymmetric": (partial(d.gptq, 16, 4, symmetric=False), d.GPTQ | {"sym": False}),
    "gptq v2": (partial(d.gptq, 16, 4, version=2, symmetric=False), d.GPTQ | {"checkpoint_format": "gptq_v2"}),
    "awq": (partial(d.awq, 16), d.AWQ),
}
EXPANDED: dict[str, tuple[d.Encoder, dict[str, Any]]] = {
    "gptq act-order": (partial(d.gptq, 16, 4, order=True), d.GPTQ | {"desc_act": True}),
    "gptq 8": (partial(d.gptq, 16, 8), d.GPTQ | {"bits": 8}),
    "gptq 3": (partial(d.gptq, 32, 3), d.GPTQ | {"bits": 3, "group_size": 32}),
    "w8a16": (partial(d.compressed_int, 16, 8, False), d.int_entry(16, 8, False)),
    "w3a16": (partial(d.compressed_int, 32, 3, False), d.int_entry(32, 3, False)),
    "w8a8": (d.int8, d.INT8),
    "nf4": (partial(d.bitsandbytes, "nf4", False), d.BITS4),
    "nf4 double": (partial(d.bitsandbytes, "nf4", True), d.BITS4),
    "llm.int8": (d.llm_int8, d.BITS8),
    "modelopt": (d.modelopt, d.MODELOPT),
    "fp4": (partial(d.bitsandbytes, "fp4", True), d.BITS4 | {"bnb_4bit_quant_type": "fp4"}),
}
SIZES = {"q_lora_rank": 64, "v_head_dim": 16}  # 32 divides every row


def made(
    folder: Path, encode: d.Encoder, entry: dict[str, Any], half: bool, dtype: torch.dtype | None = None
) -> tuple[dict[str, Any], rc.Tensors]:
    """A folder in a format, float16 beside the codes where its tools leave that; its params, and what it stands for in
    `dtype`.
    """
    p = rc.params(**SIZES)
    raw = rc.weights(p, seed=8)
    if half:
        raw = {name: tensor.half() for name, tensor in raw.items()}
    stored, plain = d.derive(p, raw, encode, dtype=dtype)
    d.write_folder(folder, p, stored, entry)
    return p, plain


@pytest.mark.parametrize("name", REGROUPED)
def test_gptq_and_awq_become_4_bit_groups_of_equal_numbers(tmp_path: Path, name: str) -> None:
    _, plain = made(tmp_path / "hf", *REGROUPED[name], half=True, dtype=torch.bfloat16)
    run(tmp_path / "hf", tmp_path / "ours")
    ours = rc.read_all(tmp_path / "ours")
    packed = ours["model.language_model.layers.1.mlp.experts.gate_up_proj_packed"]
    assert (packed.dtype, packed.shape) == (torch.int32, (4, 64, 8))
    assert equal(tmp_path / "hf", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "raw", to="mistral", dtype="float32")
    rc.same_bits(rc.read_all(tmp_path / "raw"), {key: tensor.float() for key, tensor in plain.items()})
    run(tmp_path / "hf", tmp_path / "out", to="mistral")
    assert equal(tmp_path / "out", tmp_path / "ours")


@pytest.mark.parametrize("name", [*EXPANDED, *REGROUPED])
def test_expanded_numbers(tmp_path: Path, name: str) -> None:
    """In float16 where the rest is float16, as those tools compute, otherwise in bfloat16."""
    half = "gptq" in name or "awq" in name
    p, plain = made(tmp_path / "hf", *(EXPANDED | REGROUPED)[name], half=half)
    run(tmp_path / "hf", tmp_path / "out", to="transformers")
    rc.same_bits(rc.read_all(tmp_path / "out"), rc.host_state(p, plain))
    assert equal(tmp_path / "hf", tmp_path / "out")
    run(tmp_path / "hf", tmp_path / "ours", dtype="bfloat16")
    model = Small4ForCausalLM.from_pretrained(tmp_path / "ours")
    _, plain = made(tmp_path / "again", *(EXPANDED | REGROUPED)[name], half=half, dtype=torch.bfloat16)
    check_logits(model, p, {k: v.bfloat16() for k, v in plain.items()})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_of_gptq(tmp_path: Path, bits: int) -> None:
    """Version 1 of its files stores them less one: for 0 the largest code."""
    zeros = torch.randint(0, 2**bits, (2, 32), generator=torch.Generator().manual_seed(0))
    zeros[:, 0] = 0
    for version, less in ((1, 1), (2, 0)):
        save_file({"x": d.packed((zeros - less) % 2**bits, bits)}, tmp_path / "x.safetensors")
        stored = read_headers([tmp_path / "x.safetensors"])["x"]
        with Reader() as reader:
            found = Gptq((32, 16), stored, stored, stored, bits, None, True, version).offsets(reader)
        assert torch.equal(found, zeros.T.to(torch.uint8))


@pytest.mark.parametrize("group", [4, -1])
def test_columns_of_a_group_that_is_not_there_are_refused(tmp_path: Path, group: int) -> None:
    """64 columns are 4 groups of 16."""
    p = rc.params(**SIZES)
    stored, _ = d.derive(p, rc.weights(p), partial(d.gptq, 16, 4, order=True))
    name = "model.language_model.layers.0.mlp.experts.0.gate_proj.g_idx"
    stored[name] = stored[name].clone()
    stored[name][5] = group
    d.write_folder(tmp_path / "hf", p, stored, d.GPTQ | {"desc_act": True})
    with pytest.raises(ValueError, match=rf"experts\.0\.gate_proj\.g_idx names groups.* {group}.*there are 4"):
        convert(tmp_path / "hf", tmp_path / "out")


ODD: dict[str, tuple[d.Encoder, dict[str, Any]]] = {
    "compressed": (partial(d.compressed_int, 4, 4, True), d.int_entry(4, 4, True)),
    "gptq": (partial(d.gptq, 4, 4), d.GPTQ | {"group_size": 4}),
    "awq": (partial(d.awq, 4), d.AWQ | {"group_size": 4}),
}


@pytest.mark.parametrize("name", ODD)
def test_rows_that_do_not_fill_words_are_expanded(tmp_path: Path, name: str) -> None:
    """Eight codes are a word of our layout."""
    p = rc.params(v_head_dim=23)
    stored, plain = d.derive(p, rc.weights(p), ODD[name][0], lambda n: ".wkv_b." not in n, torch.bfloat16)
    d.write_folder(tmp_path / "hf", p, stored, ODD[name][1])
    run(tmp_path / "hf", tmp_path / "ours")
    ours = rc.read_all(tmp_path / "ours")
    assert ours["model.language_model.layers.0.self_attn.o_proj.weight"].dtype == torch.bfloat16
    assert ours["model.language_model.layers.0.self_attn.q_b_proj.weight_packed"].dtype == torch.int32
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours"), p, plain)


def test_fp8_of_modelopt(tmp_path: Path) -> None:
    def encode(tensor: torch.Tensor) -> d.Encoded:
        parts, numbers = d.fp8("tensor", tensor)
        scales = {"weight_scale": parts["weight_scale_inv"], "input_scale": torch.tensor(10.0)}
        return {"weight": parts["weight"]} | scales, numbers

    p = rc.params()
    stored, plain = d.derive(p, rc.weights(p), encode)
    d.write_folder(tmp_path / "hf", p, stored, {"quant_method": "modelopt", "quant_algo": "FP8"})
    run(tmp_path / "hf", tmp_path / "raw", to="mistral")
    kept = rc.read_all(tmp_path / "raw")
    assert kept.keys() == rc.to_fp8(rc.weights(p)).keys()
    assert {float(scale) for name, scale in kept.items() if name.endswith("qscale_act")} == {10.0}
    run(tmp_path / "raw", tmp_path / "plain", to="mistral", dtype="bfloat16")
    rc.same_bits(rc.read_all(tmp_path / "plain"), plain)


def test_columns_in_another_order_than_announced_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "hf", partial(d.gptq, 16, 4, order=True), d.GPTQ, half=True)
    with pytest.raises(ValueError, match=r"another order.*bfloat16"):
        convert(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (d.GPTQ | {"checkpoint_format": "marlin"}, ("GPTQ", "marlin", "gptq")),
        (d.GPTQ | {"bits": 5}, ("GPTQ", "5")),
        (d.AWQ | {"version": "gemv"}, ("AWQ", "gemv", "gemm")),
        (d.AWQ | {"bits": 8}, ("AWQ", "8")),
    ],
)
def test_other_packings_are_refused_by_name(tmp_path: Path, entry: dict[str, Any], words: tuple[str, ...]) -> None:
    encode = partial(d.gptq, 16, 4) if entry["quant_method"] == "gptq" else partial(d.awq, 16)
    made(tmp_path / "hf", encode, entry, half=True)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert(tmp_path / "hf", tmp_path / "out")
    assert all(word in str(caught.value) for word in words)


def test_a_description_of_another_weight_is_refused(tmp_path: Path) -> None:
    p = rc.params(**SIZES)
    stored, _ = d.derive(p, rc.weights(p), partial(d.bitsandbytes, "nf4", False))
    stem = "model.language_model.layers.0.mlp.experts.{}.down_proj.weight.quant_state.bitsandbytes__nf4"
    stored[stem.format(0)] = stored[stem.format(0).replace("mlp.experts.0.down_proj", "self_attn.o_proj")].clone()
    d.write_folder(tmp_path / "hf", p, stored, d.BITS4)
    with pytest.raises(ValueError, match=r"experts\.0\.down_proj.*no description"):
        convert(tmp_path / "hf", tmp_path / "out")


def test_a_description_of_other_scales_is_refused(tmp_path: Path) -> None:
    p = rc.params(vision=False)
    stored, _ = d.derive(p, rc.weights(p), partial(d.bitsandbytes, "nf4", True))
    name = "model.language_model.layers.0.mlp.experts.0.gate_proj.weight.quant_state.bitsandbytes__nf4"
    said = json.loads(bytes(stored[name].tolist()))
    wrong: list[dict[str, Any]] = [
        {"blocksize": 32}, {"blocksize": 64.0}, {"blocksize": 0}, {"nested_blocksize": 1}, {"nested_blocksize": None},
        {"nested_offset": "0"},
    ]  # fmt: skip
    for each in wrong:
        text = json.dumps(said | each).encode()
        d.write_folder(tmp_path / "hf", p, stored | {name: torch.tensor(list(text), dtype=torch.uint8)}, d.BITS4)
        with pytest.raises(ValueError, match=r"experts\.0\.gate_proj.*no description"):
            convert(tmp_path / "hf", tmp_path / "out")
