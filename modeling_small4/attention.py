"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): projections, the expanded path, the absorbed path, and
the one switch between them.

What is cached per token is one latent of `kv_lora_rank` numbers and one rotary key of `qk_rope_head_dim`, shared by all
heads. Keys and values of a head are linear in the latent (`kv_b_proj`). Either that projection is applied to every
cached token (expand), or, which is exact too, moved over to the query and to the output (absorb), so that attention
runs on the latents themselves. This file does not store the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_torchdynamo_compiling

from .attention_blocks import BLOCK, LongPrefill, SoftmaxPart, attend_part, merge
from .attention_paged import PagedBatch
from .cache import extend
from .configuration_small4 import Small4TextConfig
from .cpu_matmul import is_plain_linear, linear
from .rope import Positions, rotate_pairs
from .stored_layers import Small4StoredLinear, is_readable

# Norms on latents keep this epsilon whatever `rms_norm_eps` says, as in transformers' implementation of the release.
LATENT_NORM_EPS = 1e-6
ALONE = 16  # queries that are attended one by one at most, see `_alone`
# Queries from which keys and values are made equally wide on a CPU: torch's fused kernel takes no others, and without
# it all scores are in memory.
FUSED = 512


def eager_attention(
    module: object,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention that also returns its weights; softmax in float32.

    Args:
        query: `[batch, heads, queries, width]`. key, value: `[batch, heads or 1, keys, ...]`; one head serves all.
        attention_mask: Additive, broadcastable to `[batch, heads, queries, keys]`, or None.

    Returns:
        Output `[batch, queries, heads, value width]` and weights `[batch, heads, queries, keys]`.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout)  # 0 outside training
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


@dataclass
class LatentHead:
    """What the attention interface reads off a module, for the one key head that all query heads share in the absorbed
    path.
    """

    num_key_value_groups: int
    layer_idx: int
    is_causal: bool = True
    training: bool = False


