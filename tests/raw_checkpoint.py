"""Small random checkpoints in the raw release layout, and what transformers' own classes make of the same weights.

An oracle written without a look at our converter: its names and changes are spelled out once more, the slow and plain
way.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tekken_files import write_tekken
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral4Config,
    Mistral4ForCausalLM,
    PixtralVisionConfig,
    PreTrainedModel,
)

Tensors = dict[str, torch.Tensor]
FP8_MAX = 448.0
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def params(
    vision: bool = True, moe: dict[str, Any] | None = None, tower: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    """A `params.json`; keywords override its keys. `apply_scale` goes where it belongs."""
    out: dict[str, Any] = {
        "dim": 64, "n_layers": 2, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 4, "head_dim": 32, "norm_eps": 1e-06,
        "vocab_size": 1100, "rope_theta": 10000.0, "tied_embeddings": False, "max_position_embeddings": 1048576,
        "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24,
        "yarn": {"original_max_position_embeddings": 32, "factor": 128, "apply_scale": top.pop("apply_scale", False),
        "beta": 32, "alpha": 1},
        "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.1},
        "moe": {
            "expert_parallel": 1, "route_every_n": 1, "first_k_dense_replace": 0, "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_expert_groups": 1, "num_expert_groups_per_tok": 1, "routed_scale": 1.0, "expert_hidden_dim": 32,
            "num_shared_experts": 1, "renorm_strategy": "WEIGHTS",
        } | (moe or {}),
    }  # fmt: skip
    if vision:
        out["vision_encoder"] = {
            "image_token_id": 10, "image_break_token_id": 12, "image_end_token_id": 13, "intermediate_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 2, "mm_projector_id": "patch_merge", "spatial_merge_size": 2,
            "hidden_size": 48, "num_channels": 3, "image_size": 112, "max_image_size": 98, "patch_size": 14,
            "rope_theta": 10000.0, "add_pre_mm_projector_layer_norm": True, "adapter_bias": False,
        } | (tower or {})  # fmt: skip
    return out | top


def shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every raw tensor and its shape."""
    d, h, moe = p["dim"], p["n_heads"], p["moe"]
    nope, rope, v, r, q = (
        p[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank")
    )
    out: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (p["vocab_size"], d), "norm.weight": (d,)}
    if not p["tied_embeddings"]:
        out["output.weight"] = (p["vocab_size"], d)
    for i in range(p["n_layers"]):
        a = f"layers.{i}"
        out |= {
            f"{a}.attention_norm.weight": (d,), f"{a}.ffn_norm.weight": (d,),
            f"{a}.attention.wq_a.weight": (q, d), f"{a}.attention.q_a_norm.weight": (q,),
            f"{a}.attention.wq_b.weight": (h * (nope + rope), q), f"{a}.attention.wkv_a_with_mqa.weight": (r + rope, d),
            f"{a}.attention.kv_a_norm.weight": (r,), f"{a}.attention.wkv_b.weight": (h * (nope + v), r),
            f"{a}.attention.wo.weight": (d, h * v),
        }  # fmt: skip
        if i < moe["first_k_dense_replace"]:
            groups = [(f"{a}.feed_forward", p["hidden_dim"])]
        else:
            ff = moe["expert_hidden_dim"]
            out[f"{a}.gate.weight"] = (moe["num_experts"], d)
            groups = [(f"{a}.experts.{e}", ff) for e in range(moe["num_experts"])]
            groups.append((f"{a}.shared_experts", ff * moe["num_shared_experts"]))
        for name, width in groups:
            out |= {f"{name}.w1.weight": (width, d), f"{name}.w2.weight": (d, width), f"{name}.w3.weight": (width, d)}
    if ve := p.get("vision_encoder"):
        vd, m, ff, patch = ve["hidden_size"], ve["spatial_merge_size"], ve["intermediate_size"], ve["patch_size"]
        out |= {
            "vision_encoder.patch_conv.weight": (vd, 3, patch, patch), "vision_encoder.ln_pre.weight": (vd,),
            "pre_mm_projector_norm.weight": (vd,), "patch_merger.merging_layer.weight": (vd, vd * m * m),
            "vision_language_adapter.w_in.weight": (d, vd), "vision_language_adapter.w_out.weight": (d, d),
        }  # fmt: skip
        if ve["adapter_bias"]:
            out |= {"vision_language_adapter.w_in.bias": (d,), "vision_language_adapter.w_out.bias": (d,)}
        for i in range(ve["num_hidden_layers"]):
            a = f"vision_encoder.transformer.layers.{i}"
            out |= {f"{a}.attention_norm.weight": (vd,), f"{a}.ffn_norm.weight": (vd,)}
            out |= {f"{a}.attention.{n}.weight": (vd, vd) for n in ("wq", "wk", "wv", "wo")}
            out |= {
                f"{a}.feed_forward.w1.weight": (ff, vd),
                f"{a}.feed_forward.w2.weight": (vd, ff),
                f"{a}.feed_forward.w3.weight": (ff, vd),
            }
    return out


