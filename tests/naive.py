"""Slow, obvious twins of the fast paths, written straight from their definitions. No cache, no batching, no fusing."""

from typing import Any

import torch


def attention(layer: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Latent attention of one sequence, head by head, key by key.

    Args:
        layer: A `Small4Attention`. hidden: `[length, hidden_size]`, positions 0, 1, ... mask: bool `[length, length]`,
            True attends.
    """
    config = layer.config
    length, heads = hidden.shape[0], config.num_attention_heads
    nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    query = layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(hidden))).view(length, heads, nope + rope)
    compressed = layer.kv_a_proj_with_mqa(hidden)
    latent, rotary = layer.kv_a_layernorm(compressed[:, : config.kv_lora_rank]), compressed[:, config.kv_lora_rank :]
    up = layer.kv_b_proj(latent).view(length, heads, nope + value)
    output = torch.zeros(length, heads, value, dtype=hidden.dtype)
    for head in range(heads):
        q = torch.stack([_query(config, query[i, head], i, nope) for i in range(length)])
        k = torch.stack([torch.cat((up[j, head, :nope], rotate(config, rotary[j], j))) for j in range(length)])
        scores = (q @ k.T * config.softmax_scale).masked_fill(~mask, -torch.inf)
        output[:, head] = scores.softmax(-1) @ up[:, head, nope:]
    return layer.o_proj(output.flatten(1))


def _query(config: Any, query: torch.Tensor, position: int, nope: int) -> torch.Tensor:
    rope = config.rope_parameters
    scale = 1 + rope["llama_4_scaling_beta"] * torch.log(
        torch.tensor(1.0 + position // rope["original_max_position_embeddings"])
    )
    return torch.cat((query[:nope], rotate(config, query[nope:], position))) * scale


def rotate(config: Any, pairs: torch.Tensor, position: int) -> torch.Tensor:
    """Turn the interleaved pairs of one vector by complex multiplication."""
    angles = position * inverse_frequencies(config)
    turned = torch.view_as_complex(pairs.float().view(-1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten().to(pairs.dtype)


def inverse_frequencies(config: Any) -> torch.Tensor:
    """YaRN by its definition, one pair after the other (arXiv:2309.00071, equations 17 to 23)."""
    import math

    rope, width = config.rope_parameters, config.qk_rope_head_dim
    base, context = rope["rope_theta"], rope["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        return width * math.log(context / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(pair(rope["beta_fast"])), 0), min(math.ceil(pair(rope["beta_slow"])), width - 1)
    out = []
    for index in range(width // 2):
        frequency = base ** (-2 * index / width)
        ramp = min(max((index - low) / (high - low if high != low else 0.001), 0.0), 1.0)
        out.append((1 - ramp) * frequency + ramp * frequency / rope["factor"])
    return torch.tensor(out)


def experts(moe: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Mixture of experts, token by token. hidden: `[tokens, hidden_size]`."""
    out = []
    for token in hidden:
        logits = moe.gate.weight @ token
        scores = logits.softmax(-1)
        groups = scores.view(moe.gate.num_groups, -1)
        strength = torch.stack([g.sort(descending=True).values[:2].sum() for g in groups])
        best = strength.argsort(descending=True)[: moe.gate.top_groups].tolist()
        size = groups.shape[1]
        allowed = [e for e in range(len(scores)) if e // size in best]
        chosen = sorted(allowed, key=lambda e: -scores[e].item())[: moe.gate.top_k]
        weights = scores[chosen] / scores[chosen].sum() if moe.gate.renormalize else scores[chosen]
        total = moe.shared_experts(token) if moe.shared_experts is not None else torch.zeros_like(token)
        for expert, weight in zip(chosen, weights * moe.gate.scaling, strict=True):
            gate, up = (moe.experts.gate_up_proj[expert] @ token).chunk(2)
            total = total + weight * (moe.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
        out.append(total)
    return torch.stack(out)
