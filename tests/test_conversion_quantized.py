"""Conversion and loading of FP8 and NVFP4 checkpoints: scales, logits, and what is saved."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, check_logits, equal, published_folder, raw_case, run, shared_scales
from safetensors.torch import save_file
from small4_conversion.convert import Options, convert
from small4_conversion.naming import leaves
from transformers import AutoModelForCausalLM, Mistral3ForConditionalGeneration
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from modeling_small4 import Small4Config, Small4ForCausalLM, loading_stored


@pytest.mark.parametrize("name", ["released", "text only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_fp8_folder_loads_with_expert_scales(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    p = rc.params(**CASES[name])
    raw = shared_scales(rc.to_fp8(rc.weights(p, seed=6), seed=6))
    folder = published_folder(tmp_path / "hf", p, raw, fp8=True)
    for dequantize in (False, True):
        model = Small4ForCausalLM.from_pretrained(folder, dtype=dtype, dequantize=dequantize)
        assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {dtype}
        check_logits(model, p, raw)
    run(folder, tmp_path / "raw", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "raw"), raw)
    run(tmp_path / "raw", tmp_path / "again", to="transformers")
    stored = rc.read_all(tmp_path / "again")
    assert next(v for k, v in stored.items() if k.endswith("gate_up_proj_scale_inv")).shape == (4, 1, 1)
    assert equal(folder, tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_folder_of_ours_expands_and_saves_plain(tmp_path: Path, dtype: torch.dtype) -> None:
    p, raw = raw_case(tmp_path / "raw", seed=7, fp8=True)
    run(tmp_path / "raw", tmp_path / "ours")
    stored = rc.read_all(tmp_path / "ours")
    assert stored["model.language_model.layers.0.mlp.experts.gate_up_proj_scale_inv"].shape == (4, 2, 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype, dequantize=True)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "auto_map" not in config
    saved = rc.read_all(tmp_path / "saved")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    rc.same_bits(saved, {k: v.detach() for k, v in model.state_dict().items()})
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32), p, raw)
    check_logits(model, p, raw)
    run(tmp_path / "saved", tmp_path / "hf", to="transformers")
    check_logits(Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "hf"), p, raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("to", ["small4", "transformers"])
def test_fp8_is_held_and_saved_as_stored(tmp_path: Path, dtype: torch.dtype, to: str) -> None:
    p, raw = raw_case(tmp_path / "raw", seed=7, fp8=True)
    run(tmp_path / "raw", tmp_path / "fp8", to=to)
    model = Small4ForCausalLM.from_pretrained(tmp_path / "fp8", dtype=dtype)
    check_logits(model, p, raw)
    model.to(dtype).save_pretrained(tmp_path / "saved")
    stored, saved = rc.read_all(tmp_path / "fp8"), rc.read_all(tmp_path / "saved")
    rc.same_bits(
        saved, {k: v if v.dtype == torch.float8_e4m3fn or "scale" in k else v.to(dtype) for k, v in stored.items()}
    )
    assert equal(tmp_path / "raw", tmp_path / "saved")


def test_fp8_without_scales_of_some_experts_is_refused(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", fp8=True)
    run(tmp_path / "raw", tmp_path / "ours")
    tensors = rc.read_all(tmp_path / "ours")
    del tensors["model.language_model.layers.0.mlp.experts.gate_up_proj_scale_inv"]
    save_file(tensors, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    for dequantize in (False, True):
        with pytest.raises(
            (ValueError, RuntimeError), match=r"gate_up_proj_scale_inv is missing|conversion of the weights"
        ):
            Small4ForCausalLM.from_pretrained(tmp_path / "ours", dequantize=dequantize)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.gate_up_proj_scale_inv is missing"):
        run(tmp_path / "ours", tmp_path / "out", to="mistral")


@pytest.mark.parametrize("static", [True, False])
def test_fp8_scalars_of_shape_one_and_without_activation_scales(tmp_path: Path, static: bool) -> None:
    p = rc.fp8_params(rc.params(), static)
    raw = rc.to_fp8(rc.weights(p), static=static, shape=(1,))
    rc.write_raw(tmp_path / "raw", p, raw)
    run(tmp_path / "raw", tmp_path / "ours")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours"), p, raw)
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "back"), raw)
    assert json.loads((tmp_path / "back" / "params.json").read_text()) == p


@pytest.mark.parametrize("to", ["small4", "mistral", "transformers"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fp8_is_dequantized_as_the_release_does(tmp_path: Path, to: str, dtype: str) -> None:
    p, raw = raw_case(tmp_path / "raw", seed=8, fp8=True)
    run(tmp_path / "raw", tmp_path / "out", to=to, dtype=dtype)
    kind, plain = getattr(torch, dtype), rc.dequantized(raw)
    expected = plain if to == "mistral" else rc.host_state(p, plain)
    rc.same_bits(rc.read_all(tmp_path / "out"), {k: v.to(kind) for k, v in expected.items()})
    assert equal(tmp_path / "raw", tmp_path / "out")
    if to == "mistral":
        assert "quantization" not in json.loads((tmp_path / "out" / "params.json").read_text())
    else:
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "quantization_config" not in config
        assert config["dtype"] == dtype


@pytest.fixture
def nvfp4(tmp_path: Path) -> tuple[dict[str, Any], rc.Tensors, rc.Tensors]:
    """A raw folder as the NVFP4 release has it, tokenizer.json beside; its params, what is stored, what it stands
    for.
    """
    p = rc.nvfp4_params(rc.params())
    stored, plain = rc.to_nvfp4(rc.weights(p, seed=9))
    rc.write_raw(tmp_path / "raw", p, stored)
    (tmp_path / "raw" / "tokenizer.json").write_text("{}")
    return p, stored, plain


def test_the_nvfp4_release_is_kept_bit_for_bit(
    tmp_path: Path, nvfp4: tuple[dict[str, Any], rc.Tensors, rc.Tensors]
) -> None:
    p, stored, _ = nvfp4
    run(tmp_path / "raw", tmp_path / "ours")
    ours = rc.read_all(tmp_path / "ours")
    base = "model.language_model.layers.1.mlp"
    for part, suffix, shape in (
        ("packed", "weight_packed", (4, 64, 32)),
        ("scale", "weight_scale", (4, 64, 4)),
        ("global_scale", "weight_global_scale", (4, 2)),
        ("input_global_scale", "input_global_scale", (4, 2)),
    ):
        each = [stored[f"layers.1.experts.{e}.{w}.{suffix}"] for e in range(4) for w in ("w1", "w3")]
        found = ours[f"{base}.experts.gate_up_proj_{part}"]
        assert found.shape == shape
        assert torch.equal(found.view(torch.uint8), torch.cat(each).view(shape).view(torch.uint8))
    assert ours[f"{base}.shared_experts.up_proj.input_global_scale"].dtype == torch.bfloat16
    entry = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    assert entry == p["quantization_config"]
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "back"), stored)
    assert (tmp_path / "back" / "params.json").read_bytes() == (tmp_path / "raw" / "params.json").read_bytes()
    assert equal(tmp_path / "raw", tmp_path / "ours")


def test_the_nvfp4_release_has_70_80_gigabytes() -> None:
    """Routed and shared experts: half a byte a number, a byte for 16, four for the divisor, and the scale of the
    input.
    """
    total = 0
    for leaf in leaves(Small4Config()):
        count = math.prod(leaf.shape)
        packed = leaf.linear and "experts." in leaf.raw
        total += count // 2 + count // 16 + 4 + (2 if "shared" in leaf.raw else 4) if packed else 2 * count
    assert round(total / 1e9, 2) == 70.80


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
@pytest.mark.parametrize("method", ["compressed-tensors", "compressed_tensors", None])
def test_nvfp4_is_announced_in_every_way_there_is(tmp_path: Path, key: str, method: str | None) -> None:
    if (key, method) == ("quantization", None):
        return
    p = rc.params()
    entry = rc.nvfp4_params(p)["quantization_config"] | {"quant_method": method}
    stored, _ = rc.to_nvfp4(rc.weights(p, seed=9))
    rc.write_raw(tmp_path / "raw", p | {key: entry if method else {k: v for k, v in entry.items() if v}}, stored)
    run(tmp_path / "raw", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "back"), stored)
    assert (tmp_path / "back" / "params.json").read_bytes() == (tmp_path / "raw" / "params.json").read_bytes()


@pytest.mark.parametrize("to", ["small4", "mistral", "transformers"])
@pytest.mark.parametrize("through", ["raw", "ours"])
def test_nvfp4_is_expanded(
    tmp_path: Path, to: str, through: str, nvfp4: tuple[dict[str, Any], rc.Tensors, rc.Tensors]
) -> None:
    p, _, plain = nvfp4
    run(tmp_path / "raw", tmp_path / "ours")
    notes: list[str] = []
    dtype = "keep" if to == "transformers" else "bfloat16"
    convert(tmp_path / through, tmp_path / "out", Options(to=to, dtype=dtype), notes.append)
    assert (to == "transformers") == any("nvfp4 weights are expanded" in note for note in notes)
    rc.same_bits(rc.read_all(tmp_path / "out"), plain if to == "mistral" else rc.host_state(p, plain))
    for file in ("params.json", "config.json"):
        if (tmp_path / "out" / file).exists():
            assert "quantization_config" not in json.loads((tmp_path / "out" / file).read_text())
    assert equal(tmp_path / through, tmp_path / "out")


@pytest.mark.parametrize("to", ["small4", "transformers"])
def test_fp8_kept_for_devices_that_compute_in_it(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers' own kernels are used, its FP8 modules get the same codes and scales, and saving gives the
    same model.
    """
    _, raw = raw_case(tmp_path / "raw", seed=13, fp8=True)
    run(tmp_path / "raw", tmp_path / "fp8", to=to)
    monkeypatch.setattr(loading_stored, "computes_fp8", lambda _: True)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    model = Small4ForCausalLM.from_pretrained(tmp_path / "fp8")
    experts = model.model.language_model.layers[1].mlp.experts
    scales = [[raw[f"layers.1.experts.{e}.{w}.qscale_weight"] for w in ("w1", "w3")] for e in range(4)]
    inputs = [max(raw[f"layers.1.experts.{e}.{w}.qscale_act"] for w in ("w1", "w3")) for e in range(4)]
    assert torch.equal(experts.gate_up_proj_scale_inv, torch.tensor(scales)[..., None])
    assert torch.equal(experts.gate_up_proj_activation_scale, torch.tensor(inputs))
    model.save_pretrained(tmp_path / "saved")
    assert equal(tmp_path / "raw", tmp_path / "saved")


def test_a_new_model_with_the_configuration_of_an_fp8_folder_is_saved_plain(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", "text only", fp8=True)
    run(tmp_path / "raw", tmp_path / "fp8")
    model = Small4ForCausalLM(Small4Config.from_pretrained(tmp_path / "fp8"))
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    rc.same_bits(rc.read_all(tmp_path / "saved"), {k: v.detach() for k, v in model.state_dict().items()})
