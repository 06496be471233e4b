"""Weights that are too large to be held whole: read a few rows at a time, and copied a few bytes at a time."""

from functools import partial
from pathlib import Path
from typing import Any

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import raw_case, run
from safetensors.torch import save_file
from small4_conversion import checkpoint
from small4_conversion.checkpoint import Reader
from small4_conversion.digest import canonical
from small4_conversion.formats import values
from small4_conversion.naming import leaves
from small4_conversion.source import open_checkpoint
from test_formats_expanded import EXPANDED, REGROUPED, SIZES
from test_formats_kept import KEPT


def int8_of_one_scale(tensor: torch.Tensor) -> d.Encoded:
    scale = tensor.float().abs().max().reshape(1, 1) / 127
    codes = (tensor.float() / scale).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def modelopt_of_weights(tensor: torch.Tensor) -> d.Encoded:
    parts, numbers = d.modelopt(tensor)
    del parts["input_scale"]
    return parts, numbers


FORMS: dict[str, tuple[d.Encoder, dict[str, Any], dict[str, Any]]] = {
    **KEPT,
    **{name: (*each, SIZES) for name, each in (EXPANDED | REGROUPED).items()},
    "w8a8 of one scale": (int8_of_one_scale, d.INT8, {}),
    "modelopt of weights alone": (modelopt_of_weights, d.MODELOPT, {}),
    "gptq of whole rows": (
        lambda tensor: d.gptq(tensor.shape[1], 4, tensor, version=2),
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "format": "gptq_v2"},
        {},
    ),
    "nf4, rows of an odd number": (partial(d.bitsandbytes, "nf4", True), d.BITS4, {"q_lora_rank": 61}),
}


def check(folder: Path, plain: rc.Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight of a folder stands for these numbers."""
    monkeypatch.setattr(values, "STEP", 200)
    source, found = open_checkpoint(folder), {}
    with Reader() as reader:
        for leaf in leaves(source.config):
            pieces = list(canonical(source.values[leaf.raw], leaf, source.interleaved, reader))
            assert len(pieces) > 1 or len(leaf.shape) == 1
            found[leaf.raw] = torch.cat(pieces).view(leaf.shape).bfloat16()
    rc.same_bits(found, plain)


@pytest.mark.parametrize("name", FORMS)
def test_a_few_rows_at_a_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, entry, sizes = FORMS[name]
    p = rc.params(**sizes)
    stored, plain = d.derive(p, rc.weights(p, seed=8), encode)
    d.write_folder(tmp_path / "hf", p, stored, entry)
    check(tmp_path / "hf", plain, monkeypatch)


def test_a_few_rows_of_mlx_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = rc.params(kv_lora_rank=64, q_lora_rank=64, qk_nope_head_dim=32, v_head_dim=32)
    plain = d.mlx_folder(tmp_path / "mlx", p, rc.weights(p), 3)
    check(tmp_path / "mlx", plain, monkeypatch)


def test_a_few_rows_of_gguf_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_folder = pytest.importorskip("gguf_folder")
    p = rc.params(vision=False, kv_lora_rank=64, qk_nope_head_dim=32, v_head_dim=32)
    plain = gguf_folder.write(tmp_path / "g", p, rc.weights(p), "Q8_0")
    check(tmp_path / "g", {name: tensor.bfloat16() for name, tensor in plain.items()}, monkeypatch)


def test_a_few_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, raw = raw_case(tmp_path / "raw", fp8=True)
    monkeypatch.setattr(checkpoint, "CHUNK", 1000)
    run(tmp_path / "raw", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "back"), raw)
    name = "layers.0.attention.wo.weight"
    save_file({name: raw[name]}, tmp_path / "one.safetensors")
    codes = raw[name].view(torch.uint8).clone()
    codes[-1, -1] ^= 1
    save_file({name: codes.view(torch.float8_e4m3fn)}, tmp_path / "other.safetensors")
    one, other = (checkpoint.read_headers([tmp_path / f"{file}.safetensors"])[name] for file in ("one", "other"))
    with Reader() as reader:
        assert reader.same_bytes(one, one)
        assert not reader.same_bytes(one, other)
