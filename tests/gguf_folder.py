"""Small GGUF checkpoints as llama.cpp's converter writes them, through the `gguf` package; names and changes spelled
out once more.
"""

from pathlib import Path
from typing import Any

import numpy as np
import raw_checkpoint as rc
import torch

LAYER = {
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "gate": "ffn_gate_inp", "attention.wq_a": "attn_q_a",
    "attention.q_a_norm": "attn_q_a_norm", "attention.wq_b": "attn_q_b", "attention.wkv_a_with_mqa": "attn_kv_a_mqa",
    "attention.kv_a_norm": "attn_kv_a_norm", "attention.wo": "attn_output", "shared_experts.w1": "ffn_gate_shexp",
    "shared_experts.w2": "ffn_down_shexp", "shared_experts.w3": "ffn_up_shexp", "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up",
}  # fmt: skip
VISION = {
    "vision_encoder.patch_conv": "v.patch_embd", "vision_encoder.ln_pre": "v.pre_ln",
    "pre_mm_projector_norm": "mm.input_norm",
    "patch_merger.merging_layer": "mm.patch_merger", "vision_language_adapter.w_in": "mm.1",
    "vision_language_adapter.w_out": "mm.2",
}  # fmt: skip
TOWER = {
    "attention_norm": "ln1", "ffn_norm": "ln2", "attention.wq": "attn_q", "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_out", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}  # fmt: skip


def tensors(p: dict[str, Any], raw: rc.Tensors, gate_up: bool) -> rc.Tensors:
    """Raw tensors under llama.cpp's names. gate_up: gate and up rows of an expert in one tensor, as from transformers'
    layout.
    """
    names = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"} | VISION
    out: rc.Tensors = {}
    nope, wide = p["qk_nope_head_dim"], p["v_head_dim"]
    for name, tensor in raw.items():
        stem, _, end = name.rpartition(".")
        parts = stem.split(".")
        if stem in names:
            out[f"{names[stem]}.{end}"] = tensor
        elif parts[0] == "vision_encoder":
            out[f"v.blk.{parts[3]}.{TOWER['.'.join(parts[4:])]}.{end}"] = tensor
        elif "wkv_b" in name:
            heads = tensor.view(p["n_heads"], nope + wide, -1)
            out[f"blk.{parts[1]}.attn_k_b.weight"] = heads[:, :nope].transpose(1, 2)
            out[f"blk.{parts[1]}.attn_v_b.weight"] = heads[:, nope:]
        elif ".experts." not in name:
            out[f"blk.{parts[1]}.{LAYER['.'.join(parts[2:])]}.{end}"] = tensor
    for i in range(p["moe"]["first_k_dense_replace"], p["n_layers"]):
        each = [
            torch.stack([raw[f"layers.{i}.experts.{e}.{w}.weight"] for e in range(p["moe"]["num_experts"])])
            for w in ("w1", "w3", "w2")
        ]
        if gate_up:
            out[f"blk.{i}.ffn_gate_up_exps.weight"] = torch.cat(each[:2], dim=1)
        else:
            out[f"blk.{i}.ffn_gate_exps.weight"], out[f"blk.{i}.ffn_up_exps.weight"] = each[:2]
        out[f"blk.{i}.ffn_down_exps.weight"] = each[2]
    return out


def raw_again(p: dict[str, Any], found: rc.Tensors, raw: rc.Tensors, gate_up: bool) -> rc.Tensors:
    """The raw tensors that decoded tensors of `tensors` are: the same function with numbered tensors tells where each
    value went.
    """
    count, numbered = 0, {}
    for name, tensor in raw.items():
        numbered[name] = torch.arange(count, count + tensor.numel(), dtype=torch.float64).view(tensor.shape)
        count += tensor.numel()
    values = torch.zeros(count)
    for name, places in tensors(p, numbered, gate_up).items():
        values[places.reshape(-1).long()] = found[name].float().reshape(-1)
    return {name: values[places.view(-1).long()].view(places.shape) for name, places in numbered.items()}


