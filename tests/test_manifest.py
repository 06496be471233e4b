"""The manifest of a checkpoint: the same for every layout of the same weights, and no bit is left out."""

import hashlib
import json
import random
from pathlib import Path

import checkpoint_faults as cf
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, published_folder, raw_case, run, shared_scales
from safetensors.torch import load_file, save_file
from small4_conversion import manifest
from small4_conversion.against import said_faults
from small4_conversion.checkpoint import CheckpointError, Reader
from small4_conversion.raw import different_facts, facts
from small4_conversion.source import open_checkpoint

from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.commands import cli
from modeling_small4.files_saving import MANIFEST

ROPE = "text_config.rope_parameters."


def of(folder: Path, rule: str | None = None) -> manifest.Manifest:
    with Reader() as reader:
        return manifest.build(open_checkpoint(folder, rule), reader)


def plain_hash(tensor: torch.Tensor) -> str:
    """Worked out with numpy: bfloat16 numbers are the upper halves of float32 ones."""
    bits = tensor.float().numpy().view("<u4")
    assert not (bits & 0xFFFF).any()
    return hashlib.sha256((bits >> 16).astype("<u2").tobytes()).hexdigest()


@pytest.mark.parametrize("name", CASES)
def test_every_layout_has_the_same_manifest(tmp_path: Path, name: str) -> None:
    p, raw = raw_case(tmp_path / "raw", name, seed=len(name))
    run(tmp_path / "raw", tmp_path / "ours", shard_size=100_000)
    run(tmp_path / "raw", tmp_path / "hf", to="transformers")
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    run(tmp_path / "raw", tmp_path / "wide", dtype="float32")
    found = of(tmp_path / "raw")
    assert found.copy_of is None
    for folder in ("ours", "hf", "back"):
        rule = "transformers" if (folder, name) == ("hf", "scaled") else None  # its files leave that open
        assert of(tmp_path / folder, rule).text() == found.text(), folder
        assert (tmp_path / folder / MANIFEST).read_text() == found.text(), folder
        assert cli.main(["verify", str(tmp_path / folder)]) == 0
    assert of(tmp_path / "wide").tensors == found.tensors
    assert {name: entry.value for name, entry in found.tensors.items()} == {n: plain_hash(t) for n, t in raw.items()}
    assert found.model["text_config.hidden_size"] == p["dim"]


@pytest.mark.parametrize("seed", [0, 1])
def test_quantized_layouts_have_the_same_manifest(tmp_path: Path, seed: int) -> None:
    p = rc.fp8_params(rc.params())
    raw = {name: each.clone() for name, each in shared_scales(rc.to_fp8(rc.weights(p, seed), seed)).items()}
    rc.write_raw(tmp_path / "raw", p, raw)
    run(tmp_path / "raw", tmp_path / "ours")
    run(tmp_path / "raw", tmp_path / "hf", to="transformers")
    run(tmp_path / "raw", tmp_path / "bf16", dtype="bfloat16")
    found = of(tmp_path / "raw")
    assert of(tmp_path / "ours").text() == of(tmp_path / "hf").text() == found.text()
    assert of(tmp_path / "bf16").weights == found.weights
    values = {name: plain_hash(tensor) for name, tensor in rc.dequantized(raw).items()}
    assert {name: entry.value for name, entry in found.tensors.items()} == values


def test_nvfp4_values_are_those_of_the_expanded_copy(tmp_path: Path) -> None:
    p = rc.params()
    stored, plain = rc.to_nvfp4(rc.weights(p, 3))
    rc.write_raw(tmp_path / "raw", rc.nvfp4_params(p), stored)
    run(tmp_path / "raw", tmp_path / "ours")
    found = of(tmp_path / "raw")
    assert of(tmp_path / "ours").text() == found.text()
    assert {name: e.value for name, e in found.tensors.items()} == {n: plain_hash(t) for n, t in plain.items()}


