"""GGUF (llama.cpp): blocks of codes in about thirty types, expanded by the `gguf` package, and llama.cpp's names of our
tensors.

Routed experts are one tensor a layer and projection, or gate and up together; `kv_b_proj` is split by heads. Vision, if
any, stands in a file of its own (`mmproj`), its rotary rows as in the raw release. Expanded only.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from modeling_small4.configuration_small4 import Small4TextConfig

from ..checkpoint import CheckpointError, Reader
from ..naming import PROJECTOR, TEXT, TOWER, Leaf, Place
from . import absorbed
from .finder import Finder
from .values import PLAIN, Plain, Values, row_steps

_TOP = {
    f"{TEXT}embed_tokens": "token_embd",
    f"{TEXT}norm": "output_norm",
    "lm_head": "output",
    f"{TOWER}patch_conv": "v.patch_embd",
    f"{TOWER}ln_pre": "v.pre_ln",
    f"{PROJECTOR}norm": "mm.input_norm",
    f"{PROJECTOR}patch_merger.merging_layer": "mm.patch_merger",
    f"{PROJECTOR}linear_1": "mm.1",
    f"{PROJECTOR}linear_2": "mm.2",
}
_LAYER = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.q_proj": "attn_q",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_TOWER_LAYER = {
    "attention_norm": "ln1",
    "ffn_norm": "ln2",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_out",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
}
_BREAK = "v.token_embd.img_break"  # a copy of one row of the embedding


@dataclass(frozen=True)
class Blocks(Values):
    """A weight in one of llama.cpp's types, by its number there. body: bytes [out, bytes of a row]."""

    type: int

    form = "gguf"
    error = 0.3  # that of 2 bits; others are nearer

    def pieces(self, reader: Reader) -> Iterator[torch.Tensor]:
        """See `Values.pieces`."""
        library = library_of_gguf()
        kind, width = library.GGMLQuantizationType(self.type), self.body.shape[1]
        for first, count in row_steps(self.shape):
            data = reader.tensor(self.body, first * width, count * width).view(count, width)
            yield torch.from_numpy(library.quants.dequantize(data.numpy(), kind))


def library_of_gguf() -> Any:
    """The package `gguf`. Raises CheckpointError with what to install."""
    try:
        import gguf
    except ImportError:
        raise CheckpointError('GGUF files are read with the package gguf: pip install ".[gguf]"') from None
    return gguf


def take(finder: Finder, types: dict[str, int], leaf: Leaf, text: Small4TextConfig) -> Values | None:
    """The numbers of `leaf`; None where something is wrong, which `finder` has noted. types: llama.cpp's number of each
    tensor's type.
    """
    finder.leave(_BREAK)
    take_one = partial(_take, finder, types)
    if leaf.index:
        return _expert(finder, take_one, leaf, text.n_routed_experts)
    name = _name(leaf.name)
    if name.endswith(".attn_kv_b.weight") and not finder.has(name):
        return absorbed.take(leaf, text, (name.replace("kv_b", "k_b"), name.replace("kv_b", "v_b")), take_one)
    return take_one(Place(name), leaf.shape)


def _name(ours: str) -> str:
    """What llama.cpp calls our tensor."""
    stem, _, end = ours.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{end}"
    for pattern, prefix, names in (("layers", "blk", _LAYER), ("transformer.layers", "v.blk", _TOWER_LAYER)):
        match = re.fullmatch(rf"model\.(?:language_model|vision_tower)\.{re.escape(pattern)}\.(\d+)\.(.+)", stem)
        if match:
            return f"{prefix}.{match[1]}.{names[match[2]]}.{end}"
    raise AssertionError(ours)


def _expert(finder: Finder, take_one: Any, leaf: Leaf, experts: int) -> Values | None:
    layer = leaf.name.split(".")[3]
    expert, half = (*leaf.index, 0)[:2]
    both = f"blk.{layer}.ffn_gate_up_exps.weight"
    if len(leaf.index) == 2 and finder.has(both):
        return take_one(Place(both, leaf.index, experts), leaf.shape)
    kind = ("gate", "up")[half] if len(leaf.index) == 2 else "down"
    return take_one(Place(f"blk.{layer}.ffn_{kind}_exps.weight", (expert,), experts), leaf.shape)


def _take(finder: Finder, types: dict[str, int], place: Place, shape: tuple[int, ...]) -> Values | None:
    name = place.weight
    if finder.dtype(name) in (None, *PLAIN):
        body = finder.matrix(name, place, shape, PLAIN)
        return Plain(shape, body) if body else None
    block, size = library_of_gguf().GGML_QUANT_SIZES[types[name]]
    if len(shape) != 2 or shape[1] % block:
        finder.problem(
            name, finder.headers[name].file, f"has rows of {shape[-1]} numbers, no multiple of its block of {block}"
        )
        return None
    body = finder.matrix(name, place, (shape[0], shape[1] // block * size), ("U8",))
    return Blocks(shape, body, types[name]) if body else None
