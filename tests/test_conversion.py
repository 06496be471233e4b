"""Conversion between the three layouts: logits against transformers' own classes, and round trips bit by bit."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import raw_checkpoint as rc
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small4_conversion import verify
from small4_conversion.__main__ import main as convert_main
from small4_conversion.convert import Options, Summary, convert
from small4_conversion.naming import fused_shape, leaves
from tekken_files import write_tekken
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    Mistral3ForConditionalGeneration,
    Mistral4ForCausalLM,
    PreTrainedModel,
)
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from modeling_small4 import Small4Config, Small4ForCausalLM

CASES: dict[str, dict[str, Any]] = {
    "released": {},
    "text only": {"vision": False},
    "scaled": {"apply_scale": True},
    "heads": {
        "n_heads": 3,
        "n_kv_heads": 3,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 8,
        "v_head_dim": 32,
        "head_dim": 32,
    },
    "experts": {"moe": {"num_experts": 6, "num_experts_per_tok": 3, "num_shared_experts": 2, "routed_scale": 1.5}},
    "groups": {"moe": {"num_experts": 8, "num_expert_groups": 4, "num_expert_groups_per_tok": 2}},
    "dense first": {"moe": {"first_k_dense_replace": 1}},
    "tied": {"tied_embeddings": True},
    "tower": {
        "tower": {
            "patch_size": 8,
            "spatial_merge_size": 3,
            "num_attention_heads": 3,
            "adapter_bias": True,
            "image_size": 96,
        }
    },
}


def raw_case(
    folder: Path, name: str = "released", seed: int = 0, fp8: bool = False, **writing: Any
) -> tuple[dict[str, Any], rc.Tensors]:
    """Write a raw checkpoint; returns its params and the tensors stored."""
    p = rc.params(**CASES[name])
    raw = rc.weights(p, seed)
    if fp8:
        p, raw = rc.fp8_params(p), rc.to_fp8(raw, seed)
    rc.write_raw(folder, p, raw, **writing)
    return p, raw


def run(src: Path, dst: Path, **options: Any) -> Summary:
    return convert(src, dst, Options(**options))


def check_logits(model: PreTrainedModel, p: dict[str, Any], raw: rc.Tensors, tolerance: float = 1e-5) -> None:
    """The model's logits on text and images against transformers' classes, both in float32."""
    host = rc.host_model(p, rc.dequantized(raw))
    model = model.float().eval()
    with torch.no_grad():
        for batch in rc.inputs(p):
            expected, found = host(**batch).logits, model(**batch).logits
            assert expected.std() > 0.5
            torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def equal(a: Path, b: Path) -> bool:
    return not verify.compare(a, b)[1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fp8", [False, True])
def test_raw_to_ours_gives_the_logits_of_transformers(tmp_path: Path, name: str, fp8: bool) -> None:
    p, raw = raw_case(tmp_path / "raw", name, seed=1, fp8=fp8)
    run(tmp_path / "raw", tmp_path / "ours")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32), p, raw)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fp8", [False, True])
def test_raw_to_ours_to_raw_is_bit_exact(tmp_path: Path, name: str, fp8: bool) -> None:
    _p, raw = raw_case(tmp_path / "raw", name, seed=2, fp8=fp8, shards=3)
    run(tmp_path / "raw", tmp_path / "ours", shard_size=150_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    run(tmp_path / "ours", tmp_path / "back", to="mistral", shard_size=200_000)
    rc.same_bits(rc.read_all(tmp_path / "back"), raw)
    for file in ("params.json", "tekken.json", "SYSTEM_PROMPT.txt"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "raw" / file).read_bytes()
    assert equal(tmp_path / "raw", tmp_path / "ours")


@pytest.mark.parametrize("name", CASES)
def test_ours_to_transformers_loads_in_its_own_classes(tmp_path: Path, name: str) -> None:
    p, raw = raw_case(tmp_path / "raw", name, seed=3, fp8=name == "experts")
    run(tmp_path / "raw", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "hf", to="transformers", dtype="bfloat16")
    kind = Mistral3ForConditionalGeneration if "vision_encoder" in p else Mistral4ForCausalLM
    model, info = kind.from_pretrained(tmp_path / "hf", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    check_logits(model, p, raw)
    rule = "transformers" if p["yarn"]["apply_scale"] else None
    run(tmp_path / "hf", tmp_path / "again", softmax_scale=rule)
    run(tmp_path / "ours", tmp_path / "plain", dtype="bfloat16")
    rc.same_bits(rc.read_all(tmp_path / "again"), rc.read_all(tmp_path / "plain"))
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "again"), p, raw)


@pytest.mark.parametrize("name", ["released", "text only", "tied", "tower"])
def test_folders_saved_by_transformers_convert(tmp_path: Path, name: str) -> None:
    p = rc.params(**CASES[name])
    raw = rc.weights(p, seed=4)
    rc.host_model(p, raw).bfloat16().save_pretrained(tmp_path / "hf", max_shard_size="200KB")
    run(tmp_path / "hf", tmp_path / "ours")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours"), p, raw)
    run(tmp_path / "hf", tmp_path / "raw", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "raw"), raw)
    written = json.loads((tmp_path / "raw" / "params.json").read_text())
    for key in ("dim", "n_layers", "n_heads", "norm_eps", "yarn", "llama_4_scaling", "tied_embeddings", "v_head_dim"):
        assert written[key] == p[key], key


def published_folder(folder: Path, p: dict[str, Any], raw: rc.Tensors, fp8: bool = False) -> Path:
    """The transformers layout as published: older prefixes, FP8 with one scale per expert (gate and up made to agree)."""
    write_tekken(folder, p["vocab_size"] - 1000)
    host = rc.host_model(p, rc.dequantized(raw))
    state = rc.host_state(p, rc.dequantized(raw))
    config = json.loads(host.config.to_json_string(use_diff=False))
    if fp8:
        state = _published_fp8(p, raw, state)
        config["quantization_config"] = {
            "activation_scheme": "static", "dequantize": False, "quant_method": "fp8", "weight_block_size": None,
            "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        }  # fmt: skip
    config["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    text_only = "vision_encoder" not in p

    def old(name: str) -> str:
        if text_only:
            return name.replace("model.language_model.", "model.")
        name = name.replace("lm_head.", "language_model.lm_head.")
        return name.replace("model.language_model.", "language_model.model.").removeprefix("model.")

    save_file({old(name): tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def _published_fp8(p: dict[str, Any], raw: rc.Tensors, state: rc.Tensors) -> rc.Tensors:
    scales = {k: v for k, v in raw.items() if ".qscale_" in k}
    codes = rc.host_state(p, {k: v for k, v in raw.items() if k not in scales})
    out = dict(codes)
    for kind, suffix in (("qscale_weight", "weight_scale_inv"), ("qscale_act", "activation_scale")):
        stand_in = {
            k.replace(kind, "weight"): v for k, v in scales.items() if k.endswith(kind) and ".experts." not in k
        }
        for name, value in rc.host_state(p | {"n_layers": 0}, stand_in).items():
            out[name.replace(".weight", f".{suffix}")] = value
    for i in range(p["n_layers"]):
        base, experts = f"model.language_model.layers.{i}.mlp.experts", range(p["moe"]["num_experts"])
        for name, w in (("gate_up_proj", "w1"), ("down_proj", "w2")):
            per_expert = [
                [raw[f"layers.{i}.experts.{e}.{w}.{k}"] for e in experts] for k in ("qscale_weight", "qscale_act")
            ]
            out[f"{base}.{name}_scale_inv"] = torch.stack(per_expert[0]).view(-1, 1, 1)
            out[f"{base}.{name}_activation_scale"] = torch.stack(per_expert[1])
    assert state.keys() <= out.keys()
    return out


def shared_scales(raw: rc.Tensors) -> rc.Tensors:
    """The same FP8 codes, with the up projection's scales set to those of the gate."""
    return {
        k: raw[k.replace(".w3.", ".w1.")] if ".experts." in k and ".w3.qscale" in k and ".shared" not in k else v
        for k, v in raw.items()
    }


