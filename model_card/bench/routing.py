"""What can be known of the experts that tokens choose, on recorded decoding of the demo checkpoint: how many of the
next layer's experts this layer's state foretells, and how often a chosen expert is in memory, by the rule that decides
what stays and the size of the pool.

    python -m model_card.bench.routing [--prompts 12] [--tokens 48] [--out model_card/results/routing.json]

from the repository root. Exact counts, no times. The demo has 8 experts in a layer; a model with 128 is flatter.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from model_card.bench.harness import options, read, report
from model_card.evals.demo_checkpoint import held_out
from modeling_small4 import Small4ForCausalLM, Small4Processor, demo_checkpoint
from modeling_small4.experts_pool import HALF_LIFE
from modeling_small4.moe import Small4TopkRouter

TEXT = ("arithmetic", "word_problem", "puzzle", "program")
SHARES = (0.25, 0.5, 0.75)
Step = tuple[int, tuple[int, ...]]  # layer, experts that a token chooses


@torch.inference_mode()
def recorded(prompts: int, tokens: int) -> tuple[list[list[Step]], dict[str, list[float]]]:
    """Steps of each decoded answer, and the recall of each foretelling, by how many experts are taken."""
    folder = demo_checkpoint()
    model, processor = Small4ForCausalLM.from_pretrained(folder), Small4Processor.from_pretrained(folder)
    routers = [module for module in model.modules() if isinstance(module, Small4TopkRouter)]
    answers: list[list[Step]] = []
    recall: dict[str, list[float]] = {"K": [], "K+1": [], "2K": []}
    guesses: dict[int, list[int]] = {}

    def hook(layer: int) -> Callable[..., None]:
        def seen(router: Small4TopkRouter, given: tuple[torch.Tensor], output: Any) -> None:
            if len(given[0]) > 1:
                return
            chosen = output[2][0].tolist()
            answers[-1].append((layer, tuple(chosen)))
            if layer in guesses:
                for name, count in (("K", len(chosen)), ("K+1", len(chosen) + 1), ("2K", 2 * len(chosen))):
                    recall[name].append(len(set(guesses[layer][:count]) & set(chosen)) / len(chosen))
            if layer + 1 < len(routers):
                logits = torch.nn.functional.linear(given[0], routers[layer + 1].weight)[0]
                guesses[layer + 1] = logits.argsort(descending=True).tolist()

        return seen

    for layer, router in enumerate(routers):
        router.register_forward_hook(hook(layer))
    for row in (row for task in TEXT for row in held_out(task, "high", prompts)):
        answers.append([])
        inputs = processor.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            reasoning_mode="high",
        )  # fmt: skip
        model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return answers, recall


class Rule:
    """A pool of `slots` experts and what gives way in it. By name: least recently used, least often used, or least used
    with uses of `HALF_LIFE` tokens ago counting half.
    """

    def __init__(self, name: str, slots: int) -> None:
        self.name, self.slots, self.clock = name, slots, 0
        self.worth: dict[tuple[int, int], float] = {}
        self.here: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.hits = self.uses = 0

    def use(self, layer: int, chosen: Sequence[int]) -> None:
        """One token in one layer."""
        self.clock += layer == 0
        experts = [(layer, expert) for expert in chosen]
        for expert in experts:
            growing = {"recency": 0.0, "frequency": 1.0, "decayed": 2.0 ** (self.clock / HALF_LIFE)}[self.name]
            self.worth[expert] = self.worth.get(expert, 0.0) + growing
            self.uses, self.hits = self.uses + 1, self.hits + (expert in self.here)
            self.here[expert] = None
            self.here.move_to_end(expert)
        while len(self.here) > self.slots:
            del self.here[min((e for e in self.here if e not in experts), key=self.worth.__getitem__)]


def hit_rates(answers: Sequence[Sequence[Step]], slots: int) -> dict[str, float]:
    """Of one pool for all layers, from empty, over all answers in turn."""
    rules = [Rule(name, slots) for name in ("recency", "frequency", "decayed")]
    for step in (step for answer in answers for step in answer):
        for rule in rules:
            rule.use(*step)
    return {rule.name: rule.hits / rule.uses for rule in rules}


def main() -> None:
    """Count, print, store."""
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=12, help="of each task")
    parser.add_argument("--tokens", type=int, default=48)
    args = read(parser)
    answers, recall = recorded(args.prompts, args.tokens)
    layers = 1 + max(layer for answer in answers for layer, _ in answer)
    experts = Small4ForCausalLM.config_class.from_pretrained(demo_checkpoint()).text_config.n_routed_experts
    rows = {f"{share:.0%} of the experts": hit_rates(answers, int(share * layers * experts)) for share in SHARES}
    found = {name: float(np.mean(values)) for name, values in recall.items()}
    print("next layer's experts foretold:", found)
    report(args, {"rows": rows, "recall": found}, dict.fromkeys(("recency", "frequency", "decayed"), "9.3f"))


if __name__ == "__main__":
    main()