def test_published_and_unfused_folders(tmp_path: Path) -> None:
    p, raw = raw_case(tmp_path / "raw", seed=5)
    wanted = of(tmp_path / "raw")
    (tmp_path / "hf").mkdir()
    published_folder(tmp_path / "hf", p, raw)
    assert of(tmp_path / "hf").text() == wanted.text()
    unfused: rc.Tensors = {}
    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        for expert, matrix in enumerate(tensor if end in ("gate_up_proj", "down_proj") else ()):
            halves = matrix.chunk(2) if end == "gate_up_proj" else (matrix,)
            for part, half in zip(
                ("gate_proj", "up_proj") if len(halves) == 2 else ("down_proj",), halves, strict=True
            ):
                unfused[f"{stem}.{expert}.{part}.weight"] = half.contiguous()
        if end not in ("gate_up_proj", "down_proj"):
            unfused[name] = tensor
    save_file(unfused, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    assert of(tmp_path / "hf").text() == wanted.text()


@pytest.mark.parametrize("form", ["bf16", "fp8", "nvfp4", "int4"])
def test_one_flipped_bit_is_caught_and_named(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw_case(tmp_path / "raw", seed=7)
    run(tmp_path / "raw", tmp_path / "ours", dtype="keep" if form == "bf16" else form)
    file = tmp_path / "ours" / "model.safetensors"
    intact, draw = file.read_bytes(), random.Random(form)
    names = sorted(cf.load(tmp_path / "ours"))
    scales = [name for name in names if "scale" in name]
    for name in [*draw.sample(names, 12), *draw.sample(scales, min(8, len(scales)))]:
        bit = cf.flip_bit(tmp_path / "ours", name, draw)
        assert cli.main(["verify", str(tmp_path / "ours")]) == 1, (name, bit)
        file.write_bytes(intact)
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "ours")]) == 0
    assert "equal" in capsys.readouterr().out


def test_swapped_offsets_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_case(tmp_path / "raw", shards=1)
    assert cli.main(["manifest", str(tmp_path / "raw")]) == 0
    cf.swap_offsets(tmp_path / "raw", "layers.0.attention_norm.weight", "layers.1.ffn_norm.weight")
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "raw"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["differences"]
    assert [each["tensor"] for each in found] == ["layers.0.attention_norm.weight and layers.1.ffn_norm.weight"]
    assert "swapped" in found[0]["reason"]


@pytest.mark.parametrize("dtype", ["fp8", "nvfp4", "int4", "bfloat16"])
def test_a_copy_says_of_what_and_how_far(tmp_path: Path, dtype: str) -> None:
    p = rc.params()
    raw = {name: tensor.float() * 1.001 for name, tensor in rc.weights(p, 2).items()}
    rc.write_raw(tmp_path / "raw", p, raw)
    summary = run(tmp_path / "raw", tmp_path / "copy", dtype=dtype)
    made = manifest.of_folder(tmp_path / "copy")
    assert made is not None
    assert made.copy_of == manifest.Origin(of(tmp_path / "raw").weights, "F32", summary.errors)
    assert bool(summary.errors) == (dtype != "bfloat16")
    run(tmp_path / "copy", tmp_path / "again", to="mistral")
    assert manifest.of_folder(tmp_path / "again") == made  # of a copy too it says of what it is one
    assert cli.main(["manifest", str(tmp_path / "again")]) == 0
    assert manifest.of_folder(tmp_path / "again") == made  # written anew too
    cf.flip_bit(tmp_path / "again", "norm.weight", random.Random(0))
    run(tmp_path / "again", tmp_path / "changed")
    assert cli.main(["manifest", str(tmp_path / "again")]) == 0
    for folder in ("again", "changed"):  # of which nobody knows what they are copies of
        found = manifest.of_folder(tmp_path / folder)
        assert found is not None
        assert found.copy_of is None


def test_numbers_that_fit_a_narrower_dtype_are_the_same_weights(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "wide", dtype="float32")
    run(tmp_path / "wide", tmp_path / "narrow", dtype="bfloat16")
    assert manifest.of_folder(tmp_path / "narrow") == of(tmp_path / "raw")


def test_a_stale_manifest_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "ours")
    name = "model.language_model.layers.1.self_attn.o_proj.weight"
    cf.flip_bit(tmp_path / "ours", name, random.Random(0))
    assert cli.main(["verify", str(tmp_path / "ours"), str(tmp_path / "ours")]) == 0
    out = capsys.readouterr().out
    assert "is stale" in out
    assert "layers.1.attention.wo.weight" in out
    assert cli.main(["manifest", str(tmp_path / "ours")]) == 0
    assert "of other weights" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "ours")]) == 0


