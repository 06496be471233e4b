"""Small checkpoint folders of ours whose weights are stored in a form, each beside one with the same numbers in
bfloat16.

Written by hand from the description of our layout, without a look at converter and loader. Codes and scales are drawn
at random, so that gate and up rows, experts and blocks all differ; their numbers are worked out with whole tensors, in
float32, rounded once.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from oracle import VISION
from safetensors.torch import load_file, save_file

from modeling_small4 import Small4Config, Small4ForCausalLM

Tensors = dict[str, torch.Tensor]
FORMS = (
    *("fp8", "fp8 shared", "fp8 rows", "fp8 blocks", "nvfp4", "nvfp4 all"),
    *("int4 32", "int4 64", "int4 128", "int4 zeros"),
)
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])


def config(form: str, vision: bool = True, sizes: dict[str, int] | None = None) -> Small4Config:
    """Widths that divide into the groups of the form, and where blocks do not need it, not."""
    width = 128 if form in ("int4 64", "int4 128") else 160
    text = {
        "vocab_size": 1100, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0,
        "original_max_position_embeddings": 32,
                            "llama_4_scaling_beta": 0.1},
    }  # fmt: skip
    return Small4Config(text_config=text | (sizes or {}), vision_config=VISION if vision else None)


def entry(form: str) -> dict[str, object]:
    """`quantization_config` of the folder."""
    if form.startswith("fp8"):
        scheme = "static" if form in ("fp8", "fp8 shared") else "dynamic"
        blocks = [128, 128] if form == "fp8 blocks" else None
        return {
            "quant_method": "fp8",
            "activation_scheme": scheme,
            "weight_block_size": blocks,
            "modules_to_not_convert": ["lm_head"],
        }
    word = "nvfp4-pack-quantized" if form.startswith("nvfp4") else "pack-quantized"
    return {"quant_method": "compressed-tensors", "format": word, "ignore": ["lm_head"]}


def is_stored(form: str, name: str) -> bool:
    """Whether the form quantizes this weight: all text linears and experts, or of NVFP4 as released only the
    experts.
    """
    inside = ".language_model.layers." in name and (name.endswith("_proj") or "_proj" in name) and "norm" not in name
    return inside and (form != "nvfp4" or "experts" in name)


@dataclass
class Folders:
    """What `write` wrote, and the tensors in it."""

    stored: Path
    expanded: Path
    tensors: Tensors
    numbers: Tensors


def write(folder: Path, form: str, seed: int = 0, vision: bool = True, sizes: dict[str, int] | None = None) -> Folders:
    """Write `folder / "stored"` and `folder / "expanded"`."""
    torch.manual_seed(seed)
    model = Small4ForCausalLM(config(form, vision, sizes)).to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2.5)  # logits far from uniform
    model.save_pretrained(folder / "expanded")
    numbers = load_file(folder / "expanded" / "model.safetensors")
    tensors: Tensors = {}
    for name, weight in numbers.items():
        if is_stored(form, name):
            parts, numbers[name] = draw(form, name, weight)
            tensors |= parts
        else:
            tensors[name] = weight
    save_file(numbers, folder / "expanded" / "model.safetensors", metadata={"format": "pt"})
    (folder / "stored").mkdir()
    save_file(tensors, folder / "stored" / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "expanded" / "config.json").read_text())
    (folder / "stored" / "config.json").write_text(json.dumps(written | {"quantization_config": entry(form)}))
    (folder / "stored" / "generation_config.json").write_bytes(
        (folder / "expanded" / "generation_config.json").read_bytes()
    )
    return Folders(folder / "stored", folder / "expanded", tensors, numbers)


def draw(form: str, name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Random parts of the shape of `weight` and its spread, by their names, and their numbers."""
    experts = weight.shape[0] if weight.ndim == 3 else 0
    halves = 2 if name.endswith("gate_up_proj") else 1
    matrices = weight.reshape(max(1, experts), halves, -1, weight.shape[-1])
    make = _fp8 if form.startswith("fp8") else _nvfp4 if form.startswith("nvfp4") else _int4
    made = [[make(form, tuple(matrix.shape), float(weight.std())) for matrix in pair] for pair in matrices]
    numbers = torch.stack([torch.cat([number for _, number in pair]) for pair in made])
    parts: Tensors = {}
    for end in made[0][0][0]:
        pieces = [[part[end] for part, _ in pair] for pair in made]
        beside = end in ("activation_scale", "input_global_scale")
        if experts:
            one = beside or end == "_global_scale"
            full = torch.stack(
                [torch.stack([p.reshape(()) for p in pair]) if one else torch.cat(pair) for pair in pieces]
            )
            if form == "fp8 shared" and end == "_scale_inv":
                full = full[:, :1].contiguous()
            if end == "activation_scale" and halves == 1:
                full = full[:, 0].contiguous()
            parts[f"{name}_{end}" if beside else name + end] = full
        else:
            stem = name.removesuffix(".weight")
            parts[f"{stem}.{end}" if beside else name + end] = (
                pieces[0][0].reshape(()) if end == "_scale_inv" and form == "fp8" else pieces[0][0]
            )
    if form == "fp8 shared" and halves == 2:  # up rows have the gate's scale
        codes, scale = parts[name].float(), parts[name + "_scale_inv"].float()
        numbers = (codes * scale).to(torch.bfloat16)
    return parts, numbers.reshape(weight.shape)


