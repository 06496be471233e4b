"""Eight-bit weights: what they take of memory, and how far they move the demo checkpoint's answers.

    python -m model_card.bench.weight_only [--model model_card/demo] [--out model_card/results/weight_only.json]

from the repository root; needs torchao. Prints a table, and one JSON line last.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from model_card.bench.engines import continued, prompts, without_end
from model_card.evals.record import provenance
from modeling_small4 import Small4ForCausalLM, Small4Processor, demo_checkpoint
from modeling_small4.sizes import weight_bytes
from modeling_small4.weight_only import weight_only


def held(parameter: Any) -> int:
    """Bytes of a parameter, or of the plain tensors that a quantised one is made of."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return parameter.numel() * parameter.element_size()
    return sum(held(getattr(parameter, name)) for name in parameter.__tensor_flatten__()[0])


@torch.no_grad()
def measured(model: Path) -> dict[str, Any]:
    """Both models on the same prompts: bytes, relative error of all logits, largest difference, equal greedy answers."""
    whole = Small4ForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    eight = Small4ForCausalLM.from_pretrained(model, dtype=torch.bfloat16, **weight_only("int8")).eval()
    questions = prompts(Small4Processor.from_pretrained(model))
    pairs = [
        (whole(torch.tensor([ids])).logits.float(), eight(torch.tensor([ids])).logits.float()) for ids in questions
    ]
    left, right = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    same = [without_end(continued(whole, ids))[0] == without_end(continued(eight, ids))[0] for ids in questions]
    total = sum(map(held, eight.parameters()))
    assert total == sum(weight_bytes(eight.config, "int8").values()), "the planner's bytes are not those of the model"
    return {
        "bytes_bfloat16": sum(map(held, whole.parameters())), "bytes_int8": total,
        "relative_logit_error": ((left - right).norm() / left.norm()).item(), "largest_logit_difference": (left - right).abs().max().item(),
        "answers": len(same), "equal_greedy_answers": sum(same),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=demo_checkpoint())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(args.model)
    stored = provenance(["python", "-m", "model_card.bench.weight_only"])
    stored["versions"]["torchao"] = version("torchao")
    if args.out:
        args.out.write_text(json.dumps(stored | found, indent=1) + "\n")
    for name, value in found.items():
        print(f"{name:<28}{value:>14.6g}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
