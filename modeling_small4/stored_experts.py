"""Routed experts that hold their weights as stored: which tokens go to which expert, their products, and low-rank
adapters of them.

Must not know: files, configurations.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.functional import linear

from .stored_kernels import padded
from .stored_layers import Part, StoredModule, multiply_all, stored_weight
from .stored_weights import StoredWeight

TOGETHER = 16  # up to so many tokens all chosen experts are multiplied together, so that threads are started once


@dataclass(frozen=True)
class LowRank:
    """What is added to each expert's weight: `scaling * up @ down`, of `down` `[rank, in]` and `up` `[out, rank]`, by
    expert. One matrix where all experts share it, which may be `down` of "gate_up_proj" and `up` of "down_proj".
    """

    down: Sequence[torch.Tensor] | torch.Tensor
    up: Sequence[torch.Tensor] | torch.Tensor
    scaling: float

    def low(self, experts: Sequence[int], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each expert's `[tokens, in]` to `[tokens, rank]`, where `down` is not shared."""
        return [linear(x, self.down[expert]) for expert, x in zip(experts, inputs, strict=True)]

    def added(
        self, outputs: Sequence[torch.Tensor], experts: Sequence[int], low: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Each expert's `[tokens, out]` with its part of this added, where `up` is not shared."""
        pairs = zip(outputs, experts, low, strict=True)
        return [out + linear(x, self.up[expert]) * self.scaling for out, expert, x in pairs]


@dataclass(frozen=True)
class Routing:
    """Which tokens go to which experts. `order`: places in the flat `[tokens * top_k]` by expert; `counts` of each
    expert; the places behind them are of other ranks' experts. `weights` `[tokens, top_k]`. `pads`: see `padded`.
    """

    order: torch.Tensor
    counts: Sequence[int]
    weights: torch.Tensor
    pads: bool

    @classmethod
    def of(cls, chosen: torch.Tensor, weights: torch.Tensor, experts: int, pads: bool) -> "Routing":
        """chosen: experts `[tokens, top_k]`."""
        flat = chosen.flatten()
        counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
        return cls(flat.argsort(stable=True), counts, weights, pads)

    @property
    def elsewhere(self) -> int:
        """Places of other ranks' experts."""
        return len(self.order) - sum(self.counts)

    def dispatch(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """`[tokens, width]` to what each expert gets of it."""
        groups = tokens[self.order // self.weights.shape[-1]].split([*self.counts, self.elsewhere])[:-1]
        return [padded(group) if self.pads and len(group) else group for group in groups]

    def combine(self, outputs: Sequence[torch.Tensor], width: int, dtype: torch.dtype) -> torch.Tensor:
        """What those experts that got tokens made of them, `[tokens of the expert, width]`, weighted, to
        `[tokens, width]`.
        """
        mine = [out[:count] for out, count in zip(outputs, filter(None, self.counts), strict=True)]
        mine.append(torch.zeros(self.elsewhere, width, dtype=dtype, device=self.order.device))
        weighted = torch.cat(mine) * self.weights.flatten()[self.order, None]
        return weighted[self.order.argsort()].unflatten(0, (-1, self.weights.shape[-1])).sum(dim=1).to(dtype)


_ADAPTERS: ContextVar[Mapping[str, Sequence[LowRank]]] = ContextVar("small4_adapters", default=MappingProxyType({}))


@contextmanager
def adapted(low_rank: Mapping[str, Sequence[LowRank]]) -> Iterator[None]:
    """Let the forward pass of experts within, in this thread, add adapters, by the name of the weight that they are
    added to; transformers' expert parallel forward passes no further arguments on.
    """
    token = _ADAPTERS.set(low_rank)
    try:
        yield
    finally:
        _ADAPTERS.reset(token)


class Small4StoredExperts(StoredModule):
    """All routed experts of a layer, held as stored: `gate_up_proj` `[experts, 2 * width, hidden]`, gate rows first,
    `down_proj`.
    """

    def __init__(self, num_experts: int, act_fn: nn.Module, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.num_experts, self.act_fn = num_experts, act_fn
        self._add(parts)

    def stored(self, stem: str, expert: int, half: int = 0) -> StoredWeight:
        """One matrix: `half` 0 and 1 of "gate_up_proj" are the gate rows and the up rows, "down_proj" has one."""
        parts = {end: tensor[expert] for end, tensor in self._parts(stem).items()}
        return stored_weight(parts, half, 2 if stem == "gate_up_proj" else 1)

    def shape(self, stem: str) -> torch.Size:
        """Of the weight `stem` of all experts, those on other processes included, as that of a plain parameter."""
        parts = self._parts(stem)
        codes = parts["" if "" in parts else "_packed"]
        in_one = 1 if "" in parts else 2 if codes.dtype == torch.uint8 else 8
        return torch.Size((*codes.shape[:2], codes.shape[2] * in_one))

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """As `Small4Experts.forward`: one expert after the other, each on all of its tokens."""
        if hasattr(self, "parametrizations"):
            raise ValueError("PEFT's own adapter does not fit experts that are held as stored: see `stored_lora`.")
        if hidden_states.is_meta:
            return torch.empty_like(hidden_states)  # which experts are chosen is not known there
        trained = torch.is_grad_enabled() and hidden_states.requires_grad
        routing = Routing.of(top_k_index, top_k_weights, self.num_experts, trained)
        chosen = [(e, group) for e, group in enumerate(routing.dispatch(hidden_states)) if len(group)]
        low_rank = _ADAPTERS.get()
        low = [_dispatched(adapter.down, hidden_states, routing) for adapter in low_rank.get("gate_up_proj", ())]
        at_once = max(1, len(chosen) if len(hidden_states) <= TOGETHER else 1)
        pieces = [chosen[i : i + at_once] for i in range(0, len(chosen), at_once)]
        made = [parts for piece in pieces for parts in self._some(piece, low)]
        output = routing.combine([parts[0] for parts in made], hidden_states.shape[-1], hidden_states.dtype)
        shared = [(a.up, a.scaling) for a in low_rank.get("down_proj", ()) if isinstance(a.up, torch.Tensor)]
        for place, (up, scaling) in enumerate(shared, 1):
            summed = routing.combine([parts[place] for parts in made], up.shape[-1], hidden_states.dtype)
            output = output + linear(summed, up) * scaling
        return output

    def _some(
        self, chosen: Sequence[tuple[int, torch.Tensor]], low: Sequence[Sequence[torch.Tensor] | None]
    ) -> list[tuple[torch.Tensor, ...]]:
        """Some experts, each with its tokens `[tokens, hidden]`; one after the other where their products are not done
        together. low: see `_dispatched`, for each adapter. Returns of each expert its output, and what remains to be
        multiplied with each `up` that is shared.
        """
        gates = [self.stored("gate_up_proj", expert, half) for expert, _ in chosen for half in (0, 1)]
        downs = [self.stored("down_proj", expert) for expert, _ in chosen]
        experts, groups = [expert for expert, _ in chosen], [group for _, group in chosen]
        if not (low_rank := _ADAPTERS.get()):
            return [(output,) for output in gated(gates, downs, groups, self.act_fn)]
        both = multiply_all(gates, [group for group in groups for _ in (0, 1)])
        joined = [torch.cat(pair, dim=-1) for pair in zip(both[::2], both[1::2], strict=True)]
        for adapter, ready in zip(low_rank.get("gate_up_proj", ()), low, strict=True):
            thin = [ready[expert] for expert in experts] if ready else adapter.low(experts, groups)
            joined = adapter.added(joined, experts, thin)
        inner = [self.act_fn(gate) * up for gate, up in (x.chunk(2, dim=-1) for x in joined)]
        outputs, kept = multiply_all(downs, inner), []
        for adapter in low_rank.get("down_proj", ()):
            thin = adapter.low(experts, inner)
            if isinstance(adapter.up, torch.Tensor):
                kept.append(thin)
            else:
                outputs = adapter.added(outputs, experts, thin)
        return list(zip(outputs, *kept, strict=True))


def _dispatched(
    down: torch.Tensor | Sequence[torch.Tensor], tokens: torch.Tensor, routing: Routing
) -> list[torch.Tensor] | None:
    """A shared `down` of all tokens, once for each, `[tokens, rank]` by expert; None for one that is not shared."""
    return routing.dispatch(linear(tokens, down)) if isinstance(down, torch.Tensor) else None


def gated(
    gates: Sequence[StoredWeight], downs: Sequence[StoredWeight], inputs: Sequence[torch.Tensor], act_fn: nn.Module
) -> list[torch.Tensor]:
    """Several experts' `down(act(gate(x)) * up(x))`, each with its own `x` `[tokens, hidden]`. gates: gate and up in
    turns.
    """
    both = multiply_all(gates, [x for x in inputs for _ in (0, 1)])
    return multiply_all(downs, [act_fn(gate) * up for gate, up in zip(both[::2], both[1::2], strict=True)])
