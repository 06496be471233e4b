"""Routed experts that are not all in memory: those that tokens choose are fetched into a pool of slots, and computed
with there.

Outputs equal those of experts held in memory, bit for bit. For inference only. Must not know: how files are laid out,
which slot is given up.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from .cpu_matmul import one_experts_product
from .experts_files import LayerFiles, folder_of
from .experts_pool import Expert, Holding, Pool, Usage
from .experts_profile import ExpertProfile
from .experts_speed import WeightRates, hit_rate, rounded, stays
from .experts_tiers import Disk, MainMemory
from .stored_experts import TOGETHER, gated
from .stored_layers import stored_weight

Parts = dict[str, torch.Tensor]
STEMS = ("gate_up_proj", "down_proj")
FEW = 4  # tokens of an expert that a CPU multiplies in about the time of one


class Slots(Protocol):
    """Where held experts are."""

    def slot(self, expert: Expert) -> torch.Tensor:
        """As `Holding.slot`."""


@dataclass
class ExpertStore:
    """The experts of all layers of a model, shared by its copies and by all threads.

    pool: Those that can be computed with. below: with an accelerator, those that wait in main memory. profile: what is
    known of their use before the first token. rates: what was measured of them. others: seconds of a token besides its
    experts; None: not measured.
    """

    layers: Sequence[LayerFiles]
    disk: Disk
    usage: Usage
    pool: Pool
    below: MainMemory | None = None
    profile: ExpertProfile | None = None
    rates: WeightRates | None = None
    others: float | None = None

    @property
    def folder(self) -> str:
        """Where the files lie."""
        return folder_of([piece.file.path for piece in self.layers[0].pieces.values()])

    def start(self) -> Thread | None:
        """Read the experts that the profile names first, in a thread that goes on beside the first tokens."""
        if self.profile is None:
            return None
        self.usage.expect(self.profile)
        thread = Thread(target=self._fill, args=(self.profile.ranked(),), name="small4-fill", daemon=True)
        thread.start()
        return thread

    def _fill(self, experts: Sequence[Expert]) -> None:
        with suppress(RuntimeError):  # Python ends, and readers take nothing any more
            for pool in [self.pool] if self.below is None else [self.pool, self.below.pool]:
                pool.fill(experts)

    def hit_rates(self) -> tuple[float, float]:
        """The share of a token's experts expected where they are computed with, and there or in main memory."""
        total = sum(layer.count for layer in self.layers)
        here = self.pool.count
        kept = here + (0 if self.below is None else self.below.pool.count)
        if self.profile is not None:
            return self.profile.hit_rate(here), self.profile.hit_rate(kept)
        return hit_rate(here / total), hit_rate(kept / total)

    def places(self, layer: int, rows: Mapping[int, int], tokens: int, row: int) -> list[tuple[Pool, list[int]]]:
        """The pools in which chosen experts of a layer are computed with, before their uses are counted: where the
        accelerator's slots are, and main memory where that is quicker than copying and they are not used so much that
        they belong on the accelerator.

        Args:
            rows: How many tokens chose each.
            tokens: Of the forward pass.
            row: Bytes of a token's input and output.
        """
        if self.below is None or self.rates is None or not self.rates.host or tokens > TOGETHER:
            return [(self.pool, list(rows))]
        nbytes, main = self.layers[layer].nbytes, self.below.pool
        near = [
            expert
            for expert, count in rows.items()
            if count <= FEW
            and (layer, expert) not in self.pool
            and (layer, expert) in main
            and stays(nbytes, count * row, self.rates)
            and not self.pool.prefers((layer, expert))
        ]
        return [(main, near), (self.pool, [expert for expert in rows if expert not in near])]

    def held(self, pool: Pool, layer: int, experts: Sequence[int]) -> Generator["Held", None, None]:
        """Chosen experts of a layer, those that are in the pool first, in as few groups as it has room for, each held
        until the next is asked for.

        While one group is computed, the next one is being read if there is room.
        """
        size = len(experts) if len(experts) <= pool.count else max(1, pool.count // 2)
        here, missing = list[Expert](), list[Expert]()
        for expert in experts:
            (here if (layer, expert) in pool else missing).append((layer, expert))
        groups = [some[i : i + size] for some in (here, missing) for i in range(0, len(some), size)]
        coming: Holding | None = None
        for index, group in enumerate(groups):
            current = coming or pool.hold(group)
            try:
                coming = pool.try_hold(groups[index + 1]) if index + 1 < len(groups) else None
                yield Held(self.layers[layer], current, [expert for _, expert in group])
            except BaseException:
                if coming is not None:
                    coming.release()
                raise
            finally:
                current.release()

    def count_activations(self, nbytes: int) -> None:
        """Count bytes that were copied so that an expert was not."""
        assert self.below is not None
        with self.below.lock:
            self.below.activations += nbytes

    def describe(self) -> str:
        """What is kept where, in one sentence."""
        total = sum(layer.count * layer.nbytes for layer in self.layers)
        places = [(self.pool, "in memory")] if self.below is None else []
        if self.below is not None:
            places = [(self.pool, f"on {self.pool.device}"), (self.below.pool, "in main memory")]
        shares = [(min(1.0, pool.memory.nbytes / total), where) for pool, where in places]
        kept = [f"{rounded(share * total / 1e9, 3)} GB ({share:.0%}) {where}" for share, where in shares]
        return f"{rounded(total / 1e9, 3)} GB of routed experts stay on disk; of them up to {' and '.join(kept)}."

    def __deepcopy__(self, memo: Any) -> "ExpertStore":
        return self

    def __getstate__(self) -> Any:
        raise TypeError(
            "A model whose experts are read from disk as needed cannot be pickled; save the name of its folder instead."
        )


@dataclass
class Held:
    """Experts of one layer that are in their slots, or being read into them."""

    files: LayerFiles
    holding: Slots
    experts: list[int]

    def weights(self, layer: int, expert: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`gate_up_proj` and `down_proj` of a checkpoint that is not quantized; waits for them."""
        parts = self.files.parts(self.holding.slot((layer, expert)))
        return parts[STEMS[0]].to(dtype), parts[STEMS[1]].to(dtype)

    def stored(self, layer: int, expert: int) -> dict[str, Parts]:
        """Codes and scales of both, by the suffixes of their names; waits for them."""
        parts = self.files.parts(self.holding.slot((layer, expert)))
        return {
            stem: {name.removeprefix(stem): t for name, t in parts.items() if name.startswith(stem)} for stem in STEMS
        }


class _WithoutGradient(torch.autograd.Function):
    """An output whose weights may no longer be in memory when its gradient is requested."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        raise ValueError(
            "A model with expert_memory has no gradients: its experts are overwritten as others are needed. "
            "Load it without expert_memory to train it."
        )


class Small4OffloadedExperts(nn.Module):
    """All routed experts of a layer, without parameters. Replaces `Small4Experts` or `Small4StoredExperts`.

    Args:
        store: The experts of all layers.
        layer: Which of its layers this is.
        num_experts, act_fn: As of the module that would hold them.
        dtype: What plain weights are computed in; quantized ones follow their input.
    """

    def __init__(self, store: ExpertStore, layer: int, num_experts: int, act_fn: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.store, self.layer, self.num_experts, self.act_fn = store, layer, num_experts, act_fn
        self.like: torch.Tensor
        self.plain = store.layers[layer].pieces.keys() == set(STEMS)
        # Changed by `to()` and similar calls, as weights would be.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @torch.compiler.disable
    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `Small4Experts.forward`, without gradients.

        Raises:
            ValueError: The model was moved to another device.
            OSError: An expert cannot be read.
        """
        if hidden_states.is_meta or not len(hidden_states):
            return torch.empty_like(hidden_states)  # which experts are chosen is not known there
        if hidden_states.device != self.store.pool.device:
            raise ValueError(
                f"The model was moved to {hidden_states.device}, but its experts are on {self.store.pool.device}; "
                "a model with expert_memory stays where it was loaded."
            )
        with torch.no_grad():
            output = self._computed(hidden_states, top_k_index, top_k_weights)
        return _WithoutGradient.apply(output, hidden_states)

    def _computed(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        top_k, flat = top_k_index.shape[-1], top_k_index.flatten()
        order = flat.argsort(
            stable=not self.plain
        )  # as where they are held whole: a row's place in a product may change its bits
        counts = torch.bincount(flat, minlength=self.num_experts).tolist()
        inputs = hidden_states[order // top_k]
        ends = np.cumsum(counts).tolist()
        spans = {e: slice(end - count, end) for e, (count, end) in enumerate(zip(counts, ends, strict=True)) if count}
        rows, row = {expert: counts[expert] for expert in spans}, hidden_states.shape[1] * hidden_states.element_size()
        places = self.store.places(self.layer, rows, len(top_k_index), 2 * row)
        self.store.usage.used(self.layer, counts, len(top_k_index))
        outputs: torch.Tensor | None = None
        for pool, experts in places:
            if experts:
                outputs = self._in(pool, [(e, spans[e]) for e in experts], inputs, outputs, len(top_k_index))
        assert outputs is not None
        weighted = outputs * top_k_weights.flatten()[order, None]
        return weighted[order.argsort()].unflatten(0, (-1, top_k)).sum(dim=1).to(hidden_states.dtype)

    def _in(
        self,
        pool: Pool,
        chosen: list[tuple[int, slice]],
        inputs: torch.Tensor,
        outputs: torch.Tensor | None,
        tokens: int,
    ) -> torch.Tensor:
        """Compute experts in a pool, each with its rows of `inputs`, and put the results into the same rows of
        `outputs`, which is made by the first.
        """
        spans, given, inner = dict(chosen), inputs.to(pool.device), list[torch.Tensor]()
        away = pool is not self.store.pool
        if away:
            self.store.count_activations(inputs.nbytes)
        with closing(self.store.held(pool, self.layer, list(spans))) as groups:
            for held in groups:
                rows = [spans[expert] for expert in held.experts]
                results = self.multiplied(held, given, rows, tokens, inner)
                if outputs is None:
                    outputs = inputs.new_empty(len(inputs), results[0].shape[1], dtype=results[0].dtype)
                for span, result in zip(rows, results, strict=True):
                    outputs[span] = result
                if away:
                    self.store.count_activations(sum(result.nbytes for result in results))
        assert outputs is not None
        return outputs

    def multiplied(
        self, held: Held, inputs: torch.Tensor, rows: list[slice], tokens: int, inner: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Outputs of each expert in `held` for its rows of `inputs`, those of a forward pass over so many tokens.

        inner: What `_plain` keeps between the calls of one forward pass, empty for the first.
        """
        if self.plain:
            return self._plain(held, inputs, rows, tokens, inner)
        return self._quantized(held, inputs, rows, tokens)

    def _plain(
        self, held: Held, inputs: torch.Tensor, rows: list[slice], tokens: int, inner: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Outputs of each expert for its rows of `inputs`, with weights `[out, in]`.

        inner: Keeps gate and up of all experts for one forward pass. The activation is applied to all rows at once,
        those still to come
            included: where torch cuts them for its threads decides how single numbers are rounded.
        """
        dtype = self.like.dtype
        weights = [held.weights(self.layer, expert, dtype) for expert in held.experts]
        product = one_experts_product(weights[0], tokens, len(inputs) / self.num_experts)
        if not inner:
            inner.append(inputs.new_zeros(len(inputs), len(weights[0][0]), dtype=dtype))
        for span, (gate_up, _) in zip(rows, weights, strict=True):
            inner[0][span] = product(inputs[span].to(dtype), gate_up)
        gate, up = inner[0].chunk(2, dim=-1)
        inside = self.act_fn(gate) * up
        return [product(inside[span], down) for span, (_, down) in zip(rows, weights, strict=True)]

    def _quantized(self, held: Held, inputs: torch.Tensor, rows: list[slice], tokens: int) -> list[torch.Tensor]:
        """The same with weights as stored, in the order of `Small4StoredExperts`."""
        at_once = len(rows) if tokens <= TOGETHER else 1
        out: list[torch.Tensor] = []
        for some in (slice(i, i + at_once) for i in range(0, len(rows), at_once)):
            parts = [held.stored(self.layer, expert) for expert in held.experts[some]]
            gates = [stored_weight(part[STEMS[0]], half, 2) for part in parts for half in (0, 1)]
            downs = [stored_weight(part[STEMS[1]]) for part in parts]
            out += gated(gates, downs, [inputs[span] for span in rows[some]], self.act_fn)
        return out

    def extra_repr(self) -> str:
        """What is where."""
        return f"experts={self.num_experts}, layer={self.layer}, slots={self.store.pool.count}"


def expert_store(model: nn.Module) -> ExpertStore | None:
    """The experts of a model that are read as they are needed; None if it holds them whole."""
    found = (module.store for module in model.modules() if isinstance(module, Small4OffloadedExperts))
    return next(found, None)


def save_expert_profile(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write down which experts a model loaded with `expert_memory` used so far, as `expert_profile.json`.

    Beside a checkpoint, the file makes `from_pretrained` with `expert_memory` read the experts that were used most
    first, and foretell its speed by them.

    Args:
        model: Any Small 4 model, after some tokens that are typical of its use.
        folder: The checkpoint's folder, or another one that exists.

    Raises:
        ValueError: The model holds all its experts in memory, or no token was read yet.
    """
    store = expert_store(model)
    if store is None:
        raise ValueError(
            "This model holds all experts in memory, where uses are not counted; load it with expert_memory."
        )
    return ExpertProfile(store.usage.tokens, store.usage.counts.copy(), store.usage.ranks.copy()).save(folder)
