"""A whole checkpoint folder of a tiny random model: weights, Tekken tokenizer, processor, generation settings."""

import json
from pathlib import Path

import torch
from small4_conversion.tokenizer import write_processor

from model_card.evals.fuzz.folders import VISION
from model_card.tekken_content import published
from modeling_small4 import Small4Config, Small4ForCausalLM

SPECIAL, VOCABULARY = 1000, 1400


def write_tiny_checkpoint(folder: Path, vision: bool = True, seed: int = 0) -> Path:
    """Writes the folder and returns it. Control tokens other than `</s>` and the thinking marks are never generated."""
    config = Small4Config(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": VISION["max_image_size"], "patch_size": VISION["patch_size"],
        }
        if vision
        else None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Small4ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[:SPECIAL] *= 0.02
        model.lm_head.weight[[2, 34, 35]] *= 100
    model.save_pretrained(folder)
    (folder / "source-tekken.json").write_text(
        json.dumps(published(VOCABULARY, SPECIAL), ensure_ascii=False), encoding="utf-8"
    )
    write_processor(folder / "source-tekken.json", folder, VISION if vision else None)
    (folder / "source-tekken.json").unlink()
    return folder