def weights(p: dict[str, Any], seed: int = 0) -> Tensors:
    """Random bfloat16 tensors, scaled so that logits are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes(p).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("bias") or "norm" in name or "ln_pre" in name:
            out[name] = (0.1 * noise + (0 if name.endswith("bias") else 1)).bfloat16()
        else:
            fan_in = noise[0].numel() if noise.ndim == 4 else shape[-1]
            out[name] = (noise / fan_in**0.5 * (p["dim"] ** 0.5 if "tok_emb" in name else 1)).bfloat16()
    return out


def quantized(name: str, tensor: torch.Tensor) -> bool:
    """Whether the FP8 release quantizes this tensor."""
    return tensor.ndim == 2 and name.startswith("layers.") and not name.endswith(".gate.weight")


def to_fp8(raw: Tensors, seed: int = 0, static: bool = True, shape: tuple[int, ...] = ()) -> Tensors:
    """Per-tensor FP8 with scales, as the release stores it."""
    generator, out = torch.Generator().manual_seed(seed + 1), {}
    for name, tensor in raw.items():
        if not quantized(name, tensor):
            out[name] = tensor
            continue
        stem, scale = name.removesuffix(".weight"), tensor.abs().max().float() / FP8_MAX
        out[name] = (tensor.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        out[f"{stem}.qscale_weight"] = scale.bfloat16().reshape(shape)
        if static:
            out[f"{stem}.qscale_act"] = (0.01 + torch.rand((), generator=generator) / 50).bfloat16().reshape(shape)
    return out


def to_nvfp4(raw: Tensors) -> tuple[Tensors, Tensors]:
    """NVFP4 routed and shared experts, as the release stores them (the input's scale in bfloat16 for shared ones);
    returns what is stored and, worked out number by number, what it stands for."""
    stored, plain = {}, {}
    for name, tensor in raw.items():
        if ".experts." not in name and ".shared_experts." not in name:
            stored[name] = plain[name] = tensor
            continue
        out, inner = tensor.shape
        divisor = torch.tensor([448.0 * 6 / float(tensor.abs().max())])
        blocks = tensor.float().view(out, inner // 16, 16)
        scales = (blocks.abs().amax(-1) / 6 * divisor).to(torch.float8_e4m3fn)
        real = scales.float() / divisor
        table = torch.tensor(E2M1 + [-x for x in E2M1])
        nearest = (blocks.unsqueeze(-1) / real.clamp(min=1e-12)[..., None, None] - table).abs().argmin(-1)
        codes = nearest.view(out, inner).to(torch.uint8)
        stored[name + "_packed"] = codes[:, 0::2] | (codes[:, 1::2] << 4)
        stored[name + "_scale"], stored[name + "_global_scale"] = scales, divisor
        given = torch.tensor([123.0], dtype=torch.bfloat16 if ".shared_experts." in name else torch.float32)
        stored[name.removesuffix(".weight") + ".input_global_scale"] = given
        plain[name] = (table[nearest] * scales.float()[..., None] / divisor).view(out, inner).bfloat16()
    return stored, plain


def dequantized(raw: Tensors) -> Tensors:
    """What FP8 tensors stand for, in bfloat16."""
    out = {}
    for name, tensor in raw.items():
        if ".qscale_" in name:
            continue
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = tensor.bfloat16() * raw[name.removesuffix(".weight") + ".qscale_weight"].bfloat16()
        out[name] = tensor
    return out


def write_raw(folder: Path, p: dict[str, Any], raw: Tensors, shards: int = 2, index: bool = False) -> Path:
    """Write the folder; tensors are dealt round, so a layer spans files."""
    folder.mkdir(parents=True)
    text = json.dumps(p, indent=2)
    (folder / "params.json").write_text(text)
    ve = p.get("vision_encoder")
    image = ve and {
        "image_patch_size": ve["patch_size"],
        "max_image_size": ve["max_image_size"],
        "spatial_merge_size": ve["spatial_merge_size"],
    }
    write_tekken(folder, p["vocab_size"] - 1000, image)
    (folder / "SYSTEM_PROMPT.txt").write_text("Be brief.")
    names, mapping = sorted(raw), {}
    for i in range(shards):
        file = "consolidated.safetensors" if shards == 1 else f"consolidated-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: raw[n].contiguous() for n in names[i::shards]}, folder / file, metadata={"format": "pt"})
        mapping |= dict.fromkeys(names[i::shards], file)
    if index:
        (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return folder


def fp8_params(p: dict[str, Any], static: bool = True) -> dict[str, Any]:
    """The same with FP8 announced."""
    return p | {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR" if static else "NO_SCALES"}}


def nvfp4_params(p: dict[str, Any]) -> dict[str, Any]:
    """The same with NVFP4 announced."""
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": 16,
        "symmetric": True,
        "dynamic": False,
    }
    group = {"format": "nvfp4-pack-quantized", "targets": ["Linear"], "weights": weights, "output_activations": None}
    group["input_activations"] = weights | {"dynamic": "local"}
    entry = {
        "config_groups": {"group_0": group},
        "format": "nvfp4-pack-quantized",
        "quant_method": "compressed-tensors",
    }
    return p | {
        "quantization_config": entry
        | {"ignore": ["re:.*attention.*", "re:vision.*"], "quantization_status": "compressed"}
    }


def read_all(folder: Path) -> Tensors:
    """All tensors of a folder."""
    out: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def same_bits(one: Tensors, other: Tensors) -> None:
    """Assert equal names, dtypes, shapes and bytes."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        match = other[name]
        assert (tensor.dtype, tensor.shape) == (match.dtype, match.shape), name
        assert torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), match.contiguous().view(-1).view(torch.uint8)
        ), name


def halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in rotary pairs to rows in halves, one head at a time."""
    width = tensor.shape[0] // heads
    order = [head * width + i for head in range(heads) for i in (*range(0, width, 2), *range(1, width, 2))]
    return tensor[order]


def host_state(p: dict[str, Any], raw: Tensors) -> Tensors:
    """Plain raw tensors under the names of transformers' `Mistral3ForConditionalGeneration`."""
    text = {
        "wq_a": "q_a_proj", "q_a_norm": "q_a_layernorm", "wq_b": "q_b_proj", "wkv_a_with_mqa": "kv_a_proj_with_mqa",
        "kv_a_norm": "kv_a_layernorm", "wkv_b": "kv_b_proj", "wo": "o_proj",
    }  # fmt: skip
    mlp = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    fixed = {
        "tok_embeddings.weight": "model.language_model.embed_tokens.weight",
        "norm.weight": "model.language_model.norm.weight",
        "output.weight": "lm_head.weight", "vision_encoder.patch_conv.weight": "model.vision_tower.patch_conv.weight",
        "vision_encoder.ln_pre.weight": "model.vision_tower.ln_pre.weight",
        "pre_mm_projector_norm.weight": "model.multi_modal_projector.norm.weight",
        "patch_merger.merging_layer.weight": "model.multi_modal_projector.patch_merger.merging_layer.weight",
    }  # fmt: skip
    fixed |= {
        f"vision_language_adapter.{a}.{k}": f"model.multi_modal_projector.{b}.{k}"
        for a, b in (("w_in", "linear_1"), ("w_out", "linear_2"))
        for k in ("weight", "bias")
    }
    out: Tensors = {}
    for name, tensor in raw.items():
        parts = name.split(".")
        if name in fixed:
            out[fixed[name]] = tensor
        elif parts[0] == "layers" and parts[2] != "experts":
            rest = {
                "attention_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
                "gate": "mlp.gate.weight",
                "attention": f"self_attn.{text.get(parts[3])}.weight",
                "feed_forward": f"mlp.{mlp.get(parts[3])}.weight",
                "shared_experts": f"mlp.shared_experts.{mlp.get(parts[3])}.weight",
            }[parts[2]]  # fmt: skip
            out[f"model.language_model.layers.{parts[1]}.{rest}"] = tensor
        elif parts[0] == "vision_encoder":
            heads = p["vision_encoder"]["num_attention_heads"]
            turned = halves(tensor, heads) if parts[5] in ("wq", "wk") else tensor
            part = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"} | mlp
            tail = ".".join([part.get(parts[5], parts[5]), *parts[6:]])
            out[f"model.vision_tower.transformer.layers.{parts[3]}.{parts[4]}.{tail}"] = turned
    for i in range(p["moe"]["first_k_dense_replace"], p["n_layers"]):
        experts = [
            [raw[f"layers.{i}.experts.{e}.{w}.weight"] for w in ("w1", "w3", "w2")]
            for e in range(p["moe"]["num_experts"])
        ]
        base = f"model.language_model.layers.{i}.mlp.experts"
        out[f"{base}.gate_up_proj"] = torch.stack([torch.cat([w1, w3]) for w1, w3, _ in experts])
        out[f"{base}.down_proj"] = torch.stack([w2 for _, _, w2 in experts])
    return out