class Small4Attention(nn.Module):
    """One attention layer. Tensor shapes below: B batch, H heads, Q new tokens, L cached and new tokens, R
    `kv_lora_rank`.
    """

    is_causal = True

    def __init__(self, config: Small4TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_dim, self.rank = config.v_head_dim, config.kv_lora_rank
        self.num_key_value_groups = 1  # read by the attention interface: expanded keys have a head per query head
        self.scaling, self.attention_dropout = config.softmax_scale, config.attention_dropout or 0.0
        heads, width, bias = config.num_attention_heads, config.hidden_size, config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, self.rank + self.rope, bias=bias)
        self.kv_a_layernorm = nn.RMSNorm(self.rank, eps=LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.rank, heads * (self.nope + self.value_dim), bias=False)
        self.o_proj = nn.Linear(heads * self.value_dim, width, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: Positions,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | PagedBatch | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[B, Q, hidden_size]`.
            attention_mask: What the chosen attention implementation takes.
            cache: Extended by the new tokens; in continuous batching, the pages of all requests.

        Returns:
            Output `[B, Q, hidden_size]`, and attention weights `[B, H, Q, L]` from the eager implementation, else None.
        """
        query = self.project_query(hidden_states, positions)
        tokens = self.project_tokens(hidden_states, positions)
        if isinstance(cache, PagedBatch):
            output, weights = cache.attend(self.attend, query, tokens, attention_mask, self.layer_idx, kwargs)
        else:
            if cache is not None:
                tokens = extend(cache, tokens, self.rank, self.layer_idx)
            output, weights = self.attend(query, tokens, attention_mask, **kwargs)
        return linear(self.o_proj, output.flatten(2)), weights

    def attend(
        self, query: torch.Tensor, tokens: torch.Tensor, mask: object, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The one switch: queries `[B, H, Q, nope + rope]` over all tokens `[B, 1, L, R + rope]`; output
        `[B, Q, H, value_dim]`.
        """
        if isinstance(mask, LongPrefill):
            return self.blocked(query, tokens, mask, **kwargs)
        queries, keys = query.shape[2], tokens.shape[2]
        if queries < keys and _alone(query, queries):  # by the path of one query
            queries, keys = 1, keys - queries + 1
        if self.absorbing_pays(queries, keys):
            return self.absorbed(query, tokens, mask, **kwargs)
        return self.expanded(query, tokens, mask, **kwargs)

    def project_query(self, hidden_states: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Queries `[B, H, Q, nope + rope]`, rotated and scaled for long positions."""
        if self.config.q_lora_rank is None:
            query = linear(self.q_proj, hidden_states)
        else:
            query = linear(self.q_b_proj, self.q_a_layernorm(linear(self.q_a_proj, hidden_states)))
        query = query.unflatten(-1, (-1, self.nope + self.rope)).transpose(1, 2)
        plain, rotary = query.split([self.nope, self.rope], dim=-1)
        query = torch.cat((plain, rotate_pairs(rotary, positions.cos, positions.sin)), dim=-1)
        return query if positions.query_scale is None else query * positions.query_scale.to(query.dtype)

    def project_tokens(self, hidden_states: torch.Tensor, positions: Positions) -> torch.Tensor:
        """What the cache keeps of new tokens, `[B, 1, Q, R + rope]`: normed latent, then rotated key."""
        latent, rotary_key = linear(self.kv_a_proj_with_mqa, hidden_states)[:, None].split(
            [self.rank, self.rope], dim=-1
        )
        rotary_key = rotate_pairs(rotary_key, positions.cos, positions.sin)
        return torch.cat((self.kv_a_layernorm(latent).to(rotary_key.dtype), rotary_key), dim=-1)

    def absorbing_pays(self, queries: int, keys: int) -> bool:
        """Compare the multiplications of both paths per head. Expand where the projection's weight cannot be read as it
        is, and for flash attention, whose heads are not as wide as a latent."""
        up = self.rank * (self.nope + self.value_dim)
        absorbed = queries * (up + keys * (2 * self.rank + self.rope))
        expanded = keys * (up + queries * (self.nope + self.rope + self.value_dim))
        readable = is_plain_linear(self.kv_b_proj) or is_readable(self.kv_b_proj)
        return absorbed < expanded and readable and "flash" not in self.config._attn_implementation

    def expand(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys `[B, H, L, nope + rope]` and values `[B, H, L, value_dim]` of every head."""
        latent, rotary_key = tokens.split([self.rank, self.rope], dim=-1)
        up = linear(self.kv_b_proj, latent.squeeze(1)).unflatten(-1, (-1, self.nope + self.value_dim)).transpose(1, 2)
        plain_key, value = up.split([self.nope, self.value_dim], dim=-1)
        return torch.cat((plain_key, rotary_key.expand(-1, plain_key.shape[1], -1, -1)), dim=-1), value

    def expanded(
        self, query: torch.Tensor, tokens: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention over keys and values of every head, expanded from the latents. Output `[B, Q, H, value_dim]`."""
        key, value = self.expand(tokens)
        if query.shape[2] >= FUSED and query.device.type == "cpu" and self.config._attn_implementation == "sdpa":
            query, key, value = _equally_wide(query, key, value)
        output, weights = self._attend(self, query, key, value, mask, **kwargs)
        return output[..., : self.value_dim], weights

    def absorbed(
        self, query: torch.Tensor, tokens: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same with `kv_b_proj` applied to queries and outputs: one key head, the tokens as they are cached."""
        query = self.absorb_query(query)
        # Values are the latents, a part of the keys. torch's CPU kernel wants both equally wide, so there the rest
        # comes along.
        value = tokens if tokens.device.type == "cpu" else tokens[..., : self.rank]
        heads, queries = query.shape[1:3]
        if (mask is None and queries > 1) or not (mask is None or isinstance(mask, torch.Tensor)):
            output, weights = self._attend(LatentHead(heads, self.layer_idx), query, tokens, value, mask, **kwargs)
        else:
            # The heads of all queries are as many queries to the one key head: no kernel has to copy the tokens for
            # each head.
            if isinstance(mask, torch.Tensor) and queries > 1:
                mask = mask.repeat_interleave(heads, dim=2)
            kwargs["is_causal"] = False
            query = query.transpose(1, 2).flatten(1, 2)[:, None]
            head = LatentHead(1, self.layer_idx)
            if isinstance(mask, torch.Tensor) and _alone(query, queries):
                output, weights = self._one_by_one(head, query, tokens, value, mask, queries, **kwargs), None
            else:
                output, weights = self._attend(head, query, tokens, value, mask, **kwargs)
            output = output.squeeze(2).unflatten(1, (queries, heads))
            weights = None if weights is None else weights.squeeze(1).unflatten(1, (queries, heads)).transpose(1, 2)
        return self.absorb_output(output.transpose(1, 2)).transpose(1, 2), weights

    def _one_by_one(
        self,
        head: "LatentHead",
        query: torch.Tensor,
        tokens: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        queries: int,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `_attend` for each query alone, over what it sees, as where each token is decoded alone: in half precision
        one call for several queries rounds otherwise."""
        heads, keys = query.shape[2] // queries, tokens.shape[2]
        fixed = not bool(_allows(mask[..., -1:, -1:]).all())  # a cache of fixed size, longer than what is in it
        out = []
        for place in range(queries):
            seen = keys if fixed else keys - queries + place + 1
            rows = slice(place * heads, (place + 1) * heads)
            shown = mask[..., place * heads : place * heads + 1, :seen]
            own = None if bool(_allows(shown).all()) else shown
            out.append(self._attend(head, query[:, :, rows], tokens[:, :, :seen], value[:, :, :seen], own, **kwargs)[0])
        return torch.cat(out, dim=1)

    def absorb_query(self, query: torch.Tensor) -> torch.Tensor:
        """Queries `[B, H, Q, nope + rope]` to keys as `[B, H, Q, R + rope]` to tokens as they are cached."""
        key_up = self._up_projection(query.dtype)[:, : self.nope]
        plain, rotary = query.split([self.nope, self.rope], dim=-1)
        return torch.cat((torch.matmul(plain, key_up), rotary), dim=-1)

    def absorb_output(self, output: torch.Tensor) -> torch.Tensor:
        """Weighted latents `[B, H, Q, R or wider]` to weighted values `[B, H, Q, value_dim]`."""
        return torch.matmul(output[..., : self.rank], self._up_projection(output.dtype)[:, self.nope :].transpose(1, 2))

    def _up_projection(self, dtype: torch.dtype) -> torch.Tensor:
        """`[H, nope + value_dim, R]`. `dtype`: of the numbers of a stored weight; a plain one has its own."""
        up: Any = self.kv_b_proj
        weight = up.kept_numbers(dtype) if isinstance(up, Small4StoredLinear) else up.weight
        return weight.unflatten(0, (-1, self.nope + self.value_dim))

    def blocked(
        self, query: torch.Tensor, tokens: torch.Tensor, prefill: LongPrefill, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """Many queries over many cached tokens, one block of keys at a time with a running softmax; expanded or, for
        fewer, absorbed.
        """
        dtype, cached = query.dtype, tokens.shape[2] - query.shape[2]
        absorb = self.absorbing_pays(query.shape[2], tokens.shape[2])
        if absorb:
            query = self.absorb_query(query)
        parts = list(tokens[:, :, :cached].split(BLOCK, dim=2))
        shown = [None] * len(parts) if prefill.padding is None else prefill.padding[:, :cached].split(BLOCK, dim=1)
        total: SoftmaxPart | None = None
        for block, padding in zip(parts, shown, strict=True):
            if absorb:  # all heads' queries to the one key head
                flat = attend_part(query.flatten(1, 2)[:, None], block, block, self.scaling, padding, causal=False)
                part = SoftmaxPart(*(x.squeeze(1).unflatten(1, query.shape[1:3]) for x in flat))
            else:
                part = attend_part(query, *self.expand(block), self.scaling, padding, causal=False)
            total = merge(total, part)
        new, shown_new = tokens[:, :, cached:], None if prefill.padding is None else prefill.padding[:, cached:]
        shared = (new.expand(-1, query.shape[1], -1, -1),) * 2
        part = attend_part(query, *(shared if absorb else self.expand(new)), self.scaling, shown_new, causal=True)
        total = merge(total, part)
        output = total.output.to(dtype)
        return (self.absorb_output(output) if absorb else output).transpose(1, 2), None

    def _attend(
        self,
        module: object,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.attention_dropout if self.training else 0.0
        return interface(module, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)


def _equally_wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """With zeros at the end of the narrower ones."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return [t if t.shape[-1] == width else nn.functional.pad(t, (0, width - t.shape[-1])) for t in tensors]


def _alone(query: torch.Tensor, queries: int) -> bool:
    """Whether several queries are attended one by one: few, on a CPU, in half precision, and nothing is learned."""
    half = query.dtype in (torch.bfloat16, torch.float16) and query.device.type == "cpu"
    return 1 < queries <= ALONE and half and not query.requires_grad and not is_torchdynamo_compiling()


def _allows(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def four_dimensional_mask(mask: object, implementation: str, dtype: torch.dtype) -> Any:
    """Bring a caller's own 4-D mask into the form that the attention implementation reads; anything else is returned as
    it is.

    sdpa reads bool and additive masks; the others would add a bool mask to the scores as 0 and 1, and a dense mask
    crashes flex attention on a CPU.

    Args:
        mask: bool (True attends) or additive, `[batch, 1, queries, keys]`.

    Raises:
        ValueError: flex attention is given an additive mask with values between "attends" and "does not".
    """
    if not (isinstance(mask, torch.Tensor) and mask.ndim == 4) or implementation == "sdpa":
        return mask
    if implementation == "flex_attention":
        return _block_mask(mask)
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def _block_mask(mask: torch.Tensor) -> BlockMask:
    allowed = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not torch.compiler.is_compiling() and bool(((mask != 0) & (mask > -1e4)).any()):
        raise ValueError(
            "flex_attention takes 4-D masks of 0 (attends) and -inf (does not); use sdpa or eager for other biases."
        )
    batch, _, queries, keys = allowed.shape
    padded = nn.functional.pad(allowed[:, 0], (0, -keys % 128, 0, -queries % 128))  # kernels read whole blocks of 128
    return create_block_mask(lambda b, h, q, k: padded[b, q, k], batch, None, queries, keys, device=mask.device)
