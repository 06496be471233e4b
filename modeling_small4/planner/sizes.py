"""How many bytes Small 4 takes: every tensor by name and shape, the latent cache, and what a forward pass holds, from a
configuration alone.

Arithmetic only: no model is built and no tensor made. Must not know: hardware, layouts over devices (see `layout`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from ..attention_blocks import BLOCK, LONG
from ..configuration_small4 import Small4Config, Small4TextConfig

BITS = {"float32": 32, "bfloat16": 16, "fp8": 8, "int8": 8, "nvfp4": 4.5, "int4": 4.125}  # of a weight, scales included
PRECISIONS = tuple(BITS)
NVFP4_BLOCK, INT4_GROUPS = 16, (128, 64, 32)
PIECE_BYTES = 12 * 2**20  # of `stored_weights`, which needs torch: what expanding `PIECE` numbers takes
LIBRARY_BYTES = 24 * 2**20  # code of torch that the first forward pass on a CPU brings into memory


@dataclass(frozen=True)
class Tensor:
    """One parameter. `kind`: "linear" and "experts" are what low precisions apply to, "plain" stays as it is."""

    name: str
    part: str
    shape: tuple[int, ...]
    kind: str = "plain"

    @property
    def count(self) -> int:
        """Numbers in it."""
        return prod(self.shape)

    def nbytes(self, precision: str) -> int:
        """Bytes, scales included, when the model is held in `precision` (one of `PRECISIONS`).

        fp8, as released: a bfloat16 scale for weights and one for activations per matrix, gate and up rows of an expert
        apart. nvfp4, as released: routed and shared experts, a byte for 16 values, a divisor for weights and one for
        activations per matrix, float32 but for the second of shared experts, which is bfloat16. int4, as
        `small4 convert` writes: a bfloat16 scale for each group of a row. int8: a float32 scale and an int8 zero point
        per row, as torchao. All but text linears and experts is bfloat16 then.
        """
        shared = self.part == "shared experts"
        if precision == "float32":
            return 4 * self.count
        if (
            precision == "bfloat16"
            or self.kind == "plain"
            or (precision == "nvfp4" and self.kind != "experts" and not shared)
        ):
            return 2 * self.count
        rows, matrices = self.count // self.shape[-1], 1
        if self.kind == "experts":
            matrices = self.shape[0] * (2 if self.name.endswith("gate_up_proj") else 1)
        group = next((group for group in INT4_GROUPS if self.shape[-1] % group == 0), 0)
        return {
            "fp8": self.count + 4 * matrices,
            "int8": self.count + 5 * rows,
            "nvfp4": self.count // 2 + rows * ceil(self.shape[-1] / NVFP4_BLOCK) + (6 if shared else 8) * matrices,
            "int4": self.count // 2 + 2 * self.count // group if group else 2 * self.count,
        }[precision]


def tensors(config: Small4Config) -> Iterator[Tensor]:
    """Every parameter of `Small4ForCausalLM(config)`, named as there; a tied head is left out."""
    text, inner = config.text_config, "model.language_model"
    wide = (text.vocab_size, text.hidden_size)
    if config.vision_config is not None:
        yield from _vision(config)
    yield Tensor(f"{inner}.embed_tokens.weight", "embedding", wide)
    for index in range(text.num_hidden_layers):
        yield from _layer(text, index, f"{inner}.layers.{index}")
    yield Tensor(f"{inner}.norm.weight", "norms", (text.hidden_size,))
    if not config.tie_word_embeddings:
        yield Tensor("lm_head.weight", "head", wide)


def _layer(text: Small4TextConfig, index: int, prefix: str) -> Iterator[Tensor]:
    width, attention = text.hidden_size, f"{prefix}.self_attn"
    yield Tensor(f"{prefix}.input_layernorm.weight", "norms", (width,))
    yield Tensor(f"{prefix}.post_attention_layernorm.weight", "norms", (width,))
    heads, rank = text.num_attention_heads, text.q_lora_rank
    queries = heads * text.qk_head_dim
    latent = text.kv_lora_rank
    linears = [("kv_a_proj_with_mqa", latent + text.qk_rope_head_dim, width, True)]
    linears += [("kv_b_proj", heads * (text.qk_nope_head_dim + text.v_head_dim), latent, False)]
    linears += [("o_proj", width, heads * text.v_head_dim, True)]
    if rank is None:
        linears += [("q_proj", queries, width, False)]
    else:
        linears += [("q_a_proj", rank, width, True), ("q_b_proj", queries, rank, False)]
        yield Tensor(f"{attention}.q_a_layernorm.weight", "norms", (rank,))
    yield Tensor(f"{attention}.kv_a_layernorm.weight", "norms", (latent,))
    for name, rows, columns, biased in linears:
        yield Tensor(f"{attention}.{name}.weight", "attention", (rows, columns), "linear")
        if biased and text.attention_bias:
            yield Tensor(f"{attention}.{name}.bias", "attention", (rows,))
    yield from _feed_forward(text, index, f"{prefix}.mlp")


def _feed_forward(text: Small4TextConfig, index: int, prefix: str) -> Iterator[Tensor]:
    width = text.hidden_size
    if index < text.first_k_dense_replace:
        yield from _gated(prefix, "dense layers", width, text.intermediate_size, "linear")
        return
    experts, inner = text.n_routed_experts, text.moe_intermediate_size
    yield Tensor(f"{prefix}.gate.weight", "router", (experts, width))
    yield Tensor(f"{prefix}.experts.gate_up_proj", "routed experts", (experts, 2 * inner, width), "experts")
    yield Tensor(f"{prefix}.experts.down_proj", "routed experts", (experts, width, inner), "experts")
    if text.n_shared_experts:
        shared = inner * text.n_shared_experts
        yield from _gated(f"{prefix}.shared_experts", "shared experts", width, shared, "linear")


def _gated(prefix: str, part: str, width: int, inner: int, kind: str) -> Iterator[Tensor]:
    yield Tensor(f"{prefix}.gate_proj.weight", part, (inner, width), kind)
    yield Tensor(f"{prefix}.up_proj.weight", part, (inner, width), kind)
    yield Tensor(f"{prefix}.down_proj.weight", part, (width, inner), kind)


def _vision(config: Small4Config) -> Iterator[Tensor]:
    vision, tower = config.vision_config, "model.vision_tower"
    width, patch = vision.hidden_size, vision.patch_size
    yield Tensor(f"{tower}.patch_conv.weight", "vision", (width, vision.num_channels, patch, patch))
    yield Tensor(f"{tower}.ln_pre.weight", "vision", (width,))
    for index in range(vision.num_hidden_layers):
        prefix = f"{tower}.transformer.layers.{index}"
        yield Tensor(f"{prefix}.attention_norm.weight", "vision", (width,))
        yield Tensor(f"{prefix}.ffn_norm.weight", "vision", (width,))
        for name in "qkvo":
            yield Tensor(f"{prefix}.attention.{name}_proj.weight", "vision", (width, width))
        yield from _gated(f"{prefix}.feed_forward", "vision", width, vision.intermediate_size, "plain")
    projector, out = "model.multi_modal_projector", config.text_config.hidden_size
    yield Tensor(f"{projector}.norm.weight", "projector", (width,))
    merged = width * config.spatial_merge_size**2
    yield Tensor(f"{projector}.patch_merger.merging_layer.weight", "projector", (width, merged))
    for name, columns in (("linear_1", width), ("linear_2", out)):
        yield Tensor(f"{projector}.{name}.weight", "projector", (out, columns))
        if config.multimodal_projector_bias:
            yield Tensor(f"{projector}.{name}.bias", "projector", (out,))


def weight_bytes(config: Small4Config, precision: str = "bfloat16") -> dict[str, int]:
    """Bytes of all weights by part, in `precision`."""
    parts: dict[str, int] = {}
    for tensor in tensors(config):
        parts[tensor.part] = parts.get(tensor.part, 0) + tensor.nbytes(precision)
    return parts


def expanded_bytes(config: Small4Config, precision: str) -> int:
    """Bytes of expanded weights where weights are held as stored: one piece at a time, and permanently `kv_b_proj`,
    which decoding on the latents reads.
    """
    if precision not in ("fp8", "nvfp4", "int4"):
        return 0
    ups = [t for t in tensors(config) if t.name.endswith("kv_b_proj.weight") and t.nbytes(precision) < 2 * t.count]
    return PIECE_BYTES + 2 * sum(t.count for t in ups)


def cache_bytes(config: Small4Config, context: int, batch: int = 1, element: int = 2) -> int:
    """Bytes of the latent cache of all layers. Per token and layer `kv_lora_rank + qk_rope_head_dim` numbers of
    `element` bytes.
    """
    text = config.text_config
    return batch * context * text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim) * element


@dataclass(frozen=True)
class Work:
    """One forward pass: `batch` sequences read `chunk` new tokens each, `context` tokens being in the cache afterwards;
    `images` of the largest size at once. `shards`: ranks that share heads and experts. `element`: bytes of an
    activation. `fused`: the attention kernel keeps no scores, as on a CPU."""

    batch: int = 1
    chunk: int = 1
    context: int = 1
    images: int = 0
    shards: int = 1
    element: int = 2
    fused: bool = False

    @property
    def blocked(self) -> bool:
        """Whether attention goes block by block; see `attention_blocks`."""
        return 1 < self.chunk < self.context and self.chunk * self.context >= LONG


def activation_bytes(config: Small4Config, work: Work) -> dict[str, int]:
    """Peak bytes inside one decoder layer, for the logits, and inside the tower. They do not add up: the largest
    counts.

    With N = batch * chunk new tokens, K = batch * context keys, H heads per rank, e bytes per number, D `hidden_size`,
    q = nope + rope:

    - attention = e * (k * H * (q + nope + v) + N * H * (2 q + v) + N * (latent + 4 D)), with k = K keys expanded. Block
      by block
      k = batch * max(BLOCK, chunk), and partial results in float32, 12 N H v, are added, and without a fused kernel
      scores and their softmax, 12 N H max(BLOCK, chunk). Generating single tokens the keys stay latent: scores 8 K H
      and two copies of a layer's keys.
    - experts = e * N * (top_k * max(4 D, D + 4 * width / shards) + 4 D): the chosen rows and what is made of them.
    - Both also hold what all layers share, positions and, unless block by block, the mask: 16 N rope + 2 N context.
    - logits: one position per sequence, in e and in float32.
    - vision, per image of P patches: e * P * (6 * width + 3 * inner) + 16 * P * width.
    """
    text, e = config.text_config, work.element
    new, heads, width = work.batch * work.chunk, ceil(text.num_attention_heads / work.shards), text.hidden_size
    inner = ceil(text.moe_intermediate_size / work.shards)
    carried = 16 * new * text.qk_rope_head_dim + (0 if work.blocked else 2 * new * work.context)
    parts = {
        "attention": carried + _attention_bytes(text, work, new, heads),
        "experts": carried + e * new * (text.num_experts_per_tok * max(4 * width, width + 4 * inner) + 4 * width),
        "logits": work.batch * text.vocab_size * (e + 4),
    }
    if work.images and config.vision_config is not None:
        vision = config.vision_config
        patches = work.images * (vision.image_size // vision.patch_size) ** 2
        parts["vision"] = patches * (
            e * (6 * vision.hidden_size + 3 * vision.intermediate_size) + 16 * vision.hidden_size
        )
    return parts


def _attention_bytes(text: Small4TextConfig, work: Work, new: int, heads: int) -> int:
    e, value, latent = work.element, text.v_head_dim, text.kv_lora_rank + text.qk_rope_head_dim
    queries = (
        e * new * (heads * (2 * text.qk_head_dim + value) + latent + 4 * text.hidden_size)
        + 8 * new * text.qk_rope_head_dim
    )
    if work.chunk == 1 and work.context > 1:
        return queries + work.batch * work.context * (8 * heads + 2 * e * latent)
    expanded = e * heads * (text.qk_head_dim + text.qk_nope_head_dim + value)
    if not work.blocked:
        return queries + work.batch * work.context * expanded
    block = max(BLOCK, work.chunk)
    scores = 0 if work.fused else 12 * new * heads * block
    return queries + work.batch * block * expanded + 12 * new * heads * value + scores