def host_config(p: dict[str, Any]) -> Mistral3Config | Mistral4Config:
    """transformers' own configuration of this model, without a tower of its text alone."""
    moe, ve = p["moe"], p.get("vision_encoder")
    magnitude = (
        {"mscale": 1.0, "mscale_all_dim": 1.0}
        if p["yarn"]["apply_scale"]
        else {"attention_factor": 1.0, "mscale_all_dim": 0.0}
    )
    text = Mistral4Config(
        vocab_size=p["vocab_size"], hidden_size=p["dim"], intermediate_size=p["hidden_dim"],
            num_hidden_layers=p["n_layers"],
        num_attention_heads=p["n_heads"], num_key_value_heads=p["n_kv_heads"],
            moe_intermediate_size=moe["expert_hidden_dim"],
        n_routed_experts=moe["num_experts"], num_experts_per_tok=moe["num_experts_per_tok"],
            n_shared_experts=moe["num_shared_experts"],
        kv_lora_rank=p["kv_lora_rank"], q_lora_rank=p["q_lora_rank"], qk_rope_head_dim=p["qk_rope_head_dim"],
        qk_nope_head_dim=p["qk_nope_head_dim"], v_head_dim=p["v_head_dim"], routed_scaling_factor=moe["routed_scale"],
        first_k_dense_replace=moe["first_k_dense_replace"], n_group=moe["num_expert_groups"],
            topk_group=moe["num_expert_groups_per_tok"],
        rope_parameters={
            "rope_type": "yarn", "rope_theta": p["rope_theta"], "factor": float(p["yarn"]["factor"]), "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": p["yarn"]["original_max_position_embeddings"], **magnitude,
            "llama_4_scaling_beta": p["llama_4_scaling"]["beta"],
            "partial_rotary_factor": p["qk_rope_head_dim"] / (p["qk_rope_head_dim"] + p["qk_nope_head_dim"]),
        },
        tie_word_embeddings=p["tied_embeddings"],
    )  # fmt: skip
    if ve is None:
        return text
    vision = PixtralVisionConfig(
        **{k: ve[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "image_size", "patch_size")},
        hidden_act="silu", rope_parameters={"rope_theta": ve["rope_theta"], "rope_type": "axial"},
    )  # fmt: skip
    return Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=10, spatial_merge_size=ve["spatial_merge_size"],
        multimodal_projector_bias=ve["adapter_bias"], tie_word_embeddings=p["tied_embeddings"],
    )  # fmt: skip


def host_model(p: dict[str, Any], raw: Tensors) -> PreTrainedModel:
    """transformers' own model of these weights, in float32."""
    config, state = host_config(p), host_state(p, raw)
    if p["tied_embeddings"]:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    if isinstance(config, Mistral4Config):
        model: PreTrainedModel = Mistral4ForCausalLM(config)
        state = {name.replace("model.language_model.", "model."): tensor for name, tensor in state.items()}
    else:
        model = Mistral3ForConditionalGeneration(config)
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    return model.float().eval()


def inputs(p: dict[str, Any], seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """A text batch longer than the original context, and a prompt with two images where there is a tower."""
    generator = torch.Generator().manual_seed(seed + 2)
    ids = torch.randint(1000, p["vocab_size"], (2, 70), generator=generator)
    out = [{"input_ids": ids}]
    if ve := p.get("vision_encoder"):
        unit = ve["patch_size"] * ve["spatial_merge_size"]
        sizes = [(2 * unit, 3 * unit), (3 * unit, unit)]
        image_ids = [i for h, w in sizes for i in [*([*([10] * (w // unit)), 12] * (h // unit))[:-1], 13]]
        pixels = torch.zeros(2, 3, 3 * unit, 3 * unit)
        for k, (h, w) in enumerate(sizes):
            pixels[k, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        prompt = torch.cat([ids[:1, :9], torch.tensor([image_ids]), ids[1:, :9]], dim=1)
        out.append({"input_ids": prompt, "pixel_values": pixels, "image_sizes": torch.tensor(sizes)})
    return out
