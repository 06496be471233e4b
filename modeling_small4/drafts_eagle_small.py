"""A small EAGLE draft on a CPU, as few operations: what is linear in a row is multiplied together beforehand.

Calling layers would take longer than what they compute. Norms' weights go into the next matrix; the keys' and values'
projections go into the query's and the output's, so that attention runs on the latents (see `attention`). In float32,
whatever the model computes in: drafts only have to be right often. Must not know: how drafts are chosen and checked.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .drafts_eagle import Small4EagleConfig, Small4EagleDraft
from .rope import inverse_frequencies, long_position_query_scale

LARGEST = 1024  # hidden size up to which multiplying matrices together costs little
LARGEST_VOCABULARY = 8192  # whose head is kept in float32 too
BLOCK = 512  # tokens read at once
ROOM = 512  # tokens by which the cache grows


@dataclass
class _Layer:
    """Matrices of a layer, `[out, in]`: A to query latent, latent and rotary key; B to queries on latents; O from
    weighted latents; G to gate and up; D down.
    """

    a: torch.Tensor
    b: torch.Tensor
    o: torch.Tensor
    g: torch.Tensor
    d: torch.Tensor

    @classmethod
    def of(cls, weights: dict[str, torch.Tensor], config: Small4EagleConfig) -> "_Layer":
        """weights: of the layer in float32, by their names in it, without `.weight`."""
        own = {name.removeprefix("self_attn."): weight for name, weight in weights.items()}
        heads, nope, rank = config.num_attention_heads, config.qk_nope_head_dim, config.kv_lora_rank
        up = own["kv_b_proj"].unflatten(0, (heads, -1)) * own["kv_a_layernorm"]
        query = own["q_b_proj"].unflatten(0, (heads, -1))
        on_latents = torch.cat((up[:, :nope].mT @ query[:, :nope], query[:, nope:]), dim=1)
        output = own["o_proj"].unflatten(1, (heads, -1)).transpose(0, 1) @ up[:, nope:]
        return cls(
            torch.cat((own["q_a_proj"], own["kv_a_proj_with_mqa"])) * own["input_layernorm"],
            on_latents.flatten(0, 1) * own["q_a_layernorm"] * config.softmax_scale,
            output.transpose(0, 1).reshape(-1, heads * rank).contiguous(),
            torch.cat((own["mlp.gate_proj"], own["mlp.up_proj"])) * own["post_attention_layernorm"],
            own["mlp.down_proj"],
        )


class SmallEagle:
    """The matrices of one draft, for any number of calls. head: that of the model, `[vocabulary, hidden_size]`."""

    @torch.no_grad()
    def __init__(self, draft: Small4EagleDraft, head: torch.Tensor) -> None:
        self.config = draft.config
        weights = {name.removesuffix(".weight"): weight.float() for name, weight in draft.state_dict().items()}
        self.fuse, self.norm, self.head = weights["eagle_linear"], weights["model.norm"], head.detach().float()
        self.layers = []
        for number in range(draft.config.num_hidden_layers):
            start = f"model.layers.{number}."
            own = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
            self.layers.append(_Layer.of(own, draft.config))

    @staticmethod
    def fits(draft: Small4EagleDraft) -> bool:
        """Whether a draft is of a kind and size for this."""
        config = draft.config
        small = config.hidden_size <= LARGEST and config.vocab_size <= LARGEST_VOCABULARY
        plain = config.q_lora_rank is not None and not config.attention_bias and config.hidden_act == "silu"
        return plain and small and draft.eagle_linear.weight.device.type == "cpu"


class SmallEagleState:
    """One call's cache, rows without padding.

    Attributes:
        length: Tokens held.
    """

    def __init__(self, source: SmallEagle) -> None:
        self.source, self.length = source, 0
        self.held: list[torch.Tensor] = []  # of each layer, [rows, capacity, latent and rotary key]

    def __call__(self, embeddings: torch.Tensor, hidden: torch.Tensor, first: int) -> torch.Tensor:
        """As `Small4EagleDraft.forward`, of tokens from position `first` on. float32 `[rows, length, hidden_size]`."""
        x = torch.cat((embeddings.float(), hidden.float()), dim=-1)
        parts = [self._read(part, first + number * BLOCK) for number, part in enumerate(x.split(BLOCK, dim=1))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def logits(self, guessed: torch.Tensor) -> torch.Tensor:
        """Of guessed hidden states."""
        return F.linear(guessed, self.source.head)

    def forget(self, tokens: int) -> None:
        """The last tokens."""
        self.length -= tokens

    def _read(self, x: torch.Tensor, first: int) -> torch.Tensor:
        source = self.source
        config, (rows, new) = source.config, x.shape[:2]
        heads, rank, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
        self._make_room(rows, new, rank + rope)
        end = self.length + new
        positions = torch.arange(first, first + new)
        angles = positions[:, None].float() * inverse_frequencies(config)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        scale = long_position_query_scale(config, positions[None])
        hidden_from = None if new == 1 else ~torch.ones(new, end, dtype=torch.bool).tril(self.length)
        x = F.linear(x, source.fuse)
        for layer, held in zip(source.layers, self.held, strict=True):
            made = F.linear(_normed(x, config.rms_norm_eps), layer.a)
            query, latent, key = made.split((made.shape[-1] - rank - rope, rank, rope), dim=-1)
            query = F.linear(_normed(query), layer.b).unflatten(-1, (heads, rank + rope))
            pairs = torch.cat((query[..., rank:], key[:, :, None]), dim=2).unflatten(-1, (-1, 2))
            pairs = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)
            held[:, self.length : end, :rank] = _normed(latent)
            held[:, self.length : end, rank:] = pairs[:, :, -1]
            query = torch.cat((query[..., :rank], pairs[:, :, :-1]), dim=-1)
            if scale is not None:
                query = query * scale[0, 0, :, None]
            scores = torch.matmul(query.flatten(1, 2), held[:, :end].mT)
            if hidden_from is not None:
                scores.unflatten(1, (new, heads)).masked_fill_(hidden_from[:, None], -torch.inf)
            seen = torch.matmul(scores.softmax(dim=-1), held[:, :end, :rank])
            x = x + F.linear(seen.reshape(rows, new, -1), layer.o)
            gate, up = F.linear(_normed(x, config.rms_norm_eps), layer.g).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.d)
        self.length = end
        return _normed(x, config.rms_norm_eps) * source.norm

    def _make_room(self, rows: int, new: int, width: int) -> None:
        if not self.held or self.held[0].shape[1] < self.length + new:
            grown = [torch.zeros(rows, self.length + new + ROOM, width) for _ in self.source.layers]
            for fresh, held in zip(grown, self.held, strict=False):
                fresh[:, : self.length] = held[:, : self.length]
            self.held = grown


def _normed(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """RMS norm without a weight."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)
