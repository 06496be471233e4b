"""The table of tensor names: the raw release's name of each tensor and ours. Shapes are the planner's.

Both directions are read from the same rows, so they always agree. A row is one *leaf*: the smallest piece that is a
tensor of its own in the raw layout. In ours the leaves of a layer's routed experts are slices of two fused tensors.
Knows names and shapes; it never opens a file and never touches a tensor.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modeling_small4.configuration_small4 import Small4Config, Small4TextConfig
from modeling_small4.planner.sizes import tensors

TEXT = "model.language_model."
TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."


@dataclass(frozen=True)
class Leaf:
    """One tensor of the raw layout and its place in ours.

    `index` is empty for a tensor of its own; `(expert,)` for a slice of `down_proj` [E, D, ff]; `(expert, half)` for a
    slice of `gate_up_proj` [E, 2 ff, D], half 0 being the gate rows and 1 the up rows. `linear` marks what the FP8
    release quantizes. `rotary_heads` is above 0 where raw rows are interleaved rotary pairs per head and ours are in
    two halves.
    """

    raw: str
    name: str
    shape: tuple[int, ...]
    index: tuple[int, ...] = ()
    linear: bool = False
    rotary_heads: int = 0


@dataclass(frozen=True)
class Place:
    """Where a weight, or all weights of a fused tensor, are in one layout. `weight` is the name of the plain tensor.

    `index` is that of a `Leaf` where the tensor is fused, else empty; `experts` is then the number of experts in it.
    """

    weight: str
    index: tuple[int, ...] = ()
    experts: int = 0

    @property
    def matrices(self) -> int:
        """Matrices of one expert in the fused tensor: 2 for gate and up, 1 for down; 0 if it is not fused."""
        return len(self.index)

    @property
    def number(self) -> int:
        """Matrices in the fused tensor before this one."""
        expert, half = (*self.index, 0, 0)[:2]
        return expert * self.matrices + half

    def on(self, part: str) -> str:
        """Name of a tensor that belongs to the weight itself: `X.weight` and "scale" give `X.weight_scale`, `P` gives
        `P_scale`.
        """
        return f"{self.weight}_{part}"

    def beside(self, part: str) -> str:
        """Name of a tensor that belongs to the module: `X.weight` and "activation_scale" give `X.activation_scale`; `P`
        gives `P_activation_scale`."""
        stem = self.weight.removesuffix(".weight")
        return f"{stem}_{part}" if stem == self.weight else f"{stem}.{part}"

    def stacked(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor that holds a matrix of `shape` for every expert, or `shape` itself."""
        return (self.experts, self.matrices * shape[0], *shape[1:]) if self.index else shape


