"""A whole checkpoint folder of a tiny random model: weights, Tekken tokenizer, processor, generation settings."""

import json
from pathlib import Path
from typing import Any

import mistral_common
import torch
from small4_conversion.tokenizer import write_processor

from modeling_small4 import Small4Config, Small4ForCausalLM

SPECIAL, VOCABULARY = 1000, 1400
RANKS = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 32: "[ARGS]", 34: "[THINK]", 35: "[/THINK]",
    36: "[MODEL_SETTINGS]", 37: "[/MODEL_SETTINGS]",
}  # fmt: skip
VISION = {"patch_size": 14, "max_image_size": 56, "spatial_merge_size": 2}


def tekken() -> dict[str, Any]:
    """A tekken.json of version v15 with the first ranks of the real vocabulary."""
    source = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text("utf-8"))
    special = [
        {"rank": rank, "token_str": RANKS.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(SPECIAL)
    ]
    return {
        "config": {
            "pattern": source["config"]["pattern"],
            "num_vocab_tokens": VOCABULARY - SPECIAL,
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": SPECIAL,
            "version": "v15",
        },
        "vocab": source["vocab"][: VOCABULARY - SPECIAL],
        "special_tokens": special,
        "model_settings_builder": {
            "reasoning_effort": {"type": "enum", "accepts_none": True, "default": "none", "values": ["none", "high"]}
        },
    }


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
    (folder / "source-tekken.json").write_text(json.dumps(tekken(), ensure_ascii=False), encoding="utf-8")
    write_processor(folder / "source-tekken.json", folder, VISION if vision else None)
    (folder / "source-tekken.json").unlink()
    return folder
