"""Mixture of experts: router, routed experts held as two fused tensors, shared expert, and the two losses that keep
routers healthy.

Routed experts run through transformers' experts interface, so `experts_implementation` chooses the kernel; on a CPU the
default one is our own (`grouped`). This file knows nothing of attention.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from .configuration_small4 import Small4TextConfig
from .cpu_matmul import Small4ExpertsInterface, linear


class Small4MLP(nn.Module):
    """Gated feed-forward layer: `down(act(gate(x)) * up(x))`. Also the shared expert, as wide as all of them
    together.
    """

    def __init__(self, config: Small4TextConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = linear(self.gate_proj, hidden_states), linear(self.up_proj, hidden_states)
        return linear(self.down_proj, self.act_fn(gate) * up)


class Small4TopkRouter(nn.Module):
    """Softmax over all experts, then the best `num_experts_per_tok`, renormalized to sum 1 and scaled."""

    def __init__(self, config: Small4TextConfig) -> None:
        super().__init__()
        self.num_experts, self.top_k = config.n_routed_experts, config.num_experts_per_tok
        self.num_groups, self.top_groups = config.n_group, config.topk_group
        self.renormalize, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states: `[tokens, hidden_size]`.

        Returns:
            logits `[tokens, experts]`, weights `[tokens, top_k]` in the dtype of the input, and expert indices int64
            `[tokens, top_k]`.
        """
        logits = F.linear(hidden_states, self.weight)
        scores = logits.softmax(dim=-1, dtype=torch.float32)
        candidates = scores if self.num_groups == 1 else scores.masked_fill(~self._in_best_groups(scores), 0.0)
        indices = candidates.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(-1, indices)
        if self.renormalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return logits, (weights * self.scaling).to(hidden_states.dtype), indices

    def _in_best_groups(self, scores: torch.Tensor) -> torch.Tensor:
        """True for experts of the `top_groups` groups whose two best experts weigh most. bool `[tokens, experts]`."""
        grouped = scores.unflatten(-1, (self.num_groups, -1))
        strength = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
        best = strength.topk(self.top_groups, dim=-1, sorted=False).indices
        chosen = torch.zeros_like(strength, dtype=torch.bool).scatter(-1, best, True)
        return chosen.repeat_interleave(grouped.shape[-1], dim=-1)


@use_experts_implementation(experts_interface=Small4ExpertsInterface())
class Small4Experts(nn.Module):
    """All routed experts of a layer: `gate_up_proj` `[experts, 2 * width, hidden]` (gate rows first), `down_proj`
    `[experts, hidden, width]`.
    """

    def __init__(self, config: Small4TextConfig) -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.hidden_dim, self.intermediate_dim = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The `eager` implementation: one expert after the other.

        Args:
            hidden_states: `[tokens, hidden]`.
            top_k_index, top_k_weights: `[tokens, top_k]`; an index of `num_experts` marks an expert that lives on
                another rank.
        """
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert == self.num_experts:
                continue
            token, slot = torch.where(top_k_index == expert)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            out = F.linear(self.act_fn(gate) * up, self.down_proj[expert]) * top_k_weights[token, slot, None]
            output.index_add_(0, token, out.to(output.dtype))
        return output


class Small4MoE(nn.Module):
    """Routed experts plus the shared expert that every token passes."""

    def __init__(self, config: Small4TextConfig) -> None:
        super().__init__()
        self.gate = Small4TopkRouter(config)
        self.experts = Small4Experts(config)
        shared = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = Small4MLP(config, shared) if shared else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)
        _, weights, indices = self.gate(tokens)
        output = self.experts(tokens, indices, weights).view_as(hidden_states)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output


def router_losses(
    config: Small4TextConfig, router_logits: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the router adds to the training loss.

    Args:
        config: A `Small4TextConfig`.
        router_logits: One `[tokens, experts]` per layer.
        attention_mask: `[batch, cached + length]`, 0 where padded, or None; padding is left out.

    Returns:
        The load-balancing loss as such (Switch Transformers, arXiv:2101.03961: `top_k` when balanced), over all layers
        together as transformers has it for Mixtral, or with `router_aux_loss_per_layer` the mean over layers; and the
        sum to add: that times `router_aux_loss_coef`, plus the z-loss times `router_z_loss_coef`.
    """
    mask = None
    if attention_mask is not None and attention_mask.ndim == 2:
        mask = attention_mask[:, -(router_logits[0].shape[0] // attention_mask.shape[0]) :]
    groups = [(logits,) for logits in router_logits] if config.router_aux_loss_per_layer else [router_logits]
    experts, top_k = config.n_routed_experts, config.num_experts_per_tok
    losses = [load_balancing_loss_func(group, experts, top_k, mask).to(router_logits[0].device) for group in groups]
    balance = torch.stack(losses).mean()
    added = config.router_aux_loss_coef * balance
    if config.router_z_loss_coef:
        added = added + config.router_z_loss_coef * router_z_loss(router_logits, mask)
    return balance, added


def batch_weight(labels: torch.Tensor, items: torch.Tensor | int | None) -> torch.Tensor | float:
    """What part of an optimizer step a batch is: its predicted labels over the step's `items`, 1 when that is None.

    Cross-entropy is summed over a batch and divided by the items of all batches that are accumulated; a mean such as
    the router losses has to be weighted by this share, or accumulating would multiply it.
    """
    return 1.0 if items is None else labels[..., 1:].ne(-100).sum() / items


def router_z_loss(router_logits: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of `logsumexp(logits) ** 2` over layers and tokens that are not padding (ST-MoE, arXiv:2202.08906): keeps
    logits small.
    """
    squares = torch.stack(
        [logits.float().logsumexp(dim=-1).square().to(router_logits[0].device) for logits in router_logits]
    )
    if attention_mask is None:
        return squares.mean()
    weights = attention_mask.to(squares).flatten().expand_as(squares)
    return (squares * weights).sum() / weights.sum()
