"""`small4 check`: several sets of weights in a folder, files that are loaded otherwise, announcements."""

import json
import random
import shutil
from pathlib import Path

import checkpoint_faults as cf
import derivatives as d
import pytest
import raw_checkpoint as rc
from checked_releases import Bench, found
from conversion_cases import run
from small4_conversion.check import CheckOptions, check
from small4_conversion.checks.announced import announced_faults
from small4_conversion.source import open_checkpoint
from test_formats_kept import KEPT
from test_formats_kept import made as made_kept

from modeling_small4.commands import cli


def both_sets(fused: dict[str, Path], folder: Path) -> Path:
    """A folder with the weights of both releases, of which the head is negated in the one that is loaded."""
    shutil.copytree(fused["small4"], folder)
    cf.change(folder, {"lm_head.weight": -cf.load(folder)["lm_head.weight"]})
    shutil.copytree(folder, folder.with_name("loaded set"))
    for file in fused["small4"].with_name("raw").iterdir():
        shutil.copy(file, folder)
    return folder


def test_of_two_sets_of_weights_the_loaded_one_is_checked(
    fused: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = both_sets(fused, tmp_path / "both")
    assert [kind for kind, _ in found(folder)] == ["negated"]
    read, other = "config.json (model*.safetensors)", "params.json (consolidated*.safetensors)"
    assert f"that of {read} is read, that of {other} is not" in check(folder, CheckOptions(quick=True)).text()
    assert cli.main(["verify", str(folder)]) == 1
    assert cli.main(["manifest", str(folder)]) == 0
    assert cli.main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.count(f"that of {read} is read") == 3
    assert cli.main(["convert", str(folder), str(tmp_path / "out"), "--no-manifest"]) == 0
    assert f"that of {other} is read" in capsys.readouterr().out
    rc.same_bits(cf.load(tmp_path / "out"), cf.load(fused["small4"]))
    run(folder, tmp_path / "loaded", as_loaded=True)  # as it is converted where it has to be before it runs
    rc.same_bits(cf.load(tmp_path / "loaded"), cf.load(folder.with_name("loaded set")))


def test_files_that_are_loaded_otherwise_than_they_are_named(fused: dict[str, Path], tmp_path: Path) -> None:
    run(fused["small4"], tmp_path / "sound", shard_size=10**5)
    index, whole = "model.safetensors.index.json", fused["small4"] / "model.safetensors"

    def faults(*added: Path, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        folder = Path(shutil.copytree(tmp_path / "sound", tmp_path / "changed", dirs_exist_ok=True))
        for file in added:
            shutil.copy(file, folder)
        for pattern in without:
            for file in folder.glob(pattern):
                file.unlink()
        out = found(folder)
        shutil.rmtree(folder)
        return out

    assert faults() == []
    sets = [("several sets of weights", f"changed: holds weights of several sets, {whole.name} and the files that "
             f"{index} names; keep one of them")]  # fmt: skip
    assert faults(whole) == sets
    assert faults(whole, without=("model-*",)) == sets
    assert [(kind, text.split(":")[0]) for kind, text in faults(without=(index,))] == [("missing file", index)]
    assert faults(whole, without=("model-*", index)) == []
    (tmp_path / "sound" / "adapter_config.json").write_text("{}")
    assert "from_pretrained adds this adapter" in check(tmp_path / "sound", CheckOptions(quick=True)).text()
    config = tmp_path / "sound" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_weights": "other.safetensors"}))
    assert [(kind, text[:33]) for kind, text in faults()] == [("configuration", "config.json: transformers_weights")]


def contradictions(folder: Path) -> list[str]:
    return [str(fault) for fault in announced_faults(open_checkpoint(folder))]


def change_group(folder: Path, **changed: object) -> None:
    """Change what is announced of weights, in the words of compressed-tensors."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["quantization_config"]["config_groups"]["group_0"]["weights"].update(changed)
    file.write_text(json.dumps(content))


ANNOUNCED: list[tuple[str, dict[str, object], str]] = [
    ("w4a16", {"group_size": 32}, "group_size: is 32 in config.json, but 40 weights, such as "),
    ("w4a16", {"num_bits": 8}, "num_bits: is 8 in config.json, but 40 weights, such as "),
    ("w4a16", {"strategy": "channel", "group_size": None}, "group_size: is -1 in config.json"),
    ("w4a16 asymmetric", {"symmetric": True}, "symmetric: is True"),
    ("nvfp4", {"group_size": 32}, "group_size: is 32"),
    ("nvfp4", {"num_bits": 8}, "num_bits: is 8"),
    ("fp8 dynamic", {"strategy": "tensor"}, "strategy: is 'tensor'"),
]


@pytest.mark.parametrize("name", KEPT)
def test_what_is_announced_of_weights_is_what_is_stored(tmp_path: Path, name: str) -> None:
    made_kept(tmp_path / "hf", name)
    run(tmp_path / "hf", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "raw", to="mistral")
    for layout in ("hf", "ours", "raw"):
        assert contradictions(tmp_path / layout) == []
    for _, changed, says in (each for each in ANNOUNCED if each[0] == name):
        for layout in ("hf",) if "fp8" in name else ("hf", "ours"):  # ours has other words for FP8
            folder = Path(shutil.copytree(tmp_path / layout, tmp_path / f"{layout} {next(iter(changed))}"))
            change_group(folder, **changed)
            assert [text[: len(says)] for text in contradictions(folder)] == [says]


def test_groups_of_whole_rows_are_announced_so(tmp_path: Path) -> None:
    """Whose rows are of several lengths."""
    p = rc.params()
    entry = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "format": "gptq_v2"}
    stored, _ = d.derive(p, rc.weights(p), lambda tensor: d.gptq(tensor.shape[1], 4, tensor, version=2))
    d.write_folder(tmp_path / "hf", p, stored, entry)
    run(tmp_path / "hf", tmp_path / "ours")
    assert contradictions(tmp_path / "ours") == []


def test_mlx_and_scales_of_inputs_that_are_announced_otherwise(releases: dict[str, Path], tmp_path: Path) -> None:
    p = rc.params(kv_lora_rank=64, q_lora_rank=64, qk_nope_head_dim=32, v_head_dim=32)
    d.mlx_folder(tmp_path / "mlx", p, rc.weights(p), 4)
    assert contradictions(tmp_path / "mlx") == []
    file = tmp_path / "mlx" / "config.json"
    file.write_text(file.read_text().replace('"group_size": 32', '"group_size": 64'))
    assert [text[:17] for text in contradictions(tmp_path / "mlx")] == ["group_size: is 64"]

    bench = Bench(shutil.copytree(releases["fp8"], tmp_path / "fp8"), "fp8", random.Random(0))
    entry = {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}
    bench.params(quantization=entry)
    assert found(bench.folder) == [
        ("quantization", "qscheme_act: is 'NO_SCALES' in params.json, but scales of inputs are stored")
    ]
    p = rc.params()
    folder = rc.write_raw(tmp_path / "dynamic", rc.fp8_params(p), rc.to_fp8(rc.weights(p), static=False))
    assert contradictions(folder) == ["qscheme_act: is 'TENSOR' in params.json, but scales of inputs are not stored"]
