"""One decoding step of several sequences at once, each with its own cache. No row is padded, and rows join and leave
freely.

Their new tokens form one row, so that everything but attention sees a single sequence. Knows nothing of requests.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..attention_paged import Attend, PagedBatch
from ..cache import LatentCache, extend

TOGETHER = 4096  # caches of up to this many tokens are copied into one batch; a longer one is read in place, alone


class RaggedBatch(PagedBatch):
    """The `cache` argument of a forward pass.

    Args:
        caches: of each sequence; every forward adds one token to each.
        rank: `kv_lora_rank`.
    """

    def __init__(self, caches: Sequence[LatentCache], rank: int) -> None:
        super().__init__(None)
        self.caches, self.rank = caches, rank

    def attend(
        self,
        attend: Attend,
        query: torch.Tensor,
        tokens: torch.Tensor,
        mask: object,
        layer_idx: int,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Query `[1, H, sequences, ...]` and new tokens `[1, 1, sequences, width]`; output
        `[1, sequences, H, value width]`.
        """
        held = [
            extend(cache, tokens[:, :, row : row + 1], self.rank, layer_idx) for row, cache in enumerate(self.caches)
        ]
        outputs: list[torch.Tensor] = [query] * len(held)
        for rows in _alike([each.shape[2] for each in held]):
            asked = query.transpose(0, 2)[rows]
            if len(rows) == 1:
                answers = attend(asked, held[rows[0]], None)[0]
            else:
                answers = attend(asked, *_padded([held[row] for row in rows]))[0]
            for row, answer in zip(rows, answers.split(1), strict=True):
                outputs[row] = answer
        return torch.cat(outputs, dim=1), None


def _alike(lengths: list[int]) -> list[list[int]]:
    """Groups of rows in which none is over twice as long as another (very short ones aside); long rows are alone."""
    groups: list[list[int]] = []
    limit = -1
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if lengths[row] > min(limit, TOGETHER):
            groups.append([])
            limit = max(2 * lengths[row], 256)
        groups[-1].append(row)
    return groups


def _padded(held: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[rows, 1, longest, width]`, padded on the right, and the mask over them `[rows, 1, 1, longest]`."""
    lengths = torch.tensor([each.shape[2] for each in held], device=held[0].device)
    tokens = held[0].new_zeros((len(held), 1, int(lengths.max()), held[0].shape[3]))
    for row, each in enumerate(held):
        tokens[row, :, : each.shape[2]] = each[0]
    mask = torch.arange(tokens.shape[2], device=tokens.device) < lengths[:, None]
    return tokens, mask[:, None, None]
