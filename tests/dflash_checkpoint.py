"""Small DFlash drafts with random weights, in the forms in which they are published, and a plain forward."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

HEADS, GROUPS, DIM, WIDTH, LAYERS, BLOCK, WINDOW, THETA = 4, 2, 8, 24, 2, 5, 6, 5000.0
SORTS = ["sliding_attention", "full_attention"]


def inner(size: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3", "hidden_size": size, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": DIM, "rms_norm_eps": 1e-6,
        "rope_theta": THETA, "max_position_embeddings": 4096, "vocab_size": vocab, "attention_bias": False,
        "layer_types": SORTS, "sliding_window": WINDOW, "use_sliding_window": True, "hidden_act": "silu",
    }  # fmt: skip


def config(form: str, size: int, vocab: int, drafted: int) -> dict[str, Any]:
    """config.json. drafted: tokens that a draft of the library speculators knows."""
    if form == "z-lab":
        own = {"mask_token_id": 9, "target_layer_ids": [0, 2]}
        return inner(size, vocab) | {
            "architectures": ["DFlashDraftModel"], "block_size": BLOCK, "num_target_layers": 4, "dflash_config": own,
        }  # fmt: skip
    return {
        "architectures": ["DFlashDraftModel"], "speculators_model_type": "dflash", "block_size": BLOCK,
        "aux_hidden_state_layer_ids": [1, 3], "mask_token_id": 9, "draft_vocab_size": drafted,
        "sliding_window_non_causal": False, "transformer_layer_config": inner(size, vocab),
        "speculators_config": {"algorithm": "dflash", "verifier": {"name_or_path": "x", "architectures": []}},
    }  # fmt: skip


def tensors(form: str, size: int, vocab: int, drafted: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        if len(shape) == 1:
            return torch.rand(shape, generator=generator) + 0.5
        return torch.randn(shape, generator=generator) / math.sqrt(shape[1])

    out = {"fc.weight": random(size, 2 * size), "hidden_norm.weight": random(size), "norm.weight": random(size)}
    for layer in range(LAYERS):
        shapes = {
            "input_layernorm": (size,), "post_attention_layernorm": (size,), "self_attn.q_norm": (DIM,),
            "self_attn.k_norm": (DIM,), "self_attn.q_proj": (HEADS * DIM, size),
            "self_attn.o_proj": (size, HEADS * DIM), "self_attn.k_proj": (GROUPS * DIM, size),
            "self_attn.v_proj": (GROUPS * DIM, size),
            "mlp.gate_proj": (WIDTH, size), "mlp.up_proj": (WIDTH, size), "mlp.down_proj": (size, WIDTH),
        }  # fmt: skip
        out |= {f"layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
    if form == "speculators":
        chosen = torch.randperm(vocab, generator=generator)[:drafted].sort().values
        out |= {
            "embed_tokens.weight": random(vocab, size), "lm_head.weight": random(drafted, size),
            "t2d": torch.zeros(vocab, dtype=torch.bool).index_fill(0, chosen, True),
            "d2t": chosen - torch.arange(drafted),
        }  # fmt: skip
    return out


def write(folder: Path, form: str, size: int, vocab: int, drafted: int = 40, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(form, size, vocab, drafted)))
    save_file(tensors(form, size, vocab, drafted, seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """One head `[DIM]` at a position."""
    half = DIM // 2
    angles = torch.tensor([position * THETA ** (-2 * pair / DIM) for pair in range(half)])
    first, second = x[:half], x[half:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))


def plain(
    form: str, given: dict[str, torch.Tensor], states: torch.Tensor, block: torch.Tensor, start: int
) -> torch.Tensor:
    """Hidden states of one block `[BLOCK, size]`, token by token. states: `[known, 2 * size]`; start: its position."""
    known = norm(states @ given["fc.weight"].T, given["hidden_norm.weight"])
    x, count = block, len(states)
    for layer in range(LAYERS):
        own = {
            name.removeprefix(f"layers.{layer}."): w for name, w in given.items() if name.startswith(f"layers.{layer}.")
        }
        normed, out = norm(x, own["input_layernorm.weight"]), []
        both = torch.cat((known, normed))
        for place in range(BLOCK):
            query = (normed[place] @ own["self_attn.q_proj.weight"].T).view(HEADS, DIM)
            heads = []
            for head in range(HEADS):
                q = turned(norm(query[head], own["self_attn.q_norm.weight"]), start + count + place)
                scores, values = [], []
                for token in range(count + BLOCK):
                    away = token - count  # from the block's first token
                    if SORTS[layer] == "sliding_attention":
                        speculators = form == "speculators"
                        if speculators and (away < -WINDOW or away > place):
                            continue
                        if not speculators and abs(away - place) > WINDOW:
                            continue
                    k = (both[token] @ own["self_attn.k_proj.weight"].T).view(GROUPS, DIM)[head * GROUPS // HEADS]
                    k = turned(norm(k, own["self_attn.k_norm.weight"]), start + token)
                    scores.append(q @ k / math.sqrt(DIM))
                    values.append(
                        (both[token] @ own["self_attn.v_proj.weight"].T).view(GROUPS, DIM)[head * GROUPS // HEADS]
                    )
                heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            out.append(torch.cat(heads) @ own["self_attn.o_proj.weight"].T)
        x = x + torch.stack(out)
        y = norm(x, own["post_attention_layernorm.weight"])
        x = (
            x
            + (F.silu(y @ own["mlp.gate_proj.weight"].T) * (y @ own["mlp.up_proj.weight"].T))
            @ own["mlp.down_proj.weight"].T
        )
    return norm(x, given["norm.weight"])
