"""What the balance loss does on skewed data: the load of experts with it and without it.

    python -m model_card.bench.balance [--out model_card/results/balance.json] [--steps 300]

from the repository root. A small model of random weights learns sequences that come, nine times in ten, from one of ten
sources, so that experts which the frequent source prefers are overrun. Same weights, same batches; only the balance
loss differs: per layer, over all layers together (transformers' form), or none. The load is counted on fresh batches
after training: per layer, the busiest expert's tokens over an equal share. Prints a table, and one JSON line last.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from model_card.evals.record import provenance, write
from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.training.expert_load import ExpertLoad, relative

COEFFICIENT = 0.05
SOURCES, SHARE_OF_FIRST, VOCABULARY, LENGTH, BATCH = 10, 0.9, 320, 32, 16


WAYS = {
    "with_balance_loss": (COEFFICIENT, True),
    "over_all_layers_together": (COEFFICIENT, False),
    "without": (0.0, False),
}


def small_config(coefficient: float, per_layer: bool) -> Small4Config:
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": coefficient,
        "router_aux_loss_per_layer": per_layer,
        "output_router_logits": True,
        "initializer_range": 0.1,
    }  # fmt: skip
    return Small4Config(text_config=text, vision_config=None)


class Skewed:
    """Sequences of ids, each from one source: a random walk over the source's own 32 ids, every id with four
    successors, one of them the usual.
    """

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        own = VOCABULARY // SOURCES
        self.successors = torch.randint(own, (SOURCES, own, 4), generator=torch.Generator().manual_seed(0))
        rest = (1 - SHARE_OF_FIRST) / (SOURCES - 1)
        self.usual = torch.tensor([0.7, 0.1, 0.1, 0.1])
        self.shares = torch.tensor([SHARE_OF_FIRST] + [rest] * (SOURCES - 1))

    def batch(self) -> torch.Tensor:
        """int64 [BATCH, LENGTH]."""
        source = torch.multinomial(self.shares, BATCH, replacement=True, generator=self.random)
        ids = [torch.randint(self.successors.shape[1], (BATCH,), generator=self.random)]
        while len(ids) < LENGTH:
            which = torch.multinomial(self.usual, BATCH, replacement=True, generator=self.random)
            ids.append(self.successors[source, ids[-1], which])
        return torch.stack(ids, dim=1) + source[:, None] * self.successors.shape[1]


def run(coefficient: float, per_layer: bool, steps: int, seed: int) -> dict[str, Any]:
    """Train one model; its loads [layers][experts] on fresh batches and its cross-entropy there."""
    torch.manual_seed(seed)
    model = Small4ForCausalLM(small_config(coefficient, per_layer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = Skewed(seed)
    for _ in range(steps):
        ids = data.batch()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    counter, fresh, losses = ExpertLoad(model.eval()), Skewed(seed + 1000), []
    with torch.no_grad():
        for _ in range(40):
            ids = fresh.batch()
            losses.append(model(ids, labels=ids, output_router_logits=False).loss.item())
    return {"loads": relative(counter.take()), "loss": sum(losses) / len(losses)}


def measured(steps: int, seeds: list[int], ways: Iterable[str] = WAYS) -> dict[str, Any]:
    """Largest and smallest load over layers, experts and seeds, and the mean cross-entropy, for each way."""
    found: dict[str, Any] = {
        "steps": steps,
        "seeds": seeds,
        "coefficient": COEFFICIENT,
        "experts": 8,
        "chosen_per_token": 2,
        "layers": 4,
    }
    for name in ways:
        runs = [run(*WAYS[name], steps, seed) for seed in seeds]
        loads = torch.stack([one["loads"] for one in runs])
        found[name] = {
            "largest_load": round(loads.max().item(), 3),
            "smallest_load": round(loads.min().item(), 3),
            "largest_load_by_layer": [round(load, 3) for load in loads.amax(dim=(0, 2)).tolist()],
            "cross_entropy": round(sum(one["loss"] for one in runs) / len(runs), 4),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measured(args.steps, args.seeds)
    if args.out:
        stored = provenance(["python", "-m", "model_card.bench.balance"]) | found
        write(args.out, stored)
    print(f"{'':<26}{'largest load':>14}{'smallest':>10}{'cross-entropy':>15}")
    for name in WAYS:
        one = found[name]
        print(f"{name:<26}{one['largest_load']:>14.2f}{one['smallest_load']:>10.2f}{one['cross_entropy']:>15.3f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
