"""Folders of MLX: its packing, its names, and what it leaves out."""

import json
from pathlib import Path

import derivatives as d
import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import equal
from small4_conversion.convert import Options, convert

from modeling_small4 import Small4ForCausalLM

SIZES = {"dim": 128, "kv_lora_rank": 64, "q_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
ALL = {"moe": {"num_experts_per_tok": 4}}  # no expert is chosen by a hair


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("bits", [0, 2, 3, 4, 5, 6, 8])
def test_every_width_is_read(tmp_path: Path, bits: int, vision: bool) -> None:
    p = rc.params(**SIZES)
    plain = d.mlx_folder(tmp_path / "mlx", p, rc.weights(p, seed=bits), bits, vision=vision)
    notes: list[str] = []
    convert(tmp_path / "mlx", tmp_path / "raw", Options(to="mistral"), notes.append)
    rc.same_bits(rc.read_all(tmp_path / "raw"), plain)
    assert any("text only" in note for note in notes) == (not vision)
    assert equal(tmp_path / "mlx", tmp_path / "raw")


def test_its_tensors_are_all_accounted_for(tmp_path: Path) -> None:
    p = rc.params(**SIZES)
    d.mlx_folder(tmp_path / "mlx", p, rc.weights(p), 4)
    tensors = rc.read_all(tmp_path / "mlx")
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    stem = "language_model.model.layers.1.mlp.switch_mlp.down_proj"
    for name in (
        f"{stem}.biases",
        f"{stem}.scales",
        f"{stem}.weight",
        stem.replace("mlp.switch_mlp.down_proj", "self_attn.embed_q.biases"),
    ):
        less = {key: value for key, value in tensors.items() if key != name}
        folder = rewritten(tmp_path / name, config, less)
        with pytest.raises(
            ValueError,
            match=name.removeprefix("language_model.")
            .removesuffix("biases")
            .removesuffix("scales")
            .replace(".", r"\."),
        ):
            convert(folder, tmp_path / "out")
    folder = rewritten(tmp_path / "more", config, tensors | {f"{stem}.zeros": torch.ones(1)})
    with pytest.raises(ValueError, match="not part of the model"):
        convert(folder, tmp_path / "out")
    wide = f"{stem.replace('down', 'gate')}.weight"
    wider = torch.cat([tensors[wide], tensors[wide][..., :1]], dim=-1)
    folders = [rewritten(tmp_path / "wider", config, tensors | {wide: wider})]
    entry = {"group_size": 32, "bits": 8, "mode": "affine"}
    folders += [rewritten(tmp_path / "other", config | {"quantization": entry}, tensors)]
    for folder in folders:
        with pytest.raises(ValueError, match="no announced form"):
            convert(folder, tmp_path / "out")


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_other_modes_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    p = rc.params(**SIZES)
    d.mlx_folder(tmp_path / "mlx", p, rc.weights(p), 4)
    file = tmp_path / "mlx" / "config.json"
    config = json.loads(file.read_text())
    config["quantization"]["language_model.model.layers.0.mlp.gate"] = {"mode": mode, "bits": 4, "group_size": 32}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"MLX.*{mode}.*affine"):
        convert(tmp_path / "mlx", tmp_path / "out")


def rewritten(folder: Path, config: dict[str, object], tensors: rc.Tensors) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


@pytest.mark.parametrize("bits", [None, 4, 8, 3])
def test_what_mlx_lm_writes_gives_its_logits(tmp_path: Path, bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unquantized exactly; quantized but for the rounding of expanded weights to bfloat16, which MLX does not do."""
    mx = pytest.importorskip("mlx.core")
    mlx_lm = pytest.importorskip("mlx_lm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    p = rc.params(**SIZES, **ALL)
    rc.write_raw(tmp_path / "raw", p, rc.weights(p, seed=2))
    convert(tmp_path / "raw", tmp_path / "hf", Options(to="transformers"))
    mlx_lm.convert(str(tmp_path / "hf"), str(tmp_path / "mlx"), quantize=bits is not None, q_bits=bits, q_group_size=32)
    convert(tmp_path / "mlx", tmp_path / "ours")
    ids = torch.randint(1000, 1100, (1, 50), generator=torch.Generator().manual_seed(0))
    theirs, _ = mlx_lm.utils.load_model(tmp_path / "mlx")
    theirs.set_dtype(mx.float32)
    expected = torch.tensor(theirs(mx.array(ids.numpy())).tolist())
    with torch.no_grad():
        found = Small4ForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()(ids).logits
    assert (found - expected).abs().max() < (1e-5 if bits is None else 2e-2) * expected.abs().max()
