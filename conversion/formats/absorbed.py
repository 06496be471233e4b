"""`kv_b_proj` as MLX and llama.cpp store it for decoding on the latents: a matrix for keys, turned, and one for values,
for each head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from modeling_small4.configuration_small4 import Small4TextConfig

from ..checkpoint import Reader
from ..naming import Leaf, Place
from .values import Values, row_steps


@dataclass(frozen=True)
class Absorbed(Values):
    """[heads * (nope + v), kv_rank], of each head's keys [kv_rank, nope] and values [v, kv_rank]."""

    keys: tuple[Values, ...]
    values: tuple[Values, ...]

    form = "absorbed"

    def inner(self) -> tuple[Values, ...]:
        """See `Values.inner`."""
        return self.keys + self.values

    def expected_error(self) -> float:
        """See `Values.expected_error`."""
        return max(part.expected_error() for part in self.inner())

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`. All heads are read: they are small beside the experts."""
        rows = []
        for keys, values in zip(self.keys, self.values, strict=True):
            rows += [torch.cat(list(keys.pieces(reader))).T, *values.pieces(reader)]
        whole = torch.cat(rows)
        for first, count in row_steps(self.shape):
            yield whole[first : first + count]


def take(
    leaf: Leaf,
    text: Small4TextConfig,
    names: tuple[str, str],
    take_one: Callable[[Place, tuple[int, ...]], Values | None],
) -> Absorbed | None:
    """`leaf` out of two tensors with a matrix for each head, of which `take_one` takes one."""
    heads, (rank, nope, wide) = text.num_attention_heads, (text.kv_lora_rank, text.qk_nope_head_dim, text.v_head_dim)
    keys = [take_one(Place(names[0], (head,), heads), (rank, nope)) for head in range(heads)]
    values = [take_one(Place(names[1], (head,), heads), (wide, rank)) for head in range(heads)]
    found = [[value for value in side if value is not None] for side in (keys, values)]
    if not all(len(side) == heads for side in found):
        return None
    return Absorbed(leaf.shape, found[0][0].body, tuple(found[0]), tuple(found[1]))
