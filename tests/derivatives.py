"""Checkpoints as people share them: the same weights in the formats of other tools, each encoder spelled out the slow
and plain way.

An encoder takes one matrix and gives what is stored, by the ending of its name, and the exact numbers that it stands
for. Written without a look at our readers; `test_formats_libraries.py` holds them against the formats' own libraries.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raw_checkpoint as rc
import torch
from safetensors.torch import save_file
from tekken_files import write_tekken

Encoded = tuple[dict[str, torch.Tensor], torch.Tensor]
Encoder = Callable[[torch.Tensor], Encoded]

MODULES = {
    "attention.wq_a": "self_attn.q_a_proj", "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.wq_b": "self_attn.q_b_proj",
    "attention.wkv_a_with_mqa": "self_attn.kv_a_proj_with_mqa", "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj", "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate", "shared_experts.w1": "mlp.shared_experts.gate_proj",
    "shared_experts.w2": "mlp.shared_experts.down_proj", "shared_experts.w3": "mlp.shared_experts.up_proj",
}  # fmt: skip
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def unfused_name(raw: str) -> str:
    """What quantizers that see one linear layer for each expert call a raw tensor of a decoder layer."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", raw)
    assert match, raw
    layer, inner = match.groups()
    expert = re.fullmatch(r"experts\.(\d+)\.(w\d)", inner)
    module = f"mlp.experts.{expert[1]}.{PROJECTIONS[expert[2]]}" if expert else MODULES[inner]
    return f"model.language_model.layers.{layer}.{module}.weight"


def unfused(p: dict[str, Any], raw: rc.Tensors) -> rc.Tensors:
    """Plain raw tensors in transformers' names with one tensor for each expert."""
    out = {name: tensor for name, tensor in rc.host_state(p, raw).items() if ".mlp.experts." not in name}
    return out | {unfused_name(name): tensor for name, tensor in raw.items() if ".experts." in name}


def derive(
    p: dict[str, Any],
    raw: rc.Tensors,
    encode: Encoder,
    which: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype | None = None,
) -> tuple[rc.Tensors, rc.Tensors]:
    """Encode the text linears that `which` chooses; returns what is stored in unfused names, and the plain raw tensors
    it stands for, those linears in `dtype` or in their own."""
    plain = dict(raw)
    stored = unfused(p, raw)
    for name, tensor in raw.items():
        if rc.quantized(name, tensor) and which(name):
            parts, numbers = encode(tensor)
            plain[name] = numbers.to(dtype or tensor.dtype)
            stem = unfused_name(name).removesuffix(".weight")
            del stored[f"{stem}.weight"]
            stored |= {f"{stem}.{ending}": part for ending, part in parts.items()}
    return stored, plain


