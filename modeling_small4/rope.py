"""Positions: YaRN frequencies, rotation of interleaved pairs, long-position query scale, and 2-D positions for images.

Everything is computed in float32 from the configuration at each forward, so there is no buffer that a cast, a meta
device or an offload could leave wrong. This file holds no weights.
"""

import math
from typing import NamedTuple

import torch

from .configuration_small4 import Small4TextConfig, Small4VisionConfig


class Positions(NamedTuple):
    """What every decoder layer needs to know about positions.

    Attributes:
        cos, sin: float32 `[batch, length, rotary width / 2]`, one angle per rotated pair.
        query_scale: float32 `[batch, 1, length, 1]`, or None when the configuration asks for none.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None


def text_positions(config: Small4TextConfig, position_ids: torch.Tensor) -> Positions:
    """Rotary angles and query scale of the decoder.

    Args:
        config: A `Small4TextConfig`.
        position_ids: int64 `[batch, length]`.
    """
    angles = position_ids[..., None].float() * inverse_frequencies(config, position_ids.device)
    return Positions(angles.cos(), angles.sin(), long_position_query_scale(config, position_ids))


def inverse_frequencies(config: Small4TextConfig, device: torch.device | None = None) -> torch.Tensor:
    """Radians per position of each rotated pair, float32 `[qk_rope_head_dim / 2]`.

    With `rope_type="yarn"`: "NTK-by-parts" interpolation (YaRN, arXiv:2309.00071, section 3.2). Pairs that turn more
    than `beta_fast` times within the original context keep their frequency, those that turn less than `beta_slow` times
    are slowed by `factor`, and a linear ramp over the pair index lies between.
    """
    rope, width = config.rope_parameters, config.qk_rope_head_dim
    base = rope["rope_theta"]
    kept = 1.0 / base ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    if rope["rope_type"] == "default":
        return kept

    def pair_that_turns(turns: float) -> float:
        """Index of the pair (a real number) that turns this many times within the original context."""
        return width * math.log(rope["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_that_turns(rope["beta_fast"]), pair_that_turns(rope["beta_slow"])
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    span = (last - first) or 0.001  # both ends on one pair: a step instead of a ramp
    slowed = ((torch.arange(width // 2, device=device, dtype=torch.float32) - first) / span).clamp(0, 1)
    return kept / rope["factor"] * slowed + kept * (1 - slowed)


def long_position_query_scale(config: Small4TextConfig, position_ids: torch.Tensor) -> torch.Tensor | None:
    """Factor on whole queries, `1 + beta * ln(1 + floor(position / original context))`: 1 within the original context.

    Positions below 0, which some callers give padding, scale by 1. Source: `llama_4_scaling` in the release's
    params.json.

    Returns:
        float32 `[batch, 1, length, 1]`, or None without a `beta`.
    """
    beta = config.rope_parameters.get("llama_4_scaling_beta")
    if not beta:
        return None
    original = config.rope_parameters.get("original_max_position_embeddings", config.max_position_embeddings)
    scale = 1 + beta * torch.log1p(torch.floor(position_ids.clamp(min=0).float() / original))
    return scale[:, None, :, None]


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the interleaved pairs `(x0, x1), (x2, x3), ...`, in float32.

    The result holds all first members, then all second members. Queries and keys are laid out alike, so scores do not
    change.

    Args:
        x: `[batch, heads, length, width]`, any float dtype, which the result keeps.
        cos, sin: float32 `[batch, length, width / 2]`.
    """
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def image_positions(
    config: Small4VisionConfig, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """2-D rotary angles of the vision tower (Pixtral, arXiv:2410.07073): even frequencies turn with the row, odd with
    the column.

    Args:
        config: A `Small4VisionConfig`.
        rows, columns: int64 `[patches]`.

    Returns:
        cos, sin: float32 `[patches, head width / 2]`, for `rotate_halves`.
    """
    width, base = config.head_dim, config.rope_parameters["rope_theta"]
    frequencies = 1.0 / base ** (torch.arange(0, width, 2, device=rows.device, dtype=torch.float32) / width)
    angles = torch.cat((rows[:, None] * frequencies[0::2], columns[:, None] * frequencies[1::2]), dim=-1)
    return angles.cos(), angles.sin()


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs `(x[i], x[i + width / 2])`, in float32.

    Args:
        x: `[..., length, width]`, any float dtype, which the result keeps.
        cos, sin: float32 `[length, width / 2]`.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
