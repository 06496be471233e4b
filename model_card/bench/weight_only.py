"""Weights in 8 and 4 bits: what they take of memory, and how far they move the demo checkpoint's answers.

    python -m model_card.bench.weight_only [--model model_card/demo] [--out model_card/results/weight_only.json]

from the repository root; needs torchao. Prints a table, and one JSON line last.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from model_card.bench.engines import continued, prompts, weights_hash, without_end
from model_card.evals.record import provenance, write
from modeling_small4 import Small4ForCausalLM, Small4Processor, demo_checkpoint
from modeling_small4.planner.sizes import weight_bytes
from modeling_small4.quantize.weight_only import weight_only


def held(parameter: Any) -> int:
    """Bytes of a parameter, or of the plain tensors that a quantized one is made of."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return parameter.numel() * parameter.element_size()
    return sum(held(getattr(parameter, name)) for name in parameter.__tensor_flatten__()[0])


@torch.no_grad()
def measured(model: Path) -> dict[str, Any]:
    """For each kind, beside the whole model on the same prompts: bytes, relative error of all logits, largest
    difference, equal answers.
    """
    whole = Small4ForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    questions = prompts(Small4Processor.from_pretrained(model))
    left = torch.cat([whole(torch.tensor([ids])).logits.float().flatten() for ids in questions])
    answers = [without_end(continued(whole, ids))[0] for ids in questions]
    out: dict[str, Any] = {"bytes_bfloat16": sum(map(held, whole.parameters())), "answers": len(answers)}
    for kind in ("int8", "int4"):
        few = Small4ForCausalLM.from_pretrained(model, dtype=torch.bfloat16, **weight_only(kind)).eval()
        right = torch.cat([few(torch.tensor([ids])).logits.float().flatten() for ids in questions])
        same = [without_end(continued(few, ids))[0] == mine for ids, mine in zip(questions, answers, strict=True)]
        total = sum(map(held, few.parameters()))
        planned = sum(weight_bytes(few.config, kind).values())
        assert kind == "int4" or total == planned, "the planner's bytes are not those of the model"
        out[kind] = {
            "bytes": total, "equal_greedy_answers": sum(same),
            "relative_logit_error": ((left - right).norm() / left.norm()).item(),
            "largest_logit_difference": (left - right).abs().max().item(),
        }  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=demo_checkpoint())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(args.model)
    stored = provenance(["python", "-m", "model_card.bench.weight_only"])
    stored |= {"weights_sha256": weights_hash(args.model)}
    stored["versions"]["torchao"] = version("torchao")
    if args.out:
        write(args.out, stored | found)
    print(f"bfloat16: {found['bytes_bfloat16']:,} bytes; {found['answers']} answers compared")
    for kind in ("int8", "int4"):
        print(f"{kind}: " + ", ".join(f"{name} {value:.6g}" for name, value in found[kind].items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