def quantized(library: Any, kind: str, tensor: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of bytes in one of llama.cpp's types, and what they stand for. Types that the package cannot write get any
    bytes.
    """
    number = library.GGMLQuantizationType[kind]
    rows = tensor.float().numpy()
    try:
        data = library.quants.quantize(rows, number)
    except NotImplementedError:
        block, size = library.GGML_QUANT_SIZES[number]
        shape = (*rows.shape[:-1], rows.shape[-1] // block * size)
        data = np.random.default_rng(rows.size).integers(0, 64, shape, np.uint8)  # no scale becomes infinite
    return data, torch.from_numpy(library.quants.dequantize(data, number))


def write(
    folder: Path, p: dict[str, Any], raw: rc.Tensors, kind: str, gate_up: bool = False, arch: str = "mistral4"
) -> rc.Tensors:
    """A folder with model.gguf and, where there is a tower, mmproj.gguf; returns the raw tensors it stands for, in
    float32.
    """
    import gguf

    folder.mkdir()
    writers = {
        "model": gguf.GGUFWriter(folder / "model.gguf", arch),
        "mmproj": gguf.GGUFWriter(folder / "mmproj.gguf", "clip"),
    }
    _facts(writers["model"], p, arch)
    if ve := p.get("vision_encoder"):
        _vision_facts(writers["mmproj"], ve)
    number, found = gguf.GGMLQuantizationType[kind], {}
    for name, tensor in tensors(p, raw, gate_up).items():
        writer = writers["mmproj" if name.startswith(("v.", "mm.")) else "model"]
        fallback = kind if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[number][0] == 0 else "Q8_0"
        if tensor.ndim == 1 or "gate_inp" in name or name.startswith(("v.", "mm.")) or tensor.shape[-1] % 32:
            found[name] = tensor
            writer.add_tensor(name, tensor.float().contiguous().numpy())
        else:
            data, found[name] = quantized(gguf, fallback, tensor.contiguous())
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[fallback])
    if "vision_encoder" in p:
        writers["mmproj"].add_tensor("v.token_embd.img_break", raw["tok_embeddings.weight"][12].float().numpy())
    for name, writer in writers.items():
        if name == "model" or "vision_encoder" in p:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        writer.close()
    if "vision_encoder" not in p:
        (folder / "mmproj.gguf").unlink(missing_ok=True)
    return raw_again(p, found, raw, gate_up)


def _facts(writer: Any, p: dict[str, Any], arch: str) -> None:
    moe, yarn = p["moe"], p["yarn"]
    numbers = {
        "block_count": p["n_layers"], "context_length": p["max_position_embeddings"], "embedding_length": p["dim"],
        "feed_forward_length": p["hidden_dim"], "attention.head_count": p["n_heads"], "attention.head_count_kv": 1,
        "attention.q_lora_rank": p["q_lora_rank"], "attention.kv_lora_rank": p["kv_lora_rank"],
        "expert_count": moe["num_experts"],
        "attention.key_length_mla": p["qk_nope_head_dim"] + p["qk_rope_head_dim"],
        "attention.value_length_mla": p["v_head_dim"],
        "rope.dimension_count": p["qk_rope_head_dim"], "expert_used_count": moe["num_experts_per_tok"],
        "expert_feed_forward_length": moe["expert_hidden_dim"], "expert_shared_count": moe["num_shared_experts"],
        "leading_dense_block_count": moe["first_k_dense_replace"], "vocab_size": p["vocab_size"],
        "rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
        "attention.temperature_length": yarn["original_max_position_embeddings"],
    }  # fmt: skip
    floats = {
        "attention.layer_norm_rms_epsilon": p["norm_eps"], "rope.freq_base": p["rope_theta"],
        "rope.scaling.factor": yarn["factor"],
        "rope.scaling.yarn_log_multiplier": 0.1, "expert_weights_scale": moe["routed_scale"],
        "attention.temperature_scale": p["llama_4_scaling"]["beta"],
    }  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"{arch}.{key}", value)
    for key, value in floats.items():
        writer.add_float32(f"{arch}.{key}", value)
    writer.add_string(f"{arch}.rope.scaling.type", "yarn")


def _vision_facts(writer: Any, ve: dict[str, Any]) -> None:
    keys = {
        "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "feed_forward_length": "intermediate_size", "patch_size": "patch_size", "image_size": "image_size",
        "spatial_merge_size": "spatial_merge_size",
    }  # fmt: skip
    for key, name in keys.items():
        writer.add_uint32(f"clip.vision.{key}", ve[name])
    writer.add_float32("clip.rope.freq_base", ve["rope_theta"])
    writer.add_string("clip.projector_type", "pixtral")