def _fp8(form: str, shape: tuple[int, int], spread: float) -> tuple[Tensors, torch.Tensor]:
    rows, columns = shape
    codes = (60 * torch.randn(shape)).clamp(-448, 448).to(torch.float8_e4m3fn)
    size = {"fp8 rows": (rows, 1), "fp8 blocks": (-(-rows // 128), -(-columns // 128))}.get(form, (1, 1))
    scale = (spread / 60 * (0.5 + torch.rand(size))).to(torch.float32 if form == "fp8 blocks" else torch.bfloat16)
    high, wide = (128, 128) if form == "fp8 blocks" else (-(-rows // size[0]), columns)
    spreadout = scale.float().repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    parts = {"": codes, "_scale_inv": scale}
    if form in ("fp8", "fp8 shared"):
        parts["activation_scale"] = (0.01 + torch.rand(()) / 50).bfloat16()
    return parts, (codes.float() * spreadout).bfloat16()


def _nvfp4(form: str, shape: tuple[int, int], spread: float) -> tuple[Tensors, torch.Tensor]:
    rows, columns = shape
    codes = torch.randint(0, 16, shape)
    scale = (16 + 64 * torch.rand(rows, columns // 16)).to(torch.float8_e4m3fn)
    divisor = 150 / spread * (0.5 + torch.rand(1))
    numbers = E2M1[codes].view(rows, -1, 16) * scale.float()[..., None] / divisor
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    parts = {"_packed": packed, "_scale": scale, "_global_scale": divisor, "input_global_scale": torch.tensor([123.0])}
    return parts, numbers.view(shape).bfloat16()


def _int4(form: str, shape: tuple[int, int], spread: float) -> tuple[Tensors, torch.Tensor]:
    (rows, columns), group = shape, 32 if form == "int4 zeros" else int(form.split()[1])
    codes = torch.randint(0, 16, shape)
    scale = (spread / 5 * (0.5 + torch.rand(rows, columns // group))).bfloat16()
    zeros = (
        torch.randint(0, 16, (-(-rows // 8) * 8, columns // group))
        if form == "int4 zeros"
        else torch.full((rows, 1), 8)
    )
    numbers = (codes.view(rows, -1, group) - zeros[:rows, :, None]).float() * scale.float()[..., None]
    parts = {"_packed": _packed(codes), "_scale": scale}
    if form == "int4 zeros":
        parts["_zero_point"] = _packed(zeros.T).T.contiguous()
    return parts, numbers.view(shape).bfloat16()


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """Eight codes in an int32, the first in the lowest bits."""
    words = sum(codes[:, place::8].long() << 4 * place for place in range(8))
    assert isinstance(words, torch.Tensor)
    return words.to(torch.int32)
