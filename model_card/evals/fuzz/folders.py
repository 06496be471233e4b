"""The sound folders that are damaged: one tiny random checkpoint in every layout, its parts, and adapters."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from small4_conversion.convert import Options, convert
from small4_conversion.tokenizer import write_processor

from model_card.tekken_content import published
from modeling_small4 import Small4Config, Small4ForCausalLM

VOCABULARY, SPECIAL = 384, 64
VISION = {"patch_size": 14, "max_image_size": 56, "spatial_merge_size": 2}


def write_sound(root: Path) -> Path:
    """Write all of them below `root`: `ours`, `raw`, `hf`, `one` (ours in a single file), `other` (other weights),
    `adapter`, `parts`.
    """
    config = Small4Config(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": VISION["max_image_size"], "patch_size": VISION["patch_size"],
        },
    )  # fmt: skip
    torch.manual_seed(0)
    one = root / "one"
    Small4ForCausalLM(config).save_pretrained(one)
    (root / "tekken.json").write_text(json.dumps(published(VOCABULARY, SPECIAL), ensure_ascii=False), encoding="utf-8")
    write_processor(root / "tekken.json", one, VISION)
    Small4ForCausalLM(config).save_pretrained(root / "other")
    write_processor(root / "tekken.json", root / "other", VISION)
    convert(one, root / "ours", Options(shard_size=40_000))
    convert(one, root / "raw", Options(to="mistral", shard_size=40_000))
    convert(one, root / "hf", Options(to="transformers"))
    (root / "parts").mkdir()
    save_file(_parts(), root / "parts" / "model.safetensors", metadata={"format": "pt"})
    _write_adapter(root / "adapter", one)
    return root


def _parts() -> dict[str, torch.Tensor]:
    """Tensors of several dtypes and shapes, among them a number and an empty one."""
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(4, 6, generator=generator)
    return {
        "layers.0.weight": plain, "layers.0.half": plain.bfloat16(), "layers.1.codes": plain.to(torch.float8_e4m3fn),
        "layers.1.bytes": torch.arange(24, dtype=torch.uint8).view(2, 12), "layers.1.words": torch.arange(6).int(),
        "scale": torch.tensor(0.5), "empty": torch.zeros(0, 3), "norm.weight": torch.ones(6),
    }  # fmt: skip


def _write_adapter(folder: Path, base: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from modeling_small4 import lora_targets

    model = Small4ForCausalLM.from_pretrained(base)
    torch.manual_seed(2)
    peft = get_peft_model(model, LoraConfig(r=2, **lora_targets()))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1)
    peft.save_pretrained(str(folder))
