"""The training loss without all logits at once: cross-entropy over a bounded number of tokens at a time.

Knows hidden states, a head and labels; nothing of models. For the release's vocabulary float32 logits are 0.5 MB a
token, and their gradient is as large.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

from .files_reading import shown

IGNORED = -100
Head = Callable[[torch.Tensor], torch.Tensor]


def loss_in_chunks(
    head: Head,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    chunk: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **others: object,
) -> torch.Tensor:
    """Next-token cross-entropy, with the gradients of transformers' `ForCausalLMLoss`.

    Logits are computed only where there is a label, `chunk` tokens at a time, and once more in the backward pass.

    Args:
        head: `[tokens, hidden_size]` to logits `[tokens, vocab_size]`; adapters may be around it.
        hidden_states: `[batch, length, hidden_size]`.
        labels: int64 `[batch, length]`, -100 where no loss is wanted.
        chunk: Tokens at a time, at least 1.
        num_items_in_batch: What the summed loss is divided by; None: the number of labels.
        shift_labels: `labels` that are already shifted, which are then taken instead.
        others: What else a forward pass is given, not used here.

    Returns:
        float32 `[]`; NaN if there is no label and `num_items_in_batch` is None, as without chunks.

    Raises:
        ValueError: `chunk` is no positive integer.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(
            f"loss_chunk is {shown(chunk)}; it is a number of tokens of at least 1, or None for all at once."
        )
    if shift_labels is None:
        shift_labels = pad(labels, (0, 1), value=IGNORED)[..., 1:]
    wanted = shift_labels.to(hidden_states.device).flatten()
    places = (wanted != IGNORED).nonzero().squeeze(1)
    kept, targets = hidden_states.flatten(0, -2)[places], wanted[places]

    def summed(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = head(tokens).float()
        return cross_entropy(logits, ids.to(logits.device), reduction="sum")

    pieces = zip(kept.split(chunk), targets.split(chunk), strict=True)
    losses = [checkpoint(summed, *piece, use_reentrant=False) for piece in pieces]
    total = torch.stack(losses).sum()
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / (len(places) if num_items_in_batch is None else num_items_in_batch)