def test_saving_and_overwriting_know_the_file(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "ours")
    run(tmp_path / "raw", tmp_path / "ours", overwrite=True, manifest=False)
    assert not (tmp_path / "ours" / MANIFEST).exists()
    run(tmp_path / "raw", tmp_path / "ours", overwrite=True)
    model = Small4ForCausalLM.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "ours" / MANIFEST).exists()
    (tmp_path / "ours" / MANIFEST).write_text('{"format": "mine"}')
    model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / MANIFEST).read_text() == '{"format": "mine"}'


@pytest.mark.parametrize(("key", "value"), [("vision_feature_layer", -2), (ROPE + "truncate", False)])
def test_settings_that_no_raw_checkpoint_has_are_compared(tmp_path: Path, key: str, value: object) -> None:
    raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "hf", to="transformers")
    told = json.loads((tmp_path / "hf" / MANIFEST).read_text())
    content = place = json.loads((tmp_path / "hf" / "config.json").read_text())
    *outer, name = key.split(".")
    for each in outer:
        place = place[each]
    place[name] = value
    (tmp_path / "hf" / "config.json").write_text(json.dumps(content))
    source = open_checkpoint(tmp_path / "hf")
    assert [fault.what for fault in said_faults(source, manifest.read(tmp_path / "hf" / MANIFEST))] == [key]
    former = {name: each for name, each in told["model"].items() if name != key}  # as earlier versions wrote it
    (tmp_path / "old.json").write_text(json.dumps(told | {"model": former}))
    assert said_faults(source, manifest.read(tmp_path / "old.json")) == []


def test_no_scale_of_long_queries_is_written_in_one_way() -> None:
    config = Small4Config(text_config={"rope_parameters": {"rope_type": "default"}})
    beta = ROPE + "llama_4_scaling_beta"
    assert facts(config)[beta] == 0.0
    assert different_facts({beta: 0.0}, {beta: None}) == []  # as earlier versions wrote it
    assert different_facts({beta: 0.1}, {beta: None}) == [beta]


def test_where_a_manifest_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_case(tmp_path / "raw")
    assert cli.main(["manifest", str(tmp_path / "raw"), "--out", "-"]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["manifest", str(tmp_path / "raw"), "--out", str(tmp_path / "m.json")]) == 0
    assert (tmp_path / "m.json").read_text() == printed
    assert not (tmp_path / "raw" / MANIFEST).exists()
    assert cli.main(["verify", str(tmp_path / "raw"), str(tmp_path / "m.json")]) == 0
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "link.json").symlink_to(tmp_path / "notes.json")
    for name in ("notes.json", "link.json"):
        assert cli.main(["manifest", str(tmp_path / "raw"), "--out", str(tmp_path / name)]) == 1
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.json", "m.json", "notes.json", "raw"]


def test_damaged_manifests_are_refused(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw")
    cli.main(["manifest", str(tmp_path / "raw"), "--out", str(tmp_path / "m.json")])
    content = json.loads((tmp_path / "m.json").read_text())
    name = "norm.weight"
    damages = [
        {"version": 2},
        {"weights": "0" * 64},
        {"tensors": None},
        {"tokenizer": {"tokens": float("inf"), "sha256": ""}},
        {"tensors": content["tensors"] | {name: {}}},
        *(
            {"tensors": content["tensors"] | {name: content["tensors"][name] | wrong}}
            for wrong in ({"value": "0" * 63}, {"parts": {"codes": "0" * 63}}, {"rows": [1]})
        ),
    ]
    for damage in damages:
        (tmp_path / "m.json").write_text(json.dumps(content | damage).replace("Infinity", "1e400"))
        with pytest.raises(CheckpointError, match=r"m\.json"):
            manifest.read(tmp_path / "m.json")


def test_an_input_scale_that_is_not_finite_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_case(tmp_path / "raw", fp8=True)
    name = "layers.0.attention.wo.qscale_act"
    cf.change(tmp_path / "raw", {name: torch.tensor(torch.inf, dtype=torch.bfloat16)})
    assert cli.main(["manifest", str(tmp_path / "raw")]) == 1
    assert "the input scale of layers.0.attention.wo.weight is not finite" in capsys.readouterr().err
    assert not (tmp_path / "raw" / MANIFEST).exists()
