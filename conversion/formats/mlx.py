"""MLX (Apple): codes of 2 to 8 bits with a scale and a bias for each group of neighbors, and its own names of some
tensors.

Value = code * scale + bias. Written by mlx-lm, which leaves vision out and splits `kv_b_proj` by heads, and by mlx-vlm,
which keeps both. Expanded only: our layout has no biases.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from modeling_small4.configuration_small4 import Small4TextConfig

from ..checkpoint import Reader, Stored
from ..naming import Leaf, Place, place_fused
from . import absorbed
from .bits import unpack
from .finder import Finder
from .values import PLAIN, Plain, Values, row_steps

_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def written_by_mlx(names: Iterable[str]) -> bool:
    """Whether tensors have names that only MLX gives."""
    return any(re.search(r"\.mlp\.switch_mlp\.|\.self_attn\.embed_q\.|\.vision_model\.", name) for name in names)


@dataclass(frozen=True)
class Affine(Values):
    """A weight in MLX's affine mode. scale, bias: [out, groups]."""

    scale: Stored
    bias: Stored
    bits: int

    form = "mlx"
    error = 0.12

    def expected_error(self) -> float:
        """See `Values.expected_error`; each bit less doubles it."""
        return min(1.0, self.error * 2.0 ** (4 - self.bits))

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        words, groups = self.body.shape[1], self.scale.shape[1]
        for first, count in row_steps(self.shape):
            packed = reader.tensor(self.body, first * words, count * words).view(count, words)
            codes = unpack(packed, self.bits)[:, : self.shape[1]].float().unflatten(1, (groups, -1))
            scale, bias = (
                reader.tensor(p, first * groups, count * groups).view(count, groups, 1).float()
                for p in (self.scale, self.bias)
            )
            yield (codes * scale + bias).flatten(1)


@dataclass(frozen=True)
class ChannelsLast(Values):
    """A convolution [out, channels, height, width], stored as [out, height, width, channels]."""

    form = "plain"

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        yield reader.tensor(self.body).permute(0, 3, 1, 2).flatten(1)


def take(finder: Finder, leaf: Leaf, text: Small4TextConfig) -> Values | None:
    """The numbers of `leaf`; None where something is wrong, which `finder` has noted."""
    name = leaf.name
    if name.endswith(".kv_b_proj.weight") and not finder.has(name):
        names = (name.replace("kv_b_proj", "embed_q"), name.replace("kv_b_proj", "unembed_out"))
        return absorbed.take(leaf, text, names, partial(_take, finder))
    if len(leaf.shape) == 4:
        out, channels, height, width = leaf.shape
        body = finder.find(name, [(out, height, width, channels)], PLAIN)
        return ChannelsLast(leaf.shape, body) if body else None
    if leaf.index:
        stem, _, projection = name.rpartition(".")
        stem = stem.removesuffix(".experts")
        expert, half = (*leaf.index, 0)[:2]
        place = Place(f"{stem}.switch_mlp.{_PROJECTIONS[projection][half]}.weight", (expert,), text.n_routed_experts)
        return _take(finder, place, leaf.shape)
    return _take(finder, place_fused(leaf, 0), leaf.shape)


def _take(finder: Finder, place: Place, shape: tuple[int, ...]) -> Values | None:
    """A weight, quantized if scales lie beside it."""
    if len(shape) != 2 or not finder.has(place.beside("scales")):
        body = finder.matrix(place.weight, place, shape, PLAIN)
        return Plain(shape, body) if body else None
    words, groups = (_last(finder, name) for name in (place.weight, place.beside("scales")))
    bits = words * 32 // shape[1]
    announced = bits in finder.said.widths and bits * shape[1] == words * 32
    if not announced or not groups or shape[1] % groups:
        stored = finder.headers.get(place.weight, finder.headers[place.beside("scales")])
        finder.problem(
            stored.tensor,
            stored.file,
            f"has rows of {words} words and {groups} groups, which is no announced form of [{shape[0]}, {shape[1]}]",
        )
        return None
    body = finder.matrix(place.weight, place, (shape[0], words), ("U32",))
    scale = finder.matrix(place.beside("scales"), place, (shape[0], groups), PLAIN)
    bias = finder.matrix(place.beside("biases"), place, (shape[0], groups), PLAIN)
    return Affine(shape, body, scale, bias, bits) if body and scale and bias else None


def _last(finder: Finder, name: str) -> int:
    shape = finder.headers[name].shape if finder.has(name) else ()
    return shape[-1] if shape else 0