def write_folder(
    folder: Path,
    p: dict[str, Any],
    tensors: rc.Tensors,
    entry: dict[str, Any] | None = None,
    old_names: bool = True,
    **top: Any,
) -> Path:
    """A transformers folder with these tensors (names of ours); `entry` is its quantization_config, `top` goes into
    config.json.
    """
    write_tekken(folder, p["vocab_size"] - 1000)
    config = json.loads(rc.host_config(p).to_json_string(use_diff=False)) | {"dtype": "bfloat16"} | top
    if entry is not None:
        config["quantization_config"] = entry
    (folder / "config.json").write_text(json.dumps(config))
    text_only = "vision_encoder" not in p

    def spelled(name: str) -> str:
        if text_only:
            return name.replace("model.language_model.", "model.")
        if not old_names:
            return name
        name = name.replace("lm_head.", "language_model.lm_head.")
        return name.replace("model.language_model.", "language_model.model.").removeprefix("model.")

    save_file(
        {spelled(name): tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def nearest(value: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index of the nearest entry of a table."""
    return (value.unsqueeze(-1) - table).abs().argmin(-1)


def fp8(scale: str, tensor: torch.Tensor) -> Encoded:
    """E4M3 with scales for "tensor", "row", "block" (transformers' names) or, in compressed-tensors' names,
    "channel".
    """
    out, inner = tensor.shape
    number = tensor.float()
    if scale == "block":
        tall, wide = -(-out // 128), -(-inner // 128)
        scales = torch.zeros(tall, wide)
        for i in range(tall):
            for j in range(wide):
                scales[i, j] = number[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].abs().max() / 448
        each = torch.stack([scales[i // 128] for i in range(out)])
        each = torch.stack([each[:, j // 128] for j in range(inner)], dim=1)
    elif scale == "tensor":
        scales = number.abs().max() / 448
        each = scales
    else:
        scales = (number.abs().amax(1, keepdim=True) / 448).bfloat16()
        each = scales.float()
    codes = (number / each).clamp(-448, 448).to(torch.float8_e4m3fn)
    name = "weight_scale" if scale == "channel" else "weight_scale_inv"
    return {"weight": codes, name: scales}, codes.float() * each


def nvfp4(tensor: torch.Tensor) -> Encoded:
    """NVFP4 as compressed-tensors stores it."""
    stored, plain = rc.to_nvfp4({"x.experts.0.weight": tensor})
    parts = {name.removeprefix("x.experts.0."): part for name, part in stored.items()}
    return parts, plain["x.experts.0.weight"]


def pack_row(codes: list[int], bits: int) -> list[int]:
    """Codes of a row into 32-bit words, one long number, lowest bits first."""
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    words = -(-len(codes) * bits // 32)
    unsigned = [(number >> (32 * k)) & 0xFFFFFFFF for k in range(words)]
    return [word - 2**32 if word >= 2**31 else word for word in unsigned]


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of codes as int32 words."""
    return torch.tensor([pack_row(row, bits) for row in codes.tolist()], dtype=torch.int32)


def grouped(
    tensor: torch.Tensor, group: int, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Codes [out, in], scales and zeros [out, groups] of a rounding to groups."""
    out, inner = tensor.shape
    blocks, top = tensor.float().view(out, inner // group, group), 2**bits - 1
    if symmetric:
        scales = (blocks.abs().amax(-1) / (top / 2)).to(dtype)
        zeros = torch.full(scales.shape, 2 ** (bits - 1))
    else:
        least, most = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        scales = ((most - least) / top).to(dtype)
        zeros = (-least / scales.float()).round().clamp(1, top).int()
    codes = (blocks / scales.float()[..., None] + zeros[..., None]).round().clamp(0, top).int()
    return codes.view(out, inner), scales, zeros


def value(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group: int) -> torch.Tensor:
    """What codes stand for."""
    each = torch.arange(codes.shape[1]) // group
    return (codes.float() - zeros.float()[:, each]) * scales.float()[:, each]


def compressed_int(
    group: int, bits: int, symmetric: bool, tensor: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> Encoded:
    """W4A16 and W8A16 of compressed-tensors, pack-quantized."""
    codes, scales, zeros = grouped(tensor, group, bits, symmetric, dtype)
    parts = {"weight_packed": packed(codes, bits), "weight_scale": scales, "weight_shape": torch.tensor(tensor.shape)}
    if not symmetric:
        parts["weight_zero_point"] = packed(zeros.T, bits).T.contiguous()
    return parts, value(codes, scales, zeros, group)


def compressed_entry(form: str, **weights: Any) -> dict[str, Any]:
    """A `quantization_config` in the words of compressed-tensors."""
    common = {"dynamic": False, "symmetric": True, "observer": "minmax", "actorder": None, "block_structure": None}
    group = {
        "targets": ["Linear"],
        "weights": common | weights,
        "input_activations": None,
        "output_activations": None,
        "format": form,
    }
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*vision.*", "re:.*gate$"], "quantization_status": "compressed",
        "global_compression_ratio": None,
    }  # fmt: skip


def int_entry(group: int, bits: int, symmetric: bool) -> dict[str, Any]:
    """The same for packed integers."""
    return compressed_entry(
        "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=group, symmetric=symmetric
    )


FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
FP8_ENTRY = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "dynamic"}
CHANNEL = compressed_entry("float-quantized", num_bits=8, type="float", strategy="channel", group_size=None)
NVFP4 = compressed_entry("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)


def gptq(
    group: int, bits: int, tensor: torch.Tensor, version: int = 1, order: bool = False, symmetric: bool = True
) -> Encoded:
    """GPTQ: columns in the order of `g_idx`, words along the inputs, zeros less one in version 1."""
    out, inner = tensor.shape
    groups = torch.arange(inner) // group
    if order:
        groups = groups[torch.randperm(inner, generator=torch.Generator().manual_seed(inner))]
    codes, scales, zeros = torch.zeros(out, inner, dtype=torch.int32), [], []
    for g in range(inner // group):
        columns = (groups == g).nonzero()[:, 0]
        some, scale, zero = grouped(tensor[:, columns], group, bits, symmetric, torch.float16)
        codes[:, columns], scales, zeros = some, [*scales, scale[:, 0]], [*zeros, zero[:, 0]]
    table, offsets = torch.stack(scales), torch.stack(zeros)
    parts = {
        "qweight": packed(codes, bits).T,
        "qzeros": packed(offsets - int(version == 1), bits),
        "scales": table,
        "g_idx": groups.int(),
    }
    return parts, (codes.float() - offsets.T[:, groups].float()) * table.T[:, groups].float()


def awq(group: int, tensor: torch.Tensor) -> Encoded:
    """AWQ, "gemm": words along the outputs, columns 0 2 4 6 1 3 5 7 in a word."""
    codes, scales, zeros = grouped(tensor, group, 4, False, torch.float16)

    def words(rows: torch.Tensor) -> torch.Tensor:
        mixed = rows.clone()
        for first in range(0, rows.shape[1], 8):
            for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                mixed[:, first + place] = rows[:, first + column]
        return packed(mixed, 4)

    parts = {"qweight": words(codes.T), "qzeros": words(zeros.T), "scales": scales.T}
    each = torch.arange(tensor.shape[1]) // group
    return parts, (codes.float() - zeros.float()[:, each]) * scales.float()[:, each]


def int8(tensor: torch.Tensor) -> Encoded:
    """W8A8 of compressed-tensors."""
    scale = (tensor.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (tensor.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale.float()


def modelopt(tensor: torch.Tensor) -> Encoded:
    """NVFP4 of ModelOpt: a factor where compressed-tensors has a divisor."""
    parts, _ = nvfp4(tensor)
    codes, scales = parts["weight_packed"], parts["weight_scale"]
    factor = (tensor.float().abs().max() / (448 * 6)).reshape(())
    table = torch.tensor(rc.E2M1 + [-x for x in rc.E2M1])
    values = table[torch.stack((codes & 15, codes >> 4), -1).view(tensor.shape).int()]
    numbers = values * scales.float().repeat_interleave(16, 1) * factor
    stored = {"weight": codes, "weight_scale": scales, "weight_scale_2": factor, "input_scale": torch.tensor(0.5)}
    return stored, numbers


def llm_int8(tensor: torch.Tensor) -> Encoded:
    """LLM.int8 of bitsandbytes."""
    most = tensor.float().abs().amax(1)
    codes = (tensor.float() / most[:, None] * 127).round().to(torch.int8)
    parts = {"weight": codes, "SCB": most, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.float() * (most[:, None] / 127)


NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12]


def bitsandbytes(kind: str, double: bool, tensor: torch.Tensor, block: int = 64) -> Encoded:
    """NF4 and FP4; with `double` the scales are themselves stored in 8 bits, around their mean."""
    table = torch.tensor(NF4 if kind == "nf4" else FP4 + [-x for x in FP4])
    flat = tensor.float().reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(1)
    said: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(tensor.shape)}
    parts = {"weight.quant_map": table}
    if double:
        small = torch.linspace(-1, 1, 256)
        offset = float(absmax.mean())
        scale = (absmax - offset).abs().max().reshape(1).repeat(-(-len(absmax) // 256))
        narrow = nearest((absmax - offset) / scale[0], small).to(torch.uint8)
        parts |= {"weight.absmax": narrow, "weight.nested_absmax": scale, "weight.nested_quant_map": small}
        said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        absmax = small[narrow.int()] * scale[0] + offset
    else:
        parts["weight.absmax"] = absmax
    codes = nearest(blocks / absmax[:, None].clamp(min=1e-12), table).view(-1)[: len(flat)].to(torch.uint8)
    parts["weight"] = ((codes[0::2] << 4) | codes[1::2])[:, None]
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return parts, (table[codes.int()] * absmax.repeat_interleave(block)[: len(flat)]).view(tensor.shape)


GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 16,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
BITS4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
BITS8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
INT8 = compressed_entry("int-quantized", num_bits=8, type="int", strategy="channel", group_size=None)


def mlx(group: int, bits: int, tensor: torch.Tensor) -> Encoded:
    """MLX's affine mode."""
    out, inner = tensor.shape
    blocks, top = tensor.float().view(out, inner // group, group), 2**bits - 1
    bias = blocks.amin(-1).bfloat16()
    scale = ((blocks.amax(-1) - blocks.amin(-1)) / top).bfloat16()
    codes = ((blocks - bias.float()[..., None]) / scale.float()[..., None]).round().clamp(0, top).int()
    parts = {"weight": packed(codes.view(out, inner), bits).view(torch.uint32), "scales": scale, "biases": bias}
    return parts, (codes.float() * scale.float()[..., None] + bias.float()[..., None]).view(out, inner)


def mlx_folder(
    folder: Path, p: dict[str, Any], raw: rc.Tensors, bits: int, group: int = 32, vision: bool = False
) -> rc.Tensors:
    """A folder as mlx-lm writes it, or with `vision` as mlx-vlm does; returns the plain raw tensors it stands for. bits
    0: not quantized.
    """
    heads, rank = p["n_heads"], p["kv_lora_rank"]
    nope, wide = p["qk_nope_head_dim"], p["v_head_dim"]
    stored, plain = {}, dict(raw)
    experts: dict[str, list[dict[str, torch.Tensor]]] = {}

    def encoded(tensor: torch.Tensor) -> Encoded:
        return mlx(group, bits, tensor) if bits else ({"weight": tensor}, tensor.float())

    def put(stem: str, tensor: torch.Tensor) -> torch.Tensor:
        parts, numbers = encoded(tensor)
        stored.update({f"{stem}.{ending}": part for ending, part in parts.items()})
        return numbers.to(tensor.dtype)

    def by_head(stem: str, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
        both = [encoded(matrix) for matrix in matrices]
        for ending in both[0][0]:
            stored[f"{stem}.{ending}"] = torch.stack([parts[ending] for parts, _ in both])
        return [numbers.bfloat16() for _, numbers in both]

    for name, tensor in raw.items():
        if not name.startswith("layers."):
            continue
        stem = unfused_name(name).removesuffix(".weight")
        if ".experts." in name:
            parts, numbers = encoded(tensor)
            module, _, projection = stem.rpartition(".")
            experts.setdefault(f"{module.rpartition('.experts')[0]}.switch_mlp.{projection}", []).append(parts)
            plain[name] = numbers.to(tensor.dtype)
        elif ".wkv_b." in name and not vision:
            split = tensor.view(heads, nope + wide, rank)
            keys = by_head(stem.replace("kv_b_proj", "embed_q"), [m[:nope].T for m in split])
            values = by_head(stem.replace("kv_b_proj", "unembed_out"), [m[nope:] for m in split])
            plain[name] = torch.cat([torch.cat((k.T, v)) for k, v in zip(keys, values, strict=True)])
        elif tensor.ndim == 2:
            plain[name] = put(stem, tensor)
        else:
            stored[f"{stem}.weight"] = tensor
    for stem, each in experts.items():
        for ending in each[0]:
            stored[f"{stem}.{ending}"] = torch.stack([parts[ending] for parts in each])
    plain["tok_embeddings.weight"] = put("model.language_model.embed_tokens", raw["tok_embeddings.weight"])
    plain["output.weight"] = put("lm_head", raw["output.weight"])
    stored["model.language_model.norm.weight"] = raw["norm.weight"]
    for name, tensor in rc.host_state(p, raw).items():
        if name.startswith(("model.vision_tower.", "model.multi_modal")) and vision:
            last = tensor.permute(0, 2, 3, 1) if "patch_conv" in name else tensor
            stored[name.replace("vision_tower.", "vision_tower.vision_model.")] = last
    entry = {"group_size": group, "bits": bits, "mode": "affine"}
    write_folder(folder, p, stored, **({"quantization": entry, "quantization_config": entry} if bits else {}))
    return plain if vision else {k: v for k, v in plain.items() if not k.startswith(("vision", "patch_m", "pre_mm"))}
