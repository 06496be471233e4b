"""Memory and time of the training loss with all logits at once and with a bounded number of tokens at a time.

    python -m model_card.bench.loss_chunks [--tokens 512] [--chunks 64 256] [--out model_card/results/loss_chunks.json]

from the repository root; needs 6 GB of memory. The head of the release, 131,072 words of 4096 numbers, frozen as with
LoRA; forward and backward to the hidden states. Loss and gradient are compared first; peak memory is taken in a process
of its own for each way.
"""

import argparse
import json
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from model_card.bench.harness import child, interleaved, options, peak_bytes, read, relative_error, report
from modeling_small4.loss import loss_in_chunks


class Head:
    """The head, hidden states of one row and their labels."""

    def __init__(self, args: argparse.Namespace, width: int = 4096, words: int = 131072) -> None:
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(width, words, bias=False, dtype=args.dtype, device="meta")
        weight = torch.empty(words, width, dtype=args.dtype).uniform_(-0.03, 0.03, generator=generator)
        self.head.weight = nn.Parameter(weight, requires_grad=False)
        self.hidden = torch.randn(1, args.tokens, width, generator=generator, dtype=args.dtype).requires_grad_(True)
        self.labels = torch.randint(words, (1, args.tokens), generator=generator)

    def loss(self, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and its gradient; chunk 0: all logits at once."""
        self.hidden.grad = None
        if chunk:
            loss = loss_in_chunks(self.head, self.hidden, self.labels, chunk)
        else:
            loss = ForCausalLMLoss(self.head(self.hidden), self.labels, self.head.out_features)
        loss.backward()
        assert self.hidden.grad is not None
        return loss.detach(), self.hidden.grad


def measured(args: argparse.Namespace, head: Head) -> dict[str, dict[str, Any]]:
    """Time of each number of tokens beside all at once, all in turns in this process."""
    expected, theirs = head.loss(0)
    rows: dict[str, dict[str, Any]] = {}
    for chunk in args.chunks:
        found, mine = head.loss(chunk)
        relative_error(found, expected, "the loss", 1e-3)
        rows[f"{chunk} tokens"] = {"chunk": chunk, "relative_error": relative_error(mine, theirs, "the gradient")}
    ways = {name: partial(head.loss, row["chunk"]) for name, row in rows.items()}
    timed = interleaved(args, lambda: head.loss(0), **ways)
    for name, row in rows.items():
        row |= {"ours_ms": timed[f"{name}_ms"], "at_once_ms": timed["ours_ms"], "runs": timed["runs"]}
        row |= {"time_to_at_once": timed[f"speedup_{name}"]}
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = options(__doc__, runs=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = read(parser)
    if args.memory is not None:
        head = Head(args)
        print(json.dumps(peak_bytes(lambda: head.loss(args.memory), args.device)))
        return
    rows = measured(args, Head(args))
    given = ["--tokens", args.tokens, "--threads", args.threads]
    whole = child("model_card.bench.loss_chunks", "--memory", 0, *given)
    for row in rows.values():
        row |= {"peak_bytes": child("model_card.bench.loss_chunks", "--memory", row["chunk"], *given)}
        row |= {"at_once_peak_bytes": whole}
    columns = {"ours_ms": "10.0f", "at_once_ms": "10.0f", "time_to_at_once": "6.2f"}
    columns |= {"peak_bytes": "10.3g", "at_once_peak_bytes": "10.3g"}
    report(args, {"rows": rows}, columns)


if __name__ == "__main__":
    main()
