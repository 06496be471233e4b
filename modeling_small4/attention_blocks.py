"""Attention over a long cache, one block of keys at a time, with a running softmax: exact, and in memory bounded by one
block.

A chunk of a long prompt sees all that is cached before it and, causally, itself; so no mask over all pairs is needed
either. Source of the running softmax: Milakov and Gimelshein, arXiv:1805.02867. This file knows nothing of latents.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache
from transformers.utils import is_torchdynamo_compiling

from .configuration_small4 import Small4TextConfig

BLOCK = 2048  # keys expanded at once
LONG = 2**20  # pairs of query and key from which a mask over all of them is avoided


class LongPrefill(NamedTuple):
    """Stands in for a mask over all pairs: the queries are the last tokens, each sees all before it but padding.

    Attributes:
        padding: bool `[batch, keys]`, False where padded; None without padding.
    """

    padding: torch.Tensor | None


class SoftmaxPart(NamedTuple):
    """Attention over a part of the keys: its output, float32 `[B, H, Q, value width]`, and `logsumexp` of its scores,
    float32 `[B, H, Q, 1]`.
    """

    output: torch.Tensor
    logsumexp: torch.Tensor


def long_prefill(
    config: Small4TextConfig,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    queries: int,
    wanted: dict[str, Any],
) -> LongPrefill | None:
    """Decide, once per forward, whether attention goes block by block.

    Args:
        attention_mask: What the caller gave: None or `[batch, keys]`; anything else is not for blocks.
        cache: The cache before this forward, or None.
        wanted: Arguments of the forward that concern attention; blocks give no attention weights.
    """
    if (
        cache is None
        or config._attn_implementation != "sdpa"
        or wanted.get("output_attentions")
        or wanted.get("is_causal") is False
        or is_torchdynamo_compiling()
    ):
        return None
    if getattr(cache, "is_compileable", False) or (attention_mask is not None and attention_mask.ndim != 2):
        return None
    cached = cache.get_seq_length()
    if cached == 0 or queries == 1 or queries * (cached + queries) < LONG or torch.is_grad_enabled():
        return None
    if attention_mask is None or bool(attention_mask.all()):
        return LongPrefill(None)
    return LongPrefill(attention_mask[:, : cached + queries].bool())


def attend_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    padding: torch.Tensor | None,
    causal: bool,
) -> SoftmaxPart:
    """Attention of all queries over these keys.

    Args:
        query `[B, H, Q, width]`, key `[B, H, K, width]`, value `[B, H, K, value width]`.
        padding: bool `[B, K]`, False where padded, or None.
        causal: Query i sees keys up to i (then K == Q).
    """
    mask = None if padding is None else padding[:, None, None, :]
    if causal and mask is not None:
        mask = mask & torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    if _fused(query.device):
        return _cpu_kernel(query, key, value, scaling, mask, causal and mask is None)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scaling
    if causal and mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    total = scores.logsumexp(dim=-1, keepdim=True)
    weights = (scores - total.nan_to_num(neginf=0.0)).exp().to(value.dtype)
    return SoftmaxPart(torch.matmul(weights, value).float(), total)


def _fused(device: torch.device) -> bool:
    return device.type == "cpu"


def _cpu_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, mask: torch.Tensor | None, causal: bool
) -> SoftmaxPart:
    """torch's fused kernel, called below `scaled_dot_product_attention`, which drops the logsumexp. It wants equal
    widths.
    """
    width = max(query.shape[-1], value.shape[-1])
    padded = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    bias = None if mask is None else torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    output, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *padded, 0.0, causal, attn_mask=bias, scale=scaling
    )
    output, total = output[..., : value.shape[-1]].float(), total.float()[..., None]
    if mask is not None:  # the kernel's values are arbitrary for a query that sees no key of this part
        seen = mask.any(dim=-1, keepdim=True)
        output, total = torch.where(seen, output, 0.0), torch.where(seen, total, -torch.inf)
    return SoftmaxPart(output, total)


def merge(total: SoftmaxPart | None, part: SoftmaxPart) -> SoftmaxPart:
    """Attention over the keys of both: outputs weighted by their share of the softmax."""
    if total is None:
        return part
    both = torch.logaddexp(total.logsumexp, part.logsumexp)
    base = both.nan_to_num(neginf=0.0)
    output = total.output * (total.logsumexp - base).exp() + part.output * (part.logsumexp - base).exp()
    return SoftmaxPart(output, both)
