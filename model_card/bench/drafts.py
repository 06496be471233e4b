"""Decoding the demo with drafts against decoding it plainly, task by task: speed, acceptance, equal answers.

    python -m model_card.bench.drafts [--out model_card/results/drafts.json]

Held-out problems, one prompt at a time, greedy, mode `high`. Each answer is made plainly and with each draft in turns;
what is compared is the sum of a task's seconds from the first token on (a draft reads the prompt behind it), and
`with_prompt` of whole calls. `wrong` is the trained draft turned around: it is sure of tokens that are never right.
`wrong_block` is a DFlash draft with random weights. They show what a draft costs that never fits.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoProcessor, MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
from transformers.generation.streamers import BaseStreamer

from model_card.bench.harness import options, read, report
from model_card.demo_recipe.tasks.data import TASKS
from model_card.evals.answers import prompt
from model_card.evals.demo_checkpoint import held_out
from modeling_small4 import demo_checkpoint, demo_draft
from modeling_small4.drafts_eagle import Small4EagleDraft
from modeling_small4.drafts_loading import drafting_for

WARM_UP = 3  # answers that are not timed
CONTEXT = 500  # tokens of retrieval's texts


class Clock(BaseStreamer):
    """When the first token came."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self.pieces, self.first, self.timer = 0, 0.0, timer

    def put(self, value: torch.Tensor) -> None:
        self.pieces += 1
        if self.pieces == 2:  # behind the prompt
            self.first = self.timer()

    def end(self) -> None:
        pass


def drafts_of(args: argparse.Namespace) -> dict[str, Any]:
    """What is compared with plain decoding, by name."""
    torch.manual_seed(0)
    trained, wrong = (Small4EagleDraft.from_pretrained(demo_draft(), dtype=args.dtype) for _ in range(2))
    with torch.no_grad():
        wrong.model.norm.weight *= -3
    size = trained.config.hidden_size
    block = MuseGlimmerAssistantConfig(
        hidden_size=size, intermediate_size=2 * size, num_hidden_layers=1, num_attention_heads=4, head_dim=size // 4,
        num_key_value_heads=4, block_size=8, mask_token_id=0, target_layer_ids=[0], bos_token_id=1, eos_token_id=2,
        pad_token_id=11,
    )  # fmt: skip
    wrong_block = MuseGlimmerAssistantModel(block).to(args.dtype).eval()
    return {"eagle": trained, "prompt_lookup": "prompt_lookup", "wrong": wrong, "wrong_block": wrong_block}


def measure(model: Any, processor: Any, task: str, drafts: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, acceptance and equality of answers for one task."""
    draw = {"context": CONTEXT} if task == "retrieval" else {}
    rows = held_out(task, "high", args.rows, **draw)
    ways, timer = {"plain": None, **drafts}, time.process_time if args.cpu_time else time.perf_counter
    taken, decoding = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    before = {name: _counts(model, draft) for name, draft in drafts.items()}
    equal, tokens = dict.fromkeys(drafts, 0), 0
    for number, row in enumerate(rows):
        inputs = dict(processor(text=[prompt(row, processor, "high")], return_tensors="pt"))
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        answers = {}
        for place in range(len(ways)):  # each way comes first as often
            name = list(ways)[(number + place) % len(ways)]
            clock, began = Clock(timer), timer()
            answers[name] = model.generate(**inputs, reasoning_mode="high", draft=ways[name], streamer=clock)
            ended = timer()
            taken[name] += ended - began
            decoding[name] += ended - clock.first
        tokens += answers["plain"].shape[1] - inputs["input_ids"].shape[1]
        for name in drafts:
            equal[name] += torch.equal(answers[name], answers["plain"])
    out: dict[str, Any] = {"answers": len(rows), "tokens": tokens, "plain_ms": 1e3 * decoding["plain"] / tokens}
    for name, draft in drafts.items():
        drafted, accepted, forwards = (a - b for a, b in zip(_counts(model, draft), before[name], strict=True))
        out |= {
            f"speedup_{name}": decoding["plain"] / decoding[name],
            f"speedup_with_prompt_{name}": taken["plain"] / taken[name],
            f"accepted_{name}": accepted / max(drafted, 1),
            f"tokens_a_forward_{name}": tokens / max(forwards + len(rows), 1),
            f"equal_{name}": equal[name],
        }
    return out


def _counts(model: Any, draft: Any) -> tuple[int, int, int]:
    pace = drafting_for(model, draft).pace
    return pace.drafted, pace.accepted, pace.forwards


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=12, help="held-out problems of each task")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's own seconds: for a busy machine")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    args = read(parser)
    folder = demo_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=args.dtype).eval()
    processor, drafts = AutoProcessor.from_pretrained(folder), drafts_of(args)
    warm = argparse.Namespace(**vars(args) | {"rows": WARM_UP})
    measure(model, processor, args.tasks[0], drafts, warm)
    result = {"rows": {task: measure(model, processor, task, drafts, args) for task in args.tasks}}
    result |= {
        f"median_speedup_{name}": statistics.median(row[f"speedup_{name}"] for row in result["rows"].values())
        for name in drafts
    }
    result |= {
        f"lowest_speedup_{name}": min(row[f"speedup_{name}"] for row in result["rows"].values()) for name in drafts
    }
    columns = {"answers": "3.0f", "tokens": "6.0f", "plain_ms": "8.1f"}
    for name in drafts:
        columns |= {
            f"speedup_{name}": "6.2f",
            f"speedup_with_prompt_{name}": "6.2f",
            f"accepted_{name}": "6.2f",
            f"equal_{name}": "4.0f",
        }
    report(args, result, columns)


if __name__ == "__main__":
    main()
