"""GGUF files: types, names, vision beside, and configuration from metadata."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, check_logits, equal, run
from small4_conversion.convert import Options, convert

from modeling_small4 import Small4ForCausalLM

gguf_folder = pytest.importorskip("gguf_folder")
pytest.importorskip("gguf")

SIZES: dict[str, Any] = {"dim": 256, "kv_lora_rank": 256, "q_lora_rank": 256, "qk_nope_head_dim": 32, "v_head_dim": 64}
TYPES = [
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
]


@pytest.mark.parametrize("kind", TYPES)
def test_types(tmp_path: Path, kind: str) -> None:
    p = rc.params(vision=False, moe={"expert_hidden_dim": 256}, **SIZES)
    plain = gguf_folder.write(tmp_path / "g", p, rc.weights(p, seed=4), kind)
    run(tmp_path / "g" / "model.gguf", tmp_path / "raw", to="mistral")
    target = {"F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16)
    rc.same_bits(rc.read_all(tmp_path / "raw"), {name: tensor.to(target) for name, tensor in plain.items()})
    assert equal(tmp_path / "g", tmp_path / "raw")


@pytest.mark.parametrize("case", ["released", "experts", "groups", "dense first", "tied", "tower"])
@pytest.mark.parametrize("gate_up", [False, True])
def test_names_and_metadata(tmp_path: Path, case: str, gate_up: bool) -> None:
    p = rc.params(**CASES[case])
    p["moe"] |= {"num_expert_groups": 1, "num_expert_groups_per_tok": 1}  # these cases are said with other keys
    raw = rc.weights(p, seed=5)
    if case == "tower":
        raw["vision_language_adapter.w_in.bias"] = raw["vision_language_adapter.w_in.bias"].clone()
    gguf_folder.write(tmp_path / "g", p, raw, "BF16", gate_up, arch="mistral4" if gate_up else "deepseek2")
    run(tmp_path / "g", tmp_path / "ours", dtype="bfloat16")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours"), p, raw)
    rc.write_raw(tmp_path / "raw", p, raw)
    assert equal(tmp_path / "raw", tmp_path / "g")


def test_without_the_file_for_vision_the_model_reads_text(tmp_path: Path) -> None:
    p = rc.params()
    raw = rc.weights(p)
    gguf_folder.write(tmp_path / "g", p, raw, "Q8_0")
    (tmp_path / "g" / "mmproj.gguf").unlink()
    notes: list[str] = []
    convert(tmp_path / "g", tmp_path / "ours", Options(), notes.append)
    assert any("reads text only" in note for note in notes)
    assert Small4ForCausalLM.from_pretrained(tmp_path / "ours").config.vision_config is None


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    p = rc.params(vision=False)
    gguf_folder.write(tmp_path / "g", p, rc.weights(p), "Q8_0")
    file = tmp_path / "g" / "model.gguf"
    whole = file.read_bytes()
    for name, data, words in (
        ("cut", whole[: len(whole) - 999], "truncated|no GGUF"),
        ("short", whole[:500], "no GGUF"),
        ("other", whole.replace(b"mistral4", b"mistral9"), "general.architecture"),
        ("lost", whole.replace(b"blk.1.attn_q_a.weight", b"blk.1.attn_x_a.weight"), r"attn_[qx]_a"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.gguf").write_bytes(data)
        with pytest.raises(ValueError, match=words):
            convert(folder, tmp_path / "out")
    shutil.copy(file, tmp_path / "g" / "again.gguf")
    with pytest.raises(ValueError, match="several GGUF files"):
        convert(tmp_path / "g", tmp_path / "out")
    with pytest.raises(ValueError, match="GGUF file"):
        convert(Path(__file__), tmp_path / "out")
    run(file, tmp_path / "out")