@pytest.mark.parametrize("name", ["released", "text only"])
def test_published_plain_folder(tmp_path: Path, name: str) -> None:
    p = rc.params(**CASES[name])
    raw = rc.weights(p, seed=5)
    folder = published_folder(tmp_path / "hf", p, raw)
    check_logits(Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32), p, raw)
    run(folder, tmp_path / "raw", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "raw"), raw)


@pytest.mark.parametrize("name", ["released", "text only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_fp8_folder_loads_with_expert_scales(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    p = rc.params(**CASES[name])
    raw = shared_scales(rc.to_fp8(rc.weights(p, seed=6), seed=6))
    folder = published_folder(tmp_path / "hf", p, raw, fp8=True)
    model = Small4ForCausalLM.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    check_logits(model, p, raw)
    run(folder, tmp_path / "raw", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "raw"), raw)
    run(tmp_path / "raw", tmp_path / "again", to="transformers")
    stored = rc.read_all(tmp_path / "again")
    assert next(v for k, v in stored.items() if k.endswith("gate_up_proj_scale_inv")).shape == (4, 1, 1)
    assert equal(folder, tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_folder_of_ours_loads_announced_and_saves_plain(
    tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    p, raw = raw_case(tmp_path / "raw", seed=7, fp8=True)
    run(tmp_path / "raw", tmp_path / "ours")
    stored = rc.read_all(tmp_path / "ours")
    assert stored["model.language_model.layers.0.mlp.experts.gate_up_proj_scale_inv"].shape == (4, 2, 1)
    with caplog.at_level("WARNING"):
        import transformers

        transformers.utils.logging.enable_propagation()
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype)
        transformers.utils.logging.disable_propagation()
    assert "GB of memory" in caplog.text
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


def test_fp8_without_scales_of_some_experts_is_refused(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", fp8=True)
    run(tmp_path / "raw", tmp_path / "ours")
    tensors = rc.read_all(tmp_path / "ours")
    del tensors["model.language_model.layers.0.mlp.experts.gate_up_proj_scale_inv"]
    save_file(tensors, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="conversion of the weights"):
        Small4ForCausalLM.from_pretrained(tmp_path / "ours")
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
def test_fp8_is_dequantised_as_the_release_does(tmp_path: Path, to: str, dtype: str) -> None:
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


@pytest.mark.parametrize("to", ["small4", "mistral"])
def test_nvfp4_experts_are_read(tmp_path: Path, to: str) -> None:
    p = rc.params() | {"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}}
    stored, plain = rc.to_nvfp4(rc.weights(p, seed=9))
    rc.write_raw(tmp_path / "raw", p, stored)
    notes: list[str] = []
    convert(tmp_path / "raw", tmp_path / "out", Options(to=to), notes.append)
    assert any("NVFP4" in note and "bfloat16" in note for note in notes)
    rc.same_bits(rc.read_all(tmp_path / "out"), plain if to == "mistral" else rc.host_state(p, plain))
    if to == "mistral":
        assert "quantization_config" not in json.loads((tmp_path / "out" / "params.json").read_text())
    assert equal(tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(("shards", "index"), [(1, False), (1, True), (3, True)])
def test_raw_files_with_and_without_index(tmp_path: Path, shards: int, index: bool) -> None:
    _, raw = raw_case(tmp_path / "raw", shards=shards, index=index)
    run(tmp_path / "raw", tmp_path / "out", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "out"), raw)


def test_params_follow_a_changed_configuration(tmp_path: Path) -> None:
    """What a folder once came with is used only as long as it is true."""
    p, _ = raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["text_config"]["softmax_scale_rule"] = "transformers"
    config["text_config"]["rms_norm_eps"] = 1e-5
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    written = json.loads((tmp_path / "back" / "params.json").read_text())
    assert written["yarn"]["apply_scale"] is True
    assert written["norm_eps"] == 1e-5
    assert written["moe"]["renorm_strategy"] == "WEIGHTS"
    assert written["vision_encoder"]["max_image_size"] == 98
    assert written | {"yarn": p["yarn"], "norm_eps": p["norm_eps"]} == p


def test_unsaid_vision_settings_are_those_of_pixtral(tmp_path: Path) -> None:
    p = rc.params(tower={"patch_size": 16})
    raw = rc.weights(p, seed=12)
    published_folder(tmp_path / "hf", p, raw)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key in ("hidden_act", "patch_size", "image_size"):
        del config["vision_config"][key]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    run(tmp_path / "hf", tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())["vision_config"]
    assert (written["hidden_act"], written["patch_size"], written["image_size"]) == ("gelu", 16, 1024)


def test_the_table_counts_the_release_exactly() -> None:
    sizes = [math.prod(leaf.shape) for leaf in leaves(Small4Config())]
    assert sum(sizes) == 119_401_298_944
    text_only = [math.prod(leaf.shape) for leaf in leaves(Small4Config(vision_config=None))]
    assert sum(text_only) == 118_972_826_624
    fused: dict[str, int] = {}
    for leaf in leaves(Small4Config()):
        fused.setdefault(leaf.name, math.prod(fused_shape(leaf, 128)))
    assert sum(fused.values()) == 119_401_298_944
    assert len({leaf.raw for leaf in leaves(Small4Config())}) == len(sizes)


def test_softmax_scale_of_transformers_folders_is_chosen_and_told(tmp_path: Path) -> None:
    p, raw = raw_case(tmp_path / "raw", "scaled", seed=10)
    run(tmp_path / "raw", tmp_path / "hf", to="transformers")
    for rule in ("released", "transformers"):
        notes: list[str] = []
        convert(tmp_path / "hf", tmp_path / rule, Options(softmax_scale=rule), notes.append)
        assert any(note.startswith(f"softmax scale: {rule}") and "mscale_all_dim 1.0" in note for note in notes)
        config = json.loads((tmp_path / rule / "config.json").read_text())
        assert config["text_config"]["softmax_scale_rule"] == rule
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "transformers"), p, raw)
    p["yarn"]["apply_scale"] = False
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "released"), p, raw)


