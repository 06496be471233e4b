"""Comparing checkpoints in real value, across layouts and precisions."""

import itertools
import json
import math
from functools import partial
from pathlib import Path

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from safetensors.torch import load_file, save_file
from small4_conversion.convert import Options, convert

from modeling_small4.commands.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One FP8 model in every layout and precision."""
    root = tmp_path_factory.mktemp("folders")
    p = rc.fp8_params(rc.params())
    rc.write_raw(root / "raw", p, rc.to_fp8(rc.weights(p)))
    for to in ("small4", "transformers", "mistral"):
        for dtype in ("keep", "bfloat16", "float32"):
            convert(root / "raw", root / f"{to}-{dtype}", Options(to=to, dtype=dtype))
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["verify", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float32"])
@pytest.mark.parametrize("to", ["small4", "transformers", "mistral"])
def test_every_form_of_one_model_is_equal(
    folders: Path, to: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for a, b in ((folders / "raw", folders / f"{to}-{dtype}"), (folders / f"{to}-{dtype}", folders / "small4-keep")):
        status, out, err = run(capsys, a, b, "--json")
        assert json.loads(out) == {"equal": True, "differences": []}
        assert status == 0
        assert not err
    status, out, _ = run(capsys, folders / "raw", folders / f"{to}-{dtype}")
    assert status == 0
    assert out.startswith("equal: ")


def altered(folders: Path, tmp_path: Path, name: str, tensor: str, change: str) -> Path:
    """A copy of a folder with one tensor changed."""
    folder = tmp_path / "altered"
    folder.mkdir()
    for file in (folders / name).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        tensors = load_file(file)
        if tensor in tensors:
            value = tensors.pop(tensor)
            if change == "nan":
                value.view(-1)[-1] = math.nan
            elif change == "add":
                value.view(-1)[-1] += 2.0
            elif change == "extra":
                tensors["surplus.weight"] = torch.ones(2, dtype=torch.bfloat16)
            if change != "drop":
                tensors[tensor] = value[:-1].contiguous() if change == "reshape" else value
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return folder


HEAD = "lm_head.weight"
EXPERTS = "model.language_model.layers.1.mlp.experts.down_proj"
QUERY = "model.vision_tower.transformer.layers.1.attention.q_proj.weight"


@pytest.mark.parametrize("tensor", [HEAD, EXPERTS, QUERY])
def test_a_changed_value_is_found_and_measured(
    folders: Path, tmp_path: Path, tensor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = altered(folders, tmp_path, "small4-float32", tensor, "add")
    for first in ("small4-float32", "transformers-bfloat16", "small4-keep"):
        status, out, _ = run(capsys, folders / first, other, "--json")
        result = json.loads(out)
        assert status == 1
        assert result["equal"] is False
        assert [d["tensor"] for d in result["differences"]] == [tensor]
        assert result["differences"][0]["max_abs"] == pytest.approx(2.0, abs=1e-6)
    status, out, _ = run(capsys, folders / "raw", other, "--json")
    assert status == 1
    assert len(json.loads(out)["differences"]) == 1
    status, out, _ = run(capsys, folders / "small4-float32", other)
    assert status == 1
    assert tensor in out
    assert "1 tensors differ" in out


@pytest.mark.parametrize(
    ("change", "reason"), [("drop", "missing"), ("reshape", "shape"), ("nan", "values differ"), ("extra", "not part")]
)
def test_other_differences(
    folders: Path, tmp_path: Path, change: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = altered(folders, tmp_path, "small4-bfloat16", HEAD, change)
    for a, b in ((folders / "small4-bfloat16", other), (other, folders / "small4-bfloat16")):
        status, out, _ = run(capsys, a, b, "--json")
        (difference,) = json.loads(out)["differences"]
        assert status == 1
        assert difference["max_abs"] is None
        assert difference["tensor"] == ("surplus.weight" if change == "extra" else HEAD)
        assert reason in difference["reason"] or (change == "reshape" and "missing" in difference["reason"])


def test_scales_count(tmp_path: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An activation scale is part of a checkpoint, though no weight depends on it; a weight scale changes weights."""
    for scale, reason in (("qscale_act", "activation"), ("qscale_weight", "values")):
        p = rc.fp8_params(rc.params())
        raw = rc.to_fp8(rc.weights(p))
        raw[f"layers.0.attention.wo.{scale}"] *= 2
        rc.write_raw(tmp_path / scale, p, raw)
        status, out, _ = run(capsys, folders / "raw", tmp_path / scale, "--json")
        (difference,) = json.loads(out)["differences"]
        assert status == 1
        assert reason in difference["reason"]
        assert difference["max_abs"] > 0