# (raw name, our name); a trailing sign on the raw name: "*" quantized in FP8, "~" rotary rows.
_Rows = tuple[tuple[str, str], ...]
Shapes = dict[str, tuple[int, ...]]  # of our tensors
_TOP: _Rows = (("tok_embeddings.weight", TEXT + "embed_tokens.weight"),)
_LAST: _Rows = (("norm.weight", TEXT + "norm.weight"),)
_HEAD: _Rows = (("output.weight", "lm_head.weight"),)
_QUERY_LATENT: _Rows = (
    ("attention.wq_a.weight*", "self_attn.q_a_proj.weight"),
    ("attention.q_a_norm.weight", "self_attn.q_a_layernorm.weight"),
    ("attention.wq_b.weight*", "self_attn.q_b_proj.weight"),
)
_QUERY_LATENT_BIAS: _Rows = (("attention.wq_a.bias", "self_attn.q_a_proj.bias"),)
_QUERY_FULL: _Rows = (("attention.wq.weight*", "self_attn.q_proj.weight"),)
_LAYER: _Rows = (
    ("attention_norm.weight", "input_layernorm.weight"),
    ("attention.wkv_a_with_mqa.weight*", "self_attn.kv_a_proj_with_mqa.weight"),
    ("attention.kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"),
    ("attention.wkv_b.weight*", "self_attn.kv_b_proj.weight"),
    ("attention.wo.weight*", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
)
_LAYER_BIAS: _Rows = (  # the release has none, and no names for them
    ("attention.wkv_a_with_mqa.bias", "self_attn.kv_a_proj_with_mqa.bias"),
    ("attention.wo.bias", "self_attn.o_proj.bias"),
)
_ROUTER: _Rows = (("gate.weight", "mlp.gate.weight"),)
_SHARED: _Rows = (
    ("shared_experts.w1.weight*", "mlp.shared_experts.gate_proj.weight"),
    ("shared_experts.w2.weight*", "mlp.shared_experts.down_proj.weight"),
    ("shared_experts.w3.weight*", "mlp.shared_experts.up_proj.weight"),
)
_DENSE: _Rows = (
    ("feed_forward.w1.weight*", "mlp.gate_proj.weight"),
    ("feed_forward.w2.weight*", "mlp.down_proj.weight"),
    ("feed_forward.w3.weight*", "mlp.up_proj.weight"),
)
_VISION_TOP: _Rows = (
    ("vision_encoder.patch_conv.weight", TOWER + "patch_conv.weight"),
    ("vision_encoder.ln_pre.weight", TOWER + "ln_pre.weight"),
    ("pre_mm_projector_norm.weight", PROJECTOR + "norm.weight"),
    ("patch_merger.merging_layer.weight", PROJECTOR + "patch_merger.merging_layer.weight"),
    ("vision_language_adapter.w_in.weight", PROJECTOR + "linear_1.weight"),
    ("vision_language_adapter.w_out.weight", PROJECTOR + "linear_2.weight"),
)
_VISION_BIAS: _Rows = (
    ("vision_language_adapter.w_in.bias", PROJECTOR + "linear_1.bias"),
    ("vision_language_adapter.w_out.bias", PROJECTOR + "linear_2.bias"),
)
_VISION_LAYER: _Rows = (
    ("attention_norm.weight", "attention_norm.weight"),
    ("attention.wq.weight~", "attention.q_proj.weight"),
    ("attention.wk.weight~", "attention.k_proj.weight"),
    ("attention.wv.weight", "attention.v_proj.weight"),
    ("attention.wo.weight", "attention.o_proj.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("feed_forward.w1.weight", "feed_forward.gate_proj.weight"),
    ("feed_forward.w2.weight", "feed_forward.down_proj.weight"),
    ("feed_forward.w3.weight", "feed_forward.up_proj.weight"),
)


def leaves(config: Small4Config) -> Iterator[Leaf]:
    """Every tensor of a checkpoint with this configuration, in the order in which they are written.

    The slices of one fused tensor follow each other without a gap, in the order of their bytes.
    """
    text, shapes = config.text_config, {tensor.name: tensor.shape for tensor in tensors(config)}
    yield from _filled(_TOP, shapes)
    for layer in range(text.num_hidden_layers):
        yield from _decoder_layer(text, layer, shapes)
    yield from _filled(_LAST if config.tie_word_embeddings else _LAST + _HEAD, shapes)
    if config.vision_config is not None:
        yield from _filled(_VISION_TOP + (_VISION_BIAS if config.multimodal_projector_bias else ()), shapes)
        for layer in range(config.vision_config.num_hidden_layers):
            raw, ours = f"vision_encoder.transformer.layers.{layer}.", f"{TOWER}transformer.layers.{layer}."
            yield from _filled(_VISION_LAYER, shapes, raw, ours, config.vision_config.num_attention_heads)


def _decoder_layer(text: Small4TextConfig, layer: int, shapes: Shapes) -> Iterator[Leaf]:
    raw, ours = f"layers.{layer}.", f"{TEXT}layers.{layer}."
    yield from _filled(_LAYER + (_QUERY_FULL if text.q_lora_rank is None else _QUERY_LATENT), shapes, raw, ours)
    if text.attention_bias:
        yield from _filled(_LAYER_BIAS + (() if text.q_lora_rank is None else _QUERY_LATENT_BIAS), shapes, raw, ours)
    if layer < text.first_k_dense_replace:
        yield from _filled(_DENSE, shapes, raw, ours)
        return
    yield from _filled(_ROUTER + (_SHARED if text.n_shared_experts else ()), shapes, raw, ours)
    down = f"{ours}mlp.experts.down_proj"
    narrow = shapes[down][1:]
    for expert in range(text.n_routed_experts):
        for half, projection in enumerate(("w1", "w3")):
            name, place = f"{raw}experts.{expert}.{projection}.weight", (expert, half)
            yield Leaf(name, f"{ours}mlp.experts.gate_up_proj", narrow[::-1], place, linear=True)
    for expert in range(text.n_routed_experts):
        name = f"{raw}experts.{expert}.w2.weight"
        yield Leaf(name, down, narrow, (expert,), linear=True)


def _filled(rows: _Rows, shapes: Shapes, raw: str = "", ours: str = "", heads: int = 0) -> Iterator[Leaf]:
    for raw_name, our_name in rows:
        bare = raw_name.rstrip("*~")
        yield Leaf(
            raw + bare,
            ours + our_name,
            shapes[ours + our_name],
            linear=raw_name.endswith("*"),
            rotary_heads=heads if raw_name.endswith("~") else 0,
        )


_UNFUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def place_raw(leaf: Leaf) -> Place:
    """The place of `leaf` in the raw layout."""
    return Place(leaf.raw)


def place_fused(leaf: Leaf, experts: int) -> Place:
    """The place of `leaf` in our layout and in transformers'."""
    return Place(leaf.name, leaf.index, experts if leaf.index else 0)


def place_unfused(leaf: Leaf) -> Place:
    """The place of `leaf` in a transformers layout with one tensor per expert, as quantizers write it."""
    if not leaf.index:
        return Place(leaf.name)
    stem, _, projection = leaf.name.rpartition(".")
    expert, half = (*leaf.index, 0)[:2]
    return Place(f"{stem}.{expert}.{_UNFUSED[projection][half]}.weight")


def fused_shape(leaf: Leaf, experts: int) -> tuple[int, ...]:
    """Shape of the whole tensor in our layout that `leaf` is, or is a slice of."""
    if not leaf.index:
        return leaf.shape
    halves = len(leaf.index)  # (expert, half): gate and up rows stand in one matrix
    return (experts, leaf.shape[0] * halves, leaf.shape[1])


# transformers' spellings of our prefixes. Published files use the first column, files saved by transformers since 4.52
# ours.
_PUBLISHED = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", TEXT),
    ("vision_tower.vision_model.", TOWER),  # mlx-vlm
    ("vision_tower.", TOWER),
    ("multi_modal_projector.", PROJECTOR),
)


def from_transformers(name: str, text_only: bool) -> str:
    """Our name of the tensor that is called `name` in a transformers folder, in any of its spellings."""
    for theirs, ours in _PUBLISHED:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if text_only and name.startswith("model.") and not name.startswith(TEXT):
        return TEXT + name.removeprefix("model.")
    return name


def to_transformers(name: str, text_only: bool) -> str:
    """The name that transformers' own classes give our tensor `name`: the text-only class has no `language_model`
    level.
    """
    return re.sub(f"^{re.escape(TEXT)}", "model.", name) if text_only else name