def test_loads_with_auto_classes_generation_defaults_included(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", seed=11)
    run(tmp_path / "raw", tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 11)
    assert settings.reasoning_token_ids["think"] == 34
    assert processor.image_processor.max_image_size == 98
    batch = processor.apply_chat_template([{"role": "user", "content": "hi"}], reasoning_mode="high")
    assert model.generate(**batch, max_new_tokens=3, reasoning_mode="high").shape[1] == batch["input_ids"].shape[1] + 3
    names = {entry.name for entry in (tmp_path / "ours").iterdir()}
    assert not any(name.endswith(".py") for name in names)
    assert "auto_map" not in (tmp_path / "ours" / "config.json").read_text()


def test_bodies_start_at_multiples_of_their_width(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", "heads", fp8=True)
    run(tmp_path / "raw", tmp_path / "ours")
    data = (tmp_path / "ours" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % {"BF16": 2, "F8_E4M3": 1}[entry["dtype"]] == 0
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, raw = raw_case(tmp_path / "raw")
    assert convert_main([str(tmp_path / "raw"), str(tmp_path / "a")]) == 0
    shown = capsys.readouterr()
    assert "72 tensors" in shown.out or "tensors, " in shown.out
    assert "softmax scale: released" in shown.out
    assert "peak memory" in shown.out
    assert not shown.err
    assert convert_main([str(tmp_path / "raw"), str(tmp_path / "b"), "--to", "mistral", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.keys() == {"tensors", "bytes", "seconds", "peak_rss_bytes"}
    assert summary["tensors"] == len(raw)
    assert summary["bytes"] == sum(t.numel() * t.element_size() for t in raw.values())


@pytest.mark.parametrize(
    "arguments",
    [[], ["only-one"], ["a", "b", "--to", "gguf"], ["a", "b", "--dtype", "int4"], ["a", "b", "--shard-size", "big"]],
)
def test_wrong_usage_is_status_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as status:
        convert_main(arguments)
    assert status.value.code == 2


@pytest.mark.parametrize("to", ["small4", "transformers"])
def test_fp8_kept_for_devices_that_compute_in_it(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers would not dequantise, its FP8 modules get the same codes and scales, and saving gives the same model."""
    _, raw = raw_case(tmp_path / "raw", seed=13, fp8=True)
    run(tmp_path / "raw", tmp_path / "fp8", to=to)
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