def test_models_of_different_size(tmp_path: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p = rc.params(n_layers=1, vocab_size=1200)
    rc.write_raw(tmp_path / "small", p, rc.weights(p))
    status, out, _ = run(capsys, folders / "raw", tmp_path / "small", "--json")
    reasons = {d["tensor"]: d["reason"] for d in json.loads(out)["differences"]}
    assert status == 1
    assert reasons["tok_embeddings.weight"] == "shape [1100, 64] against [1200, 64]"
    assert "missing" in reasons["layers.1.attention.wo.weight"]


def test_tied_and_written_out_heads_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p = rc.params(vision=False, tied_embeddings=True)
    raw = rc.weights(p)
    rc.write_raw(tmp_path / "tied", p, raw)
    rc.write_raw(
        tmp_path / "untied",
        p | {"tied_embeddings": False},
        raw | {"output.weight": raw["tok_embeddings.weight"].clone()},
    )
    assert run(capsys, tmp_path / "tied", tmp_path / "untied")[0] == 0
    assert run(capsys, tmp_path / "untied", tmp_path / "tied")[0] == 0


def test_no_checkpoint_is_one_line(tmp_path: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, folders / "raw", tmp_path / "none")
    assert status == 1
    assert not out
    assert err.count("\n") == 1
    assert "none" in err


def test_two_quantizations_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the formats, each of the two may be off by its own rounding; a weight that is another one is found.

    Two of one format are compared exactly: there each code has to be the other's.
    """
    p = rc.params(q_lora_rank=64, v_head_dim=16)
    raw = rc.weights(p, 4)
    made = {
        "row": (partial(d.fp8, "row"), d.FP8_ENTRY), "block": (partial(d.fp8, "block"), d.FP8_BLOCK),
        "channel": (partial(d.fp8, "channel"), d.CHANNEL), "nvfp4": (d.nvfp4, d.NVFP4),
        "modelopt": (d.modelopt, d.MODELOPT), "w4": (partial(d.compressed_int, 16, 4, True), d.int_entry(16, 4, True)),
        "w4 zeros": (partial(d.compressed_int, 16, 4, False), d.int_entry(16, 4, False)),
        "w8": (partial(d.compressed_int, 16, 8, False), d.int_entry(16, 8, False)),
        "gptq": (partial(d.gptq, 16, 4), d.GPTQ),
        "gptq 3": (partial(d.gptq, 32, 3), d.GPTQ | {"bits": 3, "group_size": 32}),
        "nf4": (partial(d.bitsandbytes, "nf4", True), d.BITS4), "int8": (d.llm_int8, d.BITS8),
    }  # fmt: skip
    for name, (encode, entry) in made.items():
        d.write_folder(tmp_path / name, p, d.derive(p, raw, encode)[0], entry)
    for first, second in itertools.combinations(made, 2):
        status, out, _ = run(capsys, tmp_path / first, tmp_path / second, "--json")
        assert status == 0, (first, second, out[:300])
    wrong = "layers.1.experts.2.w1.weight"
    flipped = raw | {wrong: raw[wrong].flip(1)}
    for name, (encode, entry) in (("other w4", made["w4"]), ("other row", made["row"])):
        d.write_folder(tmp_path / name, p, d.derive(p, flipped, encode)[0], entry)
        for first in made:
            status, out, _ = run(capsys, tmp_path / first, tmp_path / name, "--json")
            assert status == 1
            assert [x["tensor"].split(".weight")[0].split(".qweight")[0] for x in json.loads(out)["differences"]] == [
                "language_model.model.layers.1.mlp.experts.2.gate_proj"
            ]
    d.write_folder(tmp_path / "again", p, d.derive(p, {k: v * 1.01 for k, v in raw.items()}, d.nvfp4)[0], d.NVFP4)
    assert run(capsys, tmp_path / "nvfp4", tmp_path / "again")[0] == 1
