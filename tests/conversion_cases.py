"""Raw checkpoints of many forms, their published transformers layout, and logits against transformers' classes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import raw_checkpoint as rc
import torch
from safetensors.torch import save_file
from small4_conversion import verify
from small4_conversion.convert import Options, Summary, convert
from tekken_files import write_tekken
from transformers import PreTrainedModel

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
    check_same([model], p, raw, tolerance)


def check_same(models: Iterable[PreTrainedModel], p: dict[str, Any], raw: rc.Tensors, tolerance: float = 1e-5) -> None:
    """`check_logits` of models that are all of these weights."""
    host = rc.host_model(p, rc.dequantized(raw))
    with torch.no_grad():
        cases = [(batch, host(**batch).logits) for batch in rc.inputs(p)]
        for model in models:
            model = model.float().eval()
            for batch, expected in cases:
                assert expected.std() > 0.5
                found = model(**batch).logits
                torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def equal(a: Path, b: Path) -> bool:
    return not verify.compare(a, b)[1]


def published_folder(folder: Path, p: dict[str, Any], raw: rc.Tensors, fp8: bool = False) -> Path:
    """The transformers layout as published: older prefixes, FP8 with one scale per expert (gate and up made to
    agree).
    """
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
